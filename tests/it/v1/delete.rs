//! `DELETE /v1/tasks/{id}`.

use axum::http::StatusCode;
use serde_json::json;

use super::threads::record_tree;
use crate::support::cluster;
use crate::support::test_app::TestApp;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleting_takes_sub_tasks_along_and_nothing_else() {
    let app = TestApp::start().await;
    record_tree(&app).await;
    let (other, _) = app.other_organization().await;
    let theirs = json!({ "id": "c", "input": {}, "parent_execution_id": "a" });
    app.request_as(&other, "POST", "/v1/agents/agent/invoke/async", Some(theirs)).await.ok();
    let key = json!({ "id": "c", "input": { "text": "turn" } });
    app.invoke("agent", key).await.ok();

    let deleted = app.request("DELETE", "/v1/tasks/a", None).await;
    assert_eq!((deleted.status, deleted.text.as_str()), (StatusCode::NO_CONTENT, ""));
    let left = app.get("/v1/tasks").await.ok();
    let ids: Vec<_> =
        left["items"].as_array().expect("items").iter().map(|item| &item["id"]).collect();
    assert_eq!(ids, ["b", "root-task"]);
    assert_eq!(app.get("/v1/tasks/root-task").await.ok()["sub_executions"], json!(["b"]));
    assert_eq!(app.request_as(&other, "GET", "/v1/tasks/c", None).await.status, StatusCode::OK);
    for id in ["a", "d", "never"] {
        assert_eq!(
            app.request("DELETE", &format!("/v1/tasks/{id}"), None).await.status,
            StatusCode::NOT_FOUND
        );
    }
    let mut connection = cluster::connect(&app.database).await;
    let turns: i64 = sqlx::query_scalar("SELECT count(*) FROM task_turns")
        .fetch_one(&mut connection)
        .await
        .expect("rows");
    assert_eq!(turns, 3, "their turns are gone too");
    // The id is free again.
    assert_eq!(
        app.invoke("another", json!({ "id": "a", "input": {} })).await.ok()["agent_id"],
        "another"
    );
}
