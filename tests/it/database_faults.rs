//! What clients see while the database is slow, locked, silent or read-only.

use std::time::Duration;

use axum::http::StatusCode;
use futures_util::future::{join, join_all};
use serde_json::json;
use sqlx::PgConnection;
use task_history::domain::Limits;

use crate::support::cluster;
use crate::support::proxy::Proxy;
use crate::support::test_app::{self, Answer, TestApp};

/// How long a service may take to work again after established connections have fallen silent.
const RECOVERY: Duration = Duration::from_secs(15);

/// Locks rows until the connection is closed or dropped.
async fn lock_rows(app: &TestApp, statement: &'static str) -> PgConnection {
    let mut connection = cluster::connect(&app.database).await;
    sqlx::raw_sql("BEGIN").execute(&mut connection).await.expect("a transaction");
    sqlx::raw_sql(statement).execute(&mut connection).await.expect("a lock");
    connection
}

async fn unlock(mut connection: PgConnection) {
    sqlx::raw_sql("ROLLBACK").execute(&mut connection).await.expect("unlocked");
}

/// Sends a request until it succeeds, or until the task is gone that it deletes.
async fn until_ok(app: &TestApp, method: &str, path: &str, body: Option<serde_json::Value>) {
    let attempts = async {
        loop {
            let answer = app.request(method, path, body.clone()).await;
            let is_gone = method == "DELETE" && answer.status == StatusCode::NOT_FOUND;
            if answer.status.is_success() || is_gone {
                return;
            }
            assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{path} {}", answer.text);
        }
    };
    let attempts = tokio::time::timeout(RECOVERY, attempts).await;
    attempts.unwrap_or_else(|_| panic!("{method} {path} does not recover"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_routes_come_back_after_connections_have_fallen_silent() {
    let proxy = Proxy::start().await;
    let app = TestApp::start_at(Limits::default(), |database| proxy.url_of(database)).await;
    let body = |id: &str| json!({ "id": id, "input": { "text": "x" } });
    let events = || json!([{ "type": "chunk", "data": "x" }]);
    // Connections of every kind are established, several of each.
    for round in 0..3 {
        let warm_up = (0..6).map(|n| {
            let (app, id) = (&app, format!("t{n}"));
            async move {
                app.invoke("a", body(&id)).await.ok();
                app.report(&id, json!({ "status": "executing" })).await.ok();
                app.request("POST", &format!("/agent-execution/{id}/events/push"), Some(events()))
                    .await;
                app.get("/v1/agents/a/tasks").await.ok();
            }
        });
        join_all(warm_up).await;
        assert_eq!(app.get("/readyz").await.status, StatusCode::OK, "round {round}");
    }
    proxy.fall_silent();
    // Nobody says that the connections are dead: at first, no request is answered with success.
    let first = app.get("/readyz").await;
    assert_eq!(first.status, StatusCode::SERVICE_UNAVAILABLE, "{}", first.text);
    let requests = (0..6).map(|n| {
        let (app, id) = (&app, format!("t{n}"));
        async move {
            let push = format!("/agent-execution/{id}/events/push");
            until_ok(app, "POST", "/v1/agents/a/invoke/async", Some(body(&id))).await;
            let update = format!("/agent-execution/{id}/update");
            until_ok(app, "PATCH", &update, Some(json!({ "status": "completed" }))).await;
            until_ok(app, "POST", &push, Some(events())).await;
            until_ok(app, "GET", "/v1/agents/a/tasks", None).await;
            until_ok(app, "GET", &format!("/v1/tasks/{id}/thread"), None).await;
            until_ok(app, "DELETE", &format!("/v1/tasks/{id}"), None).await;
        }
    });
    join_all(requests).await;
    until_ok(&app, "GET", "/readyz", None).await;
    assert_eq!(app.get("/v1/tasks").await.ok()["total"], 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_be_written_is_told_from_what_is_not() {
    let hour = Duration::from_hours(1);
    let limits = Limits { batch_lock_timeout: hour, ..test_app::short_limits() };
    let proxy = Proxy::start().await;
    let app = TestApp::start_at(limits, |database| proxy.url_of(database)).await;
    app.invoke("a", json!({ "id": "t", "input": {} })).await.ok();
    let lock = lock_rows(&app, "SELECT FROM tasks FOR UPDATE").await;
    // The turn commits by itself once the lock is gone, and nobody hears of it.
    let lose = async {
        cluster::until_waiting(&app.database).await;
        proxy.fall_silent();
    };
    let invoke = app.invoke("a", json!({ "id": "t", "input": {} }));
    let (answer, ()) = join(invoke, lose).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{}", answer.text);
    assert!(answer.text.contains("not known whether"), "{}", answer.text);
    assert!(!answer.headers.contains_key("retry-after"), "a repetition would be a second turn");
    unlock(lock).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_locked_task_delays_its_own_writes_only() {
    let app = TestApp::start().await;
    for n in 0..64 {
        app.invoke("a", json!({ "id": n.to_string(), "input": {} })).await.ok();
    }
    let lock = lock_rows(&app, "SELECT FROM tasks WHERE id = '13' FOR UPDATE").await;
    let write = |n: usize| {
        let (app, id) = (&app, n.to_string());
        async move {
            let report = app.report(&id, json!({ "status": "completed", "result": id })).await;
            let invoke = app.invoke("a", json!({ "id": id, "input": {} })).await;
            [report, invoke]
        }
    };
    let others = join_all((0..64).filter(|n| *n != 13).map(write));
    let locked = write(13);
    tokio::pin!(others, locked);
    tokio::select! {
        _ = &mut locked => panic!("the task is locked"),
        others = &mut others => for answer in others.iter().flatten() {
            answer.ok();
        },
    }
    unlock(lock).await;
    locked.await.iter().for_each(|answer| drop(answer.ok()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_waits_too_long_is_refused_and_not_written() {
    let write_timeout = Duration::from_millis(300);
    let limits = Limits { write_timeout, ..test_app::short_limits() };
    let app = TestApp::start_with(limits).await;
    app.invoke("a", json!({ "id": "t", "input": {} })).await.ok();
    let lock = lock_rows(&app, "SELECT FROM tasks FOR UPDATE").await;
    let refused = |answer: Answer| {
        assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{}", answer.text);
        assert_eq!(answer.headers["retry-after"], "1");
    };
    refused(app.report("t", json!({ "result": "x" })).await);
    refused(app.invoke("a", json!({ "id": "t", "input": {} })).await);
    unlock(lock).await;
    assert_eq!(app.get("/v1/tasks/t").await.ok()["result"], json!(null));
    let turns = "SELECT count(*) FROM task_turns";
    let mut connection = cluster::connect(&app.database).await;
    cluster::until_count(&mut connection, turns, |count| count == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_busy_service_is_ready() {
    let app = TestApp::start().await;
    app.invoke("a", json!({ "id": "t", "input": {} })).await.ok();
    let lock = lock_rows(&app, "SELECT FROM tasks FOR UPDATE").await;
    // More pushes than connections, all of which wait for the row.
    let events = json!([{ "type": "chunk", "data": "x" }]);
    let push = |_| app.request("POST", "/agent-execution/t/events/push", Some(events.clone()));
    let pushes = join_all((0..20).map(push));
    let ready = async {
        cluster::until_waiting(&app.database).await;
        assert_eq!(app.get("/readyz").await.status, StatusCode::OK);
        unlock(lock).await;
    };
    let (pushes, ()) = join(pushes, ready).await;
    assert!(pushes.iter().all(|push| push.status == StatusCode::OK));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_cannot_be_written_to_is_not_ready() {
    let app = TestApp::start().await;
    assert_eq!(app.get("/readyz").await.status, StatusCode::OK);
    let set = |value: &str| {
        format!(
            "ALTER DATABASE {database} SET default_transaction_read_only = {value};
             SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
             WHERE datname = '{database}' AND pid <> pg_backend_pid()",
            database = app.database
        )
    };
    cluster::execute("postgres", &set("on")).await;
    let answer = app.get("/readyz").await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{}", answer.text);
    assert_eq!(app.get("/v1/tasks").await.status, StatusCode::OK, "it can still be read");
    cluster::execute("postgres", &set("off")).await;
    until_ok(&app, "GET", "/readyz", None).await;
    app.invoke("a", json!({ "id": "t", "input": {} })).await.ok();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_organization_that_waits_leaves_connections_and_batches_to_others() {
    let hour = Duration::from_hours(1);
    let limits = Limits {
        statement_timeout: hour,
        response_timeout: hour,
        lock_timeout: hour,
        pool_timeout: hour,
        write_timeout: hour,
        request_timeout: hour,
        ..test_app::short_limits()
    };
    let app = TestApp::start_with(limits).await;
    let (other, _) = app.other_organization().await;
    for n in 0..40 {
        app.invoke("a", json!({ "id": n.to_string(), "input": {} })).await.ok();
    }
    let lock = lock_rows(&app, "SELECT FROM tasks FOR UPDATE").await;
    // All of them wait: for a connection, for a batch, or for a row.
    let events = json!([{ "type": "chunk", "data": "x" }]);
    let wait = async |n: usize| {
        let push = format!("/agent-execution/{n}/events/push");
        join_all([
            app.request("POST", &push, Some(events.clone())),
            app.request("PATCH", &format!("/agent-execution/{n}/update"), Some(json!({}))),
            app.request(
                "POST",
                "/v1/agents/a/invoke/async",
                Some(json!({ "id": n.to_string(), "input": {} })),
            ),
        ])
        .await
    };
    let waiting = join_all((0..40).map(wait));
    let others = async {
        cluster::until_waiting(&app.database).await;
        let body = json!({ "id": "mine", "input": {} });
        let invoke = app.request_as(&other, "POST", "/v1/agents/a/invoke/async", Some(body));
        invoke.await.ok();
        let update = Some(json!({ "status": "completed" }));
        app.request_as(&other, "PATCH", "/agent-execution/mine/update", update).await.ok();
        let list = app.request_as(&other, "GET", "/v1/tasks", None).await.ok();
        assert_eq!(list["items"][0]["status"], "completed");
        let deleted = app.request_as(&other, "DELETE", "/v1/tasks/mine", None).await;
        assert_eq!(deleted.status, StatusCode::NO_CONTENT);
    };
    tokio::pin!(waiting);
    tokio::select! {
        _ = &mut waiting => panic!("all tasks are locked"),
        () = others => {}
    }
    unlock(lock).await;
    let answers = waiting.await;
    assert!(answers.iter().flatten().all(|answer| answer.status.is_success()));
}
