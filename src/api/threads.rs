//! Conversations as messages.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::Api;
use super::auth::Reader;
use super::error::ApiError;
use super::path::Id;
use super::tasks::task_id;
use crate::domain::{Message, Role, Thread};

/// One side of a turn
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ThreadMessage {
    /// `<task id>_user_<turn>` or `<task id>_agent_<turn>`
    id: String,
    /// `user` or `assistant`
    role: &'static str,
    /// What is said
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
        Self { id: message.id, role, content: message.text, created_at: message.created_at.timestamp() }
    }
}

fn messages(turns: impl IntoIterator<Item = Thread>) -> impl Iterator<Item = ThreadMessage> {
    turns.into_iter().flat_map(Thread::messages).map(ThreadMessage::from)
}

/// Get a task's thread
///
/// The conversation's messages in the order of its turns: what was asked, and what the agent answered, as soon as
/// there is an answer. Sub-tasks have threads of their own.
#[utoipa::path(
    get,
    path = "/v1/tasks/{task_id}/thread",
    operation_id = "Get_Task_s_thread_v1_tasks__task_id__thread_get",
    tags = ["API v1", "Tasks", "Tasks CRUD"],
    params(("task_id" = String, Path)),
    responses((status = 200, description = "Successful Response")),
    security(("APIKeyHeader" = []))
)]
pub(crate) async fn get_thread(
    caller: Reader,
    State(api): State<Api>,
    task: Id,
) -> Result<Json<Vec<ThreadMessage>>, ApiError> {
    let id = task_id(task)?;
    let turns = api.store.get_thread(caller.organization(), &id).await?;
    if turns.is_empty() {
        return Err(ApiError::TaskNotFound);
    }
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
    responses((status = 200, description = "Successful Response")),
    security(("APIKeyHeader" = []))
)]
pub(crate) async fn get_full_thread(
    caller: Reader,
    State(api): State<Api>,
    task: Id,
) -> Result<Json<Map<String, Value>>, ApiError> {
    let id = task_id(task)?;
    let turns = api.store.get_thread_tree(caller.organization(), &id).await?;
    if turns.is_empty() {
        return Err(ApiError::TaskNotFound);
    }
    // The task comes first, so a sub-task whose id is `root` adds to its bucket and does not replace it.
    let mut buckets = Map::new();
    for turn in turns {
        let name = if turn.task_id == id { "root" } else { turn.task_id.as_str() };
        let bucket = buckets.entry(name).or_insert_with(|| json!([]));
        if let Value::Array(bucket) = bucket {
            bucket.extend(messages([turn]).map(|message| json!(message)));
        }
    }
    Ok(Json(buckets))
}
