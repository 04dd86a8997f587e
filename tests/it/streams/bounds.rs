//! What streams may cost.

use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Executor};
use task_history::domain::TaskId;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};

use super::ends::read_until;
use super::{patient_limits, push_chunks};
use crate::support::program::{DataDirectory, KEY, RunningService};
use crate::support::test_app::TestApp;
use crate::support::{TIMEOUT, cluster};

/// The numbers of the events of each batch, from the first on.
async fn batches(app: &TestApp) -> Vec<Vec<i64>> {
    let id = TaskId::parse("t").expect("an id");
    let mut batches = Vec::new();
    let mut after = 1;
    loop {
        let batch = app.store.read_events(app.organization, &id, after).await.expect("a batch");
        let numbers: Vec<_> = batch.events.iter().map(|event| event.number).collect();
        let Some(last) = numbers.last() else { return batches };
        after = *last;
        batches.push(numbers);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_of_events_is_bounded_in_number_and_in_bytes() {
    let app = TestApp::start_with(patient_limits()).await;
    app.invoke("a", json!({ "id": "t", "input": {} })).await.ok();
    push_chunks(&app, "t", (0..150).map(|n| n.to_string())).await;
    let numbers = batches(&app).await;
    assert_eq!(numbers, [(2..=101).collect::<Vec<_>>(), (102..=151).collect()]);
    // Two of 400 KiB fit into 1 MiB; one of 3 MiB comes alone.
    for kib in [400, 400, 400, 3000, 3000, 1] {
        push_chunks(&app, "t", ["x".repeat(kib << 10)]).await;
    }
    let numbers = batches(&app).await;
    assert_eq!(numbers[1], (102..=153).collect::<Vec<_>>());
    assert_eq!(numbers[2..], [vec![154], vec![155], vec![156], vec![157]]);
}

/// Each step reads the next event by its key. With any other plan a wake-up would read all events
/// of a long task.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reading_events_does_not_depend_on_how_many_there_are() {
    let app = TestApp::start().await;
    app.invoke("a", json!({ "id": "t", "input": {} })).await.ok();
    let fill = "INSERT INTO task_events
                    (organization_id, task_id, event, turn, type, data, created_at)
                SELECT organization_id, id, n, 1, 'chunk', '\"x\"', now()
                FROM tasks, generate_series(2, 20000) AS n";
    for statement in [fill, "ANALYZE"] {
        cluster::execute(&app.database, statement).await;
    }
    let query = statement_with("WITH RECURSIVE batch");
    let mut connection = cluster::connect(&app.database).await;
    connection.execute("SET plan_cache_mode = force_generic_plan").await.expect("a setting");
    let prepare = format!("PREPARE planned (uuid, text, bigint, bigint) AS {query}");
    sqlx::raw_sql(AssertSqlSafe(prepare)).execute(&mut connection).await.expect("a statement");
    let explain = "EXPLAIN (FORMAT JSON) EXECUTE planned (NULL, NULL, NULL, NULL)";
    let plan: Value = sqlx::query_scalar(explain).fetch_one(&mut connection).await.expect("a plan");
    let mut scans = Vec::new();
    collect_scans(&plan[0]["Plan"], "", &mut scans);
    let wanted = [("task_events".to_owned(), "Limit".to_owned(), "task_events_pkey".to_owned())];
    let of_events: Vec<_> = scans.iter().filter(|scan| scan.0 == "task_events").cloned().collect();
    assert_eq!(of_events, wanted, "{plan:#}");
}

/// The committed statement that contains a text.
fn statement_with(text: &str) -> String {
    let directory = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(".sqlx");
    let mut found = std::fs::read_dir(directory).expect("a directory").filter_map(|entry| {
        let file = std::fs::read_to_string(entry.expect("an entry").path()).expect("a file");
        let data: Value = serde_json::from_str(&file).expect("JSON");
        data["query"].as_str().filter(|query| query.contains(text)).map(str::to_owned)
    });
    found.next().expect("a statement")
}

/// Table, node above and index of each scan of a table.
fn collect_scans(node: &Value, above: &str, scans: &mut Vec<(String, String, String)>) {
    let text = |name: &str| node[name].as_str().unwrap_or_default().to_owned();
    let kind = text("Node Type");
    if !text("Relation Name").is_empty() {
        scans.push((text("Relation Name"), above.to_owned(), text("Index Name")));
    }
    for child in node["Plans"].as_array().into_iter().flatten() {
        collect_scans(child, &kind, scans);
    }
}

const STALLED: usize = 20;

/// Twenty readers that stopped reading, and one that reads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stalled_streams_of_large_events_cost_little_memory() {
    let directory = DataDirectory::new();
    let service = directory.serve().await;
    service.record("t").await;
    let before = resident_kib(&service, "VmRSS:");
    let mut stalled = Vec::new();
    for _ in 0..STALLED {
        let mut connection = open_events(&service, 4096).await;
        read_until(&mut connection, &mut String::new(), "task_created").await;
        stalled.push(connection);
    }
    let mut reading = open_events(&service, 1 << 20).await;
    for n in 0..5 {
        let end = format!("end of {n}");
        let events = json!([{ "type": "chunk", "data": "x".repeat(4_100_000) + &end }]);
        let pushed = reqwest::Client::new()
            .post(format!("{}/agent-execution/t/events/push", service.base))
            .header("x-api-key", KEY)
            .json(&events)
            .timeout(TIMEOUT);
        assert!(pushed.send().await.expect("an answer").status().is_success());
        read_until(&mut reading, &mut String::new(), &end).await;
    }
    let cost = resident_kib(&service, "VmRSS:").saturating_sub(before) >> 10;
    assert!(cost < 100, "{STALLED} stalled streams cost {cost} MiB");
    drop((stalled, reading));
    service.stop().await;
}

async fn open_events(service: &RunningService, receive_buffer: u32) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.set_recv_buffer_size(receive_buffer).expect("a small buffer");
    let address = ([127, 0, 0, 1], service.port).into();
    let mut connection = socket.connect(address).await.expect("a connection");
    let request = format!(
        "GET /agent-execution/t/events HTTP/1.1\r\nhost: localhost\r\nx-api-key: {KEY}\r\n\r\n"
    );
    connection.write_all(request.as_bytes()).await.expect("sent");
    connection
}

/// A value of the service's process, in KiB.
fn resident_kib(service: &RunningService, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", service.pid()));
    let status = status.expect("a process");
    let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a value");
    line.trim().strip_suffix(" kB").and_then(|text| text.parse().ok()).expect("a number")
}
