//! The limits of the service, and the HTTP features of its server.
//!
//! A test of a time limit makes it short and all others very long. So its effect within
//! [`OUTER_BOUND`] is due to that limit. No test measures a limit.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{Request, StatusCode};
use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt};
use serde_json::{Value, json};
use sqlx::Connection;
use task_history::api::{self, AppState};
use task_history::domain::{Clock, Limits, NetworkOptions};
use task_history::store::{DatabaseUrl, KeyRevocation, NewApiKey, Store};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tower::ServiceExt;

use crate::support::cluster;
use crate::support::sse_client::SseClient;
use crate::support::tcp_server::TcpServer;
use crate::support::test_app::{Answer, TestApp, single_connection_store};
use crate::writes::lock_tasks;

/// A time limit under test.
pub const SHORT: Duration = Duration::from_millis(200);

/// A time limit that does not end within a test.
const LONG: Duration = Duration::from_hours(1);

/// How long the effect of a short limit may take. It is generous, and shorter than the defaults of
/// the limits of bodies, requests, statements and rechecks.
const OUTER_BOUND: Duration = Duration::from_secs(12);

/// Limits that do not end within a test.
pub fn long_limits() -> Limits {
    Limits {
        header_timeout: LONG,
        idle_timeout: LONG,
        body_timeout: LONG,
        request_timeout: LONG,
        invoke_timeout: LONG,
        slow_reader_timeout: LONG,
        acknowledge_timeout: LONG,
        recheck_interval: LONG,
        pool_timeout: LONG,
        statement_timeout: LONG,
        idle_in_transaction_timeout: LONG,
        key_cache_ttl: LONG,
        ..Limits::default()
    }
}

/// The result of an effect that a short limit must have.
pub async fn in_bound<T>(limit: &str, effect: impl Future<Output = T>) -> T {
    let result = tokio::time::timeout(OUTER_BOUND, effect).await;
    result.unwrap_or_else(|_| panic!("{limit} has no effect within {OUTER_BOUND:?}"))
}

fn assert_unavailable(answer: &Answer) {
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{}", answer.text);
    let detail = "The service is unavailable, try again later";
    assert_eq!(answer.json(), json!({ "detail": detail }));
    assert_eq!(answer.headers["retry-after"], "1");
}

/// Another instance on the database of an app, with a store of `connections` connections.
fn instance(app: &TestApp, connections: usize, limits: Limits) -> axum::Router {
    let url = DatabaseUrl::parse(&cluster::url_of(&app.database)).expect("a URL");
    let store = Store::new(&url, connections, &limits);
    let now = app.now();
    let (clock, stopping) = (Clock::new(move || now), app.stopping.clone());
    api::router(AppState { store, clock, limits, network: NetworkOptions::default(), stopping })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_never_ends_times_out() {
    let app = TestApp::start_with(Limits { body_timeout: SHORT, ..long_limits() }).await;
    let start = Ok::<_, Infallible>(Bytes::from_static(b"{"));
    let body = Body::from_stream(stream::iter([start]).chain(stream::pending()));
    let request = Request::post("/v1/agents/a/invoke/async")
        .header("x-api-key", &app.key)
        .header("content-type", "application/json")
        .body(body)
        .expect("a request");
    let answer = in_bound("body_timeout", app.send(request)).await;
    assert_eq!(answer.status, StatusCode::REQUEST_TIMEOUT);
    assert_eq!(answer.json(), json!({ "detail": "The request body did not arrive in time" }));
    assert_eq!(app.get("/v1/tasks").await.ok()["total"], 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_or_statement_that_takes_too_long_is_answered() {
    for (name, limits) in [
        ("request_timeout", Limits { request_timeout: SHORT, ..long_limits() }),
        ("statement_timeout", Limits { statement_timeout: SHORT, ..long_limits() }),
    ] {
        let app = TestApp::start_with(limits).await;
        let lock = lock_tasks(&app).await;
        assert_unavailable(&in_bound(name, app.get("/v1/tasks")).await);
        lock.close().await.expect("unlocked");
        // The same request is answered once the table is free.
        assert_eq!(app.get("/v1/tasks").await.ok()["total"], 0, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_without_a_free_connection_is_refused() {
    let mut app = TestApp::start_with(long_limits()).await;
    // An organization takes at most half of the connections.
    app.router = instance(&app, 4, Limits { pool_timeout: SHORT, ..long_limits() });
    // The key is cached from now on: the requests below need a connection for the list alone.
    app.get("/v1/tasks").await.ok();
    let lock = lock_tasks(&app).await;
    let check = async {
        let mut connection = cluster::connect(&app.database).await;
        let waiting = "SELECT count(*) FROM pg_stat_activity
                       WHERE datname = current_database() AND wait_event_type = 'Lock'";
        cluster::until_count(&mut connection, waiting, |count| count == 2).await;
        assert_unavailable(&in_bound("pool_timeout", app.get("/v1/tasks")).await);
        lock.close().await.expect("unlocked");
    };
    let requests = join_all((0..2).map(|_| app.get("/v1/tasks")));
    let (answers, ()) = futures_util::future::join(requests, check).await;
    for answer in answers {
        assert_eq!(answer.ok()["total"], 0, "the requests that have a connection are answered");
    }
    app.get("/v1/tasks").await.ok();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_key_works_until_its_cache_entry_expires() {
    let app = TestApp::start_with(long_limits()).await;
    let none = instance(&app, 2, Limits { key_cache_ttl: Duration::ZERO, ..long_limits() });
    let new = NewApiKey {
        organization: "default".into(),
        name: "revoked".into(),
        can_write: true,
        expires_at: None,
    };
    let created = app.store.create_api_key(&new, app.now()).await.expect("a key");
    let status = async |router: &axum::Router| {
        let request = Request::get("/v1/tasks").header("x-api-key", created.secret.expose());
        let request = request.body(Body::empty()).expect("a request");
        router.clone().oneshot(request).await.expect("infallible").status()
    };
    assert_eq!(status(&app.router).await, StatusCode::OK);
    assert_eq!(status(&none).await, StatusCode::OK);
    // Another process revokes it, so the caches of both instances still have it.
    let other = single_connection_store(&app.database);
    let revoked = other.revoke_api_key("default", created.id, app.now()).await;
    assert_eq!(revoked.expect("an answer"), KeyRevocation::Revoked);
    assert_eq!(status(&none).await, StatusCode::UNAUTHORIZED, "its cache entry has expired");
    assert_eq!(status(&app.router).await, StatusCode::OK, "its cache entry has not expired");
}

/// A stream reads its task at intervals, so it also finds an event whose notification was lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_catches_up_without_a_notification() {
    let app = TestApp::start_with(Limits { recheck_interval: SHORT, ..long_limits() }).await;
    app.invoke("a", json!({ "id": "t", "input": {} })).await.ok();
    let mut events = SseClient::follow(&app, "t").await;
    assert_eq!(events.next().await.expect("an event")["type"], "task_created");
    let statement = "WITH task AS (
            UPDATE tasks SET events = events + 1 WHERE id = 't' RETURNING organization_id, events
        )
        INSERT INTO task_events (organization_id, task_id, event, turn, type, data, created_at)
        SELECT organization_id, 't', events, 1, 'chunk', '\"lost\"', now() FROM task";
    cluster::execute(&app.database, statement).await;
    let event = in_bound("recheck_interval", events.next()).await.expect("an event");
    assert_eq!((&event["type"], &event["data"]), (&json!("chunk"), &json!("lost")));
}

/// Sends a request on an open connection and reads its answer, which has the body `"ok"`.
async fn get_health(stream: &mut TcpStream) {
    let request = b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n";
    stream.write_all(request).await.expect("sent");
    let mut answer = String::new();
    while !answer.ends_with("\r\n\r\n\"ok\"") {
        let mut bytes = [0; 1024];
        let read = in_bound("the server", stream.read(&mut bytes)).await.expect("an answer");
        assert_ne!(read, 0, "the connection was closed after {answer:?}");
        answer += std::str::from_utf8(&bytes[..read]).expect("UTF-8");
    }
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_without_a_whole_request_head_is_closed() {
    let app = TestApp::start().await;
    let limits = Limits { header_timeout: SHORT, ..long_limits() };
    let server = TcpServer::of_app(&app, limits).await;
    // Also if it is not the first request of the connection.
    for requests in [0, 1] {
        let mut stream = server.connect().await;
        for _ in 0..requests {
            get_health(&mut stream).await;
        }
        stream.write_all(b"GET /health HTTP/1.1\r\nhost: local").await.expect("sent");
        let mut answer = Vec::new();
        in_bound("header_timeout", stream.read_to_end(&mut answer)).await.expect("closed");
        assert_eq!(String::from_utf8_lossy(&answer), "", "after {requests} requests");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_connection_is_closed() {
    let app = TestApp::start().await;
    let limits = Limits { idle_timeout: SHORT, ..long_limits() };
    let server = TcpServer::of_app(&app, limits).await;
    for requests in [0, 1] {
        let mut stream = server.connect().await;
        for _ in 0..requests {
            get_health(&mut stream).await;
        }
        let mut rest = Vec::new();
        in_bound("idle_timeout", stream.read_to_end(&mut rest)).await.expect("closed");
        assert_eq!(String::from_utf8_lossy(&rest), "", "after {requests} requests");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_serves_several_requests() {
    let app = TestApp::start().await;
    let server = TcpServer::of_app(&app, long_limits()).await;
    let mut stream = server.connect().await;
    for _ in 0..3 {
        get_health(&mut stream).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_answers_are_compressed_if_the_client_accepts_it() {
    let app = TestApp::start().await;
    let list = async |encodings: &str| {
        let request = Request::get("/v1/tasks").header("x-api-key", &app.key);
        let request = request.header("accept-encoding", encodings).body(Body::empty());
        let response = app.router.clone().oneshot(request.expect("a request")).await;
        let (parts, body) = response.expect("infallible").into_parts();
        assert_eq!(parts.status, StatusCode::OK);
        let bytes = axum::body::to_bytes(body, usize::MAX).await.expect("a body");
        let encoding = parts.headers.get("content-encoding").cloned();
        (encoding.map(|value| value.to_str().expect("text").to_owned()), bytes)
    };
    let (encoding, short) = list("gzip").await;
    assert_eq!(encoding, None, "a short answer");
    assert!(short.len() < 1024, "{} bytes", short.len());
    for id in ["t1", "t2", "t3", "t4", "t5"] {
        app.invoke("a", json!({ "id": id, "input": { "text": "x".repeat(100) } })).await.ok();
    }
    let (encoding, plain) = list("identity").await;
    assert_eq!(encoding, None, "a client that accepts no compression");
    assert!(plain.len() > 1024, "{} bytes", plain.len());
    assert_eq!(serde_json::from_slice::<Value>(&plain).expect("JSON")["total"], 5);
    let (encoding, compressed) = list("gzip").await;
    assert_eq!(encoding.as_deref(), Some("gzip"));
    assert!(compressed.len() < plain.len(), "{} bytes", compressed.len());
    assert_eq!(compressed[..2], [0x1f, 0x8b], "the magic number of gzip (RFC 1952, 2.3.1)");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_is_too_large() {
    let app = TestApp::start().await;
    let largest = 4 << 20;
    let shell = r#"{"id":"t","input":{"text":""}}"#.len();
    for (extra, status) in [(0, StatusCode::OK), (1, StatusCode::PAYLOAD_TOO_LARGE)] {
        let text = "x".repeat(largest - shell + extra);
        let answer = app.invoke("a", json!({ "id": "t", "input": { "text": text } })).await;
        assert_eq!(answer.status, status);
        if status == StatusCode::PAYLOAD_TOO_LARGE {
            assert_eq!(
                answer.json(),
                json!({ "detail": "The request body has more than 4194304 bytes" })
            );
        }
    }
    // The text is also the title, and lists still work.
    assert_eq!(app.get("/v1/agents/a/tasks").await.ok()["total"], 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ids_have_limits() {
    let app = TestApp::start().await;
    let invoke = async |id: &str| app.invoke("a", json!({ "id": id, "input": {} })).await;
    let longest = "é".repeat(175) + &"e".repeat(80);
    assert_eq!(invoke(&longest).await.ok()["id"], longest);
    let too_long = "x".repeat(256);
    assert_eq!(
        invoke(&too_long).await.json()["detail"],
        json!([{
            "type": "string_too_long",
            "loc": ["body", "id"],
            "msg": "String should have at most 255 characters",
            "input": too_long,
            "ctx": { "max_length": 255 }
        }])
    );
    let too_many_bytes = "😀".repeat(255);
    assert_eq!(
        invoke(&too_many_bytes).await.json()["detail"][0]["msg"],
        "Value error, must have at most 430 bytes in UTF-8"
    );
    // Official clients send an empty id if they have none.
    assert_ne!(invoke("").await.ok()["id"], "");
    // Six of the longest texts together fit into one index entry. They are random, since PostgreSQL
    // compresses index entries.
    let mut seed = 1_u32;
    let mut noise = || {
        let next = |_| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            char::from_u32(0x4e00 + (seed >> 8) % 0x5000).expect("a character")
        };
        (0..143).map(next).collect::<String>()
    };
    let (agent, id, user, trigger, status) = (noise(), noise(), noise(), noise(), noise());
    let encoded: String = form_urlencoded::byte_serialize(agent.as_bytes()).collect();
    let body = json!({
        "id": id,
        "input": { "user": { "id": user, "email": "x" } },
        "parent_execution_id": id,
        "triggering_agent_id": trigger
    });
    app.invoke(&encoded, body).await.ok();
    let encoded_id: String = form_urlencoded::byte_serialize(id.as_bytes()).collect();
    assert_eq!((id.len(), status.len()), (429, 429));
    app.report(&encoded_id, json!({ "internal_status": status })).await.ok();
    assert_eq!(app.get(&format!("/v1/agents/{encoded}/tasks")).await.ok()["total"], 1);
}
