//! The statements that update several turns at once: locking, reading what is decided on, writing
//! what changed. They do not move the texts of a task, which may have megabytes each.

use std::collections::{HashMap, HashSet};

use crate::store::pool::Transaction;
use chrono::{DateTime, Utc};
use sqlx::{Executor, Postgres};

use crate::domain::{
    EventKind, OrganizationId, Report, ShortText, Status, TaskId, TurnState, WireEnum,
};
use crate::store::StoreError;
use crate::store::events::CHANNEL;
use crate::store::sql::column;

/// Most bytes of texts of a task that a batch reads for its answer: half of them in its row, a
/// quarter each in the result and the JSON of its turn.
const MAX_SMALL_BYTES: i32 = 128 << 10;

/// Most sub-tasks of a task that a batch reads for its answer.
const MAX_SMALL_SUB_TASKS: i64 = 100;

/// A task whose row is locked.
pub(in crate::store) struct LockedTask {
    pub(super) id: TaskId,
    /// The number of its latest turn.
    pub(super) turns: i32,
    /// Whether its summary is small enough to be read in a batch.
    pub(super) is_small: bool,
}

/// Locks tasks' rows until the transaction ends. Returns those that exist.
///
/// Rows are locked in the order of their ids, so two transactions that meet do not deadlock.
pub(in crate::store) async fn lock_tasks(
    connection: &mut Transaction,
    organization: OrganizationId,
    ids: &[&TaskId],
) -> Result<Vec<LockedTask>, StoreError> {
    // The organization is also a column of `wanted`. With the value alone, statistics that do not
    // know a new organization would make the planner scan all its tasks. The value is there so that
    // a distributed table sends the statement to one node.
    //
    // The size of a text is known without reading it.
    let locked = sqlx::query_as!(
        LockedTask,
        r#"
        WITH wanted AS MATERIALIZED (
            SELECT $1::uuid AS organization_id, id COLLATE "C" AS id FROM unnest($2::text[]) AS id
        )
        SELECT task.id AS "id: TaskId", task.turns,
               COALESCE(octet_length(task.title), 0) <= $3 / 2
                   AND NOT EXISTS (
                       SELECT FROM tasks child
                       WHERE child.organization_id = $1
                         AND child.organization_id = task.organization_id
                         AND child.parent_task_id = task.id
                       OFFSET $4
                   ) AS "is_small!"
        FROM wanted
        JOIN tasks task
            ON task.organization_id = wanted.organization_id AND task.id = wanted.id
        WHERE task.organization_id = $1
        ORDER BY task.id
        FOR UPDATE OF task
        "#,
        organization as OrganizationId,
        &column(ids, |id| id.as_str()) as &[&str],
        MAX_SMALL_BYTES,
        MAX_SMALL_SUB_TASKS
    )
    .fetch_all(connection)
    .await?;
    Ok(locked)
}

/// Those of some tasks that another transaction has locked. It does not wait for them.
pub(super) async fn locked_among(
    executor: impl Executor<'_, Database = Postgres>,
    organization: OrganizationId,
    ids: &[TaskId],
) -> Result<HashSet<TaskId>, StoreError> {
    let locked = sqlx::query_scalar!(
        r#"
        WITH wanted AS MATERIALIZED (
            SELECT $1::uuid AS organization_id, id COLLATE "C" AS id FROM unnest($2::text[]) AS id
        ),
        free AS MATERIALIZED (
            SELECT task.id
            FROM wanted
            JOIN tasks task
                ON task.organization_id = wanted.organization_id AND task.id = wanted.id
            WHERE task.organization_id = $1
            ORDER BY task.id
            FOR UPDATE OF task SKIP LOCKED
        )
        SELECT task.id AS "id: TaskId"
        FROM wanted
        JOIN tasks task
            ON task.organization_id = wanted.organization_id AND task.id = wanted.id
        WHERE task.organization_id = $1 AND NOT EXISTS (SELECT FROM free WHERE free.id = task.id)
        "#,
        organization as OrganizationId,
        ids as &[TaskId]
    )
    .fetch_all(executor)
    .await?;
    Ok(locked.into_iter().collect())
}

/// What an update of a turn is decided on.
pub(super) struct TurnProgress {
    status: Status,
    is_manually_stopped: bool,
    started_at: Option<DateTime<Utc>>,
    paused_at: Option<DateTime<Utc>>,
    finished_at: Option<DateTime<Utc>>,
    /// Whether the turn has the result that was asked about.
    pub(super) has_result: bool,
    /// Whether it is small enough to be read in a batch.
    pub(super) is_small: bool,
}

impl TurnProgress {
    /// The state of the turn, without its texts.
    pub(super) fn state(&self) -> TurnState {
        TurnState {
            status: self.status,
            is_manually_stopped: self.is_manually_stopped,
            started_at: self.started_at,
            paused_at: self.paused_at,
            finished_at: self.finished_at,
            ..TurnState::pending()
        }
    }
}

/// A turn to read, and the result that it is asked about.
pub(super) struct WantedTurn<'a> {
    pub(super) task: &'a TaskId,
    pub(super) turn: i32,
    pub(super) result: Option<&'a str>,
}

/// Reads turns of several tasks. The caller holds the locks on the tasks' rows: a statement sees
/// only turns that were committed before it began, so it has to begin after them.
pub(super) async fn read_progress(
    connection: &mut Transaction,
    organization: OrganizationId,
    wanted: &[WantedTurn<'_>],
) -> Result<HashMap<TaskId, TurnProgress>, StoreError> {
    // lz4 makes texts smaller by 255 times at most, so what takes few bytes in the table is small.
    // What takes some is read, by the server, to know how long it is.
    let rows = sqlx::query!(
        r#"
        WITH wanted AS MATERIALIZED (
            SELECT $1::uuid AS organization_id, id COLLATE "C" AS id, turn, result
            FROM unnest($2::text[], $3::int[], $4::text[]) AS wanted (id, turn, result)
        )
        SELECT turn.task_id AS "id: TaskId", turn.status AS "status: Status",
               turn.is_manually_stopped, turn.started_at, turn.paused_at, turn.finished_at,
               COALESCE(turn.result = wanted.result, false) AS "has_result!",
               COALESCE(octet_length(turn.result), 0) <= $5 / 4
                   AND CASE
                       WHEN size.stored <= $5 / 4 / 256 THEN true
                       WHEN size.stored > 8192 THEN false
                       ELSE octet_length(turn.input::text) + octet_length(turn.request::text)
                            + octet_length(turn.reported::text) <= $5 / 4
                   END AS "is_small!"
        FROM wanted
        JOIN task_turns turn
            ON turn.organization_id = wanted.organization_id
            AND turn.task_id = wanted.id
            AND turn.turn = wanted.turn
        CROSS JOIN LATERAL (
            SELECT pg_column_size(turn.input) + pg_column_size(turn.request)
                   + pg_column_size(turn.reported) AS stored
        ) AS size
        WHERE turn.organization_id = $1
        "#,
        organization as OrganizationId,
        &column(wanted, |wanted| wanted.task.as_str()) as &[&str],
        &column(wanted, |wanted| wanted.turn),
        &column(wanted, |wanted| wanted.result) as &[Option<&str>],
        MAX_SMALL_BYTES
    )
    .fetch_all(connection)
    .await?;
    let turns = rows.into_iter().map(|row| {
        let progress = TurnProgress {
            status: row.status,
            is_manually_stopped: row.is_manually_stopped,
            started_at: row.started_at,
            paused_at: row.paused_at,
            finished_at: row.finished_at,
            has_result: row.has_result,
            is_small: row.is_small,
        };
        (row.id, progress)
    });
    Ok(turns.collect())
}

/// A turn to update.
pub(super) struct ChangedTurn<'a> {
    pub(super) task: &'a TaskId,
    pub(super) turn: i32,
    /// Whether it is its task's latest turn, which lists show.
    pub(super) is_latest: bool,
    /// Its new status and times.
    pub(super) state: TurnState,
    /// What else changes, if a runner reported it.
    pub(super) report: Option<&'a Report>,
    /// The options that change, as a JSON object.
    pub(super) options: Option<&'a str>,
    /// The details that change, as a JSON object.
    pub(super) details: Option<&'a str>,
    /// Whether its pending requests end: only a paused turn has them.
    pub(super) drops_requests: bool,
    pub(super) now: DateTime<Utc>,
}

/// Writes turns and the summaries of their tasks, and stores the events that are watched. The
/// caller holds the locks on the tasks' rows.
#[expect(clippy::too_many_lines, reason = "one statement, most of it SQL and its parameters")]
pub(super) async fn update_turns(
    connection: &mut Transaction,
    organization: OrganizationId,
    turns: &[ChangedTurn<'_>],
) -> Result<(), StoreError> {
    fn said<'a>(
        turns: &'a [ChangedTurn<'_>],
        value: impl Fn(&'a Report) -> Option<&'a str>,
    ) -> Vec<Option<&'a str>> {
        column(turns, |turn| turn.report.and_then(&value))
    }
    if turns.is_empty() {
        return Ok(());
    }
    // A column that is assigned itself keeps the text that it points to; any other value, also an
    // equal one, is a new text. JSON is merged field by field, so that each keeps its text.
    sqlx::query!(
        r#"
        WITH new AS MATERIALIZED (
            SELECT $1::uuid AS organization_id, id COLLATE "C" AS id, turn, is_latest,
                   status::task_status AS status, is_manually_stopped, started_at, paused_at,
                   finished_at, internal_status, result, last_executed_node_id, source, title,
                   options::json AS options, details::json AS details, drops_requests, now
            FROM unnest(
                $2::text[], $3::int[], $4::boolean[], $5::text[], $6::boolean[], $7::timestamptz[],
                $8::timestamptz[], $9::timestamptz[], $10::text[], $11::text[], $12::text[],
                $13::text[], $14::text[], $15::text[], $16::text[], $17::boolean[],
                $18::timestamptz[]
            ) AS new (
                id, turn, is_latest, status, is_manually_stopped, started_at, paused_at,
                finished_at, internal_status, result, last_executed_node_id, source, title, options,
                details, drops_requests, now
            )
        ),
        task AS (
            UPDATE tasks
            SET status = CASE WHEN new.is_latest THEN new.status ELSE tasks.status END,
                internal_status = CASE
                    WHEN new.is_latest THEN COALESCE(new.internal_status, tasks.internal_status)
                    ELSE tasks.internal_status
                END,
                source = CASE
                    WHEN new.is_latest THEN COALESCE(new.source, tasks.source)
                    ELSE tasks.source
                END,
                title = CASE
                    WHEN NOT new.is_latest OR new.title = tasks.title THEN tasks.title
                    ELSE COALESCE(new.title, tasks.title)
                END,
                result = CASE
                    WHEN NOT new.is_latest OR new.result = tasks.result THEN tasks.result
                    ELSE COALESCE(new.result, tasks.result)
                END,
                updated_at = CASE
                    WHEN new.is_latest THEN GREATEST(tasks.updated_at, new.now)
                    ELSE tasks.updated_at
                END,
                events = tasks.events + 1
            FROM new
            WHERE tasks.organization_id = $1
              AND tasks.organization_id = new.organization_id
              AND tasks.id = new.id
            RETURNING tasks.id, tasks.events
        ),
        turn AS (
            UPDATE task_turns AS turn
            SET request = CASE
                    WHEN new.options IS NOT NULL AND EXISTS (
                        SELECT FROM json_each(new.options) AS change
                        WHERE (turn.request -> change.key)::text
                              IS DISTINCT FROM change.value::text
                    )
                    THEN (
                        SELECT json_object_agg(merged.key, merged.value)
                        FROM (
                            SELECT key, value FROM json_each(turn.request)
                            WHERE (new.options -> key) IS NULL
                            UNION ALL
                            SELECT key, value FROM json_each(new.options)
                        ) AS merged
                    )
                    ELSE turn.request
                END,
                reported = CASE
                    WHEN new.drops_requests OR new.details IS NOT NULL AND EXISTS (
                        SELECT FROM json_each(new.details) AS change
                        WHERE (turn.reported -> change.key)::text
                              IS DISTINCT FROM change.value::text
                    )
                    THEN (
                        SELECT COALESCE(json_object_agg(merged.key, merged.value), '{}')
                        FROM (
                            SELECT key, value FROM json_each(turn.reported)
                            WHERE (new.details -> key) IS NULL
                            UNION ALL
                            SELECT key, value FROM json_each(new.details)
                        ) AS merged
                        WHERE new.status = 'paused'
                           OR merged.key NOT IN ('hitl_request', 'pending_eca_request')
                    )
                    ELSE turn.reported
                END,
                status = new.status,
                internal_status = COALESCE(new.internal_status, turn.internal_status),
                result = CASE
                    WHEN new.result = turn.result THEN turn.result
                    ELSE COALESCE(new.result, turn.result)
                END,
                last_executed_node_id = CASE
                    WHEN new.last_executed_node_id = turn.last_executed_node_id
                    THEN turn.last_executed_node_id
                    ELSE COALESCE(new.last_executed_node_id, turn.last_executed_node_id)
                END,
                is_manually_stopped = new.is_manually_stopped, started_at = new.started_at,
                paused_at = new.paused_at, finished_at = new.finished_at
            FROM new
            WHERE turn.organization_id = $1
              AND turn.organization_id = new.organization_id
              AND turn.task_id = new.id
              AND turn.turn = new.turn
            RETURNING turn.task_id, turn.turn, turn.status, turn.internal_status, turn.result,
                      turn.last_executed_node_id, turn.is_manually_stopped, turn.started_at,
                      turn.paused_at, turn.finished_at, new.now
        )
        INSERT INTO task_events (organization_id, task_id, event, turn, type, data, created_at)
        SELECT $1, task.id, task.events, turn.turn,
               CASE WHEN turn.status IN ('error', 'failed', 'completed', 'stopped') THEN $19
                    ELSE $20 END,
               json_build_object(
                   'status', turn.status, 'internal_status', turn.internal_status,
                   'result', turn.result, 'last_executed_node_id', turn.last_executed_node_id,
                   'is_manually_stopped', turn.is_manually_stopped, 'started_at', turn.started_at,
                   'paused_at', turn.paused_at, 'finished_at', turn.finished_at
               ),
               turn.now
        FROM turn
        JOIN task ON task.id = turn.task_id
        WHERE turn.task_id = ANY((SELECT watched_tasks($1, $2::text[]))::text[])
        RETURNING pg_notify($21, organization_id || ' ' || task_id)
        "#,
        organization as OrganizationId,
        &column(turns, |turn| turn.task.as_str()) as &[&str],
        &column(turns, |turn| turn.turn),
        &column(turns, |turn| turn.is_latest),
        &column(turns, |turn| turn.state.status.as_str()) as &[&str],
        &column(turns, |turn| turn.state.is_manually_stopped),
        &column(turns, |turn| turn.state.started_at) as &[Option<DateTime<Utc>>],
        &column(turns, |turn| turn.state.paused_at) as &[Option<DateTime<Utc>>],
        &column(turns, |turn| turn.state.finished_at) as &[Option<DateTime<Utc>>],
        &said(turns, |report| report.internal_status.as_ref().map(ShortText::as_str))
            as &[Option<&str>],
        &said(turns, |report| report.result.as_deref()) as &[Option<&str>],
        &said(turns, |report| report.last_executed_node_id.as_deref()) as &[Option<&str>],
        &said(turns, |report| report.source.as_ref().map(ShortText::as_str)) as &[Option<&str>],
        &said(turns, |report| report.title.as_deref()) as &[Option<&str>],
        &column(turns, |turn| turn.options) as &[Option<&str>],
        &column(turns, |turn| turn.details) as &[Option<&str>],
        &column(turns, |turn| turn.drops_requests),
        &column(turns, |turn| turn.now),
        EventKind::FINISHED,
        EventKind::UPDATED,
        CHANNEL
    )
    .fetch_all(connection)
    .await?;
    Ok(())
}
