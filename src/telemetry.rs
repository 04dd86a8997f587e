//! Logs: where they go and in which format. What a request logs is in `api/middleware.rs`.

use std::cell::Cell;
use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use anyhow::Context;
use tracing_subscriber::EnvFilter;

/// Most bytes of log lines that wait for the reader of standard error. Lines beyond are dropped.
const MAX_QUEUED_BYTES: usize = 1 << 20;

/// How long the last lines may take to be written at the end of the process.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// The format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Text for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Starts logging to standard error. Without a format: text on a terminal, otherwise JSON.
///
/// Nothing waits for the reader of the log. Lines that it leaves unread are dropped and counted.
pub fn init(format: Option<LogFormat>, filter: &str) -> anyhow::Result<LogFlush> {
    let quiet = format!("sqlx::postgres::notice=warn,{filter}");
    let filter = EnvFilter::builder().parse(&quiet).with_context(|| {
        format!("--log takes a level or a list of targets with levels, not `{filter}`")
    })?;
    let queue = LogQueue::start(io::stderr()).context("cannot start the thread of the log")?;
    let flush = LogFlush(queue.clone());
    let is_terminal = io::stderr().is_terminal();
    let writer = move || queue.clone();
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer);
    match format.unwrap_or(if is_terminal { LogFormat::Text } else { LogFormat::Json }) {
        LogFormat::Text => builder.with_target(false).with_ansi(is_terminal).init(),
        LogFormat::Json => builder.json().flatten_event(true).with_current_span(false).init(),
    }
    Ok(flush)
}

/// Dropping it waits until the log is written, for a second at most.
#[must_use = "the last lines of the log are lost without it"]
pub struct LogFlush(LogQueue);

impl Drop for LogFlush {
    fn drop(&mut self) {
        let lines = self.0.lock();
        let is_unwritten = |lines: &mut Lines| lines.is_writing || !lines.queued.is_empty();
        let _ = self.0.0.changed.wait_timeout_while(lines, FLUSH_TIMEOUT, is_unwritten);
    }
}

/// Log lines on their way to the thread that writes them.
#[derive(Clone)]
struct LogQueue(Arc<Shared>);

#[derive(Default)]
struct Shared {
    lines: Mutex<Lines>,
    changed: Condvar,
}

#[derive(Default)]
struct Lines {
    queued: Vec<u8>,
    /// Lines that were dropped after those in the queue.
    dropped: u64,
    is_writing: bool,
}

thread_local! {
    /// Whether this is the thread that writes the log.
    static IS_LOG_THREAD: Cell<bool> = const { Cell::new(false) };
}

impl LogQueue {
    /// Starts a thread that writes what is queued.
    fn start(output: impl Write + Send + 'static) -> io::Result<Self> {
        let queue = Self(Arc::default());
        let of_thread = queue.clone();
        std::thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || of_thread.write_lines(output))?;
        Ok(queue)
    }

    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.0.lines.lock().expect("no panic")
    }

    fn write_lines(&self, mut output: impl Write) {
        IS_LOG_THREAD.set(true);
        loop {
            let is_empty = |lines: &mut Lines| lines.queued.is_empty();
            let mut lines = self.0.changed.wait_while(self.lock(), is_empty).expect("no panic");
            lines.is_writing = true;
            let queued = std::mem::take(&mut lines.queued);
            let dropped = std::mem::take(&mut lines.dropped);
            drop(lines);
            if dropped > 0 {
                // It is queued, and so written after the lines that came before.
                tracing::warn!(
                    dropped,
                    "log lines were dropped, because standard error was not read in time"
                );
            }
            // Nobody can be told that the log cannot be written.
            let _ = output.write_all(&queued);
            self.lock().is_writing = false;
            self.0.changed.notify_all();
        }
    }
}

impl Write for LogQueue {
    /// Queues one line, or drops it.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut lines = self.lock();
        // The thread's own line reports what was dropped.
        if lines.queued.len() + line.len() > MAX_QUEUED_BYTES && !IS_LOG_THREAD.get() {
            lines.dropped += 1;
        } else {
            lines.queued.extend_from_slice(line);
            self.0.changed.notify_all();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
