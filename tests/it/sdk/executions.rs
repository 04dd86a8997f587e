//! The SDK's lists, creation, reading and stopping.

use axum::body::Body;
use axum::http::Request;
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};

use super::ids;
use crate::support::test_app::{Answer, TestApp};

const OF_AGENT: &str = "/agent-execution/executions/history/a";
const OF_USER: &str = "/agent-execution/executions/history/user/u";

/// Records a task of the user `u`.
async fn record(app: &TestApp, agent: &str, id: &str) {
    let user = json!({ "id": "u", "email": "u@example.com" });
    app.invoke(agent, json!({ "id": id, "input": { "user": user } })).await.ok();
}

/// Creates a task of the agent `a` as the SDK does, with one header more.
async fn create(app: &TestApp, (header, value): (&str, &str), body: &Value) -> Answer {
    let request = Request::post("/agent-execution/a")
        .header("x-api-key", &app.key)
        .header("content-type", "application/json")
        .header(header, value);
    app.send(request.body(Body::from(body.to_string())).expect("a request")).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_lists_are_bare_arrays_with_the_newest_first() {
    let app = TestApp::start().await;
    for (agent, id) in [("a", "z"), ("b", "y"), ("a", "x")] {
        record(&app, agent, id).await;
        app.advance(1.0);
    }
    app.invoke("a", json!({ "id": "w", "input": {} })).await.ok();
    let of_agent = app.get(OF_AGENT).await;
    assert_eq!(ids(&of_agent), ["w", "x", "z"]);
    assert_eq!(of_agent.ok(), app.get("/v1/agents/a/tasks").await.ok()["items"]);
    let of_user = app.get(OF_USER).await;
    assert_eq!(ids(&of_user), ["x", "y", "z"], "of all agents");
    assert_eq!(of_user.ok(), app.get("/v1/tasks?user_id=u").await.ok()["items"]);
    for unknown in ["unknown", "user/unknown", "%00", "user/%00"] {
        let answer = app.get(&format!("/agent-execution/executions/history/{unknown}")).await;
        assert_eq!(answer.ok(), json!([]), "{unknown}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_ends_at_a_thousand_and_pages_reach_the_others() {
    let app = TestApp::start().await;
    let all: Vec<_> = (0..1001).map(|number| format!("t{number:04}")).collect();
    stream::iter(&all).for_each_concurrent(50, |id| record(&app, "a", id)).await;
    for list in [OF_AGENT, OF_USER] {
        let first = ids(&app.get(list).await);
        assert_eq!(first.len(), 1000, "{list}");
        let second = ids(&app.get(&format!("{list}?page=2")).await);
        let mut listed = [first.clone(), second].concat();
        listed.sort();
        assert_eq!(listed, all, "{list}: each task once");
        let page = ids(&app.get(&format!("{list}?page=2&per_page=3")).await);
        assert_eq!(page, first[3..6], "{list}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_filter_that_contradicts_the_path_matches_nothing() {
    let app = TestApp::start().await;
    record(&app, "a", "t").await;
    let user = json!({ "id": "v", "email": "v@example.com" });
    app.invoke("a", json!({ "id": "of v", "input": { "user": user } })).await.ok();
    assert_eq!(ids(&app.get(&format!("{OF_USER}?user_id=u")).await), ["t"]);
    assert!(ids(&app.get(&format!("{OF_USER}?user_id=v")).await).is_empty());
    assert_eq!(ids(&app.get(&format!("{OF_USER}?user_id=")).await), ["t"], "absent");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn filters_are_read_as_the_sdk_writes_them() {
    let app = TestApp::start().await;
    record(&app, "a", "pending").await;
    record(&app, "a", "completed").await;
    app.report("completed", json!({ "status": "completed" })).await.ok();
    for list in [OF_AGENT, OF_USER] {
        let filtered = async |query: &str| app.get(&format!("{list}?{query}")).await;
        for status in ["AgentExecutionStatus.Completed", "completed"] {
            let listed = ids(&filtered(&format!("status={status}")).await);
            assert_eq!(listed, ["completed"], "{list} {status}");
        }
        let names = ["page", "per_page", "user_id", "parent_task_id", "triggering_agent_id"];
        let empty = names.map(|name| format!("{name}=&")).concat() + "status=&internal_status=";
        assert_eq!(ids(&filtered(&empty).await).len(), 2, "{list}: empty values are absent");
        let unknown = filtered("status=AgentExecutionStatus.Unknown").await;
        assert_eq!(unknown.status, 422, "{list}");
        assert_eq!(unknown.json()["detail"][0]["input"], "AgentExecutionStatus.Unknown", "{list}");
    }
    // REST v1 is stricter.
    let answer = app.get("/v1/agents/a/tasks?status=AgentExecutionStatus.Completed").await;
    assert_eq!(answer.status, 422);
    assert_eq!(app.get("/v1/agents/a/tasks?user_id=").await.ok()["total"], 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_created_task_is_read_as_rest_v1_reads_it() {
    let app = TestApp::start().await;
    // What `Tasks.create` sends.
    let sent = json!({
        "id": null, "input": { "text": "hi", "files": [], "user": null },
        "payload_extension": null, "source": null, "worker_id": null, "output_format": null,
        "output_schema": null, "run_locally": false, "events_streaming": false,
        "additional_context": null, "mcp_servers": [], "title": null, "think_mode": "default"
    });
    let answer = create(&app, ("x-agent-version", "v7"), &sent).await;
    let created = answer.ok();
    assert_eq!(created["agent_version"], "v7");
    assert_eq!((&created["agent_id"], &created["source"]), (&json!("a"), &json!("sdk")));
    assert_eq!((&created["status"], &created["input"]["text"]), (&json!("pending"), &json!("hi")));
    let id = created["id"].as_str().expect("a new id");
    let read = app.get(&format!("/agent-execution/{id}/status")).await;
    assert_eq!(read.text, answer.text);
    assert_eq!(read.text, app.get(&format!("/v1/tasks/{id}")).await.text);
    assert_eq!(app.get("/agent-execution/unknown/status").await.status, 404);

    // The same id is another turn, and a given source is kept.
    let next = json!({ "id": id, "input": { "text": "again" }, "source": "mobile" });
    let next = create(&app, ("x-other", "v7"), &next).await.ok();
    assert_eq!((&next["id"], &next["source"]), (&created["id"], &json!("mobile")));
    assert_eq!(next["agent_version"], Value::Null, "each turn has its own");
    assert_eq!(app.get(&format!("/v1/tasks/{id}/thread")).await.ok()[1]["content"], "again");
    assert_eq!(ids(&app.get(OF_AGENT).await), [id]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_create_with_an_idempotency_key_is_recorded_once() {
    let app = TestApp::start().await;
    let body = json!({ "input": { "text": "once" } });
    let first = create(&app, ("idempotency-key", "k"), &body).await;
    let second = create(&app, ("idempotency-key", "k"), &body).await;
    assert_eq!(first.ok()["id"], second.ok()["id"]);
    let other = create(&app, ("idempotency-key", "k"), &json!({ "input": {} })).await;
    assert_eq!(other.status, 409);
    assert_eq!(ids(&app.get(OF_AGENT).await).len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn delete_stops_a_task_and_deletes_nothing() {
    let app = TestApp::start().await;
    app.invoke("a", json!({ "id": "t", "input": { "text": "hi" } })).await.ok();
    app.invoke("a", json!({ "id": "child", "input": {}, "parent_execution_id": "t" })).await.ok();
    app.report("t", json!({ "status": "executing", "result": "half" })).await.ok();
    app.advance(1.0);
    let stopped = app.request("DELETE", "/agent-execution/t", None).await.ok();
    assert_eq!(stopped["status"], "stopped");
    assert_eq!(stopped["is_manually_stopped"], true);
    assert_eq!(stopped["finished_at"], "2026-03-23T00:45:23Z");
    assert_eq!(stopped["result"], "half");
    app.advance(1.0);
    assert_eq!(app.request("DELETE", "/agent-execution/t", None).await.ok(), stopped);
    assert_eq!(app.get("/v1/tasks/t").await.ok(), stopped);
    assert_eq!(app.get("/v1/tasks/t/thread").await.ok()[0]["content"], "hi");
    assert_eq!(ids(&app.get(OF_AGENT).await).len(), 2);
    assert_eq!(app.get("/v1/tasks/child").await.ok()["status"], "pending");
    assert_eq!(app.request("DELETE", "/agent-execution/unknown", None).await.status, 404);
}
