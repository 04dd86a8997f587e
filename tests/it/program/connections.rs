//! How many connections the program accepts.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;

use crate::support::TIMEOUT;
use crate::support::cluster;
use crate::support::program::{DataDirectory, KEY, RunningService};

/// The service with these arguments, started by a shell that lowers the soft limit on open files.
async fn start(directory: &DataDirectory, open_files: u32, arguments: &[&str]) -> RunningService {
    let inner = directory.command(arguments);
    let inner = inner.as_std();
    let mut command = Command::new("sh");
    command.arg("-c").arg(format!("ulimit -S -n {open_files} && exec \"$0\" \"$@\""));
    command.arg(inner.get_program()).args(inner.get_args()).kill_on_drop(true).env_clear();
    for (name, value) in inner.get_envs() {
        command.env(name, value.unwrap_or_default());
    }
    let url = cluster::url_of(&cluster::empty_database().await);
    command.env("DATABASE_URL", url).env("TASK_HISTORY_BOOTSTRAP_KEY", KEY);
    RunningService::start(command).await
}

/// Sends a request on a new connection, which stays open. Returns the start of the answer.
async fn request(port: u16) -> (TcpStream, String) {
    let work = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("a connection");
        stream.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("sent");
        let mut status = [0; 12];
        stream.read_exact(&mut status).await.expect("an answer");
        (stream, String::from_utf8_lossy(&status).into_owned())
    };
    tokio::time::timeout(TIMEOUT, work).await.expect("an answer")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_soft_limit_on_open_files_does_not_limit_connections() {
    let directory = DataDirectory::new();
    let mut service = start(&directory, 200, &[]).await;
    let line = service.wait_for_log("limit on open files").await;
    assert_eq!(line["before"], 200);
    assert!(line["open_files"].as_u64().is_some_and(|limit| limit >= 1024), "{line}");
    let mut open = Vec::new();
    for _ in 0..300 {
        let (stream, status) = request(service.port).await;
        assert_eq!(status, "HTTP/1.1 200", "connection {}", open.len());
        open.push(stream);
    }
    drop(open);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_beyond_the_settings_are_refused_and_logged() {
    for (arguments, setting) in [
        (
            &["--max-connections", "2", "--max-connections-per-address", "2"][..],
            "--max-connections ",
        ),
        (&["--max-connections", "4"], "--max-connections-per-address "),
    ] {
        let directory = DataDirectory::new();
        let mut service = start(&directory, 1024, arguments).await;
        let mut open = Vec::new();
        for expected in ["HTTP/1.1 200", "HTTP/1.1 200", "HTTP/1.1 503", "HTTP/1.1 503"] {
            let (stream, status) = request(service.port).await;
            assert_eq!(status, expected, "{arguments:?}");
            open.push(stream);
        }
        let (_, log) = {
            let line = service.wait_for_log("refused connections").await;
            let message = line["message"].as_str().expect("text");
            assert!(message.contains(setting), "{message}");
            drop(open);
            service.stop().await
        };
        assert!(!log.contains("refused connections"), "one line in a while: {log}");
    }
}
