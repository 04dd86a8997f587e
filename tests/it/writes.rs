//! Group commit, and the counts that writes maintain.

use std::time::Duration;

use axum::http::StatusCode;
use futures_util::future::join_all;
use serde_json::json;
use sqlx::Connection;
use task_history::domain::Limits;
use tokio::sync::watch;

use crate::support::test_app::{self, TestApp};
use crate::support::{TIMEOUT, cluster, program};

/// An app whose test key stays cached. A request then reaches the write queue at its first poll.
async fn app_with_cached_key() -> TestApp {
    let key_cache_ttl = Duration::from_hours(1);
    TestApp::start_with(Limits { key_cache_ttl, ..test_app::short_limits() }).await
}

/// Locks the table of tasks until the connection is closed or dropped.
pub async fn lock_tasks(app: &TestApp) -> sqlx::PgConnection {
    let mut connection = cluster::connect(&app.database).await;
    sqlx::raw_sql("BEGIN; LOCK TABLE tasks IN ACCESS EXCLUSIVE MODE")
        .execute(&mut connection)
        .await
        .expect("a lock");
    connection
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_fails_fails_alone() {
    let app = TestApp::start().await;
    cluster::execute(&app.database, "ALTER TABLE tasks ADD CHECK (title <> 'poison')").await;
    let lock = lock_tasks(&app).await;
    let invoke = |n: usize| {
        let title = if n == 13 { "poison" } else { "fine" };
        app.invoke("a", json!({ "id": n.to_string(), "title": title, "input": {} }))
    };
    let unlock = async {
        cluster::until_waiting(&app.database).await;
        lock.close().await.expect("unlocked");
    };
    let (answers, ()) = futures_util::future::join(join_all((0..40).map(invoke)), unlock).await;
    for (n, answer) in answers.iter().enumerate() {
        let expected = if n == 13 { StatusCode::INTERNAL_SERVER_ERROR } else { StatusCode::OK };
        assert_eq!(answer.status, expected, "{n}: {}", answer.text);
    }
    assert_eq!(app.get("/v1/tasks").await.ok()["total"], 39);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_fit_is_refused_at_once() {
    let app = TestApp::start().await;
    let lock = lock_tasks(&app).await;
    let text = "x".repeat(1 << 20);
    let invoke = |n: usize| {
        app.invoke("a", json!({ "id": n.to_string(), "title": "t", "input": { "text": text } }))
    };
    let (refused, mut refusals) = watch::channel(0);
    let requests = join_all((0..30).map(|n| {
        let (invoke, refused) = (invoke(n), &refused);
        async move {
            let answer = invoke.await;
            if answer.status == StatusCode::SERVICE_UNAVAILABLE {
                refused.send_modify(|count| *count += 1);
            }
            answer
        }
    }));
    // The refused ones are answered while the others still wait.
    let unlock = async {
        let ten = refusals.wait_for(|count| *count >= 10);
        tokio::time::timeout(TIMEOUT, ten).await.expect("refusals").expect("a sender");
        lock.close().await.expect("unlocked");
    };
    let (answers, ()) = futures_util::future::join(requests, unlock).await;
    let mut recorded = 0;
    for (n, answer) in answers.iter().enumerate() {
        let exists = app.get(&format!("/v1/tasks/{n}")).await.status;
        if answer.status == StatusCode::OK {
            recorded += 1;
            assert_eq!(exists, StatusCode::OK);
        } else {
            assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{}", answer.text);
            assert_eq!(answer.headers["retry-after"], "1");
            assert_eq!(exists, StatusCode::NOT_FOUND);
        }
    }
    assert!(
        (16..=20).contains(&recorded),
        "16 MiB may be queued, and two batches are in flight: {recorded}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_has_gone_takes_nothing_along() {
    let app = app_with_cached_key().await;
    let lock = lock_tasks(&app).await;
    let invoke = |n: usize| app.invoke("a", json!({ "id": n.to_string(), "input": {} }));
    {
        let gone = join_all((0..5).map(invoke));
        tokio::select! {
            // The first poll queues all five.
            biased;
            _ = gone => panic!("the table is locked"),
            () = cluster::until_waiting(&app.database) => {}
        }
    }
    let unlock = async { lock.close().await.expect("unlocked") };
    let (answers, ()) = futures_util::future::join(join_all((5..10).map(invoke)), unlock).await;
    for answer in answers {
        answer.ok();
    }
    // The writes of the clients that closed their requests are recorded too.
    let mut connection = cluster::connect(&app.database).await;
    let recorded = "SELECT count(*) FROM tasks";
    cluster::until_count(&mut connection, recorded, |count| count == 10).await;
    assert_eq!(app.get("/v1/tasks").await.ok()["total"], 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn turns_of_one_task_keep_their_order() {
    let app = app_with_cached_key().await;
    let lock = lock_tasks(&app).await;
    let invoke = |n: usize| {
        let id = if n.is_multiple_of(2) { "same".to_owned() } else { n.to_string() };
        app.invoke("a", json!({ "id": id, "input": { "text": n.to_string() } }))
    };
    let unlock = async {
        cluster::until_waiting(&app.database).await;
        lock.close().await.expect("unlocked");
    };
    // The first poll queues them in this order.
    let (answers, ()) = futures_util::future::join(join_all((0..20).map(invoke)), unlock).await;
    for answer in answers {
        answer.ok();
    }
    let thread = app.get("/v1/tasks/same/thread").await.ok();
    let texts: Vec<_> = thread
        .as_array()
        .expect("messages")
        .iter()
        .map(|message| message["content"].clone())
        .collect();
    let expected: Vec<_> = (0..20).step_by(2).map(|n| json!(n.to_string())).collect();
    assert_eq!(texts, expected);
}

/// A text that does not become smaller by compression.
fn incompressible(bytes: usize) -> String {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut digit = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        char::from(b'!' + u8::try_from(state % 90).expect("a small number")).to_string()
    };
    let text: String = (0..bytes).map(|_| digit()).collect();
    text.replace(['"', '\\'], "x")
}

/// A report writes what it changes: a text that it does not change is not written again, so a small
/// report about a large task writes little.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_report_does_not_write_a_text_that_it_does_not_change() {
    let app = TestApp::start().await;
    let large = || incompressible(200_000);
    let body = json!({
        "id": "t", "input": { "text": large() }, "payload_extension": { "text": large() }
    });
    app.invoke("a", body).await.ok();
    let plan =
        json!({ "enabled": true, "tasks": [{ "id": large(), "title": "t", "completed": true }] });
    let full = json!({
        "result": large(), "last_executed_node_id": large(), "title": large(),
        "deep_planning": plan
    });
    app.report("t", full).await.ok();
    // Large texts are in tables of their own.
    let mut connection = cluster::connect(&app.database).await;
    let mut size = async || -> i64 {
        let size = "SELECT sum(pg_relation_size(reltoastrelid))::bigint FROM pg_class
                    WHERE relname IN ('tasks', 'task_turns')";
        sqlx::query_scalar(size).fetch_one(&mut connection).await.expect("a size")
    };
    let before = size().await;
    assert!(before > 1_400_000, "{before}");
    let whole = app.get("/v1/tasks/t").await.ok();
    for n in 0..10 {
        let label = format!("label {n}");
        let task = app.report("t", json!({ "internal_status": label, "duration": n + 1 })).await;
        // The plan is stored with the duration.
        assert_eq!(task.ok()["internal_status"], label);
    }
    let after_details = size().await;
    for n in 0..10 {
        app.report("t", json!({ "internal_status": format!("again {n}") })).await.ok();
        // The official SDK sends a whole task back.
        app.report("t", whole.clone()).await.ok();
        app.request("POST", "/v1/tasks/t/stop", None).await.ok();
        let tokens = json!({ "execution_id": "t", "internal_status": "metrics" });
        app.request("POST", "/agents-metrics/a/execution", Some(tokens)).await.ok();
    }
    assert_eq!(size().await, after_details);
    // 10 times the plan, nothing else.
    assert!(after_details - before < 10 * 210_000, "{before} {after_details}");
}

/// Answers are whole, whether a batch reads them or, of large tasks, their callers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_of_reports_answers_with_whole_tasks() {
    let app = app_with_cached_key().await;
    let sizes = [10, 20_000, 60_000, 300_000];
    for n in 0..16 {
        let text = if n < 8 { incompressible(sizes[n % 4]) } else { "a".repeat(sizes[n % 4]) };
        let body = json!({ "id": n.to_string(), "title": "t", "input": { "text": text } });
        app.invoke("a", body).await.ok();
    }
    // A task with more sub-tasks than a batch reads.
    let subtasks = futures_util::future::join_all((0..120).map(|n| {
        app.invoke("a", json!({ "id": format!("c{n}"), "input": {}, "parent_execution_id": "3" }))
    }));
    for answer in subtasks.await {
        answer.ok();
    }
    let lock = lock_tasks(&app).await;
    let report = |n: usize| {
        let id = n.to_string();
        let app = &app;
        async move { app.report(&id, json!({ "status": "completed", "result": id })).await }
    };
    let unlock = async {
        cluster::until_waiting(&app.database).await;
        lock.close().await.expect("unlocked");
    };
    let (answers, ()) = futures_util::future::join(join_all((0..16).map(report)), unlock).await;
    for (n, answer) in answers.iter().enumerate() {
        assert_eq!(answer.ok(), app.get(&format!("/v1/tasks/{n}")).await.ok(), "{n}");
        assert_eq!(answer.json()["result"], n.to_string());
    }
    assert_eq!(answers[3].json()["sub_executions"].as_array().map(Vec::len), Some(120));
}

/// The differences that a recount finds in the app's organization.
async fn drift(app: &TestApp) -> Vec<String> {
    app.store.verify(app.organization, "default").await.expect("a recount").drift
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counts_agree_whoever_writes() {
    let app = TestApp::start().await;
    let user = |n: usize| json!({ "id": format!("u{}", n % 3), "email": "e" });
    let changes = join_all((0..60).map(|n| {
        let app = &app;
        async move {
            let id = format!("t{}", n % 25);
            let body = json!({
                "id": id,
                "input": { "text": "x", "user": user(n) },
                "triggering_agent_id": format!("g{}", n % 2),
                "parent_execution_id": (n % 5 != 0).then(|| format!("t{}", n % 7))
            });
            app.invoke(&format!("a{}", n % 5), body).await.ok();
            let status = ["executing", "completed", "failed", "paused"][n % 4];
            let label = ["x", "y"][n % 2];
            app.report(&id, json!({ "status": status, "internal_status": label })).await;
            if n % 9 == 0 {
                app.request("POST", &format!("/v1/tasks/{id}/stop"), None).await;
            }
            if n % 20 == 0 {
                app.request("DELETE", &format!("/v1/tasks/{id}"), None).await;
            }
        }
    }));
    changes.await;
    assert_eq!(drift(&app).await, Vec::<String>::new());
    // Writes past the service, as in psql.
    for statement in [
        "UPDATE tasks SET status = 'error', user_id = 'someone', agent_id = 'b',
                          created_at = '2026-01-01'
         WHERE id < 't2'",
        "DELETE FROM tasks WHERE id = 't3'",
        "UPDATE task_turns SET status = 'error' WHERE task_id < 't2'",
    ] {
        cluster::execute(&app.database, statement).await;
        let drift = drift(&app).await;
        assert!(drift.iter().all(|text| text.starts_with("task ")), "{statement}: {drift:?}");
    }
    assert_eq!(drift(&app).await, Vec::<String>::new());
    cluster::execute(&app.database, "TRUNCATE tasks CASCADE").await;
    assert_eq!(drift(&app).await, Vec::<String>::new());
    assert_eq!(app.get("/v1/tasks").await.ok()["total"], 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recount_tells_what_does_not_agree() {
    let app = TestApp::start().await;
    app.invoke("a", json!({ "id": "t", "input": {} })).await.ok();
    app.invoke("a", json!({ "id": "t", "input": {} })).await.ok();
    cluster::execute(
        &app.database,
        "UPDATE task_counts SET pending = 2 WHERE agent_id = 'a' AND grain = 2",
    )
    .await;
    cluster::execute(&app.database, "UPDATE task_turns SET result = 'x' WHERE turn = 2").await;
    let told = drift(&app).await;
    assert_eq!(told.len(), 2, "{told:?}");
    assert_eq!(
        told[0],
        "counts of agent a, day 2026-03-23 00:00:00+00: kept {2,0,0,0,0,0,0}, \
         counted {1,0,0,0,0,0,0}"
    );
    assert_eq!(told[1], "task t: differs from its latest turn, of 2 turns");
    cluster::execute(&app.database, "DELETE FROM task_turns WHERE turn = 1").await;
    cluster::execute(&app.database, "UPDATE task_turns SET result = NULL").await;
    assert_eq!(drift(&app).await[1], "task t: says 2 turns, has 1, the latest 2");
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_task-history"));
    command.arg("verify").env("DATABASE_URL", cluster::url_of(&app.database));
    let output = program::run(command).await;
    assert_eq!(output.status.code(), Some(2));
    let said = program::text(&output.stdout);
    assert!(said.contains("default: 1 tasks, 2 differences\n  counts of agent a"), "{said}");
}
