//! From a configuration to a service that listens, and back down again.

use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::api::{self, Api};
use crate::config::{Config, DatabaseConfig};
use crate::domain::Clock;
use crate::embedded::{self, Embedded};
use crate::store::{self, Bootstrap, DatabaseUrl, Secret, Store, StoreError};
use crate::telemetry;

/// Name of the database on a server of our own.
const DATABASE: &str = "task_history";

/// How long a start waits for a given server to take connections: containers start in any order.
const DATABASE_PATIENCE: Duration = Duration::from_secs(30);

/// How often it tries.
const DATABASE_RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// How long a connection may be open without a complete request head, also between requests.
const HEADER_TIMEOUT: Duration = Duration::from_mins(1);

/// How long to wait where no connection can be accepted.
const ACCEPT_RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// Exit code where the service's own PostgreSQL ended under it.
const EXIT_DATABASE_DIED: u8 = 3;

/// A database, migrated, and the server that was started for it, if one was.
pub struct Database {
    /// Where it is.
    pub url: DatabaseUrl,
    server: Option<Embedded>,
}

impl Database {
    /// Stops the server that was started for it, if one was.
    pub async fn close(self) -> anyhow::Result<()> {
        if let Some(server) = self.server {
            server.stop().await.context("PostgreSQL did not stop")?;
        }
        Ok(())
    }
}

/// The service as a router: every route, and a log line for each request.
pub fn router(api: Api) -> Router {
    api::router(api).layer(axum::middleware::from_fn(telemetry::log_request))
}

/// Serves until SIGTERM or Ctrl-C, then finishes what is under way.
pub async fn serve(config: Config) -> anyhow::Result<ExitCode> {
    // From here on a signal is an event; until the service listens it ends the start.
    let mut stop = stop_signal()?;
    // First of all, since it fails most often, and a key that is shown once must not be lost to it.
    let listener = TcpListener::bind(config.listen).await.with_context(|| {
        format!("can't listen on {}; choose another address with --listen", config.listen)
    })?;
    let database = tokio::select! {
        database = open_database(&config.database, Use::Serve) => database?,
        _ = stop.changed() => return Ok(ExitCode::SUCCESS),
    };
    let Database { url, mut server } = database;
    let clock = Clock::system();
    let store = Store::new(&url, config.database_connections);
    let bootstrap = store.bootstrap(config.bootstrap_key.as_ref(), clock.now()).await?;
    ensure!(
        !matches!(bootstrap, Bootstrap::Unusable),
        "TASK_HISTORY_BOOTSTRAP_KEY is revoked, has expired, or belongs to another organisation than `default`; choose \
         another, or leave it out"
    );
    let address = listener.local_addr()?;
    tracing::info!(%address, database = %url, "listening");
    greet(address, &bootstrap);

    let stopping = CancellationToken::new();
    let api = Api {
        store: store.clone(),
        clock,
        invoke_timeout: config.invoke_timeout,
        reader_patience: api::READER_PATIENCE,
        stopping: stopping.clone(),
    };
    let mut serving = tokio::spawn(accept(listener, router(api), stopping.clone()));
    let died = async {
        match &mut server {
            Some(server) => server.exited().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        result = &mut serving => result?,
        status = died => {
            tracing::error!(?status, "PostgreSQL ended by itself; its log is in the data directory. Start again");
            return Ok(ExitCode::from(EXIT_DATABASE_DIED));
        }
        _ = stop.changed() => {
            stopping.cancel();
            tracing::info!("stopping: requests under way are finished, new ones refused");
            tokio::select! {
                _ = &mut serving => {}
                () = tokio::time::sleep(config.drain_timeout) => {
                    tracing::warn!(drain_timeout = ?config.drain_timeout, "some requests took too long and were ended");
                }
                _ = stop.changed() => tracing::warn!("told to stop again: requests under way are ended"),
            }
            serving.abort();
        }
    }
    store.close();
    Database { url, server }.close().await?;
    tracing::info!("stopped");
    Ok(ExitCode::SUCCESS)
}

/// Takes connections until `stopping`, then waits until their requests are answered.
async fn accept(listener: TcpListener, router: Router, stopping: CancellationToken) {
    let connections = GracefulShutdown::new();
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stopping.cancelled() => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Most likely there are no file handles left; those that are in use come back.
                tracing::warn!(%error, "can't accept a connection");
                tokio::time::sleep(ACCEPT_RETRY_INTERVAL).await;
                continue;
            }
        };
        let _ = stream.set_nodelay(true);
        let service = TowerToHyperService::new(router.clone());
        let connection = connections.watch(http.serve_connection(TokioIo::new(stream), service));
        tokio::spawn(async move {
            // It ends in an error where its client breaks it off, which is the client's own affair.
            let _ = connection.await;
        });
    }
    drop(listener);
    connections.shutdown().await;
}

/// Changes when SIGTERM or SIGINT arrives.
fn stop_signal() -> anyhow::Result<watch::Receiver<()>> {
    let (sender, receiver) = watch::channel(());
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            let _ = sender.send(());
        }
    });
    Ok(receiver)
}

/// What a database is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// To serve: it is made and migrated, and nobody else may use the data directory.
    Serve,
    /// To migrate it, beside a service if one runs.
    Migrate,
    /// To work on it as it is, beside a service if one runs.
    AsItIs,
}

/// Opens the database.
pub async fn open_database(config: &DatabaseConfig, purpose: Use) -> anyhow::Result<Database> {
    let (url, server) = match config {
        DatabaseConfig::Given(url) => {
            wait_for(url).await?;
            (url.as_ref().clone(), None)
        }
        DatabaseConfig::Embedded(options) => open_embedded(options, purpose).await?,
    };
    let database = Database { url, server };
    if purpose != Use::AsItIs {
        store::migrate(&database.url).await?;
    } else if !store::is_migrated(&database.url).await? {
        let url = database.url.clone();
        database.close().await?;
        bail!("the database at {url} does not have this version's schema; run `task-history migrate`");
    }
    Ok(database)
}

async fn wait_for(url: &DatabaseUrl) -> anyhow::Result<()> {
    let started = Instant::now();
    loop {
        match store::ping(url).await {
            Ok(()) => return Ok(()),
            Err(StoreError::Unavailable(error)) if started.elapsed() < DATABASE_PATIENCE => {
                tracing::info!(database = %url, error, "waiting for the database");
                tokio::time::sleep(DATABASE_RETRY_INTERVAL).await;
            }
            Err(error) => {
                return Err(error)
                    .with_context(|| format!("can't use the database at {url}; check DATABASE_URL"));
            }
        }
    }
}

async fn open_embedded(
    options: &embedded::Options,
    purpose: Use,
) -> anyhow::Result<(DatabaseUrl, Option<Embedded>)> {
    let parse = |url: &str| DatabaseUrl::parse(url).map_err(anyhow::Error::msg);
    if purpose == Use::AsItIs && !options.directory.join("data").exists() {
        bail!("there is no database in {}; start the service there first", options.directory.display());
    }
    if purpose != Use::Serve
        && let Some(url) = embedded::running_database_url(&options.directory, DATABASE)
    {
        return Ok((parse(&url)?, None));
    }
    let started = Instant::now();
    let server = Embedded::start(options).await?;
    tracing::info!(directory = %options.directory.display(), ms = started.elapsed().as_millis(), "PostgreSQL runs");
    store::create_database(&parse(&server.database_url("postgres"))?, DATABASE).await?;
    Ok((parse(&server.database_url(DATABASE))?, Some(server)))
}

/// Tells a person on the terminal what to do next.
fn greet(address: SocketAddr, bootstrap: &Bootstrap) {
    // A wildcard address is no place to go to.
    let host = if address.ip().is_unspecified() { "127.0.0.1".to_owned() } else { address.ip().to_string() };
    let host = if host.contains(':') { format!("[{host}]") } else { host };
    let base = format!("http://{host}:{}", address.port());
    let mut text = format!("Listening on {base}, documentation at {base}/docs\n");
    if let Bootstrap::Created(key) = bootstrap {
        text += &first_steps(&base, key);
    }
    let mut stdout = std::io::stdout().lock();
    let _ = stdout.write_all(text.as_bytes());
    let _ = stdout.flush();
}

fn first_steps(base: &str, key: &Secret) -> String {
    let key = key.expose();
    format!(
        "\nThis is the first start. Your API key, shown only this once:\n\n    {key}\n\nRecord a task, and list it:\n\n    \
         curl -s -H 'x-api-key: {key}' -H 'content-type: application/json' \\\n      \
         -d '{{\"input\": {{\"text\": \"Hello\"}}}}' {base}/v1/agents/my-agent/invoke/async\n    \
         curl -s -H 'x-api-key: {key}' {base}/v1/agents/my-agent/tasks\n\n"
    )
}
