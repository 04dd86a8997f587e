//! Recounting: whether counts agree with the tasks that they count, and tasks with their turns.

use super::pool::Transaction;
use super::{Store, StoreError};
use crate::domain::OrganizationId;

/// Most differences of a kind that are reported of one organization.
const MAX_REPORTED: i64 = 20;

/// What a recount of one organization found.
#[derive(Debug)]
pub struct VerifyReport {
    /// Name of the organization.
    pub organization: String,
    /// How many tasks it has.
    pub tasks: i64,
    /// The differences, one sentence each; empty if all agrees.
    pub drift: Vec<String>,
}

impl Store {
    /// Recounts an organization's tasks and turns, in one snapshot, and compares. Reads every task,
    /// however long that takes, and locks nothing.
    pub async fn verify(
        &self,
        organization: OrganizationId,
        name: &str,
    ) -> Result<VerifyReport, StoreError> {
        let mut transaction = self.pool.shared().begin_snapshot().await?;
        let tasks = sqlx::query_scalar!(
            r#"SELECT count(*) AS "count!" FROM tasks WHERE organization_id = $1"#,
            organization as OrganizationId
        )
        .fetch_one(&mut transaction)
        .await?;
        let mut drift = verify_counts(&mut transaction, organization).await?;
        drift.extend(verify_turns(&mut transaction, organization).await?);
        transaction.rollback().await?;
        Ok(VerifyReport { organization: name.to_owned(), tasks, drift })
    }
}

async fn verify_counts(
    connection: &mut Transaction,
    organization: OrganizationId,
) -> Result<Vec<String>, StoreError> {
    let rows = sqlx::query!(
        r#"
        WITH counted AS (
            SELECT counts.agent_id, counts.facet, counts.value, counts.grain, counts.since,
                   ARRAY[
                       count(*) FILTER (WHERE task.status = 'pending'),
                       count(*) FILTER (WHERE task.status = 'executing'),
                       count(*) FILTER (WHERE task.status = 'paused'),
                       count(*) FILTER (WHERE task.status = 'error'),
                       count(*) FILTER (WHERE task.status = 'failed'),
                       count(*) FILTER (WHERE task.status = 'completed'),
                       count(*) FILTER (WHERE task.status = 'stopped')
                   ] AS numbers
            FROM tasks task
            CROSS JOIN LATERAL task_count_rows(
                task.agent_id, task.user_id, task.parent_task_id, task.triggering_agent_id,
                task.internal_status, task.created_at
            ) counts
            WHERE task.organization_id = $1
            GROUP BY counts.agent_id, counts.facet, counts.value, counts.grain, counts.since
        ),
        kept AS (
            SELECT agent_id, facet, value, grain, since,
                   ARRAY[pending, executing, paused, error, failed, completed, stopped] AS numbers
            FROM task_counts
            WHERE organization_id = $1
        )
        SELECT agent_id AS "agent_id!", facet AS "facet!", value AS "value!", grain AS "grain!",
               since::text AS "since!",
               COALESCE(kept.numbers, array_fill(0::bigint, ARRAY[7]))::text AS "kept!",
               COALESCE(counted.numbers, array_fill(0::bigint, ARRAY[7]))::text AS "counted!"
        FROM counted
        FULL JOIN kept USING (agent_id, facet, value, grain, since)
        WHERE COALESCE(kept.numbers, array_fill(0::bigint, ARRAY[7]))
              <> COALESCE(counted.numbers, array_fill(0::bigint, ARRAY[7]))
        ORDER BY grain, agent_id, facet, value, since
        LIMIT $2
        "#,
        organization as OrganizationId,
        MAX_REPORTED
    )
    .fetch_all(connection)
    .await?;
    let drift = rows.into_iter().map(|row| {
        let agent = if row.agent_id.is_empty() {
            "all agents".to_owned()
        } else {
            format!("agent {}", row.agent_id)
        };
        let facet = if row.facet.is_empty() {
            String::new()
        } else {
            format!(", {} {}", row.facet, row.value)
        };
        let time = match row.grain {
            0 => String::new(),
            1 => format!(", month {}", row.since),
            2 => format!(", day {}", row.since),
            _ => format!(", hour {}", row.since),
        };
        format!("counts of {agent}{facet}{time}: kept {}, counted {}", row.kept, row.counted)
    });
    Ok(drift.collect())
}

async fn verify_turns(
    connection: &mut Transaction,
    organization: OrganizationId,
) -> Result<Vec<String>, StoreError> {
    let rows = sqlx::query!(
        r#"
        SELECT task.id, task.turns, counts.turns AS "counted?", counts.latest AS "latest?",
               (latest.status = task.status
                AND latest.result IS NOT DISTINCT FROM task.result
                AND latest.internal_status IS NOT DISTINCT FROM task.internal_status) AS agrees
        FROM tasks task
        LEFT JOIN (
            SELECT task_id, count(*) AS turns, max(turn) AS latest
            FROM task_turns
            WHERE organization_id = $1
            GROUP BY task_id
        ) counts ON counts.task_id = task.id
        LEFT JOIN task_turns latest
            ON latest.organization_id = $1
            AND latest.task_id = task.id
            AND latest.turn = task.turns
        WHERE task.organization_id = $1
          AND (counts.turns IS DISTINCT FROM task.turns
               OR counts.latest IS DISTINCT FROM task.turns
               OR latest.status <> task.status
               OR latest.result IS DISTINCT FROM task.result
               OR latest.internal_status IS DISTINCT FROM task.internal_status)
        ORDER BY task.id
        LIMIT $2
        "#,
        organization as OrganizationId,
        MAX_REPORTED
    )
    .fetch_all(connection)
    .await?;
    let drift = rows.into_iter().map(|row| {
        let (counted, latest) = (row.counted.unwrap_or(0), row.latest.unwrap_or(0));
        if row.agrees == Some(true) {
            format!("task {}: says {} turns, has {counted}, the latest {latest}", row.id, row.turns)
        } else {
            format!("task {}: differs from its latest turn, of {} turns", row.id, row.turns)
        }
    });
    Ok(drift.collect())
}
