//! Watching tasks, across all instances of the service on one database.
//!
//! A write announces its task with NOTIFY, but only if the task is watched: every NOTIFY makes the
//! committing transaction wait for the one before it. A watcher holds an advisory lock of the task.
//! A write tests whether that lock is held (`watched_tasks`, a function in the database); if it is,
//! the write stores the event and announces it. A new watcher waits for the transactions that
//! tested before it came, so it reads what they wrote. No event is missed in between, and an
//! unwatched write costs nothing.
//!
//! Announcements carry ids, never data. A lost connection is made again; then every watcher is
//! woken and reads its task.

use std::sync::Arc;

use sqlx::postgres::PgConnectOptions;
use tokio::sync::Notify;

use super::listener::{self, Shared};
use super::registry::WatchId;
use crate::domain::{Limits, OrganizationId, TaskId};
use crate::store::StoreError;

/// The watch on one task. Dropping it ends it.
pub struct Watch {
    id: WatchId,
    wake: Arc<Notify>,
    shared: Arc<Shared>,
}

impl Watch {
    /// Returns when the task may have changed since the last return.
    pub async fn changed(&self) {
        self.wake.notified().await;
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.registry().remove(self.id);
        self.shared.changed.notify_one();
    }
}

/// Creates watches, and wakes them when a write announces their task. It connects with the first
/// watch.
#[derive(Clone)]
pub(in crate::store) struct ChangeNotifier(Arc<Shared>);

impl ChangeNotifier {
    pub(in crate::store) fn new(options: PgConnectOptions, limits: &Limits) -> Self {
        Self(Arc::new(Shared::new(options, limits.clone())))
    }

    /// Watches a task. A commit after this returns wakes the watch; earlier ones can be read.
    pub(in crate::store) async fn watch(
        &self,
        organization: OrganizationId,
        id: &TaskId,
    ) -> Result<Watch, StoreError> {
        let shared = &self.0;
        let limit = shared.limits.max_watches_per_organization;
        let added = shared.registry().add(organization, id.clone(), limit);
        let (id, wake, has_begun) = added.ok_or(StoreError::TooManyWatches(limit))?;
        let watch = Watch { id, wake, shared: shared.clone() };
        if shared.registry().start_listening() {
            tokio::spawn(listener::run(shared.clone()));
        }
        shared.changed.notify_one();
        let timeout = shared.limits.watch_timeout;
        match tokio::time::timeout(timeout, has_begun).await {
            Ok(Ok(())) => Ok(watch),
            _ => Err(StoreError::Unavailable(format!(
                "the task could not be watched within {timeout:?}: a transaction that writes it \
                 has not ended, or there is no connection that listens for changes"
            ))),
        }
    }
}
