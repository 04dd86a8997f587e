//! Importing tasks from NDJSON: `task-history import`.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use anyhow::{Context, anyhow, bail};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::output::{note, print, print_json};
use super::progress::TransferProgress;
use super::session::with_store;
use super::{ImportArgs, OnError};
use crate::domain::{Clock, ExportedTask, OrganizationId, TaskId};
use crate::store::Store;

/// Most tasks that are written in one transaction.
const BATCH_TASKS: usize = 500;

/// Most bytes that are written in one transaction, unless a single line has more.
const BATCH_BYTES: usize = 2 << 20;

/// Longest line, in bytes.
const MAX_LINE_BYTES: u64 = 64 << 20;

/// How many transactions are in flight: while one waits for the disk, the next is prepared.
const MAX_IN_FLIGHT: usize = 2;

/// Consecutive lines that are written together.
struct ImportBatch {
    records: Vec<ExportedTask>,
    bytes: usize,
    last_line: u64,
}

/// What became of the lines so far.
#[derive(Debug, Default, Clone)]
struct ImportCounts {
    imported: usize,
    existing: usize,
    invalid: usize,
}

/// Imports the tasks of a file that do not exist yet.
pub(super) async fn run(args: ImportArgs) -> anyhow::Result<()> {
    let ImportArgs { file, organization, on_error, json, database } = args;
    // Opened first: a wrong file name is the most likely mistake.
    let (input, bytes) = open_input(&file)?;
    with_store(database, MAX_IN_FLIGHT, async |store| {
        let started = Instant::now();
        let (id, is_new) = store.ensure_organization(&organization, Clock::system().now()).await?;
        if is_new {
            note(&format!("Created organization `{organization}`."));
        }
        let progress = Arc::new(TransferProgress::new(bytes));
        let counts = Arc::new(Mutex::new(ImportCounts::default()));
        let outcome = run_import(&store, id, input, on_error, &progress, &counts).await;
        progress.finish();
        let ImportCounts { imported, existing, invalid } =
            counts.lock().expect("no code panics with the lock").clone();
        let seconds = started.elapsed().as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "a rate")]
        let rate = (imported + existing) as f64 / seconds;
        if json {
            print_json(&json!({
                "imported": imported,
                "existing": existing,
                "invalid": invalid,
                "seconds": seconds,
                "per_second": rate,
            }));
        } else {
            print(&format!(
                "{imported} tasks imported, {existing} existed, {invalid} invalid lines, in \
                 {seconds:.1} s ({rate:.0} a second)."
            ));
        }
        outcome
    })
    .await
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

/// Reads in a blocking thread, and writes the batches as they arrive.
async fn run_import(
    store: &Store,
    organization: OrganizationId,
    input: Box<dyn Read + Send>,
    on_error: OnError,
    progress: &Arc<TransferProgress>,
    counts: &Arc<Mutex<ImportCounts>>,
) -> anyhow::Result<()> {
    let (sender, mut batches) = mpsc::channel(1);
    let stopped = Arc::new(AtomicBool::new(false));
    let reader = {
        let (stopped, counts, progress) = (stopped.clone(), counts.clone(), progress.clone());
        tokio::task::spawn_blocking(move || {
            read_batches(input, on_error, &sender, &stopped, &counts, &progress)
        })
    };
    let mut writing = JoinSet::new();
    let mut failed = None;
    // The tasks of the batches in flight, each in one batch only.
    let mut in_flight: HashSet<TaskId> = HashSet::new();
    loop {
        // The next batch is taken when it can be written, so few are in memory.
        if writing.len() >= MAX_IN_FLIGHT || failed.is_some() {
            match writing.join_next().await {
                Some(written) => {
                    failed =
                        failed.or(finish_batch(written, &mut in_flight, counts, progress).err());
                }
                None => break,
            }
            continue;
        }
        let Some(batch) = batches.recv().await else { break };
        // Of two tasks with one id the first is imported, so the second waits for it.
        if batch.records.iter().any(|record| in_flight.contains(&record.id)) {
            tracing::debug!(last_line = batch.last_line, "batch waits for those in flight");
            while let Some(written) = writing.join_next().await {
                failed = failed.or(finish_batch(written, &mut in_flight, counts, progress).err());
            }
            if failed.is_some() {
                break;
            }
        }
        in_flight.extend(batch.records.iter().map(|record| record.id.clone()));
        let store = store.clone();
        writing.spawn(async move { write_batch(&store, organization, batch).await });
    }
    stopped.store(true, Ordering::Relaxed);
    batches.close();
    while let Some(written) = writing.join_next().await {
        failed = failed.or(finish_batch(written, &mut in_flight, counts, progress).err());
    }
    // A write error stops the reader, so it is the error to report.
    let read = reader.await?;
    failed.map_or(read, Err)
}

async fn write_batch(
    store: &Store,
    organization: OrganizationId,
    batch: ImportBatch,
) -> anyhow::Result<(ImportBatch, usize)> {
    let imported = store.import_tasks(organization, &batch.records).await.with_context(|| {
        format!(
            "not all tasks up to line {} were imported. Import the file again to continue",
            batch.last_line
        )
    })?;
    Ok((batch, imported))
}

fn finish_batch(
    written: Result<anyhow::Result<(ImportBatch, usize)>, tokio::task::JoinError>,
    in_flight: &mut HashSet<TaskId>,
    counts: &Mutex<ImportCounts>,
    progress: &TransferProgress,
) -> anyhow::Result<()> {
    let (batch, imported) = written??;
    for record in &batch.records {
        in_flight.remove(&record.id);
    }
    let mut counts = counts.lock().expect("no code panics with the lock");
    counts.imported += imported;
    counts.existing += batch.records.len() - imported;
    progress.advance(batch.bytes, counts.imported + counts.existing);
    Ok(())
}

fn read_batches(
    input: Box<dyn Read + Send>,
    on_error: OnError,
    sender: &mpsc::Sender<ImportBatch>,
    stopped: &AtomicBool,
    counts: &Mutex<ImportCounts>,
    progress: &TransferProgress,
) -> anyhow::Result<()> {
    let mut input = BufReader::with_capacity(1 << 18, input);
    let empty = || ImportBatch { records: Vec::new(), bytes: 0, last_line: 0 };
    let mut batch = empty();
    let mut ids = HashSet::new();
    let mut line = Vec::new();
    for number in 1_u64.. {
        line.clear();
        let read = input.by_ref().take(MAX_LINE_BYTES + 1).read_until(b'\n', &mut line);
        let length = read.with_context(|| format!("line {number} cannot be read"))?;
        if length == 0 || stopped.load(Ordering::Relaxed) {
            break;
        }
        if u64::try_from(length).is_ok_and(|length| length > MAX_LINE_BYTES) {
            bail!(
                "line {number} is longer than {} MiB, so this is not an export",
                MAX_LINE_BYTES >> 20
            );
        }
        let text =
            std::str::from_utf8(&line).map_err(|_| "it is not UTF-8".to_owned()).map(str::trim);
        if text == Ok("") {
            continue;
        }
        match text.and_then(ExportedTask::parse) {
            Ok(record) => {
                // Of two tasks with one id the first is imported, as between two imports.
                let is_new = ids.insert(record.id.clone());
                if !is_new
                    || batch.records.len() >= BATCH_TASKS
                    || batch.bytes + length > BATCH_BYTES
                {
                    if sender.blocking_send(std::mem::replace(&mut batch, empty())).is_err() {
                        return Ok(());
                    }
                    ids.clear();
                    ids.insert(record.id.clone());
                }
                batch.records.push(record);
                batch.bytes += length;
                batch.last_line = number;
            }
            Err(reason) => {
                counts.lock().expect("no code panics with the lock").invalid += 1;
                if on_error == OnError::Stop {
                    // The lines before it are imported.
                    let _ = sender.blocking_send(batch);
                    return Err(anyhow!(
                        "line {number}: {reason}. The lines before it are imported; fix it and \
                         import the file again, or skip invalid lines with --on-error skip"
                    ));
                }
                progress.note(&format!("line {number} is skipped: {reason}"));
            }
        }
    }
    if !batch.records.is_empty() {
        let _ = sender.blocking_send(batch);
    }
    Ok(())
}
