//! What transfers may cost: memory, and time without a reader.

use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::Child;

use super::{AT, command, event_line, run, task_line, turn_line, whole, with, write_file};
use crate::support::TIMEOUT;
use crate::support::program::text;
use crate::support::test_app::TestApp;

/// A task that is too large for a batch is imported whole or not at all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_task_is_imported_whole_or_not_at_all() {
    let app = TestApp::start().await;
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
    let (_directory, file) = write_file(lines.join("\n"));
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

/// An app with a task that is more than a pipe takes.
async fn app_with_large_task() -> TestApp {
    let app = TestApp::start().await;
    let line = with(whole("t"), "/turns/0/result", json!("x".repeat(1 << 20)));
    let (_directory, file) = write_file(line.to_string());
    run(&app, &["import", &file]).await;
    app
}

/// A reader that stops must not hold the snapshot for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_export_that_nobody_reads_ends() {
    let app = app_with_large_task().await;
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
    let app = app_with_large_task().await;
    let mut command = command(&app, &["export"]);
    let mut export =
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    drop(export.stdout.take());
    let ended = tokio::time::timeout(TIMEOUT, export.wait_with_output()).await;
    let ended = ended.expect("it ends").expect("output");
    assert!(ended.status.success(), "{}", text(&ended.stderr));
    assert_eq!(text(&ended.stderr), "");
}
