//! The routes of the official SDK, and the organization that its paths may start with.

mod activity;
mod events;
mod executions;
mod reports;
mod turns;

use axum::body::Body;
use axum::http::Request;
use serde_json::{Value, json};

use crate::support::sse_client::SseClient;
use crate::support::test_app::{Answer, TestApp};

/// The ids of a bare array of tasks, in its order.
#[track_caller]
fn ids(answer: &Answer) -> Vec<String> {
    let body = answer.ok();
    let items = body.as_array().unwrap_or_else(|| panic!("no array: {body}"));
    items.iter().map(|item| item["id"].as_str().expect("an id").to_owned()).collect()
}

/// Pushes events of a task.
async fn push(app: &TestApp, id: &str, events: Value) -> Answer {
    app.request("POST", &format!("/agent-execution/{id}/events/push"), Some(events)).await
}

/// One request to each route of the SDK except the event stream. They need the task `t` of `a`.
fn requests() -> Vec<(&'static str, &'static str, Option<Value>)> {
    vec![
        ("GET", "/agent-execution/executions/history/a", None),
        ("GET", "/agent-execution/executions/history/user/u", None),
        ("GET", "/agent-execution/t/status", None),
        ("GET", "/activity/a/t", None),
        ("POST", "/agent-execution/a", Some(json!({ "id": "new", "input": {} }))),
        ("POST", "/agent-execution/a/report_task", Some(json!({ "id": "reported" }))),
        ("PATCH", "/agent-execution/t/update", Some(json!({ "result": "r" }))),
        ("POST", "/agent-execution/t/events/push", Some(json!([{ "type": "think" }]))),
        ("POST", "/agents-metrics/a/execution", Some(json!({ "execution_id": "t" }))),
        ("DELETE", "/agent-execution/t", None),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_organization_may_precede_every_route() {
    let app = TestApp::start().await;
    for prefix in ["None".to_owned(), app.organization.to_string()] {
        let user = json!({ "id": "u", "email": "u@example.com" });
        app.invoke("a", json!({ "id": "t", "input": { "user": user } })).await.ok();
        let target = format!("/{prefix}/agent-execution/t/events");
        let request = Request::get(target).header("x-api-key", &app.key);
        let request = request.body(Body::empty()).expect("a request");
        let mut stream = SseClient::open(&app.router, request).await;
        assert_eq!(stream.next().await.expect("an event")["task_id"], "t", "{prefix}");
        for (method, path, body) in requests() {
            let answer = app.request(method, &format!("/{prefix}{path}"), body).await;
            assert!(!answer.ok().is_null(), "{prefix} {method} {path}");
        }
        let task = app.get("/v1/tasks/t").await.ok();
        assert_eq!((&task["status"], &task["result"]), (&json!("stopped"), &json!("r")));
        for id in ["t", "new", "reported"] {
            let deleted = app.request("DELETE", &format!("/v1/tasks/{id}"), None).await;
            assert_eq!(deleted.status, 204, "{prefix} {id}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_organization_in_the_path_is_not_found_and_changes_nothing() {
    let app = TestApp::start().await;
    app.invoke("a", json!({ "id": "t", "input": { "text": "hello" } })).await.ok();
    let before = app.get("/v1/tasks/t").await.ok();
    let log = app.get("/activity/a/t").await.ok();
    let (_, other) = app.other_organization().await;
    for prefix in [other.to_string(), "none".to_owned(), "unknown".to_owned()] {
        let stream = ("GET", "/agent-execution/t/events", None);
        for (method, path, body) in requests().into_iter().chain([stream]) {
            let answer = app.request(method, &format!("/{prefix}{path}"), body).await;
            assert_eq!(answer.status, 404, "{prefix} {method} {path}: {}", answer.text);
        }
    }
    assert_eq!(app.get("/v1/tasks/t").await.ok(), before);
    assert_eq!(app.get("/activity/a/t").await.ok(), log);
    assert_eq!(app.get("/v1/tasks").await.ok()["total"], 1);
}
