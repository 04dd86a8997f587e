//! Invoking agents: each invocation is a turn of a task.

use axum::Json;
use axum::extract::{RawQuery, State};
use axum::http::HeaderMap;
use axum::response::Response;
use chrono::{DateTime, Utc};

use crate::api::auth::{Caller, Write};
use crate::api::error::ApiError;
use crate::api::error::validation::ValidationError;
use crate::api::openapi::errors::{BodyUnreadable, Conflict, ReadOnlyKey, Unauthenticated};
use crate::api::openapi::schemas;
use crate::api::request::body::JsonBody;
use crate::api::request::invocation::InvocationRequest;
use crate::api::request::path::AgentPath;
use crate::api::request::query_reader::QueryReader;
use crate::api::response::event_stream::{self, EventStream};
use crate::api::response::execution::{AgentExecution, recorded_response};
use crate::api::state::AppState;
use crate::domain::{OrganizationId, Task};
use crate::store::{RecordedInvocation, StoreError, Watch};

/// How tasks of REST v1 are invoked, unless their callers say otherwise.
const SOURCE: &str = "api";

fn read(
    agent: String,
    query: Option<&str>,
    headers: &HeaderMap,
    body: &JsonBody,
    now: DateTime<Utc>,
) -> Result<InvocationRequest, Vec<ValidationError>> {
    let version = QueryReader::new(query, &mut Vec::new()).string("version");
    InvocationRequest::read(agent, version, SOURCE, headers, body, now)
}

/// Invoke an agent and return at once
///
/// Records a turn and answers with the task, `pending`. With the id of a task of the same agent it
/// continues that conversation: the task's title, result, status and times become the new turn's.
/// The id of another agent's task is refused, and nothing changes. With an `Idempotency-Key`, the
/// same request sent again gets the first answer and records nothing.
#[utoipa::path(
    post,
    path = "/v1/agents/{agent_id}/invoke/async",
    operation_id = "Invoke_Agent__Async__v1_agents__agent_id__invoke_async_post",
    tags = ["API v1", "Agents", "Agents Invocation"],
    params(("agent_id" = String, Path), schemas::InvokeQuery),
    request_body = schemas::AgentExecutionRequest,
    responses(
        (status = 200, description = "Successful Response", body = schemas::CreatedTask),
        BodyUnreadable,
        Unauthenticated,
        ReadOnlyKey,
        Conflict
    )
)]
pub(crate) async fn invoke_async(
    caller: Caller<Write>,
    State(state): State<AppState>,
    AgentPath(agent): AgentPath,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let invocation = read(agent, query.as_deref(), &headers, &body, state.clock.now())?;
    let recorded = invocation.record(&state.store, caller.organization()).await?;
    Ok(recorded_response(recorded))
}

/// Invoke an agent and wait
///
/// Records a turn as the asynchronous route does, and answers when an agent's runner has reported
/// its end. After a timeout it answers with the task as it is then; the turn continues.
#[utoipa::path(
    post,
    path = "/v1/agents/{agent_id}/invoke",
    operation_id = "Invoke_Agent__Sync__v1_agents__agent_id__invoke_post",
    tags = ["API v1", "Agents", "Agents Invocation"],
    params(("agent_id" = String, Path), schemas::InvokeQuery),
    request_body = schemas::AgentExecutionRequest,
    responses(
        (status = 200, description = "Successful Response", body = schemas::CreatedTask),
        BodyUnreadable,
        Unauthenticated,
        ReadOnlyKey,
        Conflict
    )
)]
pub(crate) async fn invoke(
    caller: Caller<Write>,
    State(state): State<AppState>,
    AgentPath(agent): AgentPath,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: JsonBody,
) -> Result<Json<AgentExecution>, ApiError> {
    let organization = caller.organization();
    let invocation = read(agent, query.as_deref(), &headers, &body, state.clock.now())?;
    let (id, turn) = match invocation.record(&state.store, organization).await? {
        RecordedInvocation::New(task) => (task.summary.id, Some(task.turn.number)),
        // The stored answer names the task, not the turn: wait for the latest.
        RecordedInvocation::Replayed { id, .. } => (id, None),
    };
    let (watch, task) = state.store.follow_task(organization, &id).await?;
    let ended = async {
        if turn.is_none_or(|turn| turn == task.turn.number) {
            wait_until_turn_ends(&state, organization, &watch, task).await
        } else {
            // The next turn has started, so this one has ended.
            Ok(task)
        }
    };
    let task = tokio::select! {
        task = ended => task?,
        () = tokio::time::sleep(state.limits.invoke_timeout) => {
            state.store.get_task(organization, &id).await?
        }
        () = state.stopping.cancelled() => state.store.get_task(organization, &id).await?,
    };
    Ok(Json(task.into()))
}

/// Waits until the turn of `task` has ended or the next one has started, and returns the task as it
/// is then.
async fn wait_until_turn_ends(
    state: &AppState,
    organization: OrganizationId,
    watch: &Watch,
    mut task: Task,
) -> Result<Task, StoreError> {
    let turn = task.turn.number;
    while !task.turn.state.status.is_terminal() && task.turn.number == turn {
        let _ = tokio::time::timeout(state.limits.recheck_interval, watch.changed()).await;
        task = state.store.get_task(organization, &task.summary.id).await?;
    }
    Ok(task)
}

/// Invoke an agent and stream its events
///
/// Records a turn as the asynchronous route does, and answers with server-sent events:
/// `task_created`, then `task_updated` and what the runner pushes (`chunk`, `tool_call_request`,
/// ...) as it happens, and `task_finished` at the end.
#[utoipa::path(
    post,
    path = "/v1/agents/{agent_id}/invoke/stream",
    operation_id = "Invoke_Agent__Stream__v1_agents__agent_id__invoke_stream_post",
    tags = ["API v1", "Agents", "Agents Invocation"],
    params(("agent_id" = String, Path), schemas::InvokeQuery),
    request_body = schemas::AgentExecutionRequest,
    responses(
        (status = 200, description = "Successful Response"),
        BodyUnreadable,
        Unauthenticated,
        ReadOnlyKey,
        Conflict
    )
)]
pub(crate) async fn invoke_stream(
    caller: Caller<Write>,
    State(state): State<AppState>,
    AgentPath(agent): AgentPath,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: JsonBody,
) -> Result<EventStream, ApiError> {
    let organization = caller.organization();
    let invocation = read(agent, query.as_deref(), &headers, &body, state.clock.now())?;
    // Watched before it is recorded, so that the stream starts with the turn's creation.
    let watch = state.store.watch_task(organization, &invocation.invocation.id).await?;
    let (watch, task) = match invocation.record(&state.store, organization).await? {
        RecordedInvocation::New(task) => (watch, *task),
        RecordedInvocation::Replayed { id, .. } => {
            state.store.follow_task(organization, &id).await?
        }
    };
    Ok(event_stream::stream(state, watch, task))
}
