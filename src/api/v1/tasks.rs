//! Tasks: lists, reading, stopping, deleting.

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::Response;

use crate::api::auth::{Caller, Read, Write};
use crate::api::cursor::CURSOR;
use crate::api::error::ApiError;
use crate::api::error::validation::ValidationErrors;
use crate::api::openapi::errors::{ReadOnlyKey, TaskNotFound, Unauthenticated};
use crate::api::openapi::schemas;
use crate::api::request::list_query::{ListedPage, PageSizes, ParsedPage, fetch_page, read_filter};
use crate::api::request::path::{AgentPath, TaskPath};
use crate::api::request::query_reader::QueryReader;
use crate::api::response::execution::{AgentExecution, TaskResponse};
use crate::api::response::json_stream::respond;
use crate::api::response::large_execution::task_response;
use crate::api::response::link_header::{PAGE, link_header};
use crate::api::response::task_list_json::TaskListBody;
use crate::api::state::AppState;
use crate::domain::{OrganizationId, Status, TaskFilter};

/// The contract's page sizes.
const PAGE_SIZES: PageSizes = PageSizes { default: 20, max: 50 };

/// List an agent's tasks
///
/// The tasks that the agent executes, newest first, sub-tasks included, with the exact number of
/// tasks that match. An invocation with the id of a task adds a turn to that task and
/// creates no new task. A page past the end is empty, and so is the list of an unknown agent.
#[utoipa::path(
    get,
    path = "/v1/agents/{agent_id}/tasks",
    operation_id = "Get_Agent_Tasks_v1_agents__agent_id__tasks_get",
    tags = ["API v1", "Agents", "Tasks CRUD"],
    params(("agent_id" = String, Path), schemas::ListAgentTasksQuery),
    responses((status = 200, description = "Successful Response", body = schemas::PaginatedTasks))
)]
pub(crate) async fn list_agent_tasks(
    caller: Caller<Read>,
    State(state): State<AppState>,
    AgentPath(agent): AgentPath,
    uri: Uri,
) -> Result<(HeaderMap, Response), ApiError> {
    let mut errors = ValidationErrors::new();
    let mut query = QueryReader::new(uri.query(), &mut errors);
    let page = ParsedPage::read(&mut query, &PAGE_SIZES);
    let filter = read_filter(&mut query, Some(agent));
    let page = page.with_cursor(&mut query);
    let address = ListAddress::new(&uri, &query);
    list(&state, caller.organization(), address, filter, page, errors).await
}

/// List tasks
///
/// The organization's tasks, of all agents, newest first, with the exact number of tasks that
/// match. The `Link` header has the first, previous, next and last page. A client that follows
/// `next` gets each task once, also while others are being recorded.
#[utoipa::path(
    get,
    path = "/v1/tasks",
    operation_id = "Get_Tasks_v1_tasks_get",
    tags = ["API v1", "Tasks", "Tasks CRUD"],
    params(schemas::ListTasksQuery),
    responses(
        (status = 200, description = "Successful Response", body = schemas::PaginatedTasks),
        Unauthenticated
    )
)]
pub(crate) async fn list_tasks(
    caller: Caller<Read>,
    State(state): State<AppState>,
    uri: Uri,
) -> Result<(HeaderMap, Response), ApiError> {
    let mut errors = ValidationErrors::new();
    let mut query = QueryReader::new(uri.query(), &mut errors);
    let page = ParsedPage::read(&mut query, &PAGE_SIZES);
    let agent = query.string("agent_id");
    let filter = read_filter(&mut query, agent);
    let created_from = query.datetime("from_date");
    let created_to = query.datetime("to_date");
    let status_in = query.comma_separated("status_in");
    let page = page.with_cursor(&mut query);
    let address = ListAddress::new(&uri, &query);
    let filter = filter
        .map(|filter| TaskFilter { created_from, created_to, ..filter })
        .and_then(|filter| intersect_statuses(filter, status_in));
    list(&state, caller.organization(), address, filter, page, errors).await
}

/// Adds `status_in` to a filter that may have a `status`. `None` if no status is left.
fn intersect_statuses(
    mut filter: TaskFilter,
    status_in: Option<Vec<Status>>,
) -> Option<TaskFilter> {
    let Some(status_in) = status_in else { return Some(filter) };
    let exact = std::mem::take(&mut filter.statuses);
    let wanted = |status: &Status| exact.is_empty() || exact.contains(status);
    filter.statuses = status_in.into_iter().filter(wanted).collect();
    (!filter.statuses.is_empty()).then_some(filter)
}

/// The address of a list, as its links repeat it: without the page, and without what the route does
/// not know.
struct ListAddress<'a> {
    path: &'a str,
    query: String,
}

impl<'a> ListAddress<'a> {
    fn new(uri: &'a Uri, query: &QueryReader<'_>) -> Self {
        Self { path: uri.path(), query: query.known_except(&[PAGE, CURSOR]) }
    }
}

async fn list(
    state: &AppState,
    organization: OrganizationId,
    address: ListAddress<'_>,
    filter: Option<TaskFilter>,
    page: ParsedPage,
    errors: ValidationErrors,
) -> Result<(HeaderMap, Response), ApiError> {
    let page = fetch_page(&state.store, organization, filter, page, errors).await?;
    let links = link_header(address.path, &address.query, &page.request, &page.tasks);
    let ListedPage { tasks, request, number } = page;
    let body = TaskListBody::page(state.store.clone(), organization, tasks, &request, &number);
    Ok((links, respond(state, body).await?))
}

/// Get a task
///
/// The whole task, with the input and the result of its latest turn.
#[utoipa::path(
    get,
    path = "/v1/tasks/{task_id}",
    operation_id = "Get_Task_v1_tasks__task_id__get",
    tags = ["API v1", "Tasks", "Tasks CRUD"],
    params(("task_id" = String, Path)),
    responses(
        (status = 200, description = "Successful Response", body = AgentExecution),
        Unauthenticated,
        TaskNotFound
    )
)]
pub(crate) async fn get_task(
    caller: Caller<Read>,
    State(state): State<AppState>,
    TaskPath(task): TaskPath,
) -> Result<Response, ApiError> {
    task_response(&state, state.store.get_task(caller.organization(), &task).await?).await
}

/// Delete a task
///
/// Erases the task, its conversation, and its sub-tasks to any depth. This cannot be undone.
#[utoipa::path(
    delete,
    path = "/v1/tasks/{task_id}",
    operation_id = "Delete_Task_v1_tasks__task_id__delete",
    tags = ["API v1", "Tasks", "Tasks CRUD"],
    params(("task_id" = String, Path)),
    responses(
        (status = 204, description = "Successful Response"),
        Unauthenticated,
        ReadOnlyKey,
        TaskNotFound
    )
)]
pub(crate) async fn delete_task(
    caller: Caller<Write>,
    State(state): State<AppState>,
    TaskPath(task): TaskPath,
) -> Result<StatusCode, ApiError> {
    state.store.delete_task(caller.organization(), &task).await?;
    caller.audit_deletion(&task);
    Ok(StatusCode::NO_CONTENT)
}

/// Stop a task
///
/// Ends the latest turn as `stopped` by a person. A turn that has ended stays as it is, so stopping
/// twice is harmless.
#[utoipa::path(
    post,
    path = "/v1/tasks/{task_id}/stop",
    operation_id = "Stop_Task_v1_tasks__task_id__stop_post",
    tags = ["API v1", "Tasks", "Tasks CRUD"],
    params(("task_id" = String, Path)),
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
