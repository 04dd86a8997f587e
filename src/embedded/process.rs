//! Processes: how to start the programs of PostgreSQL, how to signal them, and how to tell a server
//! of a data directory from an unrelated process with the same process id.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Gid, Pid, Uid};
use tokio::process::{Child, Command};

use super::files;
use super::log::Output;

/// How often to check a condition that sends no notification.
pub(super) const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// How long a fast shutdown may take. The server writes a checkpoint in that time.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// How long an immediate shutdown may take. The server recovers at the next start.
const IMMEDIATE_STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// How to stop a server: each signal, and how long to wait after it. Fast shutdown first, then
/// immediate shutdown. See "Shutting Down the Server" in the manual of PostgreSQL.
pub(super) const SHUTDOWN_SEQUENCE: [(Signal, Duration); 2] =
    [(Signal::SIGINT, STOP_TIMEOUT), (Signal::SIGQUIT, IMMEDIATE_STOP_TIMEOUT)];

/// The variables that the programs of PostgreSQL get from the service: where programs and libraries
/// are. The others may be secrets (the bootstrap key), or override the command line (PGPORT).
const PASSED_ON: [&str; 2] = ["PATH", "LD_LIBRARY_PATH"];

/// A command without the environment of the service.
pub(super) fn in_clean_environment(program: &Path) -> std::process::Command {
    let mut command = std::process::Command::new(program);
    command.env_clear().env("LC_ALL", "C");
    for name in PASSED_ON {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command
}

/// A command that runs a program of PostgreSQL as the given user. On Linux, the kernel sends SIGINT
/// to the program when the thread that started it ends.
pub(super) fn command(program: &Path, directory: &Path, user: Option<(Uid, Gid)>) -> Command {
    let mut command = Command::from(in_clean_environment(program));
    command.current_dir(directory);
    if let Some((uid, gid)) = user {
        command.uid(uid.as_raw()).gid(gid.as_raw());
    }
    // Ctrl-C in a terminal signals the whole foreground process group. The service must stop first,
    // and then its server, so the server gets a group of its own.
    command.process_group(0);
    #[cfg(target_os = "linux")]
    {
        use nix::sys::prctl::set_pdeathsig;
        // SAFETY: the closure runs between fork and exec, where only async-signal-safe calls are
        // allowed. It makes one system call and allocates nothing.
        #[expect(
            unsafe_code,
            reason = "the only way to have the kernel stop the server when the service is killed"
        )]
        unsafe {
            command.pre_exec(|| set_pdeathsig(Signal::SIGINT).map_err(Into::into));
        }
    }
    command
}

/// A server process. Dropping it signals the server to stop and does not wait.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    output: Output,
}

impl Process {
    pub(super) fn new(child: Child, output: Output) -> Self {
        Self { child, output }
    }

    /// The process id, until the process has been waited for.
    pub(super) fn id(&self) -> Option<i32> {
        self.child.id().and_then(|pid| i32::try_from(pid).ok())
    }

    /// The status of a process that has ended.
    pub(super) fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Waits until the process ends.
    pub(super) async fn wait(&mut self) -> io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// The newest output of a process that has ended.
    pub(super) async fn output(&mut self) -> String {
        self.output.newest().await
    }

    /// Stops the server and waits until it ends.
    pub(super) async fn stop(&mut self) -> io::Result<ExitStatus> {
        for (signal, timeout) in SHUTDOWN_SEQUENCE {
            self.signal(signal);
            if let Ok(status) = tokio::time::timeout(timeout, self.child.wait()).await {
                return status;
            }
        }
        self.child.start_kill()?;
        self.child.wait().await
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = self.id() {
            // A child keeps its process id until it is waited for, so no other process has this id.
            let _ = send(pid, signal);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(Signal::SIGINT);
    }
}

pub(super) fn send(pid: i32, signal: Signal) -> nix::Result<()> {
    kill(Pid::from_raw(pid), signal)
}

/// The content of `postmaster.pid`: the server's process id on line 1, its data directory on line
/// 2, the directory of its socket on line 5, its state on line 8.
pub(super) struct PidFile {
    pub(super) pid: i32,
    /// The data directory of the server that wrote the file.
    pub(super) data: PathBuf,
    pub(super) socket_directory: PathBuf,
    pub(super) is_ready: bool,
}

impl PidFile {
    /// Reads the file. `None` if the file is missing or not yet written.
    pub(super) fn read(data: &Path) -> Option<Self> {
        let bytes = files::read_small(&data.join("postmaster.pid")).ok()?;
        let mut lines = bytes.split(|byte| *byte == b'\n');
        let pid = std::str::from_utf8(lines.next()?).ok()?.trim().parse().ok();
        let path = |line: Option<&[u8]>| OsStr::from_bytes(line.unwrap_or_default()).into();
        Some(Self {
            pid: pid.filter(|pid| *pid > 1)?,
            data: path(lines.next()),
            socket_directory: path(lines.nth(2)),
            is_ready: lines.nth(2).is_some_and(|state| state.trim_ascii() == b"ready"),
        })
    }
}

/// Whether the process is alive and is a PostgreSQL server of this data directory. A zombie does
/// not count as alive. On Linux, the process must belong to the owner of the data: the process id
/// comes from a file of that user, who may not choose what root signals.
pub(super) fn is_postgres(pid: i32, data: &Path) -> bool {
    if kill(Pid::from_raw(pid), None) == Err(nix::errno::Errno::ESRCH) {
        return false;
    }
    if cfg!(target_os = "linux") {
        let process = PathBuf::from(format!("/proc/{pid}"));
        let Ok(stat) = fs::read_to_string(process.join("stat")) else { return false };
        let Ok(arguments) = fs::read(process.join("cmdline")) else { return false };
        let owner = |path: &Path| fs::metadata(path).map(|metadata| metadata.uid()).ok();
        // The state follows the program's name in parentheses. The name itself may contain some.
        let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
        let names_directory = arguments
            .split(|byte| *byte == 0)
            .any(|argument| argument == data.as_os_str().as_encoded_bytes());
        !matches!(state, Some('Z' | 'X')) && names_directory && owner(&process) == owner(data)
    } else {
        let output = in_clean_environment(Path::new("ps"))
            .args(["-o", "command=", "-p", &pid.to_string()])
            .output();
        output.is_ok_and(|output| {
            String::from_utf8_lossy(&output.stdout).contains(&*data.to_string_lossy())
        })
    }
}
