//! The activity log of a task.

use axum::extract::State;
use axum::response::Response;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::api::auth::{Caller, Read};
use crate::api::error::ApiError;
use crate::api::openapi::errors::{TaskNotFound, Unauthenticated};
use crate::api::request::path::TaskPath;
use crate::api::response::execution::{Timestamp, UserResponse};
use crate::api::response::json_stream::{JsonParts, Part, push_json, respond};
use crate::api::state::AppState;
use crate::domain::{Event, EventKind, Message, OrganizationId, Role, TaskId, ThreadEntry};
use crate::store::{Reservation, Store, StoreError, ThreadReader, ThreadScope, ThreadStep};

/// Get a task's activity log
///
/// The activity of the conversation in order: inputs, events of the runner, results.
#[utoipa::path(
    get,
    path = "/activity/{agent_id}/{task_id}",
    operation_id = "Get_Activity_activity__agent_id___task_id__get",
    tags = ["Agent Execution"],
    params(("agent_id" = String, Path), ("task_id" = String, Path)),
    responses(
        (status = 200, description = "Successful Response"),
        Unauthenticated,
        TaskNotFound
    )
)]
pub(crate) async fn get_activity(
    caller: Caller<Read>,
    State(state): State<AppState>,
    TaskPath(id): TaskPath,
) -> Result<Response, ApiError> {
    let store = state.store.clone();
    let organization = caller.organization();
    let reader = store.read_thread(organization, &id, ThreadScope::TaskWithEvents);
    let user = UserOfThread::Unknown;
    respond(&state, ActivityBody { store, organization, id, reader, stage: Stage::Start, user })
        .await
}

/// A task's activity log.
struct ActivityBody {
    store: Store,
    organization: OrganizationId,
    id: TaskId,
    reader: ThreadReader,
    stage: Stage,
    user: UserOfThread,
}

/// What comes next.
#[derive(PartialEq, Eq)]
enum Stage {
    Start,
    Entries,
    User,
}

/// The user of the first turn that has one. The log ends with it.
enum UserOfThread {
    Unknown,
    Written(Vec<u8>),
    /// A large one, which is read again when it is written.
    OfTurn(i32),
}

/// Most bytes of a user that are kept until the end of the log.
const MAX_KEPT_USER_BYTES: usize = 64 << 10;

impl JsonParts for ActivityBody {
    async fn write_part(&mut self, out: &mut Vec<u8>) -> Result<Part, StoreError> {
        if self.stage == Stage::User {
            let reservation = self.write_user(out).await?;
            return Ok(Part { is_last: true, reservation });
        }
        let ThreadStep { entries, is_last, reservation } = self.reader.next_step().await?;
        for (_, entry) in entries {
            if self.stage == Stage::Start {
                self.write_start(out, &entry);
                self.stage = Stage::Entries;
            } else {
                out.push(b',');
            }
            match entry {
                ThreadEntry::Message(message) => self.write_message(out, *message),
                ThreadEntry::Event(event) => push_json(out, &event_entry(&self.id, event)),
            }
        }
        if is_last {
            self.stage = Stage::User;
            // A large user is a part of its own: no part waits for memory while it holds some.
            if !matches!(self.user, UserOfThread::OfTurn(_)) {
                self.write_user(out).await?;
                return Ok(Part { is_last: true, reservation });
            }
        }
        Ok(Part { is_last: false, reservation })
    }
}

impl ActivityBody {
    fn write_start(&self, out: &mut Vec<u8>, first: &ThreadEntry) {
        let created_at = match first {
            ThreadEntry::Message(message) => message.created_at,
            ThreadEntry::Event(event) => event.created_at,
        };
        out.extend_from_slice(br#"{"id":"#);
        push_json(out, self.id.as_str());
        out.extend_from_slice(br#","created_at":"#);
        push_json(out, &Timestamp::from(created_at));
        out.extend_from_slice(br#","messages":["#);
    }

    fn write_message(&mut self, out: &mut Vec<u8>, message: Message) {
        let Message { id, role, turn, text, input, created_at } = message;
        let (files, user) =
            input.map(|input| (input.files.unwrap_or_default(), input.user)).unwrap_or_default();
        let user = user.map(UserResponse::from);
        if let (UserOfThread::Unknown, Some(user)) = (&self.user, &user) {
            let mut json = Vec::new();
            push_json(&mut json, user);
            self.user = if json.len() <= MAX_KEPT_USER_BYTES {
                UserOfThread::Written(json)
            } else {
                UserOfThread::OfTurn(turn)
            };
        }
        let role = match role {
            Role::User => "user",
            Role::Agent => "agent",
        };
        let content = MessageContent { text, files };
        push_json(out, &MessageEntry { id, created_at: created_at.into(), role, content, user });
    }

    async fn write_user(&mut self, out: &mut Vec<u8>) -> Result<Option<Reservation>, StoreError> {
        out.extend_from_slice(br#"],"user":"#);
        let mut reservation = None;
        match &self.user {
            UserOfThread::Unknown => out.extend_from_slice(b"null"),
            UserOfThread::Written(json) => out.extend_from_slice(json),
            UserOfThread::OfTurn(turn) => {
                let mut reader = self.store.read_question(self.organization, &self.id, *turn);
                let mut step = reader.next_step().await?;
                if step.entries.is_empty() && !step.is_last {
                    step = reader.next_step().await?;
                }
                reservation = step.reservation;
                let user = step.entries.into_iter().find_map(|(_, entry)| match entry {
                    ThreadEntry::Message(message) => message.input?.user,
                    ThreadEntry::Event(_) => None,
                });
                push_json(out, &user.map(UserResponse::from));
            }
        }
        out.push(b'}');
        Ok(reservation)
    }
}

/// An entry for a message.
#[derive(Serialize)]
struct MessageEntry {
    id: String,
    created_at: Timestamp,
    role: &'static str,
    content: MessageContent,
    user: Option<UserResponse>,
}

#[derive(Serialize)]
struct MessageContent {
    text: String,
    files: Vec<String>,
}

/// An entry for a pushed event: its own data with the log's id and time.
fn event_entry(task: &TaskId, event: Event) -> Value {
    let Event { number, turn: _, kind, created_at } = event;
    let kind_word = kind.as_str().to_owned();
    let mut entry = match kind {
        EventKind::Pushed(_, Value::Object(data)) => data,
        EventKind::Pushed(_, data) => Map::from_iter([("data".to_owned(), data)]),
        EventKind::Created | EventKind::Reported(_) => Map::new(),
    };
    entry.insert("id".to_owned(), format!("{task}_event_{number}").into());
    entry.insert("created_at".to_owned(), json!(Timestamp::from(created_at)));
    entry.entry("type").or_insert(kind_word.into());
    Value::Object(entry)
}
