//! Watching tasks, across all instances of the service on one database.
//!
//! A write announces its task with NOTIFY, but only if the task is watched: every NOTIFY makes the
//! committing transaction wait for the one before it. A watcher holds an advisory lock on the
//! task's bucket. A write tests whether that lock is held (`watched_buckets`, a function in the
//! database); if it is, the write stores the event and announces it. A new watcher waits for the
//! transactions that tested before it came, so it reads what they wrote. No event is missed in
//! between, and an unwatched write costs nothing.
//!
//! Announcements carry ids, never data. A lost connection is made again; then every watcher is
//! woken and reads its task.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use tokio::sync::{Notify, mpsc, oneshot};

use crate::domain::{OrganizationId, TaskId};
use crate::store::StoreError;

/// The NOTIFY channel.
pub(in crate::store) const CHANNEL: &str = "task_history";

/// Name of the listening connection, as `pg_stat_activity.application_name` shows it.
const APPLICATION_NAME: &str = "task-history listener";

/// First key of the advisory locks that watchers hold. `watched_buckets` has the same number.
const WATCHER_LOCK_CLASS: i32 = 29_800;

/// First key of the advisory locks that writes hold after they tested for watchers.
const WRITER_LOCK_CLASS: i32 = 29_801;

/// How many locks of the second kind there are.
const WRITER_LOCK_GROUPS: i32 = 64;

/// How many buckets there are. Each watched bucket takes a place in the server's lock table. Two
/// tasks in one bucket announce a little more than they need to.
const BUCKETS: u32 = 1024;

/// How long to wait before a lost connection is tried again.
const RECONNECT_INTERVAL: Duration = Duration::from_millis(500);

/// A task that is watched.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct WatchedTask(OrganizationId, TaskId);

impl WatchedTask {
    /// The payload of its announcement: the organization, a space, the id.
    fn payload(&self) -> String {
        format!("{} {}", self.0, self.1)
    }
}

/// The bucket of a task, the same in every instance and version.
pub(in crate::store) fn bucket(organization: OrganizationId, id: &TaskId) -> i32 {
    // FNV-1a, written out so that it can never change.
    let hash = format!("{organization} {id}")
        .bytes()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    i32::try_from(hash % BUCKETS).expect("a small number")
}

/// The watch on one task. Dropping it ends it.
pub struct Watch {
    task: WatchedTask,
    wake: Arc<Notify>,
    commands: mpsc::UnboundedSender<WatchCommand>,
}

impl Watch {
    /// Returns when the task may have changed since the last return.
    pub async fn changed(&self) {
        self.wake.notified().await;
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.commands.send(WatchCommand::Unwatch(self.task.clone(), self.wake.clone()));
    }
}

/// Creates watches, and wakes them when a write announces their task. It connects with the first
/// watch.
#[derive(Clone)]
pub(in crate::store) struct ChangeNotifier {
    options: PgConnectOptions,
    commands: Arc<OnceLock<mpsc::UnboundedSender<WatchCommand>>>,
}

impl ChangeNotifier {
    pub(in crate::store) fn new(options: PgConnectOptions) -> Self {
        let options = options.application_name(APPLICATION_NAME);
        Self { options, commands: Arc::default() }
    }

    /// Watches a task. A commit after this returns wakes the watch; earlier ones can be read.
    pub(in crate::store) async fn watch(
        &self,
        organization: OrganizationId,
        id: &TaskId,
    ) -> Result<Watch, StoreError> {
        let commands = self.commands.get_or_init(|| {
            let (sender, receiver) = mpsc::unbounded_channel();
            let listener = Listener {
                options: self.options.clone(),
                watchers: HashMap::new(),
                buckets: HashMap::new(),
                connection: None,
            };
            tokio::spawn(listener.run(receiver));
            sender
        });
        let stopped = || StoreError::Unavailable("the listener has stopped".to_owned());
        let watch = Watch {
            task: WatchedTask(organization, id.clone()),
            wake: Arc::default(),
            commands: commands.clone(),
        };
        let (responder, response) = oneshot::channel();
        let command = WatchCommand::Watch(watch.task.clone(), watch.wake.clone(), responder);
        commands.send(command).map_err(|_| stopped())?;
        response.await.map_err(|_| stopped())??;
        Ok(watch)
    }
}

enum WatchCommand {
    Watch(WatchedTask, Arc<Notify>, oneshot::Sender<Result<(), StoreError>>),
    Unwatch(WatchedTask, Arc<Notify>),
}

/// The task that holds the listening connection for all watches.
struct Listener {
    options: PgConnectOptions,
    /// The watches of each task, by the payload that announces it.
    watchers: HashMap<String, Vec<Arc<Notify>>>,
    /// How many watches each bucket has.
    buckets: HashMap<i32, usize>,
    /// A connection that listens and holds the lock of every bucket above. `None` without watches,
    /// or while it is lost.
    connection: Option<PgListener>,
}

impl Listener {
    async fn run(mut self, mut commands: mpsc::UnboundedReceiver<WatchCommand>) {
        loop {
            let is_lost = self.connection.is_none() && !self.watchers.is_empty();
            tokio::select! {
                command = commands.recv() => match command {
                    Some(WatchCommand::Watch(task, wake, responder)) => {
                        let _ = responder.send(self.add(&task, wake).await);
                    }
                    Some(WatchCommand::Unwatch(task, wake)) => self.remove(&task, &wake).await,
                    None => return,
                },
                payload = next_payload(&mut self.connection) => match payload {
                    Some(payload) => self.wake(&payload),
                    None => self.connection = None,
                },
                () = tokio::time::sleep(RECONNECT_INTERVAL), if is_lost => match self
                    .connect()
                    .await
                {
                    Ok(()) => self.watchers.values().flatten().for_each(|wake| wake.notify_one()),
                    Err(error) => {
                        tracing::warn!(%error, "failed to listen for changes, trying again");
                    }
                },
            }
        }
    }

    async fn add(&mut self, task: &WatchedTask, wake: Arc<Notify>) -> Result<(), StoreError> {
        let bucket = bucket(task.0, &task.1);
        *self.buckets.entry(bucket).or_default() += 1;
        self.watchers.entry(task.payload()).or_default().push(wake.clone());
        let locked = match &mut self.connection {
            // Also if the bucket is locked already: each watch releases its own lock.
            Some(connection) => lock(connection, &[bucket]).await,
            None => self.connect().await,
        };
        if locked.is_err() {
            self.remove(task, &wake).await;
        }
        locked
    }

    async fn remove(&mut self, task: &WatchedTask, wake: &Arc<Notify>) {
        let payload = task.payload();
        let Some(watchers) = self.watchers.get_mut(&payload) else { return };
        let Some(index) = watchers.iter().position(|other| Arc::ptr_eq(other, wake)) else {
            return;
        };
        watchers.swap_remove(index);
        if watchers.is_empty() {
            self.watchers.remove(&payload);
        }
        let bucket = bucket(task.0, &task.1);
        if let Some(count) = self.buckets.get_mut(&bucket) {
            *count -= 1;
            if *count == 0 {
                self.buckets.remove(&bucket);
            }
        }
        if self.watchers.is_empty() {
            self.connection = None;
        } else if let Some(connection) = &mut self.connection
            && let Err(error) = unlock(connection, bucket).await
        {
            tracing::warn!(%error, "lost the listening connection");
            self.connection = None;
        }
    }

    fn wake(&self, payload: &str) {
        for wake in self.watchers.get(payload).into_iter().flatten() {
            wake.notify_one();
        }
    }

    /// Listens, and locks every bucket that is watched.
    async fn connect(&mut self) -> Result<(), StoreError> {
        self.connection = None;
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .idle_timeout(None)
            .max_lifetime(None)
            .connect_with(self.options.clone())
            .await?;
        let mut connection = PgListener::connect_with(&pool).await?;
        connection.eager_reconnect(false);
        connection.listen(CHANNEL).await?;
        // A bucket is locked once for each watch, so that each watch can release its own lock.
        let buckets: Vec<_> = self
            .buckets
            .iter()
            .flat_map(|(bucket, count)| std::iter::repeat_n(*bucket, *count))
            .collect();
        lock(&mut connection, &buckets).await?;
        self.connection = Some(connection);
        Ok(())
    }
}

/// The payload of the next announcement; `None` if the connection is lost. Pending without one.
async fn next_payload(connection: &mut Option<PgListener>) -> Option<String> {
    let Some(connection) = connection else { return std::future::pending().await };
    match connection.try_recv().await {
        Ok(notification) => notification.map(|notification| notification.payload().to_owned()),
        Err(error) => {
            tracing::warn!(%error, "lost the listening connection");
            None
        }
    }
}

/// Locks buckets, and waits for the transactions that tested for watchers before.
async fn lock(connection: &mut PgListener, buckets: &[i32]) -> Result<(), StoreError> {
    sqlx::query!(
        "SELECT count(pg_advisory_lock_shared($1, bucket)) FROM unnest($2::int[]) AS bucket",
        WATCHER_LOCK_CLASS,
        buckets
    )
    .fetch_one(&mut *connection)
    .await?;
    let mut groups: Vec<_> = buckets.iter().map(|bucket| bucket % WRITER_LOCK_GROUPS).collect();
    groups.sort_unstable();
    groups.dedup();
    // One after the other, each released before the next is requested. A transaction takes them in
    // its own order, which would deadlock with several held here.
    for group in groups {
        sqlx::query!("SELECT pg_advisory_xact_lock($1, $2)", WRITER_LOCK_CLASS, group)
            .fetch_one(&mut *connection)
            .await?;
    }
    Ok(())
}

async fn unlock(connection: &mut PgListener, bucket: i32) -> Result<(), StoreError> {
    sqlx::query!("SELECT pg_advisory_unlock_shared($1, $2)", WATCHER_LOCK_CLASS, bucket)
        .fetch_one(connection)
        .await?;
    Ok(())
}
