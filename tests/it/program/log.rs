//! Output that nobody reads stops nothing.

use std::io::{PipeReader, Write};
use std::process::Stdio;

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::Command;

use crate::support::TIMEOUT;
use crate::support::cluster;
use crate::support::program::{DataDirectory, KEY, RunningService};

/// Requests whose log lines fill a pipe and the queue before it.
const REQUESTS: usize = 6_000;

/// A service on the tests' database server.
async fn command(directory: &DataDirectory) -> Command {
    let mut command = directory.command::<&str>([]);
    let url = cluster::url_of(&cluster::empty_database().await);
    command.env("DATABASE_URL", url).env("TASK_HISTORY_BOOTSTRAP_KEY", KEY);
    command
}

/// Sends all requests on one connection, each after the answer to the one before.
async fn send_requests(port: u16) {
    let work = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("a connection");
        // The id of a request is in its log line.
        let id = "x".repeat(128);
        let request = format!("GET /health HTTP/1.1\r\nhost: x\r\nx-request-id: {id}\r\n\r\n");
        let mut answer = Vec::new();
        for _ in 0..REQUESTS {
            stream.write_all(request.as_bytes()).await.expect("sent");
            answer.clear();
            while !answer.ends_with(b"\r\n\r\n\"ok\"") {
                assert_ne!(stream.read_buf(&mut answer).await.expect("an answer"), 0);
            }
        }
    };
    tokio::time::timeout(TIMEOUT, work).await.expect("all requests are answered");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_nobody_reads_stops_nothing() {
    let directory = DataDirectory::new();
    let service = RunningService::start(command(&directory).await).await;
    send_requests(service.port).await;
    service.signal(Signal::SIGTERM);
    // The log is read only after the end of the process.
    let (status, _, log) = service.ended().await;
    assert!(status.success(), "{status}");
    assert!(log.lines().count() < REQUESTS / 2, "{} lines are in a pipe", log.lines().count());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn log_lines_that_are_dropped_are_counted() {
    let directory = DataDirectory::new();
    let mut service = RunningService::start(command(&directory).await).await;
    send_requests(service.port).await;
    let lines = service.read_log_until("log lines were dropped").await;
    let dropped = lines.last().expect("a line")["dropped"].as_u64().expect("a number");
    let (_, rest) = service.stop().await;
    let rest = rest.lines().map(|line| serde_json::from_str::<Value>(line).expect(line));
    let all = lines.into_iter().chain(rest);
    let written = all.filter(|line| line["message"] == "request").count();
    assert!(dropped > 0);
    assert_eq!(written as u64 + dropped, REQUESTS as u64);
}

/// A pipe that takes nothing more.
fn full_pipe() -> (PipeReader, Stdio) {
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    let capacity = fcntl(&writer, FcntlArg::F_GETPIPE_SZ).expect("a size");
    writer.write_all(&vec![0; usize::try_from(capacity).expect("a size")]).expect("room");
    (reader, writer.into())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn standard_output_that_nobody_reads_stops_nothing() {
    let directory = DataDirectory::new();
    let (_unread, stdout) = full_pipe();
    let mut command = command(&directory).await;
    let mut child = command.stdout(stdout).stderr(Stdio::piped()).spawn().expect("it starts");
    let mut log = BufReader::new(child.stderr.take().expect("piped")).lines();
    let listening = async {
        loop {
            let line = log.next_line().await.expect("a pipe").expect("it listens");
            let line: Value = serde_json::from_str(&line).expect(&line);
            if line["message"] == "listening" {
                return line["address"].as_str().expect("an address").to_owned();
            }
        }
    };
    let address = tokio::time::timeout(TIMEOUT, listening).await.expect("it listens");
    let health = reqwest::get(format!("http://{address}/health"));
    let answer = tokio::time::timeout(TIMEOUT, health).await.expect("it serves");
    assert!(answer.expect("an answer").status().is_success());
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).expect("it runs");
    kill(Pid::from_raw(pid), Signal::SIGTERM).expect("a signal");
    let status = tokio::time::timeout(TIMEOUT, child.wait()).await.expect("it ends");
    assert!(status.expect("a child").success());
}

/// The log ends before the message, which ends the process although nobody reads it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_message_that_nobody_reads_stops_nothing() {
    let directory = DataDirectory::new();
    let (_unread, stderr) = full_pipe();
    let mut command = directory.command(["--listen", "nonsense"]);
    let mut child = command.stderr(stderr).spawn().expect("it starts");
    let status = tokio::time::timeout(TIMEOUT, child.wait()).await.expect("it ends");
    assert_eq!(status.expect("a child").code(), Some(1));
}
