//! Deleting tasks, in parts.

use chrono::{DateTime, Utc};

use crate::domain::{OrganizationId, TaskId};
use crate::store::writes::lock_tasks;
use crate::store::{Store, StoreError};

/// Most tasks that are deleted in one transaction. Their locks, and that on the counts of the
/// organization, are held as long.
const MAX_BATCH_TASKS: usize = 200;

/// How many sub-tasks are read at once. The statement's LIMIT has the same number.
const PAGE: usize = 500;

/// Most tasks on the path that wait for the deletion of their sub-tasks, beyond one for each level
/// of the tree.
const MAX_PATH: usize = 10_000;

/// How often sub-tasks that were added meanwhile are looked for.
const MAX_ROUNDS: usize = 10;

/// A task whose sub-tasks are being deleted.
struct Level {
    task: TaskId,
    /// The last sub-task that was seen.
    cursor: Option<(DateTime<Utc>, TaskId)>,
    /// Whether all of them were seen.
    is_complete: bool,
}

impl Level {
    fn new(task: TaskId) -> Self {
        Self { task, cursor: None, is_complete: false }
    }
}

/// A sub-task, as read on the way.
struct SubTask {
    id: TaskId,
    created_at: DateTime<Utc>,
    has_sub_tasks: bool,
}

/// A deletion under way.
struct Deletion<'s> {
    store: &'s Store,
    organization: OrganizationId,
    root: &'s TaskId,
    /// From the root to the task whose sub-tasks are read next.
    path: Vec<Level>,
    /// Tasks to delete, none with a sub-task that is not deleted with it or before it.
    batch: Vec<TaskId>,
}

impl Store {
    /// Deletes a task, everything that was recorded of it, and its sub-tasks to any depth.
    /// Committed when this returns.
    ///
    /// It deletes in parts, sub-tasks before their parents, the task itself last. If it is
    /// interrupted, the task is still there, and the same call continues.
    pub async fn delete_task(
        &self,
        organization: OrganizationId,
        id: &TaskId,
    ) -> Result<(), StoreError> {
        // Sub-tasks may name a parent that does not exist.
        let exists = sqlx::query_scalar!(
            r#"
            SELECT EXISTS (
                SELECT FROM tasks WHERE organization_id = $1 AND id = $2
            ) AS "exists!"
            "#,
            organization as OrganizationId,
            id as &TaskId
        );
        if !exists.fetch_one(self.pool.of(organization)).await? {
            return Err(StoreError::TaskNotFound);
        }
        let mut deletion =
            Deletion { store: self, organization, root: id, path: Vec::new(), batch: Vec::new() };
        for _ in 0..MAX_ROUNDS {
            deletion.delete_sub_tasks().await?;
            if self.read_sub_tasks(organization, id, id, None).await?.is_empty() {
                break;
            }
        }
        match self.delete_tasks(organization, std::slice::from_ref(id)).await? {
            0 => Err(StoreError::TaskNotFound),
            _ => Ok(()),
        }
    }

    /// The next sub-tasks of a task after `cursor`, newest first, except `root`. Clients choose
    /// parents, so the root may be a sub-task of its own sub-task. A task has one parent, so this
    /// is the only circle that a walk from the root meets.
    async fn read_sub_tasks(
        &self,
        organization: OrganizationId,
        root: &TaskId,
        parent: &TaskId,
        cursor: Option<&(DateTime<Utc>, TaskId)>,
    ) -> Result<Vec<SubTask>, StoreError> {
        let sub_tasks = sqlx::query_as!(
            SubTask,
            r#"
            SELECT task.id AS "id: TaskId", task.created_at,
                   EXISTS (
                       SELECT FROM tasks child
                       WHERE child.organization_id = $1
                         AND child.organization_id = task.organization_id
                         AND child.parent_task_id = task.id
                   ) AS "has_sub_tasks!"
            FROM tasks task
            WHERE task.organization_id = $1
              AND task.parent_task_id = $2
              AND task.id <> $3
              AND (task.created_at, task.id)
                  < (COALESCE($4::timestamptz, 'infinity'), COALESCE($5::text, ''))
            ORDER BY task.created_at DESC, task.id DESC
            LIMIT 500
            "#,
            organization as OrganizationId,
            parent as &TaskId,
            root as &TaskId,
            cursor.map(|(created_at, _)| *created_at),
            cursor.map(|(_, id)| id.as_str())
        )
        .fetch_all(self.pool.of(organization))
        .await?;
        Ok(sub_tasks)
    }

    /// Deletes tasks, and returns how many there were.
    async fn delete_tasks(
        &self,
        organization: OrganizationId,
        ids: &[TaskId],
    ) -> Result<u64, StoreError> {
        let mut transaction = self.pool.of(organization).begin().await?;
        lock_tasks(&mut transaction, organization, &ids.iter().collect::<Vec<_>>()).await?;
        // Turns, events and idempotency keys are deleted with their task (ON DELETE CASCADE).
        let deleted = sqlx::query!(
            "DELETE FROM tasks WHERE organization_id = $1 AND id = ANY($2)",
            organization as OrganizationId,
            ids as &[TaskId]
        )
        .execute(&mut transaction)
        .await?;
        transaction.commit().await?;
        Ok(deleted.rows_affected())
    }
}

impl Deletion<'_> {
    /// Deletes all sub-tasks of the root that exist now.
    async fn delete_sub_tasks(&mut self) -> Result<(), StoreError> {
        self.path.push(Level::new(self.root.clone()));
        while let Some(level) = self.path.last() {
            if level.is_complete {
                let done = self.path.pop().map(|level| level.task);
                self.batch.extend(done.filter(|task| task != self.root));
            } else {
                self.read_level().await?;
            }
            while self.batch.len() >= MAX_BATCH_TASKS {
                let part: Vec<_> = self.batch.drain(..MAX_BATCH_TASKS).collect();
                self.store.delete_tasks(self.organization, &part).await?;
            }
        }
        let rest = std::mem::take(&mut self.batch);
        if !rest.is_empty() {
            self.store.delete_tasks(self.organization, &rest).await?;
        }
        Ok(())
    }

    /// Reads more sub-tasks of the last task on the path. Those that have sub-tasks themselves
    /// come onto the path.
    async fn read_level(&mut self) -> Result<(), StoreError> {
        let room = MAX_PATH.saturating_sub(self.path.len()).max(1);
        let Some(level) = self.path.last_mut() else { return Ok(()) };
        let sub_tasks = self
            .store
            .read_sub_tasks(self.organization, self.root, &level.task, level.cursor.as_ref())
            .await?;
        level.is_complete = sub_tasks.len() < PAGE;
        let mut parents = Vec::new();
        for sub_task in sub_tasks {
            if sub_task.has_sub_tasks && parents.len() == room {
                // Read again once there is room for it.
                level.is_complete = false;
                break;
            }
            level.cursor = Some((sub_task.created_at, sub_task.id.clone()));
            if sub_task.has_sub_tasks {
                parents.push(Level::new(sub_task.id));
            } else {
                self.batch.push(sub_task.id);
            }
        }
        self.path.extend(parents);
        Ok(())
    }
}
