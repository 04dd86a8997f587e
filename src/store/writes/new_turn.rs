//! An invocation to record, and the task that it becomes.

use chrono::{DateTime, Utc};

use crate::domain::{
    AgentId, Invocation, OrganizationId, ShortText, Task, TaskId, TaskSummary, Turn, TurnDetails,
    TurnOutcome, TurnState, UserId,
};
use crate::store::sql::to_json;

/// An invocation to record.
#[derive(Debug)]
pub struct NewInvocation {
    /// The invocation.
    pub invocation: Invocation,
    /// Its outcome, if it ran elsewhere. Without one, the turn is pending.
    pub outcome: Option<TurnOutcome>,
    /// The key that makes it safe to send again.
    pub idempotency: Option<Idempotency>,
}

impl From<Invocation> for NewInvocation {
    fn from(invocation: Invocation) -> Self {
        Self { invocation, outcome: None, idempotency: None }
    }
}

/// The idempotency key of a request.
#[derive(Debug, Clone)]
pub struct Idempotency {
    /// The caller's key, unique for the agent.
    pub key: ShortText,
    /// A digest of the request, to tell a repetition from another request with the same key.
    pub digest: [u8; 32],
    /// The digest that the version before made of it. Keys that it recorded have that one.
    pub earlier_digest: Option<[u8; 32]>,
}

/// An invocation to record, with its JSON already serialized, outside the transaction.
pub(in crate::store) struct NewTurn {
    pub(super) invocation: Invocation,
    pub(super) input: String,
    pub(super) options: String,
    /// Its state: pending, or that of its outcome.
    pub(super) state: TurnState,
    details: TurnDetails,
    pub(super) details_json: String,
    pub(super) idempotency: Option<Idempotency>,
    pub(super) now: DateTime<Utc>,
}

impl NewTurn {
    pub(super) fn new(new: NewInvocation, now: DateTime<Utc>) -> Self {
        let NewInvocation { invocation, outcome, idempotency } = new;
        let (state, details) = match outcome {
            Some(TurnOutcome { status, result, details }) => {
                (TurnState::ended(status, result, now), details)
            }
            None => (TurnState::pending(), TurnDetails::default()),
        };
        Self {
            input: to_json(&invocation.input),
            options: to_json(&invocation.options),
            details_json: to_json(&details),
            invocation,
            state,
            details,
            idempotency,
            now,
        }
    }

    /// The approximate size in bytes.
    pub(super) fn size(&self) -> usize {
        let result = self.state.result.as_ref().map_or(0, String::len);
        self.input.len() + self.options.len() + self.details_json.len() + result
    }

    /// The task after this turn. The row has what the invocation does not say.
    pub(super) fn task(&self, organization_id: OrganizationId, row: UpsertedRow) -> Task {
        let invocation = &self.invocation;
        Task {
            summary: TaskSummary {
                organization_id,
                id: row.id,
                agent_id: invocation.agent_id.clone(),
                user_id: row.user_id,
                parent_task_id: row.parent_task_id,
                triggering_agent_id: row.triggering_agent_id,
                status: self.state.status,
                internal_status: None,
                source: invocation.source.clone(),
                title: invocation.title().map(str::to_owned),
                result: self.state.result.clone(),
                created_at: row.created_at,
                updated_at: row.updated_at,
            },
            turn: Turn {
                number: row.turns,
                input: invocation.input.clone(),
                options: invocation.options.clone(),
                state: self.state.clone(),
                details: self.details.clone(),
                created_at: self.now,
            },
            sub_executions: row.sub_executions,
            finished_sub_executions: row.finished_sub_executions,
            events: row.events,
        }
    }
}

/// What the upsert returns of a task.
#[derive(Clone)]
pub(super) struct UpsertedRow {
    pub(super) id: TaskId,
    pub(super) user_id: Option<UserId>,
    pub(super) parent_task_id: Option<TaskId>,
    pub(super) triggering_agent_id: Option<AgentId>,
    pub(super) turns: i32,
    pub(super) events: i64,
    pub(super) created_at: DateTime<Utc>,
    pub(super) updated_at: DateTime<Utc>,
    pub(super) sub_executions: Vec<TaskId>,
    pub(super) finished_sub_executions: Vec<TaskId>,
}
