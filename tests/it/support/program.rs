//! The real program in a process of its own.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid, User};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr, ChildStdout, Command};

use super::{TIMEOUT, cluster};

/// The bootstrap key of the services that tests start.
pub const KEY: &str = "test-key-of-the-default-organization";

/// A data directory, and how to run the program on it.
pub struct DataDirectory {
    root: TempDir,
    program: PathBuf,
    user: Option<User>,
}

impl DataDirectory {
    /// A directory of the user who runs the tests.
    pub fn new() -> Self {
        let program = PathBuf::from(env!("CARGO_BIN_EXE_task-history"));
        Self { root: cluster::world_readable_directory(), program, user: None }
    }

    /// A directory of an ordinary user: of `nobody` if root runs the tests.
    pub fn of_ordinary_user() -> Self {
        let mut directory = Self::new();
        if Uid::effective().is_root() {
            let user = User::from_name("nobody").expect("users").expect("nobody");
            // Only root may be able to enter the checkout.
            let program = directory.path().join("task-history");
            std::fs::copy(&directory.program, &program).expect("a copy");
            std::os::unix::fs::chown(directory.path(), Some(user.uid.as_raw()), None)
                .expect("own directory");
            directory.program = program;
            directory.user = Some(user);
        }
        directory
    }

    /// The directory that holds the data directory.
    pub fn path(&self) -> &Path {
        self.root.path()
    }

    /// The data directory of the service.
    pub fn data(&self) -> PathBuf {
        self.root.path().join("data-directory")
    }

    /// The program with arguments, on this directory, in an environment without settings.
    pub fn command<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments).kill_on_drop(true).stdin(Stdio::null()).env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("TASK_HISTORY_DATA_DIR", self.data()).env("TASK_HISTORY_LISTEN", "127.0.0.1:0");
        command.current_dir(self.root.path());
        if let Some(user) = &self.user {
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
        command
    }

    /// Runs a command to its end.
    pub async fn run(&self, arguments: &[&str]) -> Output {
        run(self.command(arguments)).await
    }

    /// Starts the service with a known key and waits until it listens.
    pub async fn serve(&self) -> RunningService {
        let mut command = self.command::<&str>([]);
        command.env("TASK_HISTORY_BOOTSTRAP_KEY", KEY);
        RunningService::start(command).await
    }
}

/// Runs a command to its end, with its output.
pub async fn run(mut command: Command) -> Output {
    tokio::time::timeout(TIMEOUT, command.output()).await.expect("it ends").expect("it runs")
}

/// What a command wrote, as text.
pub fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("UTF-8")
}

/// A service that listens.
pub struct RunningService {
    child: Child,
    /// `http://127.0.0.1:…`
    pub base: String,
    pub port: u16,
    stdout: Lines<BufReader<ChildStdout>>,
    stderr: Lines<BufReader<ChildStderr>>,
}

impl RunningService {
    pub async fn start(mut command: Command) -> Self {
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
        let mut stdout = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut stderr = BufReader::new(child.stderr.take().expect("piped")).lines();
        let first = tokio::time::timeout(TIMEOUT, stdout.next_line())
            .await
            .expect("it listens")
            .expect("a pipe");
        let Some(first) = first else {
            let mut said = String::new();
            let _ = stderr.get_mut().read_to_string(&mut said).await;
            panic!("it ended: {said}");
        };
        let base = first
            .strip_prefix("Listening on ")
            .and_then(|rest| rest.split(',').next())
            .expect(&first);
        let port = base.rsplit(':').next().and_then(|port| port.parse().ok()).expect(&first);
        Self { base: base.to_owned(), port, child, stdout, stderr }
    }

    /// The service's process.
    pub fn pid(&self) -> Pid {
        let pid = self.child.id().and_then(|pid| i32::try_from(pid).ok()).expect("it runs");
        Pid::from_raw(pid)
    }

    /// Sends a signal to the service alone.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("a signal");
    }

    /// Reads the log up to the first line whose message contains this text, and returns that line.
    pub async fn wait_for_log(&mut self, message: &str) -> Value {
        self.read_log_until(message).await.pop().expect("the line")
    }

    /// Reads the log up to the first line whose message contains this text.
    pub async fn read_log_until(&mut self, message: &str) -> Vec<Value> {
        let find = async {
            let mut lines = Vec::new();
            while let Some(line) = self.stderr.next_line().await.expect("a pipe") {
                let line: Value = serde_json::from_str(&line).expect(&line);
                let is_last = line["message"].as_str().is_some_and(|text| text.contains(message));
                lines.push(line);
                if is_last {
                    return lines;
                }
            }
            panic!("the log ended without {message}");
        };
        tokio::time::timeout(TIMEOUT, find).await.expect("the message comes")
    }

    /// Reads standard output up to the first line that ends with this text.
    pub async fn read_stdout_until(&mut self, end: &str) -> String {
        let mut printed = String::new();
        let read = async {
            while let Some(line) = self.stdout.next_line().await.expect("a pipe") {
                printed += &(line + "\n");
                if printed.trim_end().ends_with(end) {
                    break;
                }
            }
        };
        tokio::time::timeout(TIMEOUT, read).await.expect("it is printed");
        printed
    }

    /// Waits for the process to end. Returns its status, and the output that has not been read.
    pub async fn ended(mut self) -> (ExitStatus, String, String) {
        let status = tokio::time::timeout(TIMEOUT, self.child.wait())
            .await
            .expect("it ends")
            .expect("a child");
        let (mut stdout, mut stderr) = (String::new(), String::new());
        while let Some(line) = self.stdout.next_line().await.expect("a pipe") {
            stdout += &(line + "\n");
        }
        while let Some(line) = self.stderr.next_line().await.expect("a pipe") {
            stderr += &(line + "\n");
        }
        (status, stdout, stderr)
    }

    /// Stops the service with SIGTERM and checks that it succeeds. Returns the unread output.
    pub async fn stop(self) -> (String, String) {
        self.signal(Signal::SIGTERM);
        let (status, stdout, stderr) = self.ended().await;
        assert!(status.success(), "{status} {stderr}");
        (stdout, stderr)
    }

    pub async fn get(&self, path: &str) -> Value {
        let request =
            reqwest::Client::new().get(format!("{}{path}", self.base)).header("x-api-key", KEY);
        let response = request.send().await.expect("an answer");
        assert!(response.status().is_success(), "{path}: {}", response.status());
        response.json().await.expect("JSON")
    }

    /// Records a task with this id.
    pub async fn record(&self, id: &str) {
        let request = reqwest::Client::new()
            .post(format!("{}/v1/agents/a/invoke/async", self.base))
            .header("x-api-key", KEY)
            .json(&serde_json::json!({ "id": id, "input": { "text": "x" } }));
        let response = request.send().await.expect("an answer");
        assert!(response.status().is_success(), "{}", response.status());
    }
}

/// The process id in the cluster's `postmaster.pid`.
pub fn postmaster(data: &Path) -> Option<Pid> {
    let text = std::fs::read_to_string(data.join("data/postmaster.pid")).ok()?;
    text.lines().next()?.parse().ok().map(Pid::from_raw)
}

/// The child processes of a process, with the titles that they give themselves.
pub fn children(parent: Pid) -> Vec<(Pid, String)> {
    let entries = std::fs::read_dir("/proc").expect("processes").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_child = |pid: &i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let mut fields = stat.rsplit(") ").next().unwrap_or_default().split(' ');
        fields.nth(1) == Some(parent.to_string().as_str())
    };
    let title = |pid| std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    pids.filter(is_child).map(|pid| (Pid::from_raw(pid), title(pid))).collect()
}

/// Whether a process with this id runs. A zombie does not run.
pub fn is_alive(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.is_ok_and(|stat| !stat.rsplit(") ").next().is_some_and(|state| state.starts_with('Z')))
}
