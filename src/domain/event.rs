//! What happens to a task, for those who watch it.

use chrono::{DateTime, Utc};
use serde_json::Value;

use super::{Label, Progress};

/// Something that happened to a task.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Its number among all that happened to the task; numbers grow, and may leave gaps where nobody watched.
    pub number: i64,
    /// The turn that it happened to.
    pub turn: i32,
    /// What happened.
    pub kind: EventKind,
    /// When.
    pub created_at: DateTime<Utc>,
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum EventKind {
    /// A turn was recorded.
    Created,
    /// A report about a turn, which had then come this far.
    Reported(Progress),
    /// A runner pushed something: its type in the contract's words, and its data.
    Pushed(Label, Value),
}

/// Something that a runner pushes.
#[derive(Debug, Clone, PartialEq)]
pub struct NewEvent {
    /// What it is, in the contract's words: `chunk`, `tool_call_request`, `think`, …
    pub kind: Label,
    /// Its data.
    pub data: Value,
}

impl EventKind {
    /// The word for a recorded turn.
    pub const CREATED: &str = "task_created";
    /// The word for a report about a turn that goes on.
    pub const UPDATED: &str = "task_updated";
    /// The word for a report about a turn that has ended.
    pub const FINISHED: &str = "task_finished";

    /// The contract's word.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Created => Self::CREATED,
            Self::Reported(progress) if progress.status.is_terminal() => Self::FINISHED,
            Self::Reported(_) => Self::UPDATED,
            Self::Pushed(kind, _) => kind.as_str(),
        }
    }
}
