//! A task with all that was recorded of it, as export writes it and import reads it.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::invocation::title;
use super::{AgentId, Input, InvocationOptions, ShortText, Status, TaskId, TurnDetails, UserId};

/// A task with its turns and what runners pushed. One is a line of JSON; what is absent there is null, or the default.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExportedTask {
    /// The task's id.
    pub id: TaskId,
    /// The agent that executes it.
    pub agent_id: AgentId,
    /// The user that it was made for.
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
    /// The title that lists show; absent, it is the latest turn's.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub title: Option<String>,
    /// When the first turn was recorded.
    pub created_at: DateTime<Utc>,
    /// When anything was last recorded.
    pub updated_at: DateTime<Utc>,
    /// Its turns, in order: at least one.
    pub turns: Vec<ExportedTurn>,
    /// What runners pushed, in order.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub events: Vec<ExportedEvent>,
}

/// A turn of a [`ExportedTask`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExportedTurn {
    /// What was asked.
    pub input: Input,
    /// How it was asked for.
    #[serde(skip_serializing_if = "is_default", default)]
    #[serde(rename = "request")]
    pub options: InvocationOptions,
    /// What runners reported beside how far it came.
    #[serde(skip_serializing_if = "is_default", default)]
    #[serde(rename = "reported")]
    pub details: TurnDetails,
    /// Its status.
    pub status: Status,
    /// The customer's own status.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub internal_status: Option<ShortText>,
    /// Its outcome.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub result: Option<String>,
    /// Which step of the agent ran last.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub last_executed_node_id: Option<String>,
    /// Whether a person stopped it.
    #[serde(skip_serializing_if = "is_default", default)]
    pub is_manually_stopped: bool,
    /// When it was recorded.
    pub created_at: DateTime<Utc>,
    /// When it began to execute.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub started_at: Option<DateTime<Utc>>,
    /// When it was last paused.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub paused_at: Option<DateTime<Utc>>,
    /// When it ended.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub finished_at: Option<DateTime<Utc>>,
}

/// An event of a [`ExportedTask`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExportedEvent {
    /// Its number among the task's events.
    pub event: i64,
    /// The number of the turn that it happened to.
    pub turn: i32,
    /// What it is, in the contract's words.
    pub r#type: String,
    /// Its data.
    pub data: Value,
    /// When it happened.
    pub created_at: DateTime<Utc>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl ExportedTask {
    /// Reads a line of JSON. The error is for whoever wrote it.
    pub fn parse(line: &str) -> Result<Self, String> {
        let record: Self = serde_json::from_str(line).map_err(|error| error.to_string())?;
        // A line's NUL can only be written as an escape, so most lines need no closer look.
        if line.contains("\\u0000") && has_nul(&serde_json::from_str(line).unwrap_or_default()) {
            return Err("a text contains NUL (U+0000), which can't be stored".to_owned());
        }
        if record.turns.is_empty() {
            return Err("a task has at least one turn".to_owned());
        }
        let mut last = 0;
        for event in &record.events {
            if event.event <= last {
                return Err("events are numbered from 1 and in order".to_owned());
            }
            last = event.event;
        }
        Ok(record)
    }

    /// Its latest turn.
    pub fn latest(&self) -> &ExportedTurn {
        self.turns.last().expect("a record has at least one turn")
    }

    /// The title that lists show.
    pub fn list_title(&self) -> Option<&str> {
        let latest = self.latest();
        self.title.as_deref().or_else(|| title(&latest.options, &latest.input))
    }

    /// How many things have happened to it, at least.
    pub fn events_so_far(&self) -> i64 {
        let turns = i64::try_from(self.turns.len()).unwrap_or(i64::MAX);
        self.events.last().map_or(turns, |event| event.event.max(turns))
    }
}

fn has_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(items) => items.iter().any(has_nul),
        Value::Object(fields) => {
            fields.iter().any(|(name, value)| name.contains('\0') || has_nul(value))
        }
        _ => false,
    }
}
