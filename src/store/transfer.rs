//! Export and import of whole tasks, many at a time.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use super::sql::{column, parse_json, to_json};
use super::{Store, StoreError};
use crate::domain::{
    AgentId, ExportedEvent, ExportedTask, ExportedTurn, Input, InvocationOptions, OrganizationId,
    ShortText, Status, TaskId, TurnDetails, UserId, WireEnum,
};

/// How many tasks are read at a time.
const PAGE_SIZE: i64 = 500;

impl Store {
    /// Imports tasks, each with another id, with everything that was recorded of them. Existing
    /// tasks are left unchanged. Returns how many were imported. Committed when this returns, all
    /// or none.
    #[expect(clippy::too_many_lines, reason = "one statement, most of it SQL and its parameters")]
    pub async fn import_tasks(
        &self,
        organization: OrganizationId,
        records: &[ExportedTask],
    ) -> Result<usize, StoreError> {
        let turns: Vec<_> = records
            .iter()
            .flat_map(|record| {
                (1_i32..).zip(&record.turns).map(|(number, turn)| (&record.id, number, turn))
            })
            .collect();
        let events: Vec<_> = records
            .iter()
            .flat_map(|record| record.events.iter().map(|event| (&record.id, event)))
            .collect();
        // Rows are locked in the order of their ids, as by every other write.
        let written = sqlx::query_scalar!(
            r#"
            WITH task AS (
                INSERT INTO tasks (
                    organization_id, id, agent_id, user_id, parent_task_id, triggering_agent_id,
                    status, internal_status, source, title, result, turns, events, created_at,
                    updated_at
                )
                SELECT $1, id, agent_id, user_id, parent_task_id, triggering_agent_id,
                       status::task_status, internal_status, source, title, result, turns, events,
                       created_at, updated_at
                FROM unnest(
                    $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[],
                    $8::text[], $9::text[], $10::text[], $11::text[], $12::int[], $13::bigint[],
                    $14::timestamptz[], $15::timestamptz[]
                ) AS new (
                    id, agent_id, user_id, parent_task_id, triggering_agent_id, status,
                    internal_status, source, title, result, turns, events, created_at, updated_at
                )
                ORDER BY id COLLATE "C"
                ON CONFLICT (organization_id, id) DO NOTHING
                RETURNING id
            ),
            turn AS (
                INSERT INTO task_turns (
                    organization_id, task_id, turn, input, request, reported, status,
                    internal_status, result, last_executed_node_id, is_manually_stopped, created_at,
                    started_at, paused_at, finished_at
                )
                SELECT $1, task.id, turn, input::json, request::json, reported::json,
                       status::task_status, internal_status, result, last_executed_node_id,
                       is_manually_stopped, created_at, started_at, paused_at, finished_at
                FROM unnest(
                    $16::text[], $17::int[], $18::text[], $19::text[], $20::text[], $21::text[],
                    $22::text[], $23::text[], $24::text[], $25::boolean[], $26::timestamptz[],
                    $27::timestamptz[], $28::timestamptz[], $29::timestamptz[]
                ) AS new (
                    task_id, turn, input, request, reported, status, internal_status, result,
                    last_executed_node_id, is_manually_stopped, created_at, started_at, paused_at,
                    finished_at
                )
                JOIN task ON task.id = new.task_id COLLATE "C"
            ),
            event AS (
                INSERT INTO task_events (
                    organization_id, task_id, event, turn, type, data, created_at
                )
                SELECT $1, task.id, event, turn, type, data::json, created_at
                FROM unnest(
                    $30::text[], $31::bigint[], $32::int[], $33::text[], $34::text[],
                    $35::timestamptz[]
                ) AS new (task_id, event, turn, type, data, created_at)
                JOIN task ON task.id = new.task_id COLLATE "C"
            )
            SELECT count(*) AS "count!" FROM task
            "#,
            organization as OrganizationId,
            &column(records, |record| record.id.as_str()) as &[&str],
            &column(records, |record| record.agent_id.as_str()) as &[&str],
            &column(records, |record| record.user_id.as_ref().map(UserId::as_str))
                as &[Option<&str>],
            &column(records, |record| record.parent_task_id.as_ref().map(TaskId::as_str))
                as &[Option<&str>],
            &column(records, |record| record.triggering_agent_id.as_ref().map(AgentId::as_str))
                as &[Option<&str>],
            &column(records, |record| record.latest().status.as_str()) as &[&str],
            &column(records, |record| record
                .latest()
                .internal_status
                .as_ref()
                .map(ShortText::as_str)) as &[Option<&str>],
            &column(records, |record| record.source.as_str()) as &[&str],
            &column(records, ExportedTask::list_title) as &[Option<&str>],
            &column(records, |record| record.latest().result.as_deref()) as &[Option<&str>],
            &column(records, |record| i32::try_from(record.turns.len()).unwrap_or(i32::MAX)),
            &column(records, ExportedTask::events_so_far),
            &column(records, |record| record.created_at),
            &column(records, |record| record.updated_at),
            &column(&turns, |(id, ..)| id.as_str()) as &[&str],
            &column(&turns, |(_, number, _)| *number),
            &column(&turns, |(.., turn)| to_json(&turn.input)),
            &column(&turns, |(.., turn)| to_json(&turn.options)),
            &column(&turns, |(.., turn)| to_json(&turn.details)),
            &column(&turns, |(.., turn)| turn.status.as_str()) as &[&str],
            &column(&turns, |(.., turn)| turn.internal_status.as_ref().map(ShortText::as_str))
                as &[Option<&str>],
            &column(&turns, |(.., turn)| turn.result.as_deref()) as &[Option<&str>],
            &column(&turns, |(.., turn)| turn.last_executed_node_id.as_deref())
                as &[Option<&str>],
            &column(&turns, |(.., turn)| turn.is_manually_stopped),
            &column(&turns, |(.., turn)| turn.created_at),
            &column(&turns, |(.., turn)| turn.started_at) as &[Option<DateTime<Utc>>],
            &column(&turns, |(.., turn)| turn.paused_at) as &[Option<DateTime<Utc>>],
            &column(&turns, |(.., turn)| turn.finished_at) as &[Option<DateTime<Utc>>],
            &column(&events, |(id, _)| id.as_str()) as &[&str],
            &column(&events, |(_, event)| event.event),
            &column(&events, |(_, event)| event.turn),
            &column(&events, |(_, event)| event.r#type.as_str()) as &[&str],
            &column(&events, |(_, event)| event.data.to_string()),
            &column(&events, |(_, event)| event.created_at)
        )
        .fetch_one(&self.pool)
        .await?;
        Ok(usize::try_from(written).unwrap_or(0))
    }

    /// Exports the tasks of an organization, or of one of its agents, all of one snapshot. `take`
    /// gets a few hundred at a time, in the order of their ids. It returns false to stop.
    pub async fn export_tasks(
        &self,
        organization: OrganizationId,
        agent: Option<&AgentId>,
        mut take: impl FnMut(Vec<ExportedTask>) -> bool,
    ) -> Result<(), StoreError> {
        let mut transaction = self.pool.begin_snapshot().await?;
        let mut after = String::new();
        loop {
            let records = read_page(&mut transaction, organization, agent, &after).await?;
            let Some(last) = records.last() else { break };
            last.id.as_str().clone_into(&mut after);
            if !take(records) {
                break;
            }
        }
        transaction.rollback().await?;
        Ok(())
    }
}

#[expect(clippy::too_many_lines, reason = "three statements, most of it SQL and columns")]
async fn read_page(
    connection: &mut PgConnection,
    organization: OrganizationId,
    agent: Option<&AgentId>,
    after: &str,
) -> Result<Vec<ExportedTask>, StoreError> {
    let tasks = sqlx::query!(
        r#"
        SELECT id AS "id: TaskId", agent_id AS "agent_id: AgentId", user_id AS "user_id: UserId",
               parent_task_id AS "parent_task_id: TaskId",
               triggering_agent_id AS "triggering_agent_id: AgentId",
               source AS "source: ShortText", title, created_at, updated_at
        FROM tasks
        WHERE organization_id = $1 AND id > $2 AND ($3::text IS NULL OR agent_id = $3)
        ORDER BY id
        LIMIT $4
        "#,
        organization as OrganizationId,
        after,
        agent as Option<&AgentId>,
        PAGE_SIZE
    )
    .fetch_all(&mut *connection)
    .await?;
    let ids: Vec<_> = tasks.iter().map(|task| task.id.clone()).collect();
    let turns = sqlx::query!(
        r#"
        SELECT task_id AS "task_id: TaskId", turn, input::text AS "input!",
               request::text AS "request!", reported::text AS "reported!",
               status AS "status: Status", internal_status AS "internal_status: ShortText",
               result, last_executed_node_id, is_manually_stopped, created_at, started_at,
               paused_at, finished_at
        FROM task_turns
        WHERE organization_id = $1 AND task_id = ANY($2)
        ORDER BY task_id, turn
        "#,
        organization as OrganizationId,
        &ids as &[TaskId]
    )
    .fetch_all(&mut *connection)
    .await?;
    let events = sqlx::query!(
        r#"
        SELECT task_id AS "task_id: TaskId", event, turn, type AS kind, data::text AS "data!",
               created_at
        FROM task_events
        WHERE organization_id = $1 AND task_id = ANY($2)
        ORDER BY task_id, event
        "#,
        organization as OrganizationId,
        &ids as &[TaskId]
    )
    .fetch_all(connection)
    .await?;
    let mut turns_of: HashMap<TaskId, Vec<ExportedTurn>> = HashMap::new();
    for turn in turns {
        let row = || format!("{organization}, {}, turn {}", turn.task_id, turn.turn);
        let record = ExportedTurn {
            input: parse_json::<Input>("task_turns", &turn.input, row)?,
            options: parse_json::<InvocationOptions>("task_turns", &turn.request, row)?,
            details: parse_json::<TurnDetails>("task_turns", &turn.reported, row)?,
            status: turn.status,
            internal_status: turn.internal_status,
            result: turn.result,
            last_executed_node_id: turn.last_executed_node_id,
            is_manually_stopped: turn.is_manually_stopped,
            created_at: turn.created_at,
            started_at: turn.started_at,
            paused_at: turn.paused_at,
            finished_at: turn.finished_at,
        };
        turns_of.entry(turn.task_id).or_default().push(record);
    }
    let mut events_of: HashMap<TaskId, Vec<ExportedEvent>> = HashMap::new();
    for event in events {
        let row = || format!("{organization}, {}, event {}", event.task_id, event.event);
        let record = ExportedEvent {
            event: event.event,
            turn: event.turn,
            data: parse_json("task_events", &event.data, row)?,
            r#type: event.kind,
            created_at: event.created_at,
        };
        events_of.entry(event.task_id).or_default().push(record);
    }
    let records = tasks.into_iter().map(|task| {
        let turns = turns_of.remove(&task.id).unwrap_or_default();
        let mut record = ExportedTask {
            events: events_of.remove(&task.id).unwrap_or_default(),
            id: task.id,
            agent_id: task.agent_id,
            user_id: task.user_id,
            parent_task_id: task.parent_task_id,
            triggering_agent_id: task.triggering_agent_id,
            source: task.source,
            title: None,
            created_at: task.created_at,
            updated_at: task.updated_at,
            turns,
        };
        // The title is exported only if it differs from the latest turn's.
        if !record.turns.is_empty() && record.list_title() != task.title.as_deref() {
            record.title = task.title;
        }
        record
    });
    Ok(records.collect())
}
