//! Tasks: single ones here, lists with their totals and deletions in the files below.

mod delete;
mod filter;
mod list;
mod sub_tasks;
mod totals;

use std::collections::HashMap;

pub use list::SummaryStep;
pub use sub_tasks::MAX_SUB_TASKS;

pub(in crate::store) use sub_tasks::query_with_sub_tasks;

use chrono::{DateTime, Utc};
use sqlx::{Executor, Postgres};

use super::sql::parse_json;
use super::{Store, StoreError};
use crate::domain::{
    AgentId, OrganizationId, ShortText, Status, Task, TaskId, TaskSummary, Turn, TurnState, UserId,
};

/// How many sub-tasks are read at a time.
pub const SUB_TASK_PAGE: i64 = 1000;

/// Selects whole tasks into [`TaskRow`]s. The two given clauses (what comes before SELECT, and FROM
/// to the end) bind `task` to the row of `tasks`, `turn` to that of a turn, and `$1` to the
/// organization.
macro_rules! select_task {
    ($before:literal, $from:literal, $($bind:expr),+ $(,)?) => {
        query_with_sub_tasks!(
            TaskRow;
            $before
            r#"
                SELECT task.organization_id AS "organization_id: OrganizationId",
                       task.id AS "id: TaskId",
                       task.agent_id AS "agent_id: AgentId",
                       task.user_id AS "user_id: UserId",
                       task.parent_task_id AS "parent_task_id: TaskId",
                       task.triggering_agent_id AS "triggering_agent_id: AgentId",
                       turn.status AS "status: Status",
                       turn.internal_status AS "internal_status: ShortText",
                       task.source AS "source: ShortText",
                       task.title, turn.result, task.created_at, task.updated_at,
                       turn.input::text AS "input!",
                       turn.request::text AS "options!",
                       turn.reported::text AS "details!",
                       task.events, turn.turn,
                       turn.last_executed_node_id, turn.is_manually_stopped,
                       turn.created_at AS turn_created_at,
                       turn.started_at, turn.paused_at, turn.finished_at
                "#;
            $from;
            $($bind),+
        )
    };
}

/// A whole task as selected.
struct TaskRow {
    organization_id: OrganizationId,
    id: TaskId,
    agent_id: AgentId,
    user_id: Option<UserId>,
    parent_task_id: Option<TaskId>,
    triggering_agent_id: Option<AgentId>,
    status: Status,
    internal_status: Option<ShortText>,
    source: ShortText,
    title: Option<String>,
    result: Option<String>,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
    input: String,
    options: String,
    details: String,
    events: i64,
    turn: i32,
    last_executed_node_id: Option<String>,
    is_manually_stopped: bool,
    turn_created_at: DateTime<Utc>,
    started_at: Option<DateTime<Utc>>,
    paused_at: Option<DateTime<Utc>>,
    finished_at: Option<DateTime<Utc>>,
    sub_executions: Vec<TaskId>,
    finished_sub_executions: Vec<TaskId>,
}

impl TaskRow {
    fn into_task(self) -> Result<Task, StoreError> {
        let row = || format!("{}, {}, turn {}", self.organization_id, self.id, self.turn);
        let turn = Turn {
            number: self.turn,
            input: parse_json("task_turns", &self.input, row)?,
            options: parse_json("task_turns", &self.options, row)?,
            details: parse_json("task_turns", &self.details, row)?,
            state: TurnState {
                status: self.status,
                internal_status: self.internal_status.clone(),
                result: self.result.clone(),
                last_executed_node_id: self.last_executed_node_id,
                is_manually_stopped: self.is_manually_stopped,
                started_at: self.started_at,
                paused_at: self.paused_at,
                finished_at: self.finished_at,
            },
            created_at: self.turn_created_at,
        };
        let summary = TaskSummary {
            organization_id: self.organization_id,
            id: self.id,
            agent_id: self.agent_id,
            user_id: self.user_id,
            parent_task_id: self.parent_task_id,
            triggering_agent_id: self.triggering_agent_id,
            status: self.status,
            internal_status: self.internal_status,
            source: self.source,
            title: self.title,
            result: self.result,
            created_at: self.created_at,
            updated_at: self.updated_at,
        };
        Ok(Task {
            summary,
            turn,
            sub_executions: self.sub_executions,
            finished_sub_executions: self.finished_sub_executions,
            events: self.events,
        })
    }
}

impl Store {
    /// A task with its latest turn.
    pub async fn get_task(
        &self,
        organization: OrganizationId,
        id: &TaskId,
    ) -> Result<Task, StoreError> {
        let row = select_task!(
            "",
            r#"
            FROM tasks task
            JOIN task_turns turn
                ON turn.organization_id = task.organization_id
                AND turn.task_id = task.id
                AND turn.turn = task.turns
            WHERE task.organization_id = $1 AND task.id = $2
            "#,
            organization as OrganizationId,
            id as &TaskId
        )
        .fetch_optional(self.pool.of(organization))
        .await?;
        row.ok_or(StoreError::TaskNotFound)?.into_task()
    }

    /// A task as one of its turns left it. A turn that does not exist is not found either.
    pub async fn get_task_at_turn(
        &self,
        organization: OrganizationId,
        id: &TaskId,
        turn: i32,
    ) -> Result<Task, StoreError> {
        let row = select_task!(
            "",
            r#"
            FROM tasks task
            JOIN task_turns turn
                ON turn.organization_id = task.organization_id
                AND turn.task_id = task.id
                AND turn.turn = $3
            WHERE task.organization_id = $1 AND task.id = $2
            "#,
            organization as OrganizationId,
            id as &TaskId,
            turn
        )
        .fetch_optional(self.pool.of(organization))
        .await?;
        row.ok_or(StoreError::TaskNotFound)?.into_task()
    }
}

/// A sub-task's place among those of its parent.
#[derive(Debug, Clone)]
pub struct SubTask {
    /// Its id.
    pub id: TaskId,
    /// When it was recorded.
    pub created_at: DateTime<Utc>,
}

impl Store {
    /// Direct sub-tasks of a task after a given one, oldest first: all, or those that have ended.
    /// At most [`SUB_TASK_PAGE`].
    pub async fn list_sub_tasks(
        &self,
        organization: OrganizationId,
        parent: &TaskId,
        only_finished: bool,
        after: Option<&SubTask>,
    ) -> Result<Vec<SubTask>, StoreError> {
        let rows = sqlx::query_as!(
            SubTask,
            r#"
            SELECT id AS "id: TaskId", created_at
            FROM tasks
            WHERE organization_id = $1 AND parent_task_id = $2
              AND (created_at, id) > (COALESCE($3::timestamptz, '-infinity'), $4::text)
              AND (NOT $5::boolean OR status IN ('error', 'failed', 'completed', 'stopped'))
            ORDER BY created_at, id
            LIMIT $6
            "#,
            organization as OrganizationId,
            parent as &TaskId,
            after.map(|after| after.created_at),
            after.map_or("", |after| after.id.as_str()),
            only_finished,
            SUB_TASK_PAGE
        )
        .fetch_all(self.pool.of(organization))
        .await?;
        Ok(rows)
    }
}

/// Those of several tasks that exist, each as one of its turns left it.
pub(super) async fn fetch_tasks(
    executor: impl Executor<'_, Database = Postgres>,
    organization: OrganizationId,
    ids: &[TaskId],
    turns: &[i32],
) -> Result<HashMap<TaskId, Task>, StoreError> {
    // `wanted` carries the organization as a column too; see `writes/update.rs`.
    let rows = select_task!(
        r#"
        WITH wanted AS MATERIALIZED (
            SELECT $1::uuid AS organization_id, id COLLATE "C" AS id, turn
            FROM unnest($2::text[], $3::int[]) AS wanted (id, turn)
        )
        "#,
        r#"
        FROM wanted
        JOIN tasks task
            ON task.organization_id = wanted.organization_id AND task.id = wanted.id
        JOIN task_turns turn
            ON turn.organization_id = task.organization_id
            AND turn.task_id = task.id
            AND turn.turn = wanted.turn
        WHERE task.organization_id = $1
        "#,
        organization as OrganizationId,
        ids as &[TaskId],
        turns
    )
    .fetch_all(executor)
    .await?;
    let tasks = rows.into_iter().map(TaskRow::into_task);
    tasks.map(|task| task.map(|task| (task.summary.id.clone(), task))).collect()
}
