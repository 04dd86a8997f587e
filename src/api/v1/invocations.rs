//! Invoking agents: each invocation is a turn of a task.

use std::time::Duration;

use axum::extract::{RawQuery, State};
use axum::http::HeaderMap;
use axum::response::Response;
use chrono::{DateTime, Utc};

use crate::api::auth::{Caller, Write};
use crate::api::error::ApiError;
use crate::api::error::validation::ValidationErrors;
use crate::api::openapi::errors::{
    BodyUnreadable, Conflict, ReadOnlyKey, TooManyStreams, Unauthenticated,
};
use crate::api::openapi::schemas;
use crate::api::request::body::JsonBody;
use crate::api::request::invocation::InvocationRequest;
use crate::api::request::path::AgentPath;
use crate::api::request::query_reader::QueryReader;
use crate::api::response::event_start::{StreamStart, read_state};
use crate::api::response::event_stream::{self, EventStream};
use crate::api::response::execution::{TaskResponse, TurnHeader, recorded_response, turn_header};
use crate::api::state::AppState;
use crate::domain::{Credential, Limits, OrganizationId, Task, TaskId};
use crate::store::{RecordedInvocation, Store, StoreError, Watch};

/// How tasks of REST v1 are invoked, unless their callers say otherwise.
const SOURCE: &str = "api";

/// How long a waiting invocation waits before it reads an unavailable database again.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);

fn read(
    agent: String,
    query: Option<&str>,
    headers: &HeaderMap,
    body: JsonBody,
    now: DateTime<Utc>,
) -> Result<InvocationRequest, ValidationErrors> {
    let version = QueryReader::new(query, &mut ValidationErrors::new()).string("version");
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
    let invocation = read(agent, query.as_deref(), &headers, body, state.clock.now())?;
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
        Conflict,
        TooManyStreams
    )
)]
pub(crate) async fn invoke(
    caller: Caller<Write>,
    State(state): State<AppState>,
    AgentPath(agent): AgentPath,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: JsonBody,
) -> Result<TaskResponse, ApiError> {
    let organization = caller.organization();
    let invocation = read(agent, query.as_deref(), &headers, body, state.clock.now())?;
    // Watched before it is recorded: an invocation that cannot be watched records nothing.
    let watch = state.store.watch_task(organization, invocation.task_id()).await?;
    let (watch, turn, task) = match invocation.record(&state.store, organization).await? {
        RecordedInvocation::New(task) => (watch, task.turn.number, *task),
        RecordedInvocation::Replayed(recorded) => {
            let id = &recorded.summary.id;
            let (watch, task) = state.store.follow_task(organization, id).await?;
            (watch, recorded.turn.number, task)
        }
        // The stored answer names the task, not the turn: wait for the latest.
        RecordedInvocation::Answered { id, .. } => {
            let (watch, task) = state.store.follow_task(organization, &id).await?;
            (watch, task.turn.number, task)
        }
    };
    let mut key = state.store.watch_key(caller.credential(), &state.clock);
    let mut waiting = WaitingInvocation { store: &state.store, organization, turn, task };
    tokio::select! {
        ended = waiting.until_turn_ends(&watch, &state.limits) => ended?,
        () = tokio::time::sleep(state.limits.invoke_timeout) => {}
        () = state.stopping.cancelled() => {}
        () = key.ended() => return Err(ApiError::Unauthenticated),
    }
    let task = waiting.task;
    if task.turn.number == turn {
        return Ok(TaskResponse(task));
    }
    // A later turn has started. The answer is about the turn that this request recorded.
    let id = &task.summary.id;
    let read = state.store.get_task_at_turn(organization, id, turn).await;
    Ok(TaskResponse(read.map_err(StoreError::after_write)?))
}

/// An invocation that is recorded, and waits for the end of its turn.
struct WaitingInvocation<'a> {
    store: &'a Store,
    organization: OrganizationId,
    turn: i32,
    /// The task as it was read last.
    task: Task,
}

impl WaitingInvocation<'_> {
    /// Waits until the turn has ended or the next one has started.
    ///
    /// A database that is unavailable is read again: an error would tell the client that nothing
    /// was recorded.
    async fn until_turn_ends(&mut self, watch: &Watch, limits: &Limits) -> Result<(), StoreError> {
        let mut interval = limits.recheck_interval;
        while !self.task.turn.state.status.is_terminal() && self.task.turn.number == self.turn {
            let _ = tokio::time::timeout(interval, watch.changed()).await;
            interval = match self.store.get_task(self.organization, &self.task.summary.id).await {
                Ok(task) => {
                    self.task = task;
                    limits.recheck_interval
                }
                Err(StoreError::Unavailable(_) | StoreError::Locked(_)) => RETRY_INTERVAL,
                Err(error) => return Err(error),
            };
        }
        Ok(())
    }
}

/// Invoke an agent and stream its events
///
/// Records a turn as the asynchronous route does, and answers with server-sent events:
/// `task_created`, then `task_updated` and what the runner pushes (`chunk`, `tool_call_request`,
/// ...) as it happens, and `task_finished` at the end. A stream that ends for another reason says
/// so in an event of the type `stream_error`, and its response is not complete.
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
        Conflict,
        TooManyStreams
    )
)]
pub(crate) async fn invoke_stream(
    caller: Caller<Write>,
    State(state): State<AppState>,
    AgentPath(agent): AgentPath,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: JsonBody,
) -> Result<(TurnHeader, EventStream), ApiError> {
    let organization = caller.organization();
    let invocation = read(agent, query.as_deref(), &headers, body, state.clock.now())?;
    // Watched before it is recorded, so that the stream starts with the turn's creation.
    let watch = state.store.watch_task(organization, invocation.task()).await?;
    let id = match invocation.record(&state.store, organization).await? {
        RecordedInvocation::New(task) => {
            // The turn is recorded as an event: it was watched before.
            let start = StreamStart::After { event: task.events - 1, turn: task.turn.number };
            return Ok(stream(state, caller.credential(), watch, task.summary.id, start));
        }
        RecordedInvocation::Replayed(task) => task.summary.id,
        RecordedInvocation::Answered { id, .. } => id,
    };
    // A repetition may have another id than the task that was recorded first.
    let watch = state.store.watch_task(organization, &id).await?;
    let start = StreamStart::At(read_state(&state, organization, &id).await?);
    Ok(stream(state, caller.credential(), watch, id, start))
}

fn stream(
    state: AppState,
    credential: Credential,
    watch: Watch,
    id: TaskId,
    start: StreamStart,
) -> (TurnHeader, EventStream) {
    let turn = turn_header(start.turn());
    (turn, event_stream::stream(state, credential, watch, id, start))
}
