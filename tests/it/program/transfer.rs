//! `task-history export` and `task-history import`.

use std::process::{Output, Stdio};

use serde_json::{Value, json};
use sqlx::Connection;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};

use crate::support::program::{self, text};
use crate::support::test_app::TestApp;
use crate::support::{TIMEOUT, cluster};

/// The program with arguments, on the app's database.
fn command(app: &TestApp, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_task-history"));
    command.args(arguments).env("DATABASE_URL", cluster::url_of(&app.database)).kill_on_drop(true);
    command
}

/// Runs the program on the app's database to its end.
async fn run(app: &TestApp, arguments: &[&str]) -> Output {
    program::run(command(app, arguments)).await
}

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
    let directory = TempDir::new().expect("a directory");
    let file = directory.path().join("tasks.ndjson");
    // One task has another result in the file, one has a new id, and each line is there twice.
    let changed = before.replace("third", "other").replace(r#""id":"stopped""#, r#""id":"new""#);
    std::fs::write(&file, format!("{changed}{changed}\n\n")).expect("written");
    let imported = run(&app, &["import", &file.display().to_string(), "--json"]).await;
    let summary: Value = serde_json::from_str(text(&imported.stdout)).expect("JSON");
    assert_eq!((&summary["imported"], &summary["existing"]), (&json!(1), &json!(5)));
    app.request("DELETE", "/v1/tasks/new", None).await;
    assert_eq!(text(&run(&app, &["export"]).await.stdout), before);
}

const AT: &str = "2026-01-01T00:00:00Z";

/// A task of version 1: one line, with one turn.
fn whole(id: &str) -> Value {
    json!({
        "id": id, "agent_id": "a", "source": "api", "created_at": AT, "updated_at": AT,
        "turns": [{ "input": { "text": "x" }, "status": "completed", "created_at": AT }]
    })
}

/// The line of a task.
fn task_line(id: &str, turns: i32, events: i64) -> Value {
    json!({ "task": {
        "id": id, "agent_id": "a", "source": "api", "created_at": AT, "updated_at": AT,
        "turns": turns, "events": events
    } })
}

/// The line of a turn.
fn turn_line(number: i32) -> Value {
    json!({ "turn": {
        "number": number, "input": { "text": "x" }, "status": "completed", "created_at": AT
    } })
}

/// The line of an event.
fn event_line(number: i64) -> Value {
    json!({ "event": {
        "number": number, "turn": 1, "type": "chunk", "data": "x", "created_at": AT
    } })
}

/// A value with one place in it replaced.
fn with(mut value: Value, pointer: &str, new: Value) -> Value {
    let (parent, name) = pointer.rsplit_once('/').expect("a pointer");
    match value.pointer_mut(parent).expect("a place") {
        Value::Object(fields) => {
            fields.insert(name.to_owned(), new);
        }
        Value::Array(items) => items[name.parse::<usize>().expect("an index")] = new,
        _ => panic!("nothing is at {parent}"),
    }
    value
}

/// Bad tasks: their lines, which of the lines is named, and part of the reason.
#[expect(clippy::too_many_lines, reason = "a table")]
fn bad_tasks() -> Vec<(Vec<Vec<u8>>, usize, &'static str)> {
    let one = |value: Value, reason| (vec![value.to_string().into_bytes()], 0, reason);
    let raw = |line: &[u8], reason| (vec![line.to_vec()], 0, reason);
    let rows = |lines: Vec<Value>, named, reason| {
        (lines.iter().map(|line| line.to_string().into_bytes()).collect(), named, reason)
    };
    let turn = |pointer: &str, new: Value, reason| {
        rows(vec![task_line("bad", 1, 0), with(turn_line(1), pointer, new)], 1, reason)
    };
    let event = |pointer: &str, new: Value, reason| {
        let event = with(event_line(1), pointer, new);
        rows(vec![task_line("bad", 1, 1), turn_line(1), event], 2, reason)
    };
    let nested = |levels| {
        let open = "[".repeat(levels) + &"]".repeat(levels);
        let line = event_line(1).to_string().replace("\"data\":\"x\"", &format!("\"data\":{open}"));
        let lines = [task_line("bad", 1, 1).to_string(), turn_line(1).to_string(), line];
        lines.map(String::into_bytes).to_vec()
    };
    let finished = json!({
        "status": "completed", "internal_status": null, "result": null,
        "last_executed_node_id": null, "is_manually_stopped": false,
        "started_at": null, "paused_at": null, "finished_at": AT
    });
    let state = |kind: &str, data: Value, reason| {
        let event = with(with(event_line(1), "/event/type", json!(kind)), "/event/data", data);
        rows(vec![task_line("bad", 1, 1), turn_line(1), event], 2, reason)
    };
    vec![
        // At the beginning of the file, where no task is before it.
        rows(vec![turn_line(1)], 0, "after the line of its task"),
        // No record at all.
        raw(b"{", "EOF while parsing"),
        raw("\u{fffd}".as_bytes(), "expected value"),
        raw(b"{\"id\":\"\xff\"}", "not UTF-8"),
        raw(b"[]", "invalid"),
        one(json!({}), "missing field"),
        one(json!({ "task": {}, "more": 1 }), "missing field `id`"),
        one(json!({ "export": { "version": 3 } }), "a newer version of task-history wrote"),
        // Tasks.
        one(with(whole("bad"), "/id", json!("x".repeat(256))), "at most 255 characters"),
        one(with(whole("bad"), "/id", json!("")), "must not be empty"),
        one(with(whole("bad"), "/agent_id", Value::Null), "invalid type: null"),
        one(with(whole("bad"), "/title", json!("a\0b")), "contains NUL"),
        one(with(whole("bad"), "/turns", json!([])), "at least one turn"),
        one(with(whole("bad"), "/created_at", json!("yesterday")), "invalid characters"),
        one(with(whole("bad"), "/unheard_of", json!(1)), "unknown field `unheard_of`"),
        one(with(whole("bad"), "/turns/0/status", json!("done")), "unknown variant `done`"),
        one(with(whole("bad"), "/turns/0/number", json!(1)), "unknown field `number`"),
        one(with(whole("bad"), "/turns/0/unheard_of", json!(1)), "unknown field `unheard_of`"),
        one(
            with(whole("bad"), "/events", json!([event_line(0)["event"]])),
            "events are numbered from 1",
        ),
        one(
            with(
                whole("bad"),
                "/events",
                json!([with(event_line(1), "/event/turn", json!(2))["event"]]),
            ),
            "the task has no turn 2",
        ),
        one(with(task_line("bad", 1, 0), "/task/turns", json!(0)), "at least one turn"),
        one(with(task_line("bad", 1, 0), "/task/turns", json!(1_i64 << 31)), "invalid"),
        one(with(task_line("bad", 1, 0), "/task/events", json!(-1)), "at least 0"),
        one(with(task_line("bad", 1, 0), "/task/last_event", json!(i64::MAX)), "must be at most"),
        one(with(task_line("bad", 3, 0), "/task/last_event", json!(2)), "number of turns"),
        one(
            with(task_line("bad", 1, 0), "/task/updated_at", json!("+10000-01-01T00:00:00Z")),
            "1 to 9999",
        ),
        one(
            with(task_line("bad", 1, 0), "/task/updated_at", json!("0000-12-31T00:00:00Z")),
            "1 to 9999",
        ),
        one(with(task_line("bad", 1, 0), "/task/color", json!("red")), "unknown field `color`"),
        // Turns.
        turn("/turn/number", json!(2), "1 is expected, not 2"),
        turn("/turn/number", json!(0), "1 is expected, not 0"),
        turn("/turn/status", json!("done"), "unknown variant `done`"),
        turn("/turn/color", json!("red"), "unknown field `color`"),
        turn("/turn/input", json!({ "text": "a\0b" }), "contains NUL"),
        turn("/turn/input", json!({ "text": 5 }), "invalid type"),
        turn("/turn/input", json!({ "txt": "x" }), "unknown field `txt`"),
        turn(
            "/turn/input",
            json!({ "user": { "email": "e", "color": 1 } }),
            "unknown field `color`",
        ),
        turn("/turn/input", json!({ "principal": [] }), "invalid type: sequence"),
        turn("/turn/request", json!({ "color": "red" }), "unknown field `color`"),
        turn("/turn/request", json!({ "think_mode": "hard" }), "unknown variant `hard`"),
        turn("/turn/request", json!({ "tool_call_limit": 1.5 }), "invalid"),
        turn("/turn/reported", json!({ "color": "red" }), "unknown field `color`"),
        turn("/turn/reported", json!({ "tokens": { "a\0": 1 } }), "contains NUL"),
        turn("/turn/internal_status", json!("x".repeat(256)), "at most 255 characters"),
        turn("/turn/result", json!("a\0b"), "contains NUL"),
        turn("/turn/finished_at", json!("9999-12-31T23:59:59-01:00"), "1 to 9999"),
        rows(vec![task_line("bad", 2, 0), turn_line(1)], 0, "but 1 and 0 follow"),
        rows(vec![task_line("bad", 1, 1), turn_line(1)], 0, "but 1 and 0 follow"),
        rows(vec![task_line("bad", 1, 0), turn_line(1), turn_line(2)], 2, "only 1 turns"),
        rows(vec![task_line("bad", 1, 1), event_line(1), turn_line(1)], 1, "come after the turns"),
        rows(vec![task_line("bad", 2, 0), turn_line(1), turn_line(1)], 2, "2 is expected, not 1"),
        // Events.
        rows(vec![task_line("bad", 1, 0), turn_line(1), event_line(1)], 2, "only 0 events"),
        rows(
            vec![task_line("bad", 1, 2), turn_line(1), event_line(2), event_line(2)],
            3,
            "numbered from 1 and in order",
        ),
        rows(
            vec![
                with(task_line("bad", 1, 1), "/task/last_event", json!(5)),
                turn_line(1),
                event_line(6),
            ],
            2,
            "`last_event` of the task is 5",
        ),
        event("/event/number", json!(0), "events are numbered from 1"),
        event("/event/number", json!(i64::MAX), "events are numbered from 1"),
        event("/event/turn", json!(0), "the task has no turn 0"),
        event("/event/turn", json!(2), "the task has no turn 2"),
        event("/event/type", json!("x".repeat(256)), "at most 255 characters"),
        event("/event/data", json!([["a\0"]]), "contains NUL"),
        event("/event/created_at", json!("-0001-01-01T00:00:00Z"), "1 to 9999"),
        event("/event/color", json!("red"), "unknown field `color`"),
        (nested(200), 2, "recursion limit exceeded"),
        (nested(100_000), 2, "recursion limit exceeded"),
        event("/event/data", json!({ "$serde_json::private::Number": "x" }), "reserved"),
        event("/event/data", json!({ "$serde_json::private::RawValue": "x" }), "reserved"),
        state("task_finished", json!({ "free": "data" }), "missing field"),
        state("task_updated", json!("x"), "invalid type"),
        state("task_updated", finished.clone(), "does not belong to an event of type"),
        state(
            "task_finished",
            with(finished, "/finished_at", json!("+10000-01-01T00:00:00Z")),
            "1 to 9999",
        ),
    ]
}

/// Each bad task is named with its line and why; the tasks between them are imported.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_lines_are_named() {
    let app = TestApp::start().await;
    let bad = bad_tasks();
    let mut file = Vec::new();
    let mut expected = Vec::new();
    let mut line = 1;
    let push = |file: &mut Vec<u8>, text: &[u8]| {
        file.extend_from_slice(text);
        file.push(b'\n');
    };
    for (number, (lines, named, reason)) in bad.iter().enumerate() {
        expected.push((line + named, *reason));
        for text in lines {
            push(&mut file, text);
        }
        // Neighbors of both versions.
        if number % 2 == 0 {
            push(&mut file, whole(&format!("good{number}")).to_string().as_bytes());
            line += lines.len() + 1;
        } else {
            push(&mut file, task_line(&format!("good{number}"), 1, 0).to_string().as_bytes());
            push(&mut file, turn_line(1).to_string().as_bytes());
            line += lines.len() + 2;
        }
    }
    let directory = TempDir::new().expect("a directory");
    let path = directory.path().join("tasks.ndjson").display().to_string();
    std::fs::write(&path, &file).expect("written");

    for mode in [["--dry-run", "--json"], ["--on-error", "skip"]] {
        let mut arguments = vec!["import", &path, "--on-error", "skip", "--json"];
        if mode[0] == "--dry-run" {
            arguments.push("--dry-run");
        }
        let skipped = run(&app, &arguments).await;
        let told = text(&skipped.stderr);
        assert_eq!(skipped.status.code(), Some(3), "{told}");
        let summary: Value = serde_json::from_str(text(&skipped.stdout)).expect("JSON");
        assert_eq!(
            (&summary["imported"], &summary["invalid"]),
            (&json!(bad.len()), &json!(bad.len()))
        );
        for (told, (line, reason)) in told.lines().zip(&expected) {
            assert!(told.starts_with(&format!("line {line}, column ")), "line {line}: {told}");
            assert!(told.contains(" is skipped: ") && told.contains(reason), "{reason}: {told}");
        }
        assert_eq!(told.lines().count(), bad.len(), "{told}");
        let total = if mode[0] == "--dry-run" { 0 } else { bad.len() };
        assert_eq!(app.get("/v1/tasks").await.ok()["total"], total);
    }
    assert_eq!(app.get("/v1/tasks/bad").await.status, 404);
    assert!(run(&app, &["verify"]).await.status.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_import_stops_at_a_bad_line() {
    let app = TestApp::start().await;
    let directory = TempDir::new().expect("a directory");
    let file = directory.path().join("tasks.ndjson").display().to_string();
    let second_turn = with(turn_line(2), "/turn/status", json!("done")).to_string();
    let column = second_turn.find("done").expect("there") + "done\"".len();
    let lines = [
        whole("before").to_string(),
        task_line("bad", 2, 0).to_string(),
        turn_line(1).to_string(),
        second_turn,
        whole("after").to_string(),
    ];
    std::fs::write(&file, lines.join("\n")).expect("written");
    let stopped = run(&app, &["import", &file]).await;
    assert_eq!(stopped.status.code(), Some(1));
    let told = text(&stopped.stderr);
    assert!(told.contains(&format!("line 4, column {column}: unknown variant `done`")), "{told}");
    assert!(told.contains("(in task `bad` of line 2)"), "{told}");
    assert_eq!(app.get("/v1/tasks/before").await.status, 200);
    assert_eq!(app.get("/v1/tasks/bad").await.status, 404);
    assert_eq!(app.get("/v1/tasks/after").await.status, 404);
    let missing = run(&app, &["import", "/no/such/file"]).await;
    assert!(text(&missing.stderr).contains("cannot read /no/such/file"));

    // A file that was cut off.
    std::fs::write(&file, &whole("cut").to_string()[..40]).expect("written");
    let stopped = run(&app, &["import", &file]).await;
    assert!(text(&stopped.stderr).contains("the file may be cut off"), "{}", text(&stopped.stderr));
    // A line that is longer than any record may be, and a task after it.
    let mut long = vec![b'x'; (64 << 20) + 1];
    long.extend_from_slice(format!("\n{}\n", whole("after a long line")).as_bytes());
    std::fs::write(&file, long).expect("written");
    let skipped = run(&app, &["import", &file, "--on-error", "skip"]).await;
    assert_eq!(skipped.status.code(), Some(3), "{}", text(&skipped.stderr));
    let told = text(&skipped.stderr);
    assert!(told.starts_with("line 1, column 1 is skipped: it is longer than 64 MiB"), "{told}");
    assert!(text(&skipped.stdout).starts_with("1 tasks imported, 0 existed, 1 invalid lines"));
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

/// A dry run tells what an import would do, also of an organization that does not exist.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dry_run_writes_nothing() {
    let app = TestApp::start().await;
    let directory = TempDir::new().expect("a directory");
    let file = directory.path().join("tasks.ndjson").display().to_string();
    std::fs::write(&file, whole("first").to_string()).expect("written");
    run(&app, &["import", &file]).await;
    let large = json!("x".repeat(3 << 20));
    let lines = [
        whole("first"),
        task_line("large", 1, 0),
        with(turn_line(1), "/turn/result", large.clone()),
        with(with(whole("first"), "/id", json!("whole")), "/turns/0/result", large),
    ];
    std::fs::write(&file, lines.map(|line| line.to_string()).join("\n")).expect("written");
    for (organization, expected) in [("default", [2, 1]), ("nobody", [3, 0])] {
        let arguments = ["import", &file, "--dry-run", "--json", "--organization", organization];
        let checked = run(&app, &arguments).await;
        assert!(checked.status.success(), "{}", text(&checked.stderr));
        let summary: Value = serde_json::from_str(text(&checked.stdout)).expect("JSON");
        let counts = [&summary["imported"], &summary["existing"]];
        assert_eq!(counts.map(Value::as_u64), expected.map(Some));
        assert_eq!(summary["dry_run"], true);
    }
    assert_eq!(app.get("/v1/tasks").await.ok()["total"], 1);
    let unknown = run(&app, &["export", "--organization", "nobody"]).await;
    assert!(text(&unknown.stderr).contains("there is no organization `nobody`"));
    let checked = run(&app, &["import", &file, "--dry-run"]).await;
    assert_eq!(
        text(&checked.stdout),
        "Dry run, nothing was written: 2 tasks would be imported, 1 exist, 0 invalid lines.\n"
    );
}

/// A task that is too large for a batch is imported whole or not at all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_task_is_imported_whole_or_not_at_all() {
    let app = TestApp::start().await;
    let directory = TempDir::new().expect("a directory");
    let file = directory.path().join("tasks.ndjson").display().to_string();
    let turn = |number: i32| with(turn_line(number), "/turn/result", json!("x".repeat(1 << 20)));
    let complete = |id: &str| -> Vec<Value> {
        let turns = (1..=4).map(turn);
        [task_line(id, 4, 2)]
            .into_iter()
            .chain(turns)
            .chain([event_line(9), event_line(12)])
            .collect()
    };
    let mut lines = vec![whole("first")];
    let mut broken = complete("broken");
    broken[4]["turn"]["status"] = json!("done");
    lines.extend(broken);
    lines.extend(complete("large"));
    lines.extend(complete("short").into_iter().take(4));
    let mut whole_task = whole("whole");
    whole_task["turns"] = (0..4)
        .map(|_| {
            with(whole("w"), "/turns/0/result", json!("y".repeat(1 << 20)))["turns"][0].clone()
        })
        .collect();
    lines.push(whole_task.clone());
    whole_task["id"] = json!("whole and broken");
    whole_task["turns"][3]["color"] = json!("red");
    lines.push(whole_task);
    lines.push(whole("last"));
    let lines: Vec<_> = lines.iter().map(Value::to_string).collect();
    std::fs::write(&file, lines.join("\n")).expect("written");
    let imported = run(&app, &["import", &file, "--on-error", "skip"]).await;
    let told = text(&imported.stderr);
    assert_eq!(imported.status.code(), Some(3), "{told}");
    assert!(
        text(&imported.stdout).starts_with("4 tasks imported, 0 existed, 3 invalid lines"),
        "{} {told}",
        text(&imported.stdout)
    );
    let again = run(&app, &["import", &file, "--on-error", "skip"]).await;
    assert!(text(&again.stdout).starts_with("0 tasks imported, 4 existed, 3 invalid lines"));
    for (id, status) in [
        ("first", 200),
        ("broken", 404),
        ("large", 200),
        ("short", 404),
        ("whole", 200),
        ("whole%20and%20broken", 404),
        ("last", 200),
    ] {
        assert_eq!(app.get(&format!("/v1/tasks/{id}")).await.status, status, "{id}");
    }
    let large = app.get("/v1/tasks/large").await.ok();
    assert_eq!(large["result"].as_str().map(str::len), Some(1 << 20));
    let list = app.get("/v1/tasks").await.ok();
    assert!(list["items"].as_array().expect("items").iter().all(|task| task["title"] == "x"));
    assert_eq!(app.get("/v1/tasks").await.ok()["total"], 4);
    assert!(run(&app, &["verify"]).await.status.success());
}

/// What the database refuses is one bad line too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_that_the_database_refuses_is_skipped_alone() {
    let app = TestApp::start().await;
    let directory = TempDir::new().expect("a directory");
    let file = directory.path().join("tasks.ndjson").display().to_string();
    let large = with(whole("refused large"), "/turns/0/result", json!("x".repeat(3 << 20)));
    let lines = [whole("first"), whole("refused"), whole("second"), large, whole("last")];
    std::fs::write(&file, lines.map(|line| line.to_string()).join("\n")).expect("written");
    let constraint = "ALTER TABLE tasks ADD CONSTRAINT broken CHECK (id NOT LIKE 'refused%')";
    cluster::execute(&app.database, constraint).await;
    let imported = run(&app, &["import", &file, "--on-error", "skip"]).await;
    let told = text(&imported.stderr);
    assert_eq!(imported.status.code(), Some(3), "{told}");
    for refused in [
        "line 2, column 1 is skipped: the database refuses task `refused`",
        "line 4, column 1 is skipped: the database refuses task `refused large`",
    ] {
        assert!(told.contains(refused), "{told}");
    }
    assert!(text(&imported.stdout).starts_with("3 tasks imported, 0 existed, 2 invalid lines"));
    assert_eq!(app.get("/v1/tasks").await.ok()["total"], 3);
}

/// Most memory that a process may have used, in KiB.
const MAX_RESIDENT: u64 = 100 << 10;

/// The highest memory use of a process so far, in KiB.
fn peak_resident(process: &Child) -> u64 {
    let id = process.id().expect("it runs");
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).expect("it runs");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("a peak");
    line.split_whitespace().nth(1).and_then(|text| text.parse().ok()).expect("a number")
}

/// A turn of 4 MiB: a text, or in the first turn many short values, which would take 150 MiB if they
/// were parsed.
fn extreme_turn(number: usize) -> String {
    let letter = char::from(b'a' + u8::try_from(number % 26).expect("a letter"));
    let (text, values) = match number {
        1 => (String::new(), "0,".repeat(2 << 20)),
        _ => (letter.to_string().repeat(4 << 20), String::new()),
    };
    format!(r#"{{"turn":{{"number":{number},"input":{{"text":"{text}","files":null,"user":null}},"#)
        + &format!(r#""request":{{"payload_extension":{{"values":[{values}0]}}}},"#)
        + &format!(r#""status":"completed","created_at":"{AT}"}}}}"#)
}

/// Neither the export nor the import of a task takes more memory the more it weighs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_of_any_size_is_transferred_in_little_memory() {
    const TURNS: usize = 16;
    let app = TestApp::start().await;
    let header =
        format!(r#"{{"task":{{"id":"extreme","agent_id":"a","source":"api","created_at":"{AT}","#)
            + &format!(r#""updated_at":"{AT}","turns":{TURNS},"last_event":{TURNS}}}}}"#);
    let mut command_line = command(&app, &["import", "--on-error", "skip"]);
    command_line.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut import = command_line.spawn().expect("it starts");
    let mut input = import.stdin.take().expect("piped");
    let mut told = BufReader::new(import.stderr.take().expect("piped")).lines();
    let feed = async {
        input.write_all(format!("{header}\n").as_bytes()).await.expect("read");
        for number in 1..=TURNS {
            input.write_all(extreme_turn(number).as_bytes()).await.expect("read");
            input.write_all(b"\n").await.expect("read");
        }
        // Something that is small but more than a pipe takes; then a bad line that is told.
        let last = with(whole("zlast"), "/turns/0/result", json!("z".repeat(1 << 20)));
        input.write_all(format!("{last}\n{{\n").as_bytes()).await.expect("read");
        let bad = format!("line {}, column ", TURNS + 3);
        while !told.next_line().await.expect("a pipe").expect("a line").starts_with(&bad) {}
    };
    tokio::time::timeout(TIMEOUT, feed).await.expect("it reads");
    let peak = peak_resident(&import);
    assert!(peak < MAX_RESIDENT, "the import takes {peak} KiB");
    drop(input);
    let imported = tokio::time::timeout(TIMEOUT, import.wait_with_output()).await;
    let imported = imported.expect("it ends").expect("output");
    assert!(text(&imported.stdout).starts_with("2 tasks imported"), "{}", text(&imported.stdout));

    let mut command_line = command(&app, &["export"]);
    let mut export = command_line.stdout(Stdio::piped()).spawn().expect("it starts");
    let mut lines = BufReader::new(export.stdout.take().expect("piped")).lines();
    let mut next = async || {
        let line = tokio::time::timeout(TIMEOUT, lines.next_line()).await.expect("it writes");
        line.expect("a pipe").expect("a line")
    };
    assert_eq!(next().await, r#"{"export":{"version":2}}"#);
    assert_eq!(next().await, header);
    for number in 1..=TURNS {
        assert!(next().await == extreme_turn(number), "turn {number} is as it was");
    }
    // The last task is more than the pipe takes, so the export still runs.
    let peak = peak_resident(&export);
    assert!(peak < MAX_RESIDENT, "the export takes {peak} KiB");
    assert!(next().await.starts_with("{\"task\":{\"id\":\"zlast\""));
    assert!(next().await.contains("zzz"));
    let status = tokio::time::timeout(TIMEOUT, export.wait()).await.expect("it ends");
    assert!(status.expect("a child").success());
}

/// A reader that stops must not hold the snapshot for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_export_that_nobody_reads_ends() {
    let app = TestApp::start().await;
    let directory = TempDir::new().expect("a directory");
    let file = directory.path().join("tasks.ndjson").display().to_string();
    let line = with(whole("t"), "/turns/0/result", json!("x".repeat(1 << 20)));
    std::fs::write(&file, line.to_string()).expect("written");
    run(&app, &["import", &file]).await;
    let mut command = command(&app, &["export", "--stall-timeout", "200ms"]);
    let mut export =
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    let unread = export.stdout.take().expect("piped");
    let ended = tokio::time::timeout(TIMEOUT, export.wait_with_output()).await;
    let ended = ended.expect("it ends").expect("output");
    drop(unread);
    assert_eq!(ended.status.code(), Some(1));
    let told = text(&ended.stderr);
    assert!(told.contains("the output took nothing for 200ms"), "{told}");
}

/// `head` ends an export without an error.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_export_ends_with_its_reader() {
    let app = TestApp::start().await;
    let directory = TempDir::new().expect("a directory");
    let file = directory.path().join("tasks.ndjson").display().to_string();
    let line = with(whole("t"), "/turns/0/result", json!("x".repeat(1 << 20)));
    std::fs::write(&file, line.to_string()).expect("written");
    run(&app, &["import", &file]).await;
    let mut command = command(&app, &["export"]);
    let mut export =
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    drop(export.stdout.take());
    let ended = tokio::time::timeout(TIMEOUT, export.wait_with_output()).await;
    let ended = ended.expect("it ends").expect("output");
    assert!(ended.status.success(), "{}", text(&ended.stderr));
    assert_eq!(text(&ended.stderr), "");
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
    let directory = TempDir::new().expect("a directory");
    let file = directory.path().join("tasks.ndjson").display().to_string();
    std::fs::write(&file, lines.collect::<Vec<_>>().join("\n")).expect("written");
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
    let directory = TempDir::new().expect("a directory");
    let file = directory.path().join("tasks.ndjson").display().to_string();
    std::fs::write(&file, lines.join("\n")).expect("written");

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
