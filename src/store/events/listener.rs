//! The connection that listens for announcements and holds the locks of all watches.
//!
//! No statement here waits for a lock, and each has a deadline. So a transaction that does not end
//! delays the watches of its own tasks only.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use sqlx::{Acquire, Connection};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::registry::{Registry, Target, WatchId, WriterLock};
use crate::domain::Limits;
use crate::store::StoreError;
use crate::store::sql::column;

/// The NOTIFY channel.
pub(in crate::store) const CHANNEL: &str = "task_history";

/// Name of the listening connection, as `pg_stat_activity.application_name` shows it.
const APPLICATION_NAME: &str = "task-history listener";

/// First key of the advisory locks of watched tasks. `watched_tasks`, a function in the database,
/// has the same numbers.
const TASK_LOCK_CLASS: i32 = 29_810;

/// First key of the advisory locks that writers hold after they tested for watchers.
const WRITER_LOCK_CLASS: i64 = 29_811;

/// First key of the advisory locks of watched organizations.
const ORGANIZATION_LOCK_CLASS: i32 = 29_812;

/// How long to wait before a lost connection is tried again.
const RECONNECT_INTERVAL: Duration = Duration::from_millis(500);

/// How often to look again for a lock or for the end of a transaction.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// What the watches and the listener share.
pub(super) struct Shared {
    options: PgConnectOptions,
    pub(super) limits: Limits,
    registry: Mutex<Registry>,
    /// The registry has something new for the listener.
    pub(super) changed: Notify,
}

impl Shared {
    pub(super) fn new(options: PgConnectOptions, limits: Limits) -> Self {
        let options = options.application_name(APPLICATION_NAME);
        Self { options, limits, registry: Mutex::default(), changed: Notify::new() }
    }

    pub(super) fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().expect("the registry does not panic")
    }
}

/// Listens as long as there are watches.
pub(super) async fn run(shared: Arc<Shared>) {
    loop {
        let served = match Session::connect(&shared).await {
            Ok(session) => {
                // Announcements may have been lost.
                shared.registry().wake_all();
                session.serve().await
            }
            Err(error) => Err(error),
        };
        let Err(error) = served else { return };
        tracing::warn!(%error, "no connection that listens for changes, trying again");
        shared.registry().unlock_all();
        tokio::time::sleep(RECONNECT_INTERVAL).await;
        if shared.registry().stop_listening() {
            return;
        }
    }
}

/// A connection that listens, and the locks that it has taken.
struct Session<'a> {
    shared: &'a Shared,
    connection: PgListener,
    /// When the server last answered.
    heard_at: Instant,
}

impl<'a> Session<'a> {
    async fn connect(shared: &'a Shared) -> Result<Self, StoreError> {
        let timeout = shared.limits.connect_timeout;
        let connect = async {
            let pool = PgPoolOptions::new()
                .max_connections(1)
                .idle_timeout(None)
                .max_lifetime(None)
                .acquire_timeout(timeout)
                .connect_with(shared.options.clone())
                .await?;
            let mut connection = PgListener::connect_with(&pool).await?;
            connection.eager_reconnect(false);
            connection.listen(CHANNEL).await?;
            Ok(connection)
        };
        let connection = within(timeout, connect).await?;
        Ok(Self { shared, connection, heard_at: Instant::now() })
    }

    /// Works for the watches until none is left. Fails if the connection is lost.
    async fn serve(mut self) -> Result<(), StoreError> {
        let ping_interval = self.shared.limits.listener_ping_interval;
        loop {
            let is_pending = self.update_locks().await?;
            let poll_interval = if is_pending { POLL_INTERVAL } else { ping_interval };
            self.wake_watches(Instant::now() + poll_interval).await?;
            if self.heard_at.elapsed() >= ping_interval {
                if self.shared.registry().stop_listening() {
                    return Ok(());
                }
                self.ping().await?;
            }
        }
    }

    /// Wakes the watches of announced tasks until a time, or until the registry has changed.
    async fn wake_watches(&mut self, until: Instant) -> Result<(), StoreError> {
        loop {
            let payload = tokio::select! {
                () = tokio::time::sleep_until(until) => return Ok(()),
                () = self.shared.changed.notified() => return Ok(()),
                notification = self.connection.try_recv() => match notification? {
                    Some(notification) => notification.payload().to_owned(),
                    None => return Err(StoreError::Unavailable("the server has gone".to_owned())),
                }
            };
            self.heard_at = Instant::now();
            self.shared.registry().wake(&payload);
        }
    }

    /// Releases and takes locks. Returns whether some could not be taken, or wait for writers.
    async fn update_locks(&mut self) -> Result<bool, StoreError> {
        let (released, unlocked) = {
            let mut registry = self.shared.registry();
            (registry.take_released(), registry.unlocked())
        };
        if !released.is_empty() {
            self.release(&released).await?;
        }
        if !unlocked.is_empty() {
            self.lock(unlocked).await?;
        }
        if self.shared.registry().is_waiting() {
            let held = self.writer_locks().await?;
            self.shared.registry().settle(&held);
        }
        Ok(self.shared.registry().is_pending())
    }

    /// Tries to lock what watches need. A writer that tests a lock holds it for a moment.
    async fn lock(&mut self, watches: Vec<(WatchId, Target)>) -> Result<(), StoreError> {
        let statement = sqlx::query!(
            r#"
            SELECT watch.number AS "number!", watch.key AS "key!",
                   CASE WHEN watch.is_whole
                       THEN pg_try_advisory_lock_shared($5, watch.key >> 10)
                       ELSE pg_try_advisory_lock_shared($6, watch.key)
                   END AS "is_locked!"
            FROM (
                SELECT number, is_whole, watch_key(watch_salt(organization::uuid), task) AS key
                FROM unnest($1::bigint[], $2::text[], $3::text[], $4::boolean[])
                    AS watch (number, organization, task, is_whole)
                OFFSET 0
            ) AS watch
            "#,
            &column(&watches, |(id, _)| id.0),
            &column(&watches, |(_, target)| target.organization.to_string()),
            &column(&watches, |(_, target)| target.task.to_string()),
            &column(&watches, |(_, target)| target.is_whole_organization),
            ORGANIZATION_LOCK_CLASS,
            TASK_LOCK_CLASS
        );
        let timeout = self.shared.limits.listener_timeout;
        let rows = within(timeout, statement.fetch_all(&mut self.connection)).await?;
        self.heard_at = Instant::now();
        let keys: HashMap<_, _> = rows
            .into_iter()
            .filter(|row| row.is_locked)
            .map(|row| (WatchId(row.number), row.key))
            .collect();
        let mut registry = self.shared.registry();
        for (id, target) in watches {
            if let Some(key) = keys.get(&id) {
                registry.lock(id, target, *key);
            }
        }
        Ok(())
    }

    /// Releases locks. Each watch has taken its own, also of the same key.
    async fn release(&mut self, targets: &[Target]) -> Result<(), StoreError> {
        let statement = sqlx::query!(
            r#"
            SELECT count(
                CASE WHEN watch.is_whole
                    THEN pg_advisory_unlock_shared($4, watch.key >> 10)
                    ELSE pg_advisory_unlock_shared($5, watch.key)
                END
            )
            FROM (
                SELECT is_whole, watch_key(watch_salt(organization::uuid), task) AS key
                FROM unnest($1::text[], $2::text[], $3::boolean[])
                    AS watch (organization, task, is_whole)
                OFFSET 0
            ) AS watch
            "#,
            &column(targets, |target| target.organization.to_string()),
            &column(targets, |target| target.task.to_string()),
            &column(targets, |target| target.is_whole_organization),
            ORGANIZATION_LOCK_CLASS,
            TASK_LOCK_CLASS
        );
        let timeout = self.shared.limits.listener_timeout;
        within(timeout, statement.fetch_one(&mut self.connection)).await?;
        self.heard_at = Instant::now();
        Ok(())
    }

    /// The locks that writers hold in this database.
    async fn writer_locks(&mut self) -> Result<Vec<WriterLock>, StoreError> {
        let statement = sqlx::query_as!(
            WriterLock,
            r#"
            SELECT objid::bigint::integer AS "key!",
                   virtualtransaction || ' ' || pid AS "transaction!"
            FROM pg_locks
            WHERE locktype = 'advisory' AND objsubid = 2 AND granted
              AND classid = $1::bigint::oid
              AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
            "#,
            WRITER_LOCK_CLASS
        );
        let timeout = self.shared.limits.listener_timeout;
        let locks = within(timeout, statement.fetch_all(&mut self.connection)).await?;
        self.heard_at = Instant::now();
        Ok(locks)
    }

    /// Asks for a sign of life. After a failover a connection may be silent for ever.
    async fn ping(&mut self) -> Result<(), StoreError> {
        let ping = async { self.connection.acquire().await?.ping().await };
        within(self.shared.limits.listener_timeout, ping).await?;
        self.heard_at = Instant::now();
        Ok(())
    }
}

async fn within<T>(
    timeout: Duration,
    work: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, StoreError> {
    let timed_out =
        |_| StoreError::Unavailable(format!("the server did not answer within {timeout:?}"));
    Ok(tokio::time::timeout(timeout, work).await.map_err(timed_out)??)
}
