//! `GET /v1/tasks/{id}/thread` and `/thread/full`.

use axum::http::StatusCode;
use serde_json::json;

use crate::support::test_app::TestApp;

/// "Reply with exactly FIRST", then SECOND: the official example of a thread.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_documented_thread() {
    let app = TestApp::start().await;
    let turns = [("FIRST", 1_774_226_722, 4.0), ("SECOND", 1_774_226_726, 4.0)];
    for (word, at, seconds) in turns {
        assert_eq!(app.now().timestamp(), at);
        app.invoke(
            "a",
            json!({ "id": "task-id", "input": { "text": format!("Reply with exactly {word}") } }),
        )
        .await
        .ok();
        app.advance(seconds);
        app.report("task-id", json!({ "status": "completed", "result": word })).await.ok();
    }
    let thread = json!([
        {
            "id": "task-id_user_1", "role": "user", "content": "Reply with exactly FIRST",
            "created_at": 1_774_226_722
        },
        {
            "id": "task-id_agent_1", "role": "assistant", "content": "FIRST",
            "created_at": 1_774_226_726
        },
        {
            "id": "task-id_user_2", "role": "user", "content": "Reply with exactly SECOND",
            "created_at": 1_774_226_726
        },
        {
            "id": "task-id_agent_2", "role": "assistant", "content": "SECOND",
            "created_at": 1_774_226_730
        }
    ]);
    assert_eq!(app.get("/v1/tasks/task-id/thread").await.ok(), thread);
    assert_eq!(app.get("/v1/tasks/task-id/thread/full").await.ok(), json!({ "root": thread }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thread_shows_what_is_there() {
    let app = TestApp::start().await;
    app.invoke("a", json!({ "id": "t", "input": { "files": ["https://example.com/x"] } }))
        .await
        .ok();
    let thread = app.get("/v1/tasks/t/thread").await.ok();
    assert_eq!(thread.as_array().map(Vec::len), Some(1), "no answer yet: {thread}");
    assert_eq!(thread[0]["content"], "");
    // A turn without a report stays in the thread.
    app.invoke("a", json!({ "id": "t", "input": { "text": "again" } })).await.ok();
    app.report("t", json!({ "status": "error", "result": "it broke" })).await.ok();
    let thread = app.get("/v1/tasks/t/thread").await.ok();
    let said: Vec<_> =
        thread.as_array().expect("messages").iter().map(|message| &message["id"]).collect();
    assert_eq!(said, ["t_user_1", "t_user_2", "t_agent_2"]);
    for path in
        ["/v1/tasks/unknown/thread", "/v1/tasks/unknown/thread/full", "/v1/tasks/%00/thread"]
    {
        let answer = app.get(path).await;
        assert_eq!(
            (answer.status, answer.json()),
            (StatusCode::NOT_FOUND, json!({ "detail": "Task not found" }))
        );
    }
}

/// Records the tree root > (a > (c > d), b).
pub(super) async fn record_tree(app: &TestApp) {
    for (id, parent) in [
        ("root-task", None),
        ("a", Some("root-task")),
        ("b", Some("root-task")),
        ("c", Some("a")),
        ("d", Some("c")),
    ] {
        app.advance(1.0);
        let body = json!({ "id": id, "input": { "text": id }, "parent_execution_id": parent });
        app.invoke("agent", body).await.ok();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_thread_has_sub_tasks_to_any_depth() {
    let app = TestApp::start().await;
    record_tree(&app).await;
    let full = app.get("/v1/tasks/root-task/thread/full").await.ok();
    let keys: Vec<_> = full.as_object().expect("buckets").keys().cloned().collect();
    assert_eq!(keys, ["root", "a", "b", "c", "d"]);
    assert_eq!(full["d"][0]["content"], "d");
    assert_eq!(app.get("/v1/tasks/root-task/thread").await.ok().as_array().map(Vec::len), Some(1));
    let part = app.get("/v1/tasks/a/thread/full").await.ok();
    assert_eq!(part.as_object().map(serde_json::Map::len), Some(3), "{part}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn circles_of_parents_end() {
    let app = TestApp::start().await;
    for (id, parent) in [("x", "y"), ("y", "x"), ("self", "self")] {
        app.invoke("agent", json!({ "id": id, "input": {}, "parent_execution_id": parent }))
            .await
            .ok();
    }
    let full = app.get("/v1/tasks/x/thread/full").await.ok();
    assert_eq!(full.as_object().expect("buckets").keys().collect::<Vec<_>>(), ["root", "y"]);
    assert_eq!(app.get("/v1/tasks/self").await.ok()["sub_executions"], json!(["self"]));
    for (id, left) in [("self", 2), ("y", 0)] {
        assert_eq!(
            app.request("DELETE", &format!("/v1/tasks/{id}"), None).await.status,
            StatusCode::NO_CONTENT
        );
        assert_eq!(app.get("/v1/tasks").await.ok()["total"], left);
    }
}
