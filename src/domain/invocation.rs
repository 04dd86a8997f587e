//! An invocation: a request to run one turn.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::wire_enum::wire_enum;
use super::{AgentId, ShortText, TaskId, UserId};

/// A request to run one turn, less what must not be kept (tokens, keys).
#[derive(Debug, Clone, PartialEq)]
pub struct Invocation {
    /// The task to continue, or to create with this id.
    pub id: TaskId,
    /// The agent to run.
    pub agent_id: AgentId,
    /// What it is asked.
    pub input: Input,
    /// How it is asked.
    pub options: InvocationOptions,
    /// The user that it is asked for.
    pub user_id: Option<UserId>,
    /// The task that this is a sub-task of.
    pub parent_task_id: Option<TaskId>,
    /// The agent that delegates it.
    pub triggering_agent_id: Option<AgentId>,
    /// How it was invoked.
    pub source: ShortText,
}

impl Invocation {
    /// What lists will call this turn: its title, else its text; an empty text is none.
    pub fn title(&self) -> Option<&str> {
        title(&self.options, &self.input)
    }
}

/// What lists call a turn: its title, else its text; an empty text is none.
pub(super) fn title<'a>(options: &'a InvocationOptions, input: &'a Input) -> Option<&'a str> {
    let text = || input.text.as_deref().filter(|text| !text.is_empty());
    options.title.as_deref().or_else(text)
}

/// What the agent is asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Input {
    /// The text; may be empty where files say it all.
    pub text: Option<String>,
    /// Addresses of files.
    pub files: Option<Vec<String>>,
    /// The end user in whose name it is asked.
    pub user: Option<User>,
    /// Files described in detail, as the official SDK sends them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attachments: Vec<Map<String, Value>>,
    /// Who asks, where that is not the end user, as the official SDK says it.
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
    /// Email address; the contract demands one wherever there is a user.
    pub email: String,
    /// Whatever else the caller keeps about them.
    pub additional_attributes: Option<Map<String, Value>>,
    /// Role in the caller's organization.
    pub role: Option<String>,
    /// Whether the caller calls them a super administrator. It means nothing here.
    pub is_super_admin: Option<bool>,
    /// Time zone name.
    pub timezone: Option<String>,
}

/// The options of an invocation that are kept and returned as received.
///
/// It is stored as JSON; what is absent there has its default, so fields can be added without a migration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct InvocationOptions {
    /// An explicit title.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// The caller's own data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload_extension: Option<Map<String, Value>>,
    /// The version of the agent that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent_version: Option<String>,
    /// The worker that shall run it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worker_id: Option<String>,
    /// Context beside the input.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub additional_context: Option<String>,
    /// What the result shall look like, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected_output: Option<String>,
    /// What the result shall be: text unless said otherwise.
    #[serde(skip_serializing_if = "is_text")]
    pub output_format: Option<OutputFormat>,
    /// JSON schema of the result.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_schema: Option<Map<String, Value>>,
    /// Whether events of the turn will be streamed.
    #[serde(skip_serializing_if = "is_false")]
    pub events_streaming: Option<bool>,
    /// MCP servers that the agent may use, less everything that could be a secret.
    #[serde(skip_serializing_if = "is_empty_list")]
    pub mcp_servers: Option<Vec<Map<String, Value>>>,
    /// How hard the agent shall think.
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
    /// How much the language model shall reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub llm_reasoning_effort: Option<ReasoningEffort>,
    /// The voice of a spoken result.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub voice_id: Option<String>,
    /// Most tool calls of the turn.
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

// What has its default is left out of the stored JSON: most requests are all defaults, and a turn of them costs two
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
    /// What a result shall be.
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
    /// How hard an agent shall think.
    ThinkMode {
        /// As usual.
        Default = "default",
        /// Harder.
        Harder = "harder",
    }
}

wire_enum! {
    /// How much a language model shall reason.
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
