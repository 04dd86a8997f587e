//! Recording what runners report about a turn of a task, and what they push.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::{Map, Value};

use super::group_commit::BatchWrite;
use super::update::{ChangedTurn, LockedTask, WantedTurn, lock_tasks, read_progress, update_turns};
use crate::domain::{NewEvent, OrganizationId, Report, Status, Task, TaskId};
use crate::store::events::CHANNEL;
use crate::store::pool::Pool;
use crate::store::sql::{column, to_json};
use crate::store::tasks::fetch_tasks;
use crate::store::{Store, StoreError};

/// An update of a turn, with its JSON already serialized, outside the transaction.
pub(in crate::store) struct TaskUpdate {
    task: TaskId,
    kind: UpdateKind,
    /// The options that change, as a JSON object.
    options: Option<String>,
    /// The details that change, as a JSON object.
    details: Option<String>,
    now: DateTime<Utc>,
}

enum UpdateKind {
    Report(Box<Report>),
    Stop,
}

/// Those of [`InvocationOptions`](crate::domain::InvocationOptions) that a report may change.
#[derive(Serialize)]
struct ChangedOptions<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    title: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_extension: Option<&'a Map<String, Value>>,
}

impl TaskUpdate {
    fn new(task: TaskId, kind: UpdateKind, now: DateTime<Utc>) -> Self {
        let report = match &kind {
            UpdateKind::Report(report) => Some(report),
            UpdateKind::Stop => None,
        };
        let fields = |json: String| Some(json).filter(|json| json != "{}");
        let options = report.and_then(|report| {
            fields(to_json(&ChangedOptions {
                title: report.title.as_deref(),
                payload_extension: report.payload_extension.as_ref(),
            }))
        });
        let details = report.and_then(|report| fields(to_json(&report.details)));
        Self { task, kind, options, details, now }
    }

    fn report(&self) -> Option<&Report> {
        match &self.kind {
            UpdateKind::Report(report) => Some(report),
            UpdateKind::Stop => None,
        }
    }

    fn size(&self) -> usize {
        let text = |text: Option<&String>| text.map_or(0, String::len);
        let report = self.report().map_or(0, |report| {
            text(report.result.as_ref()) + text(report.last_executed_node_id.as_ref())
        });
        report + text(self.options.as_ref()) + text(self.details.as_ref())
    }

    /// The turn that it is about, of a task with its row locked.
    fn turn(&self, task: &LockedTask) -> Result<i32, StoreError> {
        let turn = self.report().and_then(|report| report.turn).unwrap_or(task.turns);
        if turn <= task.turns { Ok(turn) } else { Err(StoreError::TurnNotFound) }
    }
}

/// A turn as updated, with its task if that is small.
pub(in crate::store) struct UpdatedTurn {
    number: i32,
    task: Option<Box<Task>>,
}

/// Records updates in batches.
#[derive(Clone)]
pub(in crate::store) struct UpdateBatches {
    pool: Pool,
}

impl UpdateBatches {
    pub(in crate::store) fn new(pool: Pool) -> Self {
        Self { pool }
    }

    /// Updates turns in one transaction. Returns for each item its turn, and whether that is small.
    async fn update(
        &self,
        organization: OrganizationId,
        items: &[TaskUpdate],
    ) -> Result<Vec<Result<(i32, bool), StoreError>>, StoreError> {
        let mut transaction = self.pool.of(organization).begin().await?;
        let ids: Vec<_> = items.iter().map(|item| &item.task).collect();
        let locked = lock_tasks(&mut transaction, organization, &ids).await?;
        let locked: HashMap<_, _> = locked.iter().map(|task| (&task.id, task)).collect();
        let turn_of = |item: &TaskUpdate| {
            let task = locked.get(&item.task).copied().ok_or(StoreError::TaskNotFound)?;
            Ok((task, item.turn(task)?))
        };
        let wanted: Vec<_> = items
            .iter()
            .filter_map(|item| {
                let (_, turn) = turn_of(item).ok()?;
                // Only a report that names its turn must not contradict it.
                let report = item.report().filter(|report| report.turn.is_some());
                let result = report.and_then(|report| report.result.as_deref());
                Some(WantedTurn { task: &item.task, turn, result })
            })
            .collect();
        let progress = read_progress(&mut transaction, organization, &wanted).await?;
        let mut changed = Vec::with_capacity(items.len());
        let mut outputs = Vec::with_capacity(items.len());
        for item in items {
            outputs.push(turn_of(item).and_then(|(task, turn)| {
                let progress = progress.get(&item.task).ok_or(StoreError::TurnNotFound)?;
                let mut state = progress.state();
                let was_paused = state.status == Status::Paused;
                let is_update = match item.report() {
                    Some(report) if report.contradicts(&state, progress.has_result) => {
                        return Err(StoreError::TurnEnded);
                    }
                    Some(report) => {
                        state.set_status(report.status.unwrap_or(state.status), item.now);
                        true
                    }
                    None => state.stop(item.now),
                };
                if is_update {
                    changed.push(ChangedTurn {
                        task: &item.task,
                        turn,
                        is_latest: turn == task.turns,
                        drops_requests: was_paused && state.status != Status::Paused,
                        state,
                        report: item.report(),
                        options: item.options.as_deref(),
                        details: item.details.as_deref(),
                        now: item.now,
                    });
                }
                Ok((turn, task.is_small && progress.is_small))
            }));
        }
        update_turns(&mut transaction, organization, &changed).await?;
        transaction.commit().await?;
        Ok(outputs)
    }
}

impl BatchWrite for UpdateBatches {
    type Item = TaskUpdate;
    type Output = Result<UpdatedTurn, StoreError>;

    fn task<'a>(&self, item: &'a TaskUpdate) -> &'a TaskId {
        &item.task
    }

    fn size(&self, item: &TaskUpdate) -> usize {
        item.size()
    }

    async fn write(
        &self,
        organization: OrganizationId,
        items: &[TaskUpdate],
    ) -> Result<Vec<Self::Output>, StoreError> {
        let updated = self.update(organization, items).await?;
        // Answers are read after the commit, so that no lock waits for them. Each caller reads a
        // large one itself: a batch of large ones would have no bound in bytes.
        let (mut ids, mut turns) = (Vec::new(), Vec::new());
        for (item, output) in items.iter().zip(&updated) {
            if let Ok((turn, true)) = output {
                ids.push(item.task.clone());
                turns.push(*turn);
            }
        }
        let mut small = HashMap::new();
        if !ids.is_empty() {
            // What cannot be read now is read by its caller, who then hears of the failure.
            let read = fetch_tasks(self.pool.of(organization), organization, &ids, &turns).await;
            small = read.unwrap_or_default();
        }
        let outputs = items.iter().zip(updated).map(|(item, output)| {
            let (number, _) = output?;
            Ok(UpdatedTurn { number, task: small.remove(&item.task).map(Box::new) })
        });
        Ok(outputs.collect())
    }
}

impl Store {
    /// Records a report about a turn, and returns the task as that turn is then. Committed when
    /// this returns.
    pub async fn record_report(
        &self,
        organization: OrganizationId,
        id: &TaskId,
        report: Report,
        now: DateTime<Utc>,
    ) -> Result<Task, StoreError> {
        self.update_turn(organization, id, UpdateKind::Report(Box::new(report)), now).await
    }

    /// Stops a task's latest turn for a person, unless it has ended, and returns the task as it is
    /// then. Committed when this returns.
    pub async fn stop_task(
        &self,
        organization: OrganizationId,
        id: &TaskId,
        now: DateTime<Utc>,
    ) -> Result<Task, StoreError> {
        self.update_turn(organization, id, UpdateKind::Stop, now).await
    }

    async fn update_turn(
        &self,
        organization: OrganizationId,
        id: &TaskId,
        kind: UpdateKind,
        now: DateTime<Utc>,
    ) -> Result<Task, StoreError> {
        let update = TaskUpdate::new(id.clone(), kind, now);
        let updated = self.updates.write(organization, update).await??;
        if let Some(task) = updated.task {
            return Ok(*task);
        }
        let read = self.get_task_at_turn(organization, id, updated.number).await;
        read.map_err(StoreError::after_write)
    }

    /// Records, in order, the events that a runner pushes about a task, each of the latest turn
    /// unless it names another. Committed when this returns, all or none.
    pub async fn record_events(
        &self,
        organization: OrganizationId,
        id: &TaskId,
        events: &[NewEvent],
        now: DateTime<Utc>,
    ) -> Result<(), StoreError> {
        let mut transaction = self.pool.of(organization).begin().await?;
        let locked = lock_tasks(&mut transaction, organization, &[id]).await?;
        let refusal = match locked.first() {
            None => Some(StoreError::TaskNotFound),
            Some(task) if events.iter().any(|event| event.turn > Some(task.turns)) => {
                Some(StoreError::TurnNotFound)
            }
            Some(_) => None,
        };
        if let Some(refusal) = refusal {
            transaction.rollback().await?;
            return Err(refusal);
        }
        // Pushed events are always stored, and announced if the task is watched.
        sqlx::query!(
            r#"
            WITH task AS (
                UPDATE tasks SET events = events + $3
                WHERE organization_id = $1 AND id = $2
                RETURNING id, events, turns
            ),
            pushed AS (
                INSERT INTO task_events (
                    organization_id, task_id, event, turn, type, data, created_at
                )
                SELECT $1, task.id, task.events - $3 + number, COALESCE(turn, task.turns), type,
                       data::json, $7
                FROM task
                CROSS JOIN unnest($4::int[], $5::text[], $6::text[])
                    WITH ORDINALITY AS new (turn, type, data, number)
            )
            SELECT pg_notify($8, $1::uuid || ' ' || $2)
            WHERE $2 = ANY((SELECT watched_tasks($1, ARRAY[$2]))::text[])
            "#,
            organization as OrganizationId,
            id as &TaskId,
            i64::try_from(events.len()).unwrap_or(i64::MAX),
            &column(events, |event| event.turn) as &[Option<i32>],
            &column(events, |event| event.kind.as_str()) as &[&str],
            &column(events, |event| event.data.to_string()),
            now,
            CHANNEL
        )
        .fetch_all(&mut transaction)
        .await?;
        transaction.commit().await?;
        Ok(())
    }
}
