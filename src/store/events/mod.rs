//! Events of tasks: reading them, and watching for new ones.

mod listener;
mod registry;
mod watch;

use chrono::{DateTime, Utc};

pub(in crate::store) use listener::CHANNEL;
pub(in crate::store) use watch::ChangeNotifier;
pub use watch::Watch;

use super::{Store, StoreError};
use crate::domain::{Event, EventKind, OrganizationId, Status, Task, TaskId};

/// Most bytes of data that are read at once, unless the first event alone has more.
const MAX_BATCH_BYTES: i64 = 1 << 20;

/// Events of a task after a given one.
#[derive(Debug)]
pub struct EventBatch {
    /// The stored events, in order: at most a hundred, and at most 1 MiB of data unless the first
    /// alone has more.
    pub events: Vec<StoredEvent>,
    /// The number of the task's latest event, stored or not.
    pub latest: i64,
}

/// How far a task is. Its texts, which may have megabytes, are not read for it.
#[derive(Debug, Clone, Copy)]
pub struct TaskPosition {
    /// The number of its latest turn.
    pub turn: i32,
    /// The number of its latest event, stored or not.
    pub events: i64,
    /// The status of its latest turn.
    pub status: Status,
}

/// An event as it is stored. Its data is not parsed, which would take many times its bytes.
#[derive(Debug)]
pub struct StoredEvent {
    /// The event's number within its task.
    pub number: i64,
    /// The number of the turn that it belongs to.
    pub turn: i32,
    /// The contract's type name.
    pub kind: String,
    /// The data of a pushed event, as JSON. For others see [`StoredEvent::into_event`].
    pub data: String,
    /// When it happened.
    pub created_at: DateTime<Utc>,
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

    /// How far a task is.
    pub async fn get_position(
        &self,
        organization: OrganizationId,
        id: &TaskId,
    ) -> Result<TaskPosition, StoreError> {
        let position = sqlx::query_as!(
            TaskPosition,
            r#"
            SELECT turns AS turn, events, status AS "status: Status"
            FROM tasks
            WHERE organization_id = $1 AND id = $2
            "#,
            organization as OrganizationId,
            id as &TaskId
        );
        let position = position.fetch_optional(self.pool.of(organization)).await?;
        position.ok_or(StoreError::TaskNotFound)
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

    /// The events of a task after the event with a number. A task that has no more has an empty
    /// batch.
    pub async fn read_events(
        &self,
        organization: OrganizationId,
        id: &TaskId,
        after: i64,
    ) -> Result<EventBatch, StoreError> {
        // Each step finds the next event by its key, so the plan does not depend on how many events
        // the task has. A step ends the batch before it fetches what would not fit. The first row
        // is no event: a task without new events has a row too.
        let rows = sqlx::query!(
            r#"
            WITH RECURSIVE batch AS (
                SELECT 0 AS position, $3::bigint AS event, NULL::integer AS turn,
                       NULL::text COLLATE "C" AS type, NULL::text AS data,
                       NULL::timestamptz AS created_at, 0::bigint AS bytes
                UNION ALL
                SELECT batch.position + 1, next.event, next.turn, next.type, next.data,
                       next.created_at, batch.bytes + octet_length(next.data)
                FROM batch
                CROSS JOIN LATERAL (
                    SELECT event, turn, type, data::text AS data, created_at
                    FROM task_events
                    WHERE organization_id = $1 AND task_id = $2 AND event > batch.event
                    ORDER BY event
                    LIMIT 1
                ) AS next
                WHERE batch.position < 100
                  AND batch.bytes < $4
                  AND (batch.position = 0 OR batch.bytes + octet_length(next.data) <= $4)
            )
            SELECT task.events AS latest, batch.event AS "event!", batch.turn, batch.type AS kind,
                   batch.data, batch.created_at
            FROM tasks task
            CROSS JOIN batch
            WHERE task.organization_id = $1 AND task.id = $2
            ORDER BY batch.position
            "#,
            organization as OrganizationId,
            id as &TaskId,
            after,
            MAX_BATCH_BYTES
        )
        .fetch_all(self.pool.of(organization))
        .await?;
        let latest = rows.first().map(|row| row.latest).ok_or(StoreError::TaskNotFound)?;
        let events = rows.into_iter().filter_map(|row| {
            let (turn, kind, data) = (row.turn?, row.kind?, row.data?);
            Some(StoredEvent { number: row.event, turn, kind, data, created_at: row.created_at? })
        });
        Ok(EventBatch { events: events.collect(), latest })
    }
}

impl StoredEvent {
    /// Parses the data.
    pub fn into_event(
        self,
        organization: OrganizationId,
        id: &TaskId,
    ) -> Result<Event, StoreError> {
        let Self { number, turn, kind, data, created_at } = self;
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
