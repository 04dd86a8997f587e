//! A task, and how reports change it.

use chrono::{DateTime, Utc};

use super::{
    AgentId, OrganizationId, ShortText, Status, TaskId, Turn, TurnDetails, TurnState, UserId,
};

/// The fields that lists show and filter by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskSummary {
    /// The organization that owns the task.
    pub organization_id: OrganizationId,
    /// The task's id, which is also its conversation's id.
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
    /// The customer's own status of the latest turn. Lists filter by it and do not show it.
    pub internal_status: Option<ShortText>,
    /// How the latest turn was invoked: `api`, `sdk`, or the caller's own value.
    pub source: ShortText,
    /// The latest turn's title, or else its input text.
    pub title: Option<String>,
    /// The result of the latest turn, if there is one yet.
    pub result: Option<String>,
    /// When the first turn was recorded. Never changes.
    pub created_at: DateTime<Utc>,
    /// When anything was last recorded.
    pub updated_at: DateTime<Utc>,
}

/// A whole task: its summary, its latest turn and its sub-tasks.
#[derive(Debug, Clone, PartialEq)]
pub struct Task {
    /// The fields that lists show.
    pub summary: TaskSummary,
    /// The latest turn.
    pub turn: Turn,
    /// Its direct sub-tasks, oldest first: the first ten thousand.
    pub sub_executions: Vec<TaskId>,
    /// Its direct sub-tasks that have ended: the first ten thousand.
    pub finished_sub_executions: Vec<TaskId>,
    /// The number of the latest event.
    pub events: i64,
}

/// What a runner reports about a turn of a task. Fields that are `None` stay unchanged.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Report {
    /// The turn that it is about, from 1. `None` is the latest turn, whichever that is.
    pub turn: Option<i32>,
    /// The new status.
    pub status: Option<Status>,
    /// The customer's own status.
    pub internal_status: Option<ShortText>,
    /// The result.
    pub result: Option<String>,
    /// The agent's step that ran last.
    pub last_executed_node_id: Option<String>,
    /// How the turn was invoked.
    pub source: Option<ShortText>,
    /// A title for the turn.
    pub title: Option<String>,
    /// The caller's own data about the turn.
    pub payload_extension: Option<serde_json::Map<String, serde_json::Value>>,
    /// Token usage, duration, pending requests and so on.
    pub details: TurnDetails,
}

impl Report {
    /// Whether it contradicts what is final of its turn: the status and the result of a turn that
    /// has ended. Only a report that names its turn can. `keeps_result` tells whether its result is
    /// the turn's.
    pub fn contradicts(&self, state: &TurnState, keeps_result: bool) -> bool {
        let changes_status = self.status.is_some_and(|status| status != state.status);
        let changes_result = self.result.is_some() && !keeps_result;
        self.turn.is_some() && state.status.is_terminal() && (changes_status || changes_result)
    }
}

impl Task {
    /// The task with an earlier state of its latest turn.
    #[must_use]
    pub fn with_turn_state(mut self, state: TurnState) -> Self {
        self.turn.state = state;
        let updated_at = self.summary.updated_at;
        self.sync_summary(updated_at);
        self
    }

    /// Copies the latest turn's fields to the summary. `updated_at` never goes back.
    fn sync_summary(&mut self, now: DateTime<Utc>) {
        let state = &self.turn.state;
        self.summary.status = state.status;
        self.summary.internal_status.clone_from(&state.internal_status);
        self.summary.result.clone_from(&state.result);
        self.summary.title = self.turn.title().map(str::to_owned);
        self.summary.updated_at = self.summary.updated_at.max(now);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::{Map, Value};

    use super::*;
    use crate::domain::{Input, InvocationOptions};

    pub(crate) fn at(second: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_700_000_000 + second, 0).expect("a time")
    }

    pub(crate) fn short(text: &str) -> ShortText {
        ShortText::parse(text).expect("a short text")
    }

    #[expect(clippy::unnecessary_wraps, reason = "fields of reports are options")]
    fn object(name: &str) -> Option<Map<String, Value>> {
        Some(Map::from_iter([(name.to_owned(), Value::Null)]))
    }

    /// A task that was recorded at second 1, with a turn that is paused since second 5.
    pub(crate) fn task() -> Task {
        let input = Input {
            text: Some("input".to_owned()),
            files: None,
            user: None,
            attachments: Vec::new(),
            principal: None,
        };
        let details = TurnDetails {
            tokens: object("tokens"),
            duration: Some(1.0),
            used_tools: Some(vec!["search".to_owned()]),
            hitl_request: object("question"),
            pending_eca_request: object("connector"),
            deep_planning: object("plan"),
        };
        Task {
            summary: TaskSummary {
                organization_id: OrganizationId::generate(at(0)),
                id: TaskId::parse("task").expect("an id"),
                agent_id: AgentId::parse("agent").expect("an id"),
                user_id: Some(UserId::parse("user").expect("an id")),
                parent_task_id: Some(TaskId::parse("parent").expect("an id")),
                triggering_agent_id: Some(AgentId::parse("delegator").expect("an id")),
                status: Status::Paused,
                internal_status: Some(short("own")),
                source: short("api"),
                title: Some("title".to_owned()),
                result: Some("result".to_owned()),
                created_at: at(1),
                updated_at: at(5),
            },
            turn: Turn {
                number: 1,
                input,
                options: InvocationOptions {
                    title: Some("title".to_owned()),
                    payload_extension: object("payload"),
                    ..InvocationOptions::default()
                },
                state: TurnState {
                    status: Status::Paused,
                    internal_status: Some(short("own")),
                    result: Some("result".to_owned()),
                    last_executed_node_id: Some("node".to_owned()),
                    is_manually_stopped: false,
                    started_at: Some(at(2)),
                    paused_at: Some(at(5)),
                    finished_at: None,
                },
                details,
                created_at: at(1),
            },
            sub_executions: Vec::new(),
            finished_sub_executions: Vec::new(),
            events: 4,
        }
    }

    #[test]
    fn only_a_report_that_names_an_ended_turn_can_contradict_it() {
        let about = |turn, status, result: Option<&str>| Report {
            turn,
            status,
            result: result.map(str::to_owned),
            ..Report::default()
        };
        let ended = TurnState::ended(Status::Completed, Some("result".to_owned()), at(1));
        let runs = TurnState::pending();
        for (turn, state, status, keeps_result, expected) in [
            (Some(1), &ended, Some(Status::Failed), true, true),
            (Some(1), &ended, Some(Status::Executing), true, true),
            (Some(1), &ended, None, false, true),
            (Some(1), &ended, Some(Status::Completed), true, false),
            (Some(1), &ended, None, true, false),
            (Some(1), &runs, Some(Status::Failed), false, false),
            (None, &ended, Some(Status::Failed), false, false),
        ] {
            let report = about(turn, status, Some("said"));
            assert_eq!(report.contradicts(state, keeps_result), expected, "{turn:?} {status:?}");
        }
        assert!(!about(Some(1), None, None).contradicts(&ended, false), "it says no result");
    }
}
