//! Threads: conversations as messages.

use axum::extract::State;
use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;

use crate::api::auth::{Caller, Read};
use crate::api::error::ApiError;
use crate::api::openapi::errors::{TaskNotFound, Unauthenticated};
use crate::api::request::path::TaskPath;
use crate::api::response::json_stream::{JsonParts, Part, push_json, respond};
use crate::api::state::AppState;
use crate::domain::{Message, Role, TaskId, ThreadEntry};
use crate::store::{StoreError, ThreadReader, ThreadScope, ThreadStep};

/// A message of a turn
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ThreadMessage {
    /// `<task id>_user_<turn>` or `<task id>_agent_<turn>`
    id: String,
    /// `user` or `assistant`
    role: &'static str,
    /// The text of the message
    content: String,
    /// When it was recorded, in seconds since 1970
    created_at: i64,
}

impl From<Message> for ThreadMessage {
    fn from(message: Message) -> Self {
        let role = match message.role {
            Role::User => "user",
            Role::Agent => "assistant",
        };
        Self {
            id: message.id,
            role,
            content: message.text,
            created_at: message.created_at.timestamp(),
        }
    }
}

/// The name of the task's own messages in a full thread.
const ROOT: &str = "root";

/// The messages of one task as an array.
struct ThreadBody {
    reader: ThreadReader,
    is_first: bool,
}

impl JsonParts for ThreadBody {
    async fn write_part(&mut self, out: &mut Vec<u8>) -> Result<Part, StoreError> {
        let ThreadStep { entries, is_last, reservation } = self.reader.next_step().await?;
        for (_, entry) in entries {
            out.push(if std::mem::take(&mut self.is_first) { b'[' } else { b',' });
            push_message(out, entry);
        }
        if is_last {
            out.push(b']');
        }
        Ok(Part { is_last, reservation })
    }
}

/// The messages of a task and of its sub-tasks: an object with an array for each.
struct FullThreadBody {
    reader: ThreadReader,
    root: TaskId,
    /// The name of the array in progress.
    name: Option<String>,
}

impl JsonParts for FullThreadBody {
    async fn write_part(&mut self, out: &mut Vec<u8>) -> Result<Part, StoreError> {
        let ThreadStep { entries, is_last, reservation } = self.reader.next_step().await?;
        for (task, entry) in entries {
            let name = if task == self.root { ROOT } else { task.as_str() };
            // A sub-task with the id `root` comes right after the task, and adds to its array.
            if self.name.as_deref() == Some(name) {
                out.push(b',');
            } else {
                out.extend_from_slice(if self.name.is_some() { b"]," } else { b"{" });
                push_json(out, name);
                out.extend_from_slice(b":[");
                self.name = Some(name.to_owned());
            }
            push_message(out, entry);
        }
        if is_last {
            out.extend_from_slice(b"]}");
        }
        Ok(Part { is_last, reservation })
    }
}

fn push_message(out: &mut Vec<u8>, entry: ThreadEntry) {
    match entry {
        ThreadEntry::Message(message) => push_json(out, &ThreadMessage::from(*message)),
        ThreadEntry::Event(_) => unreachable!("a thread without events was asked for"),
    }
}

/// Get a task's thread
///
/// The messages of the conversation in the order of its turns: the inputs, and the agent's results
/// as soon as they exist. Sub-tasks have threads of their own.
#[utoipa::path(
    get,
    path = "/v1/tasks/{task_id}/thread",
    operation_id = "Get_Task_s_thread_v1_tasks__task_id__thread_get",
    tags = ["API v1", "Tasks", "Tasks CRUD"],
    params(("task_id" = String, Path)),
    responses(
        (status = 200, description = "Successful Response"),
        Unauthenticated,
        TaskNotFound
    )
)]
pub(crate) async fn get_thread(
    caller: Caller<Read>,
    State(state): State<AppState>,
    TaskPath(id): TaskPath,
) -> Result<Response, ApiError> {
    let reader = state.store.read_thread(caller.organization(), &id, ThreadScope::Task);
    respond(&state, ThreadBody { reader, is_first: true }).await
}

/// Get a task's thread and those of its sub-tasks
///
/// The task's own messages under `root`, and those of each sub-task, to any depth, under its id.
#[utoipa::path(
    get,
    path = "/v1/tasks/{task_id}/thread/full",
    operation_id = "Get_Task_s_full_thread_v1_tasks__task_id__thread_full_get",
    tags = ["API v1", "Tasks", "Tasks CRUD"],
    params(("task_id" = String, Path)),
    responses(
        (status = 200, description = "Successful Response"),
        Unauthenticated,
        TaskNotFound
    )
)]
pub(crate) async fn get_full_thread(
    caller: Caller<Read>,
    State(state): State<AppState>,
    TaskPath(id): TaskPath,
) -> Result<Response, ApiError> {
    let reader = state.store.read_thread(caller.organization(), &id, ThreadScope::Tree);
    respond(&state, FullThreadBody { reader, root: id, name: None }).await
}
