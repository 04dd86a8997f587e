//! Processes: starting PostgreSQL's programs, and telling a server of ours from a stranger with its number.

use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Gid, Pid, Uid};
use tokio::process::Command;

/// A program of PostgreSQL's that ends when this process does, run as the given user.
pub(super) fn command(program: &Path, directory: &Path, user: Option<(Uid, Gid)>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(directory).env("LC_ALL", "C");
    for (name, _) in std::env::vars_os() {
        // PGDATA, PGPORT and their like would override what is said on the command line.
        if name.to_string_lossy().starts_with("PG") {
            command.env_remove(name);
        }
    }
    if let Some((uid, gid)) = user {
        command.uid(uid.as_raw()).gid(gid.as_raw());
    }
    // Ctrl-C in a terminal goes to the whole foreground group; the service shall stop first, then its server.
    command.process_group(0);
    #[cfg(target_os = "linux")]
    {
        use nix::sys::prctl::set_pdeathsig;
        // SAFETY: the closure runs between fork and exec, where only async-signal-safe calls are allowed; it makes
        // one system call and allocates nothing.
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

/// Sends a signal.
pub(super) fn send(pid: i32, signal: Signal) -> nix::Result<()> {
    kill(Pid::from_raw(pid), signal)
}

/// What a server writes into `postmaster.pid`: its number on the first line, its data directory on the second, its
/// socket's directory on the fifth, its state on the eighth.
pub(super) struct PidFile {
    pub(super) pid: i32,
    /// The data directory that it was written for.
    pub(super) data: PathBuf,
    pub(super) socket_directory: PathBuf,
    pub(super) is_ready: bool,
}

impl PidFile {
    /// The file, or `None` where there is none or it is not yet written.
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

/// Whether the process is alive and a PostgreSQL server of this data directory. A process that is dead but not yet
/// waited for is not.
pub(super) fn is_postgres(pid: i32, data: &Path) -> bool {
    if kill(Pid::from_raw(pid), None) == Err(nix::errno::Errno::ESRCH) {
        return false;
    }
    if cfg!(target_os = "linux") {
        let process = PathBuf::from(format!("/proc/{pid}"));
        let Ok(stat) = fs::read_to_string(process.join("stat")) else { return false };
        let Ok(arguments) = fs::read(process.join("cmdline")) else { return false };
        // The state follows the program's name, which may itself hold brackets.
        let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
        let ours = arguments
            .split(|byte| *byte == 0)
            .any(|argument| argument == data.as_os_str().as_encoded_bytes());
        !matches!(state, Some('Z' | 'X')) && ours
    } else {
        let output =
            std::process::Command::new("ps").args(["-o", "command=", "-p", &pid.to_string()]).output();
        output.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains(&*data.to_string_lossy()))
    }
}
