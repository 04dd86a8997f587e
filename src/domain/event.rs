//! Events of a task, for clients that follow it.

use chrono::{DateTime, Utc};
use serde_json::Value;

use super::{ShortText, TurnState};

/// Something that happened to a task.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// The event's number within its task. Numbers grow. Reports without
    /// watchers take a number but store no event, so there are gaps.
    pub number: i64,
    /// The number of the turn that it belongs to.
    pub turn: i32,
    /// What happened.
    pub kind: EventKind,
    /// When it happened.
    pub created_at: DateTime<Utc>,
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum EventKind {
    /// A turn was recorded.
    Created,
    /// A runner reported the turn, which then was in this state.
    Reported(TurnState),
    /// A runner pushed an event: the contract's type name, and the data.
    Pushed(ShortText, Value),
}

/// An event that a runner pushes.
#[derive(Debug, Clone, PartialEq)]
pub struct NewEvent {
    /// The turn that it belongs to, from 1. `None` is the latest turn.
    pub turn: Option<i32>,
    /// The contract's type name: `chunk`, `tool_call_request`, `think` and others.
    pub kind: ShortText,
    /// The event's data.
    pub data: Value,
}

/// Why stored columns are not an event.
#[derive(Debug, thiserror::Error)]
pub enum EventParseError {
    /// The data is not the JSON that this kind has.
    #[error(transparent)]
    Data(#[from] serde_json::Error),
    /// The type name is not a [`ShortText`].
    #[error("the type {0}")]
    Kind(#[from] super::TextError),
}

impl EventKind {
    /// The type of a recorded turn.
    pub const CREATED: &str = "task_created";
    /// The type of a report about a turn that continues.
    pub const UPDATED: &str = "task_updated";
    /// The type of a report about a turn that has ended.
    pub const FINISHED: &str = "task_finished";

    /// The types that the service itself produces. Runners push every other type.
    pub const STATE_TYPES: [&str; 3] = [Self::CREATED, Self::UPDATED, Self::FINISHED];

    /// The contract's type name.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Created => Self::CREATED,
            Self::Reported(state) if state.status.is_terminal() => Self::FINISHED,
            Self::Reported(_) => Self::UPDATED,
            Self::Pushed(kind, _) => kind.as_str(),
        }
    }

    /// Whether only the service itself produces events of this type.
    pub fn is_state_type(name: &str) -> bool {
        Self::STATE_TYPES.contains(&name)
    }

    /// Reads a type name and its stored JSON: that of [`NewEvent`], or the fields of [`TurnState`],
    /// which the statements write.
    pub fn parse(name: String, data: &str) -> Result<Self, EventParseError> {
        if name == Self::CREATED {
            Ok(Self::Created)
        } else if Self::is_state_type(&name) {
            Ok(Self::Reported(serde_json::from_str(data)?))
        } else {
            Ok(Self::Pushed(ShortText::parse(name)?, serde_json::from_str(data)?))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Status, WireEnum};

    #[test]
    fn every_kind_is_read_back_as_it_was_stored() {
        let states = Status::ALL.iter().map(|status| {
            EventKind::Reported(TurnState { status: *status, ..TurnState::pending() })
        });
        let pushed = EventKind::Pushed(
            ShortText::parse("chunk").expect("a short text"),
            serde_json::json!({ "text": "語" }),
        );
        for kind in states.chain([EventKind::Created, pushed]) {
            let data = match &kind {
                EventKind::Created => "{}".to_owned(),
                EventKind::Reported(state) => serde_json::to_string(state).expect("JSON"),
                EventKind::Pushed(_, data) => data.to_string(),
            };
            let read = EventKind::parse(kind.as_str().to_owned(), &data);
            assert_eq!(read.expect("what was stored"), kind);
        }
        assert!(EventKind::parse("task_updated".into(), "[]").is_err());
        assert!(EventKind::parse("a\0".into(), "{}").is_err());
    }
}
