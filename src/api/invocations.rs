//! Invoking agents: each invocation is a turn of a task.

use axum::Json;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value};
use url::Url;

use super::Api;
use super::auth::Writer;
use super::body::JsonBody;
use super::error::ApiError;
use super::faults::Fault;
use super::models::AgentExecution;
use super::object::ObjectReader;
use super::path::Id;
use super::query::QueryReader;
use super::schemas;
use super::stream::{self, EventStream};
use crate::domain::{
    AgentId, Input, Invocation, Label, OrganizationId, OutputFormat, Request, Task, TaskId, TextError,
    ThinkMode, User, UserId,
};
use crate::store::{Idempotency, Recorded};

/// How tasks of REST v1 are invoked, unless their callers say otherwise.
const SOURCE: &str = "api";

/// The header that makes an invocation safe to send again.
const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// Invoke an agent and return at once
///
/// Records a turn, and answers with the task, `pending`. With the id of a task of the same agent it continues that
/// conversation: the task's title, result, status and times become the new turn's. The id of another agent's task is
/// refused, and nothing changes. With an `Idempotency-Key`, the same request sent again is answered as it was the
/// first time, and records nothing.
#[utoipa::path(
    post,
    path = "/v1/agents/{agent_id}/invoke/async",
    operation_id = "Invoke_Agent__Async__v1_agents__agent_id__invoke_async_post",
    tags = ["API v1", "Agents", "Agents Invocation"],
    params(("agent_id" = String, Path), schemas::InvokeQuery),
    request_body = schemas::AgentExecutionRequest,
    responses(
        (status = 200, description = "Successful Response", body = schemas::CreatedTask),
        (status = 409, description = "The id, or the idempotency key, is taken", body = schemas::ErrorDetail)
    ),
    security(("APIKeyHeader" = []))
)]
pub(crate) async fn invoke_async(
    caller: Writer,
    State(api): State<Api>,
    agent: Id,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: JsonBody,
) -> Result<Response, ApiError> {
    let invocation = ReadInvocation::of(agent, query.as_deref(), &headers, &body)?;
    let recorded = invocation.record(&api, caller.organization()).await?;
    Ok(match recorded {
        Outcome::New(task) => Json(AgentExecution::from(*task)).into_response(),
        Outcome::Answered { answer, .. } => {
            ([(header::CONTENT_TYPE, "application/json")], answer).into_response()
        }
    })
}

/// Invoke an agent and wait
///
/// Records a turn as the asynchronous route does, and answers when an agent's runner has reported how it ended. After a
/// while it answers with the task as it is then; the turn goes on.
#[utoipa::path(
    post,
    path = "/v1/agents/{agent_id}/invoke",
    operation_id = "Invoke_Agent__Sync__v1_agents__agent_id__invoke_post",
    tags = ["API v1", "Agents", "Agents Invocation"],
    params(("agent_id" = String, Path), schemas::InvokeQuery),
    request_body = schemas::AgentExecutionRequest,
    responses(
        (status = 200, description = "Successful Response", body = schemas::CreatedTask),
        (status = 409, description = "The id, or the idempotency key, is taken", body = schemas::ErrorDetail)
    ),
    security(("APIKeyHeader" = []))
)]
pub(crate) async fn invoke(
    caller: Writer,
    State(api): State<Api>,
    agent: Id,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: JsonBody,
) -> Result<Json<AgentExecution>, ApiError> {
    let organization = caller.organization();
    let invocation = ReadInvocation::of(agent, query.as_deref(), &headers, &body)?;
    let recorded = invocation.record(&api, organization).await?;
    let id = recorded.id().clone();
    let watch = api.store.watch_task(organization, &id).await?;
    let task = api.store.get_task(organization, &id).await?.ok_or(ApiError::TaskNotFound)?;
    let turn = match recorded {
        Outcome::New(recorded) => recorded.turn.number,
        Outcome::Answered { .. } => task.turn.number,
    };
    let ended = async {
        if task.turn.number == turn { stream::wait_for_end(&api, &watch, task).await } else { Ok(Some(task)) }
    };
    let ended = tokio::select! {
        ended = ended => ended?,
        () = tokio::time::sleep(api.invoke_timeout) => api.store.get_task(organization, &id).await?,
        () = api.stopping.cancelled() => api.store.get_task(organization, &id).await?,
    };
    Ok(Json(ended.ok_or(ApiError::TaskNotFound)?.into()))
}

/// Invoke an agent and follow
///
/// Records a turn as the asynchronous route does, and answers with server-sent events: `task_created`, then
/// `task_updated` and what the runner pushes (`chunk`, `tool_call_request`, …) as they come, `task_finished` at the end.
#[utoipa::path(
    post,
    path = "/v1/agents/{agent_id}/invoke/stream",
    operation_id = "Invoke_Agent__Stream__v1_agents__agent_id__invoke_stream_post",
    tags = ["API v1", "Agents", "Agents Invocation"],
    params(("agent_id" = String, Path), schemas::InvokeQuery),
    request_body = schemas::AgentExecutionRequest,
    responses(
        (status = 200, description = "Successful Response"),
        (status = 409, description = "The id, or the idempotency key, is taken", body = schemas::ErrorDetail)
    ),
    security(("APIKeyHeader" = []))
)]
pub(crate) async fn invoke_stream(
    caller: Writer,
    State(api): State<Api>,
    agent: Id,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: JsonBody,
) -> Result<EventStream, ApiError> {
    let organization = caller.organization();
    let invocation = ReadInvocation::of(agent, query.as_deref(), &headers, &body)?;
    // Watched before it is recorded, so that nothing that follows is missed.
    let watch = api.store.watch_task(organization, &invocation.invocation.id).await?;
    let (watch, task) = match invocation.record(&api, organization).await? {
        Outcome::New(task) => (watch, *task),
        Outcome::Answered { id, .. } => {
            let watch = api.store.watch_task(organization, &id).await?;
            (watch, api.store.get_task(organization, &id).await?.ok_or(ApiError::TaskNotFound)?)
        }
    };
    Ok(stream::stream(api, watch, task))
}

/// What came of recording an invocation.
enum Outcome {
    /// A turn was recorded.
    New(Box<Task>),
    /// It carries an idempotency key; this is the answer that is kept for it.
    Answered { id: TaskId, answer: String },
}

impl Outcome {
    fn id(&self) -> &TaskId {
        match self {
            Self::New(task) => &task.summary.id,
            Self::Answered { id, .. } => id,
        }
    }
}

/// An invocation as read from a request.
pub(crate) struct ReadInvocation {
    pub(crate) invocation: Invocation,
    idempotency: Option<Idempotency>,
}

impl ReadInvocation {
    fn of(agent: Id, query: Option<&str>, headers: &HeaderMap, body: &JsonBody) -> Result<Self, Vec<Fault>> {
        let mut faults = Vec::new();
        let version = QueryReader::new(query, &mut faults).text("version");
        Self::read(agent, version, SOURCE, headers, body)
    }

    /// Reads an invocation whose agent version was read elsewhere, and whose source, unless it says one, is `source`.
    pub(crate) fn read(
        agent: Id,
        agent_version: Option<String>,
        source: &str,
        headers: &HeaderMap,
        body: &JsonBody,
    ) -> Result<Self, Vec<Fault>> {
        let mut faults = Vec::new();
        let agent_id = AgentId::parse(agent.0.as_str());
        if let Err(error) = agent_id {
            faults.push(Fault::text(vec!["path".into(), "agent_id".into()], error, agent.0.into()));
        }
        if agent_version.as_ref().is_some_and(|version| version.contains('\0')) {
            let loc = vec!["query".into(), "version".into()];
            faults.push(Fault::text(loc, TextError::Nul, agent_version.clone().into()));
        }
        let key =
            headers.get(IDEMPOTENCY_KEY).map(|key| String::from_utf8_lossy(key.as_bytes()).into_owned());
        let key = key.filter(|key| !key.is_empty()).and_then(|key| {
            let loc = vec!["header".into(), IDEMPOTENCY_KEY.into()];
            Label::parse(key.as_str()).map_err(|error| faults.push(Fault::text(loc, error, key.into()))).ok()
        });
        let Some(body) = &body.0 else {
            faults.push(Fault::missing(vec!["body".into()], Value::Null));
            return Err(faults);
        };
        let request = format!("{} {body}", agent_version.as_deref().unwrap_or_default());
        let invocation = ObjectReader::of_body(body, &mut faults)
            .and_then(|body| read_body(body, agent_id.ok(), agent_version, source));
        match invocation {
            Some(invocation) if faults.is_empty() => {
                Ok(Self { invocation, idempotency: key.map(|key| Idempotency { key, request }) })
            }
            _ => Err(faults),
        }
    }

    /// Records it, once if it has an idempotency key.
    async fn record(self, api: &Api, organization: OrganizationId) -> Result<Outcome, ApiError> {
        let Self { invocation, idempotency } = self;
        let now = api.clock.now();
        let Some(idempotency) = idempotency else {
            let task = api.store.record_invocation(organization, invocation, now).await?;
            return Ok(Outcome::New(Box::new(task)));
        };
        let answer = |task: Task| {
            serde_json::to_string(&AgentExecution::from(task)).expect("a task can be written as JSON")
        };
        // Boxed, since its statements' arguments would make a large future of every request.
        let recorded =
            Box::pin(api.store.record_invocation_once(organization, invocation, &idempotency, now, answer));
        let Recorded { id, answer } = recorded.await?;
        Ok(Outcome::Answered { id, answer })
    }
}

/// Reads the body's fields, in the contract's order; `None` only where there is a fault.
fn read_body(
    mut body: ObjectReader<'_, '_>,
    agent_id: Option<AgentId>,
    agent_version: Option<String>,
    default_source: &str,
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
    // What the official SDK sends besides.
    let voice_id = body.text("voice_id");
    let tool_call_limit = body.integer("tool_call_limit");
    let harness_cli = body.text("harness_cli");
    let permission_mode = body.text("permission_mode");

    let (input, user_id) = input?;
    Some(Invocation {
        id: id.unwrap_or_else(TaskId::generate),
        agent_id: agent_id?,
        input,
        user_id,
        parent_task_id,
        triggering_agent_id,
        source: source.or_else(|| Label::parse(default_source).ok())?,
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
            voice_id,
            tool_call_limit,
            harness_cli,
            permission_mode,
        },
    })
}

fn read_input(mut input: ObjectReader<'_, '_>) -> (Input, Option<UserId>) {
    let text = if input.is_null("text") { None } else { Some(input.text("text").unwrap_or_default()) };
    let files = input.texts("files");
    let (user, user_id) = input.object("user").map(read_user).unzip();
    let attachments = input.free_objects("attachments").unwrap_or_default();
    let principal = input.free_object("principal");
    (Input { text, files, user, attachments, principal }, user_id.flatten())
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
