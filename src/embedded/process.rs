//! Processes: how to start the programs of PostgreSQL, how to signal them, and how to tell a server
//! of a data directory from an unrelated process with the same process id.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Gid, Pid, Uid};
use tokio::process::Command;

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

/// A command that runs a program of PostgreSQL as the given user. On Linux, the kernel sends SIGINT
/// to the program when the thread that started it ends.
pub(super) fn command(program: &Path, directory: &Path, user: Option<(Uid, Gid)>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(directory).env("LC_ALL", "C");
    for (name, _) in std::env::vars_os() {
        // PGDATA, PGPORT, and similar variables could override the command line.
        if name.to_string_lossy().starts_with("PG") {
            command.env_remove(name);
        }
    }
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
        let text = fs::read_to_string(data.join("postmaster.pid")).ok()?;
        let mut lines = text.lines();
        Some(Self {
            pid: lines.next()?.trim().parse().ok().filter(|pid| *pid > 1)?,
            data: lines.next().unwrap_or_default().into(),
            socket_directory: lines.nth(2).unwrap_or_default().into(),
            is_ready: lines.nth(2).is_some_and(|state| state.trim() == "ready"),
        })
    }
}

/// Whether the process is alive and is a PostgreSQL server of this data directory. A zombie does
/// not count as alive.
pub(super) fn is_postgres(pid: i32, data: &Path) -> bool {
    if kill(Pid::from_raw(pid), None) == Err(nix::errno::Errno::ESRCH) {
        return false;
    }
    if cfg!(target_os = "linux") {
        let process = PathBuf::from(format!("/proc/{pid}"));
        let Ok(stat) = fs::read_to_string(process.join("stat")) else { return false };
        let Ok(arguments) = fs::read(process.join("cmdline")) else { return false };
        // The state follows the program's name in parentheses. The name itself may contain some.
        let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
        let names_directory = arguments
            .split(|byte| *byte == 0)
            .any(|argument| argument == data.as_os_str().as_encoded_bytes());
        !matches!(state, Some('Z' | 'X')) && names_directory
    } else {
        let output = std::process::Command::new("ps")
            .args(["-o", "command=", "-p", &pid.to_string()])
            .output();
        output.is_ok_and(|output| {
            String::from_utf8_lossy(&output.stdout).contains(&*data.to_string_lossy())
        })
    }
}
