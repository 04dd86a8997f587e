//! Reading and reporting tasks.

use axum::Json;
use axum::extract::{RawQuery, State};
use serde_json::Value;

use super::Api;
use super::auth::{Reader, Writer};
use super::body::JsonBody;
use super::error::ApiError;
use super::faults::{Fault, ObjectReader, QueryReader};
use super::models::{AgentExecution, PaginatedTasks};
use super::path::Id;
use super::schemas;
use crate::domain::{AgentId, Label, PageRequest, Report, TaskFilter, TaskId, TaskPage, UserId};

/// List an agent's tasks
///
/// The tasks that the agent executes, newest first, sub-tasks included, with the exact number of tasks that match.
/// An invocation with the id of a task is a turn of it: it changes that task and adds none. A page past the end is
/// empty, and so is the list of an agent that is unknown.
#[utoipa::path(
    get,
    path = "/v1/agents/{agent_id}/tasks",
    operation_id = "Get_Agent_Tasks_v1_agents__agent_id__tasks_get",
    tags = ["API v1", "Agents", "Tasks CRUD"],
    params(("agent_id" = String, Path), schemas::ListAgentTasksQuery),
    responses((status = 200, description = "Successful Response", body = PaginatedTasks)),
    security(("APIKeyHeader" = []))
)]
pub(crate) async fn list_agent_tasks(
    caller: Reader,
    State(api): State<Api>,
    agent: Id,
    RawQuery(query): RawQuery,
) -> Result<Json<PaginatedTasks>, ApiError> {
    let mut faults = Vec::new();
    let mut query = QueryReader::new(query.as_deref(), &mut faults);
    let page = query.positive("page", 1, None);
    let per_page = query.positive("per_page", 20, Some(i64::from(PageRequest::MAX_PER_PAGE)));
    let filter = read_filter(&mut query, agent.0);
    let request = u64::try_from(page.value).ok().zip(u8::try_from(per_page.value).ok());
    let Some(request) = request.and_then(|(page, per_page)| PageRequest::new(page, per_page)) else {
        return Err(faults.into());
    };
    if !faults.is_empty() {
        return Err(faults.into());
    }
    let tasks = match filter {
        Some(filter) => api.store.list_tasks(caller.organization(), &filter, request).await?,
        None => TaskPage::empty(),
    };
    Ok(Json(PaginatedTasks::new(tasks, request, page.exact)))
}

/// The filter of an agent's list; `None` where nothing can match it, because a text in it can't be stored.
fn read_filter(query: &mut QueryReader<'_>, agent: String) -> Option<TaskFilter> {
    // Every parameter is read before anything is decided, so that every fault is found.
    let user_id = query.text("user_id").map(UserId::parse);
    let parent_task_id = query.text("parent_task_id").map(TaskId::parse);
    let triggering_agent_id = query.text("triggering_agent_id").map(AgentId::parse);
    let status = query.one_of("status");
    let internal_status = query.text("internal_status").map(Label::parse);
    Some(TaskFilter {
        agent_id: Some(AgentId::parse(agent).ok()?),
        user_id: user_id.transpose().ok()?,
        parent_task_id: parent_task_id.transpose().ok()?,
        triggering_agent_id: triggering_agent_id.transpose().ok()?,
        status,
        internal_status: internal_status.transpose().ok()?,
    })
}

/// Get a task
///
/// The whole task, with the input and the outcome of its latest turn.
#[utoipa::path(
    get,
    path = "/v1/tasks/{task_id}",
    operation_id = "Get_Task_v1_tasks__task_id__get",
    tags = ["API v1", "Tasks", "Tasks CRUD"],
    params(("task_id" = String, Path)),
    responses((status = 200, description = "Successful Response", body = AgentExecution)),
    security(("APIKeyHeader" = []))
)]
pub(crate) async fn get_task(
    caller: Reader,
    State(api): State<Api>,
    task: Id,
) -> Result<Json<AgentExecution>, ApiError> {
    // A text that can't be an id is no task's.
    let id = TaskId::parse(task.0).map_err(|_| ApiError::TaskNotFound)?;
    let task = api.store.get_task(caller.organization(), &id).await?.ok_or(ApiError::TaskNotFound)?;
    Ok(Json(task.into()))
}

/// Report about a task
///
/// How an agent's runner says that the latest turn of a task executes, waits, or has ended, and with what result.
/// What is absent or null stays as it is. Times are the service's: `started_at`, `paused_at` and `finished_at` follow
/// the status.
#[utoipa::path(
    patch,
    path = "/agent-execution/{task_id}/update",
    operation_id = "Update_Task_agent_execution__task_id__update_patch",
    tags = ["Agent Execution"],
    params(("task_id" = String, Path)),
    request_body = schemas::TaskUpdateRequest,
    responses((status = 200, description = "Successful Response", body = AgentExecution)),
    security(("APIKeyHeader" = []))
)]
pub(crate) async fn update_task(
    caller: Writer,
    State(api): State<Api>,
    task: Id,
    body: JsonBody,
) -> Result<Json<AgentExecution>, ApiError> {
    let report = read_report(body)?;
    let id = TaskId::parse(task.0).map_err(|_| ApiError::TaskNotFound)?;
    let now = api.clock.now();
    let task = api.store.record_report(caller.organization(), &id, report, now).await?;
    Ok(Json(task.ok_or(ApiError::TaskNotFound)?.into()))
}

/// Reads a report. Official clients send whole tasks, so unknown keys and those that the service owns are ignored,
/// and null means "as it is".
fn read_report(JsonBody(body): JsonBody) -> Result<Report, Vec<Fault>> {
    let mut faults = Vec::new();
    let body = body.ok_or_else(|| vec![Fault::missing(vec!["body".into()], Value::Null)])?;
    let Some(mut body) = ObjectReader::of_body(&body, &mut faults) else { return Err(faults) };
    let payload_extension = body.free_object("payload_extension");
    let report = Report {
        status: body.one_of("status", None),
        result: body.text("result"),
        internal_status: body.parsed_text("internal_status", Label::parse),
        last_executed_node_id: body.text("last_executed_node_id"),
        source: body.parsed_text("source", Label::parse),
        title: body.text("title"),
        payload_extension: body.free_object("tool_call_payload_extension").or(payload_extension),
    };
    if faults.is_empty() { Ok(report) } else { Err(faults) }
}
