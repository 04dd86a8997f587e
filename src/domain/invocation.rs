//! An invocation: a request to run one turn.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::wire_enum::wire_enum;
use super::{AgentId, ShortText, TaskId, UserId};

/// A request to run one turn, without secrets (tokens, keys), which must not be stored.
#[derive(Debug, Clone, PartialEq)]
pub struct Invocation {
    /// The task to continue, or to create with this id.
    pub id: TaskId,
    /// The agent to run.
    pub agent_id: AgentId,
    /// The input.
    pub input: Input,
    /// The options.
    pub options: InvocationOptions,
    /// The user that the task is created for.
    pub user_id: Option<UserId>,
    /// The task that this is a sub-task of.
    pub parent_task_id: Option<TaskId>,
    /// The agent that delegates it.
    pub triggering_agent_id: Option<AgentId>,
    /// How it was invoked.
    pub source: ShortText,
}

impl Invocation {
    /// The title in lists: the explicit title, or else the input text if it is not empty.
    pub fn title(&self) -> Option<&str> {
        title(&self.options, &self.input)
    }
}

/// The title in lists: the explicit title, or else the input text if it is not empty.
pub(super) fn title<'a>(options: &'a InvocationOptions, input: &'a Input) -> Option<&'a str> {
    let text = || input.text.as_deref().filter(|text| !text.is_empty());
    options.title.as_deref().or_else(text)
}

/// The input of a turn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Input {
    /// The text. May be empty, for example if files contain the whole request.
    pub text: Option<String>,
    /// Addresses of files.
    pub files: Option<Vec<String>>,
    /// The end user on whose behalf the agent is invoked.
    pub user: Option<User>,
    /// Files described in detail, as the official SDK sends them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attachments: Vec<Map<String, Value>>,
    /// The caller, if it is not the end user, as the official SDK sends it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub principal: Option<Map<String, Value>>,
}

/// An end user, as the caller describes them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct User {
    /// The caller's id of the user.
    pub id: Option<String>,
    /// First name.
    pub first_name: Option<String>,
    /// Last name.
    pub last_name: Option<String>,
    /// Email address. The contract requires one for every user.
    pub email: String,
    /// Other attributes of the caller's own.
    pub additional_attributes: Option<Map<String, Value>>,
    /// Role in the caller's organization.
    pub role: Option<String>,
    /// Whether the caller marks the user as a super administrator. It grants nothing here.
    pub is_super_admin: Option<bool>,
    /// Time zone name.
    pub timezone: Option<String>,
}

/// The options of an invocation that are kept and returned as received.
///
/// Stored as JSON. A field that is absent there has its default, so fields can be added without a
/// migration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct InvocationOptions {
    /// An explicit title.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// The caller's own data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload_extension: Option<Map<String, Value>>,
    /// The requested version of the agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent_version: Option<String>,
    /// The worker to run the turn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worker_id: Option<String>,
    /// Context beside the input.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub additional_context: Option<String>,
    /// A description of the expected result.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected_output: Option<String>,
    /// The format of the result; text by default.
    #[serde(skip_serializing_if = "is_text")]
    pub output_format: Option<OutputFormat>,
    /// JSON schema of the result.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_schema: Option<Map<String, Value>>,
    /// Whether events of the turn will be streamed.
    #[serde(skip_serializing_if = "is_false")]
    pub events_streaming: Option<bool>,
    /// MCP servers that the agent may use, without everything that could be a secret.
    #[serde(skip_serializing_if = "is_empty_list")]
    pub mcp_servers: Option<Vec<Map<String, Value>>>,
    /// How thoroughly the agent thinks.
    #[serde(skip_serializing_if = "is_usual")]
    pub think_mode: Option<ThinkMode>,
    /// Whether attachments stay out of the prompt.
    #[serde(skip_serializing_if = "is_false")]
    pub disable_attachment_injection: Option<bool>,
    /// Instructions in place of the agent's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instructions_override: Option<String>,
    /// The node that a test run starts from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub test_run_node_id: Option<String>,
    /// Whether the caller wants metrics.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub return_metrics: bool,
    /// Provider of the language model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub llm_model_provider: Option<String>,
    /// Name of the language model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub llm_model_name: Option<String>,
    /// The reasoning effort of the language model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub llm_reasoning_effort: Option<ReasoningEffort>,
    /// The voice of a spoken result.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub voice_id: Option<String>,
    /// The maximum number of tool calls in the turn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool_call_limit: Option<i64>,
    /// The command line that runs it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub harness_cli: Option<String>,
    /// What that command line may do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub permission_mode: Option<String>,
}

impl Default for InvocationOptions {
    /// The contract's defaults.
    fn default() -> Self {
        Self {
            title: None,
            payload_extension: None,
            agent_version: None,
            worker_id: None,
            additional_context: None,
            expected_output: None,
            output_format: Some(OutputFormat::Text),
            output_schema: None,
            events_streaming: Some(false),
            mcp_servers: Some(Vec::new()),
            think_mode: Some(ThinkMode::Default),
            disable_attachment_injection: Some(false),
            instructions_override: None,
            test_run_node_id: None,
            return_metrics: false,
            llm_model_provider: None,
            llm_model_name: None,
            llm_reasoning_effort: None,
            voice_id: None,
            tool_call_limit: None,
            harness_cli: None,
            permission_mode: None,
        }
    }
}

// Defaults are left out of the stored JSON. Most requests have only defaults, and then take two
// bytes.

fn is_text(format: &Option<OutputFormat>) -> bool {
    *format == Some(OutputFormat::Text)
}

fn is_usual(mode: &Option<ThinkMode>) -> bool {
    *mode == Some(ThinkMode::Default)
}

fn is_false(flag: &Option<bool>) -> bool {
    *flag == Some(false)
}

fn is_empty_list(list: &Option<Vec<Map<String, Value>>>) -> bool {
    list.as_ref().is_some_and(Vec::is_empty)
}

wire_enum! {
    /// The format of a result.
    OutputFormat {
        /// Plain text.
        Text = "text",
        /// Markdown.
        Markdown = "markdown",
        /// JSON, as text.
        Json = "json",
        /// Speech.
        Voice = "voice",
    }
}

wire_enum! {
    /// How thoroughly an agent thinks.
    ThinkMode {
        /// As usual.
        Default = "default",
        /// Harder.
        Harder = "harder",
    }
}

wire_enum! {
    /// The reasoning effort of a language model.
    ReasoningEffort {
        /// Little.
        Low = "low",
        /// Some.
        Medium = "medium",
        /// Much.
        High = "high",
        /// Very much.
        Xhigh = "xhigh",
    }
}
