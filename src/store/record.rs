//! Writing: invocations, and what runners report about them.

use std::collections::{HashMap, HashSet};

use chrono::{DateTime, Utc};
use serde::Serialize;
use sha2::{Digest, Sha256};
use sqlx::{Connection, PgConnection};

use super::pool::Pool;
use super::tasks::{TaskRow, select_task};
use super::watch::{self, CHANNEL};
use super::writer::Write;
use super::{Store, StoreError};
use crate::domain::{
    AgentId, EventKind, Invocation, Label, NewEvent, OrganizationId, Progress, Report, Status, Task, TaskId,
    UserId, Word,
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

/// An invocation that waits to be recorded, taken apart where that costs time.
pub(super) struct NewTurn {
    invocation: Invocation,
    input: String,
    request: String,
    now: DateTime<Utc>,
}

impl NewTurn {
    fn new(invocation: Invocation, now: DateTime<Utc>) -> Self {
        let (input, request) = (to_json(&invocation.input), to_json(&invocation.request));
        Self { invocation, input, request, now }
    }
}

/// Records invocations together.
#[derive(Clone)]
pub(super) struct Turns {
    pub(super) pool: Pool,
}

impl Write for Turns {
    type Item = NewTurn;
    /// `None` where the task is another agent's.
    type Outcome = Option<Task>;

    fn task<'a>(&self, item: &'a NewTurn) -> &'a TaskId {
        &item.invocation.id
    }

    fn size(&self, item: &NewTurn) -> usize {
        item.input.len() + item.request.len()
    }

    async fn write(
        &self,
        organization: OrganizationId,
        items: &[NewTurn],
    ) -> Result<Vec<Option<Task>>, StoreError> {
        let mut connection = self.pool.get().await?;
        let tasks = upsert_tasks(&mut connection, organization, items).await?;
        connection.done();
        Ok(tasks)
    }
}

/// A change of a task's latest turn that waits to be recorded.
pub(super) struct Change {
    task: TaskId,
    what: What,
    now: DateTime<Utc>,
}

enum What {
    Report(Box<Report>),
    Stop,
}

impl Change {
    /// Changes the task; returns whether there is anything to write.
    fn apply(&self, task: &mut Task) -> bool {
        match &self.what {
            What::Report(report) => {
                task.apply(report.as_ref().clone(), self.now);
                true
            }
            What::Stop => task.stop(self.now),
        }
    }
}

/// Records changes together.
#[derive(Clone)]
pub(super) struct Changes {
    pub(super) pool: Pool,
}

impl Write for Changes {
    type Item = Change;
    /// `None` where the organisation has no such task.
    type Outcome = Option<Task>;

    fn task<'a>(&self, item: &'a Change) -> &'a TaskId {
        &item.task
    }

    fn size(&self, item: &Change) -> usize {
        match &item.what {
            What::Report(report) => report.size(),
            What::Stop => 0,
        }
    }

    async fn write(
        &self,
        organization: OrganizationId,
        items: &[Change],
    ) -> Result<Vec<Option<Task>>, StoreError> {
        let mut connection = self.pool.get().await?;
        let mut transaction = connection.begin().await?;
        let ids: Vec<_> = items.iter().map(|item| item.task.clone()).collect();
        let watched = lock_tasks(&mut transaction, organization, &ids).await?;
        // Lock first, read after: a statement sees only turns that were committed before it began, and while the one
        // above waited for the locks new turns may have been.
        let mut tasks = fetch_tasks(&mut transaction, organization, &ids).await?;
        let mut changed = Vec::with_capacity(tasks.len());
        for item in items {
            if let Some(task) = tasks.get_mut(&item.task)
                && item.apply(task)
            {
                task.events += 1;
                changed.push(&item.task);
            }
        }
        let changed: Vec<_> = changed.into_iter().filter_map(|id| tasks.get(id)).collect();
        update_tasks(&mut transaction, organization, &changed).await?;
        for task in changed.into_iter().filter(|task| watched.contains(&task.summary.id)) {
            let progress = &task.turn.progress;
            let (kind, data) = (EventKind::Reported(progress.clone()), to_json(progress));
            let event =
                NewEventRow { number: task.events, turn: task.turn.number, kind: kind.as_str(), data: &data };
            insert_event(&mut transaction, organization, &task.summary.id, event, task.summary.updated_at)
                .await?;
        }
        transaction.commit().await?;
        connection.done();
        Ok(items.iter().map(|item| tasks.remove(&item.task)).collect())
    }
}

impl Store {
    /// Records an invocation: a new task, or the next turn of the one with its id. Committed when this returns.
    ///
    /// The record keeps its first `created_at`, and the first user, parent and triggering agent that a turn named;
    /// everything else becomes the new turn's.
    pub async fn record_invocation(
        &self,
        organization: OrganizationId,
        invocation: Invocation,
        now: DateTime<Utc>,
    ) -> Result<Task, StoreError> {
        let task = self.turns.write(organization, NewTurn::new(invocation, now)).await?;
        task.ok_or(StoreError::OtherAgent)
    }

    /// Records an invocation once, however often it is sent: `answer` makes the answer of a new one, and every later
    /// one gets that. Committed when this returns.
    pub async fn record_invocation_once(
        &self,
        organization: OrganizationId,
        invocation: Invocation,
        idempotency: &Idempotency,
        now: DateTime<Utc>,
        answer: impl FnOnce(Task) -> String + Send,
    ) -> Result<Recorded, StoreError> {
        let agent = &invocation.agent_id.clone();
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
            None => match upsert_tasks(&mut transaction, organization, &[NewTurn::new(invocation, now)])
                .await?
                .pop()
                .flatten()
            {
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
        self.changes
            .write(organization, Change { task: id.clone(), what: What::Report(Box::new(report)), now })
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
        self.changes.write(organization, Change { task: id.clone(), what: What::Stop, now }).await
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
        let ids = std::slice::from_ref(id);
        lock_tasks(&mut transaction, organization, ids).await?;
        let last = sqlx::query!(
            r#"
            UPDATE tasks SET events = events + $3
            WHERE organization_id = $1 AND id = $2
            RETURNING events, turns
            "#,
            organization as OrganizationId,
            id as &TaskId,
            i64::try_from(events.len()).unwrap_or(i64::MAX)
        )
        .fetch_optional(&mut *transaction)
        .await?;
        if let Some(last) = &last {
            for (number, event) in (1..=last.events).rev().zip(events.iter().rev()) {
                let (kind, data) = (event.kind.as_str(), &event.data.to_string());
                let event = NewEventRow { number, turn: last.turns, kind, data };
                insert_event(&mut transaction, organization, id, event, now).await?;
            }
        }
        transaction.commit().await?;
        connection.done();
        Ok(last.is_some())
    }
}

/// Creates tasks, or adds turns to them, each of another task; `None`, and nothing is written, for one that is another
/// agent's.
async fn upsert_tasks(
    connection: &mut PgConnection,
    organization: OrganizationId,
    turns: &[NewTurn],
) -> Result<Vec<Option<Task>>, StoreError> {
    // A task's row is locked by the upsert, so concurrent turns of one conversation queue up here and each gets a
    // number of its own; in the order of their ids, so that two statements that meet wait and don't deadlock. A task of
    // another agent fails the condition, and then nothing is written at all.
    let rows = select_task!(
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
            RETURNING *
        ),
        announced AS (
            INSERT INTO task_events (organization_id, task_id, event, turn, type, data, created_at)
            SELECT t.organization_id, t.id, t.events, t.turns, $13, '{}', new.now
            FROM t
            JOIN new ON new.id = t.id
            WHERE is_watched(new.bucket)
            RETURNING pg_notify($14, organization_id || ' ' || task_id)
        )
        "#,
        "FROM t JOIN l ON l.task_id = t.id",
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
    let mut tasks = by_id(rows)?;
    Ok(turns.iter().map(|turn| tasks.remove(&turn.invocation.id)).collect())
}

fn by_id(rows: Vec<TaskRow>) -> Result<HashMap<TaskId, Task>, StoreError> {
    rows.into_iter().map(|row| row.into_task().map(|task| (task.summary.id.clone(), task))).collect()
}

// In the statements about several tasks the organisation is a column of what they look for. As a value of its own it
// would tell the planner how few tasks a new organisation has had when statistics were last made, and it would read all of
// them, which may have become many.

/// Locks tasks' rows until the transaction ends, in the order of their ids, so that two transactions that meet wait and
/// don't deadlock; says which of them somebody watches.
async fn lock_tasks(
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
    let buckets: Vec<_> = locked.iter().map(|id| watch::bucket(organization, id)).collect();
    let watched = sqlx::query_scalar!(
        r#"SELECT is_watched(bucket) AS "is_watched!" FROM unnest($1::int[]) WITH ORDINALITY AS b (bucket, n) ORDER BY n"#,
        &buckets
    )
    .fetch_all(connection)
    .await?;
    Ok(locked.into_iter().zip(watched).filter_map(|(id, is_watched)| is_watched.then_some(id)).collect())
}

async fn fetch_tasks(
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
    by_id(rows)
}

/// Writes tasks and their latest turns back. The caller holds the locks on their rows.
async fn update_tasks(
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
struct NewEventRow<'a> {
    number: i64,
    turn: i32,
    kind: &'a str,
    data: &'a str,
}

/// Writes an event down and announces it to those who watch. The caller holds the lock on the task's row.
async fn insert_event(
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
