//! Opening the database: a given one, or the embedded server's.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::config::DatabaseConfig;
use crate::embedded::{self, Embedded, EmbeddedError, EmbeddedOptions};
use crate::store::{self, DatabaseUrl, StoreError};

/// Name of the database on the embedded server.
const DATABASE: &str = "task_history";

/// How long a start waits for a given server: containers start in any order.
const DATABASE_START_TIMEOUT: Duration = Duration::from_secs(30);

/// How often it tries to connect.
const DATABASE_RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// A migrated database, and the server that was started for it, if one was.
pub struct Database {
    /// Its address.
    pub url: DatabaseUrl,
    server: Option<Embedded>,
}

/// What a database is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenMode {
    /// To serve: creates and migrates it. No other process may use the data directory.
    Serve,
    /// To migrate it, beside a running service.
    Migrate,
    /// To work on it as it is, beside a running service.
    Existing,
}

impl Database {
    /// Opens the database.
    pub async fn open(config: &DatabaseConfig, mode: OpenMode) -> anyhow::Result<Self> {
        let (url, server) = match config {
            DatabaseConfig::Given(url) => {
                wait_for(url).await?;
                (url.as_ref().clone(), None)
            }
            DatabaseConfig::Embedded(options) => open_embedded(options, mode).await?,
        };
        let database = Self { url, server };
        match database.check_schema(mode).await {
            Ok(()) => Ok(database),
            Err(error) => {
                database.close().await?;
                Err(error)
            }
        }
    }

    async fn check_schema(&self, mode: OpenMode) -> anyhow::Result<()> {
        let url = &self.url;
        if mode != OpenMode::Existing {
            store::migrate(url).await?;
        } else if !store::is_migrated(url).await? {
            bail!(
                "the database at {url} does not have this version's schema; run \
                 `task-history migrate`"
            );
        }
        Ok(())
    }

    /// Starts the embedded server again whenever it ends by itself, and then calls `restarted`.
    /// Returns when it ended too often. Never returns without an embedded server.
    pub async fn keep_running(&mut self, restarted: impl AsyncFn()) -> EmbeddedError {
        match &mut self.server {
            Some(server) => server.keep_running(restarted).await,
            None => std::future::pending().await,
        }
    }

    /// Stops the embedded server, if one was started.
    pub async fn close(self) -> anyhow::Result<()> {
        if let Some(server) = self.server {
            server.stop().await.context("PostgreSQL did not stop")?;
        }
        Ok(())
    }
}

async fn wait_for(url: &DatabaseUrl) -> anyhow::Result<()> {
    let started = Instant::now();
    loop {
        match store::ping(url).await {
            Ok(()) => return Ok(()),
            Err(StoreError::Unavailable(error)) if started.elapsed() < DATABASE_START_TIMEOUT => {
                tracing::info!(database = %url, error, "waiting for the database");
                tokio::time::sleep(DATABASE_RETRY_INTERVAL).await;
            }
            Err(error) => {
                return Err(error).with_context(|| {
                    format!("the database at {url} cannot be used; check DATABASE_URL")
                });
            }
        }
    }
}

async fn open_embedded(
    options: &EmbeddedOptions,
    mode: OpenMode,
) -> anyhow::Result<(DatabaseUrl, Option<Embedded>)> {
    let parse = |url: &str| DatabaseUrl::parse(url).map_err(anyhow::Error::msg);
    let directory = options.directory.display();
    let exists = options.directory.join("data").try_exists();
    let exists = exists.with_context(|| format!("the database in {directory} cannot be read"))?;
    if mode == OpenMode::Existing && !exists {
        bail!("there is no database in {directory}; start the service there first");
    }
    if mode != OpenMode::Serve
        && let Some(url) = embedded::running_database_url(&options.directory, DATABASE)
    {
        return Ok((parse(&url)?, None));
    }
    let started = Instant::now();
    let server = Embedded::start(options).await?;
    tracing::info!(
        directory = %options.directory.display(),
        socket = %server.socket_directory().display(),
        duration_ms = started.elapsed().as_secs_f64() * 1e3,
        "PostgreSQL started"
    );
    store::create_database(&parse(&server.database_url("postgres"))?, DATABASE).await?;
    Ok((parse(&server.database_url(DATABASE))?, Some(server)))
}
