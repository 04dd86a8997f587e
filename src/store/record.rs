//! Writing: invocations, and what runners report about them.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sha2::{Digest, Sha256};
use sqlx::{Connection, PgConnection};

use super::tasks::{TaskRow, fetch_task, select_task};
use super::watch::{self, CHANNEL, LOCK_CLASS};
use super::{Store, StoreError};
use crate::domain::{
    AgentId, EventKind, Invocation, Label, NewEvent, OrganizationId, Report, Status, Task, TaskId, UserId,
};

/// An invocation that may be sent again.
#[derive(Debug, Clone)]
pub struct Idempotency {
    /// The caller's name for it, unique for the agent.
    pub key: Label,
    /// The request, to tell a repetition from another one under the same key.
    pub request: String,
}

/// What is kept of an invocation that may be sent again.
#[derive(Debug)]
pub struct Recorded {
    /// The task.
    pub id: TaskId,
    /// The answer that it had the first time.
    pub answer: String,
}

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
        let mut connection = self.pool.get().await?;
        let task = upsert_task(&mut connection, organization, invocation, now).await?;
        connection.done();
        task.ok_or(StoreError::OtherAgent)
    }

    /// Records an invocation once, however often it is sent: `answer` makes the answer of a new one, and every later
    /// one gets that. Committed when this returns.
    pub async fn record_invocation_once(
        &self,
        organization: OrganizationId,
        invocation: &Invocation,
        idempotency: &Idempotency,
        now: DateTime<Utc>,
        answer: impl FnOnce(Task) -> String + Send,
    ) -> Result<Recorded, StoreError> {
        let agent = &invocation.agent_id;
        let request: [u8; 32] = Sha256::digest(&idempotency.request).into();
        let mut connection = self.pool.get().await?;
        let mut transaction = connection.begin().await?;
        // The same request sent twice at once: the second waits here for the first, and then finds its answer.
        sqlx::query!(
            "SELECT pg_advisory_xact_lock(hashtextextended($1::uuid || ' ' || $2 || ' ' || $3, 0))",
            organization as OrganizationId,
            agent as &AgentId,
            &idempotency.key as &Label
        )
        .fetch_one(&mut *transaction)
        .await?;
        let before = sqlx::query!(
            r#"
            SELECT request, answer, task_id AS "id: TaskId"
            FROM idempotency_keys
            WHERE organization_id = $1 AND agent_id = $2 AND key = $3
            "#,
            organization as OrganizationId,
            agent as &AgentId,
            &idempotency.key as &Label
        )
        .fetch_optional(&mut *transaction)
        .await?;
        let outcome = match before {
            Some(before) if before.request == request => {
                Ok(Recorded { id: before.id, answer: before.answer })
            }
            Some(_) => Err(StoreError::OtherRequest),
            None => match upsert_task(&mut transaction, organization, invocation, now).await? {
                None => Err(StoreError::OtherAgent),
                Some(task) => {
                    let id = task.summary.id.clone();
                    let answer = answer(task);
                    sqlx::query!(
                        r#"
                        INSERT INTO idempotency_keys (
                            organization_id, agent_id, key, request, task_id, answer, created_at
                        )
                        VALUES ($1, $2, $3, $4, $5, $6, $7)
                        "#,
                        organization as OrganizationId,
                        agent as &AgentId,
                        &idempotency.key as &Label,
                        request.as_slice(),
                        &id as &TaskId,
                        &answer,
                        now
                    )
                    .execute(&mut *transaction)
                    .await?;
                    Ok(Recorded { id, answer })
                }
            },
        };
        transaction.commit().await?;
        connection.done();
        outcome
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
        self.change_task(organization, id, now, |task| {
            task.apply(report, now);
            true
        })
        .await
    }

    /// Stops a task's latest turn on a person's behalf, unless it has ended, and returns the task as it is then;
    /// `None` where the organisation has no such task. Committed when this returns.
    pub async fn stop_task(
        &self,
        organization: OrganizationId,
        id: &TaskId,
        now: DateTime<Utc>,
    ) -> Result<Option<Task>, StoreError> {
        self.change_task(organization, id, now, |task| task.stop(now)).await
    }

    /// Reads a task under the lock on its row, lets `change` change it, and writes it back if that says so.
    async fn change_task(
        &self,
        organization: OrganizationId,
        id: &TaskId,
        now: DateTime<Utc>,
        change: impl FnOnce(&mut Task) -> bool + Send,
    ) -> Result<Option<Task>, StoreError> {
        let mut connection = self.pool.get().await?;
        let mut transaction = connection.begin().await?;
        let Some(is_watched) = lock_task(&mut transaction, organization, id).await? else {
            transaction.rollback().await?;
            connection.done();
            return Ok(None);
        };
        // Lock first, read after: a statement sees only turns that were committed before it began, and while the one
        // above waited for the lock a new turn may have been.
        let mut task = fetch_task(&mut transaction, organization, id).await?;
        if let Some(task) = &mut task
            && change(task)
        {
            task.events += 1;
            update_task(&mut transaction, task).await?;
            if is_watched {
                let kind = EventKind::Reported(task.turn.progress.clone());
                let data = to_json(&task.turn.progress);
                insert_event(
                    &mut transaction,
                    organization,
                    id,
                    task.events,
                    task.turn.number,
                    kind.as_str(),
                    &data,
                    now,
                )
                .await?;
            }
        }
        transaction.commit().await?;
        connection.done();
        Ok(task)
    }

    /// Records what a runner pushes while it works on a task's latest turn, in order. Returns whether the organisation
    /// has such a task. Committed when this returns.
    pub async fn record_events(
        &self,
        organization: OrganizationId,
        id: &TaskId,
        events: &[NewEvent],
        now: DateTime<Utc>,
    ) -> Result<bool, StoreError> {
        let mut connection = self.pool.get().await?;
        let mut transaction = connection.begin().await?;
        let exists = lock_task(&mut transaction, organization, id).await?.is_some();
        if exists {
            for event in events {
                let place = sqlx::query!(
                    "UPDATE tasks SET events = events + 1 WHERE organization_id = $1 AND id = $2 RETURNING events, turns",
                    organization as OrganizationId,
                    id as &TaskId
                )
                .fetch_one(&mut *transaction)
                .await?;
                let (kind, data) = (event.kind.as_str(), event.data.to_string());
                insert_event(&mut transaction, organization, id, place.events, place.turns, kind, &data, now)
                    .await?;
            }
        }
        transaction.commit().await?;
        connection.done();
        Ok(exists)
    }
}

/// Creates a task, or adds a turn to it; `None`, and nothing is written, where it is another agent's.
async fn upsert_task(
    connection: &mut PgConnection,
    organization: OrganizationId,
    invocation: &Invocation,
    now: DateTime<Utc>,
) -> Result<Option<Task>, StoreError> {
    // A task's row is locked by the upsert, so concurrent turns of one conversation queue up here and each gets a
    // number of its own. A task of another agent fails the condition, and then nothing is written at all.
    select_task!(
        r#"
        WITH t AS (
            INSERT INTO tasks AS task (
                organization_id, id, agent_id, user_id, parent_task_id, triggering_agent_id,
                status, internal_status, source, title, result, turns, events, created_at, updated_at
            )
            VALUES ($1, $2, $3, $4, $5, $6, 'pending', NULL, $7, $8, NULL, 1, 1, $9, $9)
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
                events = task.events + 1,
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
        ),
        announced AS (
            INSERT INTO task_events (organization_id, task_id, event, turn, type, data, created_at)
            SELECT t.organization_id, t.id, t.events, t.turns, $12, '{}', $9
            FROM t
            WHERE NOT pg_try_advisory_xact_lock($13, $14)
            RETURNING pg_notify($15, organization_id || ' ' || task_id)
        )
        "#,
        "FROM t, l",
        organization as OrganizationId,
        &invocation.id as &TaskId,
        &invocation.agent_id as &AgentId,
        invocation.user_id.as_ref() as Option<&UserId>,
        invocation.parent_task_id.as_ref() as Option<&TaskId>,
        invocation.triggering_agent_id.as_ref() as Option<&AgentId>,
        &invocation.source as &Label,
        invocation.title(),
        now,
        to_json(&invocation.input),
        to_json(&invocation.request),
        EventKind::CREATED,
        LOCK_CLASS,
        watch::bucket(organization, &invocation.id),
        CHANNEL
    )
    .fetch_optional(connection)
    .await?
    .map(TaskRow::into_task)
    .transpose()
}

/// Locks a task's row until the transaction ends, and says whether somebody watches the task; `None` where the
/// organisation has no such task.
async fn lock_task(
    connection: &mut PgConnection,
    organization: OrganizationId,
    id: &TaskId,
) -> Result<Option<bool>, StoreError> {
    let is_watched = sqlx::query_scalar!(
        r#"
        SELECT NOT pg_try_advisory_xact_lock($3, $4) AS "is_watched!"
        FROM tasks
        WHERE organization_id = $1 AND id = $2
        FOR UPDATE
        "#,
        organization as OrganizationId,
        id as &TaskId,
        LOCK_CLASS,
        watch::bucket(organization, id)
    )
    .fetch_optional(connection)
    .await?;
    Ok(is_watched)
}

/// Writes a task and its latest turn back. The caller holds the lock on its row.
async fn update_task(connection: &mut PgConnection, task: &Task) -> Result<(), StoreError> {
    let (summary, turn) = (&task.summary, &task.turn);
    let progress = &turn.progress;
    sqlx::query!(
        r#"
        WITH t AS (
            UPDATE tasks
            SET status = $4, internal_status = $5, source = $6, title = $7, result = $8, updated_at = $9, events = $17
            WHERE organization_id = $1 AND id = $2
        )
        UPDATE task_turns
        SET request = $10::text::json, reported = $16::text::json, status = $4, internal_status = $5, result = $8,
            last_executed_node_id = $11, is_manually_stopped = $12, started_at = $13, paused_at = $14,
            finished_at = $15
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
        progress.finished_at,
        to_json(&turn.reported),
        task.events
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Writes an event down and announces it to those who watch. The caller holds the lock on the task's row.
#[expect(clippy::too_many_arguments, reason = "a row has as many columns")]
async fn insert_event(
    connection: &mut PgConnection,
    organization: OrganizationId,
    id: &TaskId,
    event: i64,
    turn: i32,
    kind: &str,
    data: &str,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    sqlx::query!(
        r#"
        INSERT INTO task_events (organization_id, task_id, event, turn, type, data, created_at)
        VALUES ($1, $2, $3, $4, $5, $6::text::json, $7)
        RETURNING pg_notify($8, organization_id || ' ' || task_id)
        "#,
        organization as OrganizationId,
        id as &TaskId,
        event,
        turn,
        kind,
        data,
        now,
        CHANNEL
    )
    .fetch_one(connection)
    .await?;
    Ok(())
}

/// JSON as text, which the statements cast. sqlx would bind it as jsonb, and that sorts keys.
fn to_json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("texts, numbers and flags can be written as JSON")
}
