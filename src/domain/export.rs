//! A task with everything that was recorded about it: the format of export and import.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::ids::has_nul;
use super::invocation::title;
use super::{AgentId, Input, InvocationOptions, ShortText, Status, TaskId, TurnDetails, UserId};

/// A task with its turns and pushed events, written as one line of JSON. A field that is absent
/// there is null or has its default.
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
    pub created_at: DateTime<Utc>,
    /// When anything was last recorded.
    pub updated_at: DateTime<Utc>,
    /// Its turns, in order: at least one.
    pub turns: Vec<ExportedTurn>,
    /// Events that runners pushed, in order.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub events: Vec<ExportedEvent>,
}

/// A turn of a [`ExportedTask`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ExportedTurn {
    /// The input.
    pub input: Input,
    /// The options of the invocation.
    #[serde(skip_serializing_if = "is_default", default)]
    #[serde(rename = "request")]
    pub options: InvocationOptions,
    /// Details that runners reported.
    #[serde(skip_serializing_if = "is_default", default)]
    #[serde(rename = "reported")]
    pub details: TurnDetails,
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
    /// Its type, as the contract names it.
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
    /// Reads a line of JSON. The error text is for the author of the file.
    pub fn parse(line: &str) -> Result<Self, String> {
        let record: Self = serde_json::from_str(line).map_err(|error| error.to_string())?;
        // A line's NUL can only be written as an escape, so most lines need no closer look.
        if line.contains("\\u0000") && has_nul(&serde_json::from_str(line).unwrap_or_default()) {
            return Err("a text contains NUL (U+0000), which cannot be stored".to_owned());
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

    /// The number of the latest event, which is at least the number of turns.
    pub fn events_so_far(&self) -> i64 {
        let turns = i64::try_from(self.turns.len()).unwrap_or(i64::MAX);
        self.events.last().map_or(turns, |event| event.event.max(turns))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn line() -> Value {
        let time = "2026-03-23T00:45:22Z";
        let event = |number: i64| {
            json!({
                "event": number, "turn": 1, "type": "chunk", "data": {}, "created_at": time,
            })
        };
        json!({
            "id": "task",
            "agent_id": "agent",
            "source": "api",
            "created_at": time,
            "updated_at": time,
            "turns": [{
                "input": { "text": "input", "files": null, "user": null },
                "status": "completed",
                "created_at": time,
            }],
            "events": [event(2), event(5)],
        })
    }

    fn error_of(change: impl FnOnce(&mut Value)) -> String {
        let mut line = line();
        change(&mut line);
        ExportedTask::parse(&line.to_string()).expect_err("an invalid line")
    }

    #[test]
    fn a_line_is_read_with_its_defaults() {
        let task = ExportedTask::parse(&line().to_string()).expect("a valid line");
        assert_eq!(task.latest().options, InvocationOptions::default());
        assert_eq!(task.latest().details, TurnDetails::default());
        assert_eq!(task.list_title(), Some("input"));
        assert_eq!(task.events_so_far(), 5);
        let again = serde_json::to_string(&task).expect("JSON");
        assert_eq!(ExportedTask::parse(&again), Ok(task));
    }

    #[test]
    fn a_line_that_cannot_be_stored_is_an_error_that_says_why() {
        let contains = |error: String, part: &str| assert!(error.contains(part), "{error}");
        contains(ExportedTask::parse("{").expect_err("no JSON"), "EOF");
        contains(error_of(|line| line["color"] = json!("red")), "unknown field `color`");
        contains(error_of(|line| line["id"] = json!("")), "must not be empty");
        contains(error_of(|line| line["turns"] = json!([])), "at least one turn");
        contains(error_of(|line| line["turns"][0]["status"] = json!("done")), "unknown variant");
        for nul in [json!("a\0"), json!(["\0"]), json!({ "\0": 1 }), json!({ "a": [["\0"]] })] {
            contains(error_of(|line| line["events"][0]["data"] = nul), "NUL");
        }
        // A backslash before `u0000` is no escape.
        let mut valid = line();
        valid["events"][0]["data"] = json!("\\u0000");
        assert!(ExportedTask::parse(&valid.to_string()).is_ok());
    }

    #[test]
    fn events_are_numbered_from_one_and_in_order() {
        for (first, second) in [(0, 1), (-1, 2), (2, 2), (3, 2)] {
            let error = error_of(|line| {
                line["events"][0]["event"] = json!(first);
                line["events"][1]["event"] = json!(second);
            });
            assert!(error.contains("in order"), "{first}, {second}: {error}");
        }
        let mut line = line();
        line["events"] = json!([]);
        let task = ExportedTask::parse(&line.to_string()).expect("a valid line");
        assert_eq!(task.events_so_far(), 1, "a turn is an event");
    }
}
