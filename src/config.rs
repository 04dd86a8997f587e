//! The settings of a run, from the command line and the environment, validated once.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use clap::Args;

use crate::domain::{ApiKeySecret, CorsOrigins, Limits, NetworkOptions, TrustedProxies};
use crate::embedded::EmbeddedOptions;
use crate::store::DatabaseUrl;
use crate::telemetry::LogFormat;

/// The location of the database.
#[derive(Debug, Clone, Args)]
pub struct DatabaseArgs {
    /// PostgreSQL to use, as postgres://user:password@host:port/database; without it, the service
    /// starts a private server
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, value_name = "URL")]
    pub database_url: Option<String>,
    /// Directory of the private server's data [default: /var/lib/task-history for root, otherwise
    /// ~/.local/share/task-history]
    #[arg(long, env = "TASK_HISTORY_DATA_DIR", value_name = "DIRECTORY")]
    pub data_dir: Option<String>,
    /// Directory of the PostgreSQL programs to run [default: searched on PATH and in the
    /// usual directories]
    #[arg(long, env = "TASK_HISTORY_POSTGRES_BIN_DIR", value_name = "DIRECTORY")]
    pub postgres_bin_dir: Option<String>,
    /// Home directory, which holds the data of a user other than root
    #[arg(long, env = "HOME", hide = true)]
    pub home: Option<PathBuf>,
    /// Format of the log on standard error [default: text on a terminal, otherwise json]
    #[arg(long, env = "TASK_HISTORY_LOG_FORMAT", value_name = "text|json")]
    pub log_format: Option<String>,
    /// What to log, for example `info` or `warn,audit=info`; the target `audit` has deletions and
    /// changes of keys [default: info to serve, otherwise warn,audit=info]
    #[arg(long, env = "TASK_HISTORY_LOG", value_name = "FILTER")]
    pub log: Option<String>,
}

/// The settings of `serve`.
#[derive(Debug, Clone, Args)]
pub struct ServeArgs {
    /// Address to listen on; port 0 takes a free one
    #[arg(
        long,
        env = "TASK_HISTORY_LISTEN",
        default_value = "127.0.0.1:8080",
        value_name = "ADDRESS"
    )]
    pub listen: String,
    /// API key of the organization `default`, of at least 24 characters; it replaces those of
    /// earlier starts, which are revoked. Without it, the first start generates one
    #[arg(long, env = "TASK_HISTORY_BOOTSTRAP_KEY", hide_env_values = true, value_name = "KEY")]
    pub bootstrap_key: Option<String>,
    /// Maximum number of connections to the database
    #[arg(
        long,
        env = "TASK_HISTORY_DATABASE_CONNECTIONS",
        default_value_t = 16,
        value_name = "NUMBER"
    )]
    pub database_connections: usize,
    /// Most connections of clients at a time; others are answered with 503 [default: 10000, less if
    /// the limit on open files is low]
    #[arg(long, env = "TASK_HISTORY_MAX_CONNECTIONS", value_name = "NUMBER")]
    pub max_connections: Option<usize>,
    /// Most connections at a time from one address; behind a proxy, all are from its address
    /// [default: half of --max-connections]
    #[arg(long, env = "TASK_HISTORY_MAX_CONNECTIONS_PER_ADDRESS", value_name = "NUMBER")]
    pub max_connections_per_address: Option<usize>,
    /// How long a connection may be open without a request; it should be longer than a load
    /// balancer keeps idle connections
    #[arg(
        long,
        env = "TASK_HISTORY_IDLE_TIMEOUT",
        value_parser = parse_duration,
        default_value = "75s",
        value_name = "DURATION"
    )]
    pub idle_timeout: Duration,
    /// How long a synchronous invocation waits for its result; after that it answers with the
    /// unfinished task
    #[arg(
        long,
        env = "TASK_HISTORY_INVOKE_TIMEOUT",
        value_parser = parse_duration,
        default_value = "5m",
        value_name = "DURATION"
    )]
    pub invoke_timeout: Duration,
    /// How long requests in flight may take to finish when the service stops
    #[arg(
        long,
        env = "TASK_HISTORY_DRAIN_TIMEOUT",
        value_parser = parse_duration,
        default_value = "10s",
        value_name = "DURATION"
    )]
    pub drain_timeout: Duration,
    /// How long an Idempotency-Key is remembered
    #[arg(
        long,
        env = "TASK_HISTORY_IDEMPOTENCY_TTL",
        value_parser = parse_duration,
        default_value = "24h",
        value_name = "DURATION"
    )]
    pub idempotency_ttl: Duration,
    /// Addresses and networks of the proxies in front of the service, separated by commas; they are
    /// believed about the addresses of their clients (X-Forwarded-For, otherwise Forwarded)
    #[arg(long, env = "TASK_HISTORY_TRUSTED_PROXIES", value_name = "ADDRESSES")]
    pub trusted_proxies: Option<String>,
    /// Origins of the web pages that may call the API from a browser, separated by commas; * allows
    /// all [default: none]
    #[arg(long, env = "TASK_HISTORY_CORS_ORIGINS", value_name = "ORIGINS")]
    pub cors_origins: Option<String>,
    #[command(flatten)]
    #[expect(missing_docs, reason = "it would become the help of the whole command")]
    pub database: DatabaseArgs,
}

/// The settings of `serve`.
#[derive(Debug, Clone)]
pub struct Config {
    /// The address to listen on; port 0 takes a free port.
    pub listen: SocketAddr,
    /// A key for the organization `default`.
    pub bootstrap_key: Option<ApiKeySecret>,
    /// Maximum number of connections to the database.
    pub database_connections: usize,
    /// Most connections of clients, if that is set.
    pub max_connections: Option<usize>,
    /// Most connections from one address, if that is set.
    pub max_connections_per_address: Option<usize>,
    /// The time limits.
    pub limits: Limits,
    /// Which proxies are believed, and which sites may call the API.
    pub network: NetworkOptions,
    /// The location of the database.
    pub database: DatabaseConfig,
}

/// The location of the database.
#[derive(Debug, Clone)]
pub enum DatabaseConfig {
    /// A server that the service does not manage.
    Given(Box<DatabaseUrl>),
    /// The private server.
    Embedded(EmbeddedOptions),
}

impl Config {
    /// Validates the arguments of `serve`.
    pub fn new(args: ServeArgs) -> anyhow::Result<Self> {
        let ServeArgs {
            listen,
            bootstrap_key,
            database_connections,
            max_connections,
            max_connections_per_address,
            idle_timeout,
            invoke_timeout,
            drain_timeout,
            idempotency_ttl,
            trusted_proxies,
            cors_origins,
            database,
        } = args;
        let bootstrap_key = non_empty(bootstrap_key)
            .map(|key| {
                ApiKeySecret::parse(&key).map_err(|error| {
                    anyhow!("--bootstrap-key (TASK_HISTORY_BOOTSTRAP_KEY): {error}")
                })
            })
            .transpose()?;
        ensure!(
            (1..=50).contains(&database_connections),
            "--database-connections must be from 1 to 50; use a few connections for each CPU core \
             of the database server"
        );
        for (flag, number) in [
            ("--max-connections", max_connections),
            ("--max-connections-per-address", max_connections_per_address),
        ] {
            ensure!(number != Some(0), "{flag} must be at least 1; leave it out for the default");
        }
        ensure!(
            !idempotency_ttl.is_zero(),
            "--idempotency-ttl must be longer than 0; it is how long a client may send a request \
             again"
        );
        let trusted_proxies =
            TrustedProxies::parse(&trusted_proxies.unwrap_or_default()).map_err(|error| {
                anyhow!(
                    "--trusted-proxies takes addresses and networks, for example \
                     10.0.0.0/8,192.0.2.7: {error}"
                )
            })?;
        let cors_origins = CorsOrigins::parse(&cors_origins.unwrap_or_default())
            .map_err(|error| anyhow!("--cors-origins takes origins, or * alone: {error}"))?;
        Ok(Self {
            listen: parse_listen(&listen)?,
            bootstrap_key,
            database_connections,
            max_connections,
            max_connections_per_address,
            limits: Limits {
                idle_timeout,
                invoke_timeout,
                drain_timeout,
                idempotency_ttl,
                ..Limits::default()
            },
            network: NetworkOptions { trusted_proxies, cors_origins },
            database: DatabaseConfig::new(database)?,
        })
    }
}

/// A duration of the command line: `10s`, `5m`, `90d`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let expected = |_| "expected a duration, for example 10s, 5m or 90d".to_owned();
    humantime::parse_duration(text).map_err(expected)
}

/// Compose files and unit files pass on empty variables, which mean that they are not set.
fn non_empty(value: Option<String>) -> Option<String> {
    value.filter(|value| !value.is_empty())
}

impl DatabaseArgs {
    /// The format and the filter of the log. `default` is the filter if none is given.
    pub fn logging(&self, default: &str) -> anyhow::Result<(Option<LogFormat>, String)> {
        let format = match non_empty(self.log_format.clone()).as_deref() {
            None => None,
            Some("text") => Some(LogFormat::Text),
            Some("json") => Some(LogFormat::Json),
            Some(other) => bail!("--log-format takes `text` or `json`, not `{other}`"),
        };
        Ok((format, non_empty(self.log.clone()).unwrap_or_else(|| default.to_owned())))
    }
}

fn parse_listen(listen: &str) -> anyhow::Result<SocketAddr> {
    use std::net::ToSocketAddrs;
    let mut addresses = listen.to_socket_addrs().with_context(|| {
        format!(
            "--listen takes an address and a port, for example 127.0.0.1:8080 or [::]:8080, \
             not `{listen}`"
        )
    })?;
    addresses.next().with_context(|| format!("`{listen}` is not an address of this machine"))
}

impl DatabaseConfig {
    /// Validates the location of the database.
    pub fn new(args: DatabaseArgs) -> anyhow::Result<Self> {
        let DatabaseArgs { database_url, data_dir, postgres_bin_dir, home, log_format: _, log: _ } =
            args;
        if let Some(url) = non_empty(database_url) {
            // The original error may quote a password.
            let url = DatabaseUrl::parse(&url).map_err(|_| {
                anyhow!(
                    "--database-url (DATABASE_URL) must have the form \
                     postgres://user:password@host:5432/database"
                )
            })?;
            return Ok(Self::Given(Box::new(url)));
        }
        let directory = match non_empty(data_dir) {
            Some(directory) => PathBuf::from(directory),
            None if nix::unistd::Uid::effective().is_root() => {
                PathBuf::from("/var/lib/task-history")
            }
            None => home
                .filter(|home| home.is_absolute())
                .context("there is no HOME for the data; set a directory with --data-dir")?
                .join(".local/share/task-history"),
        };
        Ok(Self::Embedded(EmbeddedOptions {
            directory,
            binaries: non_empty(postgres_bin_dir).map(PathBuf::from),
            durable: true,
        }))
    }
}
