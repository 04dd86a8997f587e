//! Rewrites `.sqlx`, the query data that builds check SQL statements against, from a migrated
//! database on a private PostgreSQL server. With arguments it is the command line of sqlx-cli.
#![expect(clippy::print_stderr, reason = "errors go to stderr")]

#[path = "../../src/embedded/mod.rs"]
#[expect(dead_code, unreachable_pub, reason = "the service uses the rest of the module")]
mod embedded;
mod environment;

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, anyhow, ensure};
use clap::Parser;

use embedded::{Embedded, EmbeddedOptions};
use environment::{command, root};

// The server stops when the thread that started it ends; the only thread of this runtime is main.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments: Vec<OsString> = env::args_os().collect();
    let result = if arguments.len() > 1 { run_sqlx(&arguments).await } else { prepare().await };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run_sqlx(arguments: &[OsString]) -> anyhow::Result<()> {
    sqlx::any::install_default_drivers();
    sqlx_cli::run(sqlx_cli::Opt::parse_from(arguments)).await
}

async fn prepare() -> anyhow::Result<()> {
    let directory = tempfile::Builder::new().prefix("task-history-prepare-").tempdir()?;
    // As root the server runs as another user, who must reach the directory.
    fs::set_permissions(directory.path(), Permissions::from_mode(0o755))?;
    let options =
        EmbeddedOptions { directory: directory.path().to_owned(), binaries: None, durable: false };
    let server = Embedded::start(&options).await?;
    let database_url = server.database_url("postgres");
    let query_data = root().join(".sqlx");
    let before = read_files(&query_data)?;
    let result = tokio::select! {
        result = write_query_data(&database_url, &query_data) => result,
        _ = tokio::signal::ctrl_c() => Err(anyhow!("interrupted; .sqlx is as before")),
    };
    if result.is_err() {
        write_files(&query_data, &before).context("cannot restore .sqlx")?;
    }
    server.stop().await.context("PostgreSQL did not stop")?;
    result
}

async fn write_query_data(database_url: &str, query_data: &Path) -> anyhow::Result<()> {
    sqlx_command(&["migrate", "run"], database_url).await.context("the migrations fail")?;
    remove_directory(query_data)?;
    sqlx_command(&["prepare"], database_url)
        .await
        .context("the crate does not compile against the migrated database; .sqlx is as before")
}

/// Runs sqlx-cli in a process of its own, because it passes its environment on to cargo.
async fn sqlx_command(arguments: &[&str], database_url: &str) -> anyhow::Result<()> {
    let mut command = command(env::current_exe()?);
    command.args(arguments).env("DATABASE_URL", database_url);
    if env::var_os("CARGO").is_none() {
        command.env("CARGO", "cargo");
    }
    let status = tokio::process::Command::from(command).kill_on_drop(true).status().await?;
    ensure!(status.success(), "`sqlx {}` failed ({status})", arguments.join(" "));
    Ok(())
}

fn read_files(directory: &Path) -> anyhow::Result<BTreeMap<PathBuf, Vec<u8>>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(BTreeMap::new()),
        entries => entries?,
    };
    entries
        .map(|entry| {
            let path = entry?.path();
            let content = fs::read(&path)?;
            Ok((path, content))
        })
        .collect()
}

fn write_files(directory: &Path, files: &BTreeMap<PathBuf, Vec<u8>>) -> anyhow::Result<()> {
    remove_directory(directory)?;
    fs::create_dir_all(directory)?;
    for (path, content) in files {
        fs::write(path, content)?;
    }
    Ok(())
}

fn remove_directory(directory: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}
