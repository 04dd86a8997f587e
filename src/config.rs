//! The settings of a run, taken from the command line and the environment, and checked once.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, anyhow, ensure};

use crate::cli::{DatabaseArgs, ServeArgs};
use crate::embedded;
use crate::store::{DatabaseUrl, Secret};

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
        // Compose files and unit files pass on variables that are set to nothing.
        let bootstrap_key = bootstrap_key
            .filter(|key| !key.is_empty())
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
        if let Some(url) = database_url.filter(|url| !url.is_empty()) {
            // The error may quote a password.
            let url = DatabaseUrl::parse(&url).map_err(|_| {
                anyhow!(
                    "DATABASE_URL is no address of a database, as postgres://user:password@host:5432/database"
                )
            })?;
            return Ok(Self::Given(Box::new(url)));
        }
        let directory = match data_dir {
            Some(directory) => directory,
            None if nix::unistd::Uid::effective().is_root() => PathBuf::from("/var/lib/task-history"),
            None => home
                .filter(|home| home.is_absolute())
                .context("there is no HOME to keep data in; say where with --data-dir")?
                .join(".local/share/task-history"),
        };
        Ok(Self::Embedded(embedded::Options { directory, binaries: postgres_bin_dir, durable: true }))
    }
}
