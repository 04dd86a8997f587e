//! Graceful shutdown: requests in progress and the drain timeout.

use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::program::{DataDirectory, KEY, RunningService};

/// Sends the head of a request, without its body.
async fn open_request(service: &RunningService, body_bytes: usize) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", service.port)).await.expect("a connection");
    let head = format!(
        "POST /v1/agents/a/invoke/async HTTP/1.1\r\nhost: x\r\nx-api-key: {KEY}\r\n\
         content-type: application/json\r\n\
         expect: 100-continue\r\ncontent-length: {body_bytes}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.expect("sent");
    // The service sends this once a handler waits for the body.
    let mut continued = [0; 25];
    stream.read_exact(&mut continued).await.expect("an answer");
    assert!(continued.starts_with(b"HTTP/1.1 100"), "{}", String::from_utf8_lossy(&continued));
    stream
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_under_way_are_finished() {
    let directory = DataDirectory::new();
    let mut service = directory.serve().await;
    let body = r#"{"id":"last","input":{}}"#;
    let mut stream = open_request(&service, body.len()).await;
    service.signal(Signal::SIGTERM);
    service.wait_for_log("refusing new connections").await;
    assert!(TcpStream::connect(("127.0.0.1", service.port)).await.is_err());
    stream.write_all(body.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let (status, _, _) = service.ended().await;
    assert!(status.success());
    let service = directory.serve().await;
    assert_eq!(service.get("/v1/tasks/last").await["status"], "pending");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_take_too_long_are_ended() {
    let directory = DataDirectory::new();
    let mut command = directory.command(["--drain-timeout", "50ms"]);
    command.env("TASK_HISTORY_BOOTSTRAP_KEY", KEY);
    let service = RunningService::start(command).await;
    let _never_sent = open_request(&service, 10).await;
    let (_, log) = service.stop().await;
    assert!(log.contains("drain timeout, aborting requests"), "{log}");
}
