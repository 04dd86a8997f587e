//! A turn of a conversation, and the state machine of its status.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::invocation::title;
use super::wire_enum::wire_enum;
use super::{Input, InvocationOptions, ShortText};

wire_enum! {
    /// Execution status. The seven values are those of the public contract.
    #[derive(sqlx::Type)]
    #[sqlx(type_name = "task_status", rename_all = "snake_case")]
    Status {
        /// Waits for its agent.
        Pending = "pending",
        /// The agent works on it.
        Executing = "executing",
        /// The agent waits, for example for a person's answer.
        Paused = "paused",
        /// Ended by an error, whose text is the result.
        Error = "error",
        /// Ended without success.
        Failed = "failed",
        /// Ended with success.
        Completed = "completed",
        /// Stopped by a person or by the system.
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
    /// The input.
    pub input: Input,
    /// The options of the invocation.
    pub options: InvocationOptions,
    /// The mutable state.
    pub state: TurnState,
    /// Details that runners reported.
    pub details: TurnDetails,
    /// When it was recorded.
    pub created_at: DateTime<Utc>,
}

impl Turn {
    /// The title in lists: the explicit title, or else the input text if it is not empty.
    pub fn title(&self) -> Option<&str> {
        title(&self.options, &self.input)
    }
}

/// The mutable state of a turn: status, result and times.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TurnState {
    /// Execution status.
    pub status: Status,
    /// The customer's own status.
    pub internal_status: Option<ShortText>,
    /// The result: a text or the error's text. Null until one is reported.
    pub result: Option<String>,
    /// The agent's step that ran last.
    pub last_executed_node_id: Option<String>,
    /// Whether a person stopped it, not the system.
    pub is_manually_stopped: bool,
    /// When it began to execute.
    pub started_at: Option<DateTime<Utc>>,
    /// When it was last paused.
    pub paused_at: Option<DateTime<Utc>>,
    /// When it ended. Null while it runs.
    pub finished_at: Option<DateTime<Utc>>,
}

impl TurnState {
    /// The state of a new turn.
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

    /// The state of a new turn that has already ended.
    pub fn ended(status: Status, result: Option<String>, now: DateTime<Utc>) -> Self {
        let mut state = Self { result, ..Self::pending() };
        state.set_status(status, now);
        state
    }

    /// Stops the turn on a person's behalf. Returns false, and changes nothing, if it has ended.
    pub fn stop(&mut self, now: DateTime<Utc>) -> bool {
        if self.status.is_terminal() {
            return false;
        }
        self.set_status(Status::Stopped, now);
        self.is_manually_stopped = true;
        true
    }

    /// Changes the status and its times. Any status may follow any other.
    ///
    /// The same status again changes nothing, so a repeated report keeps the first report's times.
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

/// What runners report about a turn in addition to its state. Kept as received.
///
/// The statement that merges a report into the stored JSON knows the names of the two requests.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TurnDetails {
    /// Token usage of the language model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<Map<String, Value>>,
    /// The duration in seconds, measured by the runner.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration: Option<f64>,
    /// Names of the tools that were used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub used_tools: Option<Vec<String>>,
    /// The question to a person. The turn waits for the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hitl_request: Option<Map<String, Value>>,
    /// The connector that the turn waits for a person to authorize.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pending_eca_request: Option<Map<String, Value>>,
    /// The agent's plan.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deep_planning: Option<Map<String, Value>>,
}

/// The outcome of a turn that ran elsewhere and is recorded when it has ended.
#[derive(Debug, Clone, PartialEq)]
pub struct TurnOutcome {
    /// How it ended.
    pub status: Status,
    /// Its result, or the error's text.
    pub result: Option<String>,
    /// Token usage, duration and so on.
    pub details: TurnDetails,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::WireEnum;

    fn at(second: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_700_000_000 + second, 0).expect("a time")
    }

    /// The times after a change at second 9: started, paused and finished, as seconds.
    type Times = (Option<i64>, Option<i64>, Option<i64>);

    /// Changes to `to` a turn that started at second 1, was paused at 2 and ended at 3.
    fn change(from: Status, to: Status) -> TurnState {
        let mut state = TurnState {
            status: from,
            is_manually_stopped: true,
            result: Some("kept".to_owned()),
            started_at: Some(at(1)),
            paused_at: Some(at(2)),
            finished_at: Some(at(3)),
            ..TurnState::pending()
        };
        state.set_status(to, at(9));
        state
    }

    #[test]
    fn each_status_has_its_times_after_any_other() {
        let expected: [(Status, Times); 7] = [
            (Status::Pending, (None, None, None)),
            (Status::Executing, (Some(1), Some(2), None)),
            (Status::Paused, (Some(1), Some(9), None)),
            (Status::Error, (Some(1), Some(2), Some(9))),
            (Status::Failed, (Some(1), Some(2), Some(9))),
            (Status::Completed, (Some(1), Some(2), Some(9))),
            (Status::Stopped, (Some(1), Some(2), Some(9))),
        ];
        let mut pairs = 0;
        for from in Status::ALL {
            for (to, times) in expected {
                pairs += 1;
                let state = change(*from, to);
                // The same status again changes nothing.
                let unchanged = *from == to;
                let (started, paused, finished) =
                    if unchanged { (Some(1), Some(2), Some(3)) } else { times };
                let wanted = TurnState {
                    status: to,
                    is_manually_stopped: unchanged,
                    result: Some("kept".to_owned()),
                    started_at: started.map(at),
                    paused_at: paused.map(at),
                    finished_at: finished.map(at),
                    ..TurnState::pending()
                };
                assert_eq!(state, wanted, "{from:?} to {to:?}");
            }
        }
        assert_eq!(pairs, 49);
    }

    #[test]
    fn a_turn_starts_with_its_first_execution() {
        for (status, started) in [
            (Status::Executing, Some(at(9))),
            (Status::Paused, None),
            (Status::Completed, None),
            (Status::Stopped, None),
        ] {
            let mut state = TurnState::pending();
            state.set_status(status, at(9));
            assert_eq!(state.started_at, started, "{status:?}");
        }
    }

    #[test]
    fn a_second_stop_changes_nothing() {
        let mut state = TurnState::pending();
        assert!(state.stop(at(6)));
        assert_eq!((state.status, state.finished_at), (Status::Stopped, Some(at(6))));
        assert!(state.is_manually_stopped);
        let stopped = state.clone();
        assert!(!state.stop(at(7)));
        assert_eq!(state, stopped);
    }

    #[test]
    fn a_stop_leaves_a_turn_that_has_ended() {
        for status in [Status::Error, Status::Failed, Status::Completed] {
            let mut state = TurnState::ended(status, Some("result".to_owned()), at(6));
            assert_eq!((state.status, state.finished_at), (status, Some(at(6))));
            let ended = state.clone();
            assert!(!state.stop(at(7)), "{status:?}");
            assert_eq!(state, ended);
        }
    }
}
