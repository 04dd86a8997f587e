//! Events of tasks: reading them, and watching for new ones.

pub(in crate::store) mod watch;

use chrono::{DateTime, Utc};

pub(in crate::store) use watch::ChangeNotifier;
pub use watch::Watch;

use super::{Store, StoreError};
use crate::domain::{Event, EventKind, OrganizationId, Task, TaskId};

/// Most events that are read at once.
const MAX_EVENTS: i64 = 100;

/// Events of a task after a given one.
#[derive(Debug)]
pub struct EventBatch {
    /// The stored events, in order: at most a hundred.
    pub events: Vec<Event>,
    /// The number of the task's latest event, stored or not.
    pub latest: i64,
    /// Whether there are more events to read now.
    pub has_more: bool,
}

impl Store {
    /// Watches a task. A commit after this returns wakes the watch; earlier ones can be read.
    pub async fn watch_task(
        &self,
        organization: OrganizationId,
        id: &TaskId,
    ) -> Result<Watch, StoreError> {
        self.notifier.watch(organization, id).await
    }

    /// Watches a task, then reads it: every later change wakes the watch, and no change in
    /// between is missed.
    pub async fn follow_task(
        &self,
        organization: OrganizationId,
        id: &TaskId,
    ) -> Result<(Watch, Task), StoreError> {
        let watch = self.watch_task(organization, id).await?;
        let task = self.get_task(organization, id).await?;
        Ok((watch, task))
    }

    /// The events of a task after the event with a number.
    pub async fn read_events(
        &self,
        organization: OrganizationId,
        id: &TaskId,
        after: i64,
    ) -> Result<EventBatch, StoreError> {
        let rows = sqlx::query!(
            r#"
            SELECT task.events AS latest, event.event AS "event?", event.turn AS "turn?",
                   event.type AS "kind?", event.data::text AS data,
                   event.created_at AS "created_at?"
            FROM tasks task
            LEFT JOIN task_events event
                ON event.organization_id = task.organization_id
                AND event.task_id = task.id
                AND event.event > $3
            WHERE task.organization_id = $1 AND task.id = $2
            ORDER BY event.event
            LIMIT $4
            "#,
            organization as OrganizationId,
            id as &TaskId,
            after,
            MAX_EVENTS
        )
        .fetch_all(&self.pool)
        .await?;
        let latest = rows.first().map(|row| row.latest).ok_or(StoreError::TaskNotFound)?;
        let has_more = i64::try_from(rows.len()).is_ok_and(|read| read == MAX_EVENTS);
        let mut events = Vec::new();
        for row in rows {
            if let (Some(event), Some(turn), Some(kind), Some(data), Some(created_at)) =
                (row.event, row.turn, row.kind, row.data, row.created_at)
            {
                let row = EventRow { event, turn, kind, data, created_at };
                events.push(row.into_event(organization, id)?);
            }
        }
        Ok(EventBatch { events, latest, has_more })
    }

    /// The events that runners pushed about a task, in order; no turns and no reports.
    pub async fn list_pushed_events(
        &self,
        organization: OrganizationId,
        id: &TaskId,
    ) -> Result<Vec<Event>, StoreError> {
        let rows = sqlx::query_as!(
            EventRow,
            r#"
            SELECT event, turn, type AS kind, data::text AS "data!", created_at
            FROM task_events
            WHERE organization_id = $1 AND task_id = $2 AND type <> ALL($3)
            ORDER BY event
            "#,
            organization as OrganizationId,
            id as &TaskId,
            &EventKind::STATE_TYPES.map(str::to_owned)
        )
        .fetch_all(&self.pool)
        .await?;
        rows.into_iter().map(|row| row.into_event(organization, id)).collect()
    }
}

/// An event as selected.
struct EventRow {
    event: i64,
    turn: i32,
    kind: String,
    data: String,
    created_at: DateTime<Utc>,
}

impl EventRow {
    fn into_event(self, organization: OrganizationId, id: &TaskId) -> Result<Event, StoreError> {
        let Self { event: number, turn, kind, data, created_at } = self;
        let kind = EventKind::parse(kind, &data).map_err(|error| {
            StoreError::corrupt(
                "task_events",
                format!("{organization}, {id}, event {number}"),
                error,
            )
        })?;
        Ok(Event { number, turn, kind, created_at })
    }
}
