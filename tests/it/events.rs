//! Live events of tasks.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use futures_util::future::join_all;
use serde_json::{Value, json};
use task_history::api::{self, AppState};
use task_history::domain::{Clock, Limits, NetworkOptions};
use task_history::store::{DatabaseUrl, Store};

use crate::support::cluster;
use crate::support::sse_client::SseClient;
use crate::support::test_app::{self, TestApp};

async fn push(app: &TestApp, id: &str, kind: &str, data: Value) {
    let body = json!([{
        "type": kind,
        "task_id": id,
        "organization_id": "x",
        "time": "2026-01-01T00:00:00Z",
        "data": data
    }]);
    let answer =
        app.request("POST", &format!("/agent-execution/{id}/events/push"), Some(body)).await;
    assert_eq!(answer.ok(), json!({ "accepted": 1 }));
}

/// The contract's example, for a new thread and for a follow-up: each event has its envelope and
/// comes in the documented order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invocation_is_followed_to_its_end() {
    let app = TestApp::start().await;
    for text in ["hello", "and again"] {
        let body = json!({ "id": "t", "input": { "text": text } }).to_string();
        let request = Request::post("/v1/agents/a/invoke/stream")
            .header("x-api-key", &app.key)
            .header("content-type", "application/json")
            .body(Body::from(body));
        let mut events = SseClient::open(&app.router, request.expect("a request")).await;
        let task = app.get("/v1/tasks/t").await.ok();
        let envelope = |kind: &str, data: &Value| {
            json!({
                "type": kind,
                "task_id": "t",
                "organization_id": app.organization.to_string(),
                "time": "2026-03-23T00:45:22Z",
                "data": data
            })
        };
        assert_eq!(task["input"]["text"], text);
        assert_eq!(events.next().await, Some(envelope("task_created", &task)));
        let executing = app.report("t", json!({ "status": "executing" })).await.ok();
        assert_eq!(events.next().await, Some(envelope("task_updated", &executing)));
        let call = json!({ "tool_name": "search", "payload": { "q": 1 } });
        for (kind, data) in [
            ("think", &json!("hm")),
            ("analyze", &json!({ "thought": "so" })),
            ("tool_call_request", &call),
            ("tool_call_result", &json!({ "tool_name": "search", "result": [1] })),
            ("chunk", &json!("Hel")),
            ("chunk", &json!("lo")),
        ] {
            push(&app, "t", kind, data.clone()).await;
            assert_eq!(events.next().await, Some(envelope(kind, data)));
        }
        let finished =
            app.report("t", json!({ "status": "completed", "result": "Hello" })).await.ok();
        app.report("t", json!({ "internal_status": "afterwards" })).await.ok();
        assert_eq!(events.next().await, Some(envelope("task_finished", &finished)));
        assert_eq!(events.next().await, None);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_that_has_ended_says_so_and_closes() {
    let app = TestApp::start().await;
    app.invoke("a", json!({ "id": "t", "input": {} })).await.ok();
    app.request("POST", "/v1/tasks/t/stop", None).await.ok();
    assert_eq!(SseClient::follow(&app, "t").await.rest().await, ["task_finished stopped"]);
    assert_eq!(app.get("/agent-execution/unknown/events").await.status, StatusCode::NOT_FOUND);
}

/// Another instance of the service on the same database. It reads a task only when it is woken: its
/// recheck interval is longer than a test.
fn another_instance(app: &TestApp) -> axum::Router {
    let limits = Limits { recheck_interval: Duration::from_hours(1), ..test_app::short_limits() };
    let url = DatabaseUrl::parse(&cluster::url_of(&app.database)).expect("a URL");
    let store = Store::new(&url, 2, &limits);
    let (clock, stopping) = (Clock::system(), app.stopping.clone());
    api::router(AppState { store, clock, limits, network: NetworkOptions::default(), stopping })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_writes_of_another_instance_are_heard() {
    let app = TestApp::start().await;
    app.invoke("a", json!({ "id": "t", "input": {} })).await.ok();
    let mut events = SseClient::follow_at(&app, &another_instance(&app), "t").await;
    assert_eq!(events.next().await.expect("an event")["type"], "task_created");
    app.report("t", json!({ "status": "executing" })).await.ok();
    app.invoke("a", json!({ "id": "t", "input": { "text": "next" } })).await.ok();
    app.report("t", json!({ "status": "failed" })).await.ok();
    assert_eq!(
        events.rest().await,
        ["task_updated executing", "task_created pending", "task_finished failed"]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_written_where_nobody_watches() {
    let app = TestApp::start().await;
    let written = async || {
        let mut connection = cluster::connect(&app.database).await;
        let count = "SELECT count(*) FROM task_events";
        sqlx::query_scalar::<_, i64>(count).fetch_one(&mut connection).await.expect("a count")
    };
    app.invoke("a", json!({ "id": "t", "input": {} })).await.ok();
    app.report("t", json!({ "status": "executing" })).await.ok();
    assert_eq!(written().await, 0);
    let mut events = SseClient::follow(&app, "t").await;
    events.next().await.expect("an event");
    app.report("t", json!({ "status": "paused" })).await.ok();
    assert_eq!(written().await, 1);
    events.next().await.expect("an event");
    drop(events);
    until_unwatched(&app).await;
    app.report("t", json!({ "status": "executing" })).await.ok();
    assert_eq!(written().await, 1);
}

/// Waits until all watches have ended. A watch releases its lock some time after its stream ended.
pub async fn until_unwatched(app: &TestApp) {
    let mut connection = cluster::connect(&app.database).await;
    let locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'
                 AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    cluster::until_count(&mut connection, locks, |count| count == 0).await;
}

/// A stream keeps nothing for a reader that does not read, and its end is not that of the task.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_does_not_read_is_dropped() {
    let timeout = Duration::from_millis(300);
    let app = TestApp::start_with(Limits { event_timeout: timeout, ..Limits::default() }).await;
    app.invoke("a", json!({ "id": "t", "input": {} })).await.ok();
    let mut events = SseClient::follow(&app, "t").await;
    for n in 0..40 {
        push(&app, "t", "chunk", json!(n.to_string())).await;
    }
    until_unwatched(&app).await;
    app.report("t", json!({ "status": "completed" })).await.ok();
    let (seen, reason) = events.aborted().await;
    assert_eq!(seen, ["task_created pending"], "only the first event was sent unasked");
    assert_eq!(reason, "slow_reader");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_streams_see_their_own_events_in_order() {
    const STREAMS: usize = 200;
    let app = TestApp::start().await;
    let ids: Vec<_> = (0..STREAMS).map(|n| format!("task-{n}")).collect();
    for id in &ids {
        app.invoke("a", json!({ "id": id, "input": {} })).await.ok();
    }
    let streams = join_all(ids.iter().map(|id| SseClient::follow(&app, id))).await;
    let follow = join_all(streams.into_iter().map(async |mut events| {
        let mut seen = Vec::new();
        while let Some(event) = events.next().await {
            let data = &event["data"];
            assert_eq!(event["task_id"], data["id"]);
            seen.push((event["task_id"].to_string(), data["internal_status"].clone()));
        }
        seen
    }));
    // A thousand updates, five for each task, from eight clients at once.
    let update = async {
        for round in 1..=5 {
            let status = if round == 5 { "completed" } else { "executing" };
            let body = json!({ "status": status, "internal_status": round.to_string() });
            for some in ids.chunks(8) {
                for answer in join_all(some.iter().map(|id| app.report(id, body.clone()))).await {
                    answer.ok();
                }
            }
        }
    };
    let (seen, ()) = futures_util::future::join(follow, update).await;
    let mut by_task = BTreeMap::new();
    for (n, events) in seen.into_iter().enumerate() {
        let rounds: Vec<_> = events.iter().map(|(_, round)| round.clone()).collect();
        assert_eq!(
            rounds,
            [Value::Null, json!("1"), json!("2"), json!("3"), json!("4"), json!("5")],
            "stream {n}"
        );
        by_task.insert(events[0].0.clone(), n);
    }
    assert_eq!(by_task.len(), STREAMS);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_listener_catches_up() {
    let app = TestApp::start().await;
    app.invoke("a", json!({ "id": "t", "input": {} })).await.ok();
    let mut events = SseClient::follow_at(&app, &another_instance(&app), "t").await;
    events.next().await.expect("an event");
    let mut connection = cluster::connect(&app.database).await;
    // The listener cannot reconnect until the report is committed.
    let allow_connections = async |allowed: bool| {
        let database = &app.database;
        let statement = format!("ALTER DATABASE {database} ALLOW_CONNECTIONS {allowed}");
        cluster::execute("postgres", &statement).await;
    };
    allow_connections(false).await;
    let end_listeners = "SELECT count(*) FILTER (WHERE pg_terminate_backend(pid))
                         FROM pg_stat_activity
                         WHERE datname = current_database()
                           AND application_name = 'task-history listener'";
    let ended = sqlx::query_scalar::<_, i64>(end_listeners).fetch_one(&mut connection).await;
    assert_eq!(ended.expect("a count"), 1, "one connection listens");
    let listeners = "SELECT count(*) FROM pg_stat_activity
                     WHERE datname = current_database()
                       AND application_name = 'task-history listener'";
    cluster::until_count(&mut connection, listeners, |count| count == 0).await;
    app.report("t", json!({ "status": "executing" })).await.ok();
    allow_connections(true).await;
    assert_eq!(events.next().await.expect("an event")["data"]["status"], "executing");
    app.report("t", json!({ "status": "completed" })).await.ok();
    assert_eq!(events.rest().await, ["task_finished completed"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_runners_push_is_in_the_activity_log() {
    let app = TestApp::start().await;
    let user = json!({ "id": "u1", "email": "u1@example.com" });
    app.invoke("a", json!({ "id": "t", "input": { "text": "one", "user": user } })).await.ok();
    push(&app, "t", "tool_call_request", json!({ "tool_name": "search", "payload": { "q": 1 } }))
        .await;
    let state = json!([{ "type": "task_finished", "data": { "status": "completed" } }]);
    let ignored = app.request("POST", "/agent-execution/t/events/push", Some(state)).await.ok();
    assert_eq!(ignored, json!({ "accepted": 0 }), "only reports change a task's state");
    app.report("t", json!({ "status": "completed", "result": "first" })).await.ok();
    app.invoke("a", json!({ "id": "t", "input": { "text": "two" } })).await.ok();
    push(&app, "t", "think", json!("hm")).await;
    let log = app.get("/activity/a/t").await.ok();
    assert_eq!((&log["id"], &log["user"]["email"]), (&json!("t"), &json!("u1@example.com")));
    let messages = log["messages"].as_array().expect("messages");
    let shown: Vec<_> =
        messages.iter().map(|entry| (entry["role"].as_str(), entry["type"].as_str())).collect();
    assert_eq!(
        shown,
        [
            (Some("user"), None),
            (None, Some("tool_call_request")),
            (Some("agent"), None),
            (Some("user"), None),
            (None, Some("think")),
        ]
    );
    assert_eq!(messages[1]["tool_name"], "search");
    assert_eq!(messages[2]["content"], json!({ "text": "first", "files": [] }));
    for bad in
        [json!({}), json!([{}]), json!([{ "type": 5 }]), json!([{ "type": "x", "data": "\0" }])]
    {
        let answer = app.request("POST", "/agent-execution/t/events/push", Some(bad)).await;
        assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY);
    }
    assert_eq!(app.get("/activity/a/unknown").await.status, StatusCode::NOT_FOUND);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_stops_ends_streams_and_waiting_invocations() {
    let limits = Limits { invoke_timeout: Duration::from_mins(5), ..Limits::default() };
    let app = TestApp::start_with(limits).await;
    app.invoke("a", json!({ "id": "followed", "input": {} })).await.ok();
    let mut events = SseClient::follow(&app, "followed").await;
    assert_eq!(events.next().await.expect("an event")["type"], "task_created");
    let body = json!({ "id": "awaited", "input": {} });
    let invocation = app.request("POST", "/v1/agents/a/invoke", Some(body));
    let stop = async {
        // The invocation waits once its task is recorded.
        let mut connection = cluster::connect(&app.database).await;
        let recorded = "SELECT count(*) FROM tasks WHERE id = 'awaited'";
        cluster::until_count(&mut connection, recorded, |count| count == 1).await;
        app.stopping.cancel();
    };
    let (answer, ()) = futures_util::future::join(invocation, stop).await;
    assert_eq!(answer.ok()["status"], "pending");
    assert_eq!(events.aborted().await, (Vec::new(), "stopping".to_owned()));
}
