//! The connection pool.
//!
//! sqlx's own pool pings the server each time a connection comes back: three round trips for a
//! request of one statement. This pool pings only after a connection was idle for a while. Instead
//! it tracks whether each use is complete. A request that is dropped early (its client closed the
//! connection) leaves an answer on the wire or a transaction open. Such a connection is
//! closed, not reused.
//!
//! No caller has to give a connection back. A single statement runs on the pool itself, which is an
//! [`Executor`]; several statements run in a [`Transaction`], which ends with its commit.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::time::{Duration, Instant};

use deadpool::managed::{self, Metrics, Object, PoolError, QueueMode, RecycleResult};
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream, StreamExt, TryStreamExt};
use sqlx::postgres::{
    PgConnectOptions, PgConnection, PgQueryResult, PgRow, PgStatement, PgTypeInfo,
};
use sqlx::{ConnectOptions, Connection, Either, Execute, Executor, Postgres, SqlStr};

use crate::domain::Limits;

/// A bounded set of connections. Cheap to clone.
#[derive(Clone)]
pub(super) struct Pool(managed::Pool<ConnectionManager>);

struct ConnectionManager {
    options: PgConnectOptions,
    ping_after_idle: Duration,
}

struct IdleConnection {
    connection: PgConnection,
    since: Instant,
}

/// A connection taken from the pool. Dropping it without [`PooledConnection::release`] closes it,
/// and so ends its transaction and frees its locks.
struct PooledConnection(Option<Object<ConnectionManager>>);

/// A transaction. Dropping it without [`Transaction::commit`] closes its connection, which rolls it
/// back.
pub(super) struct Transaction(PooledConnection);

impl Pool {
    pub(super) fn new(options: PgConnectOptions, size: usize, limits: &Limits) -> Self {
        let manager = ConnectionManager { options, ping_after_idle: limits.ping_after_idle };
        let pool = managed::Pool::builder(manager)
            .max_size(size)
            // The connection that was used last: the caches of its server process are warm.
            .queue_mode(QueueMode::Lifo)
            .runtime(deadpool::Runtime::Tokio1)
            .wait_timeout(Some(limits.pool_timeout))
            .create_timeout(Some(limits.connect_timeout))
            .recycle_timeout(Some(limits.connect_timeout))
            .build();
        Self(pool.expect("a pool with a runtime can be built"))
    }

    /// Starts a transaction.
    pub(super) async fn begin(&self) -> Result<Transaction, sqlx::Error> {
        let mut connection = self.get().await?;
        connection.execute("BEGIN").await?;
        Ok(Transaction(connection))
    }

    /// Starts a read-only transaction that reads one snapshot, however long it takes: no statement
    /// timeout, and the caller may be slow between statements.
    pub(super) async fn begin_snapshot(&self) -> Result<Transaction, sqlx::Error> {
        let mut transaction = self.begin().await?;
        let settings = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY; \
                        SET LOCAL statement_timeout = 0; \
                        SET LOCAL idle_in_transaction_session_timeout = 0";
        sqlx::raw_sql(settings).execute(&mut *transaction).await?;
        Ok(transaction)
    }

    /// Pings the server on a pooled connection.
    pub(super) async fn ping(&self) -> Result<(), sqlx::Error> {
        let mut connection = self.get().await?;
        connection.ping().await?;
        connection.release();
        Ok(())
    }

    /// Closes idle connections now and the others when they are released. Later uses are refused.
    pub(super) fn close(&self) {
        self.0.close();
    }

    async fn get(&self) -> Result<PooledConnection, sqlx::Error> {
        match self.0.get().await {
            Ok(connection) => Ok(PooledConnection(Some(connection))),
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
    /// Gives the connection back for reuse. The caller has read the last answer on it.
    fn release(mut self) {
        if let Some(connection) = &mut self.0 {
            connection.since = Instant::now();
        }
        // Dropping a pool object that is in its place returns it to the pool.
        drop(self.0.take());
    }
}

impl Drop for PooledConnection {
    fn drop(&mut self) {
        if let Some(connection) = self.0.take() {
            // Taken out of the pool, the connection is closed; the server then ends its session.
            drop(Object::take(connection));
        }
    }
}

impl Deref for PooledConnection {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.0.as_ref().expect("present until dropped").connection
    }
}

impl DerefMut for PooledConnection {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.0.as_mut().expect("present until dropped").connection
    }
}

impl Transaction {
    /// Commits, and gives the connection back.
    pub(super) async fn commit(mut self) -> Result<(), sqlx::Error> {
        self.0.execute("COMMIT").await?;
        self.0.release();
        Ok(())
    }

    /// Rolls back, and gives the connection back.
    pub(super) async fn rollback(mut self) -> Result<(), sqlx::Error> {
        self.0.execute("ROLLBACK").await?;
        self.0.release();
        Ok(())
    }
}

impl Deref for Transaction {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.0
    }
}

impl DerefMut for Transaction {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.0
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pool")
    }
}

type Step = Either<PgQueryResult, PgRow>;

/// Runs one statement on a connection of the pool, and gives the connection back.
impl<'p> Executor<'p> for &'p Pool {
    type Database = Postgres;

    fn execute<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<PgQueryResult, sqlx::Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        Box::pin(async move {
            let mut connection = self.get().await?;
            let output = connection.execute(query).await?;
            connection.release();
            Ok(output)
        })
    }

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Result<Step, sqlx::Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        // Fetch all rows at once: a reader that stops early would keep the connection.
        let steps = async move {
            let mut connection = self.get().await?;
            let steps: Vec<Step> = connection.fetch_many(query).try_collect().await?;
            connection.release();
            Ok::<_, sqlx::Error>(stream::iter(steps.into_iter().map(Ok)))
        };
        stream::once(steps).try_flatten().boxed()
    }

    fn fetch_all<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Vec<PgRow>, sqlx::Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        Box::pin(async move {
            let mut connection = self.get().await?;
            let rows = connection.fetch_all(query).await?;
            connection.release();
            Ok(rows)
        })
    }

    fn fetch_optional<'e, 'q: 'e, E>(
        self,
        query: E,
    ) -> BoxFuture<'e, Result<Option<PgRow>, sqlx::Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        Box::pin(async move {
            let mut connection = self.get().await?;
            let row = connection.fetch_optional(query).await?;
            connection.release();
            Ok(row)
        })
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [PgTypeInfo],
    ) -> BoxFuture<'e, Result<PgStatement, sqlx::Error>>
    where
        'p: 'e,
    {
        Box::pin(async move {
            let mut connection = self.get().await?;
            let statement = connection.prepare_with(sql, parameters).await?;
            connection.release();
            Ok(statement)
        })
    }

    fn describe<'e>(
        self,
        sql: SqlStr,
    ) -> BoxFuture<'e, Result<sqlx::Describe<Postgres>, sqlx::Error>>
    where
        'p: 'e,
    {
        Box::pin(async move {
            let mut connection = self.get().await?;
            let description = connection.describe(sql).await?;
            connection.release();
            Ok(description)
        })
    }
}

impl managed::Manager for ConnectionManager {
    type Type = IdleConnection;
    type Error = sqlx::Error;

    async fn create(&self) -> Result<IdleConnection, sqlx::Error> {
        Ok(IdleConnection { connection: self.options.connect().await?, since: Instant::now() })
    }

    async fn recycle(&self, idle: &mut IdleConnection, _: &Metrics) -> RecycleResult<sqlx::Error> {
        if idle.since.elapsed() > self.ping_after_idle {
            idle.connection.ping().await?;
        }
        Ok(())
    }
}
