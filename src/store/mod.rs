//! PostgreSQL: the only place with SQL. Every statement names its organisation first.

mod batches;
mod counts;
mod delete;
mod error;
mod events;
mod keys;
mod pool;
mod record;
mod tasks;
mod threads;
mod transfer;
mod verify;
mod watch;
mod writer;

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use sqlx::migrate::Migrator;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Connection};

pub use error::StoreError;
pub use keys::{ApiKey, Authenticated, Bootstrap, KEY_TRUST, KeyDigest, KeyRevocation, NewApiKey, Secret};

pub use events::Events;
pub use record::{Idempotency, Recorded};
pub use verify::Verified;
pub use watch::Watch;

use keys::{CACHED_KEYS, KeyCache};
use pool::Pool;
use record::{Changes, Turns};
use watch::Hub;
use writer::Writer;

/// The migrations in `migrations/`, the same that `sqlx migrate run` applies.
static MIGRATOR: Migrator = sqlx::migrate!();

/// How long a server may take to answer a new connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long one statement of a request may run before the server ends it.
const STATEMENT_TIMEOUT: &str = "15s";

/// How long a transaction may stand open with nothing to do before the server ends it.
const IDLE_IN_TRANSACTION_TIMEOUT: &str = "30s";

/// The task history in one database. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    pool: Pool,
    hub: Hub,
    turns: Writer<Turns>,
    changes: Writer<Changes>,
    keys: Arc<KeyCache>,
}

/// Where a database is: a parsed `postgres://` URL. Printing it shows no password.
#[derive(Clone)]
pub struct DatabaseUrl {
    options: PgConnectOptions,
}

impl DatabaseUrl {
    /// Parses a `postgres://user:password@host:port/database` URL; `?host=/directory` names a socket directory.
    pub fn parse(url: &str) -> Result<Self, String> {
        if !url.starts_with("postgres://") && !url.starts_with("postgresql://") {
            return Err("it does not begin with postgres://".to_owned());
        }
        let options = PgConnectOptions::from_str(url).map_err(|error| error.to_string())?;
        Ok(Self { options: options.application_name("task-history") })
    }

    /// The same server, another database.
    #[must_use]
    pub fn with_database(&self, name: &str) -> Self {
        Self { options: self.options.clone().database(name) }
    }

    async fn connect(&self) -> Result<PgConnection, StoreError> {
        let connecting = tokio::time::timeout(CONNECT_TIMEOUT, self.options.connect()).await;
        let silence = |_| StoreError::Unavailable(format!("{self} gives no answer"));
        Ok(connecting.map_err(silence)??)
    }
}

impl std::fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let options = &self.options;
        match options.get_socket() {
            Some(socket) => write!(f, "{}", socket.display())?,
            None => write!(f, "{}:{}", options.get_host(), options.get_port())?,
        }
        write!(f, "/{}", options.get_database().unwrap_or(options.get_username()))
    }
}

impl std::fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DatabaseUrl({self})")
    }
}

impl Store {
    /// A store over at most `connections` connections, opened as they are needed.
    pub fn new(url: &DatabaseUrl, connections: usize) -> Self {
        let options = url.options.clone().options([
            ("statement_timeout", STATEMENT_TIMEOUT),
            ("idle_in_transaction_session_timeout", IDLE_IN_TRANSACTION_TIMEOUT),
            // Waiting for a lock, a server does not notice by itself that its client has gone.
            ("client_connection_check_interval", "1s"),
            // Every list has its index, whatever the values; planning for each of them costs as much as reading a page.
            ("plan_cache_mode", "force_generic_plan"),
        ]);
        let pool = Pool::new(options.clone(), connections);
        Self {
            hub: Hub::new(options),
            turns: Writer::new(Turns { pool: pool.clone() }),
            changes: Writer::new(Changes { pool: pool.clone() }),
            keys: Arc::new(KeyCache::new(CACHED_KEYS)),
            pool,
        }
    }

    /// Asks the server for a sign of life.
    pub async fn ready(&self) -> Result<(), StoreError> {
        let mut connection = self.pool.get().await?;
        connection.ping().await?;
        connection.done();
        Ok(())
    }

    /// Closes idle connections now and the others as they come back. Every later call is refused.
    pub fn close(&self) {
        self.pool.close();
    }
}

/// Asks the server at `url` for a sign of life, on a connection of its own.
pub async fn ping(url: &DatabaseUrl) -> Result<(), StoreError> {
    let mut connection = url.connect().await?;
    connection.ping().await?;
    Ok(connection.close().await?)
}

/// Brings the database up to this version's schema. Safe to run twice, and in several processes at once.
pub async fn migrate(url: &DatabaseUrl) -> Result<(), StoreError> {
    let mut connection = url.connect().await?;
    MIGRATOR.run(&mut connection).await?;
    Ok(connection.close().await?)
}

/// Whether the database has this version's schema, or a later one's.
pub async fn is_migrated(url: &DatabaseUrl) -> Result<bool, StoreError> {
    let mut connection = url.connect().await?;
    let latest = MIGRATOR.iter().map(|migration| migration.version).max();
    let has_table = sqlx::query_scalar!(r#"SELECT to_regclass('_sqlx_migrations') IS NOT NULL AS "exists!""#)
        .fetch_one(&mut connection)
        .await?;
    let applied = if has_table {
        let statement = "SELECT max(version) FROM _sqlx_migrations WHERE success";
        sqlx::query_scalar::<_, Option<i64>>(statement).fetch_one(&mut connection).await?
    } else {
        None
    };
    connection.close().await?;
    Ok(applied >= latest)
}

/// Creates the database that `url` names, unless it exists; `server` is any database of the same server.
pub async fn create_database(server: &DatabaseUrl, name: &str) -> Result<(), StoreError> {
    let mut connection = server.connect().await?;
    let exists = sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1) AS "exists!""#,
        name
    )
    .fetch_one(&mut connection)
    .await?;
    if !exists {
        let statement = format!("CREATE DATABASE \"{}\"", name.replace('"', "\"\""));
        sqlx::raw_sql(sqlx::AssertSqlSafe(statement)).execute(&mut connection).await?;
    }
    Ok(connection.close().await?)
}
