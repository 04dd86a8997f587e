//! Watching tasks, across all instances of the service on one database.
//!
//! A writer tells PostgreSQL's NOTIFY which task has changed, but only where somebody watches: announcing a change that
//! nobody hears would make every commit wait for every other. Who watches holds an advisory lock on the task's bucket,
//! and a writer looks whether there is one (`watched_buckets`, a function of the database). If there is, it writes the event
//! down and announces it. A new watcher waits for the writers who looked before it came, so that it sees what they
//! wrote. Nothing is missed in between, and nothing is paid where nobody watches.
//!
//! Announcements carry ids, never data. A lost connection is made again; then everybody looks at their tasks again.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use tokio::sync::{Notify, mpsc, oneshot};

use super::StoreError;
use crate::domain::{OrganizationId, TaskId};

/// The NOTIFY channel.
pub(super) const CHANNEL: &str = "task_history";

/// First half of the key of the locks that watchers hold. `watched_buckets` has it too.
const WATCHED: i32 = 29_800;

/// First half of the key of the locks that writers hold once they have looked for watchers.
const LOOKED: i32 = 29_801;

/// How many of those there are.
const LOOKED_GROUPS: i32 = 64;

/// How many buckets tasks fall into. Each watched one costs a place in the server's lock table, and two tasks in one
/// bucket announce a little more than they need to.
const BUCKETS: u32 = 1024;

/// How long to wait before a lost connection is tried again.
const RECONNECT_INTERVAL: Duration = Duration::from_millis(500);

/// A task of an organisation.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key(OrganizationId, TaskId);

impl Key {
    /// The text that announces it: the organisation, a space, the id.
    fn announcement(&self) -> String {
        format!("{} {}", self.0, self.1)
    }
}

/// The bucket of a task: the same in every instance, whatever it was built with.
pub(super) fn bucket(organization: OrganizationId, id: &TaskId) -> i32 {
    // FNV-1a: short, and written down once for ever.
    let hash = format!("{organization} {id}")
        .bytes()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    i32::try_from(hash % BUCKETS).expect("a small number")
}

/// The watch on one task; dropping it ends it.
pub struct Watch {
    key: Key,
    wake: Arc<Notify>,
    commands: mpsc::UnboundedSender<Command>,
}

impl Watch {
    /// Returns when the task may have changed since this returned last.
    pub async fn changed(&self) {
        self.wake.notified().await;
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.commands.send(Command::Unwatch(self.key.clone(), self.wake.clone()));
    }
}

/// Hands out watches. Costs nothing until the first.
#[derive(Clone)]
pub(super) struct Hub {
    options: PgConnectOptions,
    commands: Arc<OnceLock<mpsc::UnboundedSender<Command>>>,
}

impl Hub {
    pub(super) fn new(options: PgConnectOptions) -> Self {
        Self { options, commands: Arc::default() }
    }

    /// Watches a task. What is committed after this returns wakes the watch; what was before can be read.
    pub(super) async fn watch(&self, organization: OrganizationId, id: &TaskId) -> Result<Watch, StoreError> {
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
        let gone = || StoreError::Unavailable("the listener has ended".to_owned());
        let watch =
            Watch { key: Key(organization, id.clone()), wake: Arc::default(), commands: commands.clone() };
        let (done, is_done) = oneshot::channel();
        let command = Command::Watch(watch.key.clone(), watch.wake.clone(), done);
        commands.send(command).map_err(|_| gone())?;
        is_done.await.map_err(|_| gone())??;
        Ok(watch)
    }
}

enum Command {
    Watch(Key, Arc<Notify>, oneshot::Sender<Result<(), StoreError>>),
    Unwatch(Key, Arc<Notify>),
}

/// The one task that talks to the server on behalf of all watches.
struct Listener {
    options: PgConnectOptions,
    watchers: HashMap<String, Vec<Arc<Notify>>>,
    /// How many watches there are on tasks of a bucket.
    buckets: HashMap<i32, usize>,
    /// A connection that listens and holds the lock of every bucket above; `None` where nobody watches, or while it is
    /// lost.
    connection: Option<PgListener>,
}

impl Listener {
    async fn run(mut self, mut commands: mpsc::UnboundedReceiver<Command>) {
        loop {
            let is_lost = self.connection.is_none() && !self.watchers.is_empty();
            tokio::select! {
                command = commands.recv() => match command {
                    Some(Command::Watch(key, wake, done)) => {
                        let _ = done.send(self.add(&key, wake).await);
                    }
                    Some(Command::Unwatch(key, wake)) => self.remove(&key, &wake).await,
                    None => return,
                },
                announced = next_announcement(&mut self.connection) => match announced {
                    Some(announcement) => self.wake(&announcement),
                    None => self.connection = None,
                },
                () = tokio::time::sleep(RECONNECT_INTERVAL), if is_lost => match self.connect().await {
                    Ok(()) => self.watchers.values().flatten().for_each(|wake| wake.notify_one()),
                    Err(error) => tracing::warn!(%error, "can't listen for changes, trying again"),
                },
            }
        }
    }

    async fn add(&mut self, key: &Key, wake: Arc<Notify>) -> Result<(), StoreError> {
        let bucket = bucket(key.0, &key.1);
        *self.buckets.entry(bucket).or_default() += 1;
        self.watchers.entry(key.announcement()).or_default().push(wake.clone());
        let locked = match &mut self.connection {
            // Also where the bucket is locked already: each watch undoes its own, and the lock may be as new as this.
            Some(connection) => lock(connection, &[bucket]).await,
            None => self.connect().await,
        };
        if locked.is_err() {
            self.remove(key, &wake).await;
        }
        locked
    }

    async fn remove(&mut self, key: &Key, wake: &Arc<Notify>) {
        let announcement = key.announcement();
        let Some(watchers) = self.watchers.get_mut(&announcement) else { return };
        let Some(at) = watchers.iter().position(|other| Arc::ptr_eq(other, wake)) else { return };
        watchers.swap_remove(at);
        if watchers.is_empty() {
            self.watchers.remove(&announcement);
        }
        let bucket = bucket(key.0, &key.1);
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
            tracing::warn!(%error, "lost the connection that listens for changes");
            self.connection = None;
        }
    }

    fn wake(&self, announcement: &str) {
        for wake in self.watchers.get(announcement).into_iter().flatten() {
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
        // A bucket is locked as many times as it is watched, so that each end of a watch can undo one.
        let buckets: Vec<_> =
            self.buckets.iter().flat_map(|(bucket, count)| std::iter::repeat_n(*bucket, *count)).collect();
        lock(&mut connection, &buckets).await?;
        self.connection = Some(connection);
        Ok(())
    }
}

/// The next announcement; `None` where the connection is lost. Waits for ever where there is none.
async fn next_announcement(connection: &mut Option<PgListener>) -> Option<String> {
    let Some(connection) = connection else { return std::future::pending().await };
    match connection.try_recv().await {
        Ok(notification) => notification.map(|notification| notification.payload().to_owned()),
        Err(error) => {
            tracing::warn!(%error, "lost the connection that listens for changes");
            None
        }
    }
}

/// Locks buckets, and waits for the writers who looked before.
async fn lock(connection: &mut PgListener, buckets: &[i32]) -> Result<(), StoreError> {
    sqlx::query!(
        "SELECT count(pg_advisory_lock_shared($1, bucket)) FROM unnest($2::int[]) AS bucket",
        WATCHED,
        buckets
    )
    .fetch_one(&mut *connection)
    .await?;
    let mut groups: Vec<_> = buckets.iter().map(|bucket| bucket % LOOKED_GROUPS).collect();
    groups.sort_unstable();
    groups.dedup();
    // One after the other, each let go before the next is waited for: a writer takes them in its own order, and would
    // otherwise wait for this while this waits for it.
    for looked in groups {
        sqlx::query!("SELECT pg_advisory_xact_lock($1, $2)", LOOKED, looked)
            .fetch_one(&mut *connection)
            .await?;
    }
    Ok(())
}

async fn unlock(connection: &mut PgListener, bucket: i32) -> Result<(), StoreError> {
    sqlx::query!("SELECT pg_advisory_unlock_shared($1, $2)", WATCHED, bucket).fetch_one(connection).await?;
    Ok(())
}
