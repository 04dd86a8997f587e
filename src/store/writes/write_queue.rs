//! The queue of a group commit: fair between organizations, bounded in bytes, in order for each
//! task.
//!
//! - Each organization has a queue and a share of the batches in flight. Organizations take turns.
//! - The next batch of an organization starts once it is at least as large as the one in flight, or
//!   once an item has waited for [`Limits::max_batch_delay`](crate::domain::Limits). The cost of a
//!   transaction is then shared by many items, also if callers send one item after another.
//! - Items of one task are taken in the order in which they came, never two at the same time.
//! - An item that comes back (another transaction has locked its task) waits a little. The other
//!   items go on without it.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use crate::domain::{OrganizationId, TaskId};

/// Most batches in flight: while one waits for the disk, the next is prepared.
pub(in crate::store) const MAX_BATCHES: usize = 4;

/// Most batches in flight of one organization.
const MAX_ORGANIZATION_BATCHES: usize = 2;

/// Most items in a batch.
const MAX_BATCH_ITEMS: usize = 256;

/// Most bytes in a batch, unless a single item has more.
const MAX_BATCH_BYTES: usize = 2 << 20;

/// Most queued items of one organization.
const MAX_ORGANIZATION_ITEMS: usize = 4096;

/// Most queued bytes of one organization.
const MAX_ORGANIZATION_BYTES: usize = 16 << 20;

/// Most queued bytes of all organizations. Beyond, each may still queue one item.
const MAX_BYTES: usize = 64 << 20;

/// How often an item is taken together with others. Whatever locks its task, it then no longer
/// delays them.
const MAX_SHARED_ATTEMPTS: u32 = 3;

/// How long an item waits that came back once. It waits longer each time.
const RETRY_DELAY: Duration = Duration::from_millis(50);

/// Longest time until an item that came back is taken again.
const MAX_RETRY_DELAY: Duration = Duration::from_millis(500);

/// An item in the queue.
pub(super) struct QueuedItem<P> {
    pub(super) task: TaskId,
    /// Its approximate size in bytes.
    pub(super) size: usize,
    pub(super) queued_at: Instant,
    /// How often it was taken and came back.
    pub(super) attempts: u32,
    /// When it may be taken again, if it came back.
    not_before: Option<Instant>,
    pub(super) payload: P,
}

impl<P> QueuedItem<P> {
    pub(super) fn new(task: TaskId, size: usize, payload: P) -> Self {
        Self { task, size, queued_at: Instant::now(), attempts: 0, not_before: None, payload }
    }

    /// Takes the payload out.
    pub(super) fn split(self) -> (QueuedItem<()>, P) {
        let Self { task, size, queued_at, attempts, not_before, payload } = self;
        (QueuedItem { task, size, queued_at, attempts, not_before, payload: () }, payload)
    }
}

impl QueuedItem<()> {
    /// Puts a payload in.
    pub(super) fn with<P>(self, payload: P) -> QueuedItem<P> {
        let Self { task, size, queued_at, attempts, not_before, payload: () } = self;
        QueuedItem { task, size, queued_at, attempts, not_before, payload }
    }
}

/// Items of one organization, each of another task, that are written together.
pub(super) struct QueuedBatch<P> {
    pub(super) organization: OrganizationId,
    pub(super) items: Vec<QueuedItem<P>>,
    pub(super) started: Instant,
}

/// What finishes a batch once its items are written or put back.
pub(super) struct BatchTicket {
    organization: OrganizationId,
    tasks: Vec<TaskId>,
    started: Instant,
}

impl<P> QueuedBatch<P> {
    pub(super) fn ticket(&self) -> BatchTicket {
        let tasks = self.items.iter().map(|item| item.task.clone()).collect();
        BatchTicket { organization: self.organization, tasks, started: self.started }
    }
}

/// All organizations' queues.
pub(super) struct WriteQueue<P> {
    organizations: HashMap<OrganizationId, OrganizationQueue<P>>,
    /// The organizations that have items, the one whose turn is next first.
    order: VecDeque<OrganizationId>,
    bytes: usize,
    /// When the batches in flight were started.
    in_flight: Vec<Instant>,
}

struct OrganizationQueue<P> {
    items: VecDeque<QueuedItem<P>>,
    bytes: usize,
    /// The tasks of the batches in flight.
    tasks_in_flight: HashSet<TaskId>,
    batches_in_flight: usize,
    /// Whether an item has waited for the maximal delay.
    is_late: bool,
}

impl<P> Default for OrganizationQueue<P> {
    fn default() -> Self {
        Self {
            items: VecDeque::new(),
            bytes: 0,
            tasks_in_flight: HashSet::new(),
            batches_in_flight: 0,
            is_late: false,
        }
    }
}

impl<P> OrganizationQueue<P> {
    /// Whether the next batch may start.
    fn is_ready(&self) -> bool {
        let in_flight = self.tasks_in_flight.len().min(MAX_BATCH_ITEMS);
        self.batches_in_flight < MAX_ORGANIZATION_BATCHES
            && !self.items.is_empty()
            && (self.is_late || self.bytes >= MAX_BATCH_BYTES || self.items.len() >= in_flight)
    }

    /// Takes the items of the next batch; none if all of them wait for a task.
    fn take(&mut self, now: Instant) -> Vec<QueuedItem<P>> {
        self.is_late = false;
        let mut taken: Vec<QueuedItem<P>> = Vec::new();
        let mut bytes = 0;
        let mut remaining = VecDeque::with_capacity(self.items.len());
        // Tasks with an item that remains, so that no later item of theirs overtakes it.
        let mut skipped = HashSet::new();
        for item in std::mem::take(&mut self.items) {
            let is_alone = item.attempts > MAX_SHARED_ATTEMPTS;
            let fits = taken.first().is_none_or(|first| {
                !is_alone
                    && first.attempts <= MAX_SHARED_ATTEMPTS
                    && taken.len() < MAX_BATCH_ITEMS
                    && bytes + item.size <= MAX_BATCH_BYTES
            });
            if !fits
                || item.not_before.is_some_and(|time| time > now)
                || self.tasks_in_flight.contains(&item.task)
                || skipped.contains(&item.task)
            {
                skipped.insert(item.task.clone());
                remaining.push_back(item);
                continue;
            }
            self.tasks_in_flight.insert(item.task.clone());
            bytes += item.size;
            taken.push(item);
        }
        self.items = remaining;
        self.bytes -= bytes;
        taken
    }
}

impl<P> Default for WriteQueue<P> {
    fn default() -> Self {
        let (organizations, order) = (HashMap::new(), VecDeque::new());
        Self { organizations, order, bytes: 0, in_flight: Vec::new() }
    }
}

impl<P> WriteQueue<P> {
    /// Queues an item; `false` if there is no room for it.
    pub(super) fn push(&mut self, organization: OrganizationId, item: QueuedItem<P>) -> bool {
        let queue = self.organizations.entry(organization).or_default();
        let is_full = queue.items.len() >= MAX_ORGANIZATION_ITEMS
            || queue.bytes + item.size > MAX_ORGANIZATION_BYTES
            || self.bytes + item.size > MAX_BYTES;
        if is_full && !queue.items.is_empty() {
            return false;
        }
        if queue.items.is_empty() {
            self.order.push_back(organization);
        }
        self.bytes += item.size;
        queue.bytes += item.size;
        queue.items.push_back(item);
        true
    }

    /// Puts items back that could not be written, before all that came later. Returns when they
    /// may be taken again.
    pub(super) fn put_back(
        &mut self,
        organization: OrganizationId,
        items: Vec<QueuedItem<P>>,
        now: Instant,
    ) -> Duration {
        let queue = self.organizations.entry(organization).or_default();
        if queue.items.is_empty() && !items.is_empty() {
            self.order.push_back(organization);
        }
        let mut wait = MAX_RETRY_DELAY;
        for mut item in items.into_iter().rev() {
            // The first attempt may have failed because of another item.
            let delay = (RETRY_DELAY * item.attempts).min(MAX_RETRY_DELAY);
            wait = wait.min(delay);
            item.attempts += 1;
            item.not_before = Some(now + delay);
            self.bytes += item.size;
            queue.bytes += item.size;
            queue.items.push_front(item);
        }
        wait
    }

    /// Notes that an item of an organization has waited for the maximal delay.
    pub(super) fn set_late(&mut self, organization: OrganizationId) {
        if let Some(queue) = self.organizations.get_mut(&organization) {
            queue.is_late = true;
        }
    }

    /// Whether a batch may start.
    pub(super) fn is_ready(&self) -> bool {
        self.in_flight.len() < MAX_BATCHES
            && self.organizations.values().any(OrganizationQueue::is_ready)
    }

    /// Takes the next batch, of the organization whose turn it is.
    pub(super) fn take(&mut self, now: Instant) -> Option<QueuedBatch<P>> {
        if self.in_flight.len() >= MAX_BATCHES {
            return None;
        }
        for _ in 0..self.order.len() {
            let organization = self.order.pop_front()?;
            let Some(queue) = self.organizations.get_mut(&organization) else { continue };
            let items = if queue.is_ready() { queue.take(now) } else { Vec::new() };
            if !queue.items.is_empty() {
                self.order.push_back(organization);
            }
            if items.is_empty() {
                continue;
            }
            queue.batches_in_flight += 1;
            self.bytes -= items.iter().map(|item| item.size).sum::<usize>();
            self.in_flight.push(now);
            return Some(QueuedBatch { organization, items, started: now });
        }
        None
    }

    /// Notes that a batch is no longer in flight.
    pub(super) fn finish(&mut self, ticket: &BatchTicket) {
        if let Some(index) = self.in_flight.iter().position(|started| *started == ticket.started) {
            self.in_flight.swap_remove(index);
        }
        let Some(queue) = self.organizations.get_mut(&ticket.organization) else { return };
        queue.batches_in_flight -= 1;
        for task in &ticket.tasks {
            queue.tasks_in_flight.remove(task);
        }
        if queue.items.is_empty() && queue.batches_in_flight == 0 {
            self.organizations.remove(&ticket.organization);
        }
    }

    /// When the oldest batch in flight was started.
    pub(super) fn oldest_in_flight(&self) -> Option<Instant> {
        self.in_flight.iter().min().copied()
    }
}

#[cfg(test)]
mod tests {
    use chrono::{DateTime, Utc};

    use super::*;

    fn organization() -> OrganizationId {
        OrganizationId::generate(DateTime::<Utc>::UNIX_EPOCH)
    }

    fn item(task: &str, size: usize) -> QueuedItem<()> {
        QueuedItem::new(TaskId::parse(task).expect("an id"), size, ())
    }

    fn queue_with(organization: OrganizationId, items: &[(&str, usize)]) -> WriteQueue<()> {
        let mut queue = WriteQueue::default();
        for (task, size) in items {
            assert!(queue.push(organization, item(task, *size)));
        }
        queue
    }

    fn take(queue: &mut WriteQueue<()>) -> Option<Vec<String>> {
        let batch = queue.take(Instant::now())?;
        Some(batch.items.iter().map(|item| item.task.to_string()).collect())
    }

    #[test]
    fn a_second_batch_waits_until_it_is_as_large_as_the_first() {
        let organization = organization();
        let mut queue = queue_with(organization, &[("a", 0), ("b", 0), ("c", 0)]);
        let taken = take(&mut queue).map(|tasks| tasks.len());
        assert_eq!(taken, Some(3), "an idle queue writes at once");
        for (task, taken) in [("d", None), ("e", None), ("f", Some(3))] {
            queue.push(organization, item(task, 0));
            assert_eq!(take(&mut queue).map(|tasks| tasks.len()), taken, "{task}");
        }
    }

    #[test]
    fn no_item_waits_for_a_large_item_or_for_long() {
        let organization = organization();
        let busy = || {
            let mut queue = queue_with(organization, &[("a", 0), ("b", 0), ("c", 0)]);
            assert!(take(&mut queue).is_some());
            queue
        };
        let mut large = busy();
        large.push(organization, item("d", MAX_BATCH_BYTES));
        assert!(take(&mut large).is_some(), "a large item");
        let mut late = busy();
        late.push(organization, item("d", 0));
        assert!(!late.is_ready());
        late.set_late(organization);
        assert!(late.is_ready());
        assert!(take(&mut late).is_some(), "a late item");
    }

    #[test]
    fn an_organization_has_its_share_whatever_another_sends() {
        let (busy, quiet) = (organization(), organization());
        let mut queue = WriteQueue::default();
        let mut refused = false;
        for n in 0..10_000 {
            refused |= !queue.push(busy, item(&n.to_string(), MAX_BATCH_BYTES));
        }
        assert!(refused, "the queue is bounded");
        let mut batches = 0;
        while take(&mut queue).is_some() {
            batches += 1;
        }
        assert_eq!(batches, MAX_ORGANIZATION_BATCHES);
        assert!(queue.push(quiet, item("q", 0)));
        assert_eq!(take(&mut queue), Some(vec!["q".to_owned()]), "a place is left for others");
    }

    #[test]
    fn a_later_item_of_a_task_does_not_overtake_an_earlier_one() {
        let organization = organization();
        let items = [("a", MAX_BATCH_BYTES), ("b", MAX_BATCH_BYTES), ("b", 0), ("c", 0)];
        let mut queue = queue_with(organization, &items);
        let mut taken = Vec::new();
        while let Some(batch) = queue.take(Instant::now()) {
            let tasks: Vec<_> =
                batch.items.iter().map(|i| format!("{} {}", i.task, i.size > 0)).collect();
            queue.finish(&batch.ticket());
            taken.push(tasks);
        }
        assert_eq!(taken, [vec!["a true", "c false"], vec!["b true"], vec!["b false"]]);
        assert!(queue.organizations.is_empty(), "nothing is kept of an idle organization");
    }

    #[test]
    fn an_item_that_comes_back_waits_alone_and_keeps_its_place() {
        let organization = organization();
        let mut queue = queue_with(organization, &[("a", 1), ("b", 1)]);
        let mut now = Instant::now();
        for attempt in 0..5 {
            let mut batch = queue.take(now).expect("a batch");
            queue.push(organization, item("a", 2));
            let expected = if attempt > MAX_SHARED_ATTEMPTS { 1 } else { 2 };
            assert_eq!(batch.items.len(), expected, "attempt {attempt}");
            queue.finish(&batch.ticket());
            batch.items.truncate(1);
            let wait = queue.put_back(organization, batch.items, now);
            assert_eq!(wait, RETRY_DELAY * attempt);
            queue.push(organization, item(&attempt.to_string(), 1));
            now += wait;
        }
        let batch = queue.take(now).expect("a batch");
        assert_eq!((batch.items[0].task.as_str(), batch.items[0].size), ("a", 1));
    }
}
