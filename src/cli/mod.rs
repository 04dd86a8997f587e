//! The command line. [`crate::app`] serves; every other command has a file here.

mod export;
mod healthcheck;
mod import;
mod keys;
mod output;
mod progress;
mod run;
mod session;
mod verify;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use uuid::Uuid;

pub use run::run;

use crate::config::{DatabaseArgs, ServeArgs, parse_duration};

/// A persistent history of what AI agents did, served over REST from PostgreSQL
///
/// Without a command, it serves the API. Without `DATABASE_URL`, it starts a private PostgreSQL in
/// the data directory.
#[derive(Debug, Parser)]
#[command(name = "task-history", version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: ServeArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the API (the default)
    Serve(ServeArgs),
    /// Apply pending migrations and exit
    Migrate(DatabaseArgs),
    /// Create, list and revoke API keys
    ///
    /// Works beside a running service, on the same data directory or database.
    #[command(subcommand)]
    Keys(KeysCommand),
    /// Import tasks from a file that `export` wrote
    ///
    /// A task is imported whole or not at all. An existing task is left unchanged, so a file can be
    /// imported again, and an interrupted import continues. Works beside a running service.
    /// `docs/export-format.md` describes the format. Exit code 0 if all lines are valid, 3 if
    /// invalid lines were skipped, 1 after any other failure.
    Import(ImportArgs),
    /// Export tasks as NDJSON
    ///
    /// Exports one snapshot of all tasks with their turns and pushed events, without idempotency
    /// keys: one line for each. Works beside a running service. `docs/export-format.md` describes
    /// the format.
    Export(ExportArgs),
    /// Recount tasks and report drift
    ///
    /// Compares tasks with their counts and turns, in one snapshot. Works beside a running service.
    /// Exit code 0 without drift, 2 with drift.
    Verify {
        /// Print JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        database: DatabaseArgs,
    },
    /// Print the OpenAPI document
    Openapi,
    /// Check that a running service is ready; exit code 0 if it is
    Healthcheck {
        /// URL of its readiness probe
        #[arg(default_value = "http://127.0.0.1:8080/readyz")]
        url: String,
    },
}

#[derive(Debug, Args)]
struct ImportArgs {
    /// File to read; - is standard input
    #[arg(default_value = "-")]
    file: PathBuf,
    /// Organization that gets the tasks; it is created if it does not exist
    #[arg(long, default_value = "default", value_name = "NAME")]
    organization: String,
    /// What to do with an invalid line, and with the task that it belongs to
    #[arg(long, value_enum, default_value_t = OnError::Stop, value_name = "stop|skip")]
    on_error: OnError,
    /// Check the file, and write nothing
    ///
    /// A task that is in the file twice is counted twice.
    #[arg(long)]
    dry_run: bool,
    /// Print the summary as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    database: DatabaseArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum OnError {
    /// Stop at that line; the tasks before it are imported
    Stop,
    /// Report it and continue
    Skip,
}

#[derive(Debug, Args)]
struct ExportArgs {
    /// Organization whose tasks to export
    #[arg(long, default_value = "default", value_name = "NAME")]
    organization: String,
    /// Export only the tasks of this agent
    #[arg(long, value_name = "ID")]
    agent_id: Option<String>,
    /// File to create [default: standard output]
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// How long the output may take nothing before the export ends
    ///
    /// The snapshot of an export keeps the database from cleaning up, so a stopped reader must not
    /// hold it for ever.
    #[arg(long, default_value = "10m", value_name = "DURATION", value_parser = parse_duration)]
    stall_timeout: Duration,
    #[command(flatten)]
    database: DatabaseArgs,
}

#[derive(Debug, Subcommand)]
enum KeysCommand {
    /// Create an API key and show it once
    Create {
        /// Organization that the key belongs to; it is created if it does not exist
        #[arg(long, default_value = "default", value_name = "NAME")]
        organization: String,
        /// Purpose of the key
        #[arg(long, value_name = "NAME")]
        name: String,
        /// How long the key is valid, for example 90d or 12h [default: no expiry]
        #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
        expires_in: Option<Duration>,
        /// The key may list and read, but not record or report
        #[arg(long)]
        read_only: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        database: DatabaseArgs,
    },
    /// List all API keys, without the keys themselves
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        database: DatabaseArgs,
    },
    /// Revoke an API key
    Revoke {
        /// Id of the key, from `keys list`
        #[arg(value_parser = parse_key_id)]
        id: Uuid,
        /// Organization that the key belongs to
        #[arg(long, default_value = "default", value_name = "NAME")]
        organization: String,
        #[command(flatten)]
        database: DatabaseArgs,
    },
}

fn parse_key_id(text: &str) -> Result<Uuid, String> {
    text.parse().map_err(|_| "not a key id; `keys list` shows the ids".to_owned())
}
