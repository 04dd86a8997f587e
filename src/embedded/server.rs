//! The server process: cleanup after a killed service, and the start.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::binaries::Binaries;
use super::error::{EmbeddedError, io_error_at};
use super::files::remove_if_exists;
use super::log::Log;
use super::process::{self, POLL_INTERVAL, PidFile, Process, SHUTDOWN_SEQUENCE};
use super::socket;
use super::trust::Trust;
use super::user::RunAs;

/// How long a start retries while processes of a killed server still hold its shared memory.
const REMNANT_TIMEOUT: Duration = Duration::from_secs(20);

/// How long a start may take before a log message explains the delay.
const SLOW_START_NOTICE: Duration = Duration::from_secs(5);

/// The server of a data directory: how to start it.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) directory: PathBuf,
    pub(super) data: PathBuf,
    pub(super) binaries: Binaries,
    pub(super) run_as: RunAs,
    pub(super) trust: Trust,
    pub(super) log: Arc<Log>,
    /// Whether committed data survives a power failure.
    pub(super) durable: bool,
}

impl Server {
    /// Stops the server of a killed service, and removes the files that a killed server left.
    pub(super) async fn clear_remnants(&self) -> Result<(), EmbeddedError> {
        let pid_file = self.data.join("postmaster.pid");
        let Some(file) = PidFile::read(&self.data) else {
            // The file is missing, or a full disk or a power failure left it empty. PostgreSQL does
            // not remove an empty file.
            return remove_if_exists(&pid_file);
        };
        if process::is_postgres(file.pid, &self.data) {
            tracing::warn!(pid = file.pid, "stopping the PostgreSQL of a service that was killed");
            for (signal, timeout) in SHUTDOWN_SEQUENCE {
                // Checked before each signal: the id may be reused once its process has ended.
                if !process::is_postgres(file.pid, &self.data) {
                    break;
                }
                let _ = process::send(file.pid, signal);
                let started = Instant::now();
                while process::is_postgres(file.pid, &self.data) && started.elapsed() < timeout {
                    tokio::time::sleep(POLL_INTERVAL).await;
                }
            }
            if process::is_postgres(file.pid, &self.data) {
                return Err(EmbeddedError::Orphan(file.pid, self.directory.clone()));
            }
        }
        // The process id in the file is now unused, or belongs to an unrelated process or to a
        // zombie. PostgreSQL cannot tell the last two from a running server and would refuse to
        // start.
        remove_if_exists(&pid_file)?;
        remove_if_exists(&self.directory.join("run/.s.PGSQL.5432.lock"))?;
        // In a copy of a data directory, the file names the socket of the original server, which
        // must not be removed.
        if file.data == self.data {
            socket::remove_left(&file.socket_directory, &self.run_as, &self.trust);
        }
        Ok(())
    }

    /// Starts the server and waits until it accepts connections. The process is in `process` as
    /// soon as it exists, so that it can be stopped if this future is dropped.
    pub(super) async fn start(
        &self,
        socket_directory: &Path,
        process: &mut Option<Process>,
    ) -> Result<(), EmbeddedError> {
        let started = Instant::now();
        let mut slow_start_logged = false;
        loop {
            let server = process.insert(self.spawn(socket_directory)?);
            let status = loop {
                if let Some(status) =
                    server.try_wait().map_err(io_error_at(&self.binaries.postgres))?
                {
                    break status;
                }
                if PidFile::read(&self.data)
                    .is_some_and(|file| file.is_ready && Some(file.pid) == server.id())
                {
                    return Ok(());
                }
                if !slow_start_logged && started.elapsed() > SLOW_START_NOTICE {
                    slow_start_logged = true;
                    tracing::info!(
                        log = %self.log.path().display(),
                        "PostgreSQL is still starting; its log shows the progress of the recovery"
                    );
                }
                tokio::time::sleep(POLL_INTERVAL).await;
            };
            let output = server.output().await;
            // The child processes of a killed server take a moment to notice that it ended.
            if output.contains("pre-existing shared memory block")
                && started.elapsed() < REMNANT_TIMEOUT
            {
                tokio::time::sleep(POLL_INTERVAL * 5).await;
                continue;
            }
            let detail = format!("{status}\n{output}\n(from {})", self.log.path().display());
            return Err(EmbeddedError::Program { program: "postgres", detail });
        }
    }

    fn spawn(&self, socket_directory: &Path) -> Result<Process, EmbeddedError> {
        let mut postgres =
            process::command(&self.binaries.postgres, &self.directory, self.run_as.switch_to());
        postgres.arg("-D").arg(&self.data).arg("-k").arg(socket_directory).args(["-p", "5432"]);
        let mut settings = vec![
            "listen_addresses=",
            "unix_socket_permissions=0700",
            "max_connections=100",
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
        if !self.durable {
            settings.extend(["fsync=off", "synchronous_commit=off", "full_page_writes=off"]);
        }
        for setting in settings {
            postgres.args(["-c", setting]);
        }
        let (output, stderr) = io::pipe().map_err(io_error_at(self.log.path()))?;
        let output = self.log.copy(output).map_err(io_error_at(self.log.path()))?;
        postgres.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
        let child = postgres.spawn().map_err(io_error_at(&self.binaries.postgres))?;
        Ok(Process::new(child, output))
    }
}
