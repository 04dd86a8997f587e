//! The released service, started as anybody starts it, on its own PostgreSQL.

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

use crate::process;

/// The key that the services are told to have.
pub(crate) const KEY: &str = "key-of-the-load-harness-and-nobody-else";

/// Connections to the database: the service's default, and as many clients as `pgbench` has beside it.
pub(crate) const DATABASE_CONNECTIONS: usize = 8;

/// How long anything may take to start or to stop.
const PATIENCE: Duration = Duration::from_mins(2);

/// PostgreSQL's programs, for the service and for the harness.
#[derive(Debug, Clone)]
pub(crate) struct Programs {
    /// Where the real ones are, `pgbench` among them.
    pub(crate) directory: PathBuf,
    /// A directory for `--postgres-bin-dir`.
    for_service: PathBuf,
}

impl Programs {
    /// Finds the programs, and puts a `postgres` in front of them that allows for more connections: the service's own
    /// server takes 64, and 64 clients of `pgbench` come on top of the service's. Nothing else is changed.
    pub(crate) fn find(scratch: &Path) -> anyhow::Result<Self> {
        let directory = find_directory()?;
        let for_service = scratch.join("bin");
        open_to_all(&for_service)?;
        let postgres = for_service.join("postgres");
        let real = directory.join("postgres");
        let script = format!("#!/bin/sh\nexec '{}' \"$@\" -c max_connections=128\n", real.display());
        fs::write(&postgres, script)?;
        fs::set_permissions(&postgres, Permissions::from_mode(0o755))?;
        let initdb = for_service.join("initdb");
        if !initdb.exists() {
            std::os::unix::fs::symlink(directory.join("initdb"), initdb)?;
        }
        Ok(Self { directory, for_service })
    }
}

/// Where `pgbench` stands beside `postgres`: on PATH, else the newest of Debian's places.
fn find_directory() -> anyhow::Result<PathBuf> {
    let mut candidates: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path().join("bin"))
        .collect();
    let version = |path: &PathBuf| -> Option<u32> { path.parent()?.file_name()?.to_str()?.parse().ok() };
    candidates.sort_by_key(|path| std::cmp::Reverse(version(path)));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let all = std::env::split_paths(&path).chain(candidates);
    let mut fitting = all.filter_map(|directory| {
        // A link on PATH leads to where the others are.
        let postgres = fs::canonicalize(directory.join("postgres")).ok()?;
        let directory = postgres.parent()?.to_owned();
        ["pgbench", "initdb"].iter().all(|program| directory.join(program).exists()).then_some(directory)
    });
    fitting.next().context("this machine has no PostgreSQL with pgbench: apt-get install postgresql")
}

/// Makes a directory that PostgreSQL's user can enter: the service runs its server as another user than root.
pub(crate) fn open_to_all(directory: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
    fs::set_permissions(directory, Permissions::from_mode(0o755))?;
    Ok(())
}

/// A service that listens.
pub(crate) struct Service {
    child: Child,
    /// Kept, so that what the service prints has somewhere to go.
    _stdout: Lines<BufReader<ChildStdout>>,
    pub(crate) pid: u32,
    pub(crate) port: u16,
    /// From its start to the line that says where it listens.
    pub(crate) started_in: Duration,
    pub(crate) directory: PathBuf,
    pub(crate) postmaster: u32,
    /// Where the socket of its PostgreSQL is.
    pub(crate) socket: PathBuf,
}

impl Service {
    /// Starts the service on a data directory.
    pub(crate) async fn start(programs: &Programs, directory: &Path) -> anyhow::Result<Self> {
        let mut command = command(programs);
        command.arg("--data-dir").arg(directory);
        Self::listen(command, directory).await
    }

    /// Starts another service on the same database, which it is given by its address.
    pub(crate) async fn start_beside(&self, programs: &Programs) -> anyhow::Result<Self> {
        let mut command = command(programs);
        let url = format!("postgres://postgres@localhost/task_history?host={}", self.socket.display());
        command.env("DATABASE_URL", url);
        Self::listen(command, &self.directory).await
    }

    async fn listen(mut command: Command, directory: &Path) -> anyhow::Result<Self> {
        command.args(["--listen", "127.0.0.1:0"]).stdout(Stdio::piped());
        let begun = Instant::now();
        let mut child = command.spawn().context("the service does not start")?;
        let mut stdout = BufReader::new(child.stdout.take().context("a pipe")?).lines();
        let line = tokio::time::timeout(PATIENCE, stdout.next_line())
            .await
            .context("the service does not listen")?;
        let started_in = begun.elapsed();
        let Some(line) = line? else { bail!("the service ended before it listened") };
        let port = line
            .strip_prefix("Listening on http://127.0.0.1:")
            .and_then(|rest| rest.split(',').next()?.parse().ok())
            .with_context(|| format!("the service said `{line}`"))?;
        let pid = child.id().context("the service has ended")?;
        let (postmaster, socket) = read_pid_file(directory)?;
        let directory = directory.to_owned();
        Ok(Self { child, _stdout: stdout, pid, port, started_in, directory, postmaster, socket })
    }

    /// Stops it in the proper way.
    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        kill(Pid::from_raw(i32::try_from(self.pid)?), Signal::SIGTERM)?;
        let status = tokio::time::timeout(PATIENCE, self.child.wait())
            .await
            .context("the service does not stop")??;
        ensure!(status.success(), "the service ended with {status}");
        Ok(())
    }

    /// Makes an organisation with a key, and returns the key.
    pub(crate) async fn create_key(&self, programs: &Programs, organization: &str) -> anyhow::Result<String> {
        let mut command = command(programs);
        command.args(["keys", "create", "--name", "load", "--json", "--organization", organization]);
        let output = command.arg("--data-dir").arg(&self.directory).output().await?;
        ensure!(output.status.success(), "task-history keys: {}", String::from_utf8_lossy(&output.stderr));
        let made: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        Ok(made["key"].as_str().context("no key was made")?.to_owned())
    }

    /// Runs `task-history import` beside the service and hands it the records, chunk by chunk.
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
        let mut stdin = child.stdin.take().context("a pipe")?;
        for chunk in chunks {
            if stdin.write_all(&chunk).await.is_err() {
                // It went away; its exit code says why.
                break;
            }
        }
        drop(stdin);
        let status = child.wait().await?;
        ensure!(status.success(), "task-history import ended with {status}");
        Ok(())
    }

    /// Imports a file.
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

/// The program, in an environment with no settings but ours. It is in a process group of its own, so that Ctrl-C comes
/// to the harness alone, which then stops everything in order.
fn command(programs: &Programs) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_task-history"));
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.env("TASK_HISTORY_LOG", "warn").env("TASK_HISTORY_BOOTSTRAP_KEY", KEY);
    command.env("TASK_HISTORY_POSTGRES_BIN_DIR", &programs.for_service);
    command.stdin(Stdio::null()).kill_on_drop(true).process_group(0);
    command
}

/// The number of the server of a data directory, and where its socket is.
fn read_pid_file(directory: &Path) -> anyhow::Result<(u32, PathBuf)> {
    let path = directory.join("data/postmaster.pid");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let mut lines = text.lines();
    let pid = lines.next().and_then(|pid| pid.trim().parse().ok());
    pid.zip(lines.nth(3).map(PathBuf::from)).with_context(|| format!("{} is not whole", path.display()))
}

/// Waits until no server runs on a data directory: one whose service was killed needs a moment to stop.
pub(crate) fn wait_for_server_to_end(directory: &Path) {
    let begun = Instant::now();
    while let Ok((pid, _)) = read_pid_file(directory)
        && process::is_alive(pid)
        && begun.elapsed() < PATIENCE
    {
        std::thread::sleep(Duration::from_millis(50));
    }
}
