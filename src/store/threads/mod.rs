//! Threads: conversations as entries, read in steps of bounded size.

mod tree;

use std::collections::VecDeque;

use chrono::{DateTime, Utc};

use tree::TreePosition;

use super::read_budget::{Reservation, STEP_BYTES};
use super::sql::parse_json;
use super::{Store, StoreError};
use crate::domain::{Event, EventKind, Message, OrganizationId, TaskId, ThreadEntry};

/// Most entries of a step.
const MAX_ENTRIES: usize = 1000;

/// Most tasks whose entries a step looks for.
const MAX_TASKS: usize = 200;

/// What a thread consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ThreadScope {
    /// The messages of one task.
    Task,
    /// The messages of one task, and the events that runners pushed.
    TaskWithEvents,
    /// The messages of a task and of its sub-tasks to any depth.
    Tree,
}

/// Reads a thread in steps.
///
/// Each step is a statement of its own, so a slow client holds no connection. The set of entries of
/// a task is fixed when its first entry is read: its latest turn and its latest event of that time
/// are the last ones. A result that is reported later may still be read.
pub struct ThreadReader {
    store: Store,
    organization: OrganizationId,
    scope: ThreadScope,
    /// Tasks whose entries remain, the one in progress first.
    tasks: VecDeque<TaskId>,
    /// Where in the first of `tasks` the reader is.
    position: Position,
    /// The sizes of the next entries, as far as they are known.
    ahead: VecDeque<usize>,
    /// Where in the tree the ids of further tasks begin.
    tree: Option<TreePosition>,
    is_first: bool,
    /// Whether no entry has been read yet.
    is_empty: bool,
}

/// Entries of a thread, in order.
#[derive(Debug)]
pub struct ThreadStep {
    /// The entries, each with its task.
    pub entries: Vec<(TaskId, ThreadEntry)>,
    /// Whether the thread ends with them.
    pub is_last: bool,
    /// Their memory. The first step has none.
    pub reservation: Option<Reservation>,
}

/// The last entries of a task that were read, and the last that will be.
#[derive(Debug, Default)]
struct Position {
    question: i32,
    answer: i32,
    event: i64,
    last_turn: Option<i32>,
    last_event: Option<i64>,
}

/// An entry as selected. It has no content if it is beyond the step's budget.
struct EntryRow {
    task_id: TaskId,
    last_turn: i32,
    last_event: i64,
    turn: i32,
    event: i64,
    part: i32,
    kind: Option<String>,
    content: Option<String>,
    created_at: DateTime<Utc>,
    bytes: i32,
    candidates: i64,
}

/// The parts of a turn as the statement numbers them: its question, its events, its answer.
const QUESTION: i32 = 0;
const EVENT: i32 = 1;

impl Store {
    /// A reader of a task's thread.
    pub fn read_thread(
        &self,
        organization: OrganizationId,
        id: &TaskId,
        scope: ThreadScope,
    ) -> ThreadReader {
        ThreadReader {
            store: self.clone(),
            organization,
            scope,
            tasks: VecDeque::from([id.clone()]),
            position: Position::default(),
            ahead: VecDeque::new(),
            tree: None,
            is_first: true,
            is_empty: true,
        }
    }

    /// A reader of the question of one turn.
    pub fn read_question(
        &self,
        organization: OrganizationId,
        id: &TaskId,
        turn: i32,
    ) -> ThreadReader {
        let mut reader = self.read_thread(organization, id, ThreadScope::Task);
        reader.position = Position {
            question: turn - 1,
            answer: turn,
            event: 0,
            last_turn: Some(turn),
            last_event: None,
        };
        reader
    }
}

impl ThreadReader {
    /// Reads the next entries. There may be none although the step is not the last: the first step
    /// leaves out entries that are too large to be read without a reservation.
    pub async fn next_step(&mut self) -> Result<ThreadStep, StoreError> {
        let is_first = std::mem::take(&mut self.is_first);
        let needs_ids = if is_first {
            self.scope == ThreadScope::Tree
        } else {
            self.tasks.is_empty() && self.tree.is_some()
        };
        if needs_ids {
            self.read_ids().await?;
        }
        let (limit, bytes) = self.next_size();
        let reservation = if is_first {
            None
        } else {
            Some(self.store.read_budget.reserve(self.organization, bytes).await?)
        };
        let rows = self.read_entries(limit, bytes).await?;
        let entries = self.take(rows, limit)?;
        let is_last = self.tasks.is_empty() && self.tree.is_none();
        // Each task has a turn, so there is no such task, or no longer.
        self.is_empty &= entries.is_empty();
        if is_last && self.is_empty {
            return Err(StoreError::TaskNotFound);
        }
        Ok(ThreadStep { entries, is_last, reservation })
    }

    /// How many entries to read next, and how many bytes they may have.
    fn next_size(&self) -> (usize, usize) {
        let Some(first) = self.ahead.front() else { return (MAX_ENTRIES, STEP_BYTES) };
        let budget = STEP_BYTES.max(*first);
        let mut total = 0;
        let fits = |size: &&usize| {
            total += **size;
            total <= budget
        };
        (self.ahead.iter().take_while(fits).count(), budget)
    }

    /// Takes the entries of selected rows, and moves the position behind them.
    fn take(
        &mut self,
        rows: Vec<EntryRow>,
        limit: usize,
    ) -> Result<Vec<(TaskId, ThreadEntry)>, StoreError> {
        let candidates = rows.first().map_or(0, |row| row.candidates);
        let candidates = usize::try_from(candidates).unwrap_or(usize::MAX);
        let has_all = candidates == rows.len() && candidates < limit;
        let mut asked = self.tasks.len().min(MAX_TASKS);
        let mut entries = Vec::new();
        let mut ahead = VecDeque::new();
        for row in rows {
            if row.content.is_none() {
                ahead.push_back(usize::try_from(row.bytes).unwrap_or(usize::MAX));
                continue;
            }
            while self.tasks.front().is_some_and(|task| *task != row.task_id) {
                self.tasks.pop_front();
                asked -= 1;
                self.position = Position::default();
            }
            self.position.advance(&row);
            entries.push(row.into_entry(self.organization)?);
        }
        if !ahead.is_empty() {
            self.ahead = ahead;
        } else if has_all {
            self.tasks.drain(..asked);
            self.position = Position::default();
            self.ahead.clear();
        } else {
            self.ahead.drain(..entries.len().min(self.ahead.len()));
        }
        Ok(entries)
    }

    /// Reads the next entries of the next tasks: at most `limit`, with contents of `bytes` at most,
    /// and the sizes of those after them.
    async fn read_entries(&self, limit: usize, bytes: usize) -> Result<Vec<EntryRow>, StoreError> {
        let tasks: Vec<&TaskId> = self.tasks.iter().take(MAX_TASKS).collect();
        let Position { question, answer, event, last_turn, last_event } = &self.position;
        // Sizes are of what is read, and compressed contents have to be unpacked to know theirs. So
        // the compressed sizes decide how many are looked at.
        let rows = sqlx::query_as!(
            EntryRow,
            r#"
            WITH entry AS MATERIALIZED (
                SELECT wanted.place, task.id, task.turns, task.events, entry.*
                FROM unnest($2::text[]) WITH ORDINALITY AS wanted (id, place)
                JOIN tasks task ON task.organization_id = $1 AND task.id = wanted.id
                CROSS JOIN LATERAL (
                    (
                        SELECT turn, 0 AS part, 0::bigint AS event, NULL AS kind, input,
                               NULL AS result, NULL::json AS data, created_at
                        FROM task_turns
                        WHERE organization_id = $1 AND task_id = task.id
                          AND turn > CASE WHEN wanted.place = 1 THEN $3::int ELSE 0 END
                          AND turn <= COALESCE(
                              CASE WHEN wanted.place = 1 THEN $4::int END, task.turns
                          )
                        ORDER BY turn
                        LIMIT $10
                    )
                    UNION ALL
                    (
                        SELECT turn, 2, 0, NULL, NULL, result, NULL,
                               COALESCE(finished_at, paused_at, started_at, created_at)
                        FROM task_turns
                        WHERE organization_id = $1 AND task_id = task.id AND result IS NOT NULL
                          AND turn > CASE WHEN wanted.place = 1 THEN $5::int ELSE 0 END
                          AND turn <= COALESCE(
                              CASE WHEN wanted.place = 1 THEN $4::int END, task.turns
                          )
                        ORDER BY turn
                        LIMIT $10
                    )
                    UNION ALL
                    (
                        SELECT turn, 1, event, type, NULL, NULL, data, created_at
                        FROM task_events
                        WHERE organization_id = $1 AND task_id = task.id AND $6::boolean
                          AND type <> ALL($7)
                          AND event > CASE WHEN wanted.place = 1 THEN $8::bigint ELSE 0 END
                          AND event <= COALESCE(
                              CASE WHEN wanted.place = 1 THEN $9::bigint END, task.events
                          )
                        ORDER BY event
                        LIMIT $10
                    )
                ) AS entry
                ORDER BY wanted.place, entry.turn, entry.part, entry.event
                LIMIT $10
            ),
            sized AS MATERIALIZED (
                SELECT numbered.*,
                       COALESCE(octet_length(input::text), octet_length(result),
                                octet_length(data::text)) AS bytes
                FROM (
                    SELECT entry.*, count(*) OVER () AS candidates,
                           row_number() OVER upto AS number,
                           sum(COALESCE(pg_column_size(input), pg_column_size(result),
                                        pg_column_size(data))) OVER upto AS stored
                    FROM entry
                    WINDOW upto AS (ORDER BY place, turn, part, event ROWS UNBOUNDED PRECEDING)
                ) AS numbered
                WHERE number = 1 OR stored <= $11
            )
            SELECT id AS "task_id!: TaskId", turns AS "last_turn!", events AS "last_event!",
                   turn AS "turn!", part AS "part!", event AS "event!", kind,
                   CASE WHEN sum(bytes) OVER (ORDER BY number ROWS UNBOUNDED PRECEDING) <= $11
                        THEN COALESCE(input::text, result, data::text) END AS content,
                   created_at AS "created_at!", bytes AS "bytes!", candidates AS "candidates!"
            FROM sized
            ORDER BY number
            "#,
            self.organization as OrganizationId,
            &tasks as &[&TaskId],
            question,
            *last_turn,
            answer,
            self.scope == ThreadScope::TaskWithEvents,
            &EventKind::STATE_TYPES.map(str::to_owned),
            event,
            *last_event,
            i64::try_from(limit).unwrap_or(i64::MAX),
            i64::try_from(bytes).unwrap_or(i64::MAX)
        )
        .fetch_all(self.store.pool.of(self.organization))
        .await?;
        Ok(rows)
    }
}

impl Position {
    /// Moves behind an entry.
    fn advance(&mut self, row: &EntryRow) {
        self.last_turn.get_or_insert(row.last_turn);
        self.last_event.get_or_insert(row.last_event);
        match row.part {
            QUESTION => (self.question, self.answer) = (row.turn, row.turn - 1),
            EVENT => self.event = row.event,
            _ => (self.question, self.answer) = (row.turn, row.turn),
        }
    }
}

impl EntryRow {
    fn into_entry(self, organization: OrganizationId) -> Result<(TaskId, ThreadEntry), StoreError> {
        let Self { task_id, turn, event, part, kind, content, created_at, .. } = self;
        let content = content.unwrap_or_default();
        let entry = match part {
            QUESTION => {
                let row = || format!("{organization}, {task_id}, turn {turn}");
                let input = parse_json("task_turns", &content, row)?;
                ThreadEntry::Message(Box::new(Message::question(&task_id, turn, input, created_at)))
            }
            EVENT => {
                let kind = kind.unwrap_or_default();
                let kind = EventKind::parse(kind, &content).map_err(|error| {
                    let row = format!("{organization}, {task_id}, event {event}");
                    StoreError::corrupt("task_events", row, error)
                })?;
                ThreadEntry::Event(Event { number: event, turn, kind, created_at })
            }
            _ => {
                ThreadEntry::Message(Box::new(Message::answer(&task_id, turn, content, created_at)))
            }
        };
        Ok((task_id, entry))
    }
}
