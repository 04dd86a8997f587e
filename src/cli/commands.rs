//! What each command does.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use chrono::{DateTime, TimeDelta, Utc};
use clap::Parser;
use comfy_table::{Table, presets};
use http_body_util::{BodyExt, Empty};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};

use super::{Cli, Command, DatabaseArgs, KeysCommand, transfer};
use crate::app::{self, Use};
use crate::config::{Config, DatabaseConfig};
use crate::domain::Clock;
use crate::store::{ApiKey, KEY_TRUST, KeyRevocation, NewApiKey, Store, Verified};
use crate::{api, telemetry};

/// How long a sign of life may take.
const HEALTHCHECK_TIMEOUT: Duration = Duration::from_secs(5);

/// Runs the command of this process's command line.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&anyhow!(error).context("the system gives no threads to work with")),
    };
    // On this thread, which lives as long as the process: an embedded server stops with the thread that started it.
    let outcome = runtime.block_on(run_command(cli));
    // What still runs are requests that were given up on; they must not keep the process.
    runtime.shutdown_background();
    match outcome {
        Ok(code) => code,
        Err(error) => fail(&error),
    }
}

fn fail(error: &anyhow::Error) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "error: {error:#}");
    ExitCode::FAILURE
}

async fn run_command(cli: Cli) -> anyhow::Result<ExitCode> {
    match cli.command.unwrap_or(Command::Serve(cli.serve)) {
        Command::Serve(args) => {
            let (format, filter) = args.database.logging("info")?;
            telemetry::init(format, &filter)?;
            return app::serve(Config::new(args)?).await;
        }
        Command::Migrate(args) => {
            let (format, filter) = args.logging("warn")?;
            telemetry::init(format, &filter)?;
            app::open_database(&DatabaseConfig::new(args)?, Use::Migrate).await?.close().await?;
            print("The database has this version's schema.");
        }
        Command::Keys(command) => keys(command).await?,
        Command::Import(args) => transfer::import(args).await?,
        Command::Export(args) => transfer::export(args).await?,
        Command::Verify { json, database } => return verify(json, database).await,
        Command::Openapi => print(&pretty(&api::openapi_document())),
        Command::Healthcheck { url } => healthcheck(&url).await?,
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn print(text: &str) {
    // A reader that went away, `head` for example, is no failure.
    let _ = writeln!(std::io::stdout(), "{text}");
}

pub(super) fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).expect("a JSON value can be written")
}

/// Opens the database and closes it after the work: the given one; that of a service which runs on the data directory; or
/// its server is started for this. Neither makes a database nor migrates one: that is for `serve` and `migrate`.
pub(super) async fn with_database(
    args: DatabaseArgs,
    connections: usize,
    work: impl AsyncFnOnce(Store) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let (format, filter) = args.logging("warn")?;
    telemetry::init(format, &filter)?;
    let database = app::open_database(&DatabaseConfig::new(args)?, Use::AsItIs).await?;
    let store = Store::new(&database.url, connections);
    let outcome = work(store.clone()).await;
    store.close();
    database.close().await?;
    outcome
}

async fn keys(command: KeysCommand) -> anyhow::Result<()> {
    let now = Clock::system().now();
    match command {
        KeysCommand::Create { organization, name, expires_in, read_only, json, database } => {
            if organization.trim().is_empty() {
                bail!("an organisation needs a name");
            }
            let expires_at = expires_in
                .map(|duration| {
                    TimeDelta::from_std(*duration).ok().and_then(|delta| now.checked_add_signed(delta))
                })
                .map(|at| at.context("--expires-in reaches beyond the end of time; leave it out for ever"))
                .transpose()?;
            let new = NewApiKey { organization, name, can_write: !read_only, expires_at };
            with_database(database, 1, async |store| create_key(&store, &new, now, json).await).await
        }
        KeysCommand::List { json, database } => {
            with_database(database, 1, async |store| {
                let keys = store.list_api_keys().await?;
                print(&if json { keys_as_json(&keys) } else { keys_as_table(&keys, now) });
                Ok(())
            })
            .await
        }
        KeysCommand::Revoke { id, organization, database } => {
            with_database(database, 1, async |store| match store.revoke_api_key(&organization, id, now).await? {
                KeyRevocation::Revoked => {
                    // Then it is true also of services that run.
                    tokio::time::sleep(KEY_TRUST).await;
                    print(&format!("Revoked key {id}. It is refused from now on."));
                    Ok(())
                }
                KeyRevocation::AlreadyRevoked => {
                    print(&format!("Key {id} had been revoked before."));
                    Ok(())
                }
                KeyRevocation::Unknown => bail!(
                    "organisation `{organization}` has no key {id}; `task-history keys list` shows all of them"
                ),
            })
            .await
        }
    }
}

async fn create_key(store: &Store, new: &NewApiKey, now: DateTime<Utc>, json: bool) -> anyhow::Result<()> {
    let (id, key, organization_is_new) = store.create_api_key(new, now).await?;
    if json {
        print(&pretty(&json!({
            "id": id.to_string(),
            "organization": new.organization,
            "name": new.name,
            "can_write": new.can_write,
            "expires_at": new.expires_at.map(time),
            "key": key.expose(),
        })));
        return Ok(());
    }
    if organization_is_new {
        print(&format!("Created organisation `{}`.", new.organization));
    }
    print(&format!("Key {id}, shown only this once:\n\n    {}\n", key.expose()));
    print("Send it in the x-api-key header of each request.");
    Ok(())
}

fn time(time: DateTime<Utc>) -> String {
    time.format("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn keys_as_json(keys: &[ApiKey]) -> String {
    let keys = keys.iter().map(|key| {
        json!({
            "id": key.id.to_string(),
            "organization": key.organization,
            "name": key.name,
            "prefix": key.prefix,
            "can_write": key.can_write,
            "created_at": time(key.created_at),
            "expires_at": key.expires_at.map(time),
            "revoked_at": key.revoked_at.map(time),
            "last_used_at": key.last_used_at.map(time),
        })
    });
    pretty(&keys.collect())
}

fn keys_as_table(keys: &[ApiKey], now: DateTime<Utc>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header(["ID", "ORGANISATION", "NAME", "KEY", "MAY", "STATE", "CREATED", "LAST USED"]);
    for key in keys {
        let state = match (key.revoked_at, key.expires_at) {
            (Some(at), _) => format!("revoked {}", time(at)),
            (None, Some(at)) if at <= now => format!("expired {}", time(at)),
            (None, Some(at)) => format!("valid until {}", time(at)),
            (None, None) => "valid".to_owned(),
        };
        table.add_row([
            key.id.to_string(),
            key.organization.clone(),
            key.name.clone(),
            format!("{}…", key.prefix),
            if key.can_write { "write" } else { "read" }.to_owned(),
            state,
            time(key.created_at),
            key.last_used_at.map_or_else(|| "never".to_owned(), time),
        ]);
    }
    table.trim_fmt()
}

/// Exit code 2 where something does not agree, to tell it from a check that could not be made.
async fn verify(json: bool, database: DatabaseArgs) -> anyhow::Result<ExitCode> {
    let mut found = Vec::new();
    with_database(database, 1, async |store| {
        for (organization, name) in store.organizations().await? {
            found.push(store.verify(organization, &name).await?);
        }
        Ok(())
    })
    .await?;
    let agrees = found.iter().all(|verified| verified.drift.is_empty());
    if json {
        let organizations = found.iter().map(|verified| {
            json!({ "organization": verified.organization, "tasks": verified.tasks, "drift": verified.drift })
        });
        print(&pretty(&json!({ "agrees": agrees, "organizations": organizations.collect::<Vec<_>>() })));
    } else {
        for Verified { organization, tasks, drift } in &found {
            print(&format!("{organization}: {tasks} tasks, {} disagreements", drift.len()));
            for text in drift {
                print(&format!("  {text}"));
            }
        }
        print(if agrees {
            "All counts and turns agree with the tasks."
        } else {
            "Something does not agree. Keep a copy of the database, and report it as a bug of task-history."
        });
    }
    Ok(if agrees { ExitCode::SUCCESS } else { ExitCode::from(2) })
}

async fn healthcheck(url: &str) -> anyhow::Result<()> {
    let uri = url.parse::<http::Uri>().ok().filter(|uri| uri.scheme_str() == Some("http"));
    let uri = uri.with_context(|| format!("`{url}` is no http:// address"))?;
    let client = Client::builder(TokioExecutor::new()).build_http::<Empty<bytes::Bytes>>();
    let answer = async {
        let response = client.get(uri).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        anyhow::Ok((status, String::from_utf8_lossy(&body).into_owned()))
    };
    let (status, body) = tokio::time::timeout(HEALTHCHECK_TIMEOUT, answer)
        .await
        .with_context(|| format!("{url} gave no answer in {} s", HEALTHCHECK_TIMEOUT.as_secs()))?
        .with_context(|| format!("{url} can't be reached"))?;
    if !status.is_success() {
        bail!("{url} answered {status}: {body}");
    }
    print(&format!("{url} answered {status}"));
    Ok(())
}
