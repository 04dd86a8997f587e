//! Importing and exporting tasks, a line of JSON each.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::commands::{pretty, print, with_database};
use super::{ExportArgs, ImportArgs, OnError};
use crate::domain::{AgentId, Clock, OrganizationId, TaskId, TaskRecord};
use crate::store::Store;

/// Most tasks that are written in one transaction.
const BATCH: usize = 500;

/// Most bytes of lines that are written in one transaction, unless a single line has more.
const BATCH_BYTES: usize = 2 << 20;

/// Longest line, in bytes.
const MAX_LINE: u64 = 64 << 20;

/// How many transactions are written at the same time: while one waits for the disk, the next is prepared.
pub(super) const WRITERS: usize = 2;

/// How often a log gets a line of progress.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(10);

/// Consecutive lines that are written together.
struct Batch {
    records: Vec<TaskRecord>,
    bytes: usize,
    last_line: u64,
}

/// What has become of the lines so far.
#[derive(Debug, Default, Clone)]
struct Tally {
    imported: usize,
    present: usize,
    bad: usize,
}

/// Reads tasks and records those that are not there yet.
pub(super) async fn import(args: ImportArgs) -> anyhow::Result<()> {
    let ImportArgs { file, organization, on_error, json, database } = args;
    // Opened first: a wrong name is the most likely mistake.
    let (input, bytes) = open_input(&file)?;
    with_database(database, WRITERS, async |store| {
        let started = Instant::now();
        let (id, is_new) = store.ensure_organization(&organization, Clock::system().now()).await?;
        if is_new {
            let _ = writeln!(std::io::stderr(), "Created organisation `{organization}`.");
        }
        let progress = Progress::new(bytes);
        let tally = Arc::new(Mutex::new(Tally::default()));
        let outcome = run_import(&store, id, input, on_error, &progress, &tally).await;
        progress.finish();
        let Tally { imported, present, bad } = tally.lock().expect("nobody panics with it").clone();
        let seconds = started.elapsed().as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "a rate")]
        let rate = (imported + present) as f64 / seconds;
        if json {
            print(&pretty(&json!({
                "imported": imported, "already_there": present, "bad": bad, "seconds": seconds, "per_second": rate,
            })));
        } else {
            print(&format!(
                "{imported} tasks imported, {present} were there already, {bad} bad lines, in {seconds:.1} s ({rate:.0} a \
                 second)."
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
    let input = File::open(file).with_context(|| format!("can't read {}", file.display()))?;
    let bytes = input.metadata().ok().filter(std::fs::Metadata::is_file).map(|metadata| metadata.len());
    Ok((Box::new(input), bytes))
}

/// Reads on a thread of its own, and writes batches as they come.
async fn run_import(
    store: &Store,
    organization: OrganizationId,
    input: Box<dyn Read + Send>,
    on_error: OnError,
    progress: &Progress,
    tally: &Arc<Mutex<Tally>>,
) -> anyhow::Result<()> {
    let (sender, mut batches) = mpsc::channel(1);
    let stopped = Arc::new(AtomicBool::new(false));
    let reader = {
        let (stopped, tally, bar) = (stopped.clone(), tally.clone(), progress.bar.clone());
        tokio::task::spawn_blocking(move || read_batches(input, on_error, &sender, &stopped, &tally, &bar))
    };
    let mut writing = JoinSet::new();
    let mut failed = None;
    // The tasks that are being written, each in one batch only.
    let mut under_way: HashSet<TaskId> = HashSet::new();
    loop {
        // The next batch is taken when there is somebody to write it, so few are held at once.
        if writing.len() >= WRITERS || failed.is_some() {
            match writing.join_next().await {
                Some(written) => {
                    failed = failed.or(finish_batch(written, &mut under_way, tally, progress).err());
                }
                None => break,
            }
            continue;
        }
        let Some(batch) = batches.recv().await else { break };
        // Of two tasks with one id the first is imported, so the second waits until that is written.
        if batch.records.iter().any(|record| under_way.contains(&record.id)) {
            while let Some(written) = writing.join_next().await {
                failed = failed.or(finish_batch(written, &mut under_way, tally, progress).err());
            }
            if failed.is_some() {
                break;
            }
        }
        under_way.extend(batch.records.iter().map(|record| record.id.clone()));
        let store = store.clone();
        writing.spawn(async move { write_batch(&store, organization, batch).await });
    }
    stopped.store(true, Ordering::Relaxed);
    batches.close();
    while let Some(written) = writing.join_next().await {
        failed = failed.or(finish_batch(written, &mut under_way, tally, progress).err());
    }
    // What could not be written is the reason for what could not be read any more.
    let read = reader.await?;
    failed.map_or(read, Err)
}

async fn write_batch(
    store: &Store,
    organization: OrganizationId,
    batch: Batch,
) -> anyhow::Result<(Batch, usize)> {
    let imported = store.import_tasks(organization, &batch.records).await.with_context(|| {
        format!(
            "the tasks up to line {} were not all imported. Importing the file again goes on where this ended",
            batch.last_line
        )
    })?;
    Ok((batch, imported))
}

fn finish_batch(
    written: Result<anyhow::Result<(Batch, usize)>, tokio::task::JoinError>,
    under_way: &mut HashSet<TaskId>,
    tally: &Mutex<Tally>,
    progress: &Progress,
) -> anyhow::Result<()> {
    let (batch, imported) = written??;
    for record in &batch.records {
        under_way.remove(&record.id);
    }
    let mut tally = tally.lock().expect("nobody panics with it");
    tally.imported += imported;
    tally.present += batch.records.len() - imported;
    progress.advance(batch.bytes, tally.imported + tally.present);
    Ok(())
}

fn read_batches(
    input: Box<dyn Read + Send>,
    on_error: OnError,
    sender: &mpsc::Sender<Batch>,
    stopped: &AtomicBool,
    tally: &Mutex<Tally>,
    bar: &ProgressBar,
) -> anyhow::Result<()> {
    let mut input = BufReader::with_capacity(1 << 18, input);
    let empty = || Batch { records: Vec::new(), bytes: 0, last_line: 0 };
    let mut batch = empty();
    let mut ids = HashSet::new();
    let mut line = Vec::new();
    for number in 1_u64.. {
        line.clear();
        let read = input.by_ref().take(MAX_LINE + 1).read_until(b'\n', &mut line);
        let length = read.with_context(|| format!("line {number} can't be read"))?;
        if length == 0 || stopped.load(Ordering::Relaxed) {
            break;
        }
        if u64::try_from(length).is_ok_and(|length| length > MAX_LINE) {
            bail!("line {number} is longer than {} MiB, so this is no export", MAX_LINE >> 20);
        }
        let text = std::str::from_utf8(&line).map_err(|_| "it is not UTF-8".to_owned()).map(str::trim);
        if text == Ok("") {
            continue;
        }
        match text.and_then(TaskRecord::parse) {
            Ok(record) => {
                // Of two tasks with one id the first is imported, here as between two imports.
                let is_new = ids.insert(record.id.clone());
                if !is_new || batch.records.len() >= BATCH || batch.bytes + length > BATCH_BYTES {
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
                tally.lock().expect("nobody panics with it").bad += 1;
                if on_error == OnError::Stop {
                    // What came before it is imported all the same.
                    let _ = sender.blocking_send(batch);
                    return Err(anyhow!(
                        "line {number}: {reason}. What comes before it is imported; mend it and import the file again, or \
                         pass over bad lines with --on-error skip"
                    ));
                }
                bar.suspend(|| {
                    let _ = writeln!(std::io::stderr(), "line {number} is passed over: {reason}");
                });
            }
        }
    }
    if !batch.records.is_empty() {
        let _ = sender.blocking_send(batch);
    }
    Ok(())
}

/// A bar on a terminal, a line now and then in a log.
struct Progress {
    bar: ProgressBar,
    told: Mutex<Instant>,
}

impl Progress {
    fn new(bytes: Option<u64>) -> Self {
        let bar = match bytes {
            Some(bytes) => ProgressBar::new(bytes).with_style(
                ProgressStyle::with_template("{bar:30} {percent:>3} %, {msg}, {eta} left")
                    .expect("a template that is well formed"),
            ),
            None => ProgressBar::no_length().with_style(
                ProgressStyle::with_template("{spinner} {elapsed}, {msg}")
                    .expect("a template that is well formed"),
            ),
        };
        if std::io::stderr().is_terminal() {
            bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(5));
        } else {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        Self { bar, told: Mutex::new(Instant::now()) }
    }

    fn advance(&self, bytes: usize, tasks: usize) {
        #[expect(clippy::cast_precision_loss, reason = "a rate")]
        let rate = tasks as f64 / self.bar.elapsed().as_secs_f64();
        let message = format!("{tasks} tasks, {rate:.0} a second");
        self.bar.inc(u64::try_from(bytes).unwrap_or(0));
        let mut told = self.told.lock().expect("nobody panics with it");
        if self.bar.is_hidden() && told.elapsed() >= PROGRESS_INTERVAL {
            let _ = writeln!(std::io::stderr(), "{message}");
            *told = Instant::now();
        }
        self.bar.set_message(message);
    }

    fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// Writes all tasks, a line of JSON each.
pub(super) async fn export(args: ExportArgs) -> anyhow::Result<()> {
    let ExportArgs { organization, agent_id, file, database } = args;
    let agent = agent_id.map(AgentId::parse).transpose().context("--agent-id")?;
    with_database(database, 1, async |store| {
        let known = store.organizations().await?;
        let Some((id, _)) = known.into_iter().find(|(_, name)| *name == organization) else {
            bail!("there is no organisation `{organization}`; `task-history keys list` shows those that have keys");
        };
        let mut output = open_output(file.as_ref())?;
        let progress = Progress::new(None);
        let (mut tasks, mut written) = (0, Ok(()));
        store
            .export_tasks(id, agent.as_ref(), |records| {
                tasks += records.len();
                written = records.iter().try_for_each(|record| write_line(&mut output, record));
                progress.advance(0, tasks);
                written.is_ok()
            })
            .await?;
        progress.finish();
        match written.and_then(|()| output.flush()) {
            // A reader that has seen enough, `head` for example, is no failure.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
            written => written.context("the tasks can't be written")?,
        }
        if file.is_some() {
            print(&format!("{tasks} tasks exported."));
        }
        Ok(())
    })
    .await
}

fn open_output(file: Option<&PathBuf>) -> anyhow::Result<Box<dyn Write>> {
    Ok(match file {
        None => Box::new(BufWriter::new(std::io::stdout().lock())),
        Some(file) => {
            let created = File::create_new(file).with_context(|| {
                format!("can't create {}; a file that exists is not overwritten", file.display())
            })?;
            Box::new(BufWriter::new(created))
        }
    })
}

fn write_line(output: &mut dyn Write, record: &TaskRecord) -> std::io::Result<()> {
    serde_json::to_writer(&mut *output, record)?;
    output.write_all(b"\n")
}
