//! The ends of streams. Only the end of the turn looks like one.

use std::time::Duration;

use axum::body::Body;
use axum::http::StatusCode;
use chrono::TimeDelta;
use serde_json::json;
use sqlx::Connection;
use task_history::domain::Limits;
use task_history::store::{CreatedApiKey, KeyRevocation, NewApiKey};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{LONG, events_request, get_events, patient_limits, push_chunks};
use crate::support::sse_client::SseClient;
use crate::support::tcp_server::TcpServer;
use crate::support::test_app::{TestApp, single_connection_store};
use crate::support::{TIMEOUT, cluster};
use crate::writes::lock_tasks;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deletion_ends_the_streams_of_the_task_and_of_its_sub_tasks() {
    let app = TestApp::start_with(patient_limits()).await;
    app.invoke("a", json!({ "id": "t", "input": {} })).await.ok();
    let child = json!({ "id": "child", "parent_execution_id": "t", "input": {} });
    app.invoke("b", child).await.ok();
    app.invoke("b", json!({ "id": "other", "input": {} })).await.ok();
    let mut streams = Vec::new();
    for id in ["t", "child", "other"] {
        let mut events = SseClient::follow(&app, id).await;
        events.next().await.expect("an event");
        streams.push(events);
    }
    let deleted = app.request("DELETE", "/v1/tasks/t", None).await;
    assert_eq!(deleted.status, StatusCode::NO_CONTENT);
    for events in &mut streams[..2] {
        assert_eq!(events.aborted().await, (Vec::new(), "task_deleted".to_owned()));
    }
    app.report("other", json!({ "status": "completed" })).await.ok();
    assert_eq!(streams[2].rest().await, ["task_finished completed"]);
}

/// An app that asks for keys at once, and has a key that the test can end.
async fn app_with_key(expires_in: Option<TimeDelta>) -> (TestApp, CreatedApiKey) {
    let limits = Limits {
        invoke_timeout: LONG,
        key_cache_ttl: Duration::ZERO,
        key_check_interval: Duration::from_millis(20),
        ..patient_limits()
    };
    let app = TestApp::start_with(limits).await;
    let new = NewApiKey {
        organization: "default".into(),
        name: "ends".into(),
        can_write: true,
        expires_at: expires_in.map(|delta| app.now() + delta),
    };
    let created = app.store.create_api_key(&new, app.now()).await.expect("a key");
    (app, created)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_key_ends_its_streams_and_waiting_invocations() {
    let (app, created) = app_with_key(None).await;
    let key = created.secret.expose();
    app.invoke("a", json!({ "id": "t", "input": {} })).await.ok();
    let request = get_events(key, "t").body(Body::empty()).expect("a request");
    let mut events = SseClient::open(&app.router, request).await;
    events.next().await.expect("an event");
    let mut others = SseClient::follow(&app, "t").await;
    others.next().await.expect("an event");
    let body = json!({ "id": "awaited", "input": {} });
    let invocation = app.request_as(key, "POST", "/v1/agents/a/invoke", Some(body));
    let revoke = async {
        let mut connection = cluster::connect(&app.database).await;
        let recorded = "SELECT count(*) FROM tasks WHERE id = 'awaited'";
        cluster::until_count(&mut connection, recorded, |count| count == 1).await;
        // Another process revokes it.
        let other = single_connection_store(&app.database);
        let revoked = other.revoke_api_key("default", created.id, app.now()).await;
        assert_eq!(revoked.expect("an answer"), KeyRevocation::Revoked);
    };
    let (answer, ()) = futures_util::future::join(invocation, revoke).await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{}", answer.text);
    assert_eq!(events.aborted().await, (Vec::new(), "unauthenticated".to_owned()));
    app.report("t", json!({ "status": "completed" })).await.ok();
    assert_eq!(others.rest().await, ["task_finished completed"], "the stream of another key");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_expires_ends_its_streams() {
    let (app, created) = app_with_key(Some(TimeDelta::seconds(60))).await;
    app.invoke("a", json!({ "id": "t", "input": {} })).await.ok();
    let request = get_events(created.secret.expose(), "t").body(Body::empty());
    let mut events = SseClient::open(&app.router, request.expect("a request")).await;
    events.next().await.expect("an event");
    app.advance(61.0);
    assert_eq!(events.aborted().await, (Vec::new(), "unauthenticated".to_owned()));
}

/// Limits with which a stream reads all the time, and soon finds that it cannot.
fn impatient_limits() -> Limits {
    Limits {
        recheck_interval: Duration::from_millis(20),
        lock_timeout: Duration::from_millis(100),
        ..patient_limits()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_survives_a_database_that_is_unavailable_for_a_moment() {
    let app = TestApp::start_with(impatient_limits()).await;
    app.invoke("a", json!({ "id": "t", "input": {} })).await.ok();
    let mut events = SseClient::follow(&app, "t").await;
    events.next().await.expect("an event");
    let interrupt = async {
        let lock = lock_tasks(&app).await;
        cluster::until_waiting(&app.database).await;
        // The read that waits is given up.
        let mut connection = cluster::connect(&app.database).await;
        let waiting = "SELECT count(*) FROM pg_stat_activity
                       WHERE datname = current_database() AND wait_event_type = 'Lock'";
        cluster::until_count(&mut connection, waiting, |count| count == 0).await;
        lock.close().await.expect("unlocked");
        app.report("t", json!({ "status": "completed" })).await.ok();
    };
    let (rest, ()) = futures_util::future::join(events.rest(), interrupt).await;
    assert_eq!(rest, ["task_finished completed"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_of_a_database_that_stays_unavailable_is_aborted() {
    let stream_retry_timeout = Duration::from_millis(100);
    let app = TestApp::start_with(Limits { stream_retry_timeout, ..impatient_limits() }).await;
    app.invoke("a", json!({ "id": "t", "input": {} })).await.ok();
    let mut events = SseClient::follow(&app, "t").await;
    events.next().await.expect("an event");
    let lock = lock_tasks(&app).await;
    assert_eq!(events.aborted().await, (Vec::new(), "unavailable".to_owned()));
    lock.close().await.expect("unlocked");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_cannot_read_an_event_is_aborted() {
    let app = TestApp::start_with(patient_limits()).await;
    app.invoke("a", json!({ "id": "t", "input": {} })).await.ok();
    let mut events = SseClient::follow(&app, "t").await;
    events.next().await.expect("an event");
    let statement = "WITH task AS (
            UPDATE tasks SET events = events + 1 WHERE id = 't' RETURNING organization_id, events
        )
        INSERT INTO task_events (organization_id, task_id, event, turn, type, data, created_at)
        SELECT organization_id, 't', events, 1, 'task_updated', '\"no state\"', now() FROM task";
    cluster::execute(&app.database, statement).await;
    push_chunks(&app, "t", ["after".to_owned()]).await;
    assert_eq!(events.aborted().await, (Vec::new(), "internal".to_owned()));
}

/// Over HTTP/1.1, the error event arrives, and the body is not complete.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_aborted_stream_is_not_complete_on_the_wire() {
    let app = TestApp::start_with(patient_limits()).await;
    let server = TcpServer::of_app(&app, Limits::default()).await;
    let address = server.address();
    for id in ["deleted", "finished"] {
        app.invoke("a", json!({ "id": id, "input": {} })).await.ok();
        let mut connection = TcpStream::connect(address).await.expect("a connection");
        connection.write_all(events_request(&app, id).as_bytes()).await.expect("sent");
        let mut received = String::new();
        read_until(&mut connection, &mut received, "task_created").await;
        if id == "finished" {
            app.report(id, json!({ "status": "completed" })).await.ok();
            read_until(&mut connection, &mut received, "\r\n0\r\n\r\n").await;
            assert!(received.contains("task_finished"), "{received}");
        } else {
            app.request("DELETE", &format!("/v1/tasks/{id}"), None).await;
            let mut rest = Vec::new();
            let read = connection.read_to_end(&mut rest);
            tokio::time::timeout(TIMEOUT, read).await.expect("closed").expect("closed");
            received += &String::from_utf8_lossy(&rest);
            assert!(received.contains("The task was deleted"), "{received}");
            assert!(!received.contains("\r\n0\r\n"), "{received}");
        }
    }
}

/// Reads until a text has arrived.
pub(super) async fn read_until(
    connection: &mut (impl AsyncReadExt + Unpin),
    received: &mut String,
    text: &str,
) {
    let read = async {
        let mut searched = 0;
        while !received[searched..].contains(text) {
            searched = received.len().saturating_sub(text.len());
            let mut bytes = vec![0; 1 << 16];
            let count = connection.read(&mut bytes).await.expect("an answer");
            assert_ne!(count, 0, "closed before {text}: {received}");
            *received += std::str::from_utf8(&bytes[..count]).expect("ASCII");
        }
    };
    tokio::time::timeout(TIMEOUT, read).await.unwrap_or_else(|_| panic!("no {text} in time"));
}
