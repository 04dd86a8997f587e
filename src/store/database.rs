//! The address of a database, and its schema.

use std::fmt;
use std::str::FromStr;

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Connection};

use super::StoreError;
use crate::domain::Limits;

/// The migrations in `migrations/`, the same that `sqlx migrate run` applies.
static MIGRATOR: Migrator = sqlx::migrate!();

/// The address of a database: a parsed `postgres://` URL. Printing it shows no password.
#[derive(Clone)]
pub struct DatabaseUrl {
    options: PgConnectOptions,
}

impl DatabaseUrl {
    /// Parses `postgres://user:password@host:port/database`. `?host=/directory` names the directory
    /// of a Unix socket.
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

    /// The options of the store's connections.
    pub(super) fn session_options(&self, limits: &Limits) -> PgConnectOptions {
        let millis = |duration: std::time::Duration| duration.as_millis().to_string();
        self.options.clone().options([
            ("statement_timeout", millis(limits.statement_timeout)),
            ("lock_timeout", millis(limits.lock_timeout)),
            ("idle_in_transaction_session_timeout", millis(limits.idle_in_transaction_timeout)),
            // A server that waits for a lock does not notice otherwise that its client has gone.
            ("client_connection_check_interval", "1s".to_owned()),
            // The server's side of a connection that says nothing: it ends, and with it its locks.
            ("tcp_keepalives_idle", "5".to_owned()),
            ("tcp_keepalives_interval", "2".to_owned()),
            ("tcp_keepalives_count", "3".to_owned()),
            ("tcp_user_timeout", millis(limits.response_timeout)),
            // Every list has its index for all values. Planning for each value would cost as much
            // as reading a page.
            ("plan_cache_mode", "force_generic_plan".to_owned()),
        ])
    }

    async fn connect(&self) -> Result<PgConnection, StoreError> {
        let timeout = Limits::default().connect_timeout;
        let timed_out =
            |_| StoreError::Unavailable(format!("{self} did not respond within {timeout:?}"));
        let connected = tokio::time::timeout(timeout, self.options.connect()).await;
        Ok(connected.map_err(timed_out)??)
    }
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let options = &self.options;
        match options.get_socket() {
            Some(socket) => write!(f, "{}", socket.display())?,
            None => write!(f, "{}:{}", options.get_host(), options.get_port())?,
        }
        write!(f, "/{}", options.get_database().unwrap_or(options.get_username()))
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DatabaseUrl({self})")
    }
}

/// Pings the server at `url` on a connection of its own.
pub async fn ping(url: &DatabaseUrl) -> Result<(), StoreError> {
    let mut connection = url.connect().await?;
    connection.ping().await?;
    Ok(connection.close().await?)
}

/// Applies pending migrations. Safe to run twice, and in several processes at once.
pub async fn migrate(url: &DatabaseUrl) -> Result<(), StoreError> {
    let mut connection = url.connect().await?;
    MIGRATOR.run(&mut connection).await.map_err(|error| match error {
        MigrateError::VersionMissing(version) => unknown_version(version),
        error => StoreError::Migrate(error),
    })?;
    Ok(connection.close().await?)
}

/// Whether the database has this version's schema, or a later one's.
pub async fn is_migrated(url: &DatabaseUrl) -> Result<bool, StoreError> {
    let mut connection = url.connect().await?;
    let has_table =
        sqlx::query_scalar!(r#"SELECT to_regclass('_sqlx_migrations') IS NOT NULL AS "exists!""#)
            .fetch_one(&mut connection)
            .await?;
    let applied = if has_table {
        let statement = "SELECT version FROM _sqlx_migrations WHERE success ORDER BY version";
        sqlx::query_scalar::<_, i64>(statement).fetch_all(&mut connection).await?
    } else {
        Vec::new()
    };
    connection.close().await?;
    let (first, last) = known_versions();
    if let Some(version) = applied.first().filter(|version| **version < first) {
        return Err(unknown_version(*version));
    }
    Ok(applied.last().is_some_and(|version| *version >= last))
}

/// Why a database with this migration, which is not in `migrations/`, is refused.
fn unknown_version(version: i64) -> StoreError {
    let (first, _) = known_versions();
    if version < first { StoreError::DevelopmentSchema } else { StoreError::NewerSchema(version) }
}

/// The versions of the first and the last migration.
fn known_versions() -> (i64, i64) {
    let versions = || MIGRATOR.iter().map(|migration| migration.version);
    (versions().min().unwrap_or(0), versions().max().unwrap_or(0))
}

/// Creates the database `name` unless it exists. `server` is any database of the same server.
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
