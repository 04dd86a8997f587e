//! Threads: conversations as messages.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use crate::api::auth::{Caller, Read};
use crate::api::error::ApiError;
use crate::api::openapi::errors::{TaskNotFound, Unauthenticated};
use crate::api::request::path::TaskPath;
use crate::api::state::AppState;
use crate::domain::{Message, Role, ThreadTurn};

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

fn messages(turns: impl IntoIterator<Item = ThreadTurn>) -> impl Iterator<Item = ThreadMessage> {
    turns.into_iter().flat_map(ThreadTurn::messages).map(ThreadMessage::from)
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
) -> Result<Json<Vec<ThreadMessage>>, ApiError> {
    let turns = state.store.list_thread_turns(caller.organization(), &id).await?;
    Ok(Json(messages(turns).collect()))
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
) -> Result<Json<Map<String, Value>>, ApiError> {
    let turns = state.store.list_tree_turns(caller.organization(), &id).await?;
    // The task comes first, so a sub-task with the id `root` adds to its list and does not replace
    // it.
    let mut threads = Map::new();
    for turn in turns {
        let name = if turn.task_id == id { "root" } else { turn.task_id.as_str() };
        let thread = threads.entry(name).or_insert_with(|| json!([]));
        if let Value::Array(thread) = thread {
            thread.extend(messages([turn]).map(|message| json!(message)));
        }
    }
    Ok(Json(threads))
}
