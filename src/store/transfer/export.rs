//! Export of tasks in pages that are bounded in bytes.
//!
//! A page of rows is sized by the database before it is sent, so that a few large rows make a page
//! and many small ones do.

use std::collections::VecDeque;
use std::time::Duration;

use crate::domain::{
    AgentId, ExportLine, ExportedEvent, ExportedTask, ExportedTurn, Limits, OrganizationId,
    ShortText, Status, TaskId, UserId, raw_json,
};
use crate::store::pool::Transaction;
use crate::store::sql::set_time_limits;
use crate::store::{Store, StoreError};

/// Most tasks that are read at a time, without their turns.
const MAX_TASKS: i64 = 200;

/// Most turns or events that are read at a time.
const MAX_ROWS: i64 = 1000;

/// Most bytes of texts and JSON that are read at a time, unless a single row has more.
const MAX_BYTES: i32 = 4 << 20;

/// About how many bytes a page has.
const PAGE_BYTES: usize = 4 << 20;

/// An export under way: one snapshot of the tasks of an organization, or of one of its agents.
pub struct TaskExport {
    transaction: Transaction,
    organization: OrganizationId,
    agent: Option<AgentId>,
    /// The id of the last task that was read.
    after: String,
    /// Tasks that were read and are not yet complete in the export, in order.
    tasks: VecDeque<ExportedTask>,
    turns: Rows<ExportedTurn>,
    events: Rows<ExportedEvent>,
}

/// Turns or events that were read ahead, of the tasks in order.
struct Rows<T> {
    ready: VecDeque<(TaskId, T)>,
    /// How many to read next: as many as may fit into [`MAX_BYTES`].
    limit: i64,
    /// How many of the first task are in the export, and the number of the last of them.
    taken: i64,
    last: i64,
}

/// A task has fewer turns or events than it says.
#[derive(Debug, thiserror::Error)]
#[error("a row is missing; run `task-history verify`")]
struct MissingRow;

impl<T> Rows<T> {
    const fn new() -> Self {
        Self { ready: VecDeque::new(), limit: 64, taken: 0, last: 0 }
    }

    /// The tasks whose rows to read next: the first, which may have been read in part, and those
    /// after it that fit with it.
    fn wanted(
        &self,
        tasks: &VecDeque<ExportedTask>,
        rows: fn(&ExportedTask) -> i64,
    ) -> Vec<TaskId> {
        let mut sum = 0;
        let fits = |task: &&ExportedTask| {
            let is_first = sum == 0;
            sum += rows(task).max(1);
            is_first || (self.taken == 0 && sum <= self.limit)
        };
        tasks.iter().take_while(fits).map(|task| task.id.clone()).collect()
    }

    /// Keeps what was read, and adapts to its size.
    fn fill(&mut self, rows: VecDeque<(TaskId, T)>) {
        let read = i64::try_from(rows.len()).unwrap_or(MAX_ROWS);
        self.limit = (2 * read).clamp(8, MAX_ROWS);
        self.ready = rows;
    }

    /// Takes the next row of a task, if it was read.
    fn take(&mut self, task: &TaskId, number: fn(&T) -> i64) -> Option<T> {
        let (_, row) = self.ready.pop_front_if(|(id, _)| id == task)?;
        self.taken += 1;
        self.last = number(&row);
        Some(row)
    }

    /// The rows of the next task are taken from the beginning.
    fn next_task(&mut self) {
        self.taken = 0;
        self.last = 0;
    }
}

impl Store {
    /// Begins to export. The snapshot is held until the export is finished or dropped, or until the
    /// caller has been idle for `max_idle`; the database cannot clean up what changes meanwhile.
    pub async fn export_tasks(
        &self,
        organization: OrganizationId,
        agent: Option<AgentId>,
        max_idle: Duration,
        limits: &Limits,
    ) -> Result<TaskExport, StoreError> {
        let mut transaction = self.pool.shared().begin_snapshot().await?;
        set_time_limits(&mut transaction, limits.export_page_timeout, max_idle).await?;
        Ok(TaskExport {
            transaction,
            organization,
            agent,
            after: String::new(),
            tasks: VecDeque::new(),
            turns: Rows::new(),
            events: Rows::new(),
        })
    }
}

impl TaskExport {
    /// The next lines, in order: a few MiB, or a single line that has more. Empty at the end.
    pub async fn next_page(&mut self) -> Result<Vec<ExportLine>, StoreError> {
        let mut lines = Vec::new();
        let mut bytes = 0;
        while bytes < PAGE_BYTES {
            if self.tasks.is_empty() {
                self.read_tasks().await?;
            }
            let Some(task) = self.tasks.front() else { break };
            let line = lines.len();
            let (turns, events) = (i64::from(task.turns), task.events);
            if self.turns.taken < turns {
                if self.turns.ready.is_empty() {
                    self.read_turns().await?;
                }
                let task = self.tasks.front().expect("not taken yet");
                if self.turns.taken == 0 {
                    lines.push(ExportLine::Task(task.clone()));
                }
                let turn = self.turns.take(&task.id, |turn| i64::from(turn.number));
                let turn = turn.ok_or_else(|| self.missing("task_turns", &task.id))?;
                lines.push(ExportLine::Turn(turn));
            } else if self.events.taken < events {
                if self.events.ready.is_empty() {
                    self.read_events().await?;
                }
                let task = self.tasks.front().expect("not taken yet");
                let event = self.events.take(&task.id, |event| event.number);
                let event = event.ok_or_else(|| self.missing("task_events", &task.id))?;
                lines.push(ExportLine::Event(event));
            } else {
                self.tasks.pop_front();
                self.turns.next_task();
                self.events.next_task();
            }
            bytes += lines[line..].iter().map(ExportLine::size).sum::<usize>();
        }
        // A large row leaves a large buffer.
        self.transaction.shrink_buffers();
        Ok(lines)
    }

    /// Ends the export, and gives the connection back.
    pub async fn finish(self) -> Result<(), StoreError> {
        Ok(self.transaction.rollback().await?)
    }

    fn missing(&self, table: &'static str, task: &TaskId) -> StoreError {
        let row = format!("{}, {task}", self.organization);
        StoreError::corrupt(table, row, MissingRow)
    }

    async fn read_tasks(&mut self) -> Result<(), StoreError> {
        // A title that is not the latest turn's is exported. Of many large ones, few at a time.
        let rows = sqlx::query!(
            r#"
            SELECT id AS "id!: TaskId", agent_id AS "agent_id!: AgentId",
                   user_id AS "user_id?: UserId", parent_task_id AS "parent_task_id?: TaskId",
                   triggering_agent_id AS "triggering_agent_id?: AgentId",
                   source AS "source!: ShortText", title AS "title?",
                   created_at AS "created_at!", updated_at AS "updated_at!", turns AS "turns!",
                   events AS "events!", last_event AS "last_event!"
            FROM (
                SELECT task.*, sum(octet_length(task.title)) OVER (ORDER BY task.id) AS bytes,
                       row_number() OVER (ORDER BY task.id) AS number
                FROM (
                    SELECT task.id, task.agent_id, task.user_id, task.parent_task_id,
                           task.triggering_agent_id, task.source,
                           CASE WHEN task.title IS DISTINCT FROM COALESCE(
                               latest.request->>'title', NULLIF(latest.input->>'text', '')
                           ) THEN task.title END AS title,
                           task.created_at, task.updated_at, task.turns,
                           (
                               SELECT count(*) FROM task_events event
                               WHERE event.organization_id = $1 AND event.task_id = task.id
                           ) AS events,
                           task.events AS last_event
                    FROM tasks task
                    LEFT JOIN task_turns latest
                        ON latest.organization_id = $1
                        AND latest.task_id = task.id
                        AND latest.turn = task.turns
                    WHERE task.organization_id = $1
                      AND task.id > $2
                      AND ($3::text IS NULL OR task.agent_id = $3)
                    ORDER BY task.id
                    LIMIT $4
                ) AS task
            ) AS page
            WHERE bytes <= $5::bigint OR bytes IS NULL OR number = 1
            ORDER BY id
            "#,
            self.organization as OrganizationId,
            self.after,
            self.agent.as_ref() as Option<&AgentId>,
            MAX_TASKS,
            i64::from(MAX_BYTES)
        )
        .fetch_all(&mut self.transaction)
        .await?;
        if let Some(last) = rows.last() {
            last.id.as_str().clone_into(&mut self.after);
        }
        let tasks = rows.into_iter().map(|row| ExportedTask {
            id: row.id,
            agent_id: row.agent_id,
            user_id: row.user_id,
            parent_task_id: row.parent_task_id,
            triggering_agent_id: row.triggering_agent_id,
            source: row.source,
            title: row.title,
            created_at: row.created_at,
            updated_at: row.updated_at,
            turns: row.turns,
            events: row.events,
            last_event: row.last_event,
        });
        self.tasks = tasks.collect();
        Ok(())
    }

    async fn read_turns(&mut self) -> Result<(), StoreError> {
        let wanted = self.turns.wanted(&self.tasks, |task| i64::from(task.turns));
        let rows = sqlx::query!(
            r#"
            SELECT task_id AS "task_id!: TaskId", turn AS "turn!", input::text AS "input!",
                   request::text AS "request!", reported::text AS "reported!",
                   status AS "status!: Status", internal_status AS "internal_status?: ShortText",
                   result AS "result?", last_executed_node_id AS "last_executed_node_id?",
                   is_manually_stopped AS "is_manually_stopped!", created_at AS "created_at!",
                   started_at AS "started_at?", paused_at AS "paused_at?",
                   finished_at AS "finished_at?"
            FROM (
                SELECT turn.*, sum(turn.bytes) OVER (ORDER BY turn.task_id, turn.turn) AS total
                FROM unnest($2::text[]) AS wanted (id)
                CROSS JOIN LATERAL (
                    SELECT *, octet_length(input::text)::bigint + octet_length(request::text)
                              + octet_length(reported::text) + COALESCE(octet_length(result), 0)
                              + COALESCE(octet_length(last_executed_node_id), 0) AS bytes
                    FROM task_turns
                    WHERE organization_id = $1
                      AND task_id = wanted.id COLLATE "C"
                      AND turn > $3::bigint
                    ORDER BY turn
                    LIMIT $4
                ) AS turn
            ) AS sized
            WHERE total <= $5::bigint OR total = bytes
            ORDER BY task_id, turn
            "#,
            self.organization as OrganizationId,
            &wanted as &[TaskId],
            self.turns.last,
            self.turns.limit,
            i64::from(MAX_BYTES)
        )
        .fetch_all(&mut self.transaction)
        .await?;
        let mut turns = VecDeque::with_capacity(rows.len());
        for row in rows {
            let json = |text| {
                raw_json(text).map_err(|error| {
                    let row = format!("{}, {}, turn {}", self.organization, row.task_id, row.turn);
                    StoreError::corrupt("task_turns", row, error)
                })
            };
            let optional =
                |text: String| if text == "{}" { Ok(None) } else { json(text).map(Some) };
            let turn = ExportedTurn {
                number: row.turn,
                input: json(row.input)?,
                request: optional(row.request)?,
                reported: optional(row.reported)?,
                status: row.status,
                internal_status: row.internal_status,
                result: row.result,
                last_executed_node_id: row.last_executed_node_id,
                is_manually_stopped: row.is_manually_stopped,
                created_at: row.created_at,
                started_at: row.started_at,
                paused_at: row.paused_at,
                finished_at: row.finished_at,
            };
            turns.push_back((row.task_id, turn));
        }
        self.turns.fill(turns);
        Ok(())
    }

    async fn read_events(&mut self) -> Result<(), StoreError> {
        let wanted = self.events.wanted(&self.tasks, |task| task.events);
        let rows = sqlx::query!(
            r#"
            SELECT task_id AS "task_id!: TaskId", event AS "event!", turn AS "turn!",
                   type AS "kind!: ShortText", data::text AS "data!", created_at AS "created_at!"
            FROM (
                SELECT event.*, sum(event.bytes) OVER (ORDER BY event.task_id, event.event) AS total
                FROM unnest($2::text[]) AS wanted (id)
                CROSS JOIN LATERAL (
                    SELECT *, octet_length(data::text)::bigint AS bytes
                    FROM task_events
                    WHERE organization_id = $1
                      AND task_id = wanted.id COLLATE "C"
                      AND event > $3
                    ORDER BY event
                    LIMIT $4
                ) AS event
            ) AS sized
            WHERE total <= $5::bigint OR total = bytes
            ORDER BY task_id, event
            "#,
            self.organization as OrganizationId,
            &wanted as &[TaskId],
            self.events.last,
            self.events.limit,
            i64::from(MAX_BYTES)
        )
        .fetch_all(&mut self.transaction)
        .await?;
        let mut events = VecDeque::with_capacity(rows.len());
        for row in rows {
            let data = raw_json(row.data).map_err(|error| {
                let row = format!("{}, {}, event {}", self.organization, row.task_id, row.event);
                StoreError::corrupt("task_events", row, error)
            })?;
            let event = ExportedEvent {
                number: row.event,
                turn: row.turn,
                r#type: row.kind,
                data,
                created_at: row.created_at,
            };
            events.push_back((row.task_id, event));
        }
        self.events.fill(events);
        Ok(())
    }
}
