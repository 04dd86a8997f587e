//! Live events, as server-sent events in the contract's envelope.

use std::convert::Infallible;
use std::time::Duration;

use axum::response::sse::{Event as SseEvent, KeepAlive, KeepAliveStream, Sse};
use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::Api;
use super::error::ApiError;
use super::models::{AgentExecution, Timestamp};
use crate::domain::{Event, EventKind, OrganizationId, Progress, Status, Task, TaskId};
use crate::store::Watch;

/// The answer to a request for events.
pub(crate) type EventStream = Sse<KeepAliveStream<ReceiverStream<Result<SseEvent, Infallible>>>>;

/// How many events wait for a reader that is slower than they come.
const MAX_WAITING: usize = 16;

/// How long a reader may leave all of them waiting before it is dropped, unless a test has less time.
pub(crate) const READER_PATIENCE: Duration = Duration::from_secs(10);

/// How often a silent stream shows that it is alive, so that proxies keep it open.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(15);

/// How often a stream looks by itself, should an announcement ever be lost.
const RECHECK_INTERVAL: Duration = Duration::from_secs(30);

/// The contract's envelope around an event.
#[derive(Serialize)]
struct TaskUpdateEvent<'a> {
    r#type: &'a str,
    task_id: &'a str,
    organization_id: String,
    time: Timestamp,
    data: Value,
}

/// Streams what happens to a task from `task`, its state now, on, until its turn ends. `watch` was there before
/// that state was read, so nothing in between is missed.
pub(crate) fn stream(api: Api, watch: Watch, task: Task) -> EventStream {
    let (sender, receiver) = mpsc::channel(MAX_WAITING);
    let producer = Producer {
        api,
        organization: task.summary.organization_id,
        id: task.summary.id.clone(),
        seen: task.events,
        sender,
    };
    tokio::spawn(producer.run(watch, task));
    Sse::new(ReceiverStream::new(receiver)).keep_alive(KeepAlive::new().interval(KEEP_ALIVE_INTERVAL))
}

/// Waits until the turn of `task` has ended, or another has taken its place, and returns the task as it is then;
/// `None` where it was deleted.
pub(crate) async fn wait_for_end(api: &Api, watch: &Watch, task: Task) -> Result<Option<Task>, ApiError> {
    let turn = task.turn.number;
    let mut task = task;
    while !task.turn.progress.status.is_terminal() && task.turn.number == turn {
        let _ = tokio::time::timeout(RECHECK_INTERVAL, watch.changed()).await;
        let summary = task.summary;
        match api.store.get_task(summary.organization_id, &summary.id).await? {
            Some(now) => task = now,
            None => return Ok(None),
        }
    }
    Ok(Some(task))
}

/// Why a stream ends.
enum End {
    /// The turn has ended, or the task is gone: there is nothing more to say.
    Finished,
    /// The reader went away, or does not read.
    ReaderGone,
    /// The database can't be read.
    Failed,
}

/// One stream's source: it reads what happened and hands it to the reader, and holds nothing but the number of the last
/// event.
struct Producer {
    api: Api,
    organization: OrganizationId,
    id: TaskId,
    seen: i64,
    sender: mpsc::Sender<Result<SseEvent, Infallible>>,
}

impl Producer {
    async fn run(mut self, watch: Watch, task: Task) {
        if self.send_state(task).await.is_err() {
            return;
        }
        loop {
            tokio::select! {
                () = watch.changed() => {}
                () = tokio::time::sleep(RECHECK_INTERVAL) => {}
                () = self.sender.closed() => return,
                () = self.api.stopping.cancelled() => return,
            }
            if self.catch_up().await.is_err() {
                return;
            }
        }
    }

    /// Sends everything that has happened since.
    async fn catch_up(&mut self) -> Result<(), End> {
        loop {
            let read = self.api.store.read_events(self.organization, &self.id, self.seen).await;
            let events = match read {
                Ok(Some(events)) => events,
                Ok(None) => return Err(End::Finished),
                Err(error) => {
                    tracing::warn!(%error, "a stream of events ends");
                    return Err(End::Failed);
                }
            };
            for event in events.events {
                self.seen = event.number;
                self.send_event(event).await?;
            }
            if events.has_more {
                continue;
            }
            if events.latest > self.seen {
                // Something happened that was not written down: the watch was lost for a moment.
                let Some(task) = self.fetch(None).await? else { return Err(End::Finished) };
                self.seen = task.events;
                self.send_state(task).await?;
            }
            return Ok(());
        }
    }

    async fn fetch(&self, turn: Option<i32>) -> Result<Option<Task>, End> {
        let task = match turn {
            Some(turn) => self.api.store.get_task_at_turn(self.organization, &self.id, turn).await,
            None => self.api.store.get_task(self.organization, &self.id).await,
        };
        task.map_err(|error| {
            tracing::warn!(%error, "a stream of events ends");
            End::Failed
        })
    }

    /// Sends the task as it is.
    async fn send_state(&self, task: Task) -> Result<(), End> {
        let time = task.summary.updated_at;
        let progress = &task.turn.progress;
        let kind = match progress.status {
            Status::Pending => EventKind::Created,
            _ => EventKind::Reported(progress.clone()),
        };
        self.send(&kind, json!(AgentExecution::from(task)), time).await
    }

    async fn send_event(&self, event: Event) -> Result<(), End> {
        let Event { number: _, turn, kind, created_at } = event;
        let data = match &kind {
            EventKind::Pushed(_, data) => data.clone(),
            EventKind::Created | EventKind::Reported(_) => {
                let Some(task) = self.fetch(Some(turn)).await? else { return Err(End::Finished) };
                let progress = match &kind {
                    EventKind::Reported(progress) => progress.clone(),
                    _ => Progress::pending(),
                };
                json!(AgentExecution::from(task.at(progress)))
            }
        };
        self.send(&kind, data, created_at).await
    }

    async fn send(&self, kind: &EventKind, data: Value, time: DateTime<Utc>) -> Result<(), End> {
        let envelope = TaskUpdateEvent {
            r#type: kind.as_str(),
            task_id: self.id.as_str(),
            organization_id: self.organization.to_string(),
            time: Timestamp::from(time),
            data,
        };
        let text = serde_json::to_string(&envelope).expect("an event can be written as JSON");
        let event = Ok(SseEvent::default().data(text));
        self.sender.send_timeout(event, self.api.reader_patience).await.map_err(|_| End::ReaderGone)?;
        if kind.as_str() == EventKind::FINISHED { Err(End::Finished) } else { Ok(()) }
    }
}
