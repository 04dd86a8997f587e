//! Events of a task: following them, and pushing them.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use crate::api::auth::{Caller, Read, Write};
use crate::api::error::ApiError;
use crate::api::error::validation::ValidationError;
use crate::api::openapi::errors::{BodyUnreadable, ReadOnlyKey, TaskNotFound, Unauthenticated};
use crate::api::openapi::schemas;
use crate::api::request::body::JsonBody;
use crate::api::request::body_reader::BodyReader;
use crate::api::request::path::TaskPath;
use crate::api::response::event_stream::{self, EventStream};
use crate::api::state::AppState;
use crate::domain::{EventKind, NewEvent, ShortText};

/// Most events of one push.
const MAX_PUSHED: usize = 1000;

/// Stream a task's events
///
/// Server-sent events: first the current task, then each event until its turn ends.
#[utoipa::path(
    get,
    path = "/agent-execution/{task_id}/events",
    operation_id = "Get_Events_agent_execution__task_id__events_get",
    tags = ["Agent Execution"],
    params(("task_id" = String, Path)),
    responses(
        (
            status = 200,
            description = "Successful Response",
            body = Value,
            content_type = "text/event-stream"
        ),
        Unauthenticated,
        TaskNotFound
    )
)]
pub(crate) async fn get_events(
    caller: Caller<Read>,
    State(state): State<AppState>,
    TaskPath(task): TaskPath,
) -> Result<EventStream, ApiError> {
    let (watch, task) = state.store.follow_task(caller.organization(), &task).await?;
    Ok(event_stream::stream(state, watch, task))
}

/// Push events of a task
///
/// Events of a running agent: tool calls, thoughts, fragments of the result. They are sent to the
/// task's event streams and kept in its activity log. Events of the task's own state come from
/// reports and are ignored here.
#[utoipa::path(
    post,
    path = "/agent-execution/{task_id}/events/push",
    operation_id = "Push_Events_agent_execution__task_id__events_push_post",
    tags = ["Agent Execution"],
    params(("task_id" = String, Path)),
    request_body = Vec<schemas::TaskUpdateEvent>,
    responses(
        (status = 200, description = "Successful Response", body = PushedEvents),
        BodyUnreadable,
        Unauthenticated,
        ReadOnlyKey,
        TaskNotFound
    )
)]
pub(crate) async fn push_events(
    caller: Caller<Write>,
    State(state): State<AppState>,
    TaskPath(task): TaskPath,
    body: JsonBody,
) -> Result<Json<PushedEvents>, ApiError> {
    let events = read_events(&body)?;
    let (organization, now) = (caller.organization(), state.clock.now());
    state.store.record_events(organization, &task, &events, now).await?;
    Ok(Json(PushedEvents { accepted: events.len() }))
}

/// How many events were recorded
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct PushedEvents {
    /// How many
    accepted: usize,
}

fn read_events(body: &JsonBody) -> Result<Vec<NewEvent>, Vec<ValidationError>> {
    let loc = || vec!["body".into()];
    let mut errors = Vec::new();
    let Some(body) = body.required(&mut errors) else { return Err(errors) };
    let Value::Array(items) = body else {
        return Err(vec![ValidationError::not_a_list(loc(), body.clone())]);
    };
    if items.len() > MAX_PUSHED {
        return Err(vec![ValidationError::too_long(loc(), MAX_PUSHED, items.len())]);
    }
    let mut events = Vec::new();
    for (index, item) in items.iter().enumerate() {
        let Some(mut event) = BodyReader::for_item(item, index, &mut errors) else { continue };
        let kind = event.required_parsed_string("type", ShortText::parse);
        let data = event.storable_value("data").unwrap_or_default();
        if let Some(kind) = kind.filter(|kind| !EventKind::is_state_type(kind.as_str())) {
            events.push(NewEvent { kind, data });
        }
    }
    if errors.is_empty() { Ok(events) } else { Err(errors) }
}
