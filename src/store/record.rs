//! Writing: invocations, and what runners report about them.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::Connection;

use super::tasks::{TaskRow, select_task};
use super::{Store, StoreError};
use crate::domain::{AgentId, Invocation, Label, OrganizationId, Report, Status, Task, TaskId, UserId};

impl Store {
    /// Records an invocation: a new task, or the next turn of the one with its id. Committed when this returns.
    ///
    /// The record keeps its first `created_at`, and the first user, parent and triggering agent that a turn named;
    /// everything else becomes the new turn's.
    pub async fn record_invocation(
        &self,
        organization: OrganizationId,
        invocation: &Invocation,
        now: DateTime<Utc>,
    ) -> Result<Task, StoreError> {
        let id = invocation.id.clone().unwrap_or_else(TaskId::generate);
        let mut connection = self.pool.get().await?;
        // A task's row is locked by the upsert, so concurrent turns of one conversation queue up here and each gets
        // a number of its own. A task of another agent fails the condition, and then nothing is written at all.
        let row = select_task!(
            r#"
            WITH t AS (
                INSERT INTO tasks AS task (
                    organization_id, id, agent_id, user_id, parent_task_id, triggering_agent_id,
                    status, internal_status, source, title, result, turns, created_at, updated_at
                )
                VALUES ($1, $2, $3, $4, $5, $6, 'pending', NULL, $7, $8, NULL, 1, $9, $9)
                ON CONFLICT (organization_id, id) DO UPDATE
                SET user_id = COALESCE(task.user_id, EXCLUDED.user_id),
                    parent_task_id = COALESCE(task.parent_task_id, EXCLUDED.parent_task_id),
                    triggering_agent_id = COALESCE(task.triggering_agent_id, EXCLUDED.triggering_agent_id),
                    status = EXCLUDED.status,
                    internal_status = EXCLUDED.internal_status,
                    source = EXCLUDED.source,
                    title = EXCLUDED.title,
                    result = EXCLUDED.result,
                    turns = task.turns + 1,
                    updated_at = GREATEST(task.updated_at, EXCLUDED.updated_at)
                WHERE task.agent_id = EXCLUDED.agent_id
                RETURNING *
            ),
            l AS (
                INSERT INTO task_turns (
                    organization_id, task_id, turn, input, request, status, is_manually_stopped, created_at
                )
                SELECT t.organization_id, t.id, t.turns, $10::text::json, $11::text::json, t.status, false, $9
                FROM t
                RETURNING *
            )
            "#,
            "FROM t, l",
            organization as OrganizationId,
            &id as &TaskId,
            &invocation.agent_id as &AgentId,
            invocation.user_id.as_ref() as Option<&UserId>,
            invocation.parent_task_id.as_ref() as Option<&TaskId>,
            invocation.triggering_agent_id.as_ref() as Option<&AgentId>,
            &invocation.source as &Label,
            invocation.title(),
            now,
            to_json(&invocation.input),
            to_json(&invocation.request)
        )
        .fetch_optional(&mut *connection)
        .await?;
        connection.done();
        row.ok_or(StoreError::OtherAgent)?.into_task()
    }

    /// Records what a runner reports about a task's latest turn, and returns the task as it is then; `None` where
    /// the organisation has no such task. Committed when this returns.
    pub async fn record_report(
        &self,
        organization: OrganizationId,
        id: &TaskId,
        report: Report,
        now: DateTime<Utc>,
    ) -> Result<Option<Task>, StoreError> {
        let mut connection = self.pool.get().await?;
        let mut transaction = connection.begin().await?;
        // Lock first, read after: a statement sees only turns that were committed before it began, and while this
        // one waited for the lock a new turn may have been.
        sqlx::query_scalar!(
            "SELECT turns FROM tasks WHERE organization_id = $1 AND id = $2 FOR UPDATE",
            organization as OrganizationId,
            id as &TaskId
        )
        .fetch_optional(&mut *transaction)
        .await?;
        let Some(mut task) = super::tasks::fetch_task(&mut transaction, organization, id).await? else {
            transaction.rollback().await?;
            connection.done();
            return Ok(None);
        };
        task.apply(report, now);
        update_task(&mut transaction, &task).await?;
        transaction.commit().await?;
        connection.done();
        Ok(Some(task))
    }
}

/// Writes a task and its latest turn back, as `Task::apply` left them. The caller holds the lock on its row.
async fn update_task(connection: &mut sqlx::PgConnection, task: &Task) -> Result<(), StoreError> {
    let (summary, turn) = (&task.summary, &task.turn);
    let progress = &turn.progress;
    sqlx::query!(
        r#"
        WITH t AS (
            UPDATE tasks
            SET status = $4, internal_status = $5, source = $6, title = $7, result = $8, updated_at = $9
            WHERE organization_id = $1 AND id = $2
        )
        UPDATE task_turns
        SET request = $10::text::json, status = $4, internal_status = $5, result = $8, last_executed_node_id = $11,
            is_manually_stopped = $12, started_at = $13, paused_at = $14, finished_at = $15
        WHERE organization_id = $1 AND task_id = $2 AND turn = $3
        "#,
        summary.organization_id as OrganizationId,
        &summary.id as &TaskId,
        turn.number,
        progress.status as Status,
        progress.internal_status.as_ref() as Option<&Label>,
        &summary.source as &Label,
        summary.title.as_deref(),
        progress.result.as_deref(),
        summary.updated_at,
        to_json(&turn.request),
        progress.last_executed_node_id.as_deref(),
        progress.is_manually_stopped,
        progress.started_at,
        progress.paused_at,
        progress.finished_at
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// JSON as text, which the statements cast. sqlx would bind it as jsonb, and that sorts keys.
fn to_json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("texts, numbers and flags can be written as JSON")
}
