//! Whether what is kept twice agrees: counts with the tasks they count, tasks with their turns.

use sqlx::{Connection, PgConnection};

use super::{Store, StoreError};
use crate::domain::OrganizationId;

/// Most disagreements of a kind that are told apart in an organisation; the others are many more of the same.
const MAX_TOLD: i64 = 20;

/// What was found in one organisation.
#[derive(Debug)]
pub struct Verified {
    /// Name of the organisation.
    pub organization: String,
    /// How many tasks it has.
    pub tasks: i64,
    /// What does not agree, in words; nothing, where all is well.
    pub drift: Vec<String>,
}

impl Store {
    /// Names of all organisations.
    pub async fn organizations(&self) -> Result<Vec<(OrganizationId, String)>, StoreError> {
        let mut connection = self.pool.get().await?;
        let rows = sqlx::query!(
            r#"SELECT id AS "organization_id: OrganizationId", name FROM organizations ORDER BY name"#
        )
        .fetch_all(&mut *connection)
        .await?;
        connection.done();
        Ok(rows.into_iter().map(|row| (row.organization_id, row.name)).collect())
    }

    /// Counts an organisation's tasks and turns again, in one snapshot, and compares. Reads every task, however long
    /// that takes, and locks nothing.
    pub async fn verify(&self, organization: OrganizationId, name: &str) -> Result<Verified, StoreError> {
        let mut connection = self.pool.get().await?;
        let mut transaction = connection.begin().await?;
        let settings =
            "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY; SET LOCAL statement_timeout = 0";
        sqlx::raw_sql(settings).execute(&mut *transaction).await?;
        let tasks = sqlx::query_scalar!(
            r#"SELECT count(*) AS "count!" FROM tasks WHERE organization_id = $1"#,
            organization as OrganizationId
        )
        .fetch_one(&mut *transaction)
        .await?;
        let mut drift = verify_counts(&mut transaction, organization).await?;
        drift.extend(verify_turns(&mut transaction, organization).await?);
        transaction.rollback().await?;
        connection.done();
        Ok(Verified { organization: name.to_owned(), tasks, drift })
    }
}

async fn verify_counts(
    connection: &mut PgConnection,
    organization: OrganizationId,
) -> Result<Vec<String>, StoreError> {
    let rows = sqlx::query!(
        r#"
        WITH counted AS (
            SELECT r.agent_id, r.facet, r.value, r.grain, r.since,
                   ARRAY[
                       count(*) FILTER (WHERE t.status = 'pending'),
                       count(*) FILTER (WHERE t.status = 'executing'),
                       count(*) FILTER (WHERE t.status = 'paused'),
                       count(*) FILTER (WHERE t.status = 'error'),
                       count(*) FILTER (WHERE t.status = 'failed'),
                       count(*) FILTER (WHERE t.status = 'completed'),
                       count(*) FILTER (WHERE t.status = 'stopped')
                   ] AS numbers
            FROM tasks t
            CROSS JOIN LATERAL task_count_rows(
                t.agent_id, t.user_id, t.parent_task_id, t.triggering_agent_id, t.internal_status, t.created_at
            ) r
            WHERE t.organization_id = $1
            GROUP BY r.agent_id, r.facet, r.value, r.grain, r.since
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
        MAX_TOLD
    )
    .fetch_all(connection)
    .await?;
    let told = rows.into_iter().map(|row| {
        let agent =
            if row.agent_id.is_empty() { "all agents".to_owned() } else { format!("agent {}", row.agent_id) };
        let facet =
            if row.facet.is_empty() { String::new() } else { format!(", {} {}", row.facet, row.value) };
        let time = match row.grain {
            0 => String::new(),
            1 => format!(", month {}", row.since),
            2 => format!(", day {}", row.since),
            _ => format!(", hour {}", row.since),
        };
        format!("counts of {agent}{facet}{time}: kept {}, counted {}", row.kept, row.counted)
    });
    Ok(told.collect())
}

async fn verify_turns(
    connection: &mut PgConnection,
    organization: OrganizationId,
) -> Result<Vec<String>, StoreError> {
    let rows = sqlx::query!(
        r#"
        SELECT t.id, t.turns, l.turns AS "counted?", l.latest AS "latest?",
               (latest.status = t.status AND latest.result IS NOT DISTINCT FROM t.result
                AND latest.internal_status IS NOT DISTINCT FROM t.internal_status) AS agrees
        FROM tasks t
        LEFT JOIN (
            SELECT task_id, count(*) AS turns, max(turn) AS latest
            FROM task_turns
            WHERE organization_id = $1
            GROUP BY task_id
        ) l ON l.task_id = t.id
        LEFT JOIN task_turns latest
            ON latest.organization_id = $1 AND latest.task_id = t.id AND latest.turn = t.turns
        WHERE t.organization_id = $1
          AND (l.turns IS DISTINCT FROM t.turns OR l.latest IS DISTINCT FROM t.turns
               OR latest.status <> t.status OR latest.result IS DISTINCT FROM t.result
               OR latest.internal_status IS DISTINCT FROM t.internal_status)
        ORDER BY t.id
        LIMIT $2
        "#,
        organization as OrganizationId,
        MAX_TOLD
    )
    .fetch_all(connection)
    .await?;
    let told = rows.into_iter().map(|row| {
        let (counted, latest) = (row.counted.unwrap_or(0), row.latest.unwrap_or(0));
        if row.agrees == Some(true) {
            format!("task {}: says {} turns, has {counted}, the latest {latest}", row.id, row.turns)
        } else {
            format!("task {}: differs from its latest turn, of {} turns", row.id, row.turns)
        }
    });
    Ok(told.collect())
}
