//! Lines that an import refuses.

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{AT, event_line, run, task_line, turn_line, whole, with, write_file};
use crate::support::cluster;
use crate::support::program::text;
use crate::support::test_app::TestApp;

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

/// What the database refuses is one bad line too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_that_the_database_refuses_is_skipped_alone() {
    let app = TestApp::start().await;
    let large = with(whole("refused large"), "/turns/0/result", json!("x".repeat(3 << 20)));
    let lines = [whole("first"), whole("refused"), whole("second"), large, whole("last")];
    let (_directory, file) = write_file(lines.map(|line| line.to_string()).join("\n"));
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
