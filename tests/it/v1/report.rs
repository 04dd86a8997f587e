//! `PATCH /agent-execution/{id}/update`: what runners report about a turn.

use axum::http::StatusCode;
use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::support::test_app::TestApp;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_drives_the_times() {
    let app = TestApp::start().await;
    app.invoke("a", json!({ "id": "t", "input": {} })).await.ok();
    let times = async |status: &str| {
        app.advance(1.0);
        let task = app.report("t", json!({ "status": status })).await.ok();
        assert_eq!(task["status"], status);
        assert_eq!(task, app.get("/v1/tasks/t").await.ok());
        ["started_at", "paused_at", "finished_at"].map(|key| match &task[key] {
            Value::Null => None,
            time => Some(time.as_str().expect("a text")["2026-03-23T00:45:".len()..].to_owned()),
        })
    };
    let at = |seconds: &str| Some(format!("{seconds}Z"));
    assert_eq!(times("executing").await, [at("23"), None, None]);
    assert_eq!(times("executing").await, [at("23"), None, None], "said again, nothing changes");
    assert_eq!(times("paused").await, [at("23"), at("25"), None]);
    assert_eq!(times("executing").await, [at("23"), at("25"), None], "resumed, not restarted");
    assert_eq!(times("completed").await, [at("23"), at("25"), at("27")]);
    assert_eq!(times("completed").await, [at("23"), at("25"), at("27")]);
    assert_eq!(times("stopped").await, [at("23"), at("25"), at("29")]);
    assert_eq!(
        times("paused").await,
        [at("23"), at("30"), None],
        "no status is guarded against any other"
    );
    assert_eq!(times("failed").await, [at("23"), at("30"), at("31")]);
    assert_eq!(times("error").await, [at("23"), at("30"), at("32")]);
    assert_eq!(times("pending").await, [None, None, None]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_turn_starts_over() {
    let app = TestApp::start().await;
    app.invoke("a", json!({ "id": "t", "title": "Named", "input": { "text": "one" } })).await.ok();
    let full = json!({
        "status": "error", "result": "it broke", "internal_status": "bad",
        "last_executed_node_id": "n1", "payload_extension": { "k": 1 }
    });
    let reported = app.report("t", full).await.ok();
    assert_eq!(reported["internal_status"], "bad");
    assert_eq!(reported["last_executed_node_id"], "n1");
    assert_eq!(reported["payload_extension"], json!({ "k": 1 }));
    assert_eq!(reported["title"], "Named");
    let fresh = app.invoke("a", json!({ "id": "t", "input": { "text": "" } })).await.ok();
    for key in [
        "result",
        "internal_status",
        "last_executed_node_id",
        "payload_extension",
        "title",
        "finished_at",
    ] {
        assert_eq!(fresh[key], Value::Null, "{key}");
    }
    let item = app.get("/v1/agents/a/tasks").await.ok()["items"][0].clone();
    assert_eq!(item["title"], Value::Null, "an empty text is no title");
    assert_eq!(item["result"], Value::Null);
    assert_eq!(app.get("/v1/agents/a/tasks?internal_status=bad").await.ok()["total"], 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn null_and_server_owned_keys_of_a_report_change_nothing() {
    let app = TestApp::start().await;
    app.invoke("a", json!({ "id": "t", "input": { "text": "x" } })).await.ok();
    let before = app
        .report("t", json!({ "status": "executing", "result": "half", "source": "sdk" }))
        .await
        .ok();
    // The official SDK sends this when it saves a task of which it knows few fields.
    let mut stale = before.clone();
    for key in ["status", "result", "source", "internal_status", "title"] {
        stale[key] = Value::Null;
    }
    for key in ["id", "agent_id", "organization_id", "created_at", "started_at", "finished_at"] {
        stale[key] = json!("2000-01-01T00:00:00Z");
    }
    stale["sub_executions"] = json!(["x"]);
    stale["is_manually_stopped"] = json!(true);
    stale["unheard_of"] = json!(1);
    assert_eq!(app.report("t", stale).await.ok(), before);
    assert_eq!(app.report("t", json!({})).await.ok(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_report_about_an_unknown_task_is_not_found() {
    let app = TestApp::start().await;
    for id in ["unknown", "%00", &"x".repeat(2000)] {
        let answer = app.report(id, json!({ "status": "completed" })).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND);
        assert_eq!(answer.json(), json!({ "detail": "Task not found" }));
    }
}

/// A turn that arrives during a report must neither overwrite the report nor receive its values.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn turns_and_reports_at_once_leave_the_record_equal_to_its_latest_turn() {
    let app = TestApp::start().await;
    app.invoke("a", json!({ "id": "t", "input": { "text": "0" } })).await.ok();
    for round in 0..10 {
        let turns = (0..4).map(|n| {
            app.invoke("a", json!({ "id": "t", "input": { "text": format!("{round}.{n}") } }))
        });
        let reports = (0..4).map(|n| {
            app.report("t", json!({ "status": "completed", "result": format!("{round}.{n}") }))
        });
        let (turns, reports) = futures_util::future::join(join_all(turns), join_all(reports)).await;
        for answer in turns.iter().chain(&reports) {
            answer.ok();
        }
        // The last write of a round is a turn or a report. In both cases task and turn agree.
        let mut connection = crate::support::cluster::connect(&app.database).await;
        let agree: bool = sqlx::query_scalar(
            "SELECT (t.status, t.result, t.turns, t.title) IS NOT DISTINCT FROM
                    (l.status, l.result, (SELECT count(*)::int FROM task_turns), l.input->>'text')
             FROM tasks t JOIN task_turns l ON l.task_id = t.id AND l.turn = t.turns",
        )
        .fetch_one(&mut connection)
        .await
        .expect("a row");
        assert!(agree, "round {round}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_paused_turn_keeps_its_pending_requests() {
    let app = TestApp::start().await;
    let requests = json!({
        "hitl_request": { "wait_node_id": "w" },
        "pending_eca_request": { "connector_name": "c", "auth_url": "https://example.com" },
        "deep_planning": { "enabled": true, "tasks": [] }
    });
    for status in ["pending", "executing", "failed", "paused"] {
        app.invoke("a", json!({ "id": "t", "input": {} })).await.ok();
        let mut paused = requests.clone();
        paused["status"] = json!("paused");
        let paused_again = paused.clone();
        let paused = app.report("t", paused).await.ok();
        assert_eq!(paused["hitl_request"], requests["hitl_request"], "{status}");
        assert_eq!(paused["pending_eca_request"], requests["pending_eca_request"], "{status}");
        // The status alone ends them.
        let task = app.report("t", json!({ "status": status })).await.ok();
        for request in ["hitl_request", "pending_eca_request"] {
            assert_eq!(!task[request].is_null(), status == "paused", "{status}: {request}");
        }
        app.report("t", paused_again.clone()).await.ok();
        // With the status, and after it.
        let mut late = json!({ "status": status, "hitl_request": { "wait_node_id": "late" } });
        for _ in 0..2 {
            let task = app.report("t", late.clone()).await.ok();
            assert_eq!(task, app.get("/v1/tasks/t").await.ok());
            let is_paused = status == "paused";
            assert_eq!(task["hitl_request"]["wait_node_id"] == "late", is_paused, "{status}");
            assert_eq!(!task["hitl_request"].is_null(), is_paused, "{status}");
            assert_eq!(!task["pending_eca_request"].is_null(), is_paused, "{status}");
            assert_eq!(task["deep_planning"]["enabled"], true, "{status}");
            late.as_object_mut().expect("an object").remove("status");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_update_time_never_goes_back() {
    let app = TestApp::start().await;
    let updated_at = async || app.get("/v1/tasks").await.ok()["items"][0]["updated_at"].clone();
    app.advance(5.0);
    app.invoke("a", json!({ "id": "t", "input": {} })).await.ok();
    app.advance(-3.0);
    app.report("t", json!({ "status": "executing" })).await.ok();
    assert_eq!(updated_at().await, "2026-03-23T00:45:27Z");
    app.request("POST", "/v1/tasks/t/stop", None).await.ok();
    assert_eq!(updated_at().await, "2026-03-23T00:45:27Z");
    app.advance(4.0);
    app.report("t", json!({})).await.ok();
    assert_eq!(updated_at().await, "2026-03-23T00:45:28Z", "also an empty report is one");
}

/// Each field of an option or a detail keeps its text, whatever else is reported.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_report_merges_options_and_details_field_by_field() {
    let app = TestApp::start().await;
    let payload = json!({ "z": 1, "a": { "n": 10.50, "big": 12_345_678_901_234_567_890_u64 } });
    let body = json!({
        "id": "t", "input": {}, "worker_id": "w", "output_format": "json",
        "payload_extension": payload
    });
    app.invoke("a", body).await.ok();
    let mut expected = app.report("t", json!({ "title": "Named" })).await.ok();
    assert_eq!(expected["payload_extension"].to_string(), payload.to_string());
    assert_eq!((&expected["worker_id"], &expected["title"]), (&json!("w"), &json!("Named")));
    assert_eq!(expected["output_format"], "json");
    for (key, value) in [
        ("payload_extension", json!({ "b": [], "a": null })),
        ("tokens", json!({ "total_tokens": 1 })),
        ("used_tools", json!(["x", "y"])),
        ("duration", json!(0.25)),
        ("tokens", json!({ "prompt_tokens": 2 })),
        ("title", json!("")),
    ] {
        expected[key] = value.clone();
        let task = app.report("t", json!({ key: value })).await.ok();
        assert_eq!(task.to_string(), expected.to_string(), "{key}");
        assert_eq!(app.get("/v1/tasks/t").await.ok().to_string(), expected.to_string(), "{key}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_number_of_a_turn_is_any_integer_of_json() {
    let app = TestApp::start().await;
    app.invoke("a", json!({ "id": "t", "input": {} })).await.ok();
    for (turn, status) in [
        ("1", StatusCode::OK),
        ("1.0", StatusCode::OK),
        ("57538293048716489129984", StatusCode::NOT_FOUND),
        ("1e30", StatusCode::NOT_FOUND),
        ("1.5", StatusCode::UNPROCESSABLE_ENTITY),
        ("0", StatusCode::UNPROCESSABLE_ENTITY),
        ("\"1\"", StatusCode::UNPROCESSABLE_ENTITY),
    ] {
        let body = format!(r#"{{"turn":{turn},"internal_status":"x"}}"#);
        let body = serde_json::from_str(&body).expect("JSON");
        assert_eq!(app.report("t", body).await.status, status, "{turn}");
    }
}
