//! `task-history export` and `task-history import`.

mod bad_lines;
mod bounds;
mod round_trip;

use std::process::Output;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;

use crate::support::test_app::TestApp;
use crate::support::{cluster, program};

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

/// A file with a text, and the directory that keeps it.
fn write_file(text: impl AsRef<[u8]>) -> (TempDir, String) {
    let directory = TempDir::new().expect("a directory");
    let file = directory.path().join("tasks.ndjson");
    std::fs::write(&file, text).expect("written");
    (directory, file.display().to_string())
}
