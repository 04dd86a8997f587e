//! The `Idempotency-Key` header of the routes that create a turn.

use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use futures_util::future::join_all;
use serde_json::{Value, json};
use task_history::domain::Limits;
use tower::ServiceExt;

use crate::support::cluster;
use crate::support::test_app::{self, Answer, TestApp};

/// Every route that creates a turn.
const ROUTES: [&str; 5] = [
    "/v1/agents/a/invoke/async",
    "/v1/agents/a/invoke",
    "/v1/agents/a/invoke/stream",
    "/agent-execution/a",
    "/agent-execution/a/report_task",
];

/// A body of a route, with a text and a second field in one of two orders.
fn body_of(route: &str, text: &str, in_order: bool) -> String {
    let input = if route.ends_with("report_task") {
        json!(text).to_string()
    } else {
        json!({ "text": text }).to_string()
    };
    let (first, second) = (format!(r#""input":{input}"#), r#""used_tools": ["x"]"#);
    if in_order { format!("{{{first},{second}}}") } else { format!("{{{second}, {first} }}") }
}

/// Sends a body with a key. A stream's body is not read.
async fn send(app: &TestApp, route: &str, key: &str, body: String) -> Answer {
    let request = Request::post(route)
        .header("x-api-key", &app.key)
        .header("content-type", "application/json")
        .header("idempotency-key", key)
        .body(Body::from(body));
    let request = request.expect("a request");
    if !route.ends_with("/stream") {
        return app.send(request).await;
    }
    let response = app.router.clone().oneshot(request).await.expect("an answer");
    let (parts, body) = response.into_parts();
    let mut text = String::new();
    if parts.status != StatusCode::OK {
        let bytes = axum::body::to_bytes(body, usize::MAX).await.expect("a body");
        text = String::from_utf8_lossy(&bytes).into_owned();
    }
    Answer { status: parts.status, headers: parts.headers, text }
}

/// How many rows a table has.
async fn count(app: &TestApp, statement: &'static str) -> i64 {
    let mut connection = cluster::connect(&app.database).await;
    sqlx::query_scalar(statement).fetch_one(&mut connection).await.expect("a count")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_holds_on_every_route_that_creates_a_turn() {
    for route in ROUTES {
        let app = TestApp::start().await;
        let first = send(&app, route, "k", body_of(route, "once", true)).await;
        // The same content in another order of names, several times at once.
        let again = || send(&app, route, "k", body_of(route, "once", false));
        for answer in join_all((0..8).map(|_| again())).await {
            assert_eq!(answer.status, StatusCode::OK, "{route}: {}", answer.text);
            assert_eq!(answer.text, first.text, "{route}");
            assert_eq!(answer.headers["x-task-turn"], "1", "{route}");
        }
        let other = send(&app, route, "k", body_of(route, "other", true)).await;
        assert_eq!(other.status, StatusCode::CONFLICT, "{route}");
        assert_eq!(other.json()["detail"], "This Idempotency-Key was used with another request");
        assert_eq!(count(&app, "SELECT count(*) FROM task_turns").await, 1, "{route}");
        let bad = send(&app, route, &"k".repeat(256), body_of(route, "once", true)).await;
        let loc = json!(["header", "idempotency-key"]);
        assert_eq!(bad.json()["detail"][0]["loc"], loc, "{route}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_key_at_once_records_one_turn() {
    let app = TestApp::start().await;
    let route = "/agent-execution/a/report_task";
    let sent = |n: usize| send(&app, route, ["k", "l"][n % 2], body_of(route, "x", n < 20));
    let answers = join_all((0..40).map(sent)).await;
    for (n, answer) in answers.iter().enumerate() {
        assert_eq!((answer.status, &answer.text), (StatusCode::OK, &answers[n % 2].text));
    }
    assert_ne!(answers[0].json()["id"], answers[1].json()["id"]);
    assert_eq!(count(&app, "SELECT count(*) FROM task_turns").await, 2);
    // Two requests with one key: one is recorded, the other refused.
    let route = ROUTES[0];
    let sent = |n: usize| send(&app, route, "m", body_of(route, &format!("text {n}"), true));
    let answers = join_all((0..10).map(sent)).await;
    let recorded = answers.iter().filter(|answer| answer.status == StatusCode::OK).count();
    let refused = answers.iter().filter(|answer| answer.status == StatusCode::CONFLICT).count();
    assert_eq!((recorded, refused), (1, 9));
    assert_eq!(count(&app, "SELECT count(*) FROM task_turns").await, 3);
}

/// The answer is that of the first time, whatever happened since.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repetition_is_answered_as_the_first_time() {
    let app = TestApp::start().await;
    let sent = json!({
        "id": "t", "input": { "text": "x", "user": { "email": "u@example.com" } },
        "title": "T", "payload_extension": { "b": 1, "a": [1.50] }, "output_format": "json",
        "mcp_servers": [{ "name": "m", "headers": { "k": "secret" } }], "tool_call_limit": 5
    });
    let route = ROUTES[0];
    let first = send(&app, route, "k", sent.to_string()).await;
    let external = json!({ "id": "e", "input": "in", "result": "out", "duration": 1.5 });
    let elsewhere = send(&app, ROUTES[4], "e", external.to_string()).await;
    app.advance(60.0);
    let report = json!({ "title": "Other", "payload_extension": {}, "status": "completed" });
    app.report("t", report).await.ok();
    app.report("e", json!({ "result": "other", "tokens": { "total_tokens": 1 } })).await.ok();
    app.invoke("a", json!({ "id": "t", "source": "mobile", "input": {} })).await.ok();
    for (route, key, sent, first) in
        [(route, "k", sent, first), (ROUTES[4], "e", external, elsewhere)]
    {
        let again = send(&app, route, key, sent.to_string()).await;
        assert_eq!((again.status, again.text), (StatusCode::OK, first.text), "{route}");
        assert_eq!(again.headers["x-task-turn"], first.headers["x-task-turn"], "{route}");
    }
    // A key keeps no answer.
    let kept = "SELECT count(*) FROM idempotency_keys WHERE answer IS NOT NULL OR turn IS NULL";
    assert_eq!(count(&app, kept).await, 0);
    // With its task, the key is forgotten.
    app.request("DELETE", "/v1/tasks/e", None).await;
    let external = json!({ "id": "e", "input": "another" });
    send(&app, ROUTES[4], "e", external.to_string()).await.ok();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_synchronous_repetition_waits_for_the_same_turn() {
    let app = TestApp::start().await;
    let body = json!({ "id": "t", "input": { "text": "one" } }).to_string();
    send(&app, ROUTES[1], "k", body.clone()).await.ok();
    app.report("t", json!({ "status": "completed", "result": "answer of one" })).await.ok();
    app.invoke("a", json!({ "id": "t", "input": { "text": "two" } })).await.ok();
    let again = send(&app, ROUTES[1], "k", body).await;
    assert_eq!(again.headers["x-task-turn"], "1");
    assert_eq!(
        (&again.ok()["result"], &again.ok()["status"]),
        (&json!("answer of one"), &json!("completed"))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_expire_and_are_removed() {
    let idempotency_ttl = Duration::from_mins(1);
    let app = TestApp::start_with(Limits { idempotency_ttl, ..test_app::short_limits() }).await;
    let route = ROUTES[0];
    let keys = "SELECT count(*) FROM idempotency_keys";
    let record = async |n: usize| {
        let body = body_of(route, "x", true);
        send(&app, route, &format!("k{n}"), body).await.ok()["id"].clone()
    };
    let mut first = Vec::new();
    for n in 0..25 {
        first.push(record(n).await);
    }
    app.advance(59.0);
    assert_eq!(record(0).await, first[0]);
    assert_eq!(count(&app, keys).await, 25);
    app.advance(1.0);
    // An expired key is a new one, also for another request.
    let other = send(&app, route, "k0", body_of(route, "other", true)).await.ok();
    assert_ne!(other["id"], first[0]);
    assert_eq!(count(&app, keys).await, 15, "ten expired ones were removed");
    let (removed, kept) = (record(1).await, record(24).await);
    assert_ne!(removed, first[1]);
    assert_ne!(kept, first[24]);
    assert_eq!(record(24).await, kept, "and is remembered from then on");
    assert_eq!(count(&app, keys).await, 3);
}

/// What the version before recorded: a whole answer, and another digest of the request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_of_the_version_before_are_answered_as_it_answered() {
    let app = TestApp::start().await;
    let route = ROUTES[0];
    let body = r#"{"input":{"text":"once"},"id":"t"}"#;
    let first = send(&app, route, "k", body.to_owned()).await;
    let update = format!(
        "UPDATE idempotency_keys
         SET turn = NULL, answer = '{}', request = sha256(convert_to(' {body}', 'UTF8'))",
        first.text
    );
    cluster::execute(&app.database, &update).await;
    for route in [route, ROUTES[3]] {
        let again = send(&app, route, "k", body.to_owned()).await;
        assert_eq!((again.status, &again.text), (StatusCode::OK, &first.text), "{route}");
    }
    for route in [ROUTES[1], ROUTES[2]] {
        assert_eq!(send(&app, route, "k", body.to_owned()).await.status, StatusCode::OK, "{route}");
    }
    let other = send(&app, route, "k", r#"{"input":{},"id":"t"}"#.to_owned()).await;
    assert_eq!(other.status, StatusCode::CONFLICT);
    assert_eq!(count(&app, "SELECT count(*) FROM task_turns").await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_idempotency_key_records_once() {
    let app = TestApp::start().await;
    let send = async |key: &str, body: Value| {
        let request = axum::http::Request::post("/v1/agents/a/invoke/async")
            .header("x-api-key", &app.key)
            .header("content-type", "application/json")
            .header("idempotency-key", key)
            .body(axum::body::Body::from(body.to_string()));
        app.send(request.expect("a request")).await
    };
    let body = json!({ "input": { "text": "once" } });
    let answers = futures_util::future::join_all((0..5).map(|_| send("k1", body.clone()))).await;
    for answer in &answers {
        assert_eq!((answer.status, &answer.text), (StatusCode::OK, &answers[0].text));
    }
    assert_eq!(app.get("/v1/agents/a/tasks").await.ok()["total"], 1);
    let id = answers[0].json()["id"].as_str().expect("an id").to_owned();
    app.report(&id, json!({ "status": "completed", "result": "done" })).await.ok();
    assert_eq!(
        send("k1", body.clone()).await.text,
        answers[0].text,
        "the answer of the first time"
    );
    assert_eq!(
        app.get(&format!("/v1/tasks/{id}/thread")).await.ok().as_array().map(Vec::len),
        Some(2)
    );

    let other = send("k1", json!({ "input": { "text": "something else" } })).await;
    assert_eq!(other.status, StatusCode::CONFLICT);
    assert_eq!(other.json()["detail"], "This Idempotency-Key was used with another request");
    send("k2", body.clone()).await.ok();
    assert_eq!(app.get("/v1/agents/a/tasks").await.ok()["total"], 2);
    assert_eq!(
        send(&"k".repeat(256), body).await.json()["detail"][0]["loc"],
        json!(["header", "idempotency-key"])
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idempotency_key_is_the_agents_own() {
    let app = TestApp::start().await;
    let (other, _) = app.other_organization().await;
    for (key, agent) in [(&app.key, "a"), (&app.key, "b"), (&other, "a")] {
        let request = axum::http::Request::post(format!("/v1/agents/{agent}/invoke/async"))
            .header("x-api-key", key)
            .header("content-type", "application/json")
            .header("idempotency-key", "k")
            .body(axum::body::Body::from(r#"{"input":{}}"#));
        app.send(request.expect("a request")).await.ok();
    }
    assert_eq!(app.get("/v1/tasks").await.ok()["total"], 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_route_of_the_sdk_honors_an_idempotency_key() {
    let app = TestApp::start().await;
    let send = async |text: &str| {
        let request = axum::http::Request::post("/agent-execution/a")
            .header("x-api-key", &app.key)
            .header("content-type", "application/json")
            .header("idempotency-key", "k")
            .body(axum::body::Body::from(json!({ "input": { "text": text } }).to_string()));
        app.send(request.expect("a request")).await
    };
    let first = send("once").await;
    let id = first.ok()["id"].as_str().expect("an id").to_owned();
    // A report changes the task, not the recorded answer.
    app.report(&id, json!({ "status": "completed" })).await.ok();
    let again = send("once").await;
    assert_eq!((again.status, &again.text), (StatusCode::OK, &first.text));
    assert_eq!(send("something else").await.status, StatusCode::CONFLICT);
    assert_eq!(app.get("/v1/agents/a/tasks").await.ok()["total"], 1);
    let thread = app.get(&format!("/v1/tasks/{id}/thread")).await.ok();
    assert_eq!(thread[0]["content"], "once");
    assert_eq!(thread.as_array().map(Vec::len), Some(1), "one turn: {thread}");
}
