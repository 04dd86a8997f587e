//! Tasks on REST v1: lists, reading, stopping, deleting. What reading a request and answering it has in common with the
//! SDK's routes is here too.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use serde_json::{Map, Value};

use super::Api;
use super::auth::{Reader, Writer};
use super::body::JsonBody;
use super::error::ApiError;
use super::faults::Fault;
use super::links;
use super::list::ListJson;
use super::models::AgentExecution;
use super::object::ObjectReader;
use super::path::Id;
use super::query::{Integer, QueryReader};
use super::schemas;
use crate::domain::{
    AgentId, Label, OrganizationId, PageRequest, Position, Report, Reported, Status, Task, TaskFilter,
    TaskId, TaskPage, UserId,
};

/// Most tasks on a page, and how many there are unless said otherwise, on REST v1.
const PAGE_SIZE: (i64, i64) = (50, 20);

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
    responses((status = 200, description = "Successful Response", body = schemas::PaginatedTasks)),
    security(("APIKeyHeader" = []))
)]
pub(crate) async fn list_agent_tasks(
    caller: Reader,
    State(api): State<Api>,
    agent: Id,
    uri: Uri,
) -> Result<(HeaderMap, ListJson), ApiError> {
    let mut faults = Vec::new();
    let mut query = QueryReader::new(uri.query(), &mut faults);
    let page = read_page(&mut query, PAGE_SIZE);
    let filter = read_filter(&mut query, Some(agent.0));
    let page = page.at(links::read_position(&mut query));
    list(&api, caller.organization(), &uri, filter, page, faults).await
}

/// List tasks
///
/// The organisation's tasks, of all agents, newest first, with the exact number of tasks that match. The `Link` header
/// leads to the first, previous, next and last page; whoever follows `next` meets each task once, also while others are
/// being recorded.
#[utoipa::path(
    get,
    path = "/v1/tasks",
    operation_id = "Get_Tasks_v1_tasks_get",
    tags = ["API v1", "Tasks", "Tasks CRUD"],
    params(schemas::ListTasksQuery),
    responses((status = 200, description = "Successful Response", body = schemas::PaginatedTasks)),
    security(("APIKeyHeader" = []))
)]
pub(crate) async fn list_tasks(
    caller: Reader,
    State(api): State<Api>,
    uri: Uri,
) -> Result<(HeaderMap, ListJson), ApiError> {
    let mut faults = Vec::new();
    let mut query = QueryReader::new(uri.query(), &mut faults);
    let page = read_page(&mut query, PAGE_SIZE);
    let agent = query.text("agent_id");
    let filter = read_filter(&mut query, agent);
    let created_from = query.datetime("from_date");
    let created_to = query.datetime("to_date");
    let status_in = query.any_of("status_in");
    let page = page.at(links::read_position(&mut query));
    let filter = filter
        .map(|filter| TaskFilter { created_from, created_to, ..filter })
        .and_then(|filter| narrow(filter, status_in));
    list(&api, caller.organization(), &uri, filter, page, faults).await
}

/// Both the one status and one of the others; `None` where that leaves none.
fn narrow(mut filter: TaskFilter, status_in: Option<Vec<Status>>) -> Option<TaskFilter> {
    let Some(status_in) = status_in else { return Some(filter) };
    let exact = std::mem::take(&mut filter.statuses);
    filter.statuses =
        status_in.into_iter().filter(|status| exact.is_empty() || exact.contains(status)).collect();
    (!filter.statuses.is_empty()).then_some(filter)
}

/// A page as asked for, and its number in all its digits.
pub(crate) struct ReadPage {
    request: Option<PageRequest>,
    number: Integer,
}

impl ReadPage {
    fn at(self, position: Position) -> Self {
        Self { request: self.request.map(|request| request.at(position)), ..self }
    }
}

/// Reads `page` and `per_page`, of which `sizes` are the largest value and the default.
pub(crate) fn read_page(query: &mut QueryReader<'_>, sizes: (i64, i64)) -> ReadPage {
    let number = query.positive("page", 1, None);
    let per_page = query.positive("per_page", sizes.1, Some(sizes.0));
    let request = u64::try_from(number.value).ok().zip(u16::try_from(per_page.value).ok());
    ReadPage { request: request.and_then(|(page, per_page)| PageRequest::new(page, per_page)), number }
}

/// Reads the filters that all lists have, in the contract's order; `None` where nothing can match them, because a text
/// in them can't be stored.
pub(crate) fn read_filter(query: &mut QueryReader<'_>, agent: Option<String>) -> Option<TaskFilter> {
    // Every parameter is read before anything is decided, so that every fault is found.
    let agent_id = agent.map(AgentId::parse);
    let user_id = query.text("user_id").map(UserId::parse);
    let parent_task_id = query.text("parent_task_id").map(TaskId::parse);
    let triggering_agent_id = query.text("triggering_agent_id").map(AgentId::parse);
    let status: Option<Status> = query.one_of("status");
    let internal_status = query.text("internal_status").map(Label::parse);
    Some(TaskFilter {
        agent_id: agent_id.transpose().ok()?,
        user_id: user_id.transpose().ok()?,
        parent_task_id: parent_task_id.transpose().ok()?,
        triggering_agent_id: triggering_agent_id.transpose().ok()?,
        statuses: status.into_iter().collect(),
        internal_status: internal_status.transpose().ok()?,
        created_from: None,
        created_to: None,
    })
}

/// The page of a list; empty where nothing can match.
pub(crate) async fn fetch_page(
    api: &Api,
    organization: OrganizationId,
    filter: Option<TaskFilter>,
    page: ReadPage,
    faults: Vec<Fault>,
) -> Result<(TaskPage, PageRequest), ApiError> {
    let Some(request) = page.request.filter(|_| faults.is_empty()) else { return Err(faults.into()) };
    let tasks = match filter {
        Some(filter) => api.store.list_tasks(organization, &filter, &request).await?,
        None => TaskPage::empty(),
    };
    Ok((tasks, request))
}

async fn list(
    api: &Api,
    organization: OrganizationId,
    uri: &Uri,
    filter: Option<TaskFilter>,
    page: ReadPage,
    faults: Vec<Fault>,
) -> Result<(HeaderMap, ListJson), ApiError> {
    let number = page.number.exact.clone();
    let (tasks, request) = fetch_page(api, organization, filter, page, faults).await?;
    let links = links::headers(uri, &request, &tasks);
    Ok((links, ListJson::page(&tasks, &request, &number)))
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
    let task = fetch_task(&api, caller.organization(), task).await?;
    Ok(Json(task.into()))
}

/// An id as a task's. A text that can't be an id is no task's.
pub(crate) fn task_id(id: Id) -> Result<TaskId, ApiError> {
    TaskId::parse(id.0).map_err(|_| ApiError::TaskNotFound)
}

/// The task with an id, or 404.
pub(crate) async fn fetch_task(api: &Api, organization: OrganizationId, id: Id) -> Result<Task, ApiError> {
    api.store.get_task(organization, &task_id(id)?).await?.ok_or(ApiError::TaskNotFound)
}

/// Delete a task
///
/// Erases the task, its conversation, and its sub-tasks to any depth. It can't be undone.
#[utoipa::path(
    delete,
    path = "/v1/tasks/{task_id}",
    operation_id = "Delete_Task_v1_tasks__task_id__delete",
    tags = ["API v1", "Tasks", "Tasks CRUD"],
    params(("task_id" = String, Path)),
    responses((status = 204, description = "Successful Response")),
    security(("APIKeyHeader" = []))
)]
pub(crate) async fn delete_task(
    caller: Writer,
    State(api): State<Api>,
    task: Id,
) -> Result<StatusCode, ApiError> {
    let existed = api.store.delete_task(caller.organization(), &task_id(task)?).await?;
    if existed { Ok(StatusCode::NO_CONTENT) } else { Err(ApiError::TaskNotFound) }
}

/// Stop a task
///
/// Ends the latest turn, `stopped` by a person. A turn that has ended stays as it ended, so stopping twice is harmless.
#[utoipa::path(
    post,
    path = "/v1/tasks/{task_id}/stop",
    operation_id = "Stop_Task_v1_tasks__task_id__stop_post",
    tags = ["API v1", "Tasks", "Tasks CRUD"],
    params(("task_id" = String, Path)),
    responses((status = 200, description = "Successful Response", body = AgentExecution)),
    security(("APIKeyHeader" = []))
)]
pub(crate) async fn stop_task(
    caller: Writer,
    State(api): State<Api>,
    task: Id,
) -> Result<Json<AgentExecution>, ApiError> {
    stop(&api, caller.organization(), task).await
}

/// Stops a task, or 404.
pub(crate) async fn stop(
    api: &Api,
    organization: OrganizationId,
    id: Id,
) -> Result<Json<AgentExecution>, ApiError> {
    let task = api.store.stop_task(organization, &task_id(id)?, api.clock.now()).await?;
    Ok(Json(task.ok_or(ApiError::TaskNotFound)?.into()))
}

/// Records a report about a task, or 404.
pub(crate) async fn report(
    api: &Api,
    organization: OrganizationId,
    id: &TaskId,
    report: Report,
) -> Result<Json<AgentExecution>, ApiError> {
    let task = api.store.record_report(organization, id, report, api.clock.now()).await?;
    Ok(Json(task.ok_or(ApiError::TaskNotFound)?.into()))
}

/// Reads counts of tokens: official clients refuse a task whose counts are no whole numbers.
#[expect(clippy::redundant_closure_for_method_calls, reason = "the method itself has one lifetime too few")]
pub(crate) fn read_tokens(body: &mut ObjectReader<'_, '_>, name: &'static str) -> Option<Map<String, Value>> {
    body.checked_object(name, |tokens| tokens.all_integers())
}

/// Reads a report. Official clients send whole tasks, so unknown keys and those that the service owns are ignored,
/// and null means "as it is".
pub(crate) fn read_report(JsonBody(body): JsonBody) -> Result<Report, Vec<Fault>> {
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
        reported: Reported {
            tokens: read_tokens(&mut body, "tokens"),
            // What a whole task has where nobody has said anything.
            duration: body.number("duration").filter(|duration| *duration != 0.0),
            used_tools: body.texts_or_null("used_tools").filter(|tools| !tools.is_empty()),
            hitl_request: body.checked_object("hitl_request", |request| {
                request.required_text("wait_node_id");
            }),
            pending_eca_request: body.checked_object("pending_eca_request", |request| {
                request.required_text("connector_name");
                request.required_text("auth_url");
            }),
            deep_planning: body.checked_object("deep_planning", |plan| {
                for flag in ["enabled", "enforce", "started", "question_raised"] {
                    plan.exact_flag(flag);
                }
                plan.each_object("tasks", |task| {
                    task.required_text("id");
                    task.required_text("title");
                    task.exact_flag("completed");
                });
            }),
        },
    };
    if faults.is_empty() { Ok(report) } else { Err(faults) }
}
