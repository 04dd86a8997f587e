//! Group commit: writes that arrive while others are being committed share the next transaction.
//!
//! A commit waits for the disk, whatever it commits. An idle queue therefore writes a single item
//! at once, and a busy one writes everything that has gathered meanwhile. Its rate is bound by
//! rows, not by commits. A caller hears of its item after the commit. [`WriteQueue`] says which
//! items share a batch.
//!
//! - An item that cannot be written fails alone: if a statement fails, the items of its batch are
//!   written one by one.
//! - A task that another transaction has locked delays its own items only. They are put back into
//!   the queue, and the others of the batch go on.
//! - An item is also written if its caller no longer waits.
//! - An item that has waited for [`Limits::write_timeout`] is refused, and so is one that finds the
//!   queue full. Nothing of it is written.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::update::locked_among;
use super::write_queue::{QueuedBatch, QueuedItem, WriteQueue};
use crate::domain::{Limits, OrganizationId, TaskId};
use crate::store::StoreError;
use crate::store::heartbeat::Heartbeat;
use crate::store::pool::Pool;

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
    /// returns their outputs, in their order. If it fails, none of them is written, except after
    /// [`StoreError::OutcomeUnknown`].
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
    pool: Pool,
    heartbeat: Heartbeat,
    queue: Arc<Mutex<WriteQueue<Payload<B>>>>,
    max_delay: Duration,
    write_timeout: Duration,
}

/// A queued item, and where its result goes.
struct Payload<B: BatchWrite> {
    item: B::Item,
    responder: Responder<B>,
}

type Responder<B> = oneshot::Sender<Result<<B as BatchWrite>::Output, StoreError>>;

impl<B: BatchWrite> GroupCommit<B> {
    /// Writes with `write`. `pool` has the connections that batches are written on.
    pub(in crate::store) fn new(
        write: B,
        pool: Pool,
        heartbeat: &Heartbeat,
        limits: &Limits,
    ) -> Self {
        Self {
            write,
            pool,
            heartbeat: heartbeat.clone(),
            queue: Arc::default(),
            max_delay: limits.max_batch_delay,
            write_timeout: limits.write_timeout,
        }
    }

    /// Writes an item. It is committed when this returns. If the future is dropped before, the item
    /// may still be written.
    pub(in crate::store) async fn write(
        &self,
        organization: OrganizationId,
        item: B::Item,
    ) -> Result<B::Output, StoreError> {
        let task = self.write.task(&item).clone();
        let size = self.write.size(&item);
        let (responder, mut response) = oneshot::channel();
        let item = QueuedItem::new(task, size, Payload { item, responder });
        if !self.lock().push(organization, item) {
            return Err(StoreError::Unavailable("the write queue is full".to_owned()));
        }
        self.spawn_worker();
        let in_time = tokio::time::timeout(self.max_delay, &mut response).await;
        let response = if let Ok(response) = in_time {
            response
        } else {
            self.lock().set_late(organization);
            self.spawn_worker();
            response.await
        };
        let aborted = |_| StoreError::OutcomeUnknown("the write batch was aborted".to_owned());
        response.map_err(aborted)?
    }

    /// How long the oldest batch has been under way.
    pub(in crate::store) fn oldest_batch(&self) -> Option<Duration> {
        self.lock().oldest_in_flight().map(|started| started.elapsed())
    }

    fn lock(&self) -> MutexGuard<'_, WriteQueue<Payload<B>>> {
        // No code panics while it holds the lock, and the state would be consistent if it did.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a worker if a batch is ready. Each batch in flight has a worker.
    fn spawn_worker(&self) {
        let batch = {
            let mut queue = self.lock();
            if queue.is_ready() { queue.take(Instant::now()) } else { None }
        };
        if let Some(batch) = batch {
            tokio::spawn(self.clone().run_worker(batch));
        }
    }

    /// Writes batch after batch until no queued item can be written now. An item of a task that is
    /// in flight is left to the worker that writes that task.
    async fn run_worker(self, first: QueuedBatch<Payload<B>>) {
        let mut next = Some(first);
        while let Some(batch) = next {
            let ticket = batch.ticket();
            let organization = batch.organization;
            // In a task of its own, so that a panic ends this batch and not the worker.
            let locked = tokio::spawn(self.clone().write_batch(batch)).await.unwrap_or_default();
            let mut queue = self.lock();
            if !locked.is_empty() {
                let delay = queue.put_back(organization, locked, Instant::now());
                tokio::spawn(self.clone().retry_after(organization, delay));
            }
            queue.finish(&ticket);
            next = queue.take(Instant::now());
        }
    }

    async fn retry_after(self, organization: OrganizationId, delay: Duration) {
        tokio::time::sleep(delay).await;
        self.lock().set_late(organization);
        self.spawn_worker();
    }

    /// Writes a batch. Returns the items of which nothing was written because of a lock.
    async fn write_batch(self, batch: QueuedBatch<Payload<B>>) -> Vec<QueuedItem<Payload<B>>> {
        let organization = batch.organization;
        let is_late = |item: &QueuedItem<_>| item.queued_at.elapsed() >= self.write_timeout;
        let (late, items): (Vec<_>, Vec<_>) = batch.items.into_iter().partition(is_late);
        for item in late {
            let waited = format!("not written within {:?}", self.write_timeout);
            Place::of(item).1.respond(Err(StoreError::Unavailable(waited)));
        }
        let (mut locked, items) = self.split_locked(organization, items).await;
        if items.is_empty() {
            return locked;
        }
        let (items, places): (Vec<_>, Vec<_>) = items.into_iter().map(Place::of).unzip();
        let written = self.write.write(organization, &items).await;
        self.note(&written);
        match written {
            Ok(outputs) => {
                for (place, output) in places.into_iter().zip(outputs) {
                    place.respond(Ok(output));
                }
            }
            Err(StoreError::Locked(_)) => {
                locked.extend(places.into_iter().zip(items).map(Place::put_back));
            }
            // Either nobody knows whether the batch was committed, or an immediate retry fails.
            Err(StoreError::Unavailable(text)) => {
                for place in places {
                    place.respond(Err(StoreError::Unavailable(text.clone())));
                }
            }
            Err(StoreError::OutcomeUnknown(text)) => {
                for place in places {
                    place.respond(Err(StoreError::OutcomeUnknown(text.clone())));
                }
            }
            Err(error) if items.len() == 1 => {
                if let Some(place) = places.into_iter().next() {
                    place.respond(Err(error));
                }
            }
            Err(_) => {
                for (place, item) in places.into_iter().zip(items) {
                    match self.write.write(organization, std::slice::from_ref(&item)).await {
                        Err(StoreError::Locked(_)) => locked.push(Place::put_back((place, item))),
                        outputs => place.respond(outputs.map(|mut outputs| outputs.remove(0))),
                    }
                }
            }
        }
        locked
    }

    /// Splits off the items whose task another transaction has locked, if any of them came back.
    async fn split_locked(
        &self,
        organization: OrganizationId,
        items: Vec<QueuedItem<Payload<B>>>,
    ) -> (Vec<QueuedItem<Payload<B>>>, Vec<QueuedItem<Payload<B>>>) {
        if items.iter().all(|item| item.attempts == 0) {
            return (Vec::new(), items);
        }
        let ids: Vec<_> = items.iter().map(|item| item.task.clone()).collect();
        // If this fails, so does the batch, which says why.
        let locked =
            locked_among(self.pool.of(organization), organization, &ids).await.unwrap_or_default();
        items.into_iter().partition(|item| locked.contains(&item.task))
    }

    /// Tells the heartbeat whether the database takes writes.
    fn note(&self, written: &Result<Vec<B::Output>, StoreError>) {
        match written {
            Err(StoreError::Unavailable(text) | StoreError::OutcomeUnknown(text)) => {
                self.heartbeat.note_write(Some(text.clone()));
            }
            Err(StoreError::Locked(_)) => {}
            Ok(_) | Err(_) => self.heartbeat.note_write(None),
        }
    }
}

/// The place of an item in the queue, and its caller, while the item is being written.
struct Place<B: BatchWrite>(QueuedItem<Responder<B>>);

impl<B: BatchWrite> Place<B> {
    fn of(queued: QueuedItem<Payload<B>>) -> (B::Item, Self) {
        let (queued, Payload { item, responder }) = queued.split();
        (item, Self(queued.with(responder)))
    }

    fn put_back((place, item): (Self, B::Item)) -> QueuedItem<Payload<B>> {
        let (queued, responder) = place.0.split();
        queued.with(Payload { item, responder })
    }

    fn respond(self, result: Result<B::Output, StoreError>) {
        // A caller that no longer waits gets no response.
        let _ = self.0.payload.send(result);
    }
}
