//! The contract's objects in answers: every key present, in the contract's order.

use axum::Json;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, SecondsFormat, Timelike, Utc};
use serde::{Serialize, Serializer};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::TASK_TURN;
use crate::api::openapi::schemas;
use crate::domain::{Input, OutputFormat, ReasoningEffort, Status, Task, TaskId, ThinkMode, User};
use crate::store::RecordedInvocation;

/// A point in time as the contract writes it: RFC 3339 in UTC with `Z`, in microseconds, without a
/// fraction if that is zero.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timestamp(DateTime<Utc>);

impl From<DateTime<Utc>> for Timestamp {
    fn from(time: DateTime<Utc>) -> Self {
        Self(time)
    }
}

impl Timestamp {
    pub(crate) fn to_text(self) -> String {
        let format =
            if self.0.nanosecond() < 1_000 { SecondsFormat::Secs } else { SecondsFormat::Micros };
        self.0.to_rfc3339_opts(format, true)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.to_text())
    }
}

/// A whole task: its summary, its latest turn, its sub-tasks.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct AgentExecution {
    /// The task's id, which is also its conversation's id
    id: String,
    /// The agent that executes the task
    agent_id: String,
    /// The organization that owns the task
    organization_id: String,
    /// The input of the latest turn
    input: InputResponse,
    /// Status of the latest turn
    #[schema(value_type = Option<schemas::ExecutionStatus>, default = "pending")]
    status: Status,
    /// The customer's own status
    internal_status: Option<String>,
    /// The agent's step that ran last
    last_executed_node_id: Option<String>,
    /// The requested version of the agent
    agent_version: Option<String>,
    /// When the first turn was recorded
    #[schema(value_type = String, format = DateTime)]
    created_at: Timestamp,
    /// When the latest turn began to execute
    #[schema(value_type = Option<String>, format = DateTime)]
    started_at: Option<Timestamp>,
    /// When the latest turn was last paused
    #[schema(value_type = Option<String>, format = DateTime)]
    paused_at: Option<Timestamp>,
    /// When the latest turn ended
    #[schema(value_type = Option<String>, format = DateTime)]
    finished_at: Option<Timestamp>,
    /// The result of the latest turn
    result: Option<String>,
    /// The task that this one is a sub-task of
    parent_execution: Option<String>,
    /// Ids of the direct sub-tasks, oldest first
    #[schema(value_type = Option<Vec<String>>, default = json!([]))]
    sub_executions: Vec<String>,
    /// Ids of the direct sub-tasks that have ended
    #[schema(value_type = Option<Vec<String>>, default = json!([]))]
    finished_sub_executions: Vec<String>,
    /// Whether a person, not the system, stopped the latest turn
    #[schema(value_type = Option<bool>, default = false)]
    is_manually_stopped: bool,
    /// The caller's own data
    #[schema(value_type = Option<Object>)]
    payload_extension: Option<Map<String, Value>>,
    /// A question that waits for a person
    #[schema(value_type = Option<schemas::HumanInTheLoop>)]
    hitl_request: Option<Map<String, Value>>,
    /// A connector that waits for a person's authorization
    #[schema(value_type = Option<schemas::PendingECARequest>)]
    pending_eca_request: Option<Map<String, Value>>,
    /// How the latest turn was invoked
    #[schema(value_type = Option<String>)]
    source: String,
    /// The worker to run the turn
    worker_id: Option<String>,
    /// Context beside the input
    additional_context: Option<String>,
    /// A description of the expected result
    expected_output: Option<String>,
    /// The format of the result
    #[schema(value_type = Option<schemas::OutputFormat>, default = "text")]
    output_format: Option<OutputFormat>,
    /// JSON schema of the result
    #[schema(value_type = Option<Object>)]
    output_schema: Option<Map<String, Value>>,
    /// Whether events of the turn are streamed
    #[schema(default = false)]
    events_streaming: Option<bool>,
    /// Whether tools that change something were used; no runner reports this yet
    #[schema(value_type = Option<bool>, default = false)]
    used_mutating_tools: bool,
    /// Whether the task goes on by itself; no runner reports this yet
    #[schema(value_type = Option<bool>, default = false)]
    is_continuous: bool,
    /// MCP servers that the agent may use, without anything that could be a secret
    #[schema(value_type = Option<Vec<Object>>, default = json!([]))]
    mcp_servers: Option<Vec<Map<String, Value>>>,
    /// The agent that delegated the task
    triggering_agent_id: Option<String>,
    /// The latest turn's explicit title
    title: Option<String>,
    /// How thoroughly the agent thinks
    #[schema(value_type = Option<schemas::ThinkMode>, default = "default")]
    think_mode: Option<ThinkMode>,
    /// Whether attachments stay out of the prompt
    #[schema(default = false)]
    disable_attachment_injection: Option<bool>,
    /// Instructions in place of the agent's own
    instructions_override: Option<String>,
    /// The node that a test run starts from
    test_run_node_id: Option<String>,
    /// The voice of a spoken result
    voice_id: Option<String>,
    /// Always null: tokens are not kept
    user_oidc_token: Option<String>,
    /// Whether the task runs a workflow
    #[schema(default = false)]
    is_orchestration: bool,
    /// Whether the caller wants metrics
    #[schema(default = false)]
    return_metrics: bool,
    /// The agent's plan
    #[schema(value_type = Option<schemas::DeepPlanning>)]
    deep_planning: Value,
    /// The number of attempts of the latest turn
    #[schema(default = 1)]
    execution_attempts: i64,
    /// Always null: tokens are not kept
    #[schema(value_type = Option<Object>)]
    user_tokens: Option<Map<String, Value>>,
    /// Token usage of the latest turn
    #[schema(value_type = Option<schemas::Tokens>)]
    tokens: Option<Map<String, Value>>,
    /// Provider of the language model
    llm_model_provider: Option<String>,
    /// Name of the language model
    llm_model_name: Option<String>,
    /// The reasoning effort of the language model
    #[schema(value_type = Option<schemas::ReasoningEffort>)]
    llm_reasoning_effort: Option<ReasoningEffort>,
    /// Duration of the latest turn in seconds, measured by its runner; 0 if none was reported
    #[schema(default = 0.0)]
    duration: f64,
    /// Names of the tools that the latest turn used
    #[schema(value_type = Option<Vec<String>>, default = json!([]))]
    used_tools: Vec<String>,
    /// The maximum number of tool calls in the turn
    tool_call_limit: Option<i64>,
    /// The command line that runs the turn
    harness_cli: Option<String>,
    /// What that command line may do
    permission_mode: Option<String>,
}

impl From<Task> for AgentExecution {
    fn from(task: Task) -> Self {
        let Task { summary, turn, sub_executions, finished_sub_executions, events: _ } = task;
        let (state, options, details) = (turn.state, turn.options, turn.details);
        let ids = |ids: Vec<TaskId>| ids.into_iter().map(|id| id.to_string()).collect();
        Self {
            id: summary.id.to_string(),
            agent_id: summary.agent_id.to_string(),
            organization_id: summary.organization_id.to_string(),
            input: turn.input.into(),
            status: state.status,
            internal_status: state.internal_status.map(|label| label.to_string()),
            last_executed_node_id: state.last_executed_node_id,
            agent_version: options.agent_version,
            created_at: Timestamp(summary.created_at),
            started_at: state.started_at.map(Timestamp),
            paused_at: state.paused_at.map(Timestamp),
            finished_at: state.finished_at.map(Timestamp),
            result: state.result,
            parent_execution: summary.parent_task_id.map(|id| id.to_string()),
            sub_executions: ids(sub_executions),
            finished_sub_executions: ids(finished_sub_executions),
            is_manually_stopped: state.is_manually_stopped,
            payload_extension: options.payload_extension,
            hitl_request: details.hitl_request,
            pending_eca_request: details.pending_eca_request,
            source: summary.source.to_string(),
            worker_id: options.worker_id,
            additional_context: options.additional_context,
            expected_output: options.expected_output,
            output_format: options.output_format,
            output_schema: options.output_schema,
            events_streaming: options.events_streaming,
            used_mutating_tools: false,
            is_continuous: false,
            mcp_servers: options.mcp_servers,
            triggering_agent_id: summary.triggering_agent_id.map(|id| id.to_string()),
            title: options.title,
            think_mode: options.think_mode,
            disable_attachment_injection: options.disable_attachment_injection,
            instructions_override: options.instructions_override,
            test_run_node_id: options.test_run_node_id,
            voice_id: options.voice_id,
            user_oidc_token: None,
            is_orchestration: false,
            return_metrics: options.return_metrics,
            deep_planning: details.deep_planning.map_or_else(no_plan, Value::Object),
            execution_attempts: 1,
            user_tokens: None,
            tokens: details.tokens,
            llm_model_provider: options.llm_model_provider,
            llm_model_name: options.llm_model_name,
            llm_reasoning_effort: options.llm_reasoning_effort,
            duration: details.duration.unwrap_or(0.0),
            used_tools: details.used_tools.unwrap_or_default(),
            tool_call_limit: options.tool_call_limit,
            harness_cli: options.harness_cli,
            permission_mode: options.permission_mode,
        }
    }
}

/// The header of a turn, as a part of an answer.
pub(crate) type TurnHeader = [(HeaderName, HeaderValue); 1];

/// The header of a turn, by its number.
pub(crate) fn turn_header(turn: i32) -> TurnHeader {
    [(HeaderName::from_static(TASK_TURN), HeaderValue::from(turn))]
}

/// A whole task as an answer, which tells its turn.
pub(crate) struct TaskResponse(pub(crate) Task);

impl IntoResponse for TaskResponse {
    fn into_response(self) -> Response {
        (turn_header(self.0.turn.number), Json(AgentExecution::from(self.0))).into_response()
    }
}

/// The answer to an invocation that was recorded, the same for its repetitions.
pub(crate) fn recorded_response(recorded: RecordedInvocation) -> Response {
    match recorded {
        RecordedInvocation::New(task) | RecordedInvocation::Replayed(task) => {
            TaskResponse(*task).into_response()
        }
        RecordedInvocation::Answered { answer, .. } => {
            ([(header::CONTENT_TYPE, "application/json")], answer).into_response()
        }
    }
}

/// The plan of an agent that has none, with the contract's defaults.
fn no_plan() -> Value {
    json!({
        "enabled": false, "enforce": false, "started": false, "question_raised": false, "tasks": []
    })
}

/// The input of a turn.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = AgentExecutionInput_Output)]
pub(crate) struct InputResponse {
    /// The text
    #[schema(default = "")]
    text: Option<String>,
    /// Addresses of files
    #[schema(default = json!([]))]
    files: Option<Vec<String>>,
    /// The end user on whose behalf the agent is invoked
    user: Option<UserResponse>,
    /// Files described in detail; absent if there are none
    #[schema(value_type = Option<Vec<Object>>)]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    attachments: Vec<Map<String, Value>>,
    /// The caller, if it is not the end user; absent otherwise
    #[schema(value_type = Option<Object>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    principal: Option<Map<String, Value>>,
}

impl From<Input> for InputResponse {
    fn from(Input { text, files, user, attachments, principal }: Input) -> Self {
        Self { text, files, user: user.map(UserResponse::from), attachments, principal }
    }
}

/// An end user.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = User_Output)]
pub(crate) struct UserResponse {
    /// The caller's id of the user
    id: Option<String>,
    /// First name
    first_name: Option<String>,
    /// Last name
    last_name: Option<String>,
    /// Email address
    email: String,
    /// Other attributes of the caller's own
    #[schema(value_type = Option<Object>)]
    additional_attributes: Option<Map<String, Value>>,
    /// Role in the caller's organization
    #[schema(default = "member")]
    role: Option<String>,
    /// Whether the caller marks the user as a super administrator
    #[schema(default = false)]
    is_super_admin: Option<bool>,
    /// Time zone name
    timezone: Option<String>,
    /// First and last name, or else the email address
    #[schema(read_only)]
    display_name: String,
}

impl From<User> for UserResponse {
    fn from(user: User) -> Self {
        let User {
            id,
            first_name,
            last_name,
            email,
            additional_attributes,
            role,
            is_super_admin,
            timezone,
        } = user;
        let names: Vec<_> = [&first_name, &last_name]
            .into_iter()
            .flatten()
            .map(String::as_str)
            .filter(|name| !name.is_empty())
            .collect();
        let display_name = if names.is_empty() { email.clone() } else { names.join(" ") };
        Self {
            id,
            first_name,
            last_name,
            email,
            additional_attributes,
            role,
            is_super_admin,
            timezone,
            display_name,
        }
    }
}
