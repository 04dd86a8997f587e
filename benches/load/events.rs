//! Streams of events held open while their tasks change.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::task::JoinSet;

use crate::Bench;
use crate::http::{Client, get, with_body};
use crate::process;
use crate::report::{Cell, Section};
use crate::sites::Site;

/// Tasks, each with a stream of its own.
const STREAMS: usize = 200;

/// Updates of all of them together, twice.
const UPDATES: usize = 1000;

/// How long the last events may take to come.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) async fn measure(bench: &mut Bench, site: &Site) -> anyhow::Result<()> {
    bench.say(&format!("{STREAMS} streams of events"));
    let service = &site.service;
    let (_, key) = site.organization(bench, "events").await?;
    let mut client = Client::connect(service.port).await?;
    let received = Arc::new(AtomicUsize::new(0));
    let mut ids = Vec::with_capacity(STREAMS);
    // Dropped, the set ends the streams.
    let mut streams = JoinSet::new();
    for _ in 0..STREAMS {
        let id = uuid::Uuid::now_v7().to_string();
        let body = json!({ "id": id, "input": { "text": "Tell how it goes" } }).to_string();
        client.send(&with_body("POST", &key, "/v1/agents/watched/invoke/async", &body)).await?;
        ids.push(id);
    }
    let before = process::memory(service.pid)?;
    for id in &ids {
        let stream = Client::connect(service.port).await?;
        let mut stream = stream.open_stream(&get(&key, &format!("/agent-execution/{id}/events"))).await?;
        let received = received.clone();
        streams.spawn(async move {
            let mut buffer = vec![0; 16 << 10];
            // An event is one line that begins so, in a piece of its own.
            while let Ok(read @ 1..) = stream.read(&mut buffer).await {
                let events = buffer[..read].windows(6).filter(|window| window == b"data: ").count();
                received.fetch_add(events, Ordering::Relaxed);
            }
        });
    }
    let mut section = Section::new(
        format!("{STREAMS} streams of events, {UPDATES} updates at a time, one after the other"),
        &["when", "MiB", "events", "updates/s", "last event ms"],
    );
    let row = |when: &str, memory: process::Memory| vec![Cell::from(when), Cell::Number(memory.resident, 1)];
    let mut cells = row("before", before);
    cells.extend([Cell::None, Cell::None, Cell::None]);
    section.row(cells);
    // What each stream begins with is counted by its reader, or was read with the head of the answer.
    tokio::time::sleep(Duration::from_secs(1)).await;
    for time in ["after the first", "after the second"] {
        received.store(0, Ordering::Relaxed);
        let begun = Instant::now();
        for number in 0..UPDATES {
            let body =
                json!({ "status": "executing", "internal_status": format!("step {number}") }).to_string();
            let path = format!("/agent-execution/{}/update", ids[number % ids.len()]);
            client.send(&with_body("PATCH", &key, &path, &body)).await?;
        }
        let updated = Instant::now();
        while received.load(Ordering::Relaxed) < UPDATES {
            ensure!(updated.elapsed() < PATIENCE, "only {received:?} of {UPDATES} events came");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let late = updated.elapsed().as_secs_f64() * 1e3;
        #[expect(clippy::cast_precision_loss, reason = "a thousand")]
        let rate = UPDATES as f64 / (updated - begun).as_secs_f64();
        let mut cells = row(time, process::memory(service.pid)?);
        let events = Cell::of_count(received.load(Ordering::Relaxed));
        cells.extend([events, Cell::Number(rate, 0), Cell::Number(late, 1)]);
        section.row(cells);
    }
    bench.report.add(section);
    Ok(())
}
