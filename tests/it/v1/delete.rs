//! `DELETE /v1/tasks/{id}`.

use std::time::Duration;

use axum::http::StatusCode;
use serde_json::json;
use task_history::domain::Limits;

use super::threads::record_tree;
use crate::support::cluster;
use crate::support::test_app::{self, TestApp};

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
    // A parent that was never recorded is no task, and takes nothing along.
    let orphan = json!({ "id": "orphan", "input": {}, "parent_execution_id": "never" });
    app.invoke("agent", orphan).await.ok();
    let deleted = app.request("DELETE", "/v1/tasks/never", None).await;
    assert_eq!(deleted.status, StatusCode::NOT_FOUND);
    let deleted = app.request("DELETE", "/v1/tasks/orphan", None).await;
    assert_eq!(deleted.status, StatusCode::NO_CONTENT, "it is still there");
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

/// Records tasks past the service: `parents` names each task's parent.
async fn record_tasks(app: &TestApp, parents: &str) {
    let statement = format!(
        "WITH tree AS (SELECT * FROM ({parents}) AS tree (id, parent))
         INSERT INTO tasks (organization_id, id, agent_id, parent_task_id, status, source, turns,
                            events, created_at, updated_at)
         SELECT '{}', id, 'a', parent, 'pending', 'api', 1, 1, now(), now() FROM tree",
        app.organization
    );
    cluster::execute(&app.database, &statement).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trees_of_any_shape_are_deleted_in_parts() {
    let app = TestApp::start().await;
    for (shape, parents) in [
        ("wide", "SELECT 'n' || n, 'root' FROM generate_series(1, 1300) AS n"),
        (
            "deep",
            "SELECT 'n' || n, CASE n WHEN 1 THEN 'root' ELSE 'n' || (n - 1) END
             FROM generate_series(1, 300) AS n",
        ),
        (
            "bushy",
            "SELECT 'n' || n, CASE WHEN n <= 20 THEN 'root' ELSE 'n' || (n / 20) END
             FROM generate_series(1, 1500) AS n",
        ),
    ] {
        record_tasks(&app, &format!("SELECT 'root', 'n7' UNION ALL {parents}")).await;
        record_tasks(&app, "SELECT 'bystander', 'n0'").await;
        let deleted = app.request("DELETE", "/v1/tasks/root", None).await;
        assert_eq!(deleted.status, StatusCode::NO_CONTENT, "{shape}: {}", deleted.text);
        let left = app.get("/v1/tasks").await.ok();
        assert_eq!((&left["total"], &left["items"][0]["id"]), (&json!(1), &json!("bystander")));
        app.request("DELETE", "/v1/tasks/bystander", None).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deletion_that_is_interrupted_can_be_repeated() {
    let limits = Limits { lock_timeout: Duration::from_millis(100), ..test_app::short_limits() };
    let app = TestApp::start_with(limits).await;
    let parents = "SELECT 'root', NULL
                   UNION ALL SELECT 'n' || n, 'root' FROM generate_series(1, 1000) AS n";
    record_tasks(&app, parents).await;
    let mut connection = cluster::connect(&app.database).await;
    let lock = "BEGIN; SELECT FROM tasks WHERE id = 'n500' FOR UPDATE";
    sqlx::raw_sql(lock).execute(&mut connection).await.expect("a lock");
    let deleted = app.request("DELETE", "/v1/tasks/root", None).await;
    assert_eq!(deleted.status, StatusCode::SERVICE_UNAVAILABLE, "{}", deleted.text);
    assert_eq!(deleted.headers["retry-after"], "1");
    let left = app.get("/v1/tasks").await.ok()["total"].as_u64().expect("a number");
    assert!((2..1001).contains(&left), "a part is deleted, and the root is not: {left}");
    sqlx::raw_sql("ROLLBACK").execute(&mut connection).await.expect("unlocked");
    let deleted = app.request("DELETE", "/v1/tasks/root", None).await;
    assert_eq!(deleted.status, StatusCode::NO_CONTENT, "{}", deleted.text);
    assert_eq!(app.get("/v1/tasks").await.ok()["total"], 0);
}
