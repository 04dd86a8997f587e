//! The server's log: its standard error, copied to a private file of bounded size.
//!
//! PostgreSQL's own log collector does not bound the size. It truncates only a file whose turn
//! comes by time, and it appends to a file that has become too large if the name is the same.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, PipeReader, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use tokio::sync::oneshot;

use super::error::{EmbeddedError, io_error_at};
use super::files;
use super::trust::Trust;

/// Maximum size of the log. A larger log is renamed, and the one renamed before is removed: both
/// together have twice this size.
const MAX_LOG_BYTES: u64 = 8 << 20;

/// How much of the newest output is kept for an error message, in bytes.
const MAX_KEPT_BYTES: usize = 8 << 10;

/// How long to wait for the last output of a server that has ended. Its child processes may live a
/// little longer.
const LAST_OUTPUT_TIMEOUT: Duration = Duration::from_secs(2);

/// The log of all servers that run one after the other.
#[derive(Debug)]
pub(super) struct Log {
    path: PathBuf,
    trust: Trust,
    file: Mutex<LogFile>,
}

#[derive(Debug)]
struct LogFile {
    file: File,
    bytes: u64,
}

/// What one server has written.
#[derive(Debug)]
pub(super) struct Output {
    newest: Arc<Mutex<VecDeque<u8>>>,
    /// `None` once the end was waited for.
    ended: Option<oneshot::Receiver<()>>,
}

impl Log {
    pub(super) fn open(directory: &Path, trust: Trust) -> Result<Arc<Self>, EmbeddedError> {
        let path = directory.join("postgres.log");
        let file = LogFile::open(&path, &trust)?;
        Ok(Arc::new(Self { path, trust, file: Mutex::new(file) }))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Copies the output of a server until all its processes have ended. A thread does it, so that
    /// the server never waits for the tasks of the service.
    pub(super) fn copy(self: &Arc<Self>, mut output: PipeReader) -> io::Result<Output> {
        let newest = Arc::new(Mutex::new(VecDeque::new()));
        let (at_end, ended) = oneshot::channel();
        let (log, kept) = (self.clone(), newest.clone());
        thread::Builder::new().name("postgres-log".to_owned()).spawn(move || {
            let mut chunk = [0; 8 << 10];
            loop {
                match output.read(&mut chunk) {
                    Ok(0) => break,
                    Ok(length) => {
                        log.append(&chunk[..length]);
                        let mut kept = kept.lock().expect("no panic");
                        kept.extend(&chunk[..length]);
                        let surplus = kept.len().saturating_sub(MAX_KEPT_BYTES);
                        kept.drain(..surplus);
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(_) => break,
                }
            }
            let _ = at_end.send(());
        })?;
        Ok(Output { newest, ended: Some(ended) })
    }

    /// Drops what cannot be written: the server must not wait for space on the disk.
    fn append(&self, chunk: &[u8]) {
        let mut log = self.file.lock().expect("no panic");
        if log.bytes + chunk.len() as u64 > MAX_LOG_BYTES && !self.rotate(&mut log) {
            return;
        }
        let _ = log.file.write_all(chunk);
        log.bytes += chunk.len() as u64;
    }

    /// Starts an empty log. `false` if there is no way to.
    fn rotate(&self, log: &mut LogFile) -> bool {
        let renamed = fs::rename(&self.path, self.path.with_extension("log.1")).is_ok();
        match LogFile::open(&self.path, &self.trust) {
            Ok(file) if renamed => *log = file,
            _ if log.file.set_len(0).is_ok() => log.bytes = 0,
            _ => return false,
        }
        true
    }
}

impl LogFile {
    fn open(path: &Path, trust: &Trust) -> Result<Self, EmbeddedError> {
        let file = files::open_private(path, trust)?;
        let bytes = file.metadata().map_err(io_error_at(path))?.len();
        Ok(Self { file, bytes })
    }
}

impl Output {
    /// The newest output of a server that has ended.
    pub(super) async fn newest(&mut self) -> String {
        if let Some(ended) = self.ended.take() {
            let _ = tokio::time::timeout(LAST_OUTPUT_TIMEOUT, ended).await;
        }
        let mut newest = self.newest.lock().expect("no panic");
        String::from_utf8_lossy(newest.make_contiguous()).trim().to_owned()
    }
}
