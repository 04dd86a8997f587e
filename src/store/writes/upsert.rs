//! The statement that records several invocations at once.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use sqlx::{Executor, Postgres};

use super::new_turn::{NewTurn, UpsertedRow};
use crate::domain::{AgentId, EventKind, OrganizationId, Task, TaskId, UserId, WireEnum};
use crate::store::StoreError;
use crate::store::events::CHANNEL;
use crate::store::sql::column;
use crate::store::tasks::query_with_sub_tasks;

/// Creates tasks or adds turns to them, each turn of another task. `None` for a task that belongs
/// to another agent, of which nothing is written.
#[expect(clippy::too_many_lines, reason = "one statement, most of it SQL and its parameters")]
pub(super) async fn upsert_tasks(
    executor: impl Executor<'_, Database = Postgres>,
    organization: OrganizationId,
    turns: &[&NewTurn],
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
    let rows = query_with_sub_tasks!(
        UpsertedRow;
        r#"
        WITH new AS (
            SELECT id COLLATE "C" AS id, agent_id, user_id, parent_task_id, triggering_agent_id,
                   source, title, input, request, now, status::task_status AS status,
                   result, reported, finished_at
            FROM unnest(
                $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[],
                $9::text[], $10::text[], $11::timestamptz[], $12::text[], $13::text[],
                $14::text[], $15::timestamptz[]
            ) AS new (
                id, agent_id, user_id, parent_task_id, triggering_agent_id, source, title, input,
                request, now, status, result, reported, finished_at
            )
        ),
        upserted AS (
            INSERT INTO tasks AS task (
                organization_id, id, agent_id, user_id, parent_task_id, triggering_agent_id, status,
                internal_status, source, title, result, turns, events, created_at, updated_at
            )
            SELECT $1, id, agent_id, user_id, parent_task_id, triggering_agent_id,
                   status, NULL, source, title, result, 1,
                   CASE WHEN status = 'pending' THEN 1 ELSE 2 END, now, now
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
                events = task.events + EXCLUDED.events,
                updated_at = GREATEST(task.updated_at, EXCLUDED.updated_at)
            WHERE task.agent_id = EXCLUDED.agent_id
            RETURNING *
        ),
        turn AS (
            INSERT INTO task_turns (
                organization_id, task_id, turn, input, request, reported, status, result,
                is_manually_stopped, created_at, finished_at
            )
            SELECT upserted.organization_id, upserted.id, upserted.turns, new.input::json,
                   new.request::json, new.reported::json, upserted.status, new.result, false,
                   new.now, new.finished_at
            FROM upserted
            JOIN new ON new.id = upserted.id
        ),
        announced AS (
            INSERT INTO task_events (organization_id, task_id, event, turn, type, data, created_at)
            SELECT upserted.organization_id, upserted.id, event.number, upserted.turns, event.type,
                   event.data, new.now
            FROM upserted
            JOIN new ON new.id = upserted.id
            CROSS JOIN LATERAL (
                SELECT CASE WHEN new.status = 'pending' THEN upserted.events
                            ELSE upserted.events - 1 END AS number,
                       $16 AS type, '{}'::json AS data
                UNION ALL
                SELECT upserted.events, $17, json_build_object(
                           'status', new.status, 'result', new.result, 'is_manually_stopped', false,
                           'finished_at', new.finished_at
                       )
                WHERE new.status <> 'pending'
            ) AS event
            WHERE new.id = ANY((SELECT watched_tasks($1, $2::text[]))::text[])
            RETURNING pg_notify($18, organization_id || ' ' || task_id)
        )
        SELECT task.id AS "id!: TaskId",
               task.user_id AS "user_id: UserId",
               task.parent_task_id AS "parent_task_id: TaskId",
               task.triggering_agent_id AS "triggering_agent_id: AgentId",
               task.turns AS "turns!", task.events AS "events!", task.created_at AS "created_at!",
               task.updated_at AS "updated_at!"
        "#;
        "FROM upserted task";
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
        &column(turns, |turn| turn.now),
        &column(turns, |turn| turn.state.status.as_str()) as &[&str],
        &column(turns, |turn| turn.state.result.as_deref()) as &[Option<&str>],
        &column(turns, |turn| turn.details_json.as_str()) as &[&str],
        &column(turns, |turn| turn.state.finished_at) as &[Option<DateTime<Utc>>],
        EventKind::CREATED,
        EventKind::FINISHED,
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
