//! The lines of an export: tasks, their turns and their events. `docs/export-format.md` is the
//! format for its users.

mod check;
mod error;
mod json;
mod mirror;
mod parse;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{AgentId, ShortText, Status, TaskId, UserId};
use check::{optional_time, time};

pub use error::RecordError;
pub use json::RESERVED_NAMES;
pub use parse::{ImportRecord, WholeTask, first_name};

/// The version of the format. Version 1 had one line for a whole task.
pub const EXPORT_VERSION: u32 = 2;

/// Highest number of an event that an import accepts: every JSON parser reads it exactly, and later
/// events have room.
pub const MAX_EVENT_NUMBER: i64 = (1 << 53) - 1;

/// A line of an export. A task's line is followed by its turns and then by its events.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExportLine<R = Box<RawValue>> {
    /// The first line, which names the format.
    Export(ExportHeader),
    /// A task.
    Task(ExportedTask),
    /// A turn of the task before it.
    Turn(ExportedTurn<R>),
    /// An event of the task before it.
    Event(ExportedEvent<R>),
}

/// The first line of an export.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportHeader {
    /// The version of the format.
    pub version: u32,
}

/// A task, without its turns and events. A field that is absent in a line is null or has its
/// default.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportedTask {
    /// The task's id.
    pub id: TaskId,
    /// The agent that executes it.
    pub agent_id: AgentId,
    /// The user that it was created for.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub user_id: Option<UserId>,
    /// The task that it is a sub-task of, which need not exist.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub parent_task_id: Option<TaskId>,
    /// The agent that delegated it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub triggering_agent_id: Option<AgentId>,
    /// How the latest turn was invoked.
    pub source: ShortText,
    /// The title that lists show, if it differs from the latest turn's.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub title: Option<String>,
    /// When the first turn was recorded.
    #[serde(deserialize_with = "time")]
    pub created_at: DateTime<Utc>,
    /// When anything was last recorded.
    #[serde(deserialize_with = "time")]
    pub updated_at: DateTime<Utc>,
    /// How many turns follow: at least one.
    pub turns: i32,
    /// How many events follow.
    #[serde(skip_serializing_if = "is_default", default)]
    pub events: i64,
    /// The number of the task's latest event, stored or not; 0 if unknown.
    #[serde(skip_serializing_if = "is_default", default)]
    pub last_event: i64,
}

/// A turn of an [`ExportedTask`]. Its JSON is text, so that it takes no more memory than its line.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportedTurn<R = Box<RawValue>> {
    /// Its number in the conversation, from 1 without gaps; 0 if the line has none.
    #[serde(default)]
    pub number: i32,
    /// The input.
    pub input: R,
    /// The options of the invocation.
    #[serde(skip_serializing_if = "Option::is_none", default = "none")]
    pub request: Option<R>,
    /// Details that runners reported.
    #[serde(skip_serializing_if = "Option::is_none", default = "none")]
    pub reported: Option<R>,
    /// Its status.
    pub status: Status,
    /// The customer's own status.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub internal_status: Option<ShortText>,
    /// Its result.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub result: Option<String>,
    /// The agent's step that ran last.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub last_executed_node_id: Option<String>,
    /// Whether a person stopped it.
    #[serde(skip_serializing_if = "is_default", default)]
    pub is_manually_stopped: bool,
    /// When it was recorded.
    #[serde(deserialize_with = "time")]
    pub created_at: DateTime<Utc>,
    /// When it began to execute.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[serde(default, deserialize_with = "optional_time")]
    pub started_at: Option<DateTime<Utc>>,
    /// When it was last paused.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[serde(default, deserialize_with = "optional_time")]
    pub paused_at: Option<DateTime<Utc>>,
    /// When it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[serde(default, deserialize_with = "optional_time")]
    pub finished_at: Option<DateTime<Utc>>,
}

/// An event of an [`ExportedTask`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportedEvent<R = Box<RawValue>> {
    /// Its number among the task's events.
    #[serde(alias = "event")]
    pub number: i64,
    /// The number of the turn that it happened to.
    pub turn: i32,
    /// Its type, as the contract names it.
    pub r#type: ShortText,
    /// Its data.
    pub data: R,
    /// When it happened.
    #[serde(deserialize_with = "time")]
    pub created_at: DateTime<Utc>,
}

/// A task with what follows its line.
#[derive(Debug, Clone)]
pub struct CompleteTask {
    /// The task, with the title that lists show.
    pub task: ExportedTask,
    /// All its turns, in order.
    pub turns: Vec<ExportedTurn>,
    /// All its events, in order.
    pub events: Vec<ExportedEvent>,
}

fn none<R>() -> Option<R> {
    None
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// JSON text as a part of a line. Its line breaks can only be between its values.
pub fn raw_json(text: String) -> Result<Box<RawValue>, serde_json::Error> {
    let has_breaks = text.contains(['\n', '\r']);
    RawValue::from_string(if has_breaks { text.replace(['\n', '\r'], " ") } else { text })
}

impl CompleteTask {
    /// Its latest turn.
    pub fn latest(&self) -> &ExportedTurn {
        self.turns.last().expect("a complete task has at least one turn")
    }
}

impl ExportLine {
    /// Approximate size in bytes in memory.
    pub fn size(&self) -> usize {
        /// A line without its texts and JSON.
        const FIXED: usize = 512;
        FIXED
            + match self {
                Self::Export(_) => 0,
                Self::Task(task) => task.title.as_ref().map_or(0, String::len),
                Self::Turn(turn) => turn.size(),
                Self::Event(event) => event.size(),
            }
    }
}

impl ExportedTurn {
    /// The title that it gives to its task: the explicit one, or else the input text if it is not
    /// empty.
    pub fn title(&self) -> Option<String> {
        #[derive(Deserialize)]
        struct Texts {
            title: Option<String>,
            text: Option<String>,
        }
        let texts = |json: &str| serde_json::from_str::<Texts>(json).ok();
        let title = texts(self.request_json()).and_then(|texts| texts.title);
        let text = || texts(self.input.get()).and_then(|texts| texts.text);
        title.or_else(|| text().filter(|text| !text.is_empty()))
    }

    /// The JSON of the options of the invocation.
    pub fn request_json(&self) -> &str {
        self.request.as_ref().map_or("{}", |raw| raw.get())
    }

    /// The JSON of the details that runners reported.
    pub fn reported_json(&self) -> &str {
        self.reported.as_ref().map_or("{}", |raw| raw.get())
    }

    /// Approximate size in bytes of its texts and JSON.
    pub fn size(&self) -> usize {
        let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        self.input.get().len()
            + self.request_json().len()
            + self.reported_json().len()
            + text(&self.result)
            + text(&self.last_executed_node_id)
    }
}

impl ExportedEvent {
    /// Approximate size in bytes of its texts and JSON.
    pub fn size(&self) -> usize {
        self.data.get().len() + self.r#type.as_str().len()
    }
}
