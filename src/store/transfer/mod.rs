//! Export and import of whole tasks, many at a time.

mod export;
mod large;

use chrono::{DateTime, Utc};

pub use export::TaskExport;
pub use large::LargeTaskImport;

use super::sql::column;
use super::{Store, StoreError};
use crate::domain::{AgentId, CompleteTask, OrganizationId, ShortText, TaskId, UserId, WireEnum};

impl Store {
    /// Imports tasks, each with another id, with everything that was recorded of them. Existing
    /// tasks are left unchanged. Returns how many were imported. Committed when this returns, all
    /// or none.
    #[expect(clippy::too_many_lines, reason = "one statement, most of it SQL and its parameters")]
    pub async fn import_tasks(
        &self,
        organization: OrganizationId,
        records: &[CompleteTask],
    ) -> Result<usize, StoreError> {
        let tasks: Vec<_> = records.iter().map(|record| &record.task).collect();
        let turns: Vec<_> = records
            .iter()
            .flat_map(|record| record.turns.iter().map(|turn| (&record.task.id, turn)))
            .collect();
        let events: Vec<_> = records
            .iter()
            .flat_map(|record| record.events.iter().map(|event| (&record.task.id, event)))
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
            &column(&tasks, |task| task.id.as_str()) as &[&str],
            &column(&tasks, |task| task.agent_id.as_str()) as &[&str],
            &column(&tasks, |task| task.user_id.as_ref().map(UserId::as_str)) as &[Option<&str>],
            &column(&tasks, |task| task.parent_task_id.as_ref().map(TaskId::as_str))
                as &[Option<&str>],
            &column(&tasks, |task| task.triggering_agent_id.as_ref().map(AgentId::as_str))
                as &[Option<&str>],
            &column(records, |record| record.latest().status.as_str()) as &[&str],
            &column(records, |record| record
                .latest()
                .internal_status
                .as_ref()
                .map(ShortText::as_str)) as &[Option<&str>],
            &column(&tasks, |task| task.source.as_str()) as &[&str],
            &column(&tasks, |task| task.title.as_deref()) as &[Option<&str>],
            &column(records, |record| record.latest().result.as_deref()) as &[Option<&str>],
            &column(&tasks, |task| task.turns),
            &column(&tasks, |task| task.last_event),
            &column(&tasks, |task| task.created_at),
            &column(&tasks, |task| task.updated_at),
            &column(&turns, |(id, _)| id.as_str()) as &[&str],
            &column(&turns, |(_, turn)| turn.number),
            &column(&turns, |(_, turn)| turn.input.get()) as &[&str],
            &column(&turns, |(_, turn)| turn.request_json()) as &[&str],
            &column(&turns, |(_, turn)| turn.reported_json()) as &[&str],
            &column(&turns, |(_, turn)| turn.status.as_str()) as &[&str],
            &column(&turns, |(_, turn)| turn.internal_status.as_ref().map(ShortText::as_str))
                as &[Option<&str>],
            &column(&turns, |(_, turn)| turn.result.as_deref()) as &[Option<&str>],
            &column(&turns, |(_, turn)| turn.last_executed_node_id.as_deref()) as &[Option<&str>],
            &column(&turns, |(_, turn)| turn.is_manually_stopped),
            &column(&turns, |(_, turn)| turn.created_at),
            &column(&turns, |(_, turn)| turn.started_at) as &[Option<DateTime<Utc>>],
            &column(&turns, |(_, turn)| turn.paused_at) as &[Option<DateTime<Utc>>],
            &column(&turns, |(_, turn)| turn.finished_at) as &[Option<DateTime<Utc>>],
            &column(&events, |(id, _)| id.as_str()) as &[&str],
            &column(&events, |(_, event)| event.number),
            &column(&events, |(_, event)| event.turn),
            &column(&events, |(_, event)| event.r#type.as_str()) as &[&str],
            &column(&events, |(_, event)| event.data.get()) as &[&str],
            &column(&events, |(_, event)| event.created_at)
        )
        .fetch_one(self.pool.shared())
        .await?;
        Ok(usize::try_from(written).unwrap_or(0))
    }

    /// How many of some tasks, each with another id, exist.
    pub async fn count_existing_tasks(
        &self,
        organization: OrganizationId,
        ids: &[&TaskId],
    ) -> Result<usize, StoreError> {
        let existing = sqlx::query_scalar!(
            r#"
            SELECT count(*) AS "count!"
            FROM tasks
            WHERE organization_id = $1 AND id = ANY($2)
            "#,
            organization as OrganizationId,
            &column(ids, |id| id.as_str()) as &[&str]
        )
        .fetch_one(self.pool.shared())
        .await?;
        Ok(usize::try_from(existing).unwrap_or(0))
    }
}
