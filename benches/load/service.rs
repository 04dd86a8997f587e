//! The released service as a process of its own, with an embedded PostgreSQL.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use crate::process::{self, CpuTime, Memory};

/// The bootstrap key of the services.
pub(crate) const KEY: &str = "bootstrap-key-for-the-load-harness-only";

/// Connections to the database: the service's default. `pgbench` gets as many clients when it runs
/// a statement of the service.
pub(crate) const DATABASE_CONNECTIONS: usize = 16;

/// How long a process may take to start or to stop.
const START_STOP_TIMEOUT: Duration = Duration::from_mins(2);

/// PostgreSQL's programs, for the service and for the harness.
#[derive(Debug, Clone)]
pub(crate) struct Programs {
    /// The directory of the installed programs, including `pgbench`.
    pub(crate) directory: PathBuf,
    /// The directory for `--postgres-bin-dir`.
    for_service: PathBuf,
}

impl Programs {
    /// Finds the installed programs, and writes a `postgres` wrapper that raises `max_connections`.
    ///
    /// The embedded server allows 100 connections; `pgbench` needs 64 in addition to those of the
    /// service. The wrapper changes no other setting.
    pub(crate) fn find(scratch: &Path) -> anyhow::Result<Self> {
        let directory = find_directory()?;
        let for_service = scratch.join("bin");
        create_world_readable(&for_service)?;
        let postgres = for_service.join("postgres");
        let installed = directory.join("postgres");
        let script =
            format!("#!/bin/sh\nexec '{}' \"$@\" -c max_connections=128\n", installed.display());
        fs::write(&postgres, script)?;
        fs::set_permissions(&postgres, Permissions::from_mode(0o755))?;
        let initdb = for_service.join("initdb");
        if !initdb.exists() {
            std::os::unix::fs::symlink(directory.join("initdb"), initdb)?;
        }
        Ok(Self { directory, for_service })
    }
}

/// The directory with `postgres`, `pgbench` and `initdb`: from PATH, else the newest version in
/// Debian's directories.
fn find_directory() -> anyhow::Result<PathBuf> {
    let mut candidates: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path().join("bin"))
        .collect();
    let version =
        |path: &PathBuf| -> Option<u32> { path.parent()?.file_name()?.to_str()?.parse().ok() };
    candidates.sort_by_key(|path| std::cmp::Reverse(version(path)));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let all = std::env::split_paths(&path).chain(candidates);
    let mut complete = all.filter_map(|directory| {
        // A symbolic link on PATH leads to the directory of the other programs.
        let postgres = fs::canonicalize(directory.join("postgres")).ok()?;
        let directory = postgres.parent()?.to_owned();
        let has_all = ["pgbench", "initdb"].iter().all(|program| directory.join(program).exists());
        has_all.then_some(directory)
    });
    complete.next().context("no PostgreSQL with pgbench is installed: apt-get install postgresql")
}

/// Creates a directory that all users can enter: if root runs the service, PostgreSQL runs as
/// another user.
pub(crate) fn create_world_readable(directory: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
    fs::set_permissions(directory, Permissions::from_mode(0o755))?;
    Ok(())
}

/// A service that accepts connections.
pub(crate) struct RunningService {
    child: Child,
    /// Keeps the pipe open, so that the service can write to its standard output.
    _stdout: Lines<BufReader<ChildStdout>>,
    pid: u32,
    pub(crate) port: u16,
    /// The time from spawn to the line that states the address.
    pub(crate) started_in: Duration,
    /// The service's data directory.
    pub(crate) directory: PathBuf,
    postmaster: u32,
    /// The directory of the PostgreSQL socket.
    pub(crate) socket: PathBuf,
}

impl RunningService {
    /// Starts a service on a data directory.
    pub(crate) async fn start(programs: &Programs, directory: &Path) -> anyhow::Result<Self> {
        let mut command = command(programs);
        command.arg("--data-dir").arg(directory);
        Self::spawn(command, directory).await
    }

    /// Starts another service on the same database, which it connects to by `DATABASE_URL`.
    pub(crate) async fn start_second(&self, programs: &Programs) -> anyhow::Result<Self> {
        let mut command = command(programs);
        let socket = self.socket.display();
        let url = format!("postgres://postgres@localhost/task_history?host={socket}");
        command.env("DATABASE_URL", url);
        Self::spawn(command, &self.directory).await
    }

    async fn spawn(mut command: Command, directory: &Path) -> anyhow::Result<Self> {
        command.args(["--listen", "127.0.0.1:0"]).stdout(Stdio::piped());
        let started = Instant::now();
        let mut child = command.spawn().context("the service cannot be started")?;
        let stdout = child.stdout.take().context("the service has no standard output")?;
        let mut stdout = BufReader::new(stdout).lines();
        let line = tokio::time::timeout(START_STOP_TIMEOUT, stdout.next_line())
            .await
            .context("the service does not listen")?;
        let started_in = started.elapsed();
        let Some(line) = line? else { bail!("the service ended before it listened") };
        let port = line
            .strip_prefix("Listening on http://127.0.0.1:")
            .and_then(|rest| rest.split(',').next()?.parse().ok())
            .with_context(|| format!("the service printed `{line}`"))?;
        let pid = child.id().context("the service has ended")?;
        let (postmaster, socket) = read_pid_file(directory)?;
        let directory = directory.to_owned();
        Ok(Self { child, _stdout: stdout, pid, port, started_in, directory, postmaster, socket })
    }

    /// Shuts the service down gracefully.
    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        kill(Pid::from_raw(i32::try_from(self.pid)?), Signal::SIGTERM)?;
        let status = tokio::time::timeout(START_STOP_TIMEOUT, self.child.wait())
            .await
            .context("the service does not stop")??;
        ensure!(status.success(), "the service ended with {status}");
        Ok(())
    }

    /// The CPU time that the service and its PostgreSQL have used so far.
    pub(crate) fn cpu_time(&self) -> CpuTime {
        process::cpu_time(self.pid, self.postmaster)
    }

    /// The memory of the service, without PostgreSQL.
    pub(crate) fn memory(&self) -> anyhow::Result<Memory> {
        process::memory(self.pid)
    }

    /// Creates an organization with an API key, and returns the key.
    pub(crate) async fn create_key(
        &self,
        programs: &Programs,
        organization: &str,
    ) -> anyhow::Result<String> {
        let mut command = command(programs);
        command.args(["keys", "create", "--name", "load", "--json"]);
        command.args(["--organization", organization]);
        let output = command.arg("--data-dir").arg(&self.directory).output().await?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "task-history keys: {stderr}");
        let created: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        Ok(created["key"].as_str().context("task-history keys printed no key")?.to_owned())
    }

    /// Runs `task-history import` while the service runs, and writes the chunks to its standard
    /// input.
    pub(crate) async fn import(
        &self,
        programs: &Programs,
        organization: &str,
        chunks: impl Iterator<Item = Vec<u8>>,
    ) -> anyhow::Result<()> {
        let mut command = command(programs);
        command.args(["import", "-", "--json", "--organization", organization]);
        command.arg("--data-dir").arg(&self.directory);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
        let mut stdin = child.stdin.take().context("the import has no standard input")?;
        for chunk in chunks {
            if stdin.write_all(&chunk).await.is_err() {
                // The import has ended; its exit code is checked below.
                break;
            }
        }
        drop(stdin);
        let status = child.wait().await?;
        ensure!(status.success(), "task-history import ended with {status}");
        Ok(())
    }

    /// Runs `task-history import` on a file while the service runs.
    pub(crate) async fn import_file(
        &self,
        programs: &Programs,
        organization: &str,
        file: &Path,
    ) -> anyhow::Result<()> {
        let mut command = command(programs);
        command.arg("import").arg(file).args(["--json", "--organization", organization]);
        command.arg("--data-dir").arg(&self.directory).stdout(Stdio::null());
        let status = command.status().await?;
        ensure!(status.success(), "task-history import ended with {status}");
        Ok(())
    }
}

/// The `task-history` program in an environment with the settings of the harness only.
///
/// It is in a process group of its own. So Ctrl-C signals the harness only, which then stops all
/// processes in order.
fn command(programs: &Programs) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_task-history"));
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.env("TASK_HISTORY_LOG", "warn").env("TASK_HISTORY_BOOTSTRAP_KEY", KEY);
    command.env("TASK_HISTORY_POSTGRES_BIN_DIR", &programs.for_service);
    command.stdin(Stdio::null()).kill_on_drop(true).process_group(0);
    command
}

/// The postmaster's process id and its socket directory, from a service's data directory.
fn read_pid_file(directory: &Path) -> anyhow::Result<(u32, PathBuf)> {
    let path = directory.join("data/postmaster.pid");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let mut lines = text.lines();
    let pid = lines.next().and_then(|pid| pid.trim().parse().ok());
    let contents = pid.zip(lines.nth(3).map(PathBuf::from));
    contents.with_context(|| format!("{} is incomplete", path.display()))
}

/// Waits until no PostgreSQL runs on a service's data directory: after its service was killed, a
/// server needs a moment to stop.
pub(crate) fn wait_until_server_stops(directory: &Path) {
    let started = Instant::now();
    while let Ok((pid, _)) = read_pid_file(directory)
        && process::is_alive(pid)
        && started.elapsed() < START_STOP_TIMEOUT
    {
        std::thread::sleep(Duration::from_millis(50));
    }
}
