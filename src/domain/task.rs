//! A task, and what invocations and reports do to it.

use chrono::{DateTime, Utc};

use super::{
    AgentId, OrganizationId, ShortText, Status, TaskId, Turn, TurnDetails, TurnState, UserId,
};

/// What a list shows of a task, and what lists filter by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskSummary {
    /// The organization that owns the task.
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
    pub internal_status: Option<ShortText>,
    /// How the latest turn was invoked: `api`, `sdk`, or what its caller said.
    pub source: ShortText,
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

/// What a runner reports about the latest turn of a task. What is `None` stays as it is.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Report {
    /// The new status.
    pub status: Option<Status>,
    /// The customer's own status.
    pub internal_status: Option<ShortText>,
    /// The outcome.
    pub result: Option<String>,
    /// Which step of the agent ran last.
    pub last_executed_node_id: Option<String>,
    /// How the turn was invoked.
    pub source: Option<ShortText>,
    /// A title for the turn.
    pub title: Option<String>,
    /// The caller's own data about the turn.
    pub payload_extension: Option<serde_json::Map<String, serde_json::Value>>,
    /// Tokens, duration, what it waits for.
    pub details: TurnDetails,
}

impl Report {
    /// How many bytes its texts and its JSON have, about.
    pub fn size(&self) -> usize {
        let text = |text: Option<&str>| text.map_or(0, str::len);
        let json = |json: Option<&serde_json::Map<_, _>>| {
            json.map_or(0, |json| serde_json::to_string(json).map_or(0, |text| text.len()))
        };
        let TurnDetails {
            tokens,
            duration: _,
            used_tools,
            hitl_request,
            pending_eca_request,
            deep_planning,
        } = &self.details;
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
            details,
        } = report;
        let state = &mut self.turn.state;
        if let Some(status) = status {
            state.set_status(status, now);
        }
        if internal_status.is_some() {
            state.internal_status = internal_status;
        }
        if result.is_some() {
            state.result = result;
        }
        if last_executed_node_id.is_some() {
            state.last_executed_node_id = last_executed_node_id;
        }
        if payload_extension.is_some() {
            self.turn.options.payload_extension = payload_extension;
        }
        if title.is_some() {
            self.turn.options.title = title;
        }
        if let Some(source) = source {
            self.summary.source = source;
        }
        self.turn.details.update(details);
        // Only a paused turn keeps its pending requests.
        if state.status != Status::Paused {
            self.turn.details.hitl_request = None;
            self.turn.details.pending_eca_request = None;
        }
        self.sync_summary(now);
    }

    /// Stops the latest turn on a person's behalf. One that has ended stays as it ended; returns whether it had not.
    pub fn stop(&mut self, now: DateTime<Utc>) -> bool {
        if self.turn.state.status.is_terminal() {
            return false;
        }
        self.turn.state.set_status(Status::Stopped, now);
        self.turn.state.is_manually_stopped = true;
        self.sync_summary(now);
        true
    }

    /// The task as it was when its latest turn had come this far.
    #[must_use]
    pub fn with_turn_state(mut self, state: TurnState) -> Self {
        self.turn.state = state;
        let updated_at = self.summary.updated_at;
        self.sync_summary(updated_at);
        self
    }

    /// Shows the latest turn in the record.
    fn sync_summary(&mut self, now: DateTime<Utc>) {
        let state = &self.turn.state;
        self.summary.status = state.status;
        self.summary.internal_status.clone_from(&state.internal_status);
        self.summary.result.clone_from(&state.result);
        self.summary.title = self.turn.title().map(str::to_owned);
        self.summary.updated_at = self.summary.updated_at.max(now);
    }
}
