//! Connections to PostgreSQL.
//!
//! sqlx's own pool asks the server for a sign of life each time a connection comes back, which makes three round
//! trips of a one-statement request. This one asks only after a connection has been idle for a while, and instead
//! watches whether each use came to its end: a request that is dropped half way (its client went away) leaves an
//! answer on the wire or a transaction open, and such a connection is closed, not reused.

use std::ops::{Deref, DerefMut};
use std::time::{Duration, Instant};

use deadpool::managed::{self, Metrics, Object, RecycleError, RecycleResult};
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
    in_use: bool,
    since: Instant,
}

/// A connection on loan. Say [`Loan::done`] when the last answer has been read; otherwise it is closed.
pub(super) struct Loan(Object<Manager>);

impl Pool {
    pub(super) fn new(options: PgConnectOptions, size: usize) -> Self {
        let pool = managed::Pool::builder(Manager { options })
            .max_size(size)
            .runtime(deadpool::Runtime::Tokio1)
            .wait_timeout(Some(PATIENCE))
            .create_timeout(Some(PATIENCE))
            .recycle_timeout(Some(PATIENCE))
            .build();
        Self(pool.expect("a pool with a runtime can be built"))
    }

    pub(super) async fn get(&self) -> Result<Loan, StoreError> {
        let mut slot = self.0.get().await?;
        slot.in_use = true;
        Ok(Loan(slot))
    }

    pub(super) fn close(&self) {
        self.0.close();
    }
}

impl Loan {
    /// Gives the connection back for reuse: nothing is under way on it.
    pub(super) fn done(mut self) {
        self.0.in_use = false;
        self.0.since = Instant::now();
    }
}

impl Deref for Loan {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        &self.0.connection
    }
}

impl DerefMut for Loan {
    fn deref_mut(&mut self) -> &mut PgConnection {
        &mut self.0.connection
    }
}

impl managed::Manager for Manager {
    type Type = Slot;
    type Error = sqlx::Error;

    async fn create(&self) -> Result<Slot, sqlx::Error> {
        Ok(Slot { connection: self.options.connect().await?, in_use: false, since: Instant::now() })
    }

    async fn recycle(&self, slot: &mut Slot, _: &Metrics) -> RecycleResult<sqlx::Error> {
        if slot.in_use {
            return Err(RecycleError::message("its last use did not come to an end"));
        }
        if slot.since.elapsed() > TRUSTED_IDLE {
            slot.connection.ping().await?;
        }
        Ok(())
    }
}
