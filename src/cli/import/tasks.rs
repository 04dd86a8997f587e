//! Putting records together to tasks, and tasks to batches.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::{Context, anyhow};
use tokio::sync::{mpsc, oneshot};

use super::partial::PartialTask;
use super::records::{Next, Position, RecordReader, within};
use super::{Batch, ImportCounts, Work};
use crate::cli::OnError;
use crate::cli::progress::TransferProgress;
use crate::domain::{
    CompleteTask, ExportedTask, ExportedTurn, ImportRecord, RecordError, TaskId, WholeTask,
    first_name,
};

/// Most tasks that are written in one transaction.
const BATCH_TASKS: usize = 500;

/// Most bytes that are written in one transaction. A task that has more is written in parts.
const BATCH_BYTES: usize = 2 << 20;

/// Why reading stops before the end of the file.
enum Halt {
    /// The writer needs no more.
    WriterGone,
    Failed(anyhow::Error),
}

/// Reads tasks from a file and sends them to the writer.
pub(super) struct TaskReader {
    on_error: OnError,
    sender: mpsc::Sender<Work>,
    stopped: Arc<AtomicBool>,
    counts: Arc<Mutex<ImportCounts>>,
    progress: Arc<TransferProgress>,
    /// How much of the file was read.
    read_to: u64,
    batch: Batch,
    /// The tasks of the batch.
    ids: HashSet<TaskId>,
    partial: Option<PartialTask>,
    /// Whether turns and events belong to a task that was refused.
    skips_rows: bool,
}

impl TaskReader {
    pub(super) fn new(
        on_error: OnError,
        sender: mpsc::Sender<Work>,
        stopped: Arc<AtomicBool>,
        counts: Arc<Mutex<ImportCounts>>,
        progress: Arc<TransferProgress>,
    ) -> Self {
        Self {
            on_error,
            sender,
            stopped,
            counts,
            progress,
            read_to: 0,
            batch: Batch::default(),
            ids: HashSet::new(),
            partial: None,
            skips_rows: false,
        }
    }

    /// Reads to the end, or until something stops it. Blocks the thread.
    pub(super) fn run(mut self, mut records: RecordReader) -> anyhow::Result<()> {
        match self.read_all(&mut records) {
            Ok(()) | Err(Halt::WriterGone) => Ok(()),
            Err(Halt::Failed(error)) => Err(error),
        }
    }

    fn read_all(&mut self, records: &mut RecordReader) -> Result<(), Halt> {
        loop {
            if self.stopped.load(Ordering::Relaxed) {
                return Err(Halt::WriterGone);
            }
            let line = records.line();
            let next = records.read_next();
            self.read_to = records.bytes_read();
            let next = next.with_context(|| format!("line {line} cannot be read"));
            match next.map_err(Halt::Failed)? {
                Next::End => break,
                Next::Invalid(at, reason) => self.refuse_row(at, &reason, false)?,
                Next::Record(at) => self.take_record(records, at)?,
            }
            // What is sent is in memory a second time.
            records.release();
            self.send_if_large()?;
        }
        self.finish_partial()?;
        self.flush()
    }

    fn take_record(&mut self, records: &RecordReader, at: Position) -> Result<(), Halt> {
        let text = records.text();
        match ImportRecord::parse(text) {
            Ok(ImportRecord::Header) => {
                self.finish_partial()?;
                self.skips_rows = false;
                Ok(())
            }
            Ok(ImportRecord::Task(task)) => self.begin(*task, at),
            Ok(ImportRecord::Whole(whole)) => self.take_whole(&whole, text, at),
            Ok(ImportRecord::Turn(turn)) => {
                self.take_row(at, turn.size(), |partial| partial.add_turn(*turn))
            }
            Ok(ImportRecord::Event(event)) => {
                self.take_row(at, event.size(), |partial| partial.add_event(event))
            }
            Err(RecordError { offset, reason }) => {
                let is_cut_off = reason.starts_with("EOF") && records.is_cut_off();
                let hint = if is_cut_off { "; the file may be cut off" } else { "" };
                let name = first_name(text);
                if name == Some("task") {
                    self.finish_partial()?;
                }
                let is_row = matches!(name, Some("turn" | "event"));
                if is_row && self.skips_rows {
                    return Ok(());
                }
                let at = within(at, text.as_bytes(), offset);
                self.refuse_row(at, &format!("{reason}{hint}"), is_row)
            }
        }
    }

    fn begin(&mut self, task: ExportedTask, at: Position) -> Result<(), Halt> {
        self.finish_partial()?;
        self.skips_rows = false;
        self.partial = Some(PartialTask::new(task, at));
        Ok(())
    }

    fn take_whole(&mut self, whole: &WholeTask<'_>, text: &str, at: Position) -> Result<(), Halt> {
        self.begin(whole.task.clone(), at)?;
        let position = |offset| within(at, text.as_bytes(), offset);
        for (offset, turn) in whole.turns() {
            match turn {
                Ok(turn) => {
                    let size = turn.size();
                    let add = |partial: &mut PartialTask| partial.add_turn(turn);
                    self.take_row(position(offset), size, add)?;
                }
                Err(error) => self.refuse_row(position(error.offset), &error.reason, true)?,
            }
            if self.partial.is_none() {
                return Ok(());
            }
            self.send_if_large()?;
        }
        for (offset, event) in whole.events() {
            match event {
                Ok(event) => {
                    let size = event.size();
                    let add = |partial: &mut PartialTask| partial.add_event(event);
                    self.take_row(position(offset), size, add)?;
                }
                Err(error) => self.refuse_row(position(error.offset), &error.reason, true)?,
            }
            if self.partial.is_none() {
                return Ok(());
            }
            self.send_if_large()?;
        }
        self.finish_partial()
    }

    /// Adds a turn or an event to the task before it.
    fn take_row(
        &mut self,
        at: Position,
        size: usize,
        add: impl FnOnce(&mut PartialTask) -> Result<(), String>,
    ) -> Result<(), Halt> {
        if self.skips_rows {
            return Ok(());
        }
        let Some(partial) = &mut self.partial else {
            let reason = "a turn or an event must come after the line of its task";
            return self.refuse_row(at, reason, true);
        };
        match add(partial) {
            Ok(()) => {
                partial.bytes += size;
                Ok(())
            }
            Err(reason) => self.refuse_row(at, &reason, true),
        }
    }

    fn send_if_large(&mut self) -> Result<(), Halt> {
        let is_large = self.partial.as_ref().is_some_and(|partial| partial.bytes > BATCH_BYTES);
        if is_large { self.send_part() } else { Ok(()) }
    }

    /// Refuses something that is or may be a turn or an event of the task before it. The task is
    /// refused with it, unless it is complete and this is something else.
    fn refuse_row(&mut self, at: Position, reason: &str, is_row: bool) -> Result<(), Halt> {
        match self.partial.take_if(|partial| is_row || !partial.is_complete()) {
            None => {
                self.finish_partial()?;
                self.refuse(at, reason)
            }
            Some(partial) => {
                if partial.is_large {
                    self.send(Work::LargeTaskRefused)?;
                }
                let PartialTask { task, begins, .. } = partial;
                self.refuse(
                    at,
                    &format!("{reason} (in task `{}` of line {})", task.id, begins.line),
                )
            }
        }
    }

    fn refuse(&mut self, at: Position, reason: &str) -> Result<(), Halt> {
        self.skips_rows = true;
        self.counts.lock().expect("no code panics with the lock").invalid += 1;
        let place = format!("line {}, column {}", at.line, at.column);
        if self.on_error == OnError::Stop {
            // The tasks before it are imported.
            self.flush()?;
            return Err(Halt::Failed(anyhow!(
                "{place}: {reason}. The tasks before it are imported; fix it and import the file \
                 again, or skip invalid lines with --on-error skip"
            )));
        }
        self.progress.note(&format!("{place} is skipped: {reason}"));
        Ok(())
    }

    /// The task before this is complete, or refused.
    fn finish_partial(&mut self) -> Result<(), Halt> {
        let Some(mut partial) = self.partial.take() else { return Ok(()) };
        if !partial.is_complete() {
            if partial.is_large {
                self.send(Work::LargeTaskRefused)?;
            }
            let PartialTask { task, begins, turns_seen, events_seen, .. } = partial;
            let reason = format!(
                "the task `{}` has {} turns and {} events, but {turns_seen} and {events_seen} \
                 follow; the file may be cut off",
                task.id, task.turns, task.events
            );
            return self.refuse(begins, &reason);
        }
        if partial.is_large {
            self.partial = Some(partial);
            self.send_part()?;
            let Some(partial) = self.partial.take() else { return Ok(()) };
            return self.send(Work::LargeTaskEnd(Box::new(partial.into_task())));
        }
        let turns = std::mem::take(&mut partial.turns);
        let events = std::mem::take(&mut partial.events);
        let (bytes, line) = (partial.bytes, partial.begins.line);
        let mut task = partial.into_task();
        task.title = task.title.or_else(|| turns.last().and_then(ExportedTurn::title));
        // Of two tasks with one id the first is imported, as between two imports.
        let is_new = self.ids.insert(task.id.clone());
        if !is_new
            || self.batch.tasks.len() >= BATCH_TASKS
            || self.batch.bytes + bytes > BATCH_BYTES
        {
            self.flush()?;
            self.ids.insert(task.id.clone());
        }
        self.batch.tasks.push(CompleteTask { task, turns, events });
        self.batch.lines.push(line);
        self.batch.bytes += bytes;
        Ok(())
    }

    /// Sends what was read of a task that is too large for a batch.
    fn send_part(&mut self) -> Result<(), Halt> {
        let Some(mut partial) = self.partial.take() else { return Ok(()) };
        if !partial.is_large {
            self.flush()?;
            let (task, line) = (Box::new(partial.task.clone()), partial.begins.line);
            self.send(Work::LargeTask(task, line))?;
            partial.is_large = true;
        }
        let (staged, is_staged) = oneshot::channel();
        let part = Work::LargeTaskPart {
            turns: std::mem::take(&mut partial.turns),
            events: std::mem::take(&mut partial.events),
            read_to: self.read_to,
            staged,
        };
        partial.bytes = 0;
        self.partial = Some(partial);
        self.send(part)?;
        // One part is in memory at a time.
        is_staged.blocking_recv().map_err(|_| Halt::WriterGone)
    }

    fn flush(&mut self) -> Result<(), Halt> {
        self.ids.clear();
        if self.batch.tasks.is_empty() {
            return Ok(());
        }
        let mut batch = std::mem::take(&mut self.batch);
        batch.read_to = self.read_to;
        self.send(Work::Batch(batch))
    }

    fn send(&self, work: Work) -> Result<(), Halt> {
        self.sender.blocking_send(work).map_err(|_| Halt::WriterGone)
    }
}
