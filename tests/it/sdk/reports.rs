//! What runners report: updates, turns that ran elsewhere, metrics.

use serde_json::{Value, json};

use crate::support::test_app::TestApp;

/// What a runner may report, with a value for each.
fn reportable() -> Value {
    json!({
        "status": "paused",
        "result": "half",
        "internal_status": "waits",
        "last_executed_node_id": "n1",
        "source": "webhook",
        "title": "Reported",
        "payload_extension": { "k": 1 },
        "tokens": { "completion_tokens": 2, "prompt_tokens": 3, "total_tokens": 5 },
        "duration": 1.5,
        "used_tools": ["search"],
        "hitl_request": { "wait_node_id": "w" },
        "pending_eca_request": { "connector_name": "c", "auth_url": "https://example.com" },
        "deep_planning": {
            "enabled": true, "enforce": false, "started": true, "question_raised": false,
            "tasks": [{ "id": "1", "title": "first", "completed": true }]
        }
    })
}

/// Another value of the same JSON type; null becomes a string.
fn another(value: &Value) -> Value {
    match value {
        Value::Bool(value) => json!(!value),
        Value::Number(_) => json!(4711),
        Value::Array(_) => json!(["other"]),
        Value::Object(_) => json!({ "text": "other" }),
        Value::String(_) | Value::Null => json!("2000-01-01T00:00:00Z"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_whole_task_sent_back_changes_only_what_a_runner_may_report() {
    let app = TestApp::start().await;
    app.invoke("a", json!({ "id": "t", "input": { "text": "hi" }, "worker_id": "w" })).await.ok();
    let before = app.report("t", json!({ "status": "executing" })).await.ok();
    let reported = reportable();
    let mut sent = before.clone();
    for (key, value) in sent.as_object_mut().expect("an object") {
        *value = reported.get(key).cloned().unwrap_or_else(|| another(value));
    }
    app.advance(1.0);
    let after = app.report("t", sent).await.ok();
    assert_eq!(app.get("/v1/tasks/t").await.ok(), after);
    for (key, value) in after.as_object().expect("an object") {
        let expected = match key.as_str() {
            // The status sets it, to the service's time.
            "paused_at" => &json!("2026-03-23T00:45:23Z"),
            _ => reported.get(key).unwrap_or(&before[key]),
        };
        assert_eq!(value, expected, "{key}");
    }
    for key in reported.as_object().expect("an object").keys() {
        assert_ne!(before[key], after[key], "{key} was reported");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_runner_does_not_know_stays_as_it_is() {
    let app = TestApp::start().await;
    app.invoke("a", json!({ "id": "t", "input": {} })).await.ok();
    let before = app.report("t", reportable()).await.ok();
    app.advance(1.0);
    let mut nothing = reportable();
    for value in nothing.as_object_mut().expect("an object").values_mut() {
        *value = Value::Null;
    }
    assert_eq!(app.report("t", nothing.clone()).await.ok(), before);
    // A whole task of the SDK has these when nothing was reported.
    nothing["duration"] = json!(0);
    nothing["used_tools"] = json!([]);
    nothing["internal_status"] = json!("");
    nothing["source"] = json!("");
    assert_eq!(app.report("t", nothing).await.ok(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sdks_name_of_the_payload_has_precedence() {
    let app = TestApp::start().await;
    app.invoke("a", json!({ "id": "t", "input": {} })).await.ok();
    let both = json!({
        "payload_extension": { "from": "contract" },
        "tool_call_payload_extension": { "from": "sdk" }
    });
    assert_eq!(app.report("t", both).await.ok()["payload_extension"], json!({ "from": "sdk" }));
    let one = json!({ "payload_extension": { "from": "contract" } });
    assert_eq!(app.report("t", one).await.ok()["payload_extension"], json!({ "from": "contract" }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_that_ran_elsewhere_is_recorded_with_its_outcome() {
    let app = TestApp::start().await;
    let report = async |agent: &str, body: Value| {
        app.request("POST", &format!("/agent-execution/{agent}/report_task"), Some(body)).await
    };
    let tokens = json!({ "completion_tokens": 1, "prompt_tokens": 2, "total_tokens": 3 });
    let first = json!({
        "id": "t", "input": "in", "llm_response": "ignored", "tokens": tokens, "is_success": true,
        "result": "out", "duration": 1.5, "used_tools": ["x"]
    });
    let first = report("a", first).await.ok();
    assert_eq!((&first["id"], &first["agent_id"]), (&json!("t"), &json!("a")));
    assert_eq!((&first["status"], &first["source"]), (&json!("completed"), &json!("sdk")));
    assert_eq!((&first["input"]["text"], &first["result"]), (&json!("in"), &json!("out")));
    assert_eq!((&first["tokens"], &first["duration"]), (&tokens, &json!(1.5)));
    assert_eq!(first["used_tools"], json!(["x"]));
    assert_eq!(first["finished_at"], "2026-03-23T00:45:22Z");

    // The same id is another turn; without a result, the response of the model is the result.
    let failed =
        json!({ "id": "t", "input": "2", "is_success": false, "llm_response": { "a": 1 } });
    let failed = report("a", failed).await.ok();
    assert_eq!((&failed["status"], &failed["result"]), (&json!("error"), &json!("{\"a\":1}")));
    assert_eq!(failed["tokens"], Value::Null, "each turn has its own");
    let thread = app.get("/v1/tasks/t/thread").await.ok();
    let contents = thread.as_array().expect("messages").iter().map(|message| &message["content"]);
    assert_eq!(contents.collect::<Vec<_>>(), ["in", "out", "2", "{\"a\":1}"]);
    assert_eq!(app.get("/v1/agents/a/tasks").await.ok()["total"], 1);

    let text = report("a", json!({ "llm_response": "said" })).await.ok();
    assert_eq!((&text["status"], &text["result"]), (&json!("completed"), &json!("said")));
    assert_ne!(text["id"], "t", "without an id, it is a new task");
    assert_eq!(report("b", json!({ "id": "t" })).await.status, 409);
    assert_eq!(app.get("/v1/tasks/t").await.ok(), failed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_are_kept_with_the_latest_turn() {
    let app = TestApp::start().await;
    app.invoke("a", json!({ "id": "t", "input": {} })).await.ok();
    let before = app.report("t", json!({ "status": "completed", "result": "r" })).await.ok();
    let send =
        async |body: Value| app.request("POST", "/agents-metrics/a/execution", Some(body)).await;
    let worker = json!({ "completion_tokens": 2, "prompt_tokens": 1, "total_tokens": 3 });
    // Most of what the SDK sends repeats the task and is ignored.
    let metrics = json!({
        "execution_id": "t", "source": "other", "memory_thread_id": "t", "task": "hi",
        "status": "failed", "result": "other", "internal_status": "done well", "duration": 2.5,
        "ai_model": "m", "llm_tokens": { "worker": worker, "inner": { "total_tokens": 9 } }
    });
    let after = send(metrics).await.ok();
    let mut expected = before;
    expected["internal_status"] = json!("done well");
    expected["duration"] = json!(2.5);
    expected["tokens"] = worker;
    assert_eq!(after, expected);
    let zero = json!({ "execution_id": "t", "duration": 0.0, "llm_tokens": null });
    assert_eq!(send(zero).await.ok(), expected, "the SDK always sends a duration");
    assert_eq!(app.get("/v1/tasks/t").await.ok(), expected);
    assert_eq!(send(json!({ "execution_id": "unknown" })).await.status, 404);
    assert_eq!(app.get("/v1/tasks").await.ok()["total"], 1);
}
