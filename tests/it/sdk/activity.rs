//! The order and the entries of an activity log.

use serde_json::{Value, json};

use super::push;
use crate::support::test_app::TestApp;

/// What an entry shows: a message's text, or an event's type.
fn shown(entry: &Value) -> &str {
    let text = entry["content"]["text"].as_str().or_else(|| entry["type"].as_str());
    text.unwrap_or_else(|| panic!("neither a message nor an event: {entry}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_stand_between_the_question_and_the_answer_of_their_turn() {
    let app = TestApp::start().await;
    app.invoke("a", json!({ "id": "t", "input": { "text": "one?" } })).await.ok();
    push(&app, "t", json!([{ "type": "think" }, { "type": "analyze" }])).await.ok();
    app.report("t", json!({ "status": "completed", "result": "one!" })).await.ok();
    // The runner reports its last event after the result.
    app.advance(1.0);
    push(&app, "t", json!([{ "type": "late" }])).await.ok();
    app.invoke("a", json!({ "id": "t", "input": { "text": "two?" } })).await.ok();
    app.report("t", json!({ "status": "completed", "result": "two!" })).await.ok();
    app.invoke("a", json!({ "id": "t", "input": { "text": "three?" } })).await.ok();
    push(&app, "t", json!([{ "type": "chunk" }])).await.ok();
    let log = app.get("/activity/a/t").await.ok();
    let entries = log["messages"].as_array().expect("messages");
    assert_eq!(
        entries.iter().map(shown).collect::<Vec<_>>(),
        ["one?", "think", "analyze", "late", "one!", "two?", "two!", "three?", "chunk"]
    );
    let mut ids: Vec<_> = entries.iter().map(|entry| entry["id"].to_string()).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), entries.len(), "ids are unique");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_events_id_and_time_are_the_services() {
    let app = TestApp::start().await;
    let input = json!({ "text": "hi", "files": ["https://example.com/f"] });
    app.invoke("a", json!({ "id": "t", "input": input })).await.ok();
    app.advance(1.0);
    let data = json!({ "id": "mine", "created_at": "2000-01-01", "type": "own", "payload": [1] });
    let events = json!([{ "type": "tool_call_request", "data": data }, { "type": "x", "data": 7 }]);
    push(&app, "t", events).await.ok();
    let log = app.get("/activity/a/t").await.ok();
    assert_eq!((&log["id"], &log["user"]), (&json!("t"), &Value::Null));
    assert_eq!(log["created_at"], "2026-03-23T00:45:22Z");
    let [message, call, other] = log["messages"].as_array().expect("messages").as_slice() else {
        panic!("{log}")
    };
    assert_eq!(message["role"], "user");
    assert_eq!(message["content"], input);
    assert_eq!(message["created_at"], "2026-03-23T00:45:22Z");
    for (entry, time) in [(call, "2026-03-23T00:45:23Z"), (other, "2026-03-23T00:45:23Z")] {
        let id = entry["id"].as_str().expect("an id");
        assert!(id.starts_with("t_event_"), "{id}");
        assert_eq!(entry["created_at"], time);
    }
    assert_eq!((&call["type"], &call["payload"]), (&json!("own"), &json!([1])));
    assert_eq!((&other["type"], &other["data"]), (&json!("x"), &json!(7)));
}
