//! Dispatch: from the command line to a command's exit code.

use std::process::ExitCode;
use std::sync::mpsc;
use std::time::Duration;

use anyhow::anyhow;
use clap::Parser;

use super::output::{note, print, print_json};
use super::{Cli, Command, export, healthcheck, import, keys, verify};
use crate::config::{Config, DatabaseConfig};
use crate::database::{Database, OpenMode};
use crate::{api, app, telemetry};

/// How long the last message may take to be written.
const NOTE_TIMEOUT: Duration = Duration::from_secs(1);

/// Runs the command of this process's command line.
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&anyhow!(error).context("cannot start the async runtime")),
    };
    // On this thread, which lives as long as the process: the embedded server stops with the thread
    // that started it.
    let outcome = runtime.block_on(run_command(cli));
    // Aborted requests may still run; they must not keep the process.
    runtime.shutdown_background();
    match outcome {
        Ok(code) => code,
        Err(error) => fail(&error),
    }
}

fn fail(error: &anyhow::Error) -> ExitCode {
    let text = format!("error: {error:#}");
    // A full pipe that nobody reads must not keep the process.
    let (written, wait) = mpsc::channel();
    std::thread::spawn(move || {
        note(&text);
        let _ = written.send(());
    });
    let _ = wait.recv_timeout(NOTE_TIMEOUT);
    ExitCode::FAILURE
}

async fn run_command(cli: Cli) -> anyhow::Result<ExitCode> {
    match cli.command.unwrap_or(Command::Serve(cli.serve)) {
        Command::Serve(args) => {
            let (format, filter) = args.database.logging("info")?;
            let _flush = telemetry::init(format, &filter)?;
            return app::serve(Config::new(args)?).await;
        }
        Command::Migrate(args) => {
            let (format, filter) = args.logging("warn")?;
            let _flush = telemetry::init(format, &filter)?;
            let config = DatabaseConfig::new(args)?;
            Database::open(&config, OpenMode::Migrate).await?.close().await?;
            print("The database has this version's schema.");
        }
        Command::Keys(command) => keys::run(command).await?,
        Command::Import(args) => return Box::pin(import::run(args)).await,
        Command::Export(args) => export::run(args).await?,
        Command::Verify { json, database } => return verify::run(json, database).await,
        Command::Openapi => print_json(&api::openapi_document()),
        Command::Healthcheck { url } => healthcheck::run(&url).await?,
    }
    Ok(ExitCode::SUCCESS)
}
