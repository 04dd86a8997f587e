//! The routes of the official Python SDK, thin: they translate its requests for the logic behind REST v1, and are lenient
//! where it is loose. Each also exists with the organisation before it.

use axum::Json;
use axum::extract::{RawQuery, State};
use axum::http::HeaderMap;
use serde::Serialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::Api;
use super::auth::{Reader, Writer};
use super::body::JsonBody;
use super::error::ApiError;
use super::faults::Fault;
use super::invocations::ReadInvocation;
use super::list::ListJson;
use super::models::{AgentExecution, Timestamp, UserOutput};
use super::object::ObjectReader;
use super::path::Id;
use super::query::QueryReader;
use super::stream::{self, EventStream};
use super::{schemas, tasks};
use crate::domain::{
    Event, EventKind, Input, Invocation, Label, Message, NewEvent, Report, Reported, Request, Role, Status,
    TaskFilter, TaskId, Thread, UserId,
};

/// How tasks of these routes are invoked, unless their callers say otherwise.
const SOURCE: &str = "sdk";

/// Most tasks of a list, and how many there are unless said otherwise: the SDK knows no pages and takes what it gets.
const LIST_SIZE: (i64, i64) = (1000, 1000);

/// Most events that can be pushed at once.
const MAX_PUSHED: usize = 1000;

/// List an agent's tasks, as the SDK does
///
/// The tasks that the agent executes, newest first, as a bare array.
#[utoipa::path(
    get,
    path = "/agent-execution/executions/history/{agent_id}",
    operation_id = "List_Agent_History_agent_execution_executions_history__agent_id__get",
    tags = ["Agent Execution"],
    params(("agent_id" = String, Path), schemas::HistoryQuery),
    responses((status = 200, description = "Successful Response", body = Vec<schemas::TasksListItem>)),
    security(("APIKeyHeader" = []))
)]
pub(crate) async fn list_agent_history(
    caller: Reader,
    State(api): State<Api>,
    agent: Id,
    RawQuery(query): RawQuery,
) -> Result<ListJson, ApiError> {
    let mut faults = Vec::new();
    let mut query = QueryReader::lenient(query.as_deref(), &mut faults);
    let page = tasks::read_page(&mut query, LIST_SIZE);
    let filter = tasks::read_filter(&mut query, Some(agent.0));
    let (page, _) = tasks::fetch_page(&api, caller.organization(), filter, page, faults).await?;
    Ok(ListJson::array(&page))
}

/// List a user's tasks, as the SDK does
///
/// The tasks of all agents that were made for the user, newest first, as a bare array.
#[utoipa::path(
    get,
    path = "/agent-execution/executions/history/user/{user_id}",
    operation_id = "List_User_History_agent_execution_executions_history_user__user_id__get",
    tags = ["Agent Execution"],
    params(("user_id" = String, Path), schemas::HistoryQuery),
    responses((status = 200, description = "Successful Response", body = Vec<schemas::TasksListItem>)),
    security(("APIKeyHeader" = []))
)]
pub(crate) async fn list_user_history(
    caller: Reader,
    State(api): State<Api>,
    user: Id,
    RawQuery(query): RawQuery,
) -> Result<ListJson, ApiError> {
    let mut faults = Vec::new();
    let mut query = QueryReader::lenient(query.as_deref(), &mut faults);
    let page = tasks::read_page(&mut query, LIST_SIZE);
    let filter = tasks::read_filter(&mut query, None);
    // The path says whose tasks; a filter that says otherwise leaves none.
    let user = UserId::parse(user.0).ok();
    let filter = filter.zip(user).and_then(|(filter, user)| {
        let agrees = filter.user_id.as_ref().is_none_or(|other| *other == user);
        agrees.then_some(TaskFilter { user_id: Some(user), ..filter })
    });
    let (page, _) = tasks::fetch_page(&api, caller.organization(), filter, page, faults).await?;
    Ok(ListJson::array(&page))
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
    responses((status = 200, description = "Successful Response", body = AgentExecution)),
    security(("APIKeyHeader" = []))
)]
pub(crate) async fn get_status(
    caller: Reader,
    State(api): State<Api>,
    task: Id,
) -> Result<Json<AgentExecution>, ApiError> {
    Ok(Json(tasks::fetch_task(&api, caller.organization(), task).await?.into()))
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
        (status = 409, description = "The id belongs to a task of another agent", body = schemas::ErrorDetail)
    ),
    security(("APIKeyHeader" = []))
)]
pub(crate) async fn create_task(
    caller: Writer,
    State(api): State<Api>,
    agent: Id,
    headers: HeaderMap,
    body: JsonBody,
) -> Result<Json<AgentExecution>, ApiError> {
    let version = headers.get("x-agent-version").and_then(|version| version.to_str().ok()).map(str::to_owned);
    let read = ReadInvocation::read(agent, version, SOURCE, &headers, &body)?;
    let task = api.store.record_invocation(caller.organization(), read.invocation, api.clock.now()).await?;
    Ok(Json(task.into()))
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
    responses((status = 200, description = "Successful Response", body = AgentExecution)),
    security(("APIKeyHeader" = []))
)]
pub(crate) async fn stop_task(
    caller: Writer,
    State(api): State<Api>,
    task: Id,
) -> Result<Json<AgentExecution>, ApiError> {
    tasks::stop(&api, caller.organization(), task).await
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
    let report = tasks::read_report(body)?;
    tasks::report(&api, caller.organization(), &tasks::task_id(task)?, report).await
}

/// Record a turn that ran elsewhere
///
/// Records a turn together with its outcome. The same id again is a turn of the same task.
#[utoipa::path(
    post,
    path = "/agent-execution/{agent_id}/report_task",
    operation_id = "Report_Task_agent_execution__agent_id__report_task_post",
    tags = ["Agent Execution"],
    params(("agent_id" = String, Path)),
    request_body = schemas::TaskReportRequest,
    responses(
        (status = 200, description = "Successful Response", body = AgentExecution),
        (status = 409, description = "The id belongs to a task of another agent", body = schemas::ErrorDetail)
    ),
    security(("APIKeyHeader" = []))
)]
pub(crate) async fn report_task(
    caller: Writer,
    State(api): State<Api>,
    agent: Id,
    body: JsonBody,
) -> Result<Json<AgentExecution>, ApiError> {
    let (invocation, report) = read_external(agent, body)?;
    let organization = caller.organization();
    let now = api.clock.now();
    let id = invocation.id.clone();
    api.store.record_invocation(organization, invocation, now).await?;
    tasks::report(&api, organization, &id, report).await
}

fn read_external(agent: Id, JsonBody(body): JsonBody) -> Result<(Invocation, Report), Vec<Fault>> {
    let mut faults = Vec::new();
    let agent_id = crate::domain::AgentId::parse(agent.0.as_str());
    if let Err(error) = agent_id {
        faults.push(Fault::text(vec!["path".into(), "agent_id".into()], error, agent.0.into()));
    }
    let Some(body) = body else {
        faults.push(Fault::missing(vec!["body".into()], Value::Null));
        return Err(faults);
    };
    let Some(mut body) = ObjectReader::of_body(&body, &mut faults) else { return Err(faults) };
    let id = body.parsed_text("id", TaskId::parse);
    let text = body.text("input");
    let answer = body.value("llm_response").map(|answer| match answer {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    });
    let tokens = tasks::read_tokens(&mut body, "tokens");
    let is_success = body.flag_or("is_success", true);
    let result = body.text("result");
    let duration = body.number("duration");
    let used_tools = body.texts_or_null("used_tools");
    let (Ok(agent_id), Ok(source), true) = (agent_id, Label::parse(SOURCE), faults.is_empty()) else {
        return Err(faults);
    };
    let invocation = Invocation {
        id: id.unwrap_or_else(TaskId::generate),
        agent_id,
        input: Input { text, files: Some(Vec::new()), user: None, attachments: Vec::new(), principal: None },
        request: Request::default(),
        user_id: None,
        parent_task_id: None,
        triggering_agent_id: None,
        source,
    };
    let report = Report {
        status: Some(if is_success { Status::Completed } else { Status::Error }),
        result: result.or_else(|| answer.filter(|answer| !answer.contains('\0'))),
        reported: Reported { tokens, duration, used_tools, ..Reported::default() },
        ..Report::default()
    };
    Ok((invocation, report))
}

/// Follow a task
///
/// Server-sent events: the task as it is, then what happens to it as it happens, until its turn ends.
#[utoipa::path(
    get,
    path = "/agent-execution/{task_id}/events",
    operation_id = "Get_Events_agent_execution__task_id__events_get",
    tags = ["Agent Execution"],
    params(("task_id" = String, Path)),
    responses((status = 200, description = "Successful Response", body = serde_json::Value, content_type = "text/event-stream")),
    security(("APIKeyHeader" = []))
)]
pub(crate) async fn get_events(
    caller: Reader,
    State(api): State<Api>,
    task: Id,
) -> Result<EventStream, ApiError> {
    let organization = caller.organization();
    let id = tasks::task_id(task)?;
    // Watched before it is read, so that nothing in between is missed.
    let watch = api.store.watch_task(organization, &id).await?;
    let task = api.store.get_task(organization, &id).await?.ok_or(ApiError::TaskNotFound)?;
    Ok(stream::stream(api, watch, task))
}

/// Push events of a task
///
/// What an agent's runner does while it works: tool calls, thoughts, fragments of the result. They reach those who
/// follow the task, and its activity log. Events of the task's own state come from reports, and are ignored here.
#[utoipa::path(
    post,
    path = "/agent-execution/{task_id}/events/push",
    operation_id = "Push_Events_agent_execution__task_id__events_push_post",
    tags = ["Agent Execution"],
    params(("task_id" = String, Path)),
    request_body = Vec<schemas::TaskUpdateEvent>,
    responses((status = 200, description = "Successful Response", body = PushedEvents)),
    security(("APIKeyHeader" = []))
)]
pub(crate) async fn push_events(
    caller: Writer,
    State(api): State<Api>,
    task: Id,
    body: JsonBody,
) -> Result<Json<PushedEvents>, ApiError> {
    let events = read_events(body)?;
    let id = tasks::task_id(task)?;
    let exists = api.store.record_events(caller.organization(), &id, &events, api.clock.now()).await?;
    if exists { Ok(Json(PushedEvents { accepted: events.len() })) } else { Err(ApiError::TaskNotFound) }
}

/// How many events were taken
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct PushedEvents {
    /// How many
    accepted: usize,
}

fn read_events(JsonBody(body): JsonBody) -> Result<Vec<NewEvent>, Vec<Fault>> {
    let body = body.ok_or_else(|| vec![Fault::missing(vec!["body".into()], Value::Null)])?;
    let Value::Array(items) = &body else { return Err(vec![Fault::not_a_list(vec!["body".into()], body)]) };
    if items.len() > MAX_PUSHED {
        return Err(vec![Fault::too_long(vec!["body".into()], MAX_PUSHED, items.len())]);
    }
    let mut faults = Vec::new();
    let mut events = Vec::new();
    for (at, item) in items.iter().enumerate() {
        let Some(mut event) = ObjectReader::of_item(item, at, &mut faults) else { continue };
        let kind = event.required_parsed_text("type", Label::parse);
        let data = event.stored_value("data").unwrap_or_default();
        let is_state = |kind: &Label| {
            [EventKind::CREATED, EventKind::UPDATED, EventKind::FINISHED].contains(&kind.as_str())
        };
        if let Some(kind) = kind.filter(|kind| !is_state(kind)) {
            events.push(NewEvent { kind, data });
        }
    }
    if faults.is_empty() { Ok(events) } else { Err(faults) }
}

/// Get a task's activity log
///
/// Everything that happened in the conversation, in order: what was asked, what the runner did, what it answered.
#[utoipa::path(
    get,
    path = "/activity/{agent_id}/{task_id}",
    operation_id = "Get_Activity_activity__agent_id___task_id__get",
    tags = ["Agent Execution"],
    params(("agent_id" = String, Path), ("task_id" = String, Path)),
    responses((status = 200, description = "Successful Response")),
    security(("APIKeyHeader" = []))
)]
pub(crate) async fn get_activity(
    caller: Reader,
    State(api): State<Api>,
    task: Id,
) -> Result<Json<ActivityThread>, ApiError> {
    let organization = caller.organization();
    let id = tasks::task_id(task)?;
    let turns = api.store.get_thread(organization, &id).await?;
    let created_at = turns.first().map(|turn| turn.created_at).ok_or(ApiError::TaskNotFound)?;
    let mut events = api.store.get_activity(organization, &id).await?.into_iter().peekable();
    let user = turns.iter().find_map(|turn| turn.input.user.clone()).map(UserOutput::from);
    let mut messages = Vec::new();
    for turn in turns {
        let number = turn.turn;
        // A turn's events lie between its question and its answer.
        let mut said = Thread::messages(turn);
        messages.extend(said.next().map(message_entry));
        while let Some(event) = events.next_if(|event| event.turn <= number) {
            messages.push(event_entry(&id, event));
        }
        messages.extend(said.map(message_entry));
    }
    Ok(Json(ActivityThread { id: id.to_string(), created_at: created_at.into(), messages, user }))
}

/// A task's activity log
#[derive(Debug, Serialize)]
pub(crate) struct ActivityThread {
    id: String,
    created_at: Timestamp,
    messages: Vec<Value>,
    user: Option<UserOutput>,
}

fn message_entry(message: Message) -> Value {
    let role = match message.role {
        Role::User => "user",
        Role::Agent => "agent",
    };
    let (files, user) =
        message.input.map(|input| (input.files.unwrap_or_default(), input.user)).unwrap_or_default();
    json!({
        "id": message.id,
        "created_at": Timestamp::from(message.created_at),
        "role": role,
        "content": { "text": message.text, "files": files },
        "user": user.map(UserOutput::from),
    })
}

/// An entry for what a runner pushed: its own data with the log's id and time.
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

/// Report what a turn cost
///
/// Tokens and duration are kept with the task's latest turn.
#[utoipa::path(
    post,
    path = "/agents-metrics/{agent_id}/execution",
    operation_id = "Report_Metrics_agents_metrics__agent_id__execution_post",
    tags = ["Agent Execution"],
    params(("agent_id" = String, Path)),
    request_body = schemas::ExecutionMetricsReport,
    responses((status = 200, description = "Successful Response", body = AgentExecution)),
    security(("APIKeyHeader" = []))
)]
pub(crate) async fn report_metrics(
    caller: Writer,
    State(api): State<Api>,
    _agent: Id,
    body: JsonBody,
) -> Result<Json<AgentExecution>, ApiError> {
    let (id, report) = read_metrics(body)?;
    tasks::report(&api, caller.organization(), &id, report).await
}

fn read_metrics(JsonBody(body): JsonBody) -> Result<(TaskId, Report), Vec<Fault>> {
    let mut faults = Vec::new();
    let body = body.ok_or_else(|| vec![Fault::missing(vec!["body".into()], Value::Null)])?;
    let Some(mut body) = ObjectReader::of_body(&body, &mut faults) else { return Err(faults) };
    let id = body.required_parsed_text("execution_id", TaskId::parse);
    let internal_status = body.parsed_text("internal_status", Label::parse);
    let duration = body.number("duration").filter(|duration| *duration != 0.0);
    let tokens = body.object("llm_tokens").and_then(|mut tokens| tasks::read_tokens(&mut tokens, "worker"));
    match id {
        Some(id) if faults.is_empty() => Ok((
            id,
            Report {
                internal_status,
                reported: Reported { tokens, duration, ..Reported::default() },
                ..Report::default()
            },
        )),
        _ => Err(faults),
    }
}
