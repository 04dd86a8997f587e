//! Connections to PostgreSQL.
//!
//! sqlx's own pool asks the server for a sign of life each time a connection comes back, which makes three round
//! trips of a one-statement request. This one asks only after a connection has been idle for a while, and instead
//! watches whether each use came to its end: a request that is dropped half way (its client went away) leaves an
//! answer on the wire or a transaction open, and such a connection is closed, not reused.

use std::ops::{Deref, DerefMut};
use std::time::{Duration, Instant};

use deadpool::managed::{self, Metrics, Object, QueueMode, RecycleResult};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Connection};

use super::StoreError;

/// How long a connection may be idle before it is asked for a sign of life.
const TRUSTED_IDLE: Duration = Duration::from_secs(30);

/// How long a request waits for a free connection, and a new connection for the server.
const PATIENCE: Duration = Duration::from_secs(5);

/// A bounded set of connections.
#[derive(Clone)]
pub(super) struct Pool(managed::Pool<Manager>);

struct Manager {
    options: PgConnectOptions,
}

struct Slot {
    connection: PgConnection,
    since: Instant,
}

/// A connection on loan. Say [`Loan::done`] when the last answer has been read; otherwise it is closed as soon as this is
/// dropped, and with it whatever transaction and locks it holds.
pub(super) struct Loan(Option<Object<Manager>>);

impl Pool {
    pub(super) fn new(options: PgConnectOptions, size: usize) -> Self {
        let pool = managed::Pool::builder(Manager { options })
            .max_size(size)
            // The one that was used last: its server process has everything at hand, those of a whole round have not.
            .queue_mode(QueueMode::Lifo)
            .runtime(deadpool::Runtime::Tokio1)
            .wait_timeout(Some(PATIENCE))
            .create_timeout(Some(PATIENCE))
            .recycle_timeout(Some(PATIENCE))
            .build();
        Self(pool.expect("a pool with a runtime can be built"))
    }

    pub(super) async fn get(&self) -> Result<Loan, StoreError> {
        Ok(Loan(Some(self.0.get().await?)))
    }

    pub(super) fn close(&self) {
        self.0.close();
    }
}

impl Loan {
    /// Gives the connection back for reuse: nothing is under way on it.
    pub(super) fn done(mut self) {
        if let Some(slot) = &mut self.0 {
            slot.since = Instant::now();
        }
        // Dropping a slot that is still in its place gives it back.
        drop(self.0.take());
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        if let Some(slot) = self.0.take() {
            // Taken out of the pool, the connection is closed; the server then ends what runs on it.
            drop(Object::take(slot));
        }
    }
}

impl Deref for Loan {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.0.as_ref().expect("there until it is dropped").connection
    }
}

impl DerefMut for Loan {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.0.as_mut().expect("there until it is dropped").connection
    }
}

impl managed::Manager for Manager {
    type Type = Slot;
    type Error = sqlx::Error;

    async fn create(&self) -> Result<Slot, sqlx::Error> {
        Ok(Slot { connection: self.options.connect().await?, since: Instant::now() })
    }

    async fn recycle(&self, slot: &mut Slot, _: &Metrics) -> RecycleResult<sqlx::Error> {
        if slot.since.elapsed() > TRUSTED_IDLE {
            slot.connection.ping().await?;
        }
        Ok(())
    }
}
