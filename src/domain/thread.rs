//! A conversation as messages.

use chrono::{DateTime, Utc};

use super::{Event, Input, TaskId};

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
    /// The turn's number.
    pub turn: i32,
    /// Its text.
    pub text: String,
    /// The rest of the turn's input, without its text, if the user is the author.
    pub input: Option<Input>,
    /// When it was recorded.
    pub created_at: DateTime<Utc>,
}

/// One entry of a thread.
#[derive(Debug, Clone, PartialEq)]
pub enum ThreadEntry {
    /// A message.
    Message(Box<Message>),
    /// An event that a runner pushed.
    Event(Event),
}

impl Message {
    /// The user's message of a turn.
    pub fn question(task: &TaskId, turn: i32, mut input: Input, created_at: DateTime<Utc>) -> Self {
        Self {
            id: format!("{task}_user_{turn}"),
            role: Role::User,
            turn,
            text: input.text.take().unwrap_or_default(),
            input: Some(input),
            created_at,
        }
    }

    /// The agent's message of a turn that has a result.
    pub fn answer(task: &TaskId, turn: i32, result: String, created_at: DateTime<Utc>) -> Self {
        Self {
            id: format!("{task}_agent_{turn}"),
            role: Role::Agent,
            turn,
            text: result,
            input: None,
            created_at,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::task::tests::{at, task};

    fn id() -> TaskId {
        TaskId::parse("task").expect("an id")
    }

    #[test]
    fn a_question_has_the_text_of_the_input_once() {
        let input = task().turn.input;
        let question = Message::question(&id(), 3, input.clone(), at(1));
        assert_eq!((question.id.as_str(), question.role), ("task_user_3", Role::User));
        assert_eq!((question.text.as_str(), question.created_at), ("input", at(1)));
        assert_eq!(question.input, Some(Input { text: None, ..input.clone() }));
        let silent = Message::question(&id(), 3, Input { text: None, ..input }, at(1));
        assert_eq!(silent.text, "");
    }

    #[test]
    fn an_answer_has_the_result() {
        let answer = Message::answer(&id(), 3, "result".to_owned(), at(2));
        assert_eq!((answer.id.as_str(), answer.role), ("task_agent_3", Role::Agent));
        assert_eq!((answer.text.as_str(), answer.created_at), ("result", at(2)));
        assert_eq!(answer.input, None);
    }
}
