//! The WHERE clause of a [`TaskFilter`].

use crate::domain::{OrganizationId, TaskFilter};
use crate::store::sql::Sql;

/// Pushes the WHERE clause that the page and the count share.
///
/// Only what is set is pushed. A condition that allows for an unset filter (`$1 IS NULL OR ...`)
/// could use no index under a generic plan.
pub(super) fn push_filter(sql: &mut Sql, organization: OrganizationId, filter: &TaskFilter) {
    // No `..`: a new field of `TaskFilter` does not compile until it is pushed here.
    let TaskFilter {
        agent_id,
        user_id,
        parent_task_id,
        triggering_agent_id,
        statuses,
        internal_status,
        created_from,
        created_to,
    } = filter;
    sql.push(" WHERE organization_id = ").push_bind(organization);
    if let Some(agent_id) = agent_id {
        sql.push(" AND agent_id = ").push_bind(agent_id.clone());
    }
    if let Some(user_id) = user_id {
        sql.push(" AND user_id = ").push_bind(user_id.clone());
    }
    if let Some(parent_task_id) = parent_task_id {
        sql.push(" AND parent_task_id = ").push_bind(parent_task_id.clone());
    }
    if let Some(triggering_agent_id) = triggering_agent_id {
        sql.push(" AND triggering_agent_id = ").push_bind(triggering_agent_id.clone());
    }
    match statuses.as_slice() {
        [] => {}
        // A single status gets its own form: only this keeps the order of an index on the status.
        [status] => {
            sql.push(" AND status = ").push_bind(*status);
        }
        several => {
            sql.push(" AND status = ANY(").push_bind(several.to_vec()).push(")");
        }
    }
    if let Some(internal_status) = internal_status {
        sql.push(" AND internal_status = ").push_bind(internal_status.clone());
    }
    if let Some(from) = created_from {
        sql.push(" AND created_at >= ").push_bind(*from);
    }
    if let Some(to) = created_to {
        sql.push(" AND created_at <= ").push_bind(*to);
    }
}
