//! The command line: what can be said on it, and the commands that answer and end. [`crate::app`] serves.

mod commands;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub use commands::run;

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
    /// Print the OpenAPI document
    Openapi,
    /// Ask a running service for a sign of life; exit code 0 if it gives one
    Healthcheck {
        /// What to ask
        #[arg(default_value = "http://127.0.0.1:8080/readyz")]
        url: String,
    },
}

/// Where the database is.
#[derive(Debug, Clone, Args)]
pub struct DatabaseArgs {
    /// PostgreSQL to use, as postgres://user:password@host:port/database; without it, the service brings its own
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, value_name = "URL")]
    pub database_url: Option<String>,
    /// Directory of the service's own PostgreSQL [default: /var/lib/task-history for root, otherwise
    /// ~/.local/share/task-history]
    #[arg(long, env = "TASK_HISTORY_DATA_DIR", value_name = "DIRECTORY")]
    pub data_dir: Option<PathBuf>,
    /// Directory of the PostgreSQL programs to run [default: search PATH and the usual places]
    #[arg(long, env = "TASK_HISTORY_POSTGRES_BIN_DIR", value_name = "DIRECTORY")]
    pub postgres_bin_dir: Option<PathBuf>,
    /// Home directory, where an ordinary user's data is
    #[arg(long, env = "HOME", hide = true)]
    pub home: Option<PathBuf>,
    /// How to write the log, which goes to standard error [default: human on a terminal, json otherwise]
    #[arg(long, env = "TASK_HISTORY_LOG_FORMAT", value_enum, value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
    /// What to log, as for example `info` or `warn,task_history=debug`
    #[arg(long, env = "TASK_HISTORY_LOG", default_value = "info", value_name = "FILTER")]
    pub log: String,
}

/// How to serve.
#[derive(Debug, Clone, Args)]
pub struct ServeArgs {
    /// Address to listen on; port 0 takes any that is free
    #[arg(long, env = "TASK_HISTORY_LISTEN", default_value = "127.0.0.1:8080", value_name = "ADDRESS")]
    pub listen: String,
    /// API key of the organisation `default`, instead of one that the first start makes up: at least 20 characters
    #[arg(long, env = "TASK_HISTORY_BOOTSTRAP_KEY", hide_env_values = true, value_name = "KEY")]
    pub bootstrap_key: Option<String>,
    /// Most connections to the database
    #[arg(long, env = "TASK_HISTORY_DATABASE_CONNECTIONS", default_value_t = 8, value_name = "NUMBER")]
    pub database_connections: usize,
    /// How long a synchronous invocation waits for its outcome before it answers with the task as it is
    #[arg(long, env = "TASK_HISTORY_INVOKE_TIMEOUT", default_value = "5m", value_name = "DURATION")]
    pub invoke_timeout: humantime::Duration,
    /// How long requests under way may take to finish when the service is told to stop
    #[arg(long, env = "TASK_HISTORY_DRAIN_TIMEOUT", default_value = "10s", value_name = "DURATION")]
    pub drain_timeout: humantime::Duration,
    #[command(flatten)]
    #[expect(missing_docs, reason = "it would become the help of the whole command")]
    pub database: DatabaseArgs,
}

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Human,
    /// One JSON object a line.
    Json,
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
