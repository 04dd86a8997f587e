//! Importing tasks from a file: `task-history import`.
//!
//! One thread reads and checks ([`tasks::TaskReader`]); the writer here records what it sends.

mod partial;
mod records;
mod tasks;

use std::collections::HashSet;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use anyhow::Context;
use serde_json::json;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinError, JoinSet};

use super::output::{note, print, print_json};
use super::progress::TransferProgress;
use super::session::with_store;
use super::{ImportArgs, OnError};
use crate::domain::{
    Clock, CompleteTask, ExportedEvent, ExportedTask, ExportedTurn, Limits, OrganizationId, TaskId,
};
use crate::store::{LargeTaskImport, Store, StoreError};
use records::RecordReader;
use tasks::TaskReader;

/// How many transactions are in flight: while one waits for the disk, the next is prepared.
const MAX_IN_FLIGHT: usize = 2;

/// Exit code if all valid tasks were imported and invalid lines were skipped.
const EXIT_SKIPPED: u8 = 3;

/// What the reader sends to the writer.
enum Work {
    /// Tasks that are written together.
    Batch(Batch),
    /// A task that is written in parts, and its line. The parts follow, then its end.
    LargeTask(Box<ExportedTask>, u64),
    /// A part of the large task. The reader waits until it is `staged`.
    LargeTaskPart {
        turns: Vec<ExportedTurn>,
        events: Vec<ExportedEvent>,
        read_to: u64,
        staged: oneshot::Sender<()>,
    },
    /// The large task, with all that is known at its end.
    LargeTaskEnd(Box<ExportedTask>),
    /// The large task is invalid.
    LargeTaskRefused,
}

/// Consecutive tasks that are written together.
#[derive(Default)]
struct Batch {
    tasks: Vec<CompleteTask>,
    /// The line of each task.
    lines: Vec<u64>,
    bytes: usize,
    /// How much of the file was read.
    read_to: u64,
}

/// What became of the tasks so far.
#[derive(Debug, Default, Clone)]
struct ImportCounts {
    imported: usize,
    existing: usize,
    invalid: usize,
}

/// What the writer needs to know.
#[derive(Clone)]
struct Writer {
    store: Store,
    /// `None` if it does not exist, which only a dry run meets.
    organization: Option<OrganizationId>,
    on_error: OnError,
    is_dry_run: bool,
    counts: Arc<Mutex<ImportCounts>>,
    progress: Arc<TransferProgress>,
}

/// Imports the tasks of a file that do not exist yet.
pub(super) async fn run(args: ImportArgs) -> anyhow::Result<ExitCode> {
    let ImportArgs { file, organization, on_error, dry_run, json, database } = args;
    // Opened first: a wrong file name is the most likely mistake.
    let (input, bytes) = open_input(&file)?;
    with_store(database, MAX_IN_FLIGHT, async |store| {
        let started = Instant::now();
        let organization = if dry_run {
            let organizations = store.list_organizations().await?;
            organizations.into_iter().find(|(_, name)| *name == organization).map(|(id, _)| id)
        } else {
            let now = Clock::system().now();
            let (id, is_new) = store.ensure_organization(&organization, now).await?;
            if is_new {
                note(&format!("Created organization `{organization}`."));
            }
            Some(id)
        };
        let writer = Writer {
            store,
            organization,
            on_error,
            is_dry_run: dry_run,
            counts: Arc::default(),
            progress: Arc::new(TransferProgress::new(bytes)),
        };
        let outcome = writer.import(RecordReader::new(input)).await;
        writer.progress.finish();
        let counts = writer.counts.lock().expect("no code panics with the lock").clone();
        print_summary(&counts, started.elapsed().as_secs_f64(), dry_run, json);
        outcome?;
        Ok(if counts.invalid > 0 { ExitCode::from(EXIT_SKIPPED) } else { ExitCode::SUCCESS })
    })
    .await
}

fn print_summary(counts: &ImportCounts, seconds: f64, is_dry_run: bool, json: bool) {
    let ImportCounts { imported, existing, invalid } = counts;
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    let rate = (imported + existing) as f64 / seconds;
    if json {
        print_json(&json!({
            "imported": imported,
            "existing": existing,
            "invalid": invalid,
            "dry_run": is_dry_run,
            "seconds": seconds,
            "per_second": rate,
        }));
    } else if is_dry_run {
        print(&format!(
            "Dry run, nothing was written: {imported} tasks would be imported, {existing} exist, \
             {invalid} invalid lines."
        ));
    } else {
        print(&format!(
            "{imported} tasks imported, {existing} existed, {invalid} invalid lines, in \
             {seconds:.1} s ({rate:.0} a second)."
        ));
    }
}

fn open_input(file: &Path) -> anyhow::Result<(Box<dyn Read + Send>, Option<u64>)> {
    if file == Path::new("-") {
        return Ok((Box::new(std::io::stdin()), None));
    }
    let input = File::open(file).with_context(|| format!("cannot read {}", file.display()))?;
    let bytes =
        input.metadata().ok().filter(std::fs::Metadata::is_file).map(|metadata| metadata.len());
    Ok((Box::new(input), bytes))
}

/// A batch that was written, and how many of its tasks are new and how many are invalid.
struct WrittenBatch {
    batch: Batch,
    imported: usize,
    invalid: usize,
}

/// The batches that are being written.
#[derive(Default)]
struct InFlight {
    writing: JoinSet<anyhow::Result<WrittenBatch>>,
    /// Their tasks, each in one batch only.
    ids: HashSet<TaskId>,
}

impl Writer {
    /// Reads in a blocking thread, and writes what it sends as it arrives.
    async fn import(&self, records: RecordReader) -> anyhow::Result<()> {
        let (sender, mut work) = mpsc::channel(1);
        let stopped = Arc::new(AtomicBool::new(false));
        let tasks = TaskReader::new(
            self.on_error,
            sender,
            stopped.clone(),
            self.counts.clone(),
            self.progress.clone(),
        );
        let reader = tokio::task::spawn_blocking(move || tasks.run(records));
        let mut in_flight = InFlight::default();
        let mut written = self.write_all(&mut work, &mut in_flight).await;
        stopped.store(true, Ordering::Relaxed);
        work.close();
        drop(work);
        written = written.and(self.finish_all(&mut in_flight).await);
        // A write error stops the reader, so it is the error to report.
        let read = reader.await?;
        written.and(read)
    }

    async fn write_all(
        &self,
        work: &mut mpsc::Receiver<Work>,
        in_flight: &mut InFlight,
    ) -> anyhow::Result<()> {
        loop {
            // The next batch is taken when it can be written, so few are in memory.
            while in_flight.writing.len() >= MAX_IN_FLIGHT {
                self.finish_one(in_flight).await?;
            }
            match work.recv().await {
                None => return Ok(()),
                Some(Work::Batch(batch)) => {
                    // Of two tasks with one id the first is imported, so the second waits for it.
                    if batch.tasks.iter().any(|record| in_flight.ids.contains(&record.task.id)) {
                        let last_line = batch.lines.last();
                        tracing::debug!(?last_line, "batch waits for those in flight");
                        self.finish_all(in_flight).await?;
                    }
                    in_flight.ids.extend(batch.tasks.iter().map(|record| record.task.id.clone()));
                    let writer = self.clone();
                    in_flight.writing.spawn(async move { writer.write_batch(batch).await });
                }
                Some(Work::LargeTask(task, line)) => {
                    self.finish_all(in_flight).await?;
                    self.write_large(*task, line, work).await?;
                }
                Some(Work::LargeTaskPart { .. } | Work::LargeTaskEnd(_)) => {
                    unreachable!("parts follow their task")
                }
                Some(Work::LargeTaskRefused) => {}
            }
        }
    }

    async fn finish_all(&self, in_flight: &mut InFlight) -> anyhow::Result<()> {
        let mut outcome = Ok(());
        while !in_flight.writing.is_empty() {
            outcome = outcome.and(self.finish_one(in_flight).await);
        }
        outcome
    }

    async fn finish_one(&self, in_flight: &mut InFlight) -> anyhow::Result<()> {
        let written: Option<Result<_, JoinError>> = in_flight.writing.join_next().await;
        let Some(written) = written else { return Ok(()) };
        let WrittenBatch { batch, imported, invalid } = written??;
        for record in &batch.tasks {
            in_flight.ids.remove(&record.task.id);
        }
        self.count(imported, batch.tasks.len() - imported - invalid, invalid, batch.read_to);
        Ok(())
    }

    fn count(&self, imported: usize, existing: usize, invalid: usize, read_to: u64) {
        let mut counts = self.counts.lock().expect("no code panics with the lock");
        counts.imported += imported;
        counts.existing += existing;
        counts.invalid += invalid;
        self.progress.advance(read_to, counts.imported + counts.existing);
    }

    async fn write_batch(&self, batch: Batch) -> anyhow::Result<WrittenBatch> {
        let unfinished = || {
            let last_line = batch.lines.last().copied().unwrap_or(0);
            format!(
                "not all tasks up to line {last_line} were imported. Import the file again to \
                 continue"
            )
        };
        let Some(organization) = self.organization else {
            let imported = batch.tasks.len();
            return Ok(WrittenBatch { batch, imported, invalid: 0 });
        };
        if self.is_dry_run {
            let ids: Vec<_> = batch.tasks.iter().map(|record| &record.task.id).collect();
            let existing = self.store.count_existing_tasks(organization, &ids).await?;
            let imported = batch.tasks.len() - existing;
            return Ok(WrittenBatch { batch, imported, invalid: 0 });
        }
        let written = match self.store.import_tasks(organization, &batch.tasks).await {
            // One of them is refused, and the others are imported.
            Err(StoreError::Query(_)) if self.on_error == OnError::Skip => {
                self.write_one_by_one(organization, &batch).await
            }
            written => written.map(|imported| (imported, 0)),
        };
        let (imported, invalid) = written.with_context(unfinished)?;
        Ok(WrittenBatch { batch, imported, invalid })
    }

    async fn write_one_by_one(
        &self,
        organization: OrganizationId,
        batch: &Batch,
    ) -> Result<(usize, usize), StoreError> {
        let (mut imported, mut invalid) = (0, 0);
        for (task, line) in batch.tasks.chunks(1).zip(&batch.lines) {
            let written = self.store.import_tasks(organization, task).await;
            match self.or_refused(written, *line, &task[0].task.id)? {
                Some(written) => imported += written,
                None => invalid += 1,
            }
        }
        Ok((imported, invalid))
    }

    /// `None` if the database refuses the task, which then is skipped as an invalid line.
    fn or_refused<T>(
        &self,
        outcome: Result<T, StoreError>,
        line: u64,
        id: &TaskId,
    ) -> Result<Option<T>, StoreError> {
        match outcome {
            Ok(value) => Ok(Some(value)),
            Err(error @ StoreError::Query(_)) if self.on_error == OnError::Skip => {
                self.progress.note(&format!(
                    "line {line}, column 1 is skipped: the database refuses task `{id}`: {error}"
                ));
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Writes a task whose parts follow.
    async fn write_large(
        &self,
        task: ExportedTask,
        line: u64,
        work: &mut mpsc::Receiver<Work>,
    ) -> anyhow::Result<()> {
        let unfinished =
            || format!("task `{}` of line {line} was not imported. Import the file again", task.id);
        let mut exists = false;
        let mut import: Option<LargeTaskImport> = None;
        if let Some(organization) = self.organization {
            let existing = self.store.count_existing_tasks(organization, &[&task.id]).await?;
            exists = existing > 0;
            if !exists && !self.is_dry_run {
                let limits = Limits::default();
                let begun = self.store.import_large_task(organization, &limits).await;
                import = Some(begun.with_context(unfinished)?);
            }
        }
        let (mut is_refused, mut last_read) = (false, 0);
        loop {
            match work.recv().await {
                Some(Work::LargeTaskPart { turns, events, read_to, staged }) => {
                    if let Some(large) = &mut import {
                        let added = large.add(&task.id, &turns, &events).await;
                        if self
                            .or_refused(added, line, &task.id)
                            .with_context(unfinished)?
                            .is_none()
                        {
                            (import, is_refused) = (None, true);
                        }
                    }
                    drop((turns, events));
                    last_read = read_to;
                    self.count(0, 0, 0, read_to);
                    // The reader has ended if it does not wait.
                    let _ = staged.send(());
                }
                Some(Work::LargeTaskEnd(task)) => {
                    let mut is_new = !exists && !is_refused;
                    if let Some(large) = import {
                        let recorded = large.finish(&task).await;
                        let recorded =
                            self.or_refused(recorded, line, &task.id).with_context(unfinished)?;
                        is_refused = recorded.is_none();
                        is_new = recorded == Some(true);
                    }
                    let is_existing = !is_new && !is_refused;
                    self.count(is_new.into(), is_existing.into(), is_refused.into(), last_read);
                    return Ok(());
                }
                // Refused, or the reader has stopped.
                Some(_) | None => {
                    if let Some(import) = import {
                        import.cancel().await?;
                    }
                    return Ok(());
                }
            }
        }
    }
}
