//! The tasks of a full thread.

use chrono::{DateTime, Utc};

use super::ThreadReader;
use crate::domain::{OrganizationId, TaskId};
use crate::store::StoreError;

/// Most ids of sub-tasks that are read at a time. Each time costs a walk through the whole tree.
const MAX_IDS: i64 = 10_000;

/// The sort key of a task within its tree.
#[derive(Debug)]
pub(super) struct TreePosition {
    root: TaskId,
    rank: i32,
    created_at: DateTime<Utc>,
    id: TaskId,
    /// Tasks that are created later do not belong to the thread.
    newest: DateTime<Utc>,
}

impl ThreadReader {
    /// Reads the ids of further tasks of the tree: the task itself, then its sub-tasks, older ones
    /// first. A sub-task `root` comes first of them, because it shares the name of the task's own
    /// messages.
    pub(super) async fn read_ids(&mut self) -> Result<(), StoreError> {
        let root = match &self.tree {
            Some(tree) => tree.root.clone(),
            None => self.tasks.pop_front().expect("the reader starts with a task"),
        };
        let after = self.tree.take();
        // Clients choose parents, so there may be cycles: UNION drops rows that it has found
        // before.
        let rows = sqlx::query!(
            r#"
            WITH RECURSIVE tree AS (
                SELECT organization_id, id, created_at
                FROM tasks
                WHERE organization_id = $1 AND id = $2
                UNION
                SELECT child.organization_id, child.id, child.created_at
                FROM tree
                JOIN tasks child
                    ON child.organization_id = $1
                    AND child.organization_id = tree.organization_id
                    AND child.parent_task_id = tree.id
            ),
            ranked AS (
                SELECT CASE WHEN id = $2 THEN 0 WHEN id = 'root' THEN 1 ELSE 2 END AS rank,
                       created_at, id, (SELECT max(created_at) FROM tree) AS newest
                FROM tree
            )
            SELECT rank AS "rank!", created_at AS "created_at!", id AS "id!: TaskId",
                   newest AS "newest!"
            FROM ranked
            WHERE (rank, created_at, id) > ($3, $4, $5) AND created_at <= COALESCE($6, newest)
            ORDER BY rank, created_at, id
            LIMIT $7
            "#,
            self.organization as OrganizationId,
            &root as &TaskId,
            after.as_ref().map_or(-1, |after| after.rank),
            after.as_ref().map_or(DateTime::UNIX_EPOCH, |after| after.created_at),
            after.as_ref().map_or(&root, |after| &after.id) as &TaskId,
            after.as_ref().map(|after| after.newest),
            MAX_IDS
        )
        .fetch_all(self.store.pool.of(self.organization))
        .await?;
        let is_full = i64::try_from(rows.len()).is_ok_and(|read| read == MAX_IDS);
        if let Some(last) = rows.last().filter(|_| is_full) {
            self.tree = Some(TreePosition {
                root,
                rank: last.rank,
                created_at: last.created_at,
                id: last.id.clone(),
                newest: after.map_or(last.newest, |after| after.newest),
            });
        }
        self.tasks.extend(rows.into_iter().map(|row| row.id));
        Ok(())
    }
}
