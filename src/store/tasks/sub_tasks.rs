//! The ids of sub-tasks, as every statement that returns a whole task selects them.

/// Most ids of sub-tasks that are read with a task: the LIMIT below.
pub const MAX_SUB_TASKS: usize = 10_000;

/// A query whose last selected columns are the ids of the sub-tasks of `task`: the oldest, all of
/// them and those that have ended. `$1` is the organization.
///
/// The row type (`_` for an anonymous one), the texts up to these columns, and FROM to the end.
macro_rules! query_with_sub_tasks {
    (_; $($select:literal)+; $from:literal; $($bind:expr),+ $(,)?) => {
        query_with_sub_tasks!(@ query; ; $($select)+; $from; $($bind),+)
    };
    ($row:ident; $($select:literal)+; $from:literal; $($bind:expr),+ $(,)?) => {
        query_with_sub_tasks!(@ query_as; $row,; $($select)+; $from; $($bind),+)
    };
    (@ $query:ident; $($row:ident,)?; $($select:literal)+; $from:literal; $($bind:expr),+) => {
        sqlx::$query!(
            $($row,)?
            $($select +)+
            r#",
            ARRAY(
                SELECT child.id FROM tasks child
                WHERE child.organization_id = $1
                  AND child.organization_id = task.organization_id
                  AND child.parent_task_id = task.id
                ORDER BY child.created_at, child.id
                LIMIT 10000
            ) AS "sub_executions!: Vec<TaskId>",
            ARRAY(
                SELECT child.id FROM tasks child
                WHERE child.organization_id = $1
                  AND child.organization_id = task.organization_id
                  AND child.parent_task_id = task.id
                  AND child.status IN ('error', 'failed', 'completed', 'stopped')
                ORDER BY child.created_at, child.id
                LIMIT 10000
            ) AS "finished_sub_executions!: Vec<TaskId>"
            "#
            + $from,
            $($bind),+
        )
    };
}

pub(in crate::store) use query_with_sub_tasks;
