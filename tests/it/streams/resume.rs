//! Streams that go on after the event that a client has received last.

use axum::body::Body;
use axum::http::StatusCode;
use serde_json::json;

use super::{get_events, patient_limits, push_chunks};
use crate::support::sse_client::SseClient;
use crate::support::test_app::TestApp;

fn texts(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|n| n.to_string()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_goes_on_after_the_last_event_without_a_gap() {
    let app = TestApp::start_with(patient_limits()).await;
    app.invoke("a", json!({ "id": "t", "input": {} })).await.ok();
    let mut events = SseClient::follow(&app, "t").await;
    events.next().await.expect("an event");
    assert_eq!(events.last_id, Some(1), "the id is the number of the event");
    push_chunks(&app, "t", texts(0..3)).await;
    for n in 0..2 {
        assert_eq!(events.next().await.expect("an event")["data"], n.to_string());
    }
    let last = events.last_id.expect("an id");
    assert_eq!(last, 3);
    drop(events);
    push_chunks(&app, "t", texts(3..250)).await;
    let mut events = SseClient::follow_after(&app, "t", last).await;
    for n in 2..250 {
        assert_eq!(events.next().await.expect("an event")["data"], n.to_string());
    }
    // Nothing is repeated, and nothing more is there: the next event is a live one.
    let mut up_to_date = SseClient::follow_after(&app, "t", events.last_id.expect("an id")).await;
    app.report("t", json!({ "status": "completed" })).await.ok();
    for events in [&mut events, &mut up_to_date] {
        assert_eq!(events.rest().await, ["task_finished completed"]);
        assert_eq!(events.last_id, Some(252));
    }
    // A turn that has ended has no event that would end the stream.
    let mut ended = SseClient::follow_after(&app, "t", 252).await;
    assert_eq!(ended.rest().await, ["task_finished completed"]);
}

/// A report that nobody watched is not stored. The current task makes up for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_goes_on_gets_the_current_task_for_events_that_were_not_stored() {
    let app = TestApp::start_with(patient_limits()).await;
    app.invoke("a", json!({ "id": "t", "input": {} })).await.ok();
    app.report("t", json!({ "status": "executing" })).await.ok();
    let mut before_chunk = SseClient::follow_after(&app, "t", 1).await;
    assert_eq!(before_chunk.next().await.expect("an event")["type"], "task_updated");
    drop(before_chunk);
    push_chunks(&app, "t", texts(0..1)).await;
    let mut events = SseClient::follow_after(&app, "t", 1).await;
    assert_eq!(events.next().await.expect("an event")["type"], "chunk");
    let state = events.next().await.expect("an event");
    assert_eq!(
        (&state["type"], &state["data"]["status"]),
        (&json!("task_updated"), &json!("executing"))
    );
    app.report("t", json!({ "status": "completed" })).await.ok();
    assert_eq!(events.rest().await, ["task_finished completed"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_id_that_no_event_has() {
    let app = TestApp::start_with(patient_limits()).await;
    app.invoke("a", json!({ "id": "t", "input": {} })).await.ok();
    for bad in ["x", "-1", "+1", "1.0", "", "99999999999999999999"] {
        let request = get_events(&app.key, "t").header("last-event-id", bad);
        let answer = app.send(request.body(Body::empty()).expect("a request")).await;
        assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "{bad}");
        let error = &answer.json()["detail"][0];
        assert_eq!(error["loc"], json!(["header", "Last-Event-ID"]), "{bad}");
        assert_eq!(error["input"], bad);
    }
    // A number that the task has not reached: that of a task that was deleted.
    let mut events = SseClient::follow_after(&app, "t", 5).await;
    assert_eq!(events.next().await.expect("an event")["type"], "task_created");
}
