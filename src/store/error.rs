//! What can go wrong in the store.

/// Why the store could not do what it was asked. It knows no HTTP; its text is for the log, never for a client.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database can't be reached, or has no connection free. The same call may succeed later.
    #[error("the database is unavailable: {0}")]
    Unavailable(String),
    /// The task belongs to another agent of the organisation; nothing was changed.
    #[error("the task belongs to another agent")]
    OtherAgent,
    /// The idempotency key was used with another request; nothing was changed.
    #[error("the idempotency key was used with another request")]
    OtherRequest,
    /// A row can't be understood.
    #[error("table {table}, row {row}: {source}")]
    Corrupt {
        /// The table.
        table: &'static str,
        /// The row's key.
        row: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A statement failed.
    #[error("a statement failed: {0}")]
    Query(#[source] sqlx::Error),
    /// Migrating failed.
    #[error("the database could not be migrated: {0}")]
    Migrate(#[from] sqlx::migrate::MigrateError),
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        let unavailable = match &error {
            sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::Protocol(_) => true,
            // Class 08: connection; 53: resources; 57P: the server goes down or is not up yet.
            // https://www.postgresql.org/docs/current/errcodes-appendix.html
            // Also timeouts, deadlocks, and a server that has become read-only: all may be over at the next try.
            sqlx::Error::Database(error) => error.code().is_some_and(|code| {
                let states = ["57014", "40001", "40P01", "55P03", "25P03", "25006"];
                if states.contains(&code.as_ref()) {
                    return true;
                }
                code.starts_with("08") || code.starts_with("53") || code.starts_with("57P")
            }),
            _ => false,
        };
        if unavailable { Self::Unavailable(error.to_string()) } else { Self::Query(error) }
    }
}

impl From<deadpool::managed::PoolError<sqlx::Error>> for StoreError {
    fn from(error: deadpool::managed::PoolError<sqlx::Error>) -> Self {
        match error {
            deadpool::managed::PoolError::Backend(error) => error.into(),
            other => Self::Unavailable(other.to_string()),
        }
    }
}
