//! The activity log of a task.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::api::auth::{Caller, Read};
use crate::api::error::ApiError;
use crate::api::openapi::errors::{TaskNotFound, Unauthenticated};
use crate::api::request::path::TaskPath;
use crate::api::response::execution::{Timestamp, UserResponse};
use crate::api::state::AppState;
use crate::domain::{Event, EventKind, Message, Role, TaskId, ThreadTurn};

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
) -> Result<Json<ActivityThread>, ApiError> {
    let organization = caller.organization();
    let turns = state.store.list_thread_turns(organization, &id).await?;
    let created_at = turns.first().map(|turn| turn.created_at).ok_or(ApiError::TaskNotFound)?;
    let events = state.store.list_pushed_events(organization, &id).await?;
    let mut events = events.into_iter().peekable();
    let user = turns.iter().find_map(|turn| turn.input.user.clone()).map(UserResponse::from);
    let mut messages = Vec::new();
    for turn in turns {
        let number = turn.turn;
        // A turn's events are between its question and its answer.
        let mut turn_messages = ThreadTurn::messages(turn);
        messages.extend(turn_messages.next().map(message_entry));
        while let Some(event) = events.next_if(|event| event.turn <= number) {
            messages.push(event_entry(&id, event));
        }
        messages.extend(turn_messages.map(message_entry));
    }
    Ok(Json(ActivityThread { id: id.to_string(), created_at: created_at.into(), messages, user }))
}

/// A task's activity log
#[derive(Debug, Serialize)]
pub(crate) struct ActivityThread {
    id: String,
    created_at: Timestamp,
    messages: Vec<Value>,
    user: Option<UserResponse>,
}

fn message_entry(message: Message) -> Value {
    let role = match message.role {
        Role::User => "user",
        Role::Agent => "agent",
    };
    let (files, user) = message
        .input
        .map(|input| (input.files.unwrap_or_default(), input.user))
        .unwrap_or_default();
    json!({
        "id": message.id,
        "created_at": Timestamp::from(message.created_at),
        "role": role,
        "content": { "text": message.text, "files": files },
        "user": user.map(UserResponse::from),
    })
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
