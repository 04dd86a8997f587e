//! Events of a task: following them, and pushing them.

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use crate::api::auth::{Caller, Read, Write};
use crate::api::error::ApiError;
use crate::api::error::validation::{ValidationError, ValidationErrors};
use crate::api::openapi::errors::{
    BodyUnreadable, ReadOnlyKey, TaskNotFound, TooManyStreams, TurnNotFound, Unauthenticated,
};
use crate::api::openapi::schemas;
use crate::api::request::body::{ReportBody, TextReplaced};
use crate::api::request::body_reader::BodyReader;
use crate::api::request::path::TaskPath;
use crate::api::response::event_start::{StreamStart, read_state};
use crate::api::response::event_stream::{self, EventStream};
use crate::api::state::AppState;
use crate::domain::{EventKind, NewEvent, ShortText};

/// Most events of one push.
const MAX_PUSHED: usize = 1000;

/// The header with the id of the last event that a client has received.
const LAST_EVENT_ID: &str = "Last-Event-ID";

/// Stream a task's events
///
/// Server-sent events: first the current task, then each event until its turn ends. The id of an
/// event is its number. With the header `Last-Event-ID`, the stream goes on after that event: with
/// the recorded events, and with the current task if an event was not recorded because nobody
/// watched. A stream that ends for another reason than the end of the turn says so in an event of
/// the type `stream_error`, and its response is not complete.
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
        TaskNotFound,
        TooManyStreams
    )
)]
pub(crate) async fn get_events(
    caller: Caller<Read>,
    State(state): State<AppState>,
    TaskPath(task): TaskPath,
    headers: HeaderMap,
) -> Result<EventStream, ApiError> {
    let after = read_last_event_id(&headers)?;
    let organization = caller.organization();
    let watch = state.store.watch_task(organization, &task).await?;
    let goes_on = match after {
        Some(event) => {
            let position = state.store.get_position(organization, &task).await?;
            // An event that there is not yet is no place to go on from.
            let turn = position.turn;
            (event <= position.events).then_some(StreamStart::After { event, turn })
        }
        None => None,
    };
    let start = match goes_on {
        Some(start) => start,
        None => StreamStart::At(read_state(&state, organization, &task).await?),
    };
    Ok(event_stream::stream(state, caller.credential(), watch, task, start))
}

fn read_last_event_id(headers: &HeaderMap) -> Result<Option<i64>, ValidationErrors> {
    let Some(text) = headers.get(LAST_EVENT_ID) else { return Ok(None) };
    let text = String::from_utf8_lossy(text.as_bytes()).into_owned();
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(number) if is_number => Ok(Some(number)),
        _ => {
            let msg = "Value error, must be the id of an event, a whole number";
            let loc = vec!["header".into(), LAST_EVENT_ID.into()];
            Err(ValidationError::new("value_error", loc, msg, text.into()).into())
        }
    }
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
        (
            status = 200,
            description = "Successful Response",
            body = PushedEvents,
            headers((
                "x-text-replaced" = usize,
                description = "How many lone surrogates were recorded as U+FFFD; absent if none"
            ))
        ),
        BodyUnreadable,
        Unauthenticated,
        ReadOnlyKey,
        TurnNotFound
    )
)]
pub(crate) async fn push_events(
    caller: Caller<Write>,
    State(state): State<AppState>,
    TaskPath(task): TaskPath,
    body: ReportBody,
) -> Result<(TextReplaced, Json<PushedEvents>), ApiError> {
    let events = read_events(&body)?;
    let (organization, now) = (caller.organization(), state.clock.now());
    state.store.record_events(organization, &task, &events, now).await?;
    Ok((body.text_replaced(), Json(PushedEvents { accepted: events.len() })))
}

/// How many events were recorded
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct PushedEvents {
    /// How many
    accepted: usize,
}

fn read_events(body: &ReportBody) -> Result<Vec<NewEvent>, ValidationErrors> {
    let loc = || vec!["body".into()];
    let mut errors = ValidationErrors::new();
    let Some(body) = body.required(&mut errors) else { return Err(errors) };
    let Value::Array(items) = body else {
        return Err(ValidationError::not_a_list(loc(), body.clone()).into());
    };
    if items.len() > MAX_PUSHED {
        return Err(ValidationError::too_long(loc(), MAX_PUSHED, items.len()).into());
    }
    let mut events = Vec::new();
    for (index, item) in items.iter().enumerate() {
        if errors.is_full() {
            break;
        }
        let Some(mut event) = BodyReader::for_item(item, index, &mut errors) else { continue };
        let kind = event.required_parsed_string("type", ShortText::parse);
        let turn = event.turn();
        let data = event.storable_value("data").unwrap_or_default();
        if let Some(kind) = kind.filter(|kind| !EventKind::is_state_type(kind.as_str())) {
            events.push(NewEvent { turn, kind, data });
        }
    }
    if errors.is_empty() { Ok(events) } else { Err(errors) }
}
