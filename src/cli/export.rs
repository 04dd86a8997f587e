//! Exporting tasks as NDJSON: `task-history export`.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::task::JoinHandle;

use super::ExportArgs;
use super::output::print;
use super::progress::TransferProgress;
use super::session::with_store;
use crate::domain::{AgentId, EXPORT_VERSION, ExportHeader, ExportLine, Limits};
use crate::store::{Store, TaskExport};

/// Largest page that may be in memory beside the next one.
const MAX_OVERLAP_BYTES: usize = 5 << 20;

/// Exports the tasks of an organization, with a line for each task, turn and event.
pub(super) async fn run(args: ExportArgs) -> anyhow::Result<()> {
    let ExportArgs { organization, agent_id, file, stall_timeout, database } = args;
    let agent = agent_id.map(AgentId::parse).transpose().context("--agent-id")?;
    with_store(database, 1, async |store| {
        let mut export = begin(&store, &organization, agent, stall_timeout).await?;
        let mut output = Output::open(file.as_ref(), stall_timeout)?;
        let progress = TransferProgress::new(None);
        output.write(vec![ExportLine::Export(ExportHeader { version: EXPORT_VERSION })]).await?;
        let mut tasks = 0;
        loop {
            let page = export.next_page().await?;
            if page.is_empty() {
                break;
            }
            tasks += page.iter().filter(|line| matches!(line, ExportLine::Task(_))).count();
            let bytes = page.iter().map(ExportLine::size).sum::<usize>();
            let mut written = output.write(page).await?;
            // While a page is written, the next is read. Two large ones would take much memory.
            if bytes > MAX_OVERLAP_BYTES {
                written = output.wait().await?;
            }
            if written == Written::PipeClosed {
                break;
            }
            progress.advance(0, tasks);
        }
        export.finish().await?;
        output.finish().await?;
        progress.finish();
        if file.is_some() {
            print(&format!("{tasks} tasks exported."));
        }
        Ok(())
    })
    .await
}

async fn begin(
    store: &Store,
    organization: &str,
    agent: Option<AgentId>,
    stall_timeout: Duration,
) -> anyhow::Result<TaskExport> {
    let organizations = store.list_organizations().await?;
    let Some((id, _)) = organizations.into_iter().find(|(_, name)| name == organization) else {
        bail!(
            "there is no organization `{organization}`; `task-history keys list` shows those with \
             keys"
        );
    };
    // The database ends the session if this process is stopped. Otherwise it ends by itself, which
    // says more.
    Ok(store.export_tasks(id, agent, stall_timeout.saturating_mul(2), &Limits::default()).await?)
}

/// Whether the output takes more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Written {
    Taken,
    /// As after `head`, which is not an error.
    PipeClosed,
}

/// The output. A thread writes one page at a time.
struct Output {
    /// Not there while a page is written.
    idle: Option<BufWriter<CountingWriter>>,
    writing: Option<JoinHandle<io::Result<BufWriter<CountingWriter>>>>,
    bytes: Arc<AtomicU64>,
    stall_timeout: Duration,
}

/// Counts the bytes that the output has taken.
struct CountingWriter {
    output: Box<dyn Write + Send>,
    bytes: Arc<AtomicU64>,
}

impl Write for CountingWriter {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = self.output.write(buffer)?;
        self.bytes.fetch_add(u64::try_from(written).unwrap_or(0), Ordering::Relaxed);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

impl Output {
    fn open(file: Option<&PathBuf>, stall_timeout: Duration) -> anyhow::Result<Self> {
        let output: Box<dyn Write + Send> = match file {
            None => Box::new(io::stdout()),
            Some(file) => Box::new(File::create_new(file).with_context(|| {
                format!("cannot create {}; an existing file is not overwritten", file.display())
            })?),
        };
        let bytes = Arc::new(AtomicU64::new(0));
        let writer = CountingWriter { output, bytes: bytes.clone() };
        let idle = Some(BufWriter::with_capacity(1 << 16, writer));
        Ok(Self { idle, writing: None, bytes, stall_timeout })
    }

    /// Waits until the page before is written, and begins to write this one.
    async fn write(&mut self, page: Vec<ExportLine>) -> anyhow::Result<Written> {
        let written = self.wait().await?;
        if let Some(mut output) = self.idle.take() {
            self.writing = Some(tokio::task::spawn_blocking(move || {
                for line in page {
                    serde_json::to_writer(&mut output, &line)?;
                    output.write_all(b"\n")?;
                }
                Ok(output)
            }));
        }
        Ok(written)
    }

    /// Waits until everything is written.
    async fn finish(&mut self) -> anyhow::Result<()> {
        self.wait().await?;
        if let Some(mut output) = self.idle.take() {
            self.writing = Some(tokio::task::spawn_blocking(move || {
                output.flush()?;
                Ok(output)
            }));
        }
        self.wait().await?;
        Ok(())
    }

    async fn wait(&mut self) -> anyhow::Result<Written> {
        let Some(writing) = &mut self.writing else {
            return Ok(if self.idle.is_some() { Written::Taken } else { Written::PipeClosed });
        };
        let written = loop {
            let before = self.bytes.load(Ordering::Relaxed);
            match tokio::time::timeout(self.stall_timeout, &mut *writing).await {
                Ok(written) => break written?,
                Err(_) if self.bytes.load(Ordering::Relaxed) > before => {}
                Err(_) => bail!(
                    "the output took nothing for {}, so the export ended: while it waits, the \
                     database cannot clean up. Write to a file with --file, or give the reader \
                     more time with --stall-timeout",
                    humantime::format_duration(self.stall_timeout)
                ),
            }
        };
        self.writing = None;
        match written {
            Ok(output) => self.idle = Some(output),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                return Ok(Written::PipeClosed);
            }
            Err(error) => return Err(error).context("the tasks cannot be written"),
        }
        Ok(Written::Taken)
    }
}
