//! The settings of a run, taken from the command line and the environment, and checked once.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use clap::Args;

use crate::embedded;
use crate::store::{DatabaseUrl, Secret};
use crate::telemetry::LogFormat;

/// Where the database is.
#[derive(Debug, Clone, Args)]
pub struct DatabaseArgs {
    /// PostgreSQL to use, as postgres://user:password@host:port/database; without it, the service brings its own
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, value_name = "URL")]
    pub database_url: Option<String>,
    /// Directory of the service's own PostgreSQL [default: /var/lib/task-history for root, otherwise
    /// ~/.local/share/task-history]
    #[arg(long, env = "TASK_HISTORY_DATA_DIR", value_name = "DIRECTORY")]
    pub data_dir: Option<String>,
    /// Directory of the PostgreSQL programs to run [default: search PATH and the usual places]
    #[arg(long, env = "TASK_HISTORY_POSTGRES_BIN_DIR", value_name = "DIRECTORY")]
    pub postgres_bin_dir: Option<String>,
    /// Home directory, where an ordinary user's data is
    #[arg(long, env = "HOME", hide = true)]
    pub home: Option<PathBuf>,
    /// How to write the log, which goes to standard error [default: human on a terminal, json otherwise]
    #[arg(long, env = "TASK_HISTORY_LOG_FORMAT", value_name = "human|json")]
    pub log_format: Option<String>,
    /// What to log, as for example `info` or `warn,task_history=debug` [default: info to serve, otherwise warn]
    #[arg(long, env = "TASK_HISTORY_LOG", value_name = "FILTER")]
    pub log: Option<String>,
}

/// How to serve.
#[derive(Debug, Clone, Args)]
pub struct ServeArgs {
    /// Address to listen on; port 0 takes any that is free
    #[arg(long, env = "TASK_HISTORY_LISTEN", default_value = "127.0.0.1:8080", value_name = "ADDRESS")]
    pub listen: String,
    /// API key of the organisation `default`, instead of one that the first start makes up: at least 24 characters
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

/// How to serve.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where to listen; port 0 takes any that is free.
    pub listen: SocketAddr,
    /// The key that the organisation `default` shall have.
    pub bootstrap_key: Option<Secret>,
    /// Most connections to the database.
    pub database_connections: usize,
    /// How long a synchronous invocation waits for its outcome.
    pub invoke_timeout: Duration,
    /// How long requests under way may take to finish at the end.
    pub drain_timeout: Duration,
    /// Where the database is.
    pub database: DatabaseConfig,
}

/// Where the database is.
#[derive(Debug, Clone)]
pub enum DatabaseConfig {
    /// A server that somebody else runs.
    Given(Box<DatabaseUrl>),
    /// The service's own.
    Embedded(embedded::Options),
}

impl Config {
    /// Checks the arguments of `serve`.
    pub fn new(args: ServeArgs) -> anyhow::Result<Self> {
        let ServeArgs {
            listen,
            bootstrap_key,
            database_connections,
            invoke_timeout,
            drain_timeout,
            database,
        } = args;
        let bootstrap_key = unless_empty(bootstrap_key)
            .map(|key| Secret::parse(&key).map_err(|error| anyhow!("TASK_HISTORY_BOOTSTRAP_KEY: {error}")))
            .transpose()?;
        ensure!(
            (1..=50).contains(&database_connections),
            "--database-connections takes a number from 1 to 50, a few for each core of the database's machine"
        );
        Ok(Self {
            listen: parse_listen(&listen)?,
            bootstrap_key,
            database_connections,
            invoke_timeout: *invoke_timeout,
            drain_timeout: *drain_timeout,
            database: DatabaseConfig::new(database)?,
        })
    }
}

/// Compose files and unit files pass on variables that are set to nothing, and mean that they are not set.
fn unless_empty(value: Option<String>) -> Option<String> {
    value.filter(|value| !value.is_empty())
}

impl DatabaseArgs {
    /// How to log, and what: `default` unless it is said.
    pub fn logging(&self, default: &str) -> anyhow::Result<(Option<LogFormat>, String)> {
        let format = match unless_empty(self.log_format.clone()).as_deref() {
            None => None,
            Some("human") => Some(LogFormat::Human),
            Some("json") => Some(LogFormat::Json),
            Some(other) => bail!("--log-format takes `human` or `json`, not `{other}`"),
        };
        Ok((format, unless_empty(self.log.clone()).unwrap_or_else(|| default.to_owned())))
    }
}

fn parse_listen(listen: &str) -> anyhow::Result<SocketAddr> {
    use std::net::ToSocketAddrs;
    let mut addresses = listen.to_socket_addrs().with_context(|| {
        format!("--listen takes an address and a port, as 127.0.0.1:8080 or [::]:8080, not `{listen}`")
    })?;
    addresses.next().with_context(|| format!("`{listen}` is no address of this machine"))
}

impl DatabaseConfig {
    /// Checks where the database is said to be.
    pub fn new(args: DatabaseArgs) -> anyhow::Result<Self> {
        let DatabaseArgs { database_url, data_dir, postgres_bin_dir, home, log_format: _, log: _ } = args;
        if let Some(url) = unless_empty(database_url) {
            // The error may quote a password.
            let url = DatabaseUrl::parse(&url).map_err(|_| {
                anyhow!(
                    "DATABASE_URL is no address of a database, as postgres://user:password@host:5432/database"
                )
            })?;
            return Ok(Self::Given(Box::new(url)));
        }
        let directory = match unless_empty(data_dir) {
            Some(directory) => PathBuf::from(directory),
            None if nix::unistd::Uid::effective().is_root() => PathBuf::from("/var/lib/task-history"),
            None => home
                .filter(|home| home.is_absolute())
                .context("there is no HOME to keep data in; say where with --data-dir")?
                .join(".local/share/task-history"),
        };
        Ok(Self::Embedded(embedded::Options {
            directory,
            binaries: unless_empty(postgres_bin_dir).map(PathBuf::from),
            durable: true,
        }))
    }
}
