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
    /// Its direct sub-tasks, oldest first.
    pub sub_executions: Vec<TaskId>,
    /// Its direct sub-tasks that have ended.
    pub finished_sub_executions: Vec<TaskId>,
    /// The number of the latest event.
    pub events: i64,
}

/// What a runner reports about the latest turn of a task. Fields that are `None` stay unchanged.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Report {
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
    /// Approximate size in bytes of its texts and JSON.
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
    /// Applies a runner's report to the latest turn and to the summary.
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

    /// Stops the latest turn on a person's behalf. Returns false, and changes nothing, if the turn
    /// has already ended.
    pub fn stop(&mut self, now: DateTime<Utc>) -> bool {
        if self.turn.state.status.is_terminal() {
            return false;
        }
        self.turn.state.set_status(Status::Stopped, now);
        self.turn.state.is_manually_stopped = true;
        self.sync_summary(now);
        true
    }

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
    fn an_empty_report_changes_only_the_time() {
        let before = task();
        let mut after = before.clone();
        after.apply(Report::default(), at(9));
        assert_eq!(after.summary.updated_at, at(9));
        after.summary.updated_at = at(5);
        assert_eq!(after, before);
    }

    #[test]
    fn a_report_sets_every_field_that_it_has() {
        let mut after = task();
        let report = Report {
            status: Some(Status::Completed),
            internal_status: Some(short("own 2")),
            result: Some("result 2".to_owned()),
            last_executed_node_id: Some("node 2".to_owned()),
            source: Some(short("sdk")),
            title: Some("title 2".to_owned()),
            payload_extension: object("payload 2"),
            details: TurnDetails { tokens: object("tokens 2"), ..TurnDetails::default() },
        };
        after.apply(report, at(9));
        let mut wanted = task();
        wanted.summary.organization_id = after.summary.organization_id;
        wanted.summary.status = Status::Completed;
        wanted.summary.internal_status = Some(short("own 2"));
        wanted.summary.result = Some("result 2".to_owned());
        wanted.summary.source = short("sdk");
        wanted.summary.title = Some("title 2".to_owned());
        wanted.summary.updated_at = at(9);
        wanted.turn.state.status = Status::Completed;
        wanted.turn.state.internal_status = Some(short("own 2"));
        wanted.turn.state.result = Some("result 2".to_owned());
        wanted.turn.state.last_executed_node_id = Some("node 2".to_owned());
        wanted.turn.state.finished_at = Some(at(9));
        wanted.turn.options.title = Some("title 2".to_owned());
        wanted.turn.options.payload_extension = object("payload 2");
        wanted.turn.details.tokens = object("tokens 2");
        wanted.turn.details.hitl_request = None;
        wanted.turn.details.pending_eca_request = None;
        assert_eq!(after, wanted);
    }

    #[test]
    fn only_a_paused_turn_keeps_its_pending_requests() {
        for status in [Status::Pending, Status::Executing, Status::Failed, Status::Paused] {
            let mut task = task();
            let details = TurnDetails { hitl_request: object("late"), ..TurnDetails::default() };
            let report = Report { status: Some(status), details, ..Report::default() };
            task.apply(report, at(9));
            let is_paused = status == Status::Paused;
            assert_eq!(task.turn.details.hitl_request.is_some(), is_paused, "{status:?}");
            assert_eq!(task.turn.details.pending_eca_request.is_some(), is_paused, "{status:?}");
            assert!(task.turn.details.deep_planning.is_some(), "{status:?}");
        }
    }

    #[test]
    fn the_update_time_never_goes_back() {
        let mut task = task();
        task.apply(Report { status: Some(Status::Executing), ..Report::default() }, at(3));
        assert_eq!(task.summary.updated_at, at(5));
        assert!(task.stop(at(4)));
        assert_eq!(task.summary.updated_at, at(5));
    }

    #[test]
    fn a_second_stop_changes_nothing() {
        let mut task = task();
        assert!(task.stop(at(6)));
        assert_eq!(task.summary.status, Status::Stopped);
        assert_eq!(task.summary.updated_at, at(6));
        assert_eq!(task.turn.state.finished_at, Some(at(6)));
        assert!(task.turn.state.is_manually_stopped);
        let stopped = task.clone();
        assert!(!task.stop(at(7)));
        assert_eq!(task, stopped);
    }

    #[test]
    fn a_stop_leaves_a_turn_that_has_ended() {
        for status in [Status::Error, Status::Failed, Status::Completed] {
            let mut task = task();
            task.apply(Report { status: Some(status), ..Report::default() }, at(6));
            let ended = task.clone();
            assert!(!task.stop(at(7)), "{status:?}");
            assert_eq!(task, ended);
        }
    }
}
