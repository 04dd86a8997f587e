//! What can go wrong in the store.

use std::error::Error;
use std::fmt;

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
    /// The task has no turn with this number; nothing was changed.
    #[error("the task has no such turn")]
    TurnNotFound,
    /// The turn has ended with another status or result; nothing was changed.
    #[error("the turn has ended")]
    TurnEnded,
    /// The idempotency key was used with another request; nothing was changed.
    #[error("the idempotency key was used with another request")]
    IdempotencyKeyReused,
    /// The organization has as many watches as it may have.
    #[error("the organization has {0} watches, and may have no more")]
    TooManyWatches(usize),
    /// PostgreSQL cannot be reached, or no connection is free. Nothing was written; the same call
    /// may succeed later.
    #[error("the database is unavailable: {0}")]
    Unavailable(String),
    /// Another transaction holds a lock for too long. Nothing was written; the same call may
    /// succeed later.
    #[error("a lock is held by another transaction: {0}")]
    Locked(String),
    /// The connection was lost while a write was being committed. It may be committed.
    #[error("it is not known whether the write was committed: {0}")]
    OutcomeUnknown(String),
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
    /// The error of a read that follows a write of the same request: the write is committed, so
    /// the request must not be told that nothing was written.
    #[must_use]
    pub fn after_write(self) -> Self {
        match self {
            Self::Unavailable(text) | Self::Locked(text) => Self::OutcomeUnknown(text),
            error => error,
        }
    }

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
        match &error {
            sqlx::Error::Io(cause) if is_lost(cause) => Self::OutcomeUnknown(error.to_string()),
            sqlx::Error::Database(cause) => match cause.code().as_deref() {
                // lock_not_available, deadlock_detected, serialization_failure
                Some("55P03" | "40P01" | "40001") => Self::Locked(error.to_string()),
                Some(code) if is_transient(code) => Self::Unavailable(error.to_string()),
                _ => Self::Query(error),
            },
            error if is_of_the_connection(error) => Self::Unavailable(error.to_string()),
            _ => Self::Query(error),
        }
    }
}

/// Whether the connection was lost, or there was none.
fn is_of_the_connection(error: &sqlx::Error) -> bool {
    matches!(
        error,
        sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::Protocol(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
    )
}

/// Whether the same statement may succeed later, by its
/// [code](https://www.postgresql.org/docs/current/errcodes-appendix.html).
fn is_transient(code: &str) -> bool {
    // query_canceled (a timeout), idle_in_transaction_session_timeout, read_only_sql_transaction
    let codes = ["57014", "25P03", "25006"];
    // Class 08: connection; 53: resources, a full disk among them; 57P: the server stops or starts.
    let classes = ["08", "53", "57P"];
    codes.contains(&code) || classes.iter().any(|class| code.starts_with(class))
}

/// The connection was lost while a commit was under way.
#[derive(Debug)]
struct Lost(sqlx::Error);

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Error for Lost {}

fn is_lost(error: &std::io::Error) -> bool {
    matches!(error.get_ref(), Some(cause) if cause.is::<Lost>())
}

/// Marks an error of a commit after which nobody knows whether it happened. It then becomes
/// [`StoreError::OutcomeUnknown`].
pub(super) fn commit_unknown(error: sqlx::Error) -> sqlx::Error {
    let is_unknown = match &error {
        // A server that stops may say so after the commit, instead of its response.
        sqlx::Error::Database(error) => {
            error.code().is_some_and(|code| code.starts_with("57P") || code.starts_with("08"))
        }
        error => is_of_the_connection(error),
    };
    if is_unknown { sqlx::Error::Io(std::io::Error::other(Lost(error))) } else { error }
}
