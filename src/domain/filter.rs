//! Which tasks a list shows.

use chrono::{DateTime, Utc};

use super::{AgentId, Label, Status, TaskId, TaskSummary, UserId};

/// Which tasks a list shows: those that agree with every field that is set. The default shows all.
///
/// A text that can't be stored (it has a NUL, say) can't be in a filter either; whoever parses one knows without
/// asking the database that nothing matches.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TaskFilter {
    /// The agent that executes the task.
    pub agent_id: Option<AgentId>,
    /// The user that the task was made for.
    pub user_id: Option<UserId>,
    /// The task that this one is a sub-task of.
    pub parent_task_id: Option<TaskId>,
    /// The agent that delegated the task.
    pub triggering_agent_id: Option<AgentId>,
    /// The execution statuses, any of them; none stands for all.
    pub statuses: Vec<Status>,
    /// The customer's own status, compared exactly.
    pub internal_status: Option<Label>,
    /// The earliest `created_at`.
    pub created_from: Option<DateTime<Utc>>,
    /// The latest `created_at`, included.
    pub created_to: Option<DateTime<Utc>>,
}

impl TaskFilter {
    /// The rule, without a database: the statements of the store are tested against it.
    pub fn matches(&self, task: &TaskSummary) -> bool {
        fn agrees<T: PartialEq>(wanted: Option<&T>, actual: Option<&T>) -> bool {
            wanted.is_none() || wanted == actual
        }

        let Self {
            agent_id,
            user_id,
            parent_task_id,
            triggering_agent_id,
            statuses,
            internal_status,
            created_from,
            created_to,
        } = self;
        agrees(agent_id.as_ref(), Some(&task.agent_id))
            && agrees(user_id.as_ref(), task.user_id.as_ref())
            && agrees(parent_task_id.as_ref(), task.parent_task_id.as_ref())
            && agrees(triggering_agent_id.as_ref(), task.triggering_agent_id.as_ref())
            && (statuses.is_empty() || statuses.contains(&task.status))
            && agrees(internal_status.as_ref(), task.internal_status.as_ref())
            && created_from.is_none_or(|from| from <= task.created_at)
            && created_to.is_none_or(|to| task.created_at <= to)
    }
}
