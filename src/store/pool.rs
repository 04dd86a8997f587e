//! The connection pool: every use of the database goes through it, with a deadline.
//!
//! - A statement that has no response within [`Limits::response_timeout`] is given up, and its
//!   connection with it. PostgreSQL cancels a statement itself before that, so silence means that
//!   the server or the network is gone.
//! - When the [`Heartbeat`] finds that established connections are dead while new ones work, all
//!   connections end at once, also those in use.
//! - sqlx's own pool pings the server each time a connection comes back: three round trips for a
//!   request of one statement. This pool pings only after a connection was idle for a while.
//! - A request that is dropped early (its client closed the connection) leaves a response on the
//!   wire or a transaction open. A short statement may then end before the connection is reused;
//!   otherwise the connection is closed.
//!
//! No caller has to give a connection back, and none can use one without its deadline: a single
//! statement runs on the pool itself, several run in a [`Transaction`]. `executor.rs` makes both
//! executors of statements.

use std::fmt;
use std::io;
use std::time::{Duration, Instant};

use deadpool::managed::{self, Metrics, Object, PoolError, QueueMode, RecycleError, RecycleResult};
use futures_util::future::BoxFuture;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Connection, Executor};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::error::commit_unknown;
use super::heartbeat::Heartbeat;
use super::shares::Shares;
use crate::domain::{Limits, OrganizationId};

/// How long a statement may take to end after its request was dropped, before its connection is
/// closed.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(1);

/// How much later than its timeout a canceled statement may be reported.
const RESPONSE_GRACE: Duration = Duration::from_secs(2);

/// Longest statement of a snapshot. A backup or a recount of a large database takes hours.
const SNAPSHOT_RESPONSE_TIMEOUT: Duration = Duration::from_hours(12);

/// A bounded set of connections. Cheap to clone.
#[derive(Clone)]
pub(super) struct Pool {
    connections: managed::Pool<ConnectionManager>,
    shares: Shares<Semaphore>,
    heartbeat: Heartbeat,
    pool_timeout: Duration,
    response_timeout: Duration,
}

/// The pool as an organization may use it: at most half of the connections.
#[derive(Clone, Copy)]
pub(super) struct OrganizationPool<'p> {
    pool: &'p Pool,
    /// `None` for statements that belong to no organization, of which there are few.
    organization: Option<OrganizationId>,
}

struct ConnectionManager {
    options: PgConnectOptions,
    heartbeat: Heartbeat,
    ping_after_idle: Duration,
}

struct IdleConnection {
    connection: PgConnection,
    generation: CancellationToken,
    since: Instant,
}

/// A connection taken from the pool.
///
/// Dropping it without [`PooledConnection::release`] ends its transaction and frees its locks.
pub(super) struct PooledConnection {
    /// Present until dropped.
    connection: Option<Object<ConnectionManager>>,
    /// The place in its organization's share.
    share: Option<OwnedSemaphorePermit>,
    response_timeout: Duration,
    is_in_transaction: bool,
    /// Whether the server owes a response and does not give it.
    is_silent: bool,
}

/// A transaction. Dropping it without [`Transaction::commit`] rolls it back.
pub(super) struct Transaction(pub(super) PooledConnection);

/// The pool as an executor of single statements that write, which commit by themselves.
///
/// An error of the connection then means that nobody knows whether the statement was committed.
#[derive(Clone, Copy)]
pub(super) struct Autocommit<'p>(pub(super) OrganizationPool<'p>);

impl Pool {
    pub(super) fn new(
        options: PgConnectOptions,
        size: usize,
        heartbeat: &Heartbeat,
        limits: &Limits,
    ) -> Self {
        let manager = ConnectionManager {
            options,
            heartbeat: heartbeat.clone(),
            ping_after_idle: limits.ping_after_idle,
        };
        let pool = managed::Pool::builder(manager)
            .max_size(size)
            // The connection that was used last: the caches of its server process are warm.
            .queue_mode(QueueMode::Lifo)
            .runtime(deadpool::Runtime::Tokio1)
            .wait_timeout(Some(limits.pool_timeout))
            .create_timeout(Some(limits.connect_timeout))
            .recycle_timeout(Some(limits.ping_timeout))
            .build();
        let connections = pool.expect("a pool with a runtime can be built");
        Self {
            connections,
            shares: Shares::new(move || Semaphore::new(size.div_ceil(2))),
            heartbeat: heartbeat.clone(),
            pool_timeout: limits.pool_timeout,
            response_timeout: limits.response_timeout,
        }
    }

    /// The connections as an organization may use them.
    pub(super) fn of(&self, organization: OrganizationId) -> OrganizationPool<'_> {
        OrganizationPool { pool: self, organization: Some(organization) }
    }

    /// The connections for what belongs to no organization, or to an operator.
    pub(super) fn shared(&self) -> OrganizationPool<'_> {
        OrganizationPool { pool: self, organization: None }
    }

    /// Closes idle connections now and the others when they are released. Later uses are refused.
    pub(super) fn close(&self) {
        self.connections.close();
    }
}

impl<'p> OrganizationPool<'p> {
    /// Starts a transaction.
    pub(super) async fn begin(&self) -> Result<Transaction, sqlx::Error> {
        let mut connection = self.get().await?;
        connection.is_in_transaction = true;
        connection.within(|connection| connection.execute("BEGIN")).await?;
        Ok(Transaction(connection))
    }

    /// Starts a read-only transaction that reads one snapshot, however long it takes: no statement
    /// timeout, and the caller may be slow between statements.
    pub(super) async fn begin_snapshot(&self) -> Result<Transaction, sqlx::Error> {
        let mut transaction = self.begin().await?;
        let settings = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY; \
                        SET LOCAL statement_timeout = 0; \
                        SET LOCAL idle_in_transaction_session_timeout = 0";
        sqlx::raw_sql(settings).execute(&mut transaction).await?;
        transaction.0.response_timeout = SNAPSHOT_RESPONSE_TIMEOUT;
        Ok(transaction)
    }

    /// Runs single statements that write.
    pub(super) fn autocommit(self) -> Autocommit<'p> {
        Autocommit(self)
    }

    pub(super) async fn get(&self) -> Result<PooledConnection, sqlx::Error> {
        let Pool { connections, shares, heartbeat, pool_timeout, response_timeout } = self.pool;
        heartbeat.start();
        let share = match self.organization {
            Some(organization) => {
                let share = timeout(*pool_timeout, shares.of(organization).acquire_owned()).await;
                Some(share.map_err(|_| sqlx::Error::PoolTimedOut)?.expect("never closed"))
            }
            None => None,
        };
        match connections.get().await {
            Ok(connection) => Ok(PooledConnection {
                connection: Some(connection),
                share,
                response_timeout: *response_timeout,
                is_in_transaction: false,
                is_silent: false,
            }),
            Err(PoolError::Backend(error)) => Err(error),
            Err(PoolError::Closed) => Err(sqlx::Error::PoolClosed),
            Err(PoolError::Timeout(_)) => Err(sqlx::Error::PoolTimedOut),
            Err(error @ (PoolError::NoRuntimeSpecified | PoolError::PostCreateHook(_))) => {
                Err(sqlx::Error::Configuration(error.into()))
            }
        }
    }
}

impl PooledConnection {
    /// Runs one use of the connection, with a deadline.
    pub(super) async fn within<'c, T>(
        &'c mut self,
        work: impl FnOnce(&'c mut PgConnection) -> BoxFuture<'c, Result<T, sqlx::Error>>,
    ) -> Result<T, sqlx::Error> {
        let deadline = self.deadline();
        let Self { connection, is_silent, .. } = self;
        let connection: &'c mut IdleConnection =
            connection.as_mut().expect("present until dropped");
        let response = deadline.limit(work(&mut connection.connection)).await;
        *is_silent = matches!(&response, Err(sqlx::Error::Io(error)) if is_silence(error));
        response
    }

    /// The deadline of one use.
    pub(super) fn deadline(&self) -> Deadline {
        let connection = self.connection.as_ref().expect("present until dropped");
        Deadline { generation: connection.generation.clone(), timeout: self.response_timeout }
    }

    /// Gives the connection back for reuse. The caller has read the last response on it.
    pub(super) fn release(mut self) {
        if let Some(connection) = &mut self.connection {
            connection.since = Instant::now();
            // They are as large as the largest row or value so far, of up to several megabytes.
            connection.connection.shrink_buffers();
        }
        // Dropping a pool object that is in its place returns it to the pool.
        drop(self.connection.take());
    }
}

/// How long the server may be silent, and what tells that the connection is dead.
pub(super) struct Deadline {
    generation: CancellationToken,
    timeout: Duration,
}

impl Deadline {
    /// Waits for a response.
    pub(super) async fn limit<T>(
        &self,
        response: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, sqlx::Error> {
        let silence = tokio::select! {
            biased;
            response = response => return response,
            () = self.generation.cancelled() => "the connection is dead".to_owned(),
            () = tokio::time::sleep(self.timeout) => {
                format!("no response within {:?}", self.timeout)
            }
        };
        Err(sqlx::Error::Io(io::Error::other(Silence(silence))))
    }
}

/// The server owes a response and does not give it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Silence(String);

fn is_silence(error: &io::Error) -> bool {
    matches!(error.get_ref(), Some(cause) if cause.is::<Silence>())
}

impl Drop for PooledConnection {
    fn drop(&mut self) {
        let Some(connection) = self.connection.take() else { return };
        let (is_in_transaction, share) = (self.is_in_transaction, self.share.take());
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) if !self.is_silent => {
                runtime.spawn(async move {
                    settle(connection, is_in_transaction).await;
                    drop(share);
                });
            }
            // Taken out of the pool, the connection is closed; the server then ends its session.
            _ => drop(Object::take(connection)),
        }
    }
}

/// Reads what a dropped use has left on the wire and returns the connection to the pool, or closes
/// it if that takes long.
async fn settle(mut connection: Object<ConnectionManager>, is_in_transaction: bool) {
    let ended = timeout(SETTLE_TIMEOUT, async {
        if is_in_transaction {
            connection.connection.execute("ROLLBACK").await.map(|_| ())
        } else {
            connection.connection.ping().await
        }
    });
    if !matches!(ended.await, Ok(Ok(()))) {
        drop(Object::take(connection));
    }
}

impl Transaction {
    /// Expects responses as late as a server may send them that cancels statements after `timeout`.
    pub(super) fn set_statement_timeout(&mut self, timeout: Duration) {
        self.0.response_timeout = timeout + RESPONSE_GRACE;
    }

    /// Gives the memory back that large rows have left in buffers.
    pub(super) fn shrink_buffers(&mut self) {
        if let Some(connection) = &mut self.0.connection {
            connection.connection.shrink_buffers();
        }
    }

    /// Commits, and gives the connection back. After an error of the connection, nobody knows
    /// whether the transaction was committed.
    pub(super) async fn commit(mut self) -> Result<(), sqlx::Error> {
        self.0.within(|connection| connection.execute("COMMIT")).await.map_err(commit_unknown)?;
        self.0.release();
        Ok(())
    }

    /// Rolls back, and gives the connection back.
    pub(super) async fn rollback(mut self) -> Result<(), sqlx::Error> {
        self.0.within(|connection| connection.execute("ROLLBACK")).await?;
        self.0.release();
        Ok(())
    }
}

impl fmt::Debug for OrganizationPool<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OrganizationPool")
    }
}

impl fmt::Debug for Transaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Transaction")
    }
}

impl fmt::Debug for Autocommit<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Autocommit")
    }
}

impl managed::Manager for ConnectionManager {
    type Type = IdleConnection;
    type Error = sqlx::Error;

    async fn create(&self) -> Result<IdleConnection, sqlx::Error> {
        // Taken before connecting, so that a connection is never newer than its generation.
        let generation = self.heartbeat.generation();
        let connection = self.options.connect().await?;
        Ok(IdleConnection { connection, generation, since: Instant::now() })
    }

    async fn recycle(&self, idle: &mut IdleConnection, _: &Metrics) -> RecycleResult<sqlx::Error> {
        if idle.generation.is_cancelled() {
            return Err(RecycleError::message("the connection is dead"));
        }
        let is_old = idle.since.elapsed() > self.ping_after_idle;
        if is_old || self.heartbeat.is_doubtful(idle.since) {
            idle.connection.ping().await?;
        }
        Ok(())
    }
}
