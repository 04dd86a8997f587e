//! Invocations, as REST v1 and the official SDK send them.

use axum::http::HeaderMap;
use chrono::{DateTime, Utc};
use serde_json::{Map, Value};
use url::Url;

use super::body::JsonBody;
use super::body_reader::BodyReader;
use crate::api::error::ApiError;
use crate::api::error::validation::ValidationError;
use crate::api::response::execution::AgentExecution;
use crate::domain::{
    AgentId, Input, Invocation, InvocationOptions, OrganizationId, OutputFormat, ShortText, Task,
    TaskId, TextError, ThinkMode, User, UserId,
};
use crate::store::{Idempotency, RecordedInvocation, Store};

/// The header that makes an invocation safe to send again.
const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// An invocation as read from a request.
pub(crate) struct InvocationRequest {
    /// The invocation.
    pub(crate) invocation: Invocation,
    idempotency: Option<Idempotency>,
    now: DateTime<Utc>,
}

impl InvocationRequest {
    /// Reads an invocation. `source` is how it was invoked, unless it says so itself.
    pub(crate) fn read(
        agent: String,
        agent_version: Option<String>,
        source: &str,
        headers: &HeaderMap,
        body: &JsonBody,
        now: DateTime<Utc>,
    ) -> Result<Self, Vec<ValidationError>> {
        let mut errors = Vec::new();
        let agent_id = read_agent(agent, &mut errors);
        if agent_version.as_ref().is_some_and(|version| version.contains('\0')) {
            let loc = vec!["query".into(), "version".into()];
            let version = agent_version.clone().into();
            errors.push(ValidationError::invalid_text(loc, TextError::Nul, version));
        }
        let key = read_idempotency_key(headers, &mut errors);
        let Some(body) = body.required(&mut errors) else { return Err(errors) };
        let request = format!("{} {body}", agent_version.as_deref().unwrap_or_default());
        let invocation = BodyReader::for_body(body, &mut errors)
            .and_then(|body| read_body(body, agent_id, agent_version, source, now));
        match invocation {
            Some(invocation) if errors.is_empty() => {
                let idempotency = key.map(|key| Idempotency { key, request });
                Ok(Self { invocation, idempotency, now })
            }
            _ => Err(errors),
        }
    }

    /// Records it; with an idempotency key, only once.
    pub(crate) async fn record(
        self,
        store: &Store,
        organization: OrganizationId,
    ) -> Result<RecordedInvocation, ApiError> {
        let Self { invocation, idempotency, now } = self;
        let Some(idempotency) = idempotency else {
            let task = store.record_invocation(organization, invocation, now).await?;
            return Ok(RecordedInvocation::New(Box::new(task)));
        };
        let answer = |task: &Task| {
            serde_json::to_string(&AgentExecution::from(task.clone()))
                .expect("a task is plain data")
        };
        // Boxed: the arguments of its statements would make the future of every request large.
        let recorded =
            store.record_invocation_once(organization, invocation, &idempotency, now, answer);
        Ok(Box::pin(recorded).await?)
    }
}

/// The agent of a path, or an error.
pub(crate) fn read_agent(agent: String, errors: &mut Vec<ValidationError>) -> Option<AgentId> {
    AgentId::parse(agent.as_str())
        .map_err(|error| {
            let loc = vec!["path".into(), "agent_id".into()];
            errors.push(ValidationError::invalid_text(loc, error, agent.into()));
        })
        .ok()
}

/// The idempotency key of a request. An empty header is absent.
fn read_idempotency_key(
    headers: &HeaderMap,
    errors: &mut Vec<ValidationError>,
) -> Option<ShortText> {
    let key = headers.get(IDEMPOTENCY_KEY)?;
    let key = String::from_utf8_lossy(key.as_bytes()).into_owned();
    if key.is_empty() {
        return None;
    }
    ShortText::parse(key.as_str())
        .map_err(|error| {
            let loc = vec!["header".into(), IDEMPOTENCY_KEY.into()];
            errors.push(ValidationError::invalid_text(loc, error, key.into()));
        })
        .ok()
}

/// Reads the body's fields, in the contract's order. Without a result, there is an error.
fn read_body(
    mut body: BodyReader<'_, '_>,
    agent_id: Option<AgentId>,
    agent_version: Option<String>,
    default_source: &str,
    now: DateTime<Utc>,
) -> Option<Invocation> {
    let input = body.required_object("input").map(read_input);
    let id = body.parsed_string("id", TaskId::parse);
    let payload_extension = body.json_object("payload_extension");
    let parent_task_id = body.parsed_string("parent_execution_id", TaskId::parse);
    let worker_id = body.string("worker_id");
    let source = body.parsed_string("source", ShortText::parse);
    let output_format = body.one_of("output_format", Some(OutputFormat::Text));
    let output_schema = body.json_object("output_schema");
    let _ = body.bool("run_locally");
    let additional_context = body.string("additional_context");
    let expected_output = body.string("expected_output");
    let events_streaming = body.bool("events_streaming");
    let mcp_servers = body.json_objects("mcp_servers");
    let triggering_agent_id = body.parsed_string("triggering_agent_id", AgentId::parse);
    let title = body.string("title");
    let think_mode = body.one_of("think_mode", Some(ThinkMode::Default));
    let disable_attachment_injection = body.bool("disable_attachment_injection");
    let instructions_override = body.string("instructions_override");
    let test_run_node_id = body.string("test_run_node_id");
    body.discard_string("user_oidc_token");
    body.discard_object("user_tokens");
    let return_metrics = body.bool_not_null("return_metrics");
    let llm_model_provider = body.string("llm_model_provider");
    let llm_model_name = body.string("llm_model_name");
    let llm_reasoning_effort = body.one_of("llm_reasoning_effort", None);
    // The official SDK sends these too.
    let voice_id = body.string("voice_id");
    let tool_call_limit = body.integer("tool_call_limit");
    let harness_cli = body.string("harness_cli");
    let permission_mode = body.string("permission_mode");

    let (input, user_id) = input?;
    Some(Invocation {
        id: id.unwrap_or_else(|| TaskId::generate(now)),
        agent_id: agent_id?,
        input,
        user_id,
        parent_task_id,
        triggering_agent_id,
        source: source.or_else(|| ShortText::parse(default_source).ok())?,
        options: InvocationOptions {
            title,
            payload_extension,
            agent_version,
            worker_id,
            additional_context,
            expected_output,
            output_format,
            output_schema,
            events_streaming,
            mcp_servers: mcp_servers
                .map(|servers| servers.into_iter().map(redact_mcp_server).collect()),
            think_mode,
            disable_attachment_injection,
            instructions_override,
            test_run_node_id,
            return_metrics,
            llm_model_provider,
            llm_model_name,
            llm_reasoning_effort,
            voice_id,
            tool_call_limit,
            harness_cli,
            permission_mode,
        },
    })
}

fn read_input(mut input: BodyReader<'_, '_>) -> (Input, Option<UserId>) {
    let text =
        if input.is_null("text") { None } else { Some(input.string("text").unwrap_or_default()) };
    let files = input.strings("files");
    let (user, user_id) = input.object("user").map(read_user).unzip();
    let attachments = input.json_objects("attachments").unwrap_or_default();
    let principal = input.json_object("principal");
    (Input { text, files, user, attachments, principal }, user_id.flatten())
}

fn read_user(mut user: BodyReader<'_, '_>) -> (User, Option<UserId>) {
    let id = user.parsed_string("id", UserId::parse);
    let user = User {
        id: id.as_ref().map(UserId::to_string),
        first_name: user.string("first_name"),
        last_name: user.string("last_name"),
        email: user.required_string("email"),
        additional_attributes: user.json_object("additional_attributes"),
        role: if user.is_null("role") {
            None
        } else {
            user.string("role").or_else(|| Some("member".to_owned()))
        },
        is_super_admin: user.bool("is_super_admin"),
        timezone: user.string("timezone"),
    };
    (user, id)
}

/// Keeps what identifies an MCP server. Commands, headers, environments and keys may hold secrets,
/// and so may parts of a URL.
fn redact_mcp_server(mut server: Map<String, Value>) -> Map<String, Value> {
    const KEPT: [&str; 8] =
        ["id", "name", "type", "url", "transport", "auth_type", "allowed_tools", "description"];
    server.retain(|key, _| KEPT.contains(&key.as_str()));
    if let Some(url) = server.get_mut("url") {
        let parsed = url.as_str().and_then(|text| Url::parse(text).ok()).filter(Url::has_host);
        *url = parsed.map_or(Value::Null, |mut parsed| {
            parsed.set_query(None);
            parsed.set_fragment(None);
            let _ = parsed.set_username("");
            let _ = parsed.set_password(None);
            Value::from(parsed.to_string())
        });
    }
    server
}
