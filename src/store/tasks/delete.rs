//! Deleting tasks.

use crate::domain::{OrganizationId, TaskId};
use crate::store::{Store, StoreError};

impl Store {
    /// Deletes a task, everything that was recorded of it, and its sub-tasks to any depth.
    /// Committed when this returns.
    pub async fn delete_task(
        &self,
        organization: OrganizationId,
        id: &TaskId,
    ) -> Result<(), StoreError> {
        let mut transaction = self.pool.begin().await?;
        // Clients choose parents, so there may be cycles: UNION drops rows that it has found
        // before. Rows are locked in the order of their ids, so two deletions that meet do not
        // deadlock.
        let tree = sqlx::query_scalar!(
            r#"
            WITH RECURSIVE tree AS (
                SELECT organization_id, id FROM tasks WHERE organization_id = $1 AND id = $2
                UNION
                SELECT child.organization_id, child.id
                FROM tree
                JOIN tasks child
                    ON child.organization_id = $1
                    AND child.organization_id = tree.organization_id
                    AND child.parent_task_id = tree.id
            )
            SELECT task.id AS "id: TaskId"
            FROM tree
            JOIN tasks task
                ON task.organization_id = tree.organization_id
                AND task.id = tree.id
            WHERE task.organization_id = $1
            ORDER BY task.id
            FOR UPDATE OF task
            "#,
            organization as OrganizationId,
            id as &TaskId
        )
        .fetch_all(&mut *transaction)
        .await?;
        if tree.is_empty() {
            transaction.rollback().await?;
            return Err(StoreError::TaskNotFound);
        }
        // Turns, events and idempotency keys are deleted with their task (ON DELETE CASCADE).
        sqlx::query!(
            "DELETE FROM tasks WHERE organization_id = $1 AND id = ANY($2)",
            organization as OrganizationId,
            &tree as &[TaskId]
        )
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(())
    }
}
