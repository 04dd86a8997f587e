//! Reports by runners: updates of a turn, turns that ran elsewhere, metrics.

use axum::Json;
use axum::extract::State;
use chrono::{DateTime, Utc};
use serde_json::{Map, Value};

use super::SOURCE;
use crate::api::auth::{Caller, Write};
use crate::api::error::ApiError;
use crate::api::error::validation::ValidationError;
use crate::api::openapi::errors::{
    BodyUnreadable, Conflict, ReadOnlyKey, TaskNotFound, Unauthenticated,
};
use crate::api::openapi::schemas;
use crate::api::request::body::JsonBody;
use crate::api::request::body_reader::BodyReader;
use crate::api::request::invocation::read_agent;
use crate::api::request::path::{AgentPath, TaskPath};
use crate::api::response::execution::AgentExecution;
use crate::api::state::AppState;
use crate::domain::{
    Input, Invocation, InvocationOptions, Report, ShortText, Status, TaskId, TurnDetails,
};

/// Report about a task
///
/// An agent's runner reports the status and the result of the latest turn of a task.
/// Absent and null fields stay unchanged. Times are the service's: `started_at`, `paused_at` and
/// `finished_at` follow the status.
#[utoipa::path(
    patch,
    path = "/agent-execution/{task_id}/update",
    operation_id = "Update_Task_agent_execution__task_id__update_patch",
    tags = ["Agent Execution"],
    params(("task_id" = String, Path)),
    request_body = schemas::TaskUpdateRequest,
    responses(
        (status = 200, description = "Successful Response", body = AgentExecution),
        BodyUnreadable,
        Unauthenticated,
        ReadOnlyKey,
        TaskNotFound
    )
)]
pub(crate) async fn update_task(
    caller: Caller<Write>,
    State(state): State<AppState>,
    TaskPath(task): TaskPath,
    body: JsonBody,
) -> Result<Json<AgentExecution>, ApiError> {
    let report = read_report(&body)?;
    let (organization, now) = (caller.organization(), state.clock.now());
    Ok(Json(state.store.record_report(organization, &task, report, now).await?.into()))
}

/// Reads token counts. Official clients refuse a task whose counts are not integers.
#[expect(
    clippy::redundant_closure_for_method_calls,
    reason = "the method itself has one lifetime too few"
)]
fn read_tokens(body: &mut BodyReader<'_, '_>, name: &'static str) -> Option<Map<String, Value>> {
    body.checked_object(name, |tokens| tokens.all_integers())
}

/// Reads a report. Official clients send whole tasks, so unknown keys and those that the service
/// owns are ignored, and null means "unchanged".
fn read_report(body: &JsonBody) -> Result<Report, Vec<ValidationError>> {
    let mut errors = Vec::new();
    let Some(body) = body.required(&mut errors) else { return Err(errors) };
    let Some(mut body) = BodyReader::for_body(body, &mut errors) else { return Err(errors) };
    let payload_extension = body.json_object("payload_extension");
    let report = Report {
        status: body.one_of("status", None),
        result: body.string("result"),
        internal_status: body.parsed_string("internal_status", ShortText::parse),
        last_executed_node_id: body.string("last_executed_node_id"),
        source: body.parsed_string("source", ShortText::parse),
        title: body.string("title"),
        payload_extension: body.json_object("tool_call_payload_extension").or(payload_extension),
        details: TurnDetails {
            tokens: read_tokens(&mut body, "tokens"),
            // A whole task has 0 if no duration was reported.
            duration: body.number("duration").filter(|duration| *duration != 0.0),
            used_tools: body.optional_strings("used_tools").filter(|tools| !tools.is_empty()),
            hitl_request: body.checked_object("hitl_request", |request| {
                request.required_string("wait_node_id");
            }),
            pending_eca_request: body.checked_object("pending_eca_request", |request| {
                request.required_string("connector_name");
                request.required_string("auth_url");
            }),
            deep_planning: body.checked_object("deep_planning", |plan| {
                for flag in ["enabled", "enforce", "started", "question_raised"] {
                    plan.check_strict_bool(flag);
                }
                plan.each_object("tasks", |task| {
                    task.required_string("id");
                    task.required_string("title");
                    task.check_strict_bool("completed");
                });
            }),
        },
    };
    if errors.is_empty() { Ok(report) } else { Err(errors) }
}

/// Record a turn that ran elsewhere
///
/// Records a turn together with its result. The same id again is a turn of the same task.
#[utoipa::path(
    post,
    path = "/agent-execution/{agent_id}/report_task",
    operation_id = "Report_Task_agent_execution__agent_id__report_task_post",
    tags = ["Agent Execution"],
    params(("agent_id" = String, Path)),
    request_body = schemas::TaskReportRequest,
    responses(
        (status = 200, description = "Successful Response", body = AgentExecution),
        BodyUnreadable,
        Unauthenticated,
        ReadOnlyKey,
        Conflict
    )
)]
pub(crate) async fn report_task(
    caller: Caller<Write>,
    State(state): State<AppState>,
    AgentPath(agent): AgentPath,
    body: JsonBody,
) -> Result<Json<AgentExecution>, ApiError> {
    let (organization, now) = (caller.organization(), state.clock.now());
    let (invocation, report) = read_external_turn(agent, &body, now)?;
    let id = invocation.id.clone();
    state.store.record_invocation(organization, invocation, now).await?;
    Ok(Json(state.store.record_report(organization, &id, report, now).await?.into()))
}

/// Reads a turn that ran elsewhere, with its result.
fn read_external_turn(
    agent: String,
    body: &JsonBody,
    now: DateTime<Utc>,
) -> Result<(Invocation, Report), Vec<ValidationError>> {
    let mut errors = Vec::new();
    let agent_id = read_agent(agent, &mut errors);
    let Some(body) = body.required(&mut errors) else { return Err(errors) };
    let Some(mut body) = BodyReader::for_body(body, &mut errors) else { return Err(errors) };
    let id = body.parsed_string("id", TaskId::parse);
    let text = body.string("input");
    let answer = body.value("llm_response").map(|answer| match answer {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    });
    let tokens = read_tokens(&mut body, "tokens");
    let is_success = body.bool_or("is_success", true);
    let result = body.string("result");
    let duration = body.number("duration");
    let used_tools = body.optional_strings("used_tools");
    let (Some(agent_id), Ok(source), true) =
        (agent_id, ShortText::parse(SOURCE), errors.is_empty())
    else {
        return Err(errors);
    };
    let invocation = Invocation {
        id: id.unwrap_or_else(|| TaskId::generate(now)),
        agent_id,
        input: Input {
            text,
            files: Some(Vec::new()),
            user: None,
            attachments: Vec::new(),
            principal: None,
        },
        options: InvocationOptions::default(),
        user_id: None,
        parent_task_id: None,
        triggering_agent_id: None,
        source,
    };
    let report = Report {
        status: Some(if is_success { Status::Completed } else { Status::Error }),
        result: result.or_else(|| answer.filter(|answer| !answer.contains('\0'))),
        details: TurnDetails { tokens, duration, used_tools, ..TurnDetails::default() },
        ..Report::default()
    };
    Ok((invocation, report))
}

/// Report token usage and duration
///
/// Tokens and duration are kept with the task's latest turn.
#[utoipa::path(
    post,
    path = "/agents-metrics/{agent_id}/execution",
    operation_id = "Report_Metrics_agents_metrics__agent_id__execution_post",
    tags = ["Agent Execution"],
    params(("agent_id" = String, Path)),
    request_body = schemas::ExecutionMetricsReport,
    responses(
        (status = 200, description = "Successful Response", body = AgentExecution),
        BodyUnreadable,
        Unauthenticated,
        ReadOnlyKey,
        TaskNotFound
    )
)]
pub(crate) async fn report_metrics(
    caller: Caller<Write>,
    State(state): State<AppState>,
    AgentPath(_): AgentPath,
    body: JsonBody,
) -> Result<Json<AgentExecution>, ApiError> {
    let (task, report) = read_metrics(&body)?;
    let (organization, now) = (caller.organization(), state.clock.now());
    Ok(Json(state.store.record_report(organization, &task, report, now).await?.into()))
}

fn read_metrics(body: &JsonBody) -> Result<(TaskId, Report), Vec<ValidationError>> {
    let mut errors = Vec::new();
    let Some(body) = body.required(&mut errors) else { return Err(errors) };
    let Some(mut body) = BodyReader::for_body(body, &mut errors) else { return Err(errors) };
    let id = body.required_parsed_string("execution_id", TaskId::parse);
    let internal_status = body.parsed_string("internal_status", ShortText::parse);
    let duration = body.number("duration").filter(|duration| *duration != 0.0);
    let tokens = body.object("llm_tokens");
    let tokens = tokens.and_then(|mut tokens| {
        // Checked, because it is documented, and not kept: it belongs to no turn.
        read_tokens(&mut tokens, "inner");
        read_tokens(&mut tokens, "worker")
    });
    match id {
        Some(id) if errors.is_empty() => {
            let details = TurnDetails { tokens, duration, ..TurnDetails::default() };
            Ok((id, Report { internal_status, details, ..Report::default() }))
        }
        _ => Err(errors),
    }
}
