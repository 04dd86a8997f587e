//! Import of a task that is too large for memory.
//!
//! Its rows are staged in temporary tables, which only its session sees. One statement then records
//! the whole task, so other writes of the organization wait for that statement and not for the
//! file.

use chrono::{DateTime, SecondsFormat, Utc};

use crate::domain::{
    AgentId, ExportedEvent, ExportedTask, ExportedTurn, Limits, OrganizationId, ShortText, TaskId,
    UserId, WireEnum,
};
use crate::store::executor::CopyIn;
use crate::store::pool::Transaction;
use crate::store::sql::{Sql, set_time_limits};
use crate::store::{Store, StoreError};

/// How many bytes are sent at a time.
const CHUNK_BYTES: usize = 1 << 16;

/// A task whose turns and events are staged until it can be recorded. Dropping it discards them.
pub struct LargeTaskImport {
    transaction: Transaction,
    organization: OrganizationId,
}

impl Store {
    /// Begins to import a task in parts.
    pub async fn import_large_task(
        &self,
        organization: OrganizationId,
        limits: &Limits,
    ) -> Result<LargeTaskImport, StoreError> {
        let mut transaction = self.pool.shared().begin().await?;
        let timeout = limits.import_task_timeout;
        set_time_limits(&mut transaction, timeout, timeout).await?;
        for table in [
            "CREATE TEMPORARY TABLE imported_turns \
             (LIKE task_turns INCLUDING COMPRESSION) ON COMMIT DROP",
            "CREATE TEMPORARY TABLE imported_events \
             (LIKE task_events INCLUDING COMPRESSION) ON COMMIT DROP",
        ] {
            Sql::new(table).fetch_all(&mut transaction).await?;
        }
        Ok(LargeTaskImport { transaction, organization })
    }
}

impl LargeTaskImport {
    /// Stages a part of the task.
    pub async fn add(
        &mut self,
        task: &TaskId,
        turns: &[ExportedTurn],
        events: &[ExportedEvent],
    ) -> Result<(), StoreError> {
        self.add_turns(task, turns).await?;
        self.add_events(task, events).await
    }

    async fn add_turns(&mut self, task: &TaskId, turns: &[ExportedTurn]) -> Result<(), StoreError> {
        if turns.is_empty() {
            return Ok(());
        }
        let organization = self.organization.to_string();
        let statement = "COPY pg_temp.imported_turns (organization_id, task_id, turn, input, \
                         request, reported, status, internal_status, result, \
                         last_executed_node_id, is_manually_stopped, created_at, started_at, \
                         paused_at, finished_at) FROM STDIN";
        let mut copy = CopyRows::begin(&mut self.transaction, statement).await?;
        for turn in turns {
            copy.push(Some(&organization)).await?;
            copy.push(Some(task.as_str())).await?;
            copy.push(Some(&turn.number.to_string())).await?;
            copy.push(Some(turn.input.get())).await?;
            copy.push(Some(turn.request_json())).await?;
            copy.push(Some(turn.reported_json())).await?;
            copy.push(Some(turn.status.as_str())).await?;
            copy.push(turn.internal_status.as_ref().map(ShortText::as_str)).await?;
            copy.push(turn.result.as_deref()).await?;
            copy.push(turn.last_executed_node_id.as_deref()).await?;
            copy.push(Some(if turn.is_manually_stopped { "true" } else { "false" })).await?;
            let times = [Some(turn.created_at), turn.started_at, turn.paused_at, turn.finished_at];
            for time in times {
                copy.push(time.map(time_text).as_deref()).await?;
            }
            copy.end_row();
        }
        copy.finish().await
    }

    async fn add_events(
        &mut self,
        task: &TaskId,
        events: &[ExportedEvent],
    ) -> Result<(), StoreError> {
        if events.is_empty() {
            return Ok(());
        }
        let organization = self.organization.to_string();
        let statement = "COPY pg_temp.imported_events (organization_id, task_id, event, turn, \
                         type, data, created_at) FROM STDIN";
        let mut copy = CopyRows::begin(&mut self.transaction, statement).await?;
        for event in events {
            copy.push(Some(&organization)).await?;
            copy.push(Some(task.as_str())).await?;
            copy.push(Some(&event.number.to_string())).await?;
            copy.push(Some(&event.turn.to_string())).await?;
            copy.push(Some(event.r#type.as_str())).await?;
            copy.push(Some(event.data.get())).await?;
            copy.push(Some(&time_text(event.created_at))).await?;
            copy.end_row();
        }
        copy.finish().await
    }

    /// Records the task with what was staged, unless it exists. Returns whether it was recorded.
    /// Committed when this returns.
    pub async fn finish(mut self, task: &ExportedTask) -> Result<bool, StoreError> {
        let mut sql = Sql::new(
            "WITH task AS (
                INSERT INTO tasks (
                    organization_id, id, agent_id, user_id, parent_task_id, triggering_agent_id,
                    status, internal_status, source, title, result, turns, events, created_at,
                    updated_at
                )
                SELECT turn.organization_id, turn.task_id, ",
        );
        sql.push_bind(task.agent_id.as_str()).push(", ");
        sql.push_bind(task.user_id.as_ref().map(UserId::as_str)).push(", ");
        sql.push_bind(task.parent_task_id.as_ref().map(TaskId::as_str)).push(", ");
        sql.push_bind(task.triggering_agent_id.as_ref().map(AgentId::as_str));
        sql.push(", turn.status, turn.internal_status, ");
        sql.push_bind(task.source.as_str()).push(", COALESCE(").push_bind(task.title.as_deref());
        // The latest turn's title, as in `ExportedTurn::title`.
        sql.push(", turn.request->>'title', NULLIF(turn.input->>'text', '')), ");
        sql.push("turn.result, turn.turn, ");
        sql.push_bind(task.last_event).push(", ");
        sql.push_bind(task.created_at).push(", ");
        sql.push_bind(task.updated_at);
        sql.push(" FROM pg_temp.imported_turns AS turn WHERE turn.organization_id = ");
        sql.push_bind(self.organization).push(" AND turn.turn = ").push_bind(task.turns);
        sql.push(
            " ON CONFLICT (organization_id, id) DO NOTHING
                RETURNING organization_id, id
            ),
            turn AS (
                INSERT INTO task_turns
                SELECT turn.*
                FROM pg_temp.imported_turns AS turn
                JOIN task ON task.organization_id = turn.organization_id AND task.id = turn.task_id
            ),
            event AS (
                INSERT INTO task_events
                SELECT event.*
                FROM pg_temp.imported_events AS event
                JOIN task
                    ON task.organization_id = event.organization_id AND task.id = event.task_id
            )
            SELECT count(*) FROM task",
        );
        let recorded: i64 = sql.fetch_scalar(&mut self.transaction).await?;
        self.transaction.commit().await?;
        Ok(recorded == 1)
    }

    /// Discards what was staged, and gives the connection back.
    pub async fn cancel(self) -> Result<(), StoreError> {
        Ok(self.transaction.rollback().await?)
    }
}

fn time_text(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Micros, true)
}

/// Rows that are sent in chunks, in the text format of COPY. The parameters of a statement would
/// take several times the memory of a large row.
struct CopyRows<'c> {
    copy: CopyIn<'c>,
    chunk: Vec<u8>,
    is_row_start: bool,
}

impl<'c> CopyRows<'c> {
    async fn begin(
        transaction: &'c mut Transaction,
        statement: &'static str,
    ) -> Result<Self, StoreError> {
        let copy = transaction.copy_in(statement).await?;
        Ok(Self { copy, chunk: Vec::with_capacity(2 * CHUNK_BYTES), is_row_start: true })
    }

    /// Appends a value to the row.
    async fn push(&mut self, value: Option<&str>) -> Result<(), StoreError> {
        if !self.is_row_start {
            self.chunk.push(b'\t');
        }
        self.is_row_start = false;
        let Some(text) = value else {
            self.chunk.extend_from_slice(b"\\N");
            return Ok(());
        };
        for part in text.as_bytes().chunks(CHUNK_BYTES) {
            for byte in part {
                match byte {
                    b'\\' => self.chunk.extend_from_slice(b"\\\\"),
                    b'\t' => self.chunk.extend_from_slice(b"\\t"),
                    b'\n' => self.chunk.extend_from_slice(b"\\n"),
                    b'\r' => self.chunk.extend_from_slice(b"\\r"),
                    _ => self.chunk.push(*byte),
                }
            }
            if self.chunk.len() >= CHUNK_BYTES {
                self.copy.send(&self.chunk[..]).await?;
                self.chunk.clear();
            }
        }
        Ok(())
    }

    fn end_row(&mut self) {
        self.chunk.push(b'\n');
        self.is_row_start = true;
    }

    async fn finish(mut self) -> Result<(), StoreError> {
        self.copy.send(&self.chunk[..]).await?;
        self.copy.finish().await?;
        Ok(())
    }
}
