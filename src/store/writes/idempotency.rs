//! Idempotency keys: a request with a key is recorded once, however often it is sent.

use std::collections::HashMap;

use crate::store::pool::Transaction;
use chrono::{DateTime, Utc};
use sha2::{Digest, Sha256};

use super::new_turn::{Idempotency, NewTurn, UpsertedRow};
use crate::domain::{AgentId, OrganizationId, ShortText, Task, TaskId, UserId};
use crate::store::StoreError;
use crate::store::sql::column;
use crate::store::tasks::query_with_sub_tasks;

/// First key of the advisory locks on idempotency keys. The second is a hash of the key.
const LOCK_CLASS: i32 = 29_802;

/// How many expired keys a write removes for each key that it records.
const REMOVED_PER_KEY: usize = 10;

/// The result of recording an invocation.
#[derive(Debug)]
pub enum RecordedInvocation {
    /// A turn was recorded; this is its task.
    New(Box<Task>),
    /// The request had been recorded before. This is the task as it was then; only its ids of
    /// other tasks are today's.
    Replayed(Box<Task>),
    /// The version before this one had recorded the request.
    Answered {
        /// The task.
        id: TaskId,
        /// The answer that the first request got.
        answer: String,
    },
}

/// An item with a key. Keys are unique for the agent.
pub(super) struct KeyedTurn<'a> {
    turn: &'a NewTurn,
    pub(super) idempotency: &'a Idempotency,
}

impl<'a> KeyedTurn<'a> {
    pub(super) fn new(turn: &'a NewTurn) -> Option<Self> {
        Some(Self { turn, idempotency: turn.idempotency.as_ref()? })
    }

    fn agent(&self) -> &AgentId {
        &self.turn.invocation.agent_id
    }

    /// The agent and the key.
    pub(super) fn key(&self) -> (AgentId, ShortText) {
        (self.agent().clone(), self.idempotency.key.clone())
    }

    /// The second key of its advisory lock. Keys that share one only wait for each other.
    fn lock(&self, organization: OrganizationId) -> i32 {
        let text = format!("{organization} {} {}", self.agent(), self.idempotency.key);
        let digest: [u8; 32] = Sha256::digest(text).into();
        i32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]])
    }
}

/// Locks keys until the transaction ends. Of two transactions with one key, the second waits here
/// for the first, then finds what that recorded.
///
/// Keys are locked in one order and before all rows, so transactions that meet do not deadlock.
pub(super) async fn lock_keys(
    connection: &mut Transaction,
    organization: OrganizationId,
    keyed: &[KeyedTurn<'_>],
) -> Result<(), StoreError> {
    let mut locks = column(keyed, |keyed| keyed.lock(organization));
    locks.sort_unstable();
    locks.dedup();
    sqlx::query!(
        "SELECT pg_advisory_xact_lock($1, lock) FROM unnest($2::int[]) AS lock",
        LOCK_CLASS,
        &locks
    )
    .fetch_all(connection)
    .await?;
    Ok(())
}

/// What was recorded with a key.
pub(super) struct EarlierRecording {
    request: Vec<u8>,
    /// The whole answer, if the version before recorded it.
    answer: Option<String>,
    /// When it was recorded.
    at: DateTime<Utc>,
    row: UpsertedRow,
}

impl EarlierRecording {
    /// The answer to an item with its key.
    pub(super) fn answer_to(
        &self,
        organization: OrganizationId,
        keyed: &KeyedTurn<'_>,
    ) -> Result<RecordedInvocation, StoreError> {
        let digest = if self.answer.is_some() {
            keyed.idempotency.earlier_digest.as_ref()
        } else {
            Some(&keyed.idempotency.digest)
        };
        if digest.is_none_or(|digest| self.request != digest) {
            return Err(StoreError::IdempotencyKeyReused);
        }
        if let Some(answer) = &self.answer {
            let (id, answer) = (self.row.id.clone(), answer.clone());
            return Ok(RecordedInvocation::Answered { id, answer });
        }
        // The request is the same, so it says again what the first one said.
        let mut task = keyed.turn.task(organization, self.row.clone());
        task.turn.created_at = self.at;
        if let Some(finished_at) = &mut task.turn.state.finished_at {
            *finished_at = self.at;
        }
        Ok(RecordedInvocation::Replayed(Box::new(task)))
    }
}

/// What was recorded with some keys after a time, by agent and key. The caller holds the locks on
/// the keys.
pub(super) async fn find_recorded(
    connection: &mut Transaction,
    organization: OrganizationId,
    keyed: &[KeyedTurn<'_>],
    after: DateTime<Utc>,
) -> Result<HashMap<(AgentId, ShortText), EarlierRecording>, StoreError> {
    // Each organization is a value and a column: see `lock_tasks`.
    let rows = query_with_sub_tasks!(
        _;
        r#"
        WITH wanted AS MATERIALIZED (
            SELECT $1::uuid AS organization_id, agent_id COLLATE "C" AS agent_id,
                   key COLLATE "C" AS key
            FROM unnest($2::text[], $3::text[]) AS wanted (agent_id, key)
        )
        SELECT earlier.agent_id AS "agent_id: AgentId", earlier.key AS "key: ShortText",
               earlier.request, earlier.answer, earlier.turn, earlier.created_at AS at,
               task.id AS "id: TaskId",
               task.user_id AS "user_id: UserId",
               task.parent_task_id AS "parent_task_id: TaskId",
               task.triggering_agent_id AS "triggering_agent_id: AgentId",
               task.events, task.created_at, task.updated_at
        "#;
        r#"
        FROM wanted
        JOIN idempotency_keys earlier
            ON earlier.organization_id = wanted.organization_id
            AND earlier.agent_id = wanted.agent_id
            AND earlier.key = wanted.key
        JOIN tasks task
            ON task.organization_id = earlier.organization_id AND task.id = earlier.task_id
        WHERE earlier.organization_id = $1 AND earlier.created_at > $4
        "#;
        organization as OrganizationId,
        &column(keyed, |keyed| keyed.agent().as_str()) as &[&str],
        &column(keyed, |keyed| keyed.idempotency.key.as_str()) as &[&str],
        after
    )
    .fetch_all(connection)
    .await?;
    let recorded = rows.into_iter().map(|row| {
        let upserted = UpsertedRow {
            id: row.id,
            user_id: row.user_id,
            parent_task_id: row.parent_task_id,
            triggering_agent_id: row.triggering_agent_id,
            // Rows of the version before have an answer instead.
            turns: row.turn.unwrap_or(0),
            events: row.events,
            created_at: row.created_at,
            updated_at: row.updated_at,
            sub_executions: row.sub_executions,
            finished_sub_executions: row.finished_sub_executions,
        };
        let recording = EarlierRecording {
            request: row.request,
            answer: row.answer,
            at: row.at,
            row: upserted,
        };
        ((row.agent_id, row.key), recording)
    });
    Ok(recorded.collect())
}

/// Remembers the keys of turns that were recorded, in place of those that have expired. The caller
/// holds the locks on the keys.
pub(super) async fn insert_keys(
    connection: &mut Transaction,
    organization: OrganizationId,
    recorded: &[(KeyedTurn<'_>, &Task)],
    expired_until: DateTime<Utc>,
) -> Result<(), StoreError> {
    let inserted = sqlx::query!(
        r#"
        INSERT INTO idempotency_keys AS earlier (
            organization_id, agent_id, key, request, task_id, turn, created_at
        )
        SELECT $1, agent_id, key, request, task_id, turn, created_at
        FROM unnest(
            $2::text[], $3::text[], $4::bytea[], $5::text[], $6::int[], $7::timestamptz[]
        ) AS new (agent_id, key, request, task_id, turn, created_at)
        ON CONFLICT (organization_id, agent_id, key) DO UPDATE
        SET request = EXCLUDED.request, task_id = EXCLUDED.task_id, turn = EXCLUDED.turn,
            answer = NULL, created_at = EXCLUDED.created_at
        WHERE earlier.created_at <= $8
        "#,
        organization as OrganizationId,
        &column(recorded, |(keyed, _)| keyed.agent().as_str()) as &[&str],
        &column(recorded, |(keyed, _)| keyed.idempotency.key.as_str()) as &[&str],
        &column(recorded, |(keyed, _)| keyed.idempotency.digest.as_slice()) as &[&[u8]],
        &column(recorded, |(_, task)| task.summary.id.as_str()) as &[&str],
        &column(recorded, |(_, task)| task.turn.number),
        &column(recorded, |(keyed, _)| keyed.turn.now),
        expired_until
    )
    .execute(&mut *connection)
    .await?;
    if usize::try_from(inserted.rows_affected()).ok() != Some(recorded.len()) {
        // Only an instance of the version before has other locks. Nothing has been committed.
        return Err(StoreError::Unavailable("an idempotency key was just recorded".to_owned()));
    }
    // What another transaction is removing is left to it. Their places are looked up, because the
    // planner would read the whole table for an unknown number of keys.
    sqlx::query!(
        r#"
        DELETE FROM idempotency_keys
        WHERE organization_id = $1 AND ctid = ANY(ARRAY(
            SELECT ctid FROM idempotency_keys
            WHERE organization_id = $1 AND created_at <= $2
            ORDER BY created_at
            LIMIT $3
            FOR UPDATE SKIP LOCKED
        ))
        "#,
        organization as OrganizationId,
        expired_until,
        i64::try_from(recorded.len() * REMOVED_PER_KEY).unwrap_or(i64::MAX)
    )
    .execute(connection)
    .await?;
    Ok(())
}
