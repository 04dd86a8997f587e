//! `POST /v1/tasks/{id}/stop`.

use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::support::test_app::TestApp;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stopping_is_idempotent() {
    let app = TestApp::start().await;
    let stop = async |id: &str| app.request("POST", &format!("/v1/tasks/{id}/stop"), None).await;
    app.invoke("a", json!({ "id": "t", "input": {} })).await.ok();
    app.advance(1.0);
    let stopped = stop("t").await.ok();
    assert_eq!(stopped["status"], "stopped");
    assert_eq!(stopped["is_manually_stopped"], true);
    assert_eq!(stopped["finished_at"], "2026-03-23T00:45:23Z");
    app.advance(1.0);
    assert_eq!(stop("t").await.ok(), stopped, "stopped already, so nothing changes");
    for status in ["completed", "failed", "error"] {
        app.invoke("a", json!({ "id": status, "input": {} })).await.ok();
        let ended = app.report(status, json!({ "status": status, "result": "r" })).await.ok();
        app.advance(1.0);
        assert_eq!(stop(status).await.ok(), ended);
    }
    let resumed = app.report("t", json!({ "status": "executing" })).await.ok();
    assert_eq!(
        (&resumed["is_manually_stopped"], &resumed["finished_at"]),
        (&json!(false), &Value::Null)
    );
    assert_eq!(stop("unknown").await.status, StatusCode::NOT_FOUND);
}
