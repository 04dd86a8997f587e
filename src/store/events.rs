//! What happened to tasks.

use chrono::{DateTime, Utc};
use serde_json::Value;

use super::tasks::{TaskRow, parse_json, select_task};
use super::{Store, StoreError, Watch};
use crate::domain::{AgentId, Event, EventKind, Label, OrganizationId, Status, Task, TaskId, UserId};

/// Most events that are read at once.
const MAX_EVENTS: i64 = 100;

/// What happened to a task after some event.
#[derive(Debug)]
pub struct Events {
    /// The events that were written down, in order; at most a hundred, and then the rest comes with the next reading.
    pub events: Vec<Event>,
    /// The number of the task's latest event, written down or not.
    pub latest: i64,
    /// Whether there are more events to read now.
    pub has_more: bool,
}

impl Store {
    /// Watches a task: what is committed after this returns wakes the watch; what was before can be read.
    pub async fn watch_task(&self, organization: OrganizationId, id: &TaskId) -> Result<Watch, StoreError> {
        self.hub.watch(organization, id).await
    }

    /// What happened to a task after the event with a number, or `None` where the organisation has no such task.
    pub async fn read_events(
        &self,
        organization: OrganizationId,
        id: &TaskId,
        after: i64,
    ) -> Result<Option<Events>, StoreError> {
        let mut connection = self.pool.get().await?;
        let rows = sqlx::query!(
            r#"
            SELECT t.events AS latest, e.event AS "event?", e.turn AS "turn?", e.type AS "kind?",
                   e.data::text AS data, e.created_at AS "created_at?"
            FROM tasks t
            LEFT JOIN task_events e
                ON e.organization_id = t.organization_id AND e.task_id = t.id AND e.event > $3
            WHERE t.organization_id = $1 AND t.id = $2
            ORDER BY e.event
            LIMIT $4
            "#,
            organization as OrganizationId,
            id as &TaskId,
            after,
            MAX_EVENTS
        )
        .fetch_all(&mut *connection)
        .await?;
        connection.done();
        let Some(latest) = rows.first().map(|row| row.latest) else { return Ok(None) };
        let has_more = i64::try_from(rows.len()).is_ok_and(|read| read == MAX_EVENTS);
        let mut events = Vec::new();
        for row in rows {
            if let (Some(number), Some(turn), Some(kind), Some(data), Some(created_at)) =
                (row.event, row.turn, row.kind, row.data, row.created_at)
            {
                events.push(parse_event(organization, id, number, turn, kind, &data, created_at)?);
            }
        }
        Ok(Some(Events { events, latest, has_more }))
    }

    /// What runners pushed about a task, in order; no turns and no reports.
    pub async fn get_activity(
        &self,
        organization: OrganizationId,
        id: &TaskId,
    ) -> Result<Vec<Event>, StoreError> {
        let mut connection = self.pool.get().await?;
        let rows = sqlx::query!(
            r#"
            SELECT event, turn, type AS kind, data::text AS "data!", created_at
            FROM task_events
            WHERE organization_id = $1 AND task_id = $2 AND type <> ALL($3)
            ORDER BY event
            "#,
            organization as OrganizationId,
            id as &TaskId,
            &[EventKind::CREATED, EventKind::UPDATED, EventKind::FINISHED].map(str::to_owned)
        )
        .fetch_all(&mut *connection)
        .await?;
        connection.done();
        rows.into_iter()
            .map(|row| {
                parse_event(organization, id, row.event, row.turn, row.kind, &row.data, row.created_at)
            })
            .collect()
    }

    /// A task as one of its turns made it, or `None` where the organisation has no such task or turn.
    pub async fn get_task_at_turn(
        &self,
        organization: OrganizationId,
        id: &TaskId,
        turn: i32,
    ) -> Result<Option<Task>, StoreError> {
        let mut connection = self.pool.get().await?;
        let row = select_task!(
            "",
            r#"
            FROM tasks t
            JOIN task_turns l ON l.organization_id = t.organization_id AND l.task_id = t.id AND l.turn = $3
            WHERE t.organization_id = $1 AND t.id = $2
            "#,
            organization as OrganizationId,
            id as &TaskId,
            turn
        )
        .fetch_optional(&mut *connection)
        .await?;
        connection.done();
        row.map(TaskRow::into_task).transpose()
    }
}

fn parse_event(
    organization: OrganizationId,
    id: &TaskId,
    number: i64,
    turn: i32,
    kind: String,
    data: &str,
    created_at: DateTime<Utc>,
) -> Result<Event, StoreError> {
    let row = || format!("{organization}, {id}, event {number}");
    let kind = match kind.as_str() {
        EventKind::CREATED => EventKind::Created,
        EventKind::UPDATED | EventKind::FINISHED => {
            EventKind::Reported(parse_json("task_events", data, row)?)
        }
        _ => {
            let value: Value = parse_json("task_events", data, row)?;
            let kind = Label::parse(kind).map_err(|error| StoreError::Corrupt {
                table: "task_events",
                row: row(),
                source: serde::de::Error::custom(error),
            })?;
            EventKind::Pushed(kind, value)
        }
    };
    Ok(Event { number, turn, kind, created_at })
}
