//! What can go wrong in the store.

use std::error::Error;

/// Why the store could not do what it was asked.
///
/// It knows no HTTP. Its text is for the log, never for a client.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The organization has no such task.
    #[error("the organization has no such task")]
    TaskNotFound,
    /// The task belongs to another agent of the organization; nothing was changed.
    #[error("the task belongs to another agent")]
    TaskOfAnotherAgent,
    /// The idempotency key was used with another request; nothing was changed.
    #[error("the idempotency key was used with another request")]
    IdempotencyKeyReused,
    /// PostgreSQL cannot be reached, or no connection is free. The same call may succeed later.
    #[error("the database is unavailable: {0}")]
    Unavailable(String),
    /// A row does not have the form in which the service writes it.
    #[error("table {table}, row {row}: {source}")]
    Corrupt {
        /// The table.
        table: &'static str,
        /// The row's key.
        row: String,
        /// What is wrong with it.
        source: Box<dyn Error + Send + Sync>,
    },
    /// A statement failed.
    #[error("a statement failed: {0}")]
    Query(#[source] sqlx::Error),
    /// The database has the schema of an older development version.
    #[error(
        "the database has the schema of a development version that was never released, and cannot \
         be migrated. Use an empty database, or another --data-dir; to keep its tasks, run \
         `task-history export` with the version that made it and `task-history import` with this \
         one"
    )]
    DevelopmentSchema,
    /// The database has migrations that this version does not know.
    #[error(
        "the database has migration {0}, which only a newer version of task-history has; run that \
         version"
    )]
    NewerSchema(i64),
    /// A migration failed.
    #[error("the database could not be migrated: {0}")]
    Migrate(#[source] sqlx::migrate::MigrateError),
}

impl StoreError {
    pub(super) fn corrupt(
        table: &'static str,
        row: String,
        source: impl Error + Send + Sync + 'static,
    ) -> Self {
        Self::Corrupt { table, row, source: Box::new(source) }
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        let is_unavailable = match &error {
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::Protocol(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed => true,
            // https://www.postgresql.org/docs/current/errcodes-appendix.html
            sqlx::Error::Database(error) => error.code().is_some_and(|code| {
                // query_canceled (a timeout), serialization_failure, deadlock_detected,
                // lock_not_available, idle_in_transaction_session_timeout,
                // read_only_sql_transaction
                let transient = ["57014", "40001", "40P01", "55P03", "25P03", "25006"];
                // Class 08: connection; 53: resources; 57P: the server stops or starts.
                let classes = ["08", "53", "57P"];
                transient.contains(&code.as_ref())
                    || classes.iter().any(|class| code.starts_with(class))
            }),
            _ => false,
        };
        if is_unavailable { Self::Unavailable(error.to_string()) } else { Self::Query(error) }
    }
}
