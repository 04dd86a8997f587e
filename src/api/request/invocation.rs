//! Invocations, as REST v1 and the official SDK send them.

use axum::http::HeaderMap;
use chrono::{DateTime, Utc};
use serde_json::{Map, Value};
use url::Url;

use super::body::JsonBody;
use super::body_memory::BodyClaim;
use super::body_reader::BodyReader;
use super::idempotency::{self, read_idempotency_key};
use crate::api::error::ApiError;
use crate::api::error::validation::{ValidationError, ValidationErrors};
use crate::domain::{
    AgentId, Input, Invocation, InvocationOptions, OrganizationId, OutputFormat, ShortText, TaskId,
    TextError, ThinkMode, User, UserId,
};
use crate::store::{NewInvocation, RecordedInvocation, Store};

/// An invocation as read from a request.
pub(crate) struct InvocationRequest {
    new: NewInvocation,
    now: DateTime<Utc>,
    /// Kept until it is recorded: what was read takes memory too.
    claim: BodyClaim,
}

impl InvocationRequest {
    /// The task that it is a turn of.
    pub(crate) fn task_id(&self) -> &TaskId {
        &self.new.invocation.id
    }

    /// Reads an invocation. `source` is how it was invoked, unless it says so itself.
    pub(crate) fn read(
        agent: String,
        agent_version: Option<String>,
        source: &str,
        headers: &HeaderMap,
        body: JsonBody,
        now: DateTime<Utc>,
    ) -> Result<Self, ValidationErrors> {
        let mut errors = ValidationErrors::new();
        let agent_id = read_agent(agent, &mut errors);
        if agent_version.as_ref().is_some_and(|version| version.contains('\0')) {
            let loc = vec!["query".into(), "version".into()];
            let version = agent_version.clone().into();
            errors.push(ValidationError::invalid_text(loc, TextError::Nul, version));
        }
        let key = read_idempotency_key(headers, &mut errors);
        let Some(value) = body.required(&mut errors) else { return Err(errors) };
        let version = agent_version.clone();
        let invocation = BodyReader::for_body(value, &mut errors)
            .and_then(|body| read_body(body, agent_id, agent_version, source, now));
        match invocation {
            Some(invocation) if errors.is_empty() => {
                let idempotency = key
                    .map(|key| idempotency::of_invocation(key, source, version.as_deref(), value));
                let new = NewInvocation { invocation, outcome: None, idempotency };
                Ok(Self { new, now, claim: body.into_claim() })
            }
            _ => Err(errors),
        }
    }

    /// The task that it creates or continues.
    pub(crate) fn task(&self) -> &TaskId {
        &self.new.invocation.id
    }

    /// Records it; with an idempotency key, only once.
    pub(crate) async fn record(
        self,
        store: &Store,
        organization: OrganizationId,
    ) -> Result<RecordedInvocation, ApiError> {
        let Self { new, now, claim: _claim } = self;
        Ok(store.record_invocation(organization, new, now).await?)
    }
}

/// The agent of a path, or an error.
pub(crate) fn read_agent(agent: String, errors: &mut ValidationErrors) -> Option<AgentId> {
    AgentId::parse(agent.as_str())
        .map_err(|error| {
            let loc = vec!["path".into(), "agent_id".into()];
            errors.push(ValidationError::invalid_text(loc, error, agent.into()));
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
/// and so may every part of a URL but its scheme, host and port: hosted servers have a secret in
/// the path.
fn redact_mcp_server(mut server: Map<String, Value>) -> Map<String, Value> {
    const KEPT: [&str; 8] =
        ["id", "name", "type", "url", "transport", "auth_type", "allowed_tools", "description"];
    server.retain(|key, _| KEPT.contains(&key.as_str()));
    if let Some(url) = server.get_mut("url") {
        let parsed = url.as_str().and_then(|text| Url::parse(text).ok()).filter(Url::has_host);
        *url = parsed.map_or(Value::Null, |parsed| {
            let port = parsed.port().map(|port| format!(":{port}")).unwrap_or_default();
            let host = parsed.host_str().unwrap_or_default();
            Value::from(format!("{}://{host}{port}", parsed.scheme()))
        });
    }
    server
}
