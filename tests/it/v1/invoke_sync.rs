//! `POST /v1/agents/{agent}/invoke`, which waits for the outcome.

use std::time::Duration;

use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::support::test_app::TestApp;

/// The contract's examples: the request of both routes, and what their answers show.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_synchronous_invocation_waits_for_its_outcome() {
    let app = TestApp::start().await;
    let shown = |task: &Value| {
        let keys = [
            "id",
            "agent_id",
            "organization_id",
            "status",
            "result",
            "created_at",
            "finished_at",
            "source",
        ];
        keys.into_iter().map(|key| (key.to_owned(), task[key].clone())).collect::<Value>()
    };
    let user = json!({ "id": "user_123", "email": "user@example.com" });
    let body =
        json!({ "id": "t", "input": { "text": "What can you help me with?", "user": user } });
    let pending = app.invoke("a", body.clone()).await.ok();
    assert_eq!(
        shown(&pending),
        json!({
            "id": "t",
            "agent_id": "a",
            "organization_id": app.organization.to_string(),
            "status": "pending",
            "result": null,
            "created_at": "2026-03-23T00:45:22Z",
            "finished_at": null,
            "source": "api"
        })
    );
    app.request("DELETE", "/v1/tasks/t", None).await;
    let invocation = app.request("POST", "/v1/agents/a/invoke", Some(body));
    let runner = async {
        let started = async {
            while app.report("t", json!({ "status": "executing" })).await.status != StatusCode::OK {
            }
        };
        tokio::time::timeout(Duration::from_secs(10), started).await.expect("the task appears");
        app.report("t", json!({ "status": "completed", "result": "done" })).await.ok();
    };
    let (answer, ()) = futures_util::future::join(invocation, runner).await;
    let mut finished = shown(&pending);
    finished["status"] = "completed".into();
    finished["result"] = "done".into();
    finished["finished_at"] = "2026-03-23T00:45:22Z".into();
    assert_eq!(shown(&answer.ok()), finished);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_synchronous_invocation_gives_up_waiting() {
    let app = TestApp::start().await;
    let task = app
        .request("POST", "/v1/agents/a/invoke", Some(json!({ "id": "t", "input": {} })))
        .await
        .ok();
    assert_eq!(task["status"], "pending");
    // The timeout does not end the turn.
    assert_eq!(app.report("t", json!({ "status": "completed" })).await.ok()["status"], "completed");
}
