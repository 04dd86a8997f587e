//! `POST /v1/agents/{agent}/invoke/async`: the turns of a task.

use axum::http::StatusCode;
use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::support::test_app::TestApp;

/// The official two-turn conversation, field by field.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_turns_as_documented() {
    let app = TestApp::start().await;
    let list = async || app.get("/v1/agents/agent/tasks").await.ok();
    let id = "fbd08e4d-cfa7-4838-b6e6-e51855ac2ba3";

    app.advance(2.296_117);
    let first = app
        .invoke("agent", json!({ "id": id, "input": { "text": "Reply with exactly FIRST" } }))
        .await
        .ok();
    assert_eq!(first["id"], id);
    assert_eq!(first["status"], "pending");
    assert_eq!(first["result"], Value::Null);
    assert_eq!(first["created_at"], "2026-03-23T00:45:24.296117Z");
    app.advance(2.0);
    app.report(id, json!({ "status": "completed", "result": "FIRST" })).await.ok();
    let page = list().await;
    assert_eq!(page["total"], 1);
    let item = &page["items"][0];
    assert_eq!(item["title"], "Reply with exactly FIRST");
    assert_eq!(item["result"], "FIRST");
    assert_eq!(item["status"], "completed");
    assert_eq!(item["created_at"], "2026-03-23T00:45:24.296117Z");
    assert_eq!(item["updated_at"], "2026-03-23T00:45:26.296117Z");

    app.advance(0.5);
    let second = app
        .invoke("agent", json!({ "id": id, "input": { "text": "Reply with exactly SECOND" } }))
        .await
        .ok();
    assert_eq!(second["status"], "pending");
    assert_eq!(second["result"], Value::Null);
    assert_eq!(second["input"]["text"], "Reply with exactly SECOND");
    let page = list().await;
    assert_eq!(page["total"], 1, "a turn is no task");
    assert_eq!(page["items"][0]["result"], Value::Null);
    assert_eq!(page["items"][0]["status"], "pending");

    app.report(id, json!({ "status": "executing" })).await.ok();
    app.advance(4.244_029);
    app.report(id, json!({ "status": "completed", "result": "SECOND" })).await.ok();
    let page = list().await;
    assert_eq!(
        page,
        json!({
            "items": [{
                "id": id,
                "agent_id": "agent",
                "user_id": null,
                "parent_task_id": null,
                "triggering_agent_id": null,
                "organization_id": app.organization.to_string(),
                "status": "completed",
                "source_node_type": "api",
                "created_at": "2026-03-23T00:45:24.296117Z",
                "updated_at": "2026-03-23T00:45:31.040146Z",
                "title": "Reply with exactly SECOND",
                "result": "SECOND"
            }],
            "total": 1,
            "page": 1,
            "per_page": 20,
            "total_pages": 1
        })
    );
    let task = app.get(&format!("/v1/tasks/{id}")).await.ok();
    assert_eq!(task["input"]["text"], "Reply with exactly SECOND");
    assert_eq!(task["result"], "SECOND");
    assert_eq!(task["created_at"], "2026-03-23T00:45:24.296117Z");
    assert_eq!(task["finished_at"], "2026-03-23T00:45:31.040146Z");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_concurrent_turns_are_ten_turns_of_one_record() {
    let app = TestApp::start().await;
    let turns = (0..10)
        .map(|n| app.invoke("agent", json!({ "id": "one", "input": { "text": n.to_string() } })));
    let answers = join_all(turns).await;
    for (n, answer) in answers.iter().enumerate() {
        assert_eq!(
            answer.ok()["input"]["text"],
            n.to_string(),
            "each caller is answered with its own turn"
        );
    }
    assert_eq!(app.get("/v1/agents/agent/tasks").await.ok()["total"], 1);
    let mut connection = crate::support::cluster::connect(&app.database).await;
    let numbers: Vec<i32> = sqlx::query_scalar("SELECT turn FROM task_turns ORDER BY turn")
        .fetch_all(&mut connection)
        .await
        .expect("turns");
    assert_eq!(numbers, (1..=10).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_id_of_another_agent_is_refused() {
    let app = TestApp::start().await;
    app.invoke("mine", json!({ "id": "taken", "input": { "text": "mine" } })).await.ok();
    let before = app.get("/v1/tasks/taken").await.ok();
    app.advance(1.0);
    let answer = app.invoke("yours", json!({ "id": "taken", "input": { "text": "yours" } })).await;
    assert_eq!(answer.status, StatusCode::CONFLICT);
    assert_eq!(answer.json(), json!({ "detail": "This id belongs to a task of another agent" }));
    assert_eq!(app.get("/v1/tasks/taken").await.ok(), before);
    assert_eq!(app.get("/v1/agents/yours/tasks").await.ok()["total"], 0);
    // In another organization the same id is free.
    let (other, _) = app.other_organization().await;
    let body = json!({ "id": "taken", "input": { "text": "theirs" } });
    let theirs =
        app.request_as(&other, "POST", "/v1/agents/yours/invoke/async", Some(body)).await.ok();
    assert_ne!(theirs["organization_id"], before["organization_id"]);
    assert_eq!(app.get("/v1/tasks/taken").await.ok(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_user_parent_and_caller_stay() {
    let app = TestApp::start().await;
    let turn = |extra: Value| {
        let mut body = json!({ "id": "t", "input": { "text": "x" } });
        for (key, value) in extra.as_object().expect("an object") {
            body[key] = value.clone();
        }
        body
    };
    app.invoke("a", turn(json!({}))).await.ok();
    app.invoke(
        "a",
        turn(json!({
            "input": { "text": "x", "user": { "id": "u1", "email": "u1@example.com" } },
            "parent_execution_id": "p1",
            "triggering_agent_id": "g1",
            "source": "webhook"
        })),
    )
    .await
    .ok();
    let third = app
        .invoke(
            "a",
            turn(json!({
                "input": { "text": "x", "user": { "id": "u2", "email": "u2@example.com" } },
                "parent_execution_id": "p2",
                "triggering_agent_id": "g2"
            })),
        )
        .await
        .ok();
    assert_eq!(third["parent_execution"], "p1");
    assert_eq!(third["triggering_agent_id"], "g1");
    assert_eq!(third["input"]["user"]["id"], "u2", "the turn's own user is the turn's");
    let item = app.get("/v1/agents/a/tasks").await.ok()["items"][0].clone();
    assert_eq!(item["user_id"], "u1");
    assert_eq!(item["parent_task_id"], "p1");
    assert_eq!(item["source_node_type"], "api", "how the latest turn was invoked");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_field_of_an_invocation_comes_back() {
    let app = TestApp::start().await;
    let sent = json!({
        "input": {
            "text": "Ünïcode 😀",
            "files": ["https://example.com/a.pdf"],
            "user": {
                "id": "u1", "first_name": "Ada", "last_name": "Lovelace",
                "email": "ada@example.com",
                "additional_attributes": {
                    "z": 1, "a": [1.10, 123_456_789_012_345_678_901_234_567_890_u128]
                },
                "role": "admin", "is_super_admin": "yes", "timezone": "Europe/London"
            }
        },
        "id": "thread 1/ü",
        "payload_extension": { "b": { "c": null }, "a": 1 },
        "parent_execution_id": "p1",
        "worker_id": "w1",
        "source": "mobile-app",
        "output_format": "json",
        "output_schema": { "type": "object" },
        "run_locally": true,
        "additional_context": "context",
        "expected_output": "output",
        "events_streaming": true,
        "mcp_servers": [],
        "triggering_agent_id": "g1",
        "title": "A title",
        "think_mode": "harder",
        "disable_attachment_injection": true,
        "instructions_override": "instructions",
        "test_run_node_id": "n1",
        "return_metrics": true,
        "llm_model_provider": "provider",
        "llm_model_name": "name",
        "llm_reasoning_effort": "xhigh"
    });
    let answer = app
        .request("POST", "/v1/agents/a%201/invoke/async?version=draft", Some(sent.clone()))
        .await;
    let created = answer.ok();
    let read = app.get("/v1/tasks/thread%201%2F%C3%BC").await;
    assert_eq!(read.text, answer.text, "what is answered is what is stored, to the byte");

    for (key, value) in sent.as_object().expect("an object") {
        match key.as_str() {
            "input" | "run_locally" => {}
            "parent_execution_id" => assert_eq!(&created["parent_execution"], value),
            key => assert_eq!(&created[key], value, "{key}"),
        }
    }
    assert_eq!(created["agent_id"], "a 1");
    assert_eq!(created["agent_version"], "draft");
    let mut user = sent["input"]["user"].clone();
    user["is_super_admin"] = json!(true);
    user["display_name"] = json!("Ada Lovelace");
    assert_eq!(created["input"]["user"], user);
    assert!(answer.text.contains("123456789012345678901234567890"), "no digit is lost");
    assert!(
        answer.text.contains(r#"{"b":{"c":null},"a":1}"#),
        "keys keep their order: {}",
        answer.text
    );
    let keys: Vec<_> = created.as_object().expect("an object").keys().cloned().collect();
    assert_eq!(keys, AGENT_EXECUTION_KEYS, "every key, in the contract's order");
}

/// The fields in the order of the contract, then those that only the official SDK knows.
const AGENT_EXECUTION_KEYS: [&str; 52] = [
    "id",
    "agent_id",
    "organization_id",
    "input",
    "status",
    "internal_status",
    "last_executed_node_id",
    "agent_version",
    "created_at",
    "started_at",
    "paused_at",
    "finished_at",
    "result",
    "parent_execution",
    "sub_executions",
    "finished_sub_executions",
    "is_manually_stopped",
    "payload_extension",
    "hitl_request",
    "pending_eca_request",
    "source",
    "worker_id",
    "additional_context",
    "expected_output",
    "output_format",
    "output_schema",
    "events_streaming",
    "used_mutating_tools",
    "is_continuous",
    "mcp_servers",
    "triggering_agent_id",
    "title",
    "think_mode",
    "disable_attachment_injection",
    "instructions_override",
    "test_run_node_id",
    "voice_id",
    "user_oidc_token",
    "is_orchestration",
    "return_metrics",
    "deep_planning",
    "execution_attempts",
    "user_tokens",
    "tokens",
    "llm_model_provider",
    "llm_model_name",
    "llm_reasoning_effort",
    "duration",
    "used_tools",
    "tool_call_limit",
    "harness_cli",
    "permission_mode",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_are_neither_kept_nor_returned() {
    let app = TestApp::start().await;
    let body = json!({
        "id": "t",
        "input": { "text": "x" },
        "user_oidc_token": "SECRET-1",
        "user_tokens": { "google": "SECRET-2" },
        "mcp_servers": [{
            "name": "server", "type": "remote",
            "url": "https://u:SECRET-3@mcp.example.com/s/SECRET-14/sse?key=SECRET-4#SECRET-5",
            "api_key": "SECRET-6", "client_secret": "SECRET-7",
            "headers": { "authorization": "SECRET-8" },
            "env_vars": { "K": "SECRET-9" }, "command": "run --token SECRET-10",
            "allowed_tools": ["search"]
        }, { "url": "SECRET-11 is no address" }, { "url": "http://[::1]:8123/SECRET-15" }]
    });
    let answer = app.invoke("a", body).await;
    let created = answer.ok();
    assert_eq!(
        created["mcp_servers"],
        json!([
            {
                "name": "server", "type": "remote", "url": "https://mcp.example.com",
                "allowed_tools": ["search"]
            },
            { "url": null },
            { "url": "http://[::1]:8123" }
        ])
    );
    let patch = json!({ "user_oidc_token": "SECRET-12", "user_tokens": { "a": "SECRET-13" } });
    let reported = app.report("t", patch).await;
    let mut connection = crate::support::cluster::connect(&app.database).await;
    let rows: Vec<String> = sqlx::query_scalar(
        "SELECT t::text || l::text FROM tasks t JOIN task_turns l ON l.task_id = t.id",
    )
    .fetch_all(&mut connection)
    .await
    .expect("rows");
    assert_eq!(rows.len(), 1);
    for text in [&answer.text, &reported.text, &rows[0]] {
        assert!(!text.contains("SECRET"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sub_tasks_are_listed_on_their_parent() {
    let app = TestApp::start().await;
    app.invoke("a", json!({ "id": "parent", "input": {} })).await.ok();
    for child in ["c2", "c1", "c3"] {
        app.advance(1.0);
        app.invoke("b", json!({ "id": child, "input": {}, "parent_execution_id": "parent" }))
            .await
            .ok();
    }
    app.report("c1", json!({ "status": "completed" })).await.ok();
    app.report("c3", json!({ "status": "executing" })).await.ok();
    let (other, _) = app.other_organization().await;
    let body = json!({ "id": "foreign", "input": {}, "parent_execution_id": "parent" });
    app.request_as(&other, "POST", "/v1/agents/b/invoke/async", Some(body)).await.ok();
    let parent = app.get("/v1/tasks/parent").await.ok();
    assert_eq!(
        parent["sub_executions"],
        json!(["c2", "c1", "c3"]),
        "oldest first, this organization's only"
    );
    assert_eq!(parent["finished_sub_executions"], json!(["c1"]));
    let again = app.invoke("a", json!({ "id": "parent", "input": {} })).await.ok();
    assert_eq!(again["sub_executions"], parent["sub_executions"]);
    let page = app.get("/v1/agents/b/tasks?parent_task_id=parent").await.ok();
    assert_eq!(page["total"], 3);
}
