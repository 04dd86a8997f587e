//! Open event streams while their tasks change.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::task::JoinSet;

use crate::Bench;
use crate::data::unique_id;
use crate::data_set::DataSet;
use crate::http::{Client, get, with_body};
use crate::process::Memory;
use crate::report::{Cell, Section};

/// Tasks, each with one stream.
const STREAMS: usize = 200;

/// Updates of each of the two measurements, spread over all tasks.
const UPDATES: usize = 1000;

/// How long the last events may take to arrive.
const EVENT_TIMEOUT: Duration = Duration::from_secs(30);

pub(crate) async fn measure(bench: &mut Bench, data_set: &DataSet) -> anyhow::Result<()> {
    bench.log(&format!("{STREAMS} event streams"));
    let service = &data_set.service;
    let (_, key) = data_set.create_organization(bench, "events").await?;
    let mut client = Client::connect(service.port).await?;
    let received = Arc::new(AtomicUsize::new(0));
    let mut ids = Vec::with_capacity(STREAMS);
    // When the set is dropped, it aborts the tasks and so closes the streams.
    let mut streams = JoinSet::new();
    for _ in 0..STREAMS {
        let id = unique_id().to_string();
        let body = json!({ "id": id, "input": { "text": "Tell how it goes" } }).to_string();
        client.send(&with_body("POST", &key, "/v1/agents/watched/invoke/async", &body)).await?;
        ids.push(id);
    }
    let before = service.memory()?;
    for id in &ids {
        let stream = Client::connect(service.port).await?;
        let request = get(&key, &format!("/agent-execution/{id}/events"));
        let mut stream = stream.open_stream(&request).await?;
        let received = received.clone();
        streams.spawn(async move {
            let mut buffer = vec![0; 16 << 10];
            // An event has one line that begins with `data: `, and the service sends each event in
            // a chunk of its own.
            while let Ok(read @ 1..) = stream.read(&mut buffer).await {
                let events = buffer[..read].windows(6).filter(|window| window == b"data: ").count();
                received.fetch_add(events, Ordering::Relaxed);
            }
        });
    }
    let mut section = Section::new(
        format!("{STREAMS} event streams, {UPDATES} updates at a time, one after the other"),
        &["when", "MiB", "events", "updates/s", "last event ms"],
    );
    let row = |when: &str, memory: Memory| vec![Cell::from(when), Cell::Number(memory.resident, 1)];
    let mut cells = row("before", before);
    cells.extend([Cell::None, Cell::None, Cell::None]);
    section.push_row(cells);
    // Let the first event of each stream arrive. Either the reader above counts it, or it was read
    // with the head of the response.
    tokio::time::sleep(Duration::from_secs(1)).await;
    for when in ["after the first", "after the second"] {
        received.store(0, Ordering::Relaxed);
        let started = Instant::now();
        for number in 0..UPDATES {
            let internal_status = format!("step {number}");
            let body =
                json!({ "status": "executing", "internal_status": internal_status }).to_string();
            let path = format!("/agent-execution/{}/update", ids[number % ids.len()]);
            client.send(&with_body("PATCH", &key, &path, &body)).await?;
        }
        let updated = Instant::now();
        while received.load(Ordering::Relaxed) < UPDATES {
            let is_in_time = updated.elapsed() < EVENT_TIMEOUT;
            ensure!(is_in_time, "only {received:?} of {UPDATES} events arrived");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let delay = updated.elapsed().as_secs_f64() * 1e3;
        #[expect(clippy::cast_precision_loss, reason = "UPDATES is small")]
        let rate = UPDATES as f64 / (updated - started).as_secs_f64();
        let mut cells = row(when, service.memory()?);
        let events = Cell::of_count(received.load(Ordering::Relaxed));
        cells.extend([events, Cell::Number(rate, 0), Cell::Number(delay, 1)]);
        section.push_row(cells);
    }
    bench.report.add_section(section);
    Ok(())
}
