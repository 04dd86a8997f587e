//! Shapes that only the OpenAPI document needs: what readers take apart field by field, and enumerations under the
//! names that the contract gives them. Nobody builds one.
#![expect(dead_code, reason = "these types describe JSON, they never hold any")]

use utoipa::{IntoParams, ToSchema};

/// Any JSON object: utoipa goes by the name.
type Object = serde_json::Value;

macro_rules! status_schema {
    ($(#[$meta:meta])* $name:ident) => {
        #[derive(ToSchema)]
        #[schema(rename_all = "snake_case")]
        $(#[$meta])*
        pub(crate) enum $name {
            Pending,
            Executing,
            Paused,
            Error,
            Failed,
            Completed,
            Stopped,
        }
    };
}

status_schema! {
    /// Execution status, as a filter
    #[schema(as = AgentExecutionStatus_Input)]
    StatusFilter
}
status_schema! {
    /// Execution status of a task in a list
    #[schema(as = xpander_sdk__modules__tasks__models__task__AgentExecutionStatus)]
    TaskStatus
}
status_schema! {
    /// Execution status of a whole task
    #[schema(as = xpander_dev_utils__models__executions__AgentExecutionStatus)]
    ExecutionStatus
}

/// What a result shall be
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub(crate) enum OutputFormat {
    Text,
    Markdown,
    Json,
    Voice,
}

/// How hard an agent shall think
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub(crate) enum ThinkMode {
    Default,
    Harder,
}

/// How much a language model shall reason
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub(crate) enum ReasoningEffort {
    Low,
    Medium,
    High,
    Xhigh,
}

/// Query parameters of an agent's list
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct ListAgentTasksQuery {
    /// Page number (starting from 1)
    #[param(minimum = 1, default = 1)]
    page: Option<i64>,
    /// Tasks per page (at most 50)
    #[param(minimum = 1, maximum = 50, default = 20)]
    per_page: Option<i64>,
    /// Only tasks made for this user
    user_id: Option<String>,
    /// Only sub-tasks of this task
    parent_task_id: Option<String>,
    /// Only tasks delegated by this agent
    triggering_agent_id: Option<String>,
    /// Only tasks with this execution status
    #[param(inline = false)]
    status: Option<StatusFilter>,
    /// Only tasks whose internal status is exactly this
    internal_status: Option<String>,
}

/// Query parameters of an invocation
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct InvokeQuery {
    /// The version of the agent to run; kept with the turn
    version: Option<String>,
}

/// A request to run one turn of a task
#[derive(ToSchema)]
pub(crate) struct AgentExecutionRequest {
    /// What the agent is asked
    input: InputRequest,
    /// The task to continue, or the id of the one to create; absent makes a new id
    id: Option<String>,
    /// The caller's own data
    payload_extension: Option<Object>,
    /// The task that this is a sub-task of
    parent_execution_id: Option<String>,
    /// The worker that shall run it
    worker_id: Option<String>,
    /// How it is invoked, in the caller's words; absent means `api`
    source: Option<String>,
    /// What the result shall be
    #[schema(default = "text")]
    output_format: Option<OutputFormat>,
    /// JSON schema of the result
    output_schema: Option<Object>,
    /// Accepted, without effect
    #[schema(default = false)]
    run_locally: Option<bool>,
    /// Context beside the input
    additional_context: Option<String>,
    /// What the result shall look like, in words
    expected_output: Option<String>,
    /// Whether events of the turn will be streamed
    #[schema(default = false)]
    events_streaming: Option<bool>,
    /// MCP servers that the agent may use; what could be a secret is not kept
    #[schema(default = json!([]))]
    mcp_servers: Option<Vec<Object>>,
    /// The agent that delegates the task
    triggering_agent_id: Option<String>,
    /// A title for the turn; absent, lists show the input's text
    title: Option<String>,
    /// How hard the agent shall think
    #[schema(default = "default")]
    think_mode: Option<ThinkMode>,
    /// Whether attachments stay out of the prompt
    #[schema(default = false)]
    disable_attachment_injection: Option<bool>,
    /// Instructions in place of the agent's own
    instructions_override: Option<String>,
    /// The node that a test run starts from
    test_run_node_id: Option<String>,
    /// Accepted, never kept
    user_oidc_token: Option<String>,
    /// Accepted, never kept
    user_tokens: Option<Object>,
    /// Whether the caller wants metrics
    #[schema(default = false)]
    return_metrics: Option<bool>,
    /// Provider of the language model
    llm_model_provider: Option<String>,
    /// Name of the language model
    llm_model_name: Option<String>,
    /// How much the language model shall reason
    llm_reasoning_effort: Option<ReasoningEffort>,
}

/// What a turn asks
#[derive(ToSchema)]
#[schema(as = AgentExecutionInput_Input)]
pub(crate) struct InputRequest {
    /// The text
    #[schema(default = "")]
    text: Option<String>,
    /// Addresses of files
    #[schema(default = json!([]))]
    files: Option<Vec<String>>,
    /// The end user in whose name it is asked
    user: Option<UserRequest>,
}

/// An end user
#[derive(ToSchema)]
#[schema(as = User_Input)]
pub(crate) struct UserRequest {
    /// The caller's id of the user; lists filter by it
    id: Option<String>,
    /// First name
    first_name: Option<String>,
    /// Last name
    last_name: Option<String>,
    /// Email address
    email: String,
    /// Whatever else the caller keeps about them
    additional_attributes: Option<Object>,
    /// Role in the caller's organisation
    #[schema(default = "member")]
    role: Option<String>,
    /// Whether the caller calls them a super administrator
    #[schema(default = false)]
    is_super_admin: Option<bool>,
    /// Time zone name
    timezone: Option<String>,
}

/// What a runner reports about the latest turn of a task. What is absent or null stays as it is, and so does what
/// the service owns (ids, times, sub-tasks)
#[derive(ToSchema)]
pub(crate) struct TaskUpdateRequest {
    /// The new status
    status: Option<ExecutionStatus>,
    /// The outcome
    result: Option<String>,
    /// The customer's own status
    internal_status: Option<String>,
    /// Which step of the agent ran last
    last_executed_node_id: Option<String>,
    /// How the turn was invoked
    source: Option<String>,
    /// A title for the turn
    title: Option<String>,
    /// The caller's own data about the turn
    payload_extension: Option<Object>,
    /// The same, under the name that the official SDK gives it
    tool_call_payload_extension: Option<Object>,
}

/// A question that waits for a person
#[derive(ToSchema)]
pub(crate) struct HumanInTheLoop {
    wait_node_id: String,
}

/// A connector that waits for a person's authorisation
#[derive(ToSchema)]
pub(crate) struct PendingECARequest {
    connector_name: String,
    auth_url: String,
}

/// An agent's plan
#[derive(ToSchema)]
pub(crate) struct DeepPlanning {
    #[schema(default = false)]
    enabled: Option<bool>,
    #[schema(default = false)]
    enforce: Option<bool>,
    #[schema(default = false)]
    started: Option<bool>,
    #[schema(default = false)]
    question_raised: Option<bool>,
    #[schema(default = json!([]))]
    tasks: Option<Vec<DeepPlanningItem>>,
}

/// A step of an agent's plan
#[derive(ToSchema)]
pub(crate) struct DeepPlanningItem {
    id: String,
    title: String,
    completed: bool,
}

/// Language model tokens
#[derive(ToSchema)]
pub(crate) struct Tokens {
    completion_tokens: Option<i64>,
    prompt_tokens: Option<i64>,
    total_tokens: Option<i64>,
}

/// What every error but a 422 says
#[derive(ToSchema)]
pub(crate) struct ErrorDetail {
    /// What went wrong, and what to do about it
    detail: String,
}

/// A task whose new turn has just been recorded; the document gives it the properties of `AgentExecution`
#[derive(ToSchema)]
pub(crate) struct CreatedTask {}
