//! Group commit: writes that arrive while others are being committed are written together, in one transaction.
//!
//! A commit waits for the disk, whatever it commits. So an idle writer writes a single item at once, and a busy one writes
//! all that has gathered meanwhile: what it can write is bound by rows, not by commits. Whoever hands an item in hears
//! of it after its commit.
//!
//! - While a batch is being written, the next is not begun before as much waits for it as that one has: what costs a
//!   transaction is then shared by many, also where writers come one by one after they have heard of their last write. It
//!   waits for a batch of its own organisation only, and for a moment only: that batch may be held up.
//! - Items of one task are written in the order in which they came, never two of them at once.
//! - A batch is of one organisation.
//! - An item that can't be written fails alone: where a statement fails, the items of its batch are written one by one.
//! - An item is written also if whoever handed it in has gone.
//! - The queue is bounded. Where it is full, an item is refused at once, and nothing of it is written.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use super::StoreError;
use crate::domain::{OrganizationId, TaskId};

/// How many batches are written at the same time: while one waits for the disk, the next is prepared.
const WORKERS: usize = 2;

/// Most items in a batch.
const MAX_BATCH: usize = 256;

/// Most bytes in a batch, unless a single item has more.
const MAX_BATCH_BYTES: usize = 2 << 20;

/// How long an item may wait for others to share its batch.
const PATIENCE: Duration = Duration::from_millis(50);

/// Most items that wait.
const MAX_WAITING: usize = 4096;

/// Most bytes that wait.
const MAX_WAITING_BYTES: usize = 16 << 20;

/// What a writer writes, and how.
pub(super) trait Write: Clone + Send + Sync + 'static {
    /// Something to write, about one task.
    type Item: Send + Sync + 'static;
    /// What comes of it.
    type Outcome: Send + 'static;

    /// The task that an item is about.
    fn task<'a>(&self, item: &'a Self::Item) -> &'a TaskId;

    /// How many bytes an item has, about.
    fn size(&self, item: &Self::Item) -> usize;

    /// Writes items, each about another task, in one transaction. They are committed when this returns their outcomes, in
    /// their order; none of them is written where it fails.
    fn write(
        &self,
        organization: OrganizationId,
        items: &[Self::Item],
    ) -> impl Future<Output = Result<Vec<Self::Outcome>, StoreError>> + Send;
}

/// Writes items in batches. Cheap to clone.
#[derive(Clone)]
pub(super) struct Writer<W: Write> {
    write: W,
    state: Arc<Mutex<State<W>>>,
}

struct State<W: Write> {
    waiting: VecDeque<Waiting<W>>,
    waiting_bytes: usize,
    /// Tasks that a batch is being written of.
    busy: HashSet<(OrganizationId, TaskId)>,
    workers: usize,
    /// Whether an item has waited long enough.
    is_late: bool,
}

impl<W: Write> State<W> {
    /// Whether enough waits for another batch of the organisation that has waited longest, or for long enough.
    fn has_a_batch(&self) -> bool {
        let Some(first) = self.waiting.front() else { return false };
        // Every item that is being written has a task of its own.
        let writing =
            || self.busy.iter().filter(|(organization, _)| *organization == first.organization).count();
        self.is_late
            || self.waiting_bytes >= MAX_BATCH_BYTES
            || self.waiting.len() >= writing().min(MAX_BATCH)
    }
}

/// An item that waits.
struct Waiting<W: Write> {
    organization: OrganizationId,
    item: W::Item,
    size: usize,
    reply: Reply<W>,
}

type Reply<W> = oneshot::Sender<Result<<W as Write>::Outcome, StoreError>>;

/// Items that are written together.
struct Batch<W: Write> {
    organization: OrganizationId,
    items: Vec<W::Item>,
    replies: Vec<Reply<W>>,
}

impl<W: Write> Writer<W> {
    pub(super) fn new(write: W) -> Self {
        let state = State {
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            busy: HashSet::new(),
            workers: 0,
            is_late: false,
        };
        Self { write, state: Arc::new(Mutex::new(state)) }
    }

    /// Writes an item. It is committed when this returns; if this is dropped before, it may be written all the same.
    pub(super) async fn write(
        &self,
        organization: OrganizationId,
        item: W::Item,
    ) -> Result<W::Outcome, StoreError> {
        let size = self.write.size(&item);
        let (reply, mut outcome) = oneshot::channel();
        {
            let mut state = self.lock();
            let is_full = state.waiting.len() >= MAX_WAITING
                || (state.waiting_bytes + size > MAX_WAITING_BYTES && !state.waiting.is_empty());
            if is_full {
                return Err(StoreError::Unavailable("too many writes are waiting".to_owned()));
            }
            state.waiting_bytes += size;
            state.waiting.push_back(Waiting { organization, item, size, reply });
            self.begin(&mut state);
        }
        let outcome = if let Ok(outcome) = tokio::time::timeout(PATIENCE, &mut outcome).await {
            outcome
        } else {
            {
                let mut state = self.lock();
                state.is_late = true;
                self.begin(&mut state);
            }
            outcome.await
        };
        let gone = |_| StoreError::Unavailable("a batch of writes came to no end".to_owned());
        outcome.map_err(gone)?
    }

    /// Begins another batch, if there is one and somebody to write it.
    fn begin(&self, state: &mut State<W>) {
        if state.workers < WORKERS && state.has_a_batch() {
            state.workers += 1;
            tokio::spawn(self.clone().work());
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<W>> {
        // Nothing in there panics, and what is there would be whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes batch after batch until nothing waits that could be written now; what waits for a task that is being written
    /// is left to the worker that writes it.
    async fn work(self) {
        loop {
            let Some(batch) = self.take() else { return };
            let busy: Vec<_> =
                batch.items.iter().map(|item| (batch.organization, self.write.task(item).clone())).collect();
            // On a task of its own, so that a panic ends this batch and not the worker.
            let _ = tokio::spawn(write_batch(self.write.clone(), batch)).await;
            let mut state = self.lock();
            for key in &busy {
                state.busy.remove(key);
            }
        }
    }

    /// Takes the next batch: of the organisation that has waited longest. Without one, the worker is dismissed, under the
    /// same lock as new items come in, so none is left without a worker.
    fn take(&self) -> Option<Batch<W>> {
        let mut state = self.lock();
        let state = &mut *state;
        let has_a_batch = state.has_a_batch();
        state.is_late = false;
        if !has_a_batch {
            state.workers -= 1;
            return None;
        }
        let mut batch: Option<Batch<W>> = None;
        let mut bytes = 0;
        let mut left = VecDeque::with_capacity(state.waiting.len());
        // Tasks of which an item has been left, so that none that came later overtakes it.
        let mut passed = HashSet::new();
        for waiting in std::mem::take(&mut state.waiting) {
            let key = (waiting.organization, self.write.task(&waiting.item).clone());
            let fits = batch.as_ref().is_none_or(|batch| {
                batch.organization == waiting.organization
                    && batch.items.len() < MAX_BATCH
                    && bytes + waiting.size <= MAX_BATCH_BYTES
            });
            if !fits || passed.contains(&key) || state.busy.contains(&key) {
                passed.insert(key);
                left.push_back(waiting);
                continue;
            }
            state.busy.insert(key);
            bytes += waiting.size;
            let batch = batch.get_or_insert_with(|| Batch {
                organization: waiting.organization,
                items: Vec::new(),
                replies: Vec::new(),
            });
            batch.items.push(waiting.item);
            batch.replies.push(waiting.reply);
        }
        state.waiting = left;
        state.waiting_bytes -= bytes;
        if batch.is_none() {
            state.workers -= 1;
        }
        batch
    }
}

async fn write_batch<W: Write>(write: W, batch: Batch<W>) {
    let Batch { organization, items, replies } = batch;
    match write.write(organization, &items).await {
        Ok(outcomes) => {
            for (reply, outcome) in replies.into_iter().zip(outcomes) {
                // Whoever has gone does not hear of it.
                let _ = reply.send(Ok(outcome));
            }
        }
        // Whether it was committed is not known, or trying again at once would fail again.
        Err(StoreError::Unavailable(text)) => {
            for reply in replies {
                let _ = reply.send(Err(StoreError::Unavailable(text.clone())));
            }
        }
        Err(error) if items.len() == 1 => {
            if let Some(reply) = replies.into_iter().next() {
                let _ = reply.send(Err(error));
            }
        }
        Err(_) => {
            for (item, reply) in items.iter().zip(replies) {
                let outcome = write.write(organization, std::slice::from_ref(item)).await;
                let _ = reply.send(outcome.map(|mut outcomes| outcomes.remove(0)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone)]
    struct Sizes;

    impl Write for Sizes {
        type Item = (TaskId, usize);
        type Outcome = ();

        fn task<'a>(&self, item: &'a Self::Item) -> &'a TaskId {
            &item.0
        }

        fn size(&self, item: &Self::Item) -> usize {
            item.1
        }

        async fn write(&self, _: OrganizationId, items: &[Self::Item]) -> Result<Vec<()>, StoreError> {
            Ok(vec![(); items.len()])
        }
    }

    /// A writer whose one worker has nothing to do, and some items of tasks that wait.
    fn writer_with(organization: OrganizationId, items: &[(&str, usize)]) -> Writer<Sizes> {
        let writer = Writer::new(Sizes);
        for (task, size) in items {
            push(&writer, organization, task, *size);
        }
        writer.lock().workers = 1;
        writer
    }

    fn push(writer: &Writer<Sizes>, organization: OrganizationId, task: &str, size: usize) {
        let item = (TaskId::parse(task).expect("an id"), size);
        let (reply, _) = oneshot::channel();
        let mut state = writer.lock();
        state.waiting_bytes += size;
        state.waiting.push_back(Waiting { organization, item, size, reply });
    }

    #[test]
    fn a_second_batch_waits_until_it_is_as_large_as_the_first() {
        let organization = OrganizationId::generate();
        let writer = writer_with(organization, &[("a", 0), ("b", 0), ("c", 0)]);
        assert_eq!(writer.take().map(|batch| batch.items.len()), Some(3), "an idle writer begins at once");
        for (task, taken) in [("d", None), ("e", None), ("f", Some(3))] {
            push(&writer, organization, task, 0);
            writer.lock().workers = 2;
            assert_eq!(writer.take().map(|batch| batch.items.len()), taken, "{task}");
        }
    }

    #[test]
    fn nobody_waits_for_another_organization_for_a_large_item_or_for_long() {
        let organization = OrganizationId::generate();
        let busy = || {
            let writer = writer_with(organization, &[("a", 0), ("b", 0), ("c", 0)]);
            assert!(writer.take().is_some());
            writer.lock().workers = 2;
            writer
        };
        let other = busy();
        push(&other, OrganizationId::generate(), "d", 0);
        assert!(other.take().is_some(), "another organisation's");
        let large = busy();
        push(&large, organization, "d", MAX_BATCH_BYTES);
        assert!(large.take().is_some(), "a large item");
        let late = busy();
        push(&late, organization, "d", 0);
        late.lock().is_late = true;
        assert!(late.take().is_some(), "a late item");
        push(&late, organization, "e", 0);
        assert!(late.take().is_none(), "the next has time again");
    }

    #[test]
    fn a_later_item_of_a_task_does_not_overtake_an_earlier_one() {
        let organization = OrganizationId::generate();
        let items = [("a", MAX_BATCH_BYTES), ("b", MAX_BATCH_BYTES), ("b", 0), ("c", 0)];
        let writer = writer_with(organization, &items);
        let mut taken = Vec::new();
        while let Some(batch) = writer.take() {
            let tasks: Vec<_> =
                batch.items.iter().map(|(task, size)| format!("{task} {}", *size > 0)).collect();
            writer.lock().busy.clear();
            taken.push(tasks);
        }
        assert_eq!(taken, [vec!["a true", "c false"], vec!["b true"], vec!["b false"]]);
    }
}
