//! Conversations, turn by turn.

use chrono::{DateTime, Utc};

use super::tasks::parse_json;
use super::{Store, StoreError};
use crate::domain::{OrganizationId, TaskId, Thread};

/// A turn as selected.
struct ThreadRow {
    task_id: TaskId,
    turn: i32,
    input: String,
    result: Option<String>,
    created_at: DateTime<Utc>,
    answered_at: DateTime<Utc>,
}

impl ThreadRow {
    fn into_thread(self, organization: OrganizationId) -> Result<Thread, StoreError> {
        let row = || format!("{organization}, {}, turn {}", self.task_id, self.turn);
        let input = parse_json("task_turns", &self.input, row)?;
        let Self { task_id, turn, input: _, result, created_at, answered_at } = self;
        Ok(Thread { task_id, turn, input, result, created_at, answered_at })
    }
}

impl Store {
    /// A task's turns in order; none where the organisation has no such task, since each has one at least.
    pub async fn get_thread(
        &self,
        organization: OrganizationId,
        id: &TaskId,
    ) -> Result<Vec<Thread>, StoreError> {
        let mut connection = self.pool.get().await?;
        let rows = sqlx::query_as!(
            ThreadRow,
            r#"
            SELECT task_id AS "task_id: TaskId", turn, input::text AS "input!", result, created_at,
                   COALESCE(finished_at, paused_at, started_at, created_at) AS "answered_at!"
            FROM task_turns
            WHERE organization_id = $1 AND task_id = $2
            ORDER BY turn
            "#,
            organization as OrganizationId,
            id as &TaskId
        )
        .fetch_all(&mut *connection)
        .await?;
        connection.done();
        rows.into_iter().map(|row| row.into_thread(organization)).collect()
    }

    /// The turns of a task and of its sub-tasks to any depth: the task's first, then each sub-task's, older sub-tasks
    /// before younger ones. None where the organisation has no such task.
    pub async fn get_thread_tree(
        &self,
        organization: OrganizationId,
        id: &TaskId,
    ) -> Result<Vec<Thread>, StoreError> {
        let mut connection = self.pool.get().await?;
        // As in a deletion, UNION keeps circles from going round for ever.
        let rows = sqlx::query_as!(
            ThreadRow,
            r#"
            WITH RECURSIVE tree AS (
                SELECT id, created_at FROM tasks WHERE organization_id = $1 AND id = $2
                UNION
                SELECT child.id, child.created_at
                FROM tree
                JOIN tasks child ON child.organization_id = $1 AND child.parent_task_id = tree.id
            )
            SELECT l.task_id AS "task_id: TaskId", l.turn, l.input::text AS "input!", l.result, l.created_at,
                   COALESCE(l.finished_at, l.paused_at, l.started_at, l.created_at) AS "answered_at!"
            FROM tree
            JOIN task_turns l ON l.organization_id = $1 AND l.task_id = tree.id
            ORDER BY tree.id <> $2, tree.created_at, tree.id, l.turn
            "#,
            organization as OrganizationId,
            id as &TaskId
        )
        .fetch_all(&mut *connection)
        .await?;
        connection.done();
        rows.into_iter().map(|row| row.into_thread(organization)).collect()
    }
}
