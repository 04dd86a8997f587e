//! Invoking agents: each invocation is a turn of a task.

use axum::Json;
use axum::extract::{RawQuery, State};
use serde_json::{Map, Value};
use url::Url;

use super::Api;
use super::auth::Writer;
use super::body::JsonBody;
use super::error::ApiError;
use super::faults::{Fault, ObjectReader, QueryReader};
use super::models::AgentExecution;
use super::path::Id;
use super::schemas;
use crate::domain::{
    AgentId, Input, Invocation, Label, OutputFormat, Request, TaskId, TextError, ThinkMode, User, UserId,
};

/// How tasks of this surface are invoked, unless their callers say otherwise.
const SOURCE: &str = "api";

/// Invoke an agent
///
/// Records a turn, and answers at once with the task, `pending`. With the id of a task of the same agent it
/// continues that conversation: the task's title, result, status and times become the new turn's. The id of another
/// agent's task is refused, and nothing changes.
#[utoipa::path(
    post,
    path = "/v1/agents/{agent_id}/invoke/async",
    operation_id = "Invoke_Agent__Async__v1_agents__agent_id__invoke_async_post",
    tags = ["API v1", "Agents", "Agents Invocation"],
    params(("agent_id" = String, Path), schemas::InvokeQuery),
    request_body = schemas::AgentExecutionRequest,
    responses(
        (status = 200, description = "Successful Response", body = schemas::CreatedTask),
        (status = 409, description = "The id belongs to a task of another agent", body = schemas::ErrorDetail)
    ),
    security(("APIKeyHeader" = []))
)]
pub(crate) async fn invoke_async(
    caller: Writer,
    State(api): State<Api>,
    agent: Id,
    RawQuery(query): RawQuery,
    body: JsonBody,
) -> Result<Json<AgentExecution>, ApiError> {
    let invocation = read_invocation(agent, query.as_deref(), body)?;
    let now = api.clock.now();
    let task = api.store.record_invocation(caller.organization(), &invocation, now).await?;
    Ok(Json(task.into()))
}

fn read_invocation(
    agent: Id,
    query: Option<&str>,
    JsonBody(body): JsonBody,
) -> Result<Invocation, Vec<Fault>> {
    let mut faults = Vec::new();
    let agent_id = AgentId::parse(agent.0.as_str());
    if let Err(error) = agent_id {
        faults.push(Fault::text(vec!["path".into(), "agent_id".into()], error, agent.0.into()));
    }
    let agent_version = QueryReader::new(query, &mut faults).text("version");
    if agent_version.as_ref().is_some_and(|version| version.contains('\0')) {
        faults.push(Fault::text(
            vec!["query".into(), "version".into()],
            TextError::Nul,
            agent_version.clone().into(),
        ));
    }
    let Some(body) = body else {
        faults.push(Fault::missing(vec!["body".into()], Value::Null));
        return Err(faults);
    };
    let invocation = ObjectReader::of_body(&body, &mut faults)
        .and_then(|body| read_body(body, agent_id.ok(), agent_version));
    match invocation {
        Some(invocation) if faults.is_empty() => Ok(invocation),
        _ => Err(faults),
    }
}

/// Reads the body's fields, in the contract's order; `None` only where there is a fault.
fn read_body(
    mut body: ObjectReader<'_, '_>,
    agent_id: Option<AgentId>,
    agent_version: Option<String>,
) -> Option<Invocation> {
    let input = body.required_object("input").map(read_input);
    let id = body.parsed_text("id", TaskId::parse);
    let payload_extension = body.free_object("payload_extension");
    let parent_task_id = body.parsed_text("parent_execution_id", TaskId::parse);
    let worker_id = body.text("worker_id");
    let source = body.parsed_text("source", Label::parse);
    let output_format = body.one_of("output_format", Some(OutputFormat::Text));
    let output_schema = body.free_object("output_schema");
    let _ = body.flag("run_locally");
    let additional_context = body.text("additional_context");
    let expected_output = body.text("expected_output");
    let events_streaming = body.flag("events_streaming");
    let mcp_servers = body.free_objects("mcp_servers");
    let triggering_agent_id = body.parsed_text("triggering_agent_id", AgentId::parse);
    let title = body.text("title");
    let think_mode = body.one_of("think_mode", Some(ThinkMode::Default));
    let disable_attachment_injection = body.flag("disable_attachment_injection");
    let instructions_override = body.text("instructions_override");
    let test_run_node_id = body.text("test_run_node_id");
    body.ignored_text("user_oidc_token");
    body.ignored_object("user_tokens");
    let return_metrics = body.strict_flag("return_metrics");
    let llm_model_provider = body.text("llm_model_provider");
    let llm_model_name = body.text("llm_model_name");
    let llm_reasoning_effort = body.one_of("llm_reasoning_effort", None);

    let (input, user_id) = input?;
    Some(Invocation {
        id,
        agent_id: agent_id?,
        input,
        user_id,
        parent_task_id,
        triggering_agent_id,
        source: source.or_else(|| Label::parse(SOURCE).ok())?,
        request: Request {
            title,
            payload_extension,
            agent_version,
            worker_id,
            additional_context,
            expected_output,
            output_format,
            output_schema,
            events_streaming,
            mcp_servers: mcp_servers.map(|servers| servers.into_iter().map(without_secrets).collect()),
            think_mode,
            disable_attachment_injection,
            instructions_override,
            test_run_node_id,
            return_metrics,
            llm_model_provider,
            llm_model_name,
            llm_reasoning_effort,
        },
    })
}

fn read_input(mut input: ObjectReader<'_, '_>) -> (Input, Option<UserId>) {
    let text = if input.is_null("text") { None } else { Some(input.text("text").unwrap_or_default()) };
    let files = input.texts("files", Vec::new());
    let (user, user_id) = input.object("user").map(read_user).unzip();
    (Input { text, files, user }, user_id.flatten())
}

fn read_user(mut user: ObjectReader<'_, '_>) -> (User, Option<UserId>) {
    let id = user.parsed_text("id", UserId::parse);
    let user = User {
        id: id.as_ref().map(UserId::to_string),
        first_name: user.text("first_name"),
        last_name: user.text("last_name"),
        email: user.required_text("email"),
        additional_attributes: user.free_object("additional_attributes"),
        role: if user.is_null("role") {
            None
        } else {
            user.text("role").or_else(|| Some("member".to_owned()))
        },
        is_super_admin: user.flag("is_super_admin"),
        timezone: user.text("timezone"),
    };
    (user, id)
}

/// What is kept of an MCP server: how to recognise it. Commands, headers, environments and keys may hold secrets, and
/// so may parts of an address.
fn without_secrets(mut server: Map<String, Value>) -> Map<String, Value> {
    const KEPT: [&str; 8] =
        ["id", "name", "type", "url", "transport", "auth_type", "allowed_tools", "description"];
    server.retain(|key, _| KEPT.contains(&key.as_str()));
    if let Some(url) = server.get_mut("url") {
        let address = url.as_str().and_then(|text| Url::parse(text).ok()).filter(Url::has_host);
        *url = address.map_or(Value::Null, |mut address| {
            address.set_query(None);
            address.set_fragment(None);
            let _ = address.set_username("");
            let _ = address.set_password(None);
            Value::from(address.to_string())
        });
    }
    server
}
