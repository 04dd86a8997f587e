//! A turn of a conversation, and the state machine of its status.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::invocation::title;
use super::wire_enum::wire_enum;
use super::{Input, InvocationOptions, ShortText};

wire_enum! {
    /// Execution status. The seven words are the public contract's.
    #[derive(sqlx::Type)]
    #[sqlx(type_name = "task_status", rename_all = "snake_case")]
    Status {
        /// Waits for its agent.
        Pending = "pending",
        /// The agent works on it.
        Executing = "executing",
        /// The agent waits, for a person's answer for example.
        Paused = "paused",
        /// Ended by an error, whose text is the result.
        Error = "error",
        /// Ended without success.
        Failed = "failed",
        /// Ended with success.
        Completed = "completed",
        /// Ended because somebody, or the system, stopped it.
        Stopped = "stopped",
    }
}

impl Status {
    /// Whether a turn with this status has ended.
    pub const fn is_terminal(self) -> bool {
        match self {
            Self::Error | Self::Failed | Self::Completed | Self::Stopped => true,
            Self::Pending | Self::Executing | Self::Paused => false,
        }
    }
}

/// One turn as recorded.
#[derive(Debug, Clone, PartialEq)]
pub struct Turn {
    /// Its number in the conversation, from 1 without gaps.
    pub number: i32,
    /// What was asked.
    pub input: Input,
    /// How it was asked.
    pub options: InvocationOptions,
    /// How it went.
    pub state: TurnState,
    /// What else was reported about it.
    pub details: TurnDetails,
    /// When it was recorded.
    pub created_at: DateTime<Utc>,
}

impl Turn {
    /// What lists call this turn: its title, else its text; an empty text is none.
    pub fn title(&self) -> Option<&str> {
        title(&self.options, &self.input)
    }
}

/// How far a turn has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TurnState {
    /// Execution status.
    pub status: Status,
    /// The customer's own status.
    pub internal_status: Option<ShortText>,
    /// The outcome: text, or the error's text. Null until there is one.
    pub result: Option<String>,
    /// Which step of the agent ran last.
    pub last_executed_node_id: Option<String>,
    /// Whether a person stopped it, rather than the system.
    pub is_manually_stopped: bool,
    /// When it began to execute.
    pub started_at: Option<DateTime<Utc>>,
    /// When it was last paused.
    pub paused_at: Option<DateTime<Utc>>,
    /// When it ended; null while it runs.
    pub finished_at: Option<DateTime<Utc>>,
}

impl TurnState {
    /// A turn that has just been recorded.
    pub const fn pending() -> Self {
        Self {
            status: Status::Pending,
            internal_status: None,
            result: None,
            last_executed_node_id: None,
            is_manually_stopped: false,
            started_at: None,
            paused_at: None,
            finished_at: None,
        }
    }

    /// Moves to another status and keeps the times that belong to it. Any status may follow any other; the same
    /// status again changes nothing, so a report that is sent twice leaves the first one's times.
    pub fn set_status(&mut self, status: Status, now: DateTime<Utc>) {
        if status == self.status {
            return;
        }
        self.status = status;
        self.is_manually_stopped = false;
        match status {
            Status::Pending => {
                self.started_at = None;
                self.paused_at = None;
            }
            // Resuming keeps the first start, so that the turn's duration counts from there.
            Status::Executing => self.started_at = self.started_at.or(Some(now)),
            Status::Paused => self.paused_at = Some(now),
            Status::Error | Status::Failed | Status::Completed | Status::Stopped => {}
        }
        self.finished_at = status.is_terminal().then_some(now);
    }
}

/// What runners report about a turn beside how far it has come. Kept as it came.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TurnDetails {
    /// Language model tokens that were used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<Map<String, Value>>,
    /// How long it took, in seconds, by the runner's clock.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration: Option<f64>,
    /// Names of the tools that were used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub used_tools: Option<Vec<String>>,
    /// The question to a person that it waits for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hitl_request: Option<Map<String, Value>>,
    /// The connector whose authorization it waits for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pending_eca_request: Option<Map<String, Value>>,
    /// The agent's plan.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deep_planning: Option<Map<String, Value>>,
}

impl TurnDetails {
    /// Takes over what a later report says; what it leaves out stays.
    pub fn update(&mut self, later: Self) {
        let Self { tokens, duration, used_tools, hitl_request, pending_eca_request, deep_planning } =
            later;
        self.tokens = tokens.or(self.tokens.take());
        self.duration = duration.or(self.duration);
        self.used_tools = used_tools.or(self.used_tools.take());
        self.hitl_request = hitl_request.or(self.hitl_request.take());
        self.pending_eca_request = pending_eca_request.or(self.pending_eca_request.take());
        self.deep_planning = deep_planning.or(self.deep_planning.take());
    }
}
