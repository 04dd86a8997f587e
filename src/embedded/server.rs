//! The server process: cleanup after a killed service, the socket directory, and the start.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::process::{Child, Command};

use super::binaries::Binaries;
use super::error::{EmbeddedError, io_error_at};
use super::process::{self, POLL_INTERVAL, PidFile, SHUTDOWN_SEQUENCE};
use super::user::RunAs;

/// How long a start retries while processes of a killed server still hold its shared memory.
const REMNANT_TIMEOUT: Duration = Duration::from_secs(20);

/// How long a start may take before a log message explains the delay.
const SLOW_START_NOTICE: Duration = Duration::from_secs(5);

/// Maximum length of the path of a socket directory, in bytes. A socket path has at most 107 bytes
/// (103 on macOS). The name of the socket's lock file, which is longer than the socket's, must fit.
const MAX_SOCKET_DIRECTORY_BYTES: usize = 103 - "/.s.PGSQL.5432.lock".len();

/// Prefix of the names of socket directories outside the data directory.
const SHORT_PREFIX: &str = "task-history-";

/// Maximum size of a log that is appended to. The next start renames a larger log.
const MAX_LOG_BYTES: u64 = 16 << 20;

/// One server: its directories, its programs, and its user.
pub(super) struct Server<'a> {
    pub(super) directory: &'a Path,
    pub(super) data: &'a Path,
    pub(super) binaries: &'a Binaries,
    pub(super) run_as: &'a RunAs,
}

impl Server<'_> {
    /// Stops the server of a killed service, and removes the files that a killed server left.
    pub(super) async fn clear_remnants(&self) -> Result<(), EmbeddedError> {
        let pid_file = self.data.join("postmaster.pid");
        let Some(file) = PidFile::read(self.data) else {
            // The file is missing, or a full disk or a power failure left it empty. PostgreSQL does
            // not remove an empty file.
            return remove_if_exists(&pid_file);
        };
        if process::is_postgres(file.pid, self.data) {
            tracing::warn!(pid = file.pid, "stopping the PostgreSQL of a service that was killed");
            for (signal, timeout) in SHUTDOWN_SEQUENCE {
                // Checked before each signal: the id may be reused once its process has ended.
                if !process::is_postgres(file.pid, self.data) {
                    break;
                }
                let _ = process::send(file.pid, signal);
                let started = Instant::now();
                while process::is_postgres(file.pid, self.data) && started.elapsed() < timeout {
                    tokio::time::sleep(POLL_INTERVAL).await;
                }
            }
            if process::is_postgres(file.pid, self.data) {
                return Err(EmbeddedError::Orphan(file.pid, self.directory.to_owned()));
            }
        }
        // The process id in the file is now unused, or belongs to an unrelated process or to a
        // zombie. PostgreSQL cannot tell the last two from a running server and would refuse to
        // start.
        remove_if_exists(&pid_file)?;
        remove_if_exists(&self.directory.join("run/.s.PGSQL.5432.lock"))?;
        // In a copy of a data directory, the file names the socket of the original server, which
        // must not be removed.
        if file.data == self.data && is_short_directory(&file.socket_directory) {
            let _ = fs::remove_dir_all(&file.socket_directory);
        }
        Ok(())
    }

    /// Creates the directory of the socket. Returns its path, and whether it is outside the data
    /// directory. That is the case when `run` in the data directory is too long for a socket path.
    pub(super) fn prepare_socket_directory(&self) -> Result<(PathBuf, bool), EmbeddedError> {
        let usual = self.directory.join("run");
        let fits = usual.as_os_str().len() <= MAX_SOCKET_DIRECTORY_BYTES;
        let path = if fits {
            usual
        } else {
            std::env::temp_dir().join(format!("{SHORT_PREFIX}{}", uuid::Uuid::new_v4()))
        };
        self.run_as.create_directory(&path)?;
        Ok((path, !fits))
    }

    /// Starts the server and waits until it accepts connections.
    pub(super) async fn start(
        &self,
        socket_directory: &Path,
        durable: bool,
    ) -> Result<Child, EmbeddedError> {
        let started = Instant::now();
        let mut slow_start_logged = false;
        loop {
            let log_path = self.directory.join("postgres.log");
            let log = open_log(&log_path)?;
            let log_start = log.metadata().map_err(io_error_at(&log_path))?.len();
            let mut child = self
                .command(socket_directory, durable, log)?
                .spawn()
                .map_err(io_error_at(&self.binaries.postgres))?;
            let pid = child.id();
            let status = loop {
                if let Some(status) =
                    child.try_wait().map_err(io_error_at(&self.binaries.postgres))?
                {
                    break status;
                }
                let ready = PidFile::read(self.data)
                    .is_some_and(|file| file.is_ready && u32::try_from(file.pid).ok() == pid);
                if ready {
                    return Ok(child);
                }
                if !slow_start_logged && started.elapsed() > SLOW_START_NOTICE {
                    slow_start_logged = true;
                    tracing::info!(
                        log = %log_path.display(),
                        "PostgreSQL is still starting; its log shows the progress of the recovery"
                    );
                }
                tokio::time::sleep(POLL_INTERVAL).await;
            };
            let output = read_log_from(&log_path, log_start);
            // The child processes of a killed server take a moment to notice that it ended.
            if output.contains("pre-existing shared memory block")
                && started.elapsed() < REMNANT_TIMEOUT
            {
                tokio::time::sleep(POLL_INTERVAL * 5).await;
                continue;
            }
            let detail = format!("{status}\n{}\n(from {})", output.trim(), log_path.display());
            return Err(EmbeddedError::Program { program: "postgres", detail });
        }
    }

    fn command(
        &self,
        socket_directory: &Path,
        durable: bool,
        log: File,
    ) -> Result<Command, EmbeddedError> {
        let mut postgres =
            process::command(&self.binaries.postgres, self.directory, self.run_as.switch_to());
        postgres.arg("-D").arg(self.data).arg("-k").arg(socket_directory).args(["-p", "5432"]);
        let mut settings = vec![
            "listen_addresses=",
            "unix_socket_permissions=0700",
            "max_connections=64",
            "shared_buffers=256MB",
            // The statements of the service are short, so just-in-time compilation never pays.
            "jit=off",
            "timezone=UTC",
            "log_timezone=UTC",
        ];
        if cfg!(target_os = "linux") && self.binaries.major >= 14 {
            // After a crash: one system call for each file system instead of one for each file.
            settings.push("recovery_init_sync_method=syncfs");
        }
        if !durable {
            settings.extend(["fsync=off", "synchronous_commit=off", "full_page_writes=off"]);
        }
        for setting in settings {
            postgres.args(["-c", setting]);
        }
        postgres
            .stdout(log.try_clone().map_err(io_error_at(self.directory))?)
            .stderr(log)
            .stdin(Stdio::null());
        Ok(postgres)
    }
}

fn remove_if_exists(path: &Path) -> Result<(), EmbeddedError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error_at(path)(error)),
        _ => Ok(()),
    }
}

fn is_short_directory(path: &Path) -> bool {
    path.file_name()
        .and_then(|name| name.to_str())
        .is_some_and(|name| name.starts_with(SHORT_PREFIX))
}

fn open_log(path: &Path) -> Result<File, EmbeddedError> {
    if fs::metadata(path).is_ok_and(|metadata| metadata.len() > MAX_LOG_BYTES) {
        fs::rename(path, path.with_extension("log.1")).map_err(io_error_at(path))?;
    }
    OpenOptions::new().create(true).append(true).open(path).map_err(io_error_at(path))
}

fn read_log_from(path: &Path, start: u64) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    let start = usize::try_from(start).unwrap_or_default().min(bytes.len());
    String::from_utf8_lossy(&bytes[start..]).into_owned()
}
