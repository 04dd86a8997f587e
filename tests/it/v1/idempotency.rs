//! The `Idempotency-Key` header of the routes that invoke.

use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::support::test_app::TestApp;

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
