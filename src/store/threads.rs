//! Threads: conversations, turn by turn.

use chrono::{DateTime, Utc};

use super::sql::parse_json;
use super::{Store, StoreError};
use crate::domain::{OrganizationId, TaskId, ThreadTurn};

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
    fn into_turn(self, organization: OrganizationId) -> Result<ThreadTurn, StoreError> {
        let row = || format!("{organization}, {}, turn {}", self.task_id, self.turn);
        let input = parse_json("task_turns", &self.input, row)?;
        let Self { task_id, turn, input: _, result, created_at, answered_at } = self;
        Ok(ThreadTurn { task_id, turn, input, result, created_at, answered_at })
    }
}

/// The turns of a thread. Each task has at least one, so none means that there is no such task.
fn into_turns(
    organization: OrganizationId,
    rows: Vec<ThreadRow>,
) -> Result<Vec<ThreadTurn>, StoreError> {
    if rows.is_empty() {
        return Err(StoreError::TaskNotFound);
    }
    rows.into_iter().map(|row| row.into_turn(organization)).collect()
}

impl Store {
    /// A task's turns, in order.
    pub async fn list_thread_turns(
        &self,
        organization: OrganizationId,
        id: &TaskId,
    ) -> Result<Vec<ThreadTurn>, StoreError> {
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
        .fetch_all(&self.pool)
        .await?;
        into_turns(organization, rows)
    }

    /// The turns of a task and of its sub-tasks to any depth: the task's first, then those of each
    /// sub-task, older sub-tasks first.
    pub async fn list_tree_turns(
        &self,
        organization: OrganizationId,
        id: &TaskId,
    ) -> Result<Vec<ThreadTurn>, StoreError> {
        // Clients choose parents, so there may be cycles: UNION drops rows that it has found
        // before.
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
            SELECT turn.task_id AS "task_id: TaskId", turn.turn, turn.input::text AS "input!",
                   turn.result, turn.created_at,
                   COALESCE(turn.finished_at, turn.paused_at, turn.started_at, turn.created_at)
                       AS "answered_at!"
            FROM tree
            JOIN task_turns turn ON turn.organization_id = $1 AND turn.task_id = tree.id
            ORDER BY tree.id <> $2, tree.created_at, tree.id, turn.turn
            "#,
            organization as OrganizationId,
            id as &TaskId
        )
        .fetch_all(&self.pool)
        .await?;
        into_turns(organization, rows)
    }
}
