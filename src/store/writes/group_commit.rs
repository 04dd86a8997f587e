//! Group commit: writes that arrive while others are being committed share the next transaction.
//!
//! A commit waits for the disk, whatever it commits. An idle queue therefore writes a single item
//! at once, and a busy one writes everything that has gathered meanwhile. Its rate is bound by
//! rows, not by commits. A caller hears of its item after the commit.
//!
//! - The next batch starts once it is at least as large as the one in flight. The cost of a
//!   transaction is then shared by many items, also if callers send one item after another. Only
//!   batches of the same organization count, and only for [`Limits::max_batch_delay`]: the batch in
//!   flight may wait for a lock.
//! - Items of one task are written in the order in which they came, never two at the same time.
//! - A batch belongs to one organization.
//! - An item that cannot be written fails alone: if a statement fails, the items of its batch are
//!   written one by one.
//! - An item is also written if its caller no longer waits.
//! - The queue is bounded. If it is full, an item is refused at once and nothing of it is written.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use crate::domain::{Limits, OrganizationId, TaskId};
use crate::store::StoreError;

/// Most batches in flight: while one waits for the disk, the next is prepared.
const WORKERS: usize = 2;

/// Most items in a batch.
const MAX_BATCH_ITEMS: usize = 256;

/// Most bytes in a batch, unless a single item has more.
const MAX_BATCH_BYTES: usize = 2 << 20;

/// Most items in the queue.
const MAX_QUEUED_ITEMS: usize = 4096;

/// Most bytes in the queue.
const MAX_QUEUED_BYTES: usize = 16 << 20;

/// Writes that can share a transaction.
pub(in crate::store) trait BatchWrite: Clone + Send + Sync + 'static {
    /// One write, about one task.
    type Item: Send + Sync + 'static;
    /// Its result.
    type Output: Send + 'static;

    /// The task that an item is about.
    fn task<'a>(&self, item: &'a Self::Item) -> &'a TaskId;

    /// The approximate size of an item in bytes.
    fn size(&self, item: &Self::Item) -> usize;

    /// Writes items, each about another task, in one transaction. They are committed when this
    /// returns their outputs, in their order. If it fails, none of them is written.
    fn write(
        &self,
        organization: OrganizationId,
        items: &[Self::Item],
    ) -> impl Future<Output = Result<Vec<Self::Output>, StoreError>> + Send;
}

/// Writes items in batches. Cheap to clone.
#[derive(Clone)]
pub(in crate::store) struct GroupCommit<B: BatchWrite> {
    write: B,
    queue: Arc<Mutex<QueueState<B>>>,
    max_delay: Duration,
}

struct QueueState<B: BatchWrite> {
    queued: VecDeque<QueuedWrite<B>>,
    queued_bytes: usize,
    /// The tasks of the batches in flight. Each item in flight has another task.
    in_flight: HashSet<(OrganizationId, TaskId)>,
    workers: usize,
    /// Whether an item has waited for the maximal delay.
    is_late: bool,
}

impl<B: BatchWrite> QueueState<B> {
    /// Whether the next batch, of the organization that has waited longest, may start.
    fn batch_is_ready(&self) -> bool {
        let Some(first) = self.queued.front() else { return false };
        let in_flight = || {
            let organizations = self.in_flight.iter().map(|(organization, _)| organization);
            organizations.filter(|organization| **organization == first.organization).count()
        };
        self.is_late
            || self.queued_bytes >= MAX_BATCH_BYTES
            || self.queued.len() >= in_flight().min(MAX_BATCH_ITEMS)
    }
}

struct QueuedWrite<B: BatchWrite> {
    organization: OrganizationId,
    item: B::Item,
    size: usize,
    responder: Responder<B>,
}

type Responder<B> = oneshot::Sender<Result<<B as BatchWrite>::Output, StoreError>>;

/// Items that are written together.
struct WriteBatch<B: BatchWrite> {
    organization: OrganizationId,
    items: Vec<B::Item>,
    responders: Vec<Responder<B>>,
}

impl<B: BatchWrite> GroupCommit<B> {
    pub(in crate::store) fn new(write: B, limits: &Limits) -> Self {
        let state = QueueState {
            queued: VecDeque::new(),
            queued_bytes: 0,
            in_flight: HashSet::new(),
            workers: 0,
            is_late: false,
        };
        Self { write, queue: Arc::new(Mutex::new(state)), max_delay: limits.max_batch_delay }
    }

    /// Writes an item. It is committed when this returns. If the future is dropped before, the item
    /// may still be written.
    pub(in crate::store) async fn write(
        &self,
        organization: OrganizationId,
        item: B::Item,
    ) -> Result<B::Output, StoreError> {
        let size = self.write.size(&item);
        let (responder, mut response) = oneshot::channel();
        {
            let mut state = self.lock();
            let is_full = state.queued.len() >= MAX_QUEUED_ITEMS
                || (state.queued_bytes + size > MAX_QUEUED_BYTES && !state.queued.is_empty());
            if is_full {
                return Err(StoreError::Unavailable("the write queue is full".to_owned()));
            }
            state.queued_bytes += size;
            state.queued.push_back(QueuedWrite { organization, item, size, responder });
            self.spawn_worker(&mut state);
        }
        let in_time = tokio::time::timeout(self.max_delay, &mut response).await;
        let response = if let Ok(response) = in_time {
            response
        } else {
            {
                let mut state = self.lock();
                state.is_late = true;
                self.spawn_worker(&mut state);
            }
            response.await
        };
        let aborted = |_| StoreError::Unavailable("the write batch was aborted".to_owned());
        response.map_err(aborted)?
    }

    /// Starts a worker if a batch is ready and not all workers run.
    fn spawn_worker(&self, state: &mut QueueState<B>) {
        if state.workers < WORKERS && state.batch_is_ready() {
            state.workers += 1;
            tokio::spawn(self.clone().run_worker());
        }
    }

    fn lock(&self) -> MutexGuard<'_, QueueState<B>> {
        // No code panics while it holds the lock, and the state would be consistent if it did.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes batch after batch until no queued item can be written now. An item of a task that is
    /// in flight is left to the worker that writes that task.
    async fn run_worker(self) {
        loop {
            let Some(batch) = self.take_batch() else { return };
            let key = |item| (batch.organization, self.write.task(item).clone());
            let written: Vec<_> = batch.items.iter().map(key).collect();
            // In a task of its own, so that a panic ends this batch and not the worker.
            let _ = tokio::spawn(write_batch(self.write.clone(), batch)).await;
            let mut state = self.lock();
            for key in &written {
                state.in_flight.remove(key);
            }
        }
    }

    /// Takes the next batch, of the organization that has waited longest.
    ///
    /// Without a batch, the worker is counted out under the lock under which items are queued, so
    /// no item is left without a worker.
    fn take_batch(&self) -> Option<WriteBatch<B>> {
        let mut state = self.lock();
        let state = &mut *state;
        let is_ready = state.batch_is_ready();
        state.is_late = false;
        if !is_ready {
            state.workers -= 1;
            return None;
        }
        let mut batch: Option<WriteBatch<B>> = None;
        let mut bytes = 0;
        let mut remaining = VecDeque::with_capacity(state.queued.len());
        // Tasks with an item that remains, so that no later item of theirs overtakes it.
        let mut skipped = HashSet::new();
        for queued in std::mem::take(&mut state.queued) {
            let key = (queued.organization, self.write.task(&queued.item).clone());
            let fits = batch.as_ref().is_none_or(|batch| {
                batch.organization == queued.organization
                    && batch.items.len() < MAX_BATCH_ITEMS
                    && bytes + queued.size <= MAX_BATCH_BYTES
            });
            if !fits || skipped.contains(&key) || state.in_flight.contains(&key) {
                skipped.insert(key);
                remaining.push_back(queued);
                continue;
            }
            state.in_flight.insert(key);
            bytes += queued.size;
            let batch = batch.get_or_insert_with(|| WriteBatch {
                organization: queued.organization,
                items: Vec::new(),
                responders: Vec::new(),
            });
            batch.items.push(queued.item);
            batch.responders.push(queued.responder);
        }
        state.queued = remaining;
        state.queued_bytes -= bytes;
        if batch.is_none() {
            state.workers -= 1;
        }
        batch
    }
}

async fn write_batch<B: BatchWrite>(write: B, batch: WriteBatch<B>) {
    let WriteBatch { organization, items, responders } = batch;
    match write.write(organization, &items).await {
        Ok(outputs) => {
            for (responder, output) in responders.into_iter().zip(outputs) {
                // A caller that no longer waits gets no response.
                let _ = responder.send(Ok(output));
            }
        }
        // Either it is not known whether the batch was committed, or an immediate retry would fail.
        Err(StoreError::Unavailable(text)) => {
            for responder in responders {
                let _ = responder.send(Err(StoreError::Unavailable(text.clone())));
            }
        }
        Err(error) if items.len() == 1 => {
            if let Some(responder) = responders.into_iter().next() {
                let _ = responder.send(Err(error));
            }
        }
        Err(_) => {
            for (item, responder) in items.iter().zip(responders) {
                let outputs = write.write(organization, std::slice::from_ref(item)).await;
                let _ = responder.send(outputs.map(|mut outputs| outputs.remove(0)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use chrono::{DateTime, Utc};

    use super::*;

    #[derive(Clone)]
    struct Sizes;

    impl BatchWrite for Sizes {
        type Item = (TaskId, usize);
        type Output = ();

        fn task<'a>(&self, item: &'a Self::Item) -> &'a TaskId {
            &item.0
        }

        fn size(&self, item: &Self::Item) -> usize {
            item.1
        }

        async fn write(
            &self,
            _: OrganizationId,
            items: &[Self::Item],
        ) -> Result<Vec<()>, StoreError> {
            Ok(vec![(); items.len()])
        }
    }

    /// A queue with one idle worker and some queued items.
    fn queue_with(organization: OrganizationId, items: &[(&str, usize)]) -> GroupCommit<Sizes> {
        let queue = GroupCommit::new(Sizes, &Limits::default());
        for (task, size) in items {
            push(&queue, organization, task, *size);
        }
        queue.lock().workers = 1;
        queue
    }

    fn push(queue: &GroupCommit<Sizes>, organization: OrganizationId, task: &str, size: usize) {
        let item = (TaskId::parse(task).expect("an id"), size);
        let (responder, _) = oneshot::channel();
        let mut state = queue.lock();
        state.queued_bytes += size;
        state.queued.push_back(QueuedWrite { organization, item, size, responder });
    }

    #[test]
    fn a_second_batch_waits_until_it_is_as_large_as_the_first() {
        let organization = OrganizationId::generate(DateTime::<Utc>::UNIX_EPOCH);
        let queue = queue_with(organization, &[("a", 0), ("b", 0), ("c", 0)]);
        assert_eq!(
            queue.take_batch().map(|batch| batch.items.len()),
            Some(3),
            "an idle queue writes at once"
        );
        for (task, taken) in [("d", None), ("e", None), ("f", Some(3))] {
            push(&queue, organization, task, 0);
            queue.lock().workers = 2;
            assert_eq!(queue.take_batch().map(|batch| batch.items.len()), taken, "{task}");
        }
    }

    #[test]
    fn no_item_waits_for_another_organization_for_a_large_item_or_for_long() {
        let organization = OrganizationId::generate(DateTime::<Utc>::UNIX_EPOCH);
        let busy = || {
            let queue = queue_with(organization, &[("a", 0), ("b", 0), ("c", 0)]);
            assert!(queue.take_batch().is_some());
            queue.lock().workers = 2;
            queue
        };
        let other = busy();
        push(&other, OrganizationId::generate(DateTime::<Utc>::UNIX_EPOCH), "d", 0);
        assert!(other.take_batch().is_some(), "an item of another organization");
        let large = busy();
        push(&large, organization, "d", MAX_BATCH_BYTES);
        assert!(large.take_batch().is_some(), "a large item");
        let late = busy();
        push(&late, organization, "d", 0);
        late.lock().is_late = true;
        assert!(late.take_batch().is_some(), "a late item");
        push(&late, organization, "e", 0);
        assert!(late.take_batch().is_none(), "the next item may wait again");
    }

    #[test]
    fn a_later_item_of_a_task_does_not_overtake_an_earlier_one() {
        let organization = OrganizationId::generate(DateTime::<Utc>::UNIX_EPOCH);
        let items = [("a", MAX_BATCH_BYTES), ("b", MAX_BATCH_BYTES), ("b", 0), ("c", 0)];
        let queue = queue_with(organization, &items);
        let mut taken = Vec::new();
        while let Some(batch) = queue.take_batch() {
            let tasks: Vec<_> =
                batch.items.iter().map(|(task, size)| format!("{task} {}", *size > 0)).collect();
            queue.lock().in_flight.clear();
            taken.push(tasks);
        }
        assert_eq!(taken, [vec!["a true", "c false"], vec!["b true"], vec!["b false"]]);
    }
}
