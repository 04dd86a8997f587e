//! PostgreSQL: the only place with SQL. Every statement names its organization first.

mod api_keys;
mod bootstrap;
mod database;
mod error;
mod events;
mod executor;
mod heartbeat;
mod key_watch;
mod organizations;
mod pool;
mod read_budget;
mod shares;
mod sql;
mod tasks;
mod threads;
mod transfer;
mod verify;
mod writes;

use std::sync::Arc;
use std::time::Duration;

pub use api_keys::{ApiKey, CreatedApiKey, KeyRevocation, NewApiKey};
pub use bootstrap::{BOOTSTRAP_KEY_NAME, Bootstrap, BootstrapKey};
pub use database::{DatabaseUrl, create_database, is_migrated, migrate, ping};
pub use error::StoreError;
pub use events::{EventBatch, StoredEvent, TaskPosition, Watch};
pub use key_watch::KeyWatch;
pub use read_budget::{Reservation, STEP_BYTES};
pub use shares::Shares;
pub use tasks::{MAX_SUB_TASKS, SUB_TASK_PAGE, SubTask, SummaryStep};
pub use threads::{ThreadReader, ThreadScope, ThreadStep};
pub use transfer::{LargeTaskImport, TaskExport};
pub use verify::VerifyReport;
pub use writes::{Idempotency, NewInvocation, RecordedInvocation};

use crate::domain::Limits;
use api_keys::KeyCache;
use events::ChangeNotifier;
use heartbeat::Heartbeat;
use key_watch::KeyWatches;
use pool::Pool;
use read_budget::ReadBudget;
use writes::{GroupCommit, InvocationBatches, MAX_BATCHES, UpdateBatches};

/// How long a batch of writes may be under way before the service is not ready.
const MAX_BATCH_AGE: Duration = Duration::from_secs(5);

/// The task history in one database. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    pool: Pool,
    /// The connections of batches of writes, which wait for nobody else.
    writers: Pool,
    heartbeat: Heartbeat,
    notifier: ChangeNotifier,
    invocations: GroupCommit<InvocationBatches>,
    updates: GroupCommit<UpdateBatches>,
    keys: Arc<KeyCache>,
    read_budget: ReadBudget,
    key_watches: KeyWatches,
}

impl Store {
    /// A store over at most `connections` connections, opened as they are needed. Besides, it has
    /// up to eight for batches of writes, one that listens, and one for the heartbeat.
    pub fn new(url: &DatabaseUrl, connections: usize, limits: &Limits) -> Self {
        let options = url.session_options(limits);
        let heartbeat = Heartbeat::new(options.clone(), limits);
        let pool = Pool::new(options.clone(), connections, &heartbeat, limits);
        let batch_limits = Limits { lock_timeout: limits.batch_lock_timeout, ..limits.clone() };
        let batch_options = url.session_options(&batch_limits);
        let writers = Pool::new(batch_options, 2 * MAX_BATCHES, &heartbeat, limits);
        let invocations = InvocationBatches::new(writers.clone(), limits.idempotency_ttl);
        let updates = UpdateBatches::new(writers.clone());
        Self {
            notifier: ChangeNotifier::new(options, limits),
            invocations: GroupCommit::new(invocations, writers.clone(), &heartbeat, limits),
            updates: GroupCommit::new(updates, writers.clone(), &heartbeat, limits),
            keys: Arc::new(KeyCache::new(limits.key_cache_ttl)),
            key_watches: KeyWatches::new(limits.key_check_interval),
            heartbeat,
            writers,
            read_budget: ReadBudget::new(limits.request_timeout),
            pool,
        }
    }

    /// Checks that the database responds and can be written to, and that writes go on. Answers
    /// within a second, also if all connections are in use.
    pub async fn ready(&self) -> Result<(), StoreError> {
        self.heartbeat.ready().await?;
        let age = self.invocations.oldest_batch().max(self.updates.oldest_batch());
        match age.filter(|age| *age > MAX_BATCH_AGE) {
            Some(age) => {
                let text = format!("a batch of writes has been under way for {age:?}");
                Err(StoreError::Unavailable(text))
            }
            None => Ok(()),
        }
    }

    /// Closes idle connections now and the others when they are released. Later calls are refused.
    pub fn close(&self) {
        self.pool.close();
        self.writers.close();
    }
}
