//! What is exported can be imported, from files of other tools too.

use std::process::{Output, Stdio};

use serde_json::{Value, json};
use sqlx::Connection;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};

use super::{command, event_line, run, task_line, turn_line, whole, write_file};
use crate::support::program::text;
use crate::support::test_app::TestApp;
use crate::support::{TIMEOUT, cluster};

/// Records tasks that use every field.
async fn record_tasks(app: &TestApp) {
    let user = json!({
        "id": "u1", "email": "u1@example.com",
        "additional_attributes": { "z": 1.50, "a": [null] }
    });
    let body = json!({
        "id": "é \"quoted\"", "title": "A title", "source": "dashboard",
        "input": { "text": "one\n", "files": ["f"], "user": user },
        "payload_extension": { "b": 1, "a": 12_345_678_901_234_567_890_u64 },
        "llm_reasoning_effort": "high", "mcp_servers": [{ "name": "m" }]
    });
    app.invoke("a", body).await.ok();
    app.advance(1.25);
    app.report("%C3%A9%20%22quoted%22", json!({ "status": "executing" })).await.ok();
    let push = json!([
        { "type": "think", "data": { "b": 1, "a": "hm" } },
        { "type": "chunk", "data": "x" }
    ]);
    app.request("POST", "/agent-execution/%C3%A9%20%22quoted%22/events/push", Some(push))
        .await
        .ok();
    let outcome = json!({
        "status": "paused", "result": "R", "internal_status": "half",
        "tokens": { "total_tokens": 5 },
        "hitl_request": { "wait_node_id": "w" }, "title": "Another title"
    });
    app.report("%C3%A9%20%22quoted%22", outcome).await.ok();
    for text in ["first", "second", "third"] {
        app.advance(0.5);
        let body = json!({
            "id": "t", "input": { "text": text }, "parent_execution_id": "p",
            "triggering_agent_id": "g"
        });
        app.invoke("b", body).await.ok();
        app.report("t", json!({ "status": "completed", "result": text })).await.ok();
    }
    app.invoke("b", json!({ "id": "stopped", "input": {} })).await.ok();
    app.request("POST", "/v1/tasks/stopped/stop", None).await.ok();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_exported_can_be_imported() {
    let app = TestApp::start().await;
    record_tasks(&app).await;
    let exported = run(&app, &["export"]).await;
    assert!(exported.status.success(), "{}", text(&exported.stderr));
    let lines = |kind: &str, output: &Output| {
        text(&output.stdout).lines().filter(|line| line.starts_with(kind)).count()
    };
    let kinds = ["{\"export\":", "{\"task\":", "{\"turn\":", "{\"event\":"];
    assert_eq!(kinds.map(|kind| lines(kind, &exported)), [1, 3, 5, 2]);
    assert_eq!(text(&exported.stdout).lines().count(), 11);
    let directory = TempDir::new().expect("a directory");
    let file = directory.path().join("tasks.ndjson").display().to_string();
    let said = run(&app, &["export", "--file", &file]).await;
    assert_eq!(text(&said.stdout), "3 tasks exported.\n");
    let refused = run(&app, &["export", "--file", &file]).await;
    assert!(text(&refused.stderr).contains("is not overwritten"), "{}", text(&refused.stderr));

    let other = TestApp::start().await;
    let imported = run(&other, &["import", &file, "--json"]).await;
    assert!(imported.status.success(), "{}", text(&imported.stderr));
    let summary: Value = serde_json::from_str(text(&imported.stdout)).expect("JSON");
    assert_eq!((&summary["imported"], &summary["existing"]), (&json!(3), &json!(0)));
    let again = run(&other, &["export"]).await;
    assert_eq!(text(&again.stdout), text(&exported.stdout), "byte by byte");
    for path in [
        "/v1/tasks",
        "/v1/tasks/t",
        "/v1/tasks/%C3%A9%20%22quoted%22",
        "/v1/tasks/t/thread",
        "/activity/b/t",
    ] {
        let (before, after) = (app.get(path).await.ok(), other.get(path).await.ok());
        let renamed = before
            .to_string()
            .replace(&app.organization.to_string(), &other.organization.to_string());
        assert_eq!(after.to_string(), renamed, "{path}");
    }
    assert_eq!(other.get("/v1/tasks?status=completed&internal_status=x").await.ok()["total"], 0);
    assert_eq!(other.get("/v1/tasks?internal_status=half").await.ok()["total"], 1);
    let verified = run(&other, &["verify"]).await;
    assert!(verified.status.success(), "{}", text(&verified.stdout));
    // The imported conversation can be continued.
    other.invoke("b", json!({ "id": "t", "input": { "text": "fourth" } })).await.ok();
    assert_eq!(other.get("/v1/tasks/t/thread").await.ok()[6]["content"], "fourth");
    let of_agent = run(&other, &["export", "--agent-id", "a"]).await;
    assert_eq!(lines("{\"task\":", &of_agent), 1);
    let unknown = run(&other, &["export", "--organization", "nobody"]).await;
    assert!(text(&unknown.stderr).contains("there is no organization `nobody`"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn importing_again_changes_nothing() {
    let app = TestApp::start().await;
    record_tasks(&app).await;
    let before = text(&run(&app, &["export"]).await.stdout).to_owned();
    // One task has another result in the file, one has a new id, and each line is there twice.
    let changed = before.replace("third", "other").replace(r#""id":"stopped""#, r#""id":"new""#);
    let (_directory, file) = write_file(format!("{changed}{changed}\n\n"));
    let imported = run(&app, &["import", &file, "--json"]).await;
    let summary: Value = serde_json::from_str(text(&imported.stdout)).expect("JSON");
    assert_eq!((&summary["imported"], &summary["existing"]), (&json!(1), &json!(5)));
    app.request("DELETE", "/v1/tasks/new", None).await;
    assert_eq!(text(&run(&app, &["export"]).await.stdout), before);
}

/// What editors, tools and other systems make of a file is read too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_of_other_tools_are_read() {
    let app = TestApp::start().await;
    let directory = TempDir::new().expect("a directory");
    let file = directory.path().join("tasks").display().to_string();
    let rows = |id: &str| vec![task_line(id, 2, 1), turn_line(1), turn_line(2), event_line(7)];
    let lines = |id: &str, end: &str| {
        rows(id).iter().fold(String::new(), |text, line| format!("{text}{line}{end}"))
    };
    let pretty = serde_json::to_string_pretty(&json!([whole("pretty")])).expect("JSON");
    let of_rows = serde_json::to_string_pretty(&rows("of rows")).expect("JSON");
    let spaced = lines("spaced", "\n").replace("{\"t", " { \"t").replace("\":", "\" : ");
    for (id, content) in [
        ("bom", format!("\u{feff}{}", lines("bom", "\n"))),
        ("crlf", lines("crlf", "\r\n")),
        ("blank", lines("blank", "\n\n \t\n")),
        ("spaced", spaced),
        ("no end", lines("no end", "\n").trim_end().to_owned()),
        ("array", json!([whole("array")]).to_string()),
        ("pretty", format!("\u{feff}\r\n{pretty}\r\n")),
        ("of rows", of_rows),
    ] {
        std::fs::write(&file, content).expect("written");
        let imported = run(&app, &["import", &file]).await;
        assert!(imported.status.success(), "{id}: {}", text(&imported.stderr));
        assert!(text(&imported.stdout).starts_with("1 tasks imported"), "{id}");
        let id = id.replace(' ', "%20");
        assert_eq!(app.get(&format!("/v1/tasks/{id}")).await.status, 200, "{id}");
    }
    std::fs::write(&file, "[]").expect("written");
    assert!(run(&app, &["import", &file]).await.status.success());
    // What was imported is exported in lines.
    let exported = run(&app, &["export"]).await;
    assert!(exported.status.success());
    assert_eq!(text(&exported.stdout).lines().count(), 1 + 6 * 4 + 2 * 2);
}

/// An import that fails keeps the batches it has written, and the next import continues.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_import_is_resumed() {
    let app = TestApp::start().await;
    let lines = (0..1300).map(|n| {
        json!({
            "id": format!("t{n:04}"), "agent_id": format!("a{}", n % 3), "source": "api",
            "created_at": format!("2026-01-01T{:02}:{:02}:00Z", n / 60 % 24, n % 60),
            "updated_at": "2026-02-01T00:00:00Z",
            "turns": [{
                "input": { "text": "x" }, "status": "failed", "created_at": "2026-01-01T00:00:00Z"
            }]
        })
        .to_string()
    });
    let (_directory, file) = write_file(lines.collect::<Vec<_>>().join("\n"));
    let constraint = "ALTER TABLE tasks ADD CONSTRAINT broken CHECK (id <> 't1100')";
    cluster::execute(&app.database, constraint).await;
    let failed = run(&app, &["import", &file, "--json"]).await;
    assert_eq!(failed.status.code(), Some(1));
    assert!(
        text(&failed.stderr).contains("Import the file again to continue"),
        "{}",
        text(&failed.stderr)
    );
    assert_eq!(app.get("/v1/tasks").await.ok()["total"], 1000);
    cluster::execute(&app.database, "ALTER TABLE tasks DROP CONSTRAINT broken").await;
    let resumed = run(&app, &["import", &file]).await;
    assert!(
        text(&resumed.stdout).starts_with("300 tasks imported, 1000 existed"),
        "{}",
        text(&resumed.stdout)
    );
    assert_eq!(app.get("/v1/tasks").await.ok()["total"], 1300);
    assert!(run(&app, &["verify"]).await.status.success());
}

/// The first batch waits for a lock. The import says that the second one waits for the first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_tasks_with_one_id_the_first_is_imported() {
    let app = TestApp::start().await;
    let line = |id: String, result: &str| {
        let at = "2026-01-01T00:00:00Z";
        json!({
            "id": id, "agent_id": "a", "source": "api", "created_at": at, "updated_at": at,
            "turns": [{
                "input": { "text": "x" }, "status": "completed", "result": result, "created_at": at
            }]
        })
        .to_string()
    };
    // Three batches of 500 tasks. The first two both have the task `twice`.
    let mut lines: Vec<_> = (0..1501).map(|n| line(format!("t{n:04}"), "only")).collect();
    lines[499] = line("twice".to_owned(), "first");
    lines[500] = line("twice".to_owned(), "second");
    lines.push("{".to_owned());
    let (_directory, file) = write_file(lines.join("\n"));

    // Another transaction inserts the first task, so the first batch waits for its end. It runs no
    // triggers: a lock on the task counts would stop the second batch too.
    let mut other = cluster::connect(&app.database).await;
    let mut transaction = other.begin().await.expect("a transaction");
    let insert = "
        SET LOCAL session_replication_role = replica;
        INSERT INTO tasks (organization_id, id, agent_id, status, source, turns, created_at,
                           updated_at)
        SELECT id, 't0000', 'a', 'pending', 'api', 1, now(), now()
        FROM organizations WHERE name = 'default'";
    sqlx::raw_sql(insert).execute(&mut *transaction).await.expect("a task");

    let log = "task_history::cli=debug";
    let mut command = command(&app, &["import", &file, "--on-error", "skip", "--log", log]);
    let mut import =
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    let mut stderr = BufReader::new(import.stderr.take().expect("piped")).lines();
    let waits = async {
        while let Some(line) = stderr.next_line().await.expect("a pipe") {
            if line.contains("batch waits for those in flight") {
                return;
            }
        }
        panic!("the second batch did not wait");
    };
    tokio::time::timeout(TIMEOUT, waits).await.expect("the second batch waits for the first");
    let mut observer = cluster::connect(&app.database).await;
    let written: i64 = sqlx::query_scalar("SELECT count(*) FROM tasks WHERE id = 'twice'")
        .fetch_one(&mut observer)
        .await
        .expect("a count");
    assert_eq!(written, 0, "the second batch waits for the first");

    transaction.rollback().await.expect("a rollback");
    let imported = tokio::time::timeout(TIMEOUT, import.wait_with_output()).await;
    let imported = imported.expect("it ends").expect("output");
    assert!(
        text(&imported.stdout).starts_with("1500 tasks imported, 1 existed, 1 invalid lines"),
        "{}",
        text(&imported.stdout)
    );
    assert_eq!(app.get("/v1/tasks/twice").await.ok()["result"], "first");
}
