//! Reports by runners: updates of a turn, turns that ran elsewhere, metrics.

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use chrono::{DateTime, Utc};
use serde_json::{Map, Value};

use super::SOURCE;
use crate::api::auth::{Caller, Write};
use crate::api::error::ApiError;
use crate::api::error::validation::ValidationErrors;
use crate::api::openapi::errors::{
    BodyUnreadable, Conflict, ReadOnlyKey, TurnEnded, TurnNotFound, Unauthenticated,
};
use crate::api::openapi::schemas;
use crate::api::request::body::{ReportBody, TextReplaced};
use crate::api::request::body_reader::BodyReader;
use crate::api::request::idempotency::{of_external_turn, read_idempotency_key};
use crate::api::request::invocation::read_agent;
use crate::api::request::path::{AgentPath, TaskPath};
use crate::api::response::execution::{AgentExecution, TaskResponse, recorded_response};
use crate::api::state::AppState;
use crate::domain::{
    Input, Invocation, InvocationOptions, Report, ShortText, Status, TaskId, TurnDetails,
    TurnOutcome,
};
use crate::store::NewInvocation;

/// Report about a task
///
/// An agent's runner reports the status and the result of a turn: the latest one, or the one that
/// `turn` names. Absent and null fields stay unchanged. Times are the service's: `started_at`,
/// `paused_at` and `finished_at` follow the status. A report that names a turn that has ended may
/// repeat its status and its result, and add details. Another status or result is refused, and
/// nothing changes. The answer is the task with that turn.
#[utoipa::path(
    patch,
    path = "/agent-execution/{task_id}/update",
    operation_id = "Update_Task_agent_execution__task_id__update_patch",
    tags = ["Agent Execution"],
    params(("task_id" = String, Path)),
    request_body = schemas::TaskUpdateRequest,
    responses(
        (
            status = 200,
            description = "Successful Response",
            body = AgentExecution,
            headers((
                "x-text-replaced" = usize,
                description = "How many lone surrogates were recorded as U+FFFD; absent if none"
            ))
        ),
        BodyUnreadable,
        Unauthenticated,
        ReadOnlyKey,
        TurnNotFound,
        TurnEnded
    )
)]
pub(crate) async fn update_task(
    caller: Caller<Write>,
    State(state): State<AppState>,
    TaskPath(task): TaskPath,
    body: ReportBody,
) -> Result<(TextReplaced, TaskResponse), ApiError> {
    let report = read_report(&body)?;
    let (organization, now) = (caller.organization(), state.clock.now());
    let task = state.store.record_report(organization, &task, report, now).await?;
    Ok((body.text_replaced(), TaskResponse(task)))
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
fn read_report(body: &ReportBody) -> Result<Report, ValidationErrors> {
    let mut errors = ValidationErrors::new();
    let Some(body) = body.required(&mut errors) else { return Err(errors) };
    let Some(mut body) = BodyReader::for_body(body, &mut errors) else { return Err(errors) };
    let payload_extension = body.json_object("payload_extension");
    let report = Report {
        turn: body.turn(),
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
/// Records a turn together with its result. The same id again is a turn of the same task. With an
/// `Idempotency-Key`, the same request sent again gets the first answer and records nothing.
#[utoipa::path(
    post,
    path = "/agent-execution/{agent_id}/report_task",
    operation_id = "Report_Task_agent_execution__agent_id__report_task_post",
    tags = ["Agent Execution"],
    params(("agent_id" = String, Path)),
    request_body = schemas::TaskReportRequest,
    responses(
        (
            status = 200,
            description = "Successful Response",
            body = AgentExecution,
            headers((
                "x-text-replaced" = usize,
                description = "How many lone surrogates were recorded as U+FFFD; absent if none"
            ))
        ),
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
    headers: HeaderMap,
    body: ReportBody,
) -> Result<(TextReplaced, Response), ApiError> {
    let (organization, now) = (caller.organization(), state.clock.now());
    let turn = read_external_turn(agent, &headers, &body, now)?;
    let recorded = state.store.record_invocation(organization, turn, now).await?;
    Ok((body.text_replaced(), recorded_response(recorded)))
}

/// Reads a turn that ran elsewhere, with its result.
fn read_external_turn(
    agent: String,
    headers: &HeaderMap,
    body: &ReportBody,
    now: DateTime<Utc>,
) -> Result<NewInvocation, ValidationErrors> {
    let mut errors = ValidationErrors::new();
    let agent_id = read_agent(agent, &mut errors);
    let key = read_idempotency_key(headers, &mut errors);
    let Some(json) = body.required(&mut errors) else { return Err(errors) };
    let parse_id = |text| body.parse_task_id(text);
    let Some(mut body) = BodyReader::for_body(json, &mut errors) else { return Err(errors) };
    let id = body.parsed_string("id", parse_id);
    let text = body.string("input");
    let answer = body.storable_value("llm_response").map(|answer| match answer {
        Value::String(text) => text,
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
    let outcome = TurnOutcome {
        status: if is_success { Status::Completed } else { Status::Error },
        result: result.or(answer),
        details: TurnDetails { tokens, duration, used_tools, ..TurnDetails::default() },
    };
    let idempotency = key.map(|key| of_external_turn(key, json));
    Ok(NewInvocation { invocation, outcome: Some(outcome), idempotency })
}

/// Report token usage and duration
///
/// Tokens and duration are kept with the task's latest turn, or with the one that `turn` names.
#[utoipa::path(
    post,
    path = "/agents-metrics/{agent_id}/execution",
    operation_id = "Report_Metrics_agents_metrics__agent_id__execution_post",
    tags = ["Agent Execution"],
    params(("agent_id" = String, Path)),
    request_body = schemas::ExecutionMetricsReport,
    responses(
        (
            status = 200,
            description = "Successful Response",
            body = AgentExecution,
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
pub(crate) async fn report_metrics(
    caller: Caller<Write>,
    State(state): State<AppState>,
    AgentPath(_): AgentPath,
    body: ReportBody,
) -> Result<(TextReplaced, TaskResponse), ApiError> {
    let (task, report) = read_metrics(&body)?;
    let (organization, now) = (caller.organization(), state.clock.now());
    let task = state.store.record_report(organization, &task, report, now).await?;
    Ok((body.text_replaced(), TaskResponse(task)))
}

fn read_metrics(body: &ReportBody) -> Result<(TaskId, Report), ValidationErrors> {
    let mut errors = ValidationErrors::new();
    let Some(value) = body.required(&mut errors) else { return Err(errors) };
    let parse_id = |text| body.parse_task_id(text);
    let Some(mut body) = BodyReader::for_body(value, &mut errors) else { return Err(errors) };
    let id = body.required_parsed_string("execution_id", parse_id);
    let turn = body.turn();
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
            Ok((id, Report { turn, internal_status, details, ..Report::default() }))
        }
        _ => Err(errors),
    }
}
