//! The command line: what can be said on it, and the commands that answer and end. [`crate::app`] serves.

mod commands;
mod transfer;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub use commands::run;

use crate::config::{DatabaseArgs, ServeArgs};

/// A persistent history of what AI agents did, served over REST from PostgreSQL
///
/// Without a command it serves. Without `DATABASE_URL` it brings its own PostgreSQL, in the data directory.
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
    /// Serve the API (what happens without a command)
    Serve(ServeArgs),
    /// Bring the database up to this version's schema, and stop
    Migrate(DatabaseArgs),
    /// Create, list and revoke API keys
    ///
    /// Works beside a service that runs, on the same data directory or database.
    #[command(subcommand)]
    Keys(KeysCommand),
    /// Record tasks from a file of exported ones
    ///
    /// Each line is a task with its turns, as JSON. A task that is there already is left as it is, so a file can be
    /// imported again, and an import that was interrupted goes on where it ended. Works beside a service that runs.
    Import(ImportArgs),
    /// Write all tasks to a file, a line of JSON each
    ///
    /// All of one snapshot, with their turns and what runners pushed, but without idempotency keys. Works beside a service
    /// that runs.
    Export(ExportArgs),
    /// Count everything again, and report what does not agree with the counts and turns that are kept
    ///
    /// Works beside a service that runs, on one snapshot. Exit code 0 if all agrees, 2 if not.
    Verify {
        /// Print JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        database: DatabaseArgs,
    },
    /// Print the OpenAPI document
    Openapi,
    /// Ask a running service for a sign of life; exit code 0 if it gives one
    Healthcheck {
        /// What to ask
        #[arg(default_value = "http://127.0.0.1:8080/readyz")]
        url: String,
    },
}

#[derive(Debug, Args)]
struct ImportArgs {
    /// File to read; - is standard input
    #[arg(default_value = "-")]
    file: PathBuf,
    /// Organisation that the tasks shall belong to; one that doesn't exist yet is created
    #[arg(long, default_value = "default", value_name = "NAME")]
    organization: String,
    /// What to do about a line that can't be imported
    #[arg(long, value_enum, default_value_t = OnError::Stop, value_name = "stop|skip")]
    on_error: OnError,
    /// Print the summary as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    database: DatabaseArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum OnError {
    /// End there; what comes before it is imported
    Stop,
    /// Report it and go on
    Skip,
}

#[derive(Debug, Args)]
struct ExportArgs {
    /// Organisation whose tasks to write
    #[arg(long, default_value = "default", value_name = "NAME")]
    organization: String,
    /// Only tasks that this agent executes
    #[arg(long, value_name = "ID")]
    agent_id: Option<String>,
    /// File to create [default: standard output]
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    #[command(flatten)]
    database: DatabaseArgs,
}

#[derive(Debug, Subcommand)]
enum KeysCommand {
    /// Make an API key and show it, this once
    Create {
        /// Organisation that the key belongs to; one that doesn't exist yet is created
        #[arg(long, default_value = "default", value_name = "NAME")]
        organization: String,
        /// What the key is for
        #[arg(long, value_name = "NAME")]
        name: String,
        /// How long the key is valid, as for example 90d or 12h [default: for ever]
        #[arg(long, value_name = "DURATION")]
        expires_in: Option<humantime::Duration>,
        /// The key may list and read, but not record or report
        #[arg(long)]
        read_only: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        database: DatabaseArgs,
    },
    /// List all API keys (never the keys themselves)
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        database: DatabaseArgs,
    },
    /// Revoke an API key; it is refused from the next request on
    Revoke {
        /// Id of the key, from `keys list`
        id: uuid::Uuid,
        /// Organisation that the key belongs to
        #[arg(long, default_value = "default", value_name = "NAME")]
        organization: String,
        #[command(flatten)]
        database: DatabaseArgs,
    },
}
