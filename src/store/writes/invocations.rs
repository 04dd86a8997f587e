//! Recording invocations.

use std::collections::HashMap;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use super::group_commit::BatchWrite;
use super::idempotency::{KeyedTurn, RecordedInvocation, find_recorded, insert_keys, lock_keys};
use super::new_turn::{NewInvocation, NewTurn};
use super::upsert::upsert_tasks;
use crate::domain::{OrganizationId, Task, TaskId};
use crate::store::pool::Pool;
use crate::store::{Store, StoreError};

/// Records invocations in batches.
#[derive(Clone)]
pub(in crate::store) struct InvocationBatches {
    pool: Pool,
    idempotency_ttl: TimeDelta,
}

impl InvocationBatches {
    pub(in crate::store) fn new(pool: Pool, idempotency_ttl: Duration) -> Self {
        let idempotency_ttl = TimeDelta::from_std(idempotency_ttl).unwrap_or(TimeDelta::MAX);
        Self { pool, idempotency_ttl }
    }

    /// Records invocations of which some have an idempotency key.
    async fn write_once(
        &self,
        organization: OrganizationId,
        items: &[NewTurn],
    ) -> Result<Vec<Recorded>, StoreError> {
        let now = items.iter().map(|item| item.now).max().unwrap_or_default();
        let expired_until =
            now.checked_sub_signed(self.idempotency_ttl).unwrap_or(DateTime::UNIX_EPOCH);
        let keyed: Vec<_> = items.iter().filter_map(KeyedTurn::new).collect();
        let mut transaction = self.pool.of(organization).begin().await?;
        lock_keys(&mut transaction, organization, &keyed).await?;
        let earlier = find_recorded(&mut transaction, organization, &keyed, expired_until).await?;
        let mut turns = Vec::new();
        let mut first_of = HashMap::new();
        let mut steps = Vec::with_capacity(items.len());
        for item in items {
            if let Some(keyed) = KeyedTurn::new(item) {
                let (key, idempotency) = (keyed.key(), keyed.idempotency);
                if let Some(earlier) = earlier.get(&key) {
                    steps.push(Step::Answer(earlier.answer_to(organization, &keyed)));
                    continue;
                }
                // The same request twice in one batch.
                if let Some((index, digest)) = first_of.get(&key) {
                    steps.push(if *digest == idempotency.digest {
                        Step::Repeat(*index)
                    } else {
                        Step::Answer(Err(StoreError::IdempotencyKeyReused))
                    });
                    continue;
                }
                first_of.insert(key, (turns.len(), idempotency.digest));
            }
            steps.push(Step::Record(turns.len()));
            turns.push(item);
        }
        let tasks = upsert_tasks(&mut transaction, organization, &turns).await?;
        let recorded: Vec<_> = turns
            .iter()
            .zip(&tasks)
            .filter_map(|(turn, task)| Some((KeyedTurn::new(turn)?, task.as_ref()?)))
            .collect();
        if !recorded.is_empty() {
            insert_keys(&mut transaction, organization, &recorded, expired_until).await?;
        }
        transaction.commit().await?;
        let outputs = steps.into_iter().map(|step| match step {
            Step::Answer(answer) => answer,
            Step::Record(index) => recorded_task(tasks[index].clone()),
            Step::Repeat(index) => match recorded_task(tasks[index].clone())? {
                RecordedInvocation::New(task) => Ok(RecordedInvocation::Replayed(task)),
                other => Ok(other),
            },
        });
        Ok(outputs.collect())
    }
}

/// How an item of a batch is answered.
enum Step {
    /// With what was recorded earlier.
    Answer(Recorded),
    /// With the turn of this index, which it is.
    Record(usize),
    /// With the turn of this index, which is of the same request.
    Repeat(usize),
}

type Recorded = Result<RecordedInvocation, StoreError>;

/// `None` if the task belongs to another agent.
fn recorded_task(task: Option<Task>) -> Recorded {
    let task = task.ok_or(StoreError::TaskOfAnotherAgent)?;
    Ok(RecordedInvocation::New(Box::new(task)))
}

impl BatchWrite for InvocationBatches {
    type Item = NewTurn;
    type Output = Recorded;

    fn task<'a>(&self, item: &'a NewTurn) -> &'a TaskId {
        &item.invocation.id
    }

    fn size(&self, item: &NewTurn) -> usize {
        item.size()
    }

    async fn write(
        &self,
        organization: OrganizationId,
        items: &[NewTurn],
    ) -> Result<Vec<Recorded>, StoreError> {
        if items.iter().any(|item| item.idempotency.is_some()) {
            // Boxed: the arguments of its statements would make the future of every batch large.
            return Box::pin(self.write_once(organization, items)).await;
        }
        let turns: Vec<_> = items.iter().collect();
        let tasks =
            upsert_tasks(self.pool.of(organization).autocommit(), organization, &turns).await?;
        Ok(tasks.into_iter().map(recorded_task).collect())
    }
}

impl Store {
    /// Records an invocation: a new task, or the next turn of the task with its id; with an
    /// idempotency key only once, even if it is sent several times. Committed when this returns.
    ///
    /// The task keeps its first `created_at`, and the first user, parent and triggering agent that
    /// a turn named. Everything else becomes the new turn's.
    pub async fn record_invocation(
        &self,
        organization: OrganizationId,
        invocation: impl Into<NewInvocation>,
        now: DateTime<Utc>,
    ) -> Result<RecordedInvocation, StoreError> {
        self.invocations.write(organization, NewTurn::new(invocation.into(), now)).await?
    }
}
