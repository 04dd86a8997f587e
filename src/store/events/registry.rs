//! The watches of this process, and what the listener still has to do for each.
//!
//! Watches come and go here, without the database and without the listener. The listener works
//! through what it finds here, so nothing that it waits for delays a watch that needs nothing.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use tokio::sync::{Notify, oneshot};

use crate::domain::{OrganizationId, TaskId};

/// Most locks of single tasks that one organization has. Its further watches lock the whole
/// organization, whose writes then all pay for an announcement.
const MAX_TASK_LOCKS_PER_ORGANIZATION: usize = 256;

/// Most locks of single tasks in this process. Each may take a place in the server's lock table,
/// which has 6,400 with PostgreSQL's defaults, for all its sessions.
const MAX_TASK_LOCKS: usize = 1024;

/// The bits of a lock's key that tell tasks of one organization apart (`watch_key`).
const TASK_BITS: u32 = 10;

/// A watch in the registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct WatchId(pub(super) i64);

/// What the lock of a watch covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) organization: OrganizationId,
    pub(super) task: TaskId,
    /// Whether the lock is the organization's, not the task's.
    pub(super) is_whole_organization: bool,
}

/// A lock that a writer holds until its transaction ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct WriterLock {
    pub(super) key: i32,
    pub(super) transaction: String,
}

struct Entry {
    target: Target,
    wake: Arc<Notify>,
    state: LockState,
    /// Told once that the watch has begun.
    begun: Option<oneshot::Sender<()>>,
}

enum LockState {
    Unlocked,
    /// Locked with this key. The transactions that tested for watchers before are waited for:
    /// `None` until they were read.
    Waiting(i32, Option<HashSet<String>>),
    Watching,
}

#[derive(Default)]
struct OrganizationCounts {
    watches: usize,
    task_locks: usize,
}

/// All watches of this process.
#[derive(Default)]
pub(super) struct Registry {
    last: i64,
    watches: HashMap<WatchId, Entry>,
    by_payload: HashMap<String, Vec<WatchId>>,
    counts: HashMap<OrganizationId, OrganizationCounts>,
    task_locks: usize,
    /// Locks of watches that have ended.
    released: Vec<Target>,
    /// Whether a listener runs.
    is_listening: bool,
}

/// The payload that announces a task: the organization, a space, the id.
fn payload(target: &Target) -> String {
    format!("{} {}", target.organization, target.task)
}

impl Registry {
    /// Adds a watch. `None` if the organization has `limit` watches.
    pub(super) fn add(
        &mut self,
        organization: OrganizationId,
        task: TaskId,
        limit: usize,
    ) -> Option<(WatchId, Arc<Notify>, oneshot::Receiver<()>)> {
        let counts = self.counts.entry(organization).or_default();
        if counts.watches >= limit {
            return None;
        }
        let is_whole_organization = counts.task_locks >= MAX_TASK_LOCKS_PER_ORGANIZATION
            || self.task_locks >= MAX_TASK_LOCKS;
        counts.watches += 1;
        if !is_whole_organization {
            counts.task_locks += 1;
            self.task_locks += 1;
        }
        self.last += 1;
        let id = WatchId(self.last);
        let target = Target { organization, task, is_whole_organization };
        self.by_payload.entry(payload(&target)).or_default().push(id);
        let (begun, has_begun) = oneshot::channel();
        let wake = Arc::<Notify>::default();
        let state = LockState::Unlocked;
        self.watches.insert(id, Entry { target, wake: wake.clone(), state, begun: Some(begun) });
        Some((id, wake, has_begun))
    }

    /// Removes a watch. The listener releases its lock.
    pub(super) fn remove(&mut self, id: WatchId) {
        let Some(entry) = self.watches.remove(&id) else { return };
        let payload = payload(&entry.target);
        if let Some(ids) = self.by_payload.get_mut(&payload) {
            ids.retain(|other| *other != id);
            if ids.is_empty() {
                self.by_payload.remove(&payload);
            }
        }
        let organization = entry.target.organization;
        if let Some(counts) = self.counts.get_mut(&organization) {
            counts.watches -= 1;
            if !entry.target.is_whole_organization {
                counts.task_locks -= 1;
                self.task_locks -= 1;
            }
            if counts.watches == 0 {
                self.counts.remove(&organization);
            }
        }
        if !matches!(entry.state, LockState::Unlocked) {
            self.released.push(entry.target);
        }
    }

    /// Whether the caller has to start a listener.
    pub(super) fn start_listening(&mut self) -> bool {
        !std::mem::replace(&mut self.is_listening, true)
    }

    /// Whether there is nothing to listen for. Then the listener has to end.
    pub(super) fn stop_listening(&mut self) -> bool {
        self.is_listening = !self.watches.is_empty();
        !self.is_listening
    }

    /// Wakes the watches of an announced task.
    pub(super) fn wake(&self, payload: &str) {
        for id in self.by_payload.get(payload).into_iter().flatten() {
            self.watches[id].wake.notify_one();
        }
    }

    /// Wakes all watches.
    pub(super) fn wake_all(&self) {
        self.watches.values().for_each(|entry| entry.wake.notify_one());
    }

    /// The session is lost, and all its locks with it.
    pub(super) fn unlock_all(&mut self) {
        self.released.clear();
        self.watches.values_mut().for_each(|entry| entry.state = LockState::Unlocked);
    }

    /// The locks to release.
    pub(super) fn take_released(&mut self) -> Vec<Target> {
        std::mem::take(&mut self.released)
    }

    /// The watches that have no lock yet, older ones first.
    pub(super) fn unlocked(&self) -> Vec<(WatchId, Target)> {
        let mut unlocked: Vec<_> = self
            .watches
            .iter()
            .filter(|(_, entry)| matches!(entry.state, LockState::Unlocked))
            .map(|(id, entry)| (*id, entry.target.clone()))
            .collect();
        unlocked.sort_unstable_by_key(|(id, _)| *id);
        unlocked
    }

    /// A watch has its lock. If the watch has ended meanwhile, the lock is released.
    pub(super) fn lock(&mut self, id: WatchId, target: Target, key: i32) {
        match self.watches.get_mut(&id) {
            Some(entry) => entry.state = LockState::Waiting(key, None),
            None => self.released.push(target),
        }
    }

    /// Whether a watch waits for earlier writers.
    pub(super) fn is_waiting(&self) -> bool {
        self.watches.values().any(|entry| matches!(entry.state, LockState::Waiting(..)))
    }

    /// Whether the listener has to look again soon.
    pub(super) fn is_pending(&self) -> bool {
        let is_watching = |entry: &Entry| matches!(entry.state, LockState::Watching);
        !self.released.is_empty() || !self.watches.values().all(is_watching)
    }

    /// Takes the locks that writers hold now. A watch begins when all that held a lock of its task
    /// after the watch was locked are gone. Later writers know of the watch.
    pub(super) fn settle(&mut self, held: &[WriterLock]) {
        for entry in self.watches.values_mut() {
            let LockState::Waiting(key, writers) = &mut entry.state else { continue };
            let shift = if entry.target.is_whole_organization { TASK_BITS } else { 0 };
            let holders = held
                .iter()
                .filter(|lock| lock.key >> shift == *key >> shift)
                .map(|lock| &lock.transaction);
            let writers = match writers.take() {
                None => holders.cloned().collect(),
                Some(before) => {
                    holders.filter(|holder| before.contains(*holder)).cloned().collect()
                }
            };
            if HashSet::<String>::is_empty(&writers) {
                entry.state = LockState::Watching;
                match entry.begun.take() {
                    // A watch that was dropped at this moment is removed next.
                    Some(begun) => drop(begun.send(())),
                    None => entry.wake.notify_one(),
                }
            } else {
                entry.state = LockState::Waiting(*key, Some(writers));
            }
        }
    }
}
