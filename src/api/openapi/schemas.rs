//! Shapes that only the OpenAPI document needs: what is read or written field by field, and
//! enumerations with the contract's names. They never hold a value.
//!
//! More than 400 lines: one flat list of shapes, in the order of the document.
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

/// The format of a result
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub(crate) enum OutputFormat {
    Text,
    Markdown,
    Json,
    Voice,
}

/// How thoroughly an agent thinks
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub(crate) enum ThinkMode {
    Default,
    Harder,
}

/// The reasoning effort of a language model
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
    /// Only tasks created for this user
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

/// Query parameters of an organization's list
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct ListTasksQuery {
    /// Page number (starting from 1)
    #[param(minimum = 1, default = 1)]
    page: Option<i64>,
    /// Tasks per page (at most 50)
    #[param(minimum = 1, maximum = 50, default = 20)]
    per_page: Option<i64>,
    /// Only tasks created for this user
    user_id: Option<String>,
    /// Only sub-tasks of this task
    parent_task_id: Option<String>,
    /// Only tasks that this agent executes
    agent_id: Option<String>,
    /// Only tasks delegated by this agent
    triggering_agent_id: Option<String>,
    /// Only tasks with this execution status
    status: Option<StatusFilter>,
    /// Only tasks whose internal status is exactly this
    internal_status: Option<String>,
    /// Only tasks created at this time or later
    #[param(format = DateTime)]
    from_date: Option<String>,
    /// Only tasks created at this time or earlier
    #[param(format = DateTime)]
    to_date: Option<String>,
    /// Only tasks with one of these execution statuses, separated by commas. An addition to the
    /// contract
    #[param(pattern = "^(pending|executing|paused|error|failed|completed|stopped)\
                   (,(pending|executing|paused|error|failed|completed|stopped))*$")]
    status_in: Option<String>,
}

/// Query parameters of the official SDK's lists
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct HistoryQuery {
    /// Page number (starting from 1)
    #[param(minimum = 1, default = 1)]
    page: Option<i64>,
    /// Tasks per page (at most 1000)
    #[param(minimum = 1, maximum = 1000, default = 1000)]
    per_page: Option<i64>,
    /// Only tasks created for this user
    user_id: Option<String>,
    /// Only sub-tasks of this task
    parent_task_id: Option<String>,
    /// Only tasks delegated by this agent
    triggering_agent_id: Option<String>,
    /// Only tasks with this execution status
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
    /// The input
    input: InputBody,
    /// The task to continue, or the id of the one to create; absent makes a new id
    id: Option<String>,
    /// The caller's own data
    payload_extension: Option<Object>,
    /// The task that this is a sub-task of
    parent_execution_id: Option<String>,
    /// The worker to run the turn
    worker_id: Option<String>,
    /// How the turn is invoked, as free text; absent means `api`
    source: Option<String>,
    /// The format of the result
    #[schema(default = "text")]
    output_format: Option<OutputFormat>,
    /// JSON schema of the result
    output_schema: Option<Object>,
    /// Accepted, without effect
    #[schema(default = false)]
    run_locally: Option<bool>,
    /// Context beside the input
    additional_context: Option<String>,
    /// A description of the expected result
    expected_output: Option<String>,
    /// Whether events of the turn will be streamed
    #[schema(default = false)]
    events_streaming: Option<bool>,
    /// MCP servers that the agent may use; everything that could be a secret is dropped
    #[schema(default = json!([]))]
    mcp_servers: Option<Vec<Object>>,
    /// The agent that delegates the task
    triggering_agent_id: Option<String>,
    /// A title for the turn; absent, lists show the input's text
    title: Option<String>,
    /// How thoroughly the agent thinks
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
    return_metrics: bool,
    /// Provider of the language model
    llm_model_provider: Option<String>,
    /// Name of the language model
    llm_model_name: Option<String>,
    /// The reasoning effort of the language model
    llm_reasoning_effort: Option<ReasoningEffort>,
}

/// The input of a turn
#[derive(ToSchema)]
#[schema(as = AgentExecutionInput_Input)]
pub(crate) struct InputBody {
    /// The text
    #[schema(default = "")]
    text: Option<String>,
    /// Addresses of files
    #[schema(default = json!([]))]
    files: Option<Vec<String>>,
    /// The end user on whose behalf the agent is invoked
    user: Option<UserBody>,
}

/// An end user
#[derive(ToSchema)]
#[schema(as = User_Input)]
pub(crate) struct UserBody {
    /// The caller's id of the user; lists filter by it
    id: Option<String>,
    /// First name
    first_name: Option<String>,
    /// Last name
    last_name: Option<String>,
    /// Email address
    email: String,
    /// Other attributes of the caller's own
    additional_attributes: Option<Object>,
    /// Role in the caller's organization
    #[schema(default = "member")]
    role: Option<String>,
    /// Whether the caller marks the user as a super administrator
    #[schema(default = false)]
    is_super_admin: Option<bool>,
    /// Time zone name
    timezone: Option<String>,
}

/// What a runner reports about a turn of a task. Absent and null fields stay unchanged, and so does
/// what the service owns (ids, times, sub-tasks)
#[derive(ToSchema)]
pub(crate) struct TaskUpdateRequest {
    /// The number of the turn, as `x-task-turn` tells it; absent means the latest turn
    #[schema(minimum = 1)]
    turn: Option<i64>,
    /// The new status
    status: Option<ExecutionStatus>,
    /// The result
    result: Option<String>,
    /// The customer's own status
    internal_status: Option<String>,
    /// The agent's step that ran last
    last_executed_node_id: Option<String>,
    /// How the turn was invoked
    source: Option<String>,
    /// A title for the turn
    title: Option<String>,
    /// The caller's own data about the turn
    payload_extension: Option<Object>,
    /// The same, with the official SDK's name
    tool_call_payload_extension: Option<Object>,
    /// Token usage of the turn
    tokens: Option<Tokens>,
    /// Duration of the turn in seconds
    duration: Option<f64>,
    /// Names of the tools that the turn used
    used_tools: Option<Vec<String>>,
    /// A question that waits for a person; kept while the task is paused
    hitl_request: Option<HumanInTheLoop>,
    /// A connector that waits for a person's authorization; kept while the task is paused
    pending_eca_request: Option<PendingECARequest>,
    /// The agent's plan
    deep_planning: Option<DeepPlanning>,
}

/// The result of a turn that ran elsewhere
#[derive(ToSchema)]
pub(crate) struct TaskReportRequest {
    /// The task to continue, or the id of the one to create; absent makes a new id
    id: Option<String>,
    /// The input
    input: Option<String>,
    /// The language model's answer; it is the result if `result` is absent
    llm_response: Option<serde_json::Value>,
    /// Token usage
    tokens: Option<Tokens>,
    /// Whether it succeeded: `completed`, or else `error`
    #[schema(default = true)]
    is_success: Option<bool>,
    /// The result
    result: Option<String>,
    /// Duration in seconds
    duration: Option<f64>,
    /// Names of the tools that it used
    #[schema(default = json!([]))]
    used_tools: Option<Vec<String>>,
}

/// Token usage and duration of a turn
#[derive(ToSchema)]
pub(crate) struct ExecutionMetricsReport {
    /// The task
    #[schema(min_length = 1, max_length = 255)]
    execution_id: String,
    /// The number of the turn, as `x-task-turn` tells it; absent means the latest turn
    #[schema(minimum = 1)]
    turn: Option<i64>,
    /// Duration of the turn in seconds
    duration: Option<f64>,
    /// The customer's own status
    internal_status: Option<String>,
    /// Language model tokens that the turn used
    llm_tokens: Option<ExecutionTokens>,
}

/// Token usage of the language model by consumer
#[derive(ToSchema)]
pub(crate) struct ExecutionTokens {
    /// Those of the task itself
    worker: Option<Tokens>,
    /// Those of what runs it
    inner: Option<Tokens>,
}

/// Something that happens to a task
#[derive(ToSchema)]
pub(crate) struct TaskUpdateEvent {
    /// The type: `chunk`, `tool_call_request`, `tool_call_result`, `think`, `analyze`,
    /// `sub_agent_trigger`, …
    r#type: String,
    /// The number of the turn, as `x-task-turn` tells it; absent means the latest turn
    #[schema(minimum = 1)]
    turn: Option<i64>,
    /// The event's own data
    data: Option<serde_json::Value>,
}

/// One page of a list, and how many tasks the whole list has.
#[derive(ToSchema)]
#[schema(as = PaginatedResponse_TasksListItem_)]
pub(crate) struct PaginatedTasks {
    items: Vec<TasksListItem>,
    total: i64,
    page: i64,
    per_page: i64,
    total_pages: i64,
}

/// A task as a list shows it.
#[derive(ToSchema)]
pub(crate) struct TasksListItem {
    /// The task's id, which is its conversation's
    id: String,
    /// The agent that executes the task
    agent_id: String,
    /// The user that the task was made for
    user_id: Option<String>,
    /// The task that this one is a sub-task of
    parent_task_id: Option<String>,
    /// The agent that delegated the task
    triggering_agent_id: Option<String>,
    /// The organization that owns the task
    organization_id: String,
    /// Status of the latest turn
    status: TaskStatus,
    /// When the first turn was recorded
    #[schema(format = DateTime)]
    created_at: Option<String>,
    /// When anything was last recorded
    #[schema(format = DateTime)]
    updated_at: Option<String>,
    /// How the latest turn was invoked
    source_node_type: Option<String>,
    /// The result of the latest turn
    result: Option<String>,
    /// The latest turn's title, else its input text
    title: Option<String>,
}

/// A question that waits for a person
#[derive(ToSchema)]
pub(crate) struct HumanInTheLoop {
    wait_node_id: String,
}

/// A connector that waits for a person's authorization
#[derive(ToSchema)]
pub(crate) struct PendingECARequest {
    connector_name: String,
    auth_url: String,
}

/// An agent's plan
#[derive(ToSchema)]
pub(crate) struct DeepPlanning {
    #[schema(default = false)]
    enabled: bool,
    #[schema(default = false)]
    enforce: bool,
    #[schema(default = false)]
    started: bool,
    #[schema(default = false)]
    question_raised: bool,
    #[schema(default = json!([]))]
    tasks: Option<Vec<DeepPlanningItem>>,
}

/// A step of an agent's plan
#[derive(ToSchema)]
pub(crate) struct DeepPlanningItem {
    id: String,
    title: String,
    #[schema(default = false)]
    completed: bool,
}

/// Language model tokens
#[derive(ToSchema)]
pub(crate) struct Tokens {
    completion_tokens: Option<i64>,
    prompt_tokens: Option<i64>,
    total_tokens: Option<i64>,
    #[serde(flatten)]
    others: std::collections::BTreeMap<String, Option<i64>>,
}

/// What every error but a 422 says
#[derive(ToSchema)]
pub(crate) struct ErrorDetail {
    /// What went wrong, and what to do about it
    detail: String,
}

/// A task whose new turn has just been recorded; the document gives it the properties of
/// `AgentExecution`
#[derive(ToSchema)]
pub(crate) struct CreatedTask {}
