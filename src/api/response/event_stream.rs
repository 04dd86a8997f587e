//! Live events of a task, as server-sent events in the contract's envelope.
//!
//! A stream is read from the database as its reader takes it: nothing is read ahead, so a stream
//! whose reader is slow costs no more memory than one event. What all of them hold is bounded too
//! (`store/read_budget.rs`).

use std::convert::Infallible;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderName, header};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde::Serialize;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;

use super::event_reader::{EventReader, StreamEnd};
use super::event_start::{StreamStart, WrittenState, read_state, write_task};
use super::execution::Timestamp;
use super::json_stream::HeldBytes;
use crate::api::state::AppState;
use crate::domain::{Credential, EventKind, OrganizationId, Task, TaskId, TurnState};
use crate::store::{EventBatch, Reservation, STEP_BYTES, StoreError, StoredEvent, Watch};

/// The answer to a request for events.
pub(crate) type EventStream = ([(HeaderName, &'static str); 3], Body);

/// The last two keep proxies from holding events back, and from compressing them.
const HEADERS: [(HeaderName, &str); 3] = [
    (header::CONTENT_TYPE, "text/event-stream"),
    (header::CACHE_CONTROL, "no-cache, no-transform"),
    (HeaderName::from_static("x-accel-buffering"), "no"),
];

/// How long to wait before an unavailable database is read again.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// The contract's envelope around an event, without its last property, `data`.
#[derive(Serialize)]
struct TaskUpdateEvent<'a> {
    r#type: &'a str,
    task_id: &'a str,
    organization_id: String,
    time: Timestamp,
}

/// Streams the events of a task until its turn ends. `watch` was there before the task was read, so
/// no event in between is missed.
pub(crate) fn stream(
    state: AppState,
    credential: Credential,
    watch: Watch,
    id: TaskId,
    start: StreamStart,
) -> EventStream {
    let (sender, receiver) = mpsc::channel(1);
    // The first event is sent before the reader asks.
    let demand = Arc::new(Semaphore::new(1));
    let end = Arc::<OnceLock<StreamEnd>>::default();
    let keep_alive_interval = state.limits.keep_alive_interval;
    let task_id = id.clone();
    let stream = EventStreamTask {
        state,
        organization: credential.organization_id,
        id,
        seen: 0,
        turn: start.turn(),
        sender,
        demand: demand.clone(),
    };
    let reader = {
        let (clock, organization) = (stream.state.clock.clone(), stream.organization);
        let error = move |end: StreamEnd| {
            let data = serde_json::to_string(&end.error()).expect("two strings");
            let time = clock.now();
            format_event(None, StreamEnd::EVENT_TYPE, organization, &task_id, time, &data)
        };
        EventReader::new(receiver, demand, keep_alive_interval, end.clone(), Box::new(error))
    };
    tokio::spawn(stream.run(credential, watch, start, end));
    (HEADERS, Body::from_stream(reader))
}

/// A server-sent event with the contract's envelope. Its data is JSON already, of up to several
/// megabytes, so it is copied once.
fn format_event(
    number: Option<i64>,
    kind: &str,
    organization: OrganizationId,
    id: &TaskId,
    time: DateTime<Utc>,
    data: &str,
) -> Bytes {
    let envelope = TaskUpdateEvent {
        r#type: kind,
        task_id: id.as_str(),
        organization_id: organization.to_string(),
        time: Timestamp::from(time),
    };
    let envelope = serde_json::to_string(&envelope).expect("strings");
    // The end of a line would end the field. In JSON it is a space, outside of strings.
    let one_line = data.contains(['\n', '\r']).then(|| data.replace(['\n', '\r'], " "));
    let data = one_line.as_deref().unwrap_or(data);
    let id = number.map(|number| format!("id: {number}\n")).unwrap_or_default();
    let parts = [&id, "data: ", envelope.trim_end_matches('}'), ",\"data\":", data, "}\n\n"];
    Bytes::from(parts.concat())
}

/// The source of one stream. It reads events and sends them to the reader, and keeps only the
/// number of the last one.
struct EventStreamTask {
    state: AppState,
    organization: OrganizationId,
    id: TaskId,
    seen: i64,
    /// The turn that it follows. The end of this turn or of a later one ends the stream.
    turn: i32,
    sender: mpsc::Sender<Bytes>,
    /// One permit if the reader waits for an event.
    demand: Arc<Semaphore>,
}

impl EventStreamTask {
    async fn run(
        mut self,
        credential: Credential,
        watch: Watch,
        start: StreamStart,
        end: Arc<OnceLock<StreamEnd>>,
    ) {
        let (stopping, sender) = (self.state.stopping.clone(), self.sender.clone());
        let mut key = self.state.store.watch_key(credential, &self.state.clock);
        let ended = tokio::select! {
            followed = self.follow(&watch, start) => match followed {
                Ok(never) => match never {},
                Err(end) => end,
            },
            () = key.ended() => StreamEnd::KeyEnded,
            () = stopping.cancelled() => StreamEnd::Stopping,
            () = sender.closed() => return,
        };
        if !matches!(ended, StreamEnd::Finished) {
            tracing::info!(reason = ended.code(), "event stream aborted");
        }
        // Before the sender is dropped, which ends the reader.
        let _ = end.set(ended);
    }

    async fn follow(&mut self, watch: &Watch, start: StreamStart) -> Result<Infallible, StreamEnd> {
        match start {
            StreamStart::After { event, .. } => {
                self.seen = event;
                self.catch_up().await?;
                if self.has_ended().await? {
                    // The reader may know the end. No event would tell it again.
                    self.send_current_state().await?;
                }
            }
            StreamStart::At(state) => self.send_state(state).await?,
        }
        loop {
            let recheck_interval = self.state.limits.recheck_interval;
            let _ = tokio::time::timeout(recheck_interval, watch.changed()).await;
            self.catch_up().await?;
        }
    }

    /// Sends all events since the last one that was sent.
    async fn catch_up(&mut self) -> Result<(), StreamEnd> {
        let mut is_incomplete = false;
        loop {
            self.await_demand().await?;
            let (batch, reservation) = self.read_events().await?;
            let is_end = batch.events.is_empty();
            let mut reservation = Some(reservation);
            for event in batch.events {
                is_incomplete |= event.number != self.seen + 1;
                self.seen = event.number;
                // A large event is alone in its batch, and what it takes is free once it is sent.
                let is_large = event.data.len() > STEP_BYTES;
                let of_event = if is_large { reservation.take() } else { None };
                self.send_event(event, of_event).await?;
            }
            if batch.latest > self.seen && !is_end {
                continue;
            }
            if is_incomplete || batch.latest > self.seen {
                // An event was not stored, because nobody watched when it happened.
                self.send_current_state().await?;
            }
            return Ok(());
        }
    }

    /// Reads the next events, and holds memory for them.
    async fn read_events(&self) -> Result<(EventBatch, Reservation), StreamEnd> {
        let (organization, store) = (self.organization, &self.state.store);
        let started = Instant::now();
        loop {
            let read = async {
                let mut reservation = store.start_read(organization).await?;
                let batch = store.read_events(organization, &self.id, self.seen).await?;
                let bytes = batch.events.iter().map(|event| event.data.len()).sum();
                store.hold_read(organization, &mut reservation, bytes).await?;
                reservation.end_read(bytes);
                Ok((batch, reservation))
            };
            match read.await {
                Ok(read) => return Ok(read),
                Err(error) => self.before_retry(error, started).await?,
            }
        }
    }

    /// Reads the task as one of its turns left it.
    async fn fetch(&self, turn: i32) -> Result<(Task, Reservation), StreamEnd> {
        let (organization, store) = (self.organization, &self.state.store);
        let started = Instant::now();
        loop {
            let read = async {
                let reservation = store.start_read(organization).await?;
                let task = store.get_task_at_turn(organization, &self.id, turn).await?;
                Ok((task, reservation))
            };
            match read.await {
                Ok(read) => return Ok(read),
                Err(error) => self.before_retry(error, started).await?,
            }
        }
    }

    /// Waits before a read is repeated that has failed since `started`. The database may be back
    /// before the reader has to open another stream.
    async fn before_retry(&self, error: StoreError, started: Instant) -> Result<(), StreamEnd> {
        let end = match &error {
            StoreError::TaskNotFound => return Err(StreamEnd::Deleted),
            StoreError::Unavailable(_) | StoreError::Locked(_) => StreamEnd::Unavailable,
            _ => StreamEnd::Failed,
        };
        let is_late = started.elapsed() >= self.state.limits.stream_retry_timeout;
        if is_late || !matches!(end, StreamEnd::Unavailable) {
            tracing::warn!(%error, "failed to read the events of a stream");
            return Err(end);
        }
        tokio::time::sleep(RETRY_INTERVAL).await;
        Ok(())
    }

    async fn send_current_state(&mut self) -> Result<(), StreamEnd> {
        self.await_demand().await?;
        let started = Instant::now();
        loop {
            match read_state(&self.state, self.organization, &self.id).await {
                Ok(state) => return self.send_state(state).await,
                Err(error) => self.before_retry(error, started).await?,
            }
        }
    }

    async fn send_state(&mut self, state: WrittenState) -> Result<(), StreamEnd> {
        let WrittenState { turn, event, kind, time, json, reservation } = state;
        self.seen = event;
        self.send(turn, kind, json, time, Some(reservation)).await
    }

    async fn has_ended(&self) -> Result<bool, StreamEnd> {
        let started = Instant::now();
        loop {
            match self.state.store.get_position(self.organization, &self.id).await {
                Ok(position) => return Ok(position.status.is_terminal()),
                Err(error) => self.before_retry(error, started).await?,
            }
        }
    }

    async fn send_event(
        &self,
        event: StoredEvent,
        reservation: Option<Reservation>,
    ) -> Result<(), StreamEnd> {
        if !EventKind::is_state_type(&event.kind) {
            let StoredEvent { turn, kind, data, created_at, .. } = event;
            return self.send(turn, &kind, data, created_at, reservation).await;
        }
        let parsed = event.into_event(self.organization, &self.id);
        let event = parsed.map_err(|error| {
            tracing::warn!(%error, "failed to read an event of a stream");
            StreamEnd::Failed
        })?;
        self.await_demand().await?;
        let (task, reservation) = self.fetch(event.turn).await?;
        let state = match &event.kind {
            EventKind::Reported(state) => state.clone(),
            EventKind::Created | EventKind::Pushed(..) => TurnState::pending(),
        };
        let task = task.with_turn_state(state);
        let written = write_task(&self.state, self.organization, task, reservation).await;
        let (data, reservation) = written.map_err(|_| StreamEnd::Unavailable)?;
        let (turn, kind) = (event.turn, event.kind.as_str());
        self.send(turn, kind, data, event.created_at, Some(reservation)).await
    }

    /// Sends the event [`EventStreamTask::seen`] once the reader wants one. What was reserved for
    /// it is free once the connection has written it.
    async fn send(
        &self,
        turn: i32,
        kind: &str,
        data: String,
        time: DateTime<Utc>,
        reservation: Option<Reservation>,
    ) -> Result<(), StreamEnd> {
        self.await_demand().await?;
        let text = format_event(Some(self.seen), kind, self.organization, &self.id, time, &data);
        drop(data);
        let event = match reservation {
            Some(reservation) => HeldBytes::hold(text, reservation),
            None => text,
        };
        if let Ok(permit) = self.demand.try_acquire() {
            permit.forget();
        }
        self.sender.send(event).await.map_err(|_| StreamEnd::SlowReader)?;
        let ends = kind == EventKind::FINISHED && turn >= self.turn;
        if ends { Err(StreamEnd::Finished) } else { Ok(()) }
    }

    /// Waits until the reader wants an event.
    async fn await_demand(&self) -> Result<(), StreamEnd> {
        let timeout = self.state.limits.event_timeout;
        match tokio::time::timeout(timeout, self.demand.acquire()).await {
            Ok(_) => Ok(()),
            Err(_) => Err(StreamEnd::SlowReader),
        }
    }
}
