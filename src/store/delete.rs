//! Deleting tasks.

use sqlx::Connection;

use super::{Store, StoreError};
use crate::domain::{OrganizationId, TaskId};

impl Store {
    /// Deletes a task with everything that was recorded of it, and its sub-tasks to any depth. Returns whether the
    /// organisation had such a task. Committed when this returns.
    pub async fn delete_task(&self, organization: OrganizationId, id: &TaskId) -> Result<bool, StoreError> {
        let mut connection = self.pool.get().await?;
        let mut transaction = connection.begin().await?;
        // Clients choose who is whose parent, so there may be circles: UNION leaves out what it has found before. The
        // rows are locked in the order of their ids, so that two deletions that meet wait and don't deadlock.
        let tree = sqlx::query_scalar!(
            r#"
            WITH RECURSIVE tree AS (
                SELECT organization_id, id FROM tasks WHERE organization_id = $1 AND id = $2
                UNION
                SELECT child.organization_id, child.id
                FROM tree
                JOIN tasks child
                    ON child.organization_id = tree.organization_id AND child.parent_task_id = tree.id
            )
            SELECT tasks.id AS "id: TaskId"
            FROM tree
            JOIN tasks ON tasks.organization_id = tree.organization_id AND tasks.id = tree.id
            ORDER BY tasks.id
            FOR UPDATE OF tasks
            "#,
            organization as OrganizationId,
            id as &TaskId
        )
        .fetch_all(&mut *transaction)
        .await?;
        if !tree.is_empty() {
            // Turns, events and idempotency keys go with their task.
            sqlx::query!(
                "DELETE FROM tasks WHERE organization_id = $1 AND id = ANY($2)",
                organization as OrganizationId,
                &tree as &[TaskId]
            )
            .execute(&mut *transaction)
            .await?;
        }
        transaction.commit().await?;
        connection.done();
        Ok(!tree.is_empty())
    }
}
