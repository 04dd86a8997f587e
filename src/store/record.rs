//! Writing: invocations, and what runners report about them.

use chrono::{DateTime, Utc};
use sha2::{Digest, Sha256};
use sqlx::Connection;

use super::batches::{
    NewEventRow, NewTurn, fetch_tasks, insert_event, lock_tasks, to_json, update_tasks, upsert_tasks,
};
use super::pool::Pool;
use super::writer::Write;
use super::{Store, StoreError};
use crate::domain::{AgentId, EventKind, Invocation, Label, NewEvent, OrganizationId, Report, Task, TaskId};

/// An invocation that may be sent again.
#[derive(Debug, Clone)]
pub struct Idempotency {
    /// The caller's name for it, unique for the agent.
    pub key: Label,
    /// The request, to tell a repetition from another one under the same key.
    pub request: String,
}

/// What is kept of an invocation that may be sent again.
#[derive(Debug)]
pub struct Recorded {
    /// The task.
    pub id: TaskId,
    /// The answer that it had the first time.
    pub answer: String,
}

/// Records invocations together.
#[derive(Clone)]
pub(super) struct Turns {
    pub(super) pool: Pool,
}

impl Write for Turns {
    type Item = NewTurn;
    /// `None` where the task is another agent's.
    type Outcome = Option<Task>;

    fn task<'a>(&self, item: &'a NewTurn) -> &'a TaskId {
        &item.invocation.id
    }

    fn size(&self, item: &NewTurn) -> usize {
        item.input.len() + item.request.len()
    }

    async fn write(
        &self,
        organization: OrganizationId,
        items: &[NewTurn],
    ) -> Result<Vec<Option<Task>>, StoreError> {
        let mut connection = self.pool.get().await?;
        let tasks = upsert_tasks(&mut connection, organization, items).await?;
        connection.done();
        Ok(tasks)
    }
}

/// A change of a task's latest turn that waits to be recorded.
pub(super) struct Change {
    task: TaskId,
    what: What,
    now: DateTime<Utc>,
}

enum What {
    Report(Box<Report>),
    Stop,
}

impl Change {
    /// Changes the task; returns whether there is anything to write.
    fn apply(&self, task: &mut Task) -> bool {
        match &self.what {
            What::Report(report) => {
                task.apply(report.as_ref().clone(), self.now);
                true
            }
            What::Stop => task.stop(self.now),
        }
    }
}

/// Records changes together.
#[derive(Clone)]
pub(super) struct Changes {
    pub(super) pool: Pool,
}

impl Write for Changes {
    type Item = Change;
    /// `None` where the organisation has no such task.
    type Outcome = Option<Task>;

    fn task<'a>(&self, item: &'a Change) -> &'a TaskId {
        &item.task
    }

    fn size(&self, item: &Change) -> usize {
        match &item.what {
            What::Report(report) => report.size(),
            What::Stop => 0,
        }
    }

    async fn write(
        &self,
        organization: OrganizationId,
        items: &[Change],
    ) -> Result<Vec<Option<Task>>, StoreError> {
        let mut connection = self.pool.get().await?;
        let mut transaction = connection.begin().await?;
        let ids: Vec<_> = items.iter().map(|item| item.task.clone()).collect();
        let watched = lock_tasks(&mut transaction, organization, &ids).await?;
        // Lock first, read after: a statement sees only turns that were committed before it began, and while the one
        // above waited for the locks new turns may have been.
        let mut tasks = fetch_tasks(&mut transaction, organization, &ids).await?;
        let mut changed = Vec::with_capacity(tasks.len());
        for item in items {
            if let Some(task) = tasks.get_mut(&item.task)
                && item.apply(task)
            {
                task.events += 1;
                changed.push(&item.task);
            }
        }
        let changed: Vec<_> = changed.into_iter().filter_map(|id| tasks.get(id)).collect();
        update_tasks(&mut transaction, organization, &changed).await?;
        for task in changed.into_iter().filter(|task| watched.contains(&task.summary.id)) {
            let progress = &task.turn.progress;
            let (kind, data) = (EventKind::Reported(progress.clone()), to_json(progress));
            let event =
                NewEventRow { number: task.events, turn: task.turn.number, kind: kind.as_str(), data: &data };
            insert_event(&mut transaction, organization, &task.summary.id, event, task.summary.updated_at)
                .await?;
        }
        transaction.commit().await?;
        connection.done();
        Ok(items.iter().map(|item| tasks.remove(&item.task)).collect())
    }
}

impl Store {
    /// Records an invocation: a new task, or the next turn of the one with its id. Committed when this returns.
    ///
    /// The record keeps its first `created_at`, and the first user, parent and triggering agent that a turn named;
    /// everything else becomes the new turn's.
    pub async fn record_invocation(
        &self,
        organization: OrganizationId,
        invocation: Invocation,
        now: DateTime<Utc>,
    ) -> Result<Task, StoreError> {
        let task = self.turns.write(organization, NewTurn::new(invocation, now)).await?;
        task.ok_or(StoreError::OtherAgent)
    }

    /// Records an invocation once, however often it is sent: `answer` makes the answer of a new one, and every later
    /// one gets that. Committed when this returns.
    pub async fn record_invocation_once(
        &self,
        organization: OrganizationId,
        invocation: Invocation,
        idempotency: &Idempotency,
        now: DateTime<Utc>,
        answer: impl FnOnce(Task) -> String + Send,
    ) -> Result<Recorded, StoreError> {
        let agent = &invocation.agent_id.clone();
        let request: [u8; 32] = Sha256::digest(&idempotency.request).into();
        let mut connection = self.pool.get().await?;
        let mut transaction = connection.begin().await?;
        // The same request sent twice at once: the second waits here for the first, and then finds its answer.
        sqlx::query!(
            "SELECT pg_advisory_xact_lock(hashtextextended($1::uuid || ' ' || $2 || ' ' || $3, 0))",
            organization as OrganizationId,
            agent as &AgentId,
            &idempotency.key as &Label
        )
        .fetch_one(&mut *transaction)
        .await?;
        let before = sqlx::query!(
            r#"
            SELECT request, answer, task_id AS "id: TaskId"
            FROM idempotency_keys
            WHERE organization_id = $1 AND agent_id = $2 AND key = $3
            "#,
            organization as OrganizationId,
            agent as &AgentId,
            &idempotency.key as &Label
        )
        .fetch_optional(&mut *transaction)
        .await?;
        let outcome = match before {
            Some(before) if before.request == request => {
                Ok(Recorded { id: before.id, answer: before.answer })
            }
            Some(_) => Err(StoreError::OtherRequest),
            None => match upsert_tasks(&mut transaction, organization, &[NewTurn::new(invocation, now)])
                .await?
                .pop()
                .flatten()
            {
                None => Err(StoreError::OtherAgent),
                Some(task) => {
                    let id = task.summary.id.clone();
                    let answer = answer(task);
                    sqlx::query!(
                        r#"
                        INSERT INTO idempotency_keys (
                            organization_id, agent_id, key, request, task_id, answer, created_at
                        )
                        VALUES ($1, $2, $3, $4, $5, $6, $7)
                        "#,
                        organization as OrganizationId,
                        agent as &AgentId,
                        &idempotency.key as &Label,
                        request.as_slice(),
                        &id as &TaskId,
                        &answer,
                        now
                    )
                    .execute(&mut *transaction)
                    .await?;
                    Ok(Recorded { id, answer })
                }
            },
        };
        transaction.commit().await?;
        connection.done();
        outcome
    }

    /// Records what a runner reports about a task's latest turn, and returns the task as it is then; `None` where
    /// the organisation has no such task. Committed when this returns.
    pub async fn record_report(
        &self,
        organization: OrganizationId,
        id: &TaskId,
        report: Report,
        now: DateTime<Utc>,
    ) -> Result<Option<Task>, StoreError> {
        self.changes
            .write(organization, Change { task: id.clone(), what: What::Report(Box::new(report)), now })
            .await
    }

    /// Stops a task's latest turn on a person's behalf, unless it has ended, and returns the task as it is then;
    /// `None` where the organisation has no such task. Committed when this returns.
    pub async fn stop_task(
        &self,
        organization: OrganizationId,
        id: &TaskId,
        now: DateTime<Utc>,
    ) -> Result<Option<Task>, StoreError> {
        self.changes.write(organization, Change { task: id.clone(), what: What::Stop, now }).await
    }

    /// Records what a runner pushes while it works on a task's latest turn, in order. Returns whether the organisation
    /// has such a task. Committed when this returns.
    pub async fn record_events(
        &self,
        organization: OrganizationId,
        id: &TaskId,
        events: &[NewEvent],
        now: DateTime<Utc>,
    ) -> Result<bool, StoreError> {
        let mut connection = self.pool.get().await?;
        let mut transaction = connection.begin().await?;
        let ids = std::slice::from_ref(id);
        lock_tasks(&mut transaction, organization, ids).await?;
        let last = sqlx::query!(
            r#"
            UPDATE tasks SET events = events + $3
            WHERE organization_id = $1 AND id = $2
            RETURNING events, turns
            "#,
            organization as OrganizationId,
            id as &TaskId,
            i64::try_from(events.len()).unwrap_or(i64::MAX)
        )
        .fetch_optional(&mut *transaction)
        .await?;
        if let Some(last) = &last {
            for (number, event) in (1..=last.events).rev().zip(events.iter().rev()) {
                let (kind, data) = (event.kind.as_str(), &event.data.to_string());
                let event = NewEventRow { number, turn: last.turns, kind, data };
                insert_event(&mut transaction, organization, id, event, now).await?;
            }
        }
        transaction.commit().await?;
        connection.done();
        Ok(last.is_some())
    }
}
