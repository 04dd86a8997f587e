//! A task, and what invocations and reports do to it.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::word::word_enum;
use super::{AgentId, Label, OrganizationId, Reported, TaskId, Turn, UserId};

word_enum! {
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

/// What a list shows of a task, and what lists filter by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskSummary {
    /// The organisation that owns the task.
    pub organization_id: OrganizationId,
    /// The task's id, which is its conversation's.
    pub id: TaskId,
    /// The agent that executes it.
    pub agent_id: AgentId,
    /// The user of the first turn that named one.
    pub user_id: Option<UserId>,
    /// The task that this is a sub-task of.
    pub parent_task_id: Option<TaskId>,
    /// The agent that delegated it.
    pub triggering_agent_id: Option<AgentId>,
    /// Status of the latest turn.
    pub status: Status,
    /// The customer's own status of the latest turn. Lists filter by it and don't show it.
    pub internal_status: Option<Label>,
    /// How the latest turn was invoked: `api`, `sdk`, or what its caller said.
    pub source: Label,
    /// The latest turn's title, else its input text.
    pub title: Option<String>,
    /// The latest turn's outcome so far.
    pub result: Option<String>,
    /// When the first turn was recorded. Never changes.
    pub created_at: DateTime<Utc>,
    /// When anything was last recorded.
    pub updated_at: DateTime<Utc>,
}

/// A whole task: the record with its latest turn and its sub-tasks.
#[derive(Debug, Clone, PartialEq)]
pub struct Task {
    /// What a list shows of it.
    pub summary: TaskSummary,
    /// The latest turn.
    pub turn: Turn,
    /// Its direct sub-tasks, oldest first.
    pub sub_executions: Vec<TaskId>,
    /// Those of them that have ended.
    pub finished_sub_executions: Vec<TaskId>,
    /// How many things have happened to it: the number of the latest event.
    pub events: i64,
}

/// How far a turn has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Execution status.
    pub status: Status,
    /// The customer's own status.
    pub internal_status: Option<Label>,
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

/// What a runner reports about the latest turn of a task. What is `None` stays as it is.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Report {
    /// The new status.
    pub status: Option<Status>,
    /// The customer's own status.
    pub internal_status: Option<Label>,
    /// The outcome.
    pub result: Option<String>,
    /// Which step of the agent ran last.
    pub last_executed_node_id: Option<String>,
    /// How the turn was invoked.
    pub source: Option<Label>,
    /// A title for the turn.
    pub title: Option<String>,
    /// The caller's own data about the turn.
    pub payload_extension: Option<serde_json::Map<String, serde_json::Value>>,
    /// Tokens, duration, what it waits for.
    pub reported: Reported,
}

impl Report {
    /// How many bytes its texts and its JSON have, about.
    pub fn size(&self) -> usize {
        let text = |text: Option<&str>| text.map_or(0, str::len);
        let json = |json: Option<&serde_json::Map<_, _>>| {
            json.map_or(0, |json| serde_json::to_string(json).map_or(0, |text| text.len()))
        };
        let Reported { tokens, duration: _, used_tools, hitl_request, pending_eca_request, deep_planning } =
            &self.reported;
        text(self.result.as_deref())
            + text(self.title.as_deref())
            + text(self.last_executed_node_id.as_deref())
            + used_tools.iter().flatten().map(String::len).sum::<usize>()
            + [&self.payload_extension, tokens, hitl_request, pending_eca_request, deep_planning]
                .into_iter()
                .map(|object| json(object.as_ref()))
                .sum::<usize>()
    }
}

impl Progress {
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

impl Task {
    /// Applies a runner's report to the latest turn and to the record.
    pub fn apply(&mut self, report: Report, now: DateTime<Utc>) {
        let Report {
            status,
            internal_status,
            result,
            last_executed_node_id,
            source,
            title,
            payload_extension,
            reported,
        } = report;
        let progress = &mut self.turn.progress;
        if let Some(status) = status {
            progress.set_status(status, now);
        }
        if internal_status.is_some() {
            progress.internal_status = internal_status;
        }
        if result.is_some() {
            progress.result = result;
        }
        if last_executed_node_id.is_some() {
            progress.last_executed_node_id = last_executed_node_id;
        }
        if payload_extension.is_some() {
            self.turn.request.payload_extension = payload_extension;
        }
        if title.is_some() {
            self.turn.request.title = title;
        }
        if let Some(source) = source {
            self.summary.source = source;
        }
        self.turn.reported.update(reported);
        // Who no longer waits, waits for nothing.
        if progress.status != Status::Paused {
            self.turn.reported.hitl_request = None;
            self.turn.reported.pending_eca_request = None;
        }
        self.reflect(now);
    }

    /// Stops the latest turn on a person's behalf. One that has ended stays as it ended; returns whether it had not.
    pub fn stop(&mut self, now: DateTime<Utc>) -> bool {
        if self.turn.progress.status.is_terminal() {
            return false;
        }
        self.turn.progress.set_status(Status::Stopped, now);
        self.turn.progress.is_manually_stopped = true;
        self.reflect(now);
        true
    }

    /// The task as it was when its latest turn had come this far.
    #[must_use]
    pub fn at(mut self, progress: Progress) -> Self {
        self.turn.progress = progress;
        let updated_at = self.summary.updated_at;
        self.reflect(updated_at);
        self
    }

    /// Shows the latest turn in the record.
    fn reflect(&mut self, now: DateTime<Utc>) {
        let progress = &self.turn.progress;
        self.summary.status = progress.status;
        self.summary.internal_status.clone_from(&progress.internal_status);
        self.summary.result.clone_from(&progress.result);
        self.summary.title = self.turn.title().map(str::to_owned);
        self.summary.updated_at = self.summary.updated_at.max(now);
    }
}
