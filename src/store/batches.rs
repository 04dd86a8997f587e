//! The statements that write several tasks at once, and those that read and lock what is to be written.

use std::collections::{HashMap, HashSet};

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::PgConnection;

use super::StoreError;
use super::tasks::{TaskRow, select_task};
use super::watch::{self, CHANNEL};
use crate::domain::{
    AgentId, EventKind, Invocation, Label, OrganizationId, Progress, Reported, Status, Task, TaskId,
    TaskSummary, Turn, UserId, Word,
};

/// An invocation that waits to be recorded, taken apart where that costs time.
pub(super) struct NewTurn {
    pub(super) invocation: Invocation,
    pub(super) input: String,
    pub(super) request: String,
    now: DateTime<Utc>,
}

impl NewTurn {
    pub(super) fn new(invocation: Invocation, now: DateTime<Utc>) -> Self {
        let (input, request) = (to_json(&invocation.input), to_json(&invocation.request));
        Self { invocation, input, request, now }
    }

    /// The task as this turn has made it, of which the row has what was not known before.
    fn as_recorded(&self, organization_id: OrganizationId, row: RecordedRow) -> Task {
        let invocation = &self.invocation;
        Task {
            summary: TaskSummary {
                organization_id,
                id: row.id,
                agent_id: invocation.agent_id.clone(),
                user_id: row.user_id,
                parent_task_id: row.parent_task_id,
                triggering_agent_id: row.triggering_agent_id,
                status: Status::Pending,
                internal_status: None,
                source: invocation.source.clone(),
                title: invocation.title().map(str::to_owned),
                result: None,
                created_at: row.created_at,
                updated_at: row.updated_at,
            },
            turn: Turn {
                number: row.turns,
                input: invocation.input.clone(),
                request: invocation.request.clone(),
                progress: Progress::pending(),
                reported: Reported::default(),
                created_at: self.now,
            },
            sub_executions: row.sub_executions,
            finished_sub_executions: row.finished_sub_executions,
            events: row.events,
        }
    }
}

/// What a task's new turn has not said itself.
struct RecordedRow {
    id: TaskId,
    user_id: Option<UserId>,
    parent_task_id: Option<TaskId>,
    triggering_agent_id: Option<AgentId>,
    turns: i32,
    events: i64,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
    sub_executions: Vec<TaskId>,
    finished_sub_executions: Vec<TaskId>,
}

/// Creates tasks, or adds turns to them, each of another task; `None`, and nothing is written, for one that is another
/// agent's.
pub(super) async fn upsert_tasks(
    connection: &mut PgConnection,
    organization: OrganizationId,
    turns: &[NewTurn],
) -> Result<Vec<Option<Task>>, StoreError> {
    // A task's row is locked by the upsert, so concurrent turns of one conversation queue up here and each gets a
    // number of its own; in the order of their ids, so that two statements that meet wait and don't deadlock. A task of
    // another agent fails the condition, and then nothing is written at all.
    //
    // What the caller knows does not come back: writing it into the answer is an eighth of what a lone turn costs PostgreSQL.
    let rows = sqlx::query_as!(
        RecordedRow,
        r#"
        WITH new AS (
            SELECT id COLLATE "C" AS id, agent_id, user_id, parent_task_id, triggering_agent_id, source, title,
                   input, request, bucket, now
            FROM unnest(
                $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::text[],
                $10::text[], $11::int[], $12::timestamptz[]
            ) AS new (
                id, agent_id, user_id, parent_task_id, triggering_agent_id, source, title,
                input, request, bucket, now
            )
        ),
        t AS (
            INSERT INTO tasks AS task (
                organization_id, id, agent_id, user_id, parent_task_id, triggering_agent_id,
                status, internal_status, source, title, result, turns, events, created_at, updated_at
            )
            SELECT $1, id, agent_id, user_id, parent_task_id, triggering_agent_id,
                   'pending', NULL, source, title, NULL, 1, 1, now, now
            FROM new
            ORDER BY id
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
            SELECT t.organization_id, t.id, t.turns, new.input::json, new.request::json, t.status, false, new.now
            FROM t
            JOIN new ON new.id = t.id
        ),
        announced AS (
            INSERT INTO task_events (organization_id, task_id, event, turn, type, data, created_at)
            SELECT t.organization_id, t.id, t.events, t.turns, $13, '{}', new.now
            FROM t
            JOIN new ON new.id = t.id
            WHERE new.bucket = ANY((SELECT watched_buckets($11::int[]))::int[])
            RETURNING pg_notify($14, organization_id || ' ' || task_id)
        )
        SELECT t.id AS "id!: TaskId",
               t.user_id AS "user_id: UserId",
               t.parent_task_id AS "parent_task_id: TaskId",
               t.triggering_agent_id AS "triggering_agent_id: AgentId",
               t.turns AS "turns!", t.events AS "events!", t.created_at AS "created_at!",
               t.updated_at AS "updated_at!",
               ARRAY(
                   SELECT c.id FROM tasks c
                   WHERE c.organization_id = t.organization_id AND c.parent_task_id = t.id
                   ORDER BY c.created_at, c.id
               ) AS "sub_executions!: Vec<TaskId>",
               ARRAY(
                   SELECT c.id FROM tasks c
                   WHERE c.organization_id = t.organization_id AND c.parent_task_id = t.id
                     AND c.status IN ('error', 'failed', 'completed', 'stopped')
                   ORDER BY c.created_at, c.id
               ) AS "finished_sub_executions!: Vec<TaskId>"
        FROM t
        "#,
        organization as OrganizationId,
        &column(turns, |turn| turn.invocation.id.as_str()) as &[&str],
        &column(turns, |turn| turn.invocation.agent_id.as_str()) as &[&str],
        &column(turns, |turn| turn.invocation.user_id.as_ref().map(UserId::as_str)) as &[Option<&str>],
        &column(turns, |turn| turn.invocation.parent_task_id.as_ref().map(TaskId::as_str)) as &[Option<&str>],
        &column(turns, |turn| turn.invocation.triggering_agent_id.as_ref().map(AgentId::as_str))
            as &[Option<&str>],
        &column(turns, |turn| turn.invocation.source.as_str()) as &[&str],
        &column(turns, |turn| turn.invocation.title()) as &[Option<&str>],
        &column(turns, |turn| turn.input.as_str()) as &[&str],
        &column(turns, |turn| turn.request.as_str()) as &[&str],
        &column(turns, |turn| watch::bucket(organization, &turn.invocation.id)),
        &column(turns, |turn| turn.now),
        EventKind::CREATED,
        CHANNEL
    )
    .fetch_all(connection)
    .await?;
    let turn_of: HashMap<_, _> = turns.iter().map(|turn| (&turn.invocation.id, turn)).collect();
    let recorded = rows.into_iter().filter_map(|row| {
        let task = turn_of.get(&row.id)?.as_recorded(organization, row);
        Some((task.summary.id.clone(), task))
    });
    let mut tasks: HashMap<_, _> = recorded.collect();
    Ok(turns.iter().map(|turn| tasks.remove(&turn.invocation.id)).collect())
}

// In the statements about several tasks the organisation is a column of what they look for. As a value of its own it
// would tell the planner how few tasks a new organisation has had when statistics were last made, and it would read all of
// them, which may have become many.

/// Locks tasks' rows until the transaction ends, in the order of their ids, so that two transactions that meet wait and
/// don't deadlock; says which of them somebody watches.
pub(super) async fn lock_tasks(
    connection: &mut PgConnection,
    organization: OrganizationId,
    ids: &[TaskId],
) -> Result<HashSet<TaskId>, StoreError> {
    let locked = sqlx::query_scalar!(
        r#"
        WITH wanted AS MATERIALIZED (
            SELECT $1::uuid AS organization_id, id COLLATE "C" AS id FROM unnest($2::text[]) AS id
        )
        SELECT tasks.id AS "id: TaskId"
        FROM wanted
        JOIN tasks ON tasks.organization_id = wanted.organization_id AND tasks.id = wanted.id
        ORDER BY tasks.id
        FOR UPDATE OF tasks
        "#,
        organization as OrganizationId,
        ids as &[TaskId]
    )
    .fetch_all(&mut *connection)
    .await?;
    let bucket = |id: &TaskId| watch::bucket(organization, id);
    let buckets: Vec<_> = locked.iter().map(bucket).collect();
    let watched = sqlx::query_scalar!(r#"SELECT watched_buckets($1) AS "watched!""#, &buckets)
        .fetch_one(connection)
        .await?;
    Ok(locked.into_iter().filter(|id| watched.contains(&bucket(id))).collect())
}

pub(super) async fn fetch_tasks(
    connection: &mut PgConnection,
    organization: OrganizationId,
    ids: &[TaskId],
) -> Result<HashMap<TaskId, Task>, StoreError> {
    let rows = select_task!(
        r#"
        WITH wanted AS MATERIALIZED (
            SELECT $1::uuid AS organization_id, id COLLATE "C" AS id FROM unnest($2::text[]) AS id
        )
        "#,
        r#"
        FROM wanted
        JOIN tasks t ON t.organization_id = wanted.organization_id AND t.id = wanted.id
        JOIN task_turns l ON l.organization_id = t.organization_id AND l.task_id = t.id AND l.turn = t.turns
        "#,
        organization as OrganizationId,
        ids as &[TaskId]
    )
    .fetch_all(connection)
    .await?;
    rows.into_iter().map(|row| row.into_task().map(|task| (task.summary.id.clone(), task))).collect()
}

/// Writes tasks and their latest turns back. The caller holds the locks on their rows.
pub(super) async fn update_tasks(
    connection: &mut PgConnection,
    organization: OrganizationId,
    tasks: &[&Task],
) -> Result<(), StoreError> {
    fn progress<'a, T>(tasks: &[&'a Task], value: impl Fn(&'a Progress) -> T) -> Vec<T> {
        tasks.iter().map(|task| value(&task.turn.progress)).collect()
    }
    if tasks.is_empty() {
        return Ok(());
    }
    sqlx::query!(
        r#"
        WITH new AS MATERIALIZED (
            SELECT $1::uuid AS organization_id, id COLLATE "C" AS id, turn, status::task_status AS status, internal_status, source, title, result,
                   updated_at, events, request, reported, last_executed_node_id, is_manually_stopped, started_at,
                   paused_at, finished_at
            FROM unnest(
                $2::text[], $3::int[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[],
                $9::timestamptz[], $10::bigint[], $11::text[], $12::text[], $13::text[], $14::boolean[],
                $15::timestamptz[], $16::timestamptz[], $17::timestamptz[]
            ) AS new (
                id, turn, status, internal_status, source, title, result, updated_at, events, request, reported,
                last_executed_node_id, is_manually_stopped, started_at, paused_at, finished_at
            )
        ),
        t AS (
            UPDATE tasks
            SET status = new.status, internal_status = new.internal_status, source = new.source, title = new.title,
                result = new.result, updated_at = new.updated_at, events = new.events
            FROM new
            WHERE tasks.organization_id = new.organization_id AND tasks.id = new.id
        )
        UPDATE task_turns AS l
        SET request = new.request::json, reported = new.reported::json, status = new.status,
            internal_status = new.internal_status, result = new.result,
            last_executed_node_id = new.last_executed_node_id, is_manually_stopped = new.is_manually_stopped,
            started_at = new.started_at, paused_at = new.paused_at, finished_at = new.finished_at
        FROM new
        WHERE l.organization_id = new.organization_id AND l.task_id = new.id AND l.turn = new.turn
        "#,
        organization as OrganizationId,
        &column(tasks, |task| task.summary.id.as_str()) as &[&str],
        &column(tasks, |task| task.turn.number),
        &progress(tasks, |progress| progress.status.as_str()) as &[&str],
        &progress(tasks, |progress| progress.internal_status.as_ref().map(Label::as_str)) as &[Option<&str>],
        &column(tasks, |task| task.summary.source.as_str()) as &[&str],
        &column(tasks, |task| task.summary.title.as_deref()) as &[Option<&str>],
        &progress(tasks, |progress| progress.result.as_deref()) as &[Option<&str>],
        &column(tasks, |task| task.summary.updated_at),
        &column(tasks, |task| task.events),
        &column(tasks, |task| to_json(&task.turn.request)),
        &column(tasks, |task| to_json(&task.turn.reported)),
        &progress(tasks, |progress| progress.last_executed_node_id.as_deref()) as &[Option<&str>],
        &progress(tasks, |progress| progress.is_manually_stopped),
        &progress(tasks, |progress| progress.started_at) as &[Option<DateTime<Utc>>],
        &progress(tasks, |progress| progress.paused_at) as &[Option<DateTime<Utc>>],
        &progress(tasks, |progress| progress.finished_at) as &[Option<DateTime<Utc>>]
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// An event to write down.
pub(super) struct NewEventRow<'a> {
    pub(super) number: i64,
    pub(super) turn: i32,
    pub(super) kind: &'a str,
    pub(super) data: &'a str,
}

/// Writes an event down and announces it to those who watch. The caller holds the lock on the task's row.
pub(super) async fn insert_event(
    connection: &mut PgConnection,
    organization: OrganizationId,
    id: &TaskId,
    event: NewEventRow<'_>,
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
        event.number,
        event.turn,
        event.kind,
        event.data,
        now,
        CHANNEL
    )
    .fetch_one(connection)
    .await?;
    Ok(())
}

/// What an array parameter binds: one value of each row.
pub(super) fn column<'a, R, T>(rows: &'a [R], value: impl Fn(&'a R) -> T) -> Vec<T> {
    rows.iter().map(value).collect()
}

/// JSON as text, which the statements cast. sqlx would bind it as jsonb, and that sorts keys.
pub(super) fn to_json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("texts, numbers and flags can be written as JSON")
}
