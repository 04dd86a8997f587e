//! Connections of clients that do not read, are too many, or send what RFC 9112 forbids.

use std::convert::Infallible;
use std::io;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::Extension;
use axum::routing::{get, post};
use axum::{Router, response::Response};
use futures_util::stream::{self, StreamExt};
use task_history::domain::{Limits, PeerAddress};
use task_history::server::ConnectionLimits;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::limits::{SHORT, in_bound, long_limits};
use crate::support::tcp_server::{MANY, TcpServer, read_to_end};
use crate::support::test_app::TestApp;

/// More bytes than all buffers between the server and its client have.
const LARGE: usize = 64 << 20;

async fn send(stream: &mut TcpStream, head: &str) {
    stream.write_all(head.as_bytes()).await.expect("sent");
}

/// Sends a request, and reads everything up to the end of the connection.
async fn exchange(server: &TcpServer, request: &str) -> String {
    let mut stream = server.connect().await;
    send(&mut stream, request).await;
    read_to_end(&mut stream).await
}

fn body_of(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").expect("a head").1
}

/// Says when it is dropped.
struct Dropped(mpsc::UnboundedSender<()>);

impl Drop for Dropped {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

/// Routes with large answers, and what is told when an answer is dropped.
fn large_answers() -> (Router, mpsc::UnboundedReceiver<()>) {
    let (sender, dropped) = mpsc::unbounded_channel();
    let of_list = sender.clone();
    let list = async move || {
        let dropped = Dropped(of_list.clone());
        let bytes = Owned(vec![b'x'; LARGE], dropped);
        Response::new(Body::from(Bytes::from_owner(bytes)))
    };
    let stream = async move || {
        let dropped = Dropped(sender.clone());
        let pieces = stream::repeat(Bytes::from_static(&[b'x'; 4096])).map(move |piece| {
            let _ = &dropped;
            Ok::<_, Infallible>(piece)
        });
        Response::new(Body::from_stream(pieces))
    };
    (Router::new().route("/list", get(list)).route("/stream", get(stream)), dropped)
}

/// Bytes with an owner that is told of their end.
struct Owned(Vec<u8>, #[expect(dead_code, reason = "it is only dropped")] Dropped);

impl AsRef<[u8]> for Owned {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_read_is_cut_off() {
    let (router, mut dropped) = large_answers();
    let limits = Limits { slow_reader_timeout: SHORT, ..long_limits() };
    let server = TcpServer::start(router, limits, MANY).await;
    for path in ["/list", "/stream"] {
        let mut stream = server.connect_with_small_buffer().await;
        send(&mut stream, &format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n")).await;
        in_bound("slow_reader_timeout", dropped.recv()).await.expect("the answer is dropped");
        let mut received = Vec::new();
        let end = in_bound("slow_reader_timeout", stream.read_to_end(&mut received)).await;
        assert_eq!(end.expect_err(path).kind(), io::ErrorKind::ConnectionReset, "{path}");
        assert!(received.len() < LARGE / 4, "{path}: {} bytes were buffered", received.len());
    }
}

/// The whole answer is in the kernel, so no write waits for the client.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_the_end_of_its_answer_unread_is_cut_off() {
    let router = Router::new()
        .route("/", get(async || vec![b'x'; 48 << 10]))
        .route("/small", get(async || "ok"));
    let limits = Limits { acknowledge_timeout: SHORT, ..long_limits() };
    let only = ConnectionLimits { total: 1, per_address: 1 };
    let server = TcpServer::start(router, limits, only).await;
    let mut stream = server.connect_with_small_buffer().await;
    send(&mut stream, "GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
    // The only slot is free again once the connection has ended.
    in_bound("acknowledge_timeout", until_served(&server, "/small")).await;
}

/// Connects again until there is room for the connection.
async fn until_served(server: &TcpServer, path: &str) {
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    while !exchange(server, &request).await.starts_with("HTTP/1.1 200") {}
}

/// The client reads 32 KiB at a time, for longer than the time limit of one that reads nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_reads_slowly_is_served() {
    let (router, _dropped) = large_answers();
    let limit = Duration::from_secs(2);
    // Neither do the time limits of heads and idle connections cut an answer.
    let limits = Limits {
        slow_reader_timeout: limit,
        idle_timeout: limit,
        header_timeout: limit,
        ..long_limits()
    };
    let server = TcpServer::start(router, limits, MANY).await;
    let mut stream = server.connect_with_small_buffer().await;
    send(&mut stream, "GET /list HTTP/1.1\r\nhost: x\r\n\r\n").await;
    let mut pace = tokio::time::interval(limit / 20);
    let mut piece = vec![0; 32 << 10];
    for _ in 0..25 {
        pace.tick().await;
        stream.read_exact(&mut piece).await.expect("the answer goes on");
    }
    let mut rest = Vec::new();
    in_bound("the answer", async {
        while rest.len() + 25 * piece.len() < LARGE {
            let read = stream.read_buf(&mut rest).await.expect("the answer goes on");
            assert_ne!(read, 0, "the answer ended early");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_connections_are_refused() {
    let router = Router::new().route("/", get(async || "ok"));
    let connections = ConnectionLimits { total: 2, per_address: 1 };
    let server = TcpServer::start(router, long_limits(), connections).await;
    let request = "GET / HTTP/1.1\r\nhost: x\r\n\r\n";
    let mut open = Vec::new();
    for host in [1, 2] {
        let mut stream = server.connect_from(host).await;
        send(&mut stream, request).await;
        let mut first = [0; 15];
        stream.read_exact(&mut first).await.expect("an answer");
        assert_eq!(&first, b"HTTP/1.1 200 OK");
        open.push(stream);
    }
    // One has as many as it may have, the other meets a server without room.
    for host in [1, 3] {
        let mut stream = server.connect_from(host).await;
        send(&mut stream, request).await;
        let answer = read_to_end(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{answer}");
        for header in ["retry-after: 1", "connection: close", "content-type: application/json"] {
            assert!(answer.contains(&format!("\r\n{header}\r\n")), "{answer}");
        }
        let detail = r#"{"detail":"There are too many connections, try later"}"#;
        assert_eq!(body_of(&answer), detail);
        assert!(answer.contains(&format!("content-length: {}\r\n", detail.len())), "{answer}");
    }
    // A connection that ends makes room. The server notices soon, but not before `drop` returns.
    drop(open.remove(0));
    in_bound("a closed connection", until_served(&server, "/")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_knows_the_address_of_its_peer() {
    let show = async |Extension(PeerAddress(peer)): Extension<PeerAddress>| peer.to_string();
    let server = TcpServer::start(Router::new().route("/", get(show)), long_limits(), MANY).await;
    let mut stream = server.connect_from(7).await;
    send(&mut stream, "GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    let answer = read_to_end(&mut stream).await;
    assert_eq!(body_of(&answer), stream.local_addr().expect("an address").to_string());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_head_has_a_largest_size() {
    let length = async |body: Bytes| body.len().to_string();
    let router = Router::new().route("/", post(length));
    let server = TcpServer::start(router, long_limits(), MANY).await;
    // A body is larger than a head may be.
    let request = |padding: usize| {
        format!(
            "POST / HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-padding: {}\r\n\
             content-length: 1000000\r\n\r\n{}",
            "x".repeat(padding),
            "x".repeat(1_000_000)
        )
    };
    let answer = exchange(&server, &request(60 << 10)).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert_eq!(body_of(&answer), "1000000");
    // The server closes before it has read everything, which resets the connection.
    let mut stream = server.connect().await;
    send(&mut stream, &request(64 << 10)[..64 << 10]).await;
    let mut answer = vec![0; 32];
    in_bound("the size", stream.read_exact(&mut answer)).await.expect("an answer");
    assert!(answer.starts_with(b"HTTP/1.1 431 "), "{}", String::from_utf8_lossy(&answer));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_proxies_may_read_otherwise_are_refused() {
    let router = Router::new().route("/", post(async |body: String| body));
    let server = TcpServer::start(router, long_limits(), MANY).await;
    let host = "The request must have one valid Host header";
    let coding = "The only Transfer-Encoding here is `chunked`";
    let framing = "The Transfer-Encoding must be `chunked` once, at its end";
    for (head, status, detail) in [
        ("HTTP/1.1\r\nhost: x\r\n", 200, ""),
        ("HTTP/1.1\r\nhost: [::1]:80\r\n", 200, ""),
        ("HTTP/1.1\r\nhost:\r\n", 200, ""),
        ("HTTP/1.0\r\n", 200, ""),
        ("HTTP/1.1\r\n", 400, host),
        ("HTTP/1.1\r\nhost: x\r\nhost: x\r\n", 400, host),
        ("HTTP/1.0\r\nhost: x\r\nhost: y\r\n", 400, host),
        ("HTTP/1.1\r\nhost: x, y\r\n", 400, host),
        ("HTTP/1.1\r\nhost: user@x\r\n", 400, host),
        ("HTTP/1.1\r\nhost: x\r\ntransfer-encoding: Chunked\r\n", 200, ""),
        ("HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip, chunked\r\n", 501, coding),
        (
            "HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip\r\ntransfer-encoding: chunked\r\n",
            501,
            coding,
        ),
        ("HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked, chunked\r\n", 400, framing),
        (
            "HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
            400,
            framing,
        ),
    ] {
        let is_chunked = head.contains("transfer-encoding");
        let body = if is_chunked { "0\r\n\r\n" } else { "" };
        // A request that is served has to close its connection itself.
        let close = if status == 200 { "connection: close\r\n" } else { "" };
        let answer = exchange(&server, &format!("POST / {head}{close}\r\n{body}")).await;
        assert!(answer[9..].starts_with(&status.to_string()), "{head:?}: {answer}");
        let expected =
            if detail.is_empty() { String::new() } else { format!(r#"{{"detail":"{detail}"}}"#) };
        assert_eq!(body_of(&answer), expected, "{head:?}");
    }
}

/// Browsers take a backslash for a slash, and an address that begins with two slashes for one of
/// another host.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_redirect_leads_to_another_host() {
    let app = TestApp::start().await;
    let server = TcpServer::of_app(&app, long_limits()).await;
    for (path, status) in [
        ("/other/agent-execution/x/", 307),
        ("/\\evil.example/agent-execution/x/", 404),
        ("//evil.example/agent-execution/x/", 404),
        ("/\\/evil.example/", 404),
        ("/other/agent-execution/\\evil.example/", 404),
    ] {
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        let answer = exchange(&server, &request).await;
        assert!(answer[9..].starts_with(&status.to_string()), "{path}: {answer}");
        assert_eq!(answer.contains("\r\nlocation: "), status == 307, "{path}: {answer}");
    }
}
