//! Recording invocations.

use chrono::{DateTime, Utc};
use sha2::{Digest, Sha256};

use super::group_commit::BatchWrite;
use super::statements::{NewTurn, upsert_tasks};
use crate::domain::{AgentId, Invocation, OrganizationId, ShortText, Task, TaskId};
use crate::store::pool::Pool;
use crate::store::{Store, StoreError};

/// The idempotency key of an invocation, and the request that it belongs to.
#[derive(Debug, Clone)]
pub struct Idempotency {
    /// The caller's key, unique for the agent.
    pub key: ShortText,
    /// The request, to tell a repetition from another request with the same key.
    pub request: String,
}

/// The result of recording an invocation with an idempotency key.
#[derive(Debug)]
pub enum RecordedInvocation {
    /// A turn was recorded; this is its task.
    New(Box<Task>),
    /// The request had been recorded before.
    Replayed {
        /// The task.
        id: TaskId,
        /// The answer that the first request got.
        answer: String,
    },
}

/// Records invocations in batches.
#[derive(Clone)]
pub(in crate::store) struct InvocationBatches {
    pool: Pool,
}

impl InvocationBatches {
    pub(in crate::store) fn new(pool: Pool) -> Self {
        Self { pool }
    }
}

impl BatchWrite for InvocationBatches {
    type Item = NewTurn;
    /// `None` if the task belongs to another agent.
    type Output = Option<Task>;

    fn task<'a>(&self, item: &'a NewTurn) -> &'a TaskId {
        &item.invocation.id
    }

    fn size(&self, item: &NewTurn) -> usize {
        item.input.len() + item.options.len()
    }

    async fn write(
        &self,
        organization: OrganizationId,
        items: &[NewTurn],
    ) -> Result<Vec<Option<Task>>, StoreError> {
        upsert_tasks(&self.pool, organization, items).await
    }
}

impl Store {
    /// Records an invocation: a new task, or the next turn of the task with its id. Committed when
    /// this returns.
    ///
    /// The task keeps its first `created_at`, and the first user, parent and triggering agent that
    /// a turn named. Everything else becomes the new turn's.
    pub async fn record_invocation(
        &self,
        organization: OrganizationId,
        invocation: Invocation,
        now: DateTime<Utc>,
    ) -> Result<Task, StoreError> {
        let turn = NewTurn::new(invocation, now);
        let task = self.invocations.write(organization, turn).await?;
        task.ok_or(StoreError::TaskOfAnotherAgent)
    }

    /// Records an invocation once, even if it is sent several times. `answer` makes the answer of
    /// the first request, which every repetition gets. Committed when this returns.
    pub async fn record_invocation_once(
        &self,
        organization: OrganizationId,
        invocation: Invocation,
        idempotency: &Idempotency,
        now: DateTime<Utc>,
        answer: impl FnOnce(&Task) -> String + Send,
    ) -> Result<RecordedInvocation, StoreError> {
        let agent = &invocation.agent_id.clone();
        let request: [u8; 32] = Sha256::digest(&idempotency.request).into();
        let mut transaction = self.pool.begin().await?;
        // If a request is sent twice at once, the second waits here for the first, then finds it.
        sqlx::query!(
            "SELECT pg_advisory_xact_lock(hashtextextended($1::uuid || ' ' || $2 || ' ' || $3, 0))",
            organization as OrganizationId,
            agent as &AgentId,
            &idempotency.key as &ShortText
        )
        .fetch_one(&mut *transaction)
        .await?;
        let earlier = sqlx::query!(
            r#"
            SELECT request, answer, task_id AS "id: TaskId"
            FROM idempotency_keys
            WHERE organization_id = $1 AND agent_id = $2 AND key = $3
            "#,
            organization as OrganizationId,
            agent as &AgentId,
            &idempotency.key as &ShortText
        )
        .fetch_optional(&mut *transaction)
        .await?;
        if let Some(earlier) = earlier {
            transaction.rollback().await?;
            return if earlier.request == request {
                Ok(RecordedInvocation::Replayed { id: earlier.id, answer: earlier.answer })
            } else {
                Err(StoreError::IdempotencyKeyReused)
            };
        }
        let turn = NewTurn::new(invocation, now);
        let recorded = upsert_tasks(&mut *transaction, organization, &[turn]).await?;
        let Some(task) = recorded.into_iter().next().flatten() else {
            transaction.rollback().await?;
            return Err(StoreError::TaskOfAnotherAgent);
        };
        sqlx::query!(
            r#"
            INSERT INTO idempotency_keys (
                organization_id, agent_id, key, request, task_id, answer, created_at
            )
            VALUES ($1, $2, $3, $4, $5, $6, $7)
            "#,
            organization as OrganizationId,
            agent as &AgentId,
            &idempotency.key as &ShortText,
            request.as_slice(),
            &task.summary.id as &TaskId,
            &answer(&task),
            now
        )
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(RecordedInvocation::New(Box::new(task)))
    }
}
