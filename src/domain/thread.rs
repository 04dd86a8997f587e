//! A conversation as messages, and as everything that happened in it.

use chrono::{DateTime, Utc};

use super::{Input, TaskId};

/// Who says a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Who asks.
    User,
    /// The agent.
    Agent,
}

/// What one side says in one turn.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// `<task id>_user_<turn>` or `<task id>_agent_<turn>`.
    pub id: String,
    /// Who says it.
    pub role: Role,
    /// What is said.
    pub text: String,
    /// What was asked, where the user says it.
    pub input: Option<Input>,
    /// When it was recorded.
    pub created_at: DateTime<Utc>,
}

/// One turn, as far as a thread shows it.
#[derive(Debug, Clone, PartialEq)]
pub struct ThreadTurn {
    /// The task.
    pub task_id: TaskId,
    /// The turn's number.
    pub turn: i32,
    /// What was asked.
    pub input: Input,
    /// What came of it so far.
    pub result: Option<String>,
    /// When it was asked.
    pub created_at: DateTime<Utc>,
    /// When what came of it was recorded; the turn's latest time, where it has not ended.
    pub answered_at: DateTime<Utc>,
}

impl ThreadTurn {
    /// The turn's messages: the user's, and the agent's once there is one.
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
