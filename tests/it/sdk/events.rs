//! What a push of events accepts.

use serde_json::{Value, json};

use super::push;
use crate::support::test_app::TestApp;

/// The numbers that [`numbered`] gave to the events of a task's log.
async fn logged(app: &TestApp) -> Vec<Value> {
    let log = app.get("/activity/a/t").await.ok();
    let messages = log["messages"].as_array().expect("messages");
    messages.iter().filter_map(|entry| entry.get("number").cloned()).collect()
}

fn numbered(count: usize) -> Value {
    (0..count).map(|number| json!({ "type": "chunk", "data": { "number": number } })).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_has_a_thousand_events_at_most() {
    let app = TestApp::start().await;
    app.invoke("a", json!({ "id": "t", "input": {} })).await.ok();
    let refused = push(&app, "t", numbered(1001)).await;
    assert_eq!(refused.status, 422);
    let error = &refused.json()["detail"][0];
    assert_eq!((&error["type"], &error["loc"]), (&json!("too_long"), &json!(["body"])));
    assert_eq!(error["ctx"]["max_length"], 1000);
    assert_eq!(logged(&app).await, Vec::<Value>::new(), "none of them is kept");
    assert_eq!(push(&app, "t", json!([])).await.ok(), json!({ "accepted": 0 }));
    assert_eq!(push(&app, "t", numbered(1000)).await.ok(), json!({ "accepted": 1000 }));
    let expected: Vec<_> = (0..1000).map(Value::from).collect();
    assert_eq!(logged(&app).await, expected, "in their order");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_with_an_invalid_event_records_none() {
    let app = TestApp::start().await;
    app.invoke("a", json!({ "id": "t", "input": {} })).await.ok();
    for kind in [json!("x".repeat(256)), json!(null), json!(5)] {
        let events = json!([{ "type": "chunk", "data": { "number": 1 } }, { "type": kind }]);
        let answer = push(&app, "t", events).await;
        assert_eq!(answer.status, 422, "{kind}");
        assert_eq!(answer.json()["detail"][0]["loc"], json!(["body", 1, "type"]), "{kind}");
    }
    assert_eq!(logged(&app).await, Vec::<Value>::new());
    let longest = json!([{ "type": "x".repeat(255), "data": { "number": 2 } }]);
    assert_eq!(push(&app, "t", longest).await.ok(), json!({ "accepted": 1 }));
    assert_eq!(logged(&app).await, [2]);
    assert_eq!(push(&app, "unknown", numbered(1)).await.status, 404);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_does_not_change_a_tasks_state() {
    let app = TestApp::start().await;
    let before = app.invoke("a", json!({ "id": "t", "input": {} })).await.ok();
    let events = json!([
        { "type": "task_created", "data": { "status": "failed" } },
        { "type": "chunk", "data": { "number": 1 } },
        { "type": "task_updated", "data": { "status": "failed" } },
        { "type": "task_finished", "data": { "status": "failed" } }
    ]);
    assert_eq!(push(&app, "t", events).await.ok(), json!({ "accepted": 1 }));
    assert_eq!(logged(&app).await, [1]);
    assert_eq!(app.get("/v1/tasks/t").await.ok(), before);
}
