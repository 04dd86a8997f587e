//! Recording what runners report about a task's latest turn, and what they push.

use chrono::{DateTime, Utc};

use super::group_commit::BatchWrite;
use super::statements::{NewEventRow, insert_event, lock_tasks, update_tasks, watched_among};
use crate::domain::{EventKind, NewEvent, OrganizationId, Report, Task, TaskId};
use crate::store::pool::Pool;
use crate::store::tasks::fetch_tasks;
use crate::store::{Store, StoreError};

/// An update of a task's latest turn.
pub(in crate::store) struct TaskUpdate {
    task: TaskId,
    kind: UpdateKind,
    now: DateTime<Utc>,
}

enum UpdateKind {
    Report(Box<Report>),
    Stop,
}

impl TaskUpdate {
    /// Updates the task. Returns whether there is anything to write.
    fn apply(&self, task: &mut Task) -> bool {
        match &self.kind {
            UpdateKind::Report(report) => {
                task.apply(report.as_ref().clone(), self.now);
                true
            }
            UpdateKind::Stop => task.stop(self.now),
        }
    }
}

/// Records updates in batches.
#[derive(Clone)]
pub(in crate::store) struct UpdateBatches {
    pool: Pool,
}

impl UpdateBatches {
    pub(in crate::store) fn new(pool: Pool) -> Self {
        Self { pool }
    }
}

impl BatchWrite for UpdateBatches {
    type Item = TaskUpdate;
    /// `None` if the organization has no such task.
    type Output = Option<Task>;

    fn task<'a>(&self, item: &'a TaskUpdate) -> &'a TaskId {
        &item.task
    }

    fn size(&self, item: &TaskUpdate) -> usize {
        match &item.kind {
            UpdateKind::Report(report) => report.size(),
            UpdateKind::Stop => 0,
        }
    }

    async fn write(
        &self,
        organization: OrganizationId,
        items: &[TaskUpdate],
    ) -> Result<Vec<Option<Task>>, StoreError> {
        let mut transaction = self.pool.begin().await?;
        let ids: Vec<_> = items.iter().map(|item| item.task.clone()).collect();
        let locked = lock_tasks(&mut transaction, organization, &ids).await?;
        let watched = watched_among(&mut transaction, organization, &locked).await?;
        // Read after locking: a statement sees only turns that were committed before it began, and
        // new turns may have been committed while the first statement waited for the locks.
        let mut tasks = fetch_tasks(&mut transaction, organization, &ids).await?;
        let mut updated = Vec::with_capacity(tasks.len());
        for item in items {
            if let Some(task) = tasks.get_mut(&item.task)
                && item.apply(task)
            {
                task.events += 1;
                updated.push(&item.task);
            }
        }
        let updated: Vec<_> = updated.into_iter().filter_map(|id| tasks.get(id)).collect();
        update_tasks(&mut transaction, organization, &updated).await?;
        for task in updated.into_iter().filter(|task| watched.contains(&task.summary.id)) {
            let kind = EventKind::Reported(task.turn.state.clone());
            let event = NewEventRow {
                number: task.events,
                turn: task.turn.number,
                kind: kind.as_str(),
                data: &kind.data(),
                created_at: task.summary.updated_at,
            };
            insert_event(&mut transaction, organization, &task.summary.id, event).await?;
        }
        transaction.commit().await?;
        Ok(items.iter().map(|item| tasks.remove(&item.task)).collect())
    }
}

impl Store {
    /// Records a report about a task's latest turn, and returns the task as it is then. Committed
    /// when this returns.
    pub async fn record_report(
        &self,
        organization: OrganizationId,
        id: &TaskId,
        report: Report,
        now: DateTime<Utc>,
    ) -> Result<Task, StoreError> {
        let kind = UpdateKind::Report(Box::new(report));
        let update = TaskUpdate { task: id.clone(), kind, now };
        self.updates.write(organization, update).await?.ok_or(StoreError::TaskNotFound)
    }

    /// Stops a task's latest turn for a person, unless it has ended, and returns the task as it is
    /// then. Committed when this returns.
    pub async fn stop_task(
        &self,
        organization: OrganizationId,
        id: &TaskId,
        now: DateTime<Utc>,
    ) -> Result<Task, StoreError> {
        let update = TaskUpdate { task: id.clone(), kind: UpdateKind::Stop, now };
        self.updates.write(organization, update).await?.ok_or(StoreError::TaskNotFound)
    }

    /// Records, in order, the events that a runner pushes about a task's latest turn. Committed
    /// when this returns.
    pub async fn record_events(
        &self,
        organization: OrganizationId,
        id: &TaskId,
        events: &[NewEvent],
        now: DateTime<Utc>,
    ) -> Result<(), StoreError> {
        let mut transaction = self.pool.begin().await?;
        let locked = lock_tasks(&mut transaction, organization, std::slice::from_ref(id)).await?;
        // Only to wait for a new watcher: pushed events are always stored.
        watched_among(&mut transaction, organization, &locked).await?;
        let last = sqlx::query!(
            r#"
            UPDATE tasks SET events = events + $3
            WHERE organization_id = $1 AND id = $2
            RETURNING events, turns
            "#,
            organization as OrganizationId,
            id as &TaskId,
            i64::try_from(events.len()).unwrap_or(i64::MAX)
        )
        .fetch_optional(&mut *transaction)
        .await?;
        let Some(last) = last else {
            transaction.rollback().await?;
            return Err(StoreError::TaskNotFound);
        };
        for (number, event) in (1..=last.events).rev().zip(events.iter().rev()) {
            let event = NewEventRow {
                number,
                turn: last.turns,
                kind: event.kind.as_str(),
                data: &event.data.to_string(),
                created_at: now,
            };
            insert_event(&mut transaction, organization, id, event).await?;
        }
        transaction.commit().await?;
        Ok(())
    }
}
