//! PostgreSQL: the only place with SQL. Every statement names its organization first.

mod api_keys;
mod database;
mod error;
mod events;
mod organizations;
mod pool;
mod sql;
mod tasks;
mod threads;
mod transfer;
mod verify;
mod writes;

use std::sync::Arc;

pub use api_keys::{ApiKey, Bootstrap, CreatedApiKey, KeyRevocation, NewApiKey};
pub use database::{DatabaseUrl, create_database, is_migrated, migrate, ping};
pub use error::StoreError;
pub use events::{EventBatch, Watch};
pub use verify::VerifyReport;
pub use writes::{Idempotency, RecordedInvocation};

use crate::domain::Limits;
use api_keys::KeyCache;
use events::ChangeNotifier;
use pool::Pool;
use writes::{GroupCommit, InvocationBatches, UpdateBatches};

/// The task history in one database. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    pool: Pool,
    notifier: ChangeNotifier,
    invocations: GroupCommit<InvocationBatches>,
    updates: GroupCommit<UpdateBatches>,
    keys: Arc<KeyCache>,
}

impl Store {
    /// A store over at most `connections` connections, opened as they are needed.
    pub fn new(url: &DatabaseUrl, connections: usize, limits: &Limits) -> Self {
        let options = url.session_options(limits);
        let pool = Pool::new(options.clone(), connections, limits);
        Self {
            notifier: ChangeNotifier::new(options),
            invocations: GroupCommit::new(InvocationBatches::new(pool.clone()), limits),
            updates: GroupCommit::new(UpdateBatches::new(pool.clone()), limits),
            keys: Arc::new(KeyCache::new(limits.key_cache_ttl)),
            pool,
        }
    }

    /// Checks that the database answers. Whatever it says instead, it is unavailable.
    pub async fn ready(&self) -> Result<(), StoreError> {
        self.pool.ping().await.map_err(|error| StoreError::Unavailable(error.to_string()))
    }

    /// Closes idle connections now and the others when they are released. Later calls are refused.
    pub fn close(&self) {
        self.pool.close();
    }
}
