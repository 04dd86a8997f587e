//! Live events of a task, as server-sent events in the contract's envelope.

use std::convert::Infallible;

use axum::response::sse::{Event as SseEvent, KeepAlive, KeepAliveStream, Sse};
use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::execution::{AgentExecution, Timestamp};
use crate::api::state::AppState;
use crate::domain::{Event, EventKind, OrganizationId, Status, Task, TaskId, TurnState};
use crate::store::{StoreError, Watch};

/// The answer to a request for events.
pub(crate) type EventStream = Sse<KeepAliveStream<ReceiverStream<Result<SseEvent, Infallible>>>>;

/// Most events that wait for a slow reader.
const MAX_QUEUED_EVENTS: usize = 16;

/// The contract's envelope around an event.
#[derive(Serialize)]
struct TaskUpdateEvent<'a> {
    r#type: &'a str,
    task_id: &'a str,
    organization_id: String,
    time: Timestamp,
    data: Value,
}

/// Streams the events of a task until its turn ends, starting with `task`, its current state.
/// `watch` was there before that state was read, so no event in between is missed.
pub(crate) fn stream(state: AppState, watch: Watch, task: Task) -> EventStream {
    let (sender, receiver) = mpsc::channel(MAX_QUEUED_EVENTS);
    let keep_alive = KeepAlive::new().interval(state.limits.keep_alive_interval);
    let stream = EventStreamTask {
        state,
        organization: task.summary.organization_id,
        id: task.summary.id.clone(),
        seen: task.events,
        sender,
    };
    tokio::spawn(stream.run(watch, task));
    Sse::new(ReceiverStream::new(receiver)).keep_alive(keep_alive)
}

/// Why a stream ends.
enum StreamEnd {
    /// The turn has ended, or the task was deleted.
    Finished,
    /// The client closed the connection, or does not read.
    ReaderGone,
    /// The database cannot be read.
    Failed,
}

impl From<StoreError> for StreamEnd {
    fn from(error: StoreError) -> Self {
        if matches!(error, StoreError::TaskNotFound) {
            return Self::Finished;
        }
        tracing::warn!(%error, "event stream aborted");
        Self::Failed
    }
}

/// The source of one stream. It reads events and sends them to the reader, and keeps only the
/// number of the last one.
struct EventStreamTask {
    state: AppState,
    organization: OrganizationId,
    id: TaskId,
    seen: i64,
    sender: mpsc::Sender<Result<SseEvent, Infallible>>,
}

impl EventStreamTask {
    async fn run(mut self, watch: Watch, task: Task) {
        if self.send_state(task).await.is_err() {
            return;
        }
        loop {
            tokio::select! {
                () = watch.changed() => {}
                () = tokio::time::sleep(self.state.limits.recheck_interval) => {}
                () = self.sender.closed() => return,
                () = self.state.stopping.cancelled() => return,
            }
            if self.catch_up().await.is_err() {
                return;
            }
        }
    }

    /// Sends all events since the last one that was sent.
    async fn catch_up(&mut self) -> Result<(), StreamEnd> {
        loop {
            let read = self.state.store.read_events(self.organization, &self.id, self.seen).await;
            let events = match read {
                Ok(events) => events,
                Err(error) => return Err(StreamEnd::from(error)),
            };
            for event in events.events {
                self.seen = event.number;
                self.send_event(event).await?;
            }
            if events.has_more {
                continue;
            }
            if events.latest > self.seen {
                // An event was not stored: the watch was lost for a moment.
                let task = self.fetch(None).await?;
                self.seen = task.events;
                self.send_state(task).await?;
            }
            return Ok(());
        }
    }

    async fn fetch(&self, turn: Option<i32>) -> Result<Task, StreamEnd> {
        let task = match turn {
            Some(turn) => {
                self.state.store.get_task_at_turn(self.organization, &self.id, turn).await
            }
            None => self.state.store.get_task(self.organization, &self.id).await,
        };
        task.map_err(StreamEnd::from)
    }

    /// Sends the current state of the task.
    async fn send_state(&self, task: Task) -> Result<(), StreamEnd> {
        let time = task.summary.updated_at;
        let state = &task.turn.state;
        let kind = match state.status {
            Status::Pending => EventKind::Created,
            _ => EventKind::Reported(state.clone()),
        };
        self.send(&kind, json!(AgentExecution::from(task)), time).await
    }

    async fn send_event(&self, event: Event) -> Result<(), StreamEnd> {
        let Event { number: _, turn, kind, created_at } = event;
        let data = match &kind {
            EventKind::Pushed(_, data) => data.clone(),
            EventKind::Created | EventKind::Reported(_) => {
                let task = self.fetch(Some(turn)).await?;
                let state = match &kind {
                    EventKind::Reported(state) => state.clone(),
                    EventKind::Created | EventKind::Pushed(..) => TurnState::pending(),
                };
                json!(AgentExecution::from(task.with_turn_state(state)))
            }
        };
        self.send(&kind, data, created_at).await
    }

    async fn send(
        &self,
        kind: &EventKind,
        data: Value,
        time: DateTime<Utc>,
    ) -> Result<(), StreamEnd> {
        let envelope = TaskUpdateEvent {
            r#type: kind.as_str(),
            task_id: self.id.as_str(),
            organization_id: self.organization.to_string(),
            time: Timestamp::from(time),
            data,
        };
        let text = serde_json::to_string(&envelope).expect("an event is plain data");
        let event = Ok(SseEvent::default().data(text));
        let timeout = self.state.limits.slow_reader_timeout;
        self.sender.send_timeout(event, timeout).await.map_err(|_| StreamEnd::ReaderGone)?;
        if kind.as_str() == EventKind::FINISHED { Err(StreamEnd::Finished) } else { Ok(()) }
    }
}
