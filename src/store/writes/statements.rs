//! The statements that write several tasks at once, and those that lock what is to be written.

use std::collections::{HashMap, HashSet};

use chrono::{DateTime, Utc};
use sqlx::{Executor, PgConnection, Postgres};

use crate::domain::{
    AgentId, EventKind, Invocation, OrganizationId, ShortText, Status, Task, TaskId, TaskSummary,
    Turn, TurnDetails, TurnState, UserId, WireEnum,
};
use crate::store::StoreError;
use crate::store::events::watch::{CHANNEL, bucket};
use crate::store::sql::{column, to_json};

/// An invocation to record, with its JSON already serialized, outside the transaction.
pub(in crate::store) struct NewTurn {
    pub(super) invocation: Invocation,
    pub(super) input: String,
    pub(super) options: String,
    now: DateTime<Utc>,
}

impl NewTurn {
    pub(super) fn new(invocation: Invocation, now: DateTime<Utc>) -> Self {
        let (input, options) = (to_json(&invocation.input), to_json(&invocation.options));
        Self { invocation, input, options, now }
    }

    /// The task after this turn. The row has what the invocation does not say.
    fn task(&self, organization_id: OrganizationId, row: UpsertedRow) -> Task {
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
                options: invocation.options.clone(),
                state: TurnState::pending(),
                details: TurnDetails::default(),
                created_at: self.now,
            },
            sub_executions: row.sub_executions,
            finished_sub_executions: row.finished_sub_executions,
            events: row.events,
        }
    }
}

/// What the upsert returns of a task.
struct UpsertedRow {
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

/// Creates tasks or adds turns to them, each turn of another task. `None` for a task that belongs
/// to another agent, of which nothing is written.
#[expect(clippy::too_many_lines, reason = "one statement, most of it SQL and its parameters")]
pub(super) async fn upsert_tasks(
    executor: impl Executor<'_, Database = Postgres>,
    organization: OrganizationId,
    turns: &[NewTurn],
) -> Result<Vec<Option<Task>>, StoreError> {
    // The upsert locks the task's row. Concurrent turns of one conversation therefore wait here,
    // and each gets its own number. Rows are locked in the order of their ids, so two statements
    // that meet do not deadlock. A task of another agent fails the condition; nothing is written
    // then.
    //
    // What the caller knows is not returned: it would be an eighth of PostgreSQL's cost for a
    // single turn.
    //
    // The sub-tasks name the organization twice, as the value and as the column: see `lock_tasks`.
    let rows = sqlx::query_as!(
        UpsertedRow,
        r#"
        WITH new AS (
            SELECT id COLLATE "C" AS id, agent_id, user_id, parent_task_id, triggering_agent_id,
                   source, title, input, request, bucket, now
            FROM unnest(
                $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[],
                $9::text[], $10::text[], $11::int[], $12::timestamptz[]
            ) AS new (
                id, agent_id, user_id, parent_task_id, triggering_agent_id, source, title, input,
                request, bucket, now
            )
        ),
        upserted AS (
            INSERT INTO tasks AS task (
                organization_id, id, agent_id, user_id, parent_task_id, triggering_agent_id, status,
                internal_status, source, title, result, turns, events, created_at, updated_at
            )
            SELECT $1, id, agent_id, user_id, parent_task_id, triggering_agent_id,
                   'pending', NULL, source, title, NULL, 1, 1, now, now
            FROM new
            ORDER BY id
            ON CONFLICT (organization_id, id) DO UPDATE
            SET user_id = COALESCE(task.user_id, EXCLUDED.user_id),
                parent_task_id = COALESCE(task.parent_task_id, EXCLUDED.parent_task_id),
                triggering_agent_id = COALESCE(
                    task.triggering_agent_id, EXCLUDED.triggering_agent_id
                ),
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
        turn AS (
            INSERT INTO task_turns (
                organization_id, task_id, turn, input, request, status, is_manually_stopped,
                created_at
            )
            SELECT upserted.organization_id, upserted.id, upserted.turns, new.input::json,
                   new.request::json, upserted.status, false, new.now
            FROM upserted
            JOIN new ON new.id = upserted.id
        ),
        announced AS (
            INSERT INTO task_events (organization_id, task_id, event, turn, type, data, created_at)
            SELECT upserted.organization_id, upserted.id, upserted.events, upserted.turns, $13,
                   '{}', new.now
            FROM upserted
            JOIN new ON new.id = upserted.id
            WHERE new.bucket = ANY((SELECT watched_buckets($11::int[]))::int[])
            RETURNING pg_notify($14, organization_id || ' ' || task_id)
        )
        SELECT task.id AS "id!: TaskId",
               task.user_id AS "user_id: UserId",
               task.parent_task_id AS "parent_task_id: TaskId",
               task.triggering_agent_id AS "triggering_agent_id: AgentId",
               task.turns AS "turns!", task.events AS "events!", task.created_at AS "created_at!",
               task.updated_at AS "updated_at!",
               ARRAY(
                   SELECT child.id FROM tasks child
                   WHERE child.organization_id = $1
                     AND child.organization_id = task.organization_id
                     AND child.parent_task_id = task.id
                   ORDER BY child.created_at, child.id
               ) AS "sub_executions!: Vec<TaskId>",
               ARRAY(
                   SELECT child.id FROM tasks child
                   WHERE child.organization_id = $1
                     AND child.organization_id = task.organization_id
                     AND child.parent_task_id = task.id
                     AND child.status IN ('error', 'failed', 'completed', 'stopped')
                   ORDER BY child.created_at, child.id
               ) AS "finished_sub_executions!: Vec<TaskId>"
        FROM upserted task
        "#,
        organization as OrganizationId,
        &column(turns, |turn| turn.invocation.id.as_str()) as &[&str],
        &column(turns, |turn| turn.invocation.agent_id.as_str()) as &[&str],
        &column(turns, |turn| turn.invocation.user_id.as_ref().map(UserId::as_str))
            as &[Option<&str>],
        &column(turns, |turn| turn.invocation.parent_task_id.as_ref().map(TaskId::as_str))
            as &[Option<&str>],
        &column(turns, |turn| turn.invocation.triggering_agent_id.as_ref().map(AgentId::as_str))
            as &[Option<&str>],
        &column(turns, |turn| turn.invocation.source.as_str()) as &[&str],
        &column(turns, |turn| turn.invocation.title()) as &[Option<&str>],
        &column(turns, |turn| turn.input.as_str()) as &[&str],
        &column(turns, |turn| turn.options.as_str()) as &[&str],
        &column(turns, |turn| bucket(organization, &turn.invocation.id)),
        &column(turns, |turn| turn.now),
        EventKind::CREATED,
        CHANNEL
    )
    .fetch_all(executor)
    .await?;
    let turn_of: HashMap<_, _> = turns.iter().map(|turn| (&turn.invocation.id, turn)).collect();
    let upserted = rows.into_iter().filter_map(|row| {
        let task = turn_of.get(&row.id)?.task(organization, row);
        Some((task.summary.id.clone(), task))
    });
    let mut tasks: HashMap<_, _> = upserted.collect();
    Ok(turns.iter().map(|turn| tasks.remove(&turn.invocation.id)).collect())
}

/// Locks tasks' rows until the transaction ends. Returns the ids of those that exist.
///
/// Rows are locked in the order of their ids, so two transactions that meet do not deadlock.
pub(super) async fn lock_tasks(
    connection: &mut PgConnection,
    organization: OrganizationId,
    ids: &[TaskId],
) -> Result<Vec<TaskId>, StoreError> {
    // The organization is also a column of `wanted`. With the value alone, statistics that do not
    // know a new organization would make the planner scan all its tasks. The value is there so that
    // a distributed table sends the statement to one node.
    let locked = sqlx::query_scalar!(
        r#"
        WITH wanted AS MATERIALIZED (
            SELECT $1::uuid AS organization_id, id COLLATE "C" AS id FROM unnest($2::text[]) AS id
        )
        SELECT task.id AS "id: TaskId"
        FROM wanted
        JOIN tasks task
            ON task.organization_id = wanted.organization_id AND task.id = wanted.id
        WHERE task.organization_id = $1
        ORDER BY task.id
        FOR UPDATE OF task
        "#,
        organization as OrganizationId,
        ids as &[TaskId]
    )
    .fetch_all(connection)
    .await?;
    Ok(locked)
}

/// Those of some tasks that are watched. A watcher that comes later waits until the transaction
/// ends, and then reads what it wrote.
pub(super) async fn watched_among(
    connection: &mut PgConnection,
    organization: OrganizationId,
    ids: &[TaskId],
) -> Result<HashSet<TaskId>, StoreError> {
    let buckets = column(ids, |id| bucket(organization, id));
    let watched = sqlx::query_scalar!(r#"SELECT watched_buckets($1) AS "watched!""#, &buckets)
        .fetch_one(connection)
        .await?;
    let is_watched = |id: &&TaskId| watched.contains(&bucket(organization, id));
    Ok(ids.iter().filter(is_watched).cloned().collect())
}

/// Writes tasks and their latest turns. The caller holds the locks on the tasks' rows.
pub(super) async fn update_tasks(
    connection: &mut PgConnection,
    organization: OrganizationId,
    tasks: &[&Task],
) -> Result<(), StoreError> {
    fn state<'a, T>(tasks: &[&'a Task], value: impl Fn(&'a TurnState) -> T) -> Vec<T> {
        tasks.iter().map(|task| value(&task.turn.state)).collect()
    }
    if tasks.is_empty() {
        return Ok(());
    }
    sqlx::query!(
        r#"
        WITH new AS MATERIALIZED (
            SELECT $1::uuid AS organization_id, id COLLATE "C" AS id, turn,
                   status::task_status AS status, internal_status, source, title, result,
                   updated_at, events, request, reported, last_executed_node_id,
                   is_manually_stopped, started_at, paused_at, finished_at
            FROM unnest(
                $2::text[], $3::int[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[],
                $9::timestamptz[], $10::bigint[], $11::text[], $12::text[], $13::text[],
                $14::boolean[], $15::timestamptz[], $16::timestamptz[], $17::timestamptz[]
            ) AS new (
                id, turn, status, internal_status, source, title, result, updated_at, events,
                request, reported, last_executed_node_id, is_manually_stopped, started_at,
                paused_at, finished_at
            )
        ),
        task AS (
            UPDATE tasks
            SET status = new.status, internal_status = new.internal_status, source = new.source,
                title = new.title, result = new.result, updated_at = new.updated_at,
                events = new.events
            FROM new
            WHERE tasks.organization_id = $1
              AND tasks.organization_id = new.organization_id
              AND tasks.id = new.id
        )
        UPDATE task_turns AS turn
        SET request = new.request::json, reported = new.reported::json, status = new.status,
            internal_status = new.internal_status, result = new.result,
            last_executed_node_id = new.last_executed_node_id,
            is_manually_stopped = new.is_manually_stopped,
            started_at = new.started_at, paused_at = new.paused_at, finished_at = new.finished_at
        FROM new
        WHERE turn.organization_id = $1
          AND turn.organization_id = new.organization_id
          AND turn.task_id = new.id
          AND turn.turn = new.turn
        "#,
        organization as OrganizationId,
        &column(tasks, |task| task.summary.id.as_str()) as &[&str],
        &column(tasks, |task| task.turn.number),
        &state(tasks, |state| state.status.as_str()) as &[&str],
        &state(tasks, |state| state.internal_status.as_ref().map(ShortText::as_str))
            as &[Option<&str>],
        &column(tasks, |task| task.summary.source.as_str()) as &[&str],
        &column(tasks, |task| task.summary.title.as_deref()) as &[Option<&str>],
        &state(tasks, |state| state.result.as_deref()) as &[Option<&str>],
        &column(tasks, |task| task.summary.updated_at),
        &column(tasks, |task| task.events),
        &column(tasks, |task| to_json(&task.turn.options)),
        &column(tasks, |task| to_json(&task.turn.details)),
        &state(tasks, |state| state.last_executed_node_id.as_deref()) as &[Option<&str>],
        &state(tasks, |state| state.is_manually_stopped),
        &state(tasks, |state| state.started_at) as &[Option<DateTime<Utc>>],
        &state(tasks, |state| state.paused_at) as &[Option<DateTime<Utc>>],
        &state(tasks, |state| state.finished_at) as &[Option<DateTime<Utc>>]
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// A row to insert into `task_events`.
pub(super) struct NewEventRow<'a> {
    pub(super) number: i64,
    pub(super) turn: i32,
    pub(super) kind: &'a str,
    pub(super) data: &'a str,
    pub(super) created_at: DateTime<Utc>,
}

/// Stores an event and notifies watchers. The caller holds the lock on the task's row.
pub(super) async fn insert_event(
    connection: &mut PgConnection,
    organization: OrganizationId,
    id: &TaskId,
    event: NewEventRow<'_>,
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
        event.created_at,
        CHANNEL
    )
    .fetch_one(connection)
    .await?;
    Ok(())
}
