//! A conversation as messages.

use chrono::{DateTime, Utc};

use super::{Input, TaskId};

/// The author of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The caller.
    User,
    /// The agent.
    Agent,
}

/// One message of a turn.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// `<task id>_user_<turn>` or `<task id>_agent_<turn>`.
    pub id: String,
    /// Its author.
    pub role: Role,
    /// Its text.
    pub text: String,
    /// The turn's input, if the user is the author.
    pub input: Option<Input>,
    /// When it was recorded.
    pub created_at: DateTime<Utc>,
}

/// The part of a turn that a thread shows.
#[derive(Debug, Clone, PartialEq)]
pub struct ThreadTurn {
    /// The task.
    pub task_id: TaskId,
    /// The turn's number.
    pub turn: i32,
    /// The input.
    pub input: Input,
    /// The result, if there is one yet.
    pub result: Option<String>,
    /// When the turn was recorded.
    pub created_at: DateTime<Utc>,
    /// When the turn ended. If it has not ended: the latest of its other times.
    pub answered_at: DateTime<Utc>,
}

impl ThreadTurn {
    /// The user's message, and the agent's message if there is a result.
    pub fn messages(self) -> impl Iterator<Item = Message> {
        let Self { task_id, turn, input, result, created_at, answered_at } = self;
        let user = Message {
            id: format!("{task_id}_user_{turn}"),
            role: Role::User,
            text: input.text.clone().unwrap_or_default(),
            input: Some(input),
            created_at,
        };
        let agent = result.map(|text| Message {
            id: format!("{task_id}_agent_{turn}"),
            role: Role::Agent,
            text,
            input: None,
            created_at: answered_at,
        });
        std::iter::once(user).chain(agent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::task::tests::{at, task};

    fn turn(text: Option<&str>, result: Option<&str>) -> ThreadTurn {
        let mut input = task().turn.input;
        input.text = text.map(str::to_owned);
        ThreadTurn {
            task_id: TaskId::parse("task").expect("an id"),
            turn: 3,
            input,
            result: result.map(str::to_owned),
            created_at: at(1),
            answered_at: at(2),
        }
    }

    #[test]
    fn a_turn_is_a_message_of_the_user_and_one_of_the_agent() {
        let turn = turn(Some("input"), Some("result"));
        let input = turn.input.clone();
        let messages: Vec<_> = turn.messages().collect();
        let user = Message {
            id: "task_user_3".to_owned(),
            role: Role::User,
            text: "input".to_owned(),
            input: Some(input),
            created_at: at(1),
        };
        let agent = Message {
            id: "task_agent_3".to_owned(),
            role: Role::Agent,
            text: "result".to_owned(),
            input: None,
            created_at: at(2),
        };
        assert_eq!(messages, [user, agent]);
    }

    #[test]
    fn the_agent_has_no_message_before_its_result() {
        let messages: Vec<_> = turn(None, None).messages().collect();
        let [message] = messages.as_slice() else { panic!("{messages:?}") };
        assert_eq!((message.role, message.text.as_str()), (Role::User, ""));
        assert_eq!(turn(None, Some("")).messages().count(), 2, "an empty result is a result");
    }
}
