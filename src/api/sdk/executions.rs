//! The official SDK's lists, invocations and stops.

use axum::extract::{RawQuery, State};
use axum::http::HeaderMap;
use axum::response::Response;

use super::SOURCE;
use crate::api::auth::{Caller, Read, Write};
use crate::api::error::ApiError;
use crate::api::error::validation::ValidationErrors;
use crate::api::openapi::errors::{
    BodyUnreadable, Conflict, ReadOnlyKey, TaskNotFound, Unauthenticated,
};
use crate::api::openapi::schemas;
use crate::api::request::body::JsonBody;
use crate::api::request::invocation::InvocationRequest;
use crate::api::request::list_query::{PageSizes, ParsedPage, fetch_page, read_filter};
use crate::api::request::path::{AgentPath, TaskPath, UserPath};
use crate::api::request::query_reader::QueryReader;
use crate::api::request::text_header::read_text_header;
use crate::api::response::execution::{AgentExecution, TaskResponse, recorded_response};
use crate::api::response::json_stream::respond;
use crate::api::response::large_execution::task_response;
use crate::api::response::task_list_json::TaskListBody;
use crate::api::state::AppState;
use crate::domain::{OrganizationId, TaskFilter, UserId};

/// The SDK has no pages and reads one list. Production also returns at most a thousand tasks.
const PAGE_SIZES: PageSizes = PageSizes { default: 1000, max: 1000 };

/// List an agent's tasks, as the SDK does
///
/// The tasks that the agent executes, newest first, as a bare array.
#[utoipa::path(
    get,
    path = "/agent-execution/executions/history/{agent_id}",
    operation_id = "List_Agent_History_agent_execution_executions_history__agent_id__get",
    tags = ["Agent Execution"],
    params(("agent_id" = String, Path), schemas::HistoryQuery),
    responses(
        (status = 200, description = "Successful Response", body = Vec<schemas::TasksListItem>),
        Unauthenticated
    )
)]
pub(crate) async fn list_agent_history(
    caller: Caller<Read>,
    State(state): State<AppState>,
    AgentPath(agent): AgentPath,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let mut errors = ValidationErrors::new();
    let mut query = QueryReader::sdk_dialect(query.as_deref(), &mut errors);
    let page = ParsedPage::read(&mut query, &PAGE_SIZES);
    let filter = read_filter(&mut query, Some(agent));
    list(&state, caller.organization(), filter, page, errors).await
}

async fn list(
    state: &AppState,
    organization: OrganizationId,
    filter: Option<TaskFilter>,
    page: ParsedPage,
    errors: ValidationErrors,
) -> Result<Response, ApiError> {
    let page = fetch_page(&state.store, organization, filter, page, errors).await?;
    respond(state, TaskListBody::array(state.store.clone(), organization, page.tasks)).await
}

/// List a user's tasks, as the SDK does
///
/// The tasks of all agents that were created for the user, newest first, as a bare array.
#[utoipa::path(
    get,
    path = "/agent-execution/executions/history/user/{user_id}",
    operation_id = "List_User_History_agent_execution_executions_history_user__user_id__get",
    tags = ["Agent Execution"],
    params(("user_id" = String, Path), schemas::HistoryQuery),
    responses(
        (status = 200, description = "Successful Response", body = Vec<schemas::TasksListItem>),
        Unauthenticated
    )
)]
pub(crate) async fn list_user_history(
    caller: Caller<Read>,
    State(state): State<AppState>,
    UserPath(user): UserPath,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let mut errors = ValidationErrors::new();
    let mut query = QueryReader::sdk_dialect(query.as_deref(), &mut errors);
    let page = ParsedPage::read(&mut query, &PAGE_SIZES);
    let filter = read_filter(&mut query, None);
    // The path names the user. A filter by another user matches nothing.
    let user = UserId::parse(user).ok();
    let filter = filter.zip(user).and_then(|(filter, user)| {
        let agrees = filter.user_id.as_ref().is_none_or(|other| *other == user);
        agrees.then_some(TaskFilter { user_id: Some(user), ..filter })
    });
    list(&state, caller.organization(), filter, page, errors).await
}

/// Get a task, as the SDK does
///
/// The whole task, as `GET /v1/tasks/{task_id}`.
#[utoipa::path(
    get,
    path = "/agent-execution/{task_id}/status",
    operation_id = "Get_Status_agent_execution__task_id__status_get",
    tags = ["Agent Execution"],
    params(("task_id" = String, Path)),
    responses(
        (status = 200, description = "Successful Response", body = AgentExecution),
        Unauthenticated,
        TaskNotFound
    )
)]
pub(crate) async fn get_status(
    caller: Caller<Read>,
    State(state): State<AppState>,
    TaskPath(task): TaskPath,
) -> Result<Response, ApiError> {
    task_response(&state, state.store.get_task(caller.organization(), &task).await?).await
}

/// Invoke an agent, as the SDK does
///
/// Records a turn, as `POST /v1/agents/{agent_id}/invoke/async`; the id is the agent's.
#[utoipa::path(
    post,
    path = "/agent-execution/{id}",
    operation_id = "Create_Task_agent_execution__id__post",
    tags = ["Agent Execution"],
    params(("id" = String, Path)),
    request_body = schemas::AgentExecutionRequest,
    responses(
        (status = 200, description = "Successful Response", body = AgentExecution),
        BodyUnreadable,
        Unauthenticated,
        ReadOnlyKey,
        Conflict
    )
)]
pub(crate) async fn create_task(
    caller: Caller<Write>,
    State(state): State<AppState>,
    AgentPath(agent): AgentPath,
    headers: HeaderMap,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let mut errors = ValidationErrors::new();
    let version = read_text_header(&headers, "x-agent-version", &mut errors);
    if !errors.is_empty() {
        return Err(errors.into());
    }
    let now = state.clock.now();
    let invocation = InvocationRequest::read(agent, version, SOURCE, &headers, body, now)?;
    let recorded = invocation.record(&state.store, caller.organization()).await?;
    Ok(recorded_response(recorded))
}

/// Stop a task, as the SDK does
///
/// Ends the latest turn, as `POST /v1/tasks/{task_id}/stop`; nothing is deleted.
#[utoipa::path(
    delete,
    path = "/agent-execution/{id}",
    operation_id = "Stop_Task_agent_execution__id__delete",
    tags = ["Agent Execution"],
    params(("id" = String, Path)),
    responses(
        (status = 200, description = "Successful Response", body = AgentExecution),
        Unauthenticated,
        ReadOnlyKey,
        TaskNotFound
    )
)]
pub(crate) async fn stop_task(
    caller: Caller<Write>,
    State(state): State<AppState>,
    TaskPath(task): TaskPath,
) -> Result<TaskResponse, ApiError> {
    let task = state.store.stop_task(caller.organization(), &task, state.clock.now()).await?;
    Ok(TaskResponse(task))
}
