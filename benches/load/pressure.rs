//! What clients cost that do not read, and what an organization feels of a busy one.

use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;

use crate::Bench;
use crate::data::unique_id;
use crate::data_set::DataSet;
use crate::database;
use crate::http::{Client, Sample, get, load, with_body};
use crate::report::{Cell, Section};

/// Streams whose readers stall.
const STALLED_STREAMS: usize = 20;

/// Lists whose readers stall.
const STALLED_LISTS: usize = 6;

/// Bytes of the largest texts and events that a body can have.
const LARGE: usize = 4_100_000;

/// How long the readers stall. A client that takes no byte is cut off after ten seconds.
const STALL: Duration = Duration::from_secs(15);

/// The shortest and the longest time beside the busy organization.
const PRESSURE: [Duration; 2] = [Duration::from_secs(5), Duration::from_mins(1)];

/// Connections of the busy organization that send turns of 4 MiB, push events, and report.
const SENDERS: usize = 16;
const PUSHERS: usize = 32;
const REPORTERS: usize = 2;

pub(crate) async fn measure(bench: &mut Bench, data_set: &DataSet) -> anyhow::Result<()> {
    measure_stalled_readers(bench, data_set).await?;
    measure_neighbor(bench, data_set).await
}

async fn measure_stalled_readers(bench: &mut Bench, data_set: &DataSet) -> anyhow::Result<()> {
    bench.log(&format!("{STALLED_STREAMS} streams and {STALLED_LISTS} lists that nobody reads"));
    let (_, key) = data_set.create_organization(bench, "stalled").await?;
    // The readers have a service of their own, so that its memory is theirs.
    let service = data_set.service.start_second(&bench.programs).await?;
    let mut client = Client::connect(data_set.service.port).await?;
    let text = "x".repeat(LARGE);
    let ids: Vec<_> = (0..50).map(|_| unique_id().to_string()).collect();
    for id in &ids {
        let body = json!({ "id": id, "input": { "text": text } }).to_string();
        client.send(&with_body("POST", &key, "/v1/agents/large/invoke/async", &body)).await?;
    }
    let before = service.memory()?.resident;
    let mut readers = Vec::new();
    for _ in 0..STALLED_LISTS {
        let list = get(&key, "/v1/agents/large/tasks?per_page=50");
        readers.push(send_and_stall(service.port, &list).await?);
    }
    for _ in 0..STALLED_STREAMS {
        let stream = get(&key, &format!("/agent-execution/{}/events", ids[0]));
        readers.push(send_and_stall(service.port, &stream).await?);
    }
    let mut peak = before;
    let started = Instant::now();
    let push = format!("/agent-execution/{}/events/push", ids[0]);
    let event = json!([{ "type": "chunk", "data": text }]).to_string();
    let push = with_body("POST", &key, &push, &event);
    let mut pushed = 0;
    while started.elapsed() < STALL {
        if pushed < STALLED_STREAMS {
            client.send(&push).await?;
            pushed += 1;
        }
        peak = peak.max(service.memory()?.resident);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let after = service.memory()?.resident;
    drop(readers);
    service.stop().await?;
    let title = format!("{STALLED_STREAMS} streams and {STALLED_LISTS} lists that nobody reads");
    let mut section = Section::new(title, &["when", "MiB"]);
    let name = format!("after {} s", STALL.as_secs());
    for (when, memory) in [("before", before), ("peak", peak), (name.as_str(), after)] {
        section.push_row(vec![Cell::from(when), Cell::Number(memory, 1)]);
    }
    bench.report.add_section(section);
    bench.report.set_measured("stalled", peak - before);
    Ok(())
}

/// Sends a request and never reads the response.
async fn send_and_stall(port: u16, request: &[u8]) -> anyhow::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(4096)?;
    let mut stream = socket.connect(([127, 0, 0, 1], port).into()).await?;
    stream.write_all(request).await?;
    Ok(stream)
}

async fn measure_neighbor(bench: &mut Bench, data_set: &DataSet) -> anyhow::Result<()> {
    let sub_tasks = (bench.options.tasks / 6).min(150_000);
    bench.log(&format!("a quiet organization beside a busy one that deletes {sub_tasks} tasks"));
    let port = data_set.service.port;
    let (busy, busy_key) = data_set.create_organization(bench, "busy").await?;
    let (_, key) = data_set.create_organization(bench, "quiet").await?;
    let root = unique_id().to_string();
    let mut connection = database::connect(&data_set.service).await?;
    database::execute(
        &mut connection,
        &format!(
            "INSERT INTO tasks (organization_id, id, agent_id, parent_task_id, status, source,
                                turns, events, created_at, updated_at)
             SELECT '{busy}', CASE n WHEN 0 THEN '{root}' ELSE '{root}-' || n END, 'tree',
                    CASE WHEN n > 0 THEN '{root}' END, 'pending', 'load', 1, 1, now(), now()
             FROM generate_series(0, {sub_tasks}) AS n;
             INSERT INTO task_turns (organization_id, task_id, turn, input, request, status,
                                     is_manually_stopped, created_at)
             SELECT organization_id, id, 1, '{{}}', '{{}}', 'pending', false, created_at
             FROM tasks WHERE organization_id = '{busy}'"
        ),
    )
    .await?;
    drop(connection);
    let alone = Neighbor::measure(port, &key, PRESSURE[0]).await?;
    let mut pressure = start_pressure(port, &busy_key, &root);
    let deletion = {
        let request = get(&busy_key, &format!("/v1/tasks/{root}"));
        let request = [b"DELETE".as_slice(), &request[3..]].concat();
        tokio::spawn(async move {
            let started = Instant::now();
            let mut client = Client::connect(port).await?;
            let status = client.status(&request).await?;
            ensure!(status == 204, "the deletion was answered with {status}");
            anyhow::Ok(started.elapsed())
        })
    };
    let mut beside = Neighbor::default();
    let started = Instant::now();
    while started.elapsed() < PRESSURE[0]
        || (!deletion.is_finished() && started.elapsed() < PRESSURE[1])
    {
        beside.merge(Neighbor::measure(port, &key, Duration::from_secs(1)).await?);
    }
    let deletion = deletion.await??;
    pressure.shutdown().await;
    let title = format!(
        "A quiet organization beside one that deletes {sub_tasks} tasks in {:.1} s, pushes from \
         {PUSHERS} connections, and sends 4 MiB from {SENDERS}",
        deletion.as_secs_f64()
    );
    let columns = ["requests", "alone p50", "alone max", "beside p50", "beside max"];
    let mut section = Section::new(title, &columns);
    for (name, alone, beside) in
        [("write", &alone.writes, &beside.writes), ("list", &alone.lists, &beside.lists)]
    {
        let mut cells = vec![Cell::from(name)];
        for sample in [alone, beside] {
            cells.extend([50.0, 100.0].map(|part| Cell::Number(sample.percentile(part), 1)));
        }
        section.push_row(cells);
    }
    bench.report.add_section(section);
    bench.report.set_measured("neighbor-write", beside.writes.percentile(100.0));
    bench.report.set_measured("neighbor-list", beside.lists.percentile(100.0));
    Ok(())
}

/// What a quiet organization sees: one connection that writes, and one that lists.
#[derive(Default)]
struct Neighbor {
    writes: Sample,
    lists: Sample,
}

impl Neighbor {
    async fn measure(port: u16, key: &str, duration: Duration) -> anyhow::Result<Self> {
        let writes = load(port, 1, duration, |_| {
            let key = key.to_owned();
            move || {
                let body = json!({ "id": unique_id(), "input": { "text": "quiet" } }).to_string();
                with_body("POST", &key, "/v1/agents/quiet/invoke/async", &body)
            }
        });
        let lists = load(port, 1, duration, |_| {
            let request = get(key, "/v1/agents/quiet/tasks");
            move || request.clone()
        });
        let (writes, lists) = tokio::try_join!(writes, lists)?;
        Ok(Self { writes, lists })
    }

    fn merge(&mut self, other: Self) {
        self.writes.merge(other.writes);
        self.lists.merge(other.lists);
    }
}

/// The load of the busy organization. Its requests may be refused.
fn start_pressure(port: u16, key: &str, root: &str) -> JoinSet<anyhow::Result<()>> {
    let mut tasks = JoinSet::new();
    let text = "x".repeat(LARGE);
    let events: Vec<_> = (0..1000).map(|_| json!({ "type": "chunk", "data": "x" })).collect();
    let events = json!(events).to_string();
    let target = unique_id().to_string();
    let first = json!({ "id": target, "input": {} }).to_string();
    let first = with_body("POST", key, "/v1/agents/busy/invoke/async", &first);
    let push = with_body("POST", key, &format!("/agent-execution/{target}/events/push"), &events);
    let turn = move |key: &str| {
        let body = json!({ "id": unique_id(), "input": { "text": text } }).to_string();
        with_body("POST", key, "/v1/agents/busy/invoke/async", &body)
    };
    for number in 0..SENDERS + PUSHERS + REPORTERS {
        let (key, root, turn) = (key.to_owned(), root.to_owned(), turn.clone());
        let (first, push) = (first.clone(), push.clone());
        tasks.spawn(async move {
            let mut client = Client::connect(port).await?;
            client.status(&first).await?;
            for round in 1.. {
                let request = match number {
                    0..SENDERS => turn(&key),
                    _ if number < SENDERS + PUSHERS => push.clone(),
                    _ => {
                        let path = format!("/agent-execution/{root}-{round}/update");
                        with_body("PATCH", &key, &path, r#"{"status":"executing"}"#)
                    }
                };
                client.status(&request).await?;
            }
            Ok(())
        });
    }
    tasks
}
