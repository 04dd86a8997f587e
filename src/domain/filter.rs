//! The filter of a task list.

use chrono::{DateTime, Utc};

use super::{AgentId, ShortText, Status, TaskId, TaskSummary, UserId};

/// Selects the tasks that match every field that is set. The default selects all tasks.
///
/// A text that cannot be stored, for example one with a NUL, cannot be in a filter either. The code
/// that parses a filter therefore knows, without asking the database, that nothing matches.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TaskFilter {
    /// The agent that executes the task.
    pub agent_id: Option<AgentId>,
    /// The user that the task was created for.
    pub user_id: Option<UserId>,
    /// The parent task.
    pub parent_task_id: Option<TaskId>,
    /// The agent that delegated the task.
    pub triggering_agent_id: Option<AgentId>,
    /// Any of these execution statuses. An empty list means all statuses.
    pub statuses: Vec<Status>,
    /// The customer's own status, compared exactly.
    pub internal_status: Option<ShortText>,
    /// The earliest `created_at`, inclusive.
    pub created_from: Option<DateTime<Utc>>,
    /// The latest `created_at`, inclusive.
    pub created_to: Option<DateTime<Utc>>,
}

impl TaskFilter {
    /// The rule in plain Rust. Tests compare the store's SQL with it.
    pub fn matches(&self, task: &TaskSummary) -> bool {
        fn agrees<T: PartialEq>(wanted: Option<&T>, actual: Option<&T>) -> bool {
            wanted.is_none() || wanted == actual
        }

        // No `..`: a new field does not compile until it has a meaning here.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::task::tests::{at, short, task};

    #[test]
    fn each_field_restricts_the_list() {
        let agent = |id: &str| Some(AgentId::parse(id).expect("an id"));
        let user = |id: &str| Some(UserId::parse(id).expect("an id"));
        let parent = |id: &str| Some(TaskId::parse(id).expect("an id"));
        let all = TaskFilter::default;
        let cases = [
            (all(), true),
            (TaskFilter { agent_id: agent("agent"), ..all() }, true),
            (TaskFilter { agent_id: agent("delegator"), ..all() }, false),
            (TaskFilter { user_id: user("user"), ..all() }, true),
            (TaskFilter { user_id: user("User"), ..all() }, false),
            (TaskFilter { parent_task_id: parent("parent"), ..all() }, true),
            (TaskFilter { parent_task_id: parent("task"), ..all() }, false),
            (TaskFilter { triggering_agent_id: agent("delegator"), ..all() }, true),
            (TaskFilter { triggering_agent_id: agent("agent"), ..all() }, false),
            (TaskFilter { statuses: vec![Status::Paused], ..all() }, true),
            (TaskFilter { statuses: vec![Status::Error, Status::Paused], ..all() }, true),
            (TaskFilter { statuses: vec![Status::Error, Status::Pending], ..all() }, false),
            (TaskFilter { internal_status: Some(short("own")), ..all() }, true),
            (TaskFilter { internal_status: Some(short("")), ..all() }, false),
            (TaskFilter { created_from: Some(at(0)), ..all() }, true),
            (TaskFilter { created_from: Some(at(1)), ..all() }, true),
            (TaskFilter { created_from: Some(at(2)), ..all() }, false),
            (TaskFilter { created_to: Some(at(0)), ..all() }, false),
            (TaskFilter { created_to: Some(at(1)), ..all() }, true),
            (TaskFilter { created_to: Some(at(2)), ..all() }, true),
            // Every field must match, not any of them.
            (TaskFilter { agent_id: agent("agent"), user_id: user("another"), ..all() }, false),
        ];
        let task = task().summary;
        for (filter, matches) in cases {
            assert_eq!(filter.matches(&task), matches, "{filter:?}");
        }
    }

    #[test]
    fn a_field_that_a_task_lacks_matches_no_value() {
        let mut task = task().summary;
        task.user_id = None;
        task.internal_status = None;
        let user_id = Some(UserId::parse("user").expect("an id"));
        assert!(!TaskFilter { user_id, ..TaskFilter::default() }.matches(&task));
        let internal_status = Some(short(""));
        assert!(!TaskFilter { internal_status, ..TaskFilter::default() }.matches(&task));
        assert!(TaskFilter::default().matches(&task));
    }
}
