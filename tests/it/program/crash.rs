//! No acknowledged write is lost when the service, PostgreSQL or both are killed under load.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use nix::sys::signal::{Signal, kill};
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::support::TIMEOUT;
use crate::support::program::{DataDirectory, KEY, RunningService, postmaster, text};

const ROUNDS: usize = 10;
const WRITERS: usize = 64;

/// How many writes are acknowledged in a round before a process is killed.
const ACKNOWLEDGED: usize = 200;

/// The client's record of its writes.
#[derive(Default)]
struct ClientLog {
    acknowledged: BTreeSet<String>,
    /// Sent without a success response: they may have been recorded.
    unanswered: BTreeSet<String>,
    /// The last answers to the clients of a round; `None` if a connection broke.
    last_answers: Vec<Option<StatusCode>>,
}

async fn send(client: &Client, base: &str, id: &str) -> Option<StatusCode> {
    let mut request = client
        .post(format!("{base}/v1/agents/a/invoke/async"))
        .header("x-api-key", KEY)
        .json(&json!({ "id": id, "input": { "text": "x", "user": { "id": "u", "email": "e" } } }));
    if has_key(id) {
        request = request.header("idempotency-key", id);
    }
    request.send().await.ok().map(|response| response.status())
}

/// Every second write carries an idempotency key.
fn has_key(id: &str) -> bool {
    id.ends_with("even")
}

/// One client: writes until a request fails or the round is over. It also reports an outcome for every third task.
async fn write(
    client: Client,
    base: String,
    name: String,
    log: Arc<Mutex<ClientLog>>,
    acknowledged: watch::Sender<usize>,
    is_over: Arc<AtomicBool>,
) {
    for n in 0.. {
        if is_over.load(Ordering::Relaxed) {
            return;
        }
        let id = format!("{name}-{n}-{}", if n % 2 == 0 { "even" } else { "odd" });
        let answer = send(&client, &base, &id).await;
        if answer != Some(StatusCode::OK) {
            // No response, or an error: the task may have been recorded.
            let mut log = log.lock().expect("no panic");
            log.unanswered.insert(id);
            log.last_answers.push(answer);
            return;
        }
        log.lock().expect("no panic").acknowledged.insert(id.clone());
        acknowledged.send_modify(|count| *count += 1);
        if n % 3 == 0 {
            let report = client
                .patch(format!("{base}/agent-execution/{id}/update"))
                .header("x-api-key", KEY)
                .json(&json!({ "status": "completed", "result": "done" }));
            if report.send().await.is_err() {
                return;
            }
        }
    }
}

/// Starts the service with a short log, which no test has to read for the service to go on.
async fn serve(directory: &DataDirectory) -> RunningService {
    let mut command = directory.command::<&str>([]);
    command
        .env("TASK_HISTORY_BOOTSTRAP_KEY", KEY)
        .env("TASK_HISTORY_LOG", "off,task_history::embedded=warn");
    RunningService::start(command).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost() {
    let directory = DataDirectory::new();
    let client = Client::new();
    let log = Arc::new(Mutex::new(ClientLog::default()));
    let mut running = None;
    for round in 0..ROUNDS {
        let mut service = match running.take() {
            Some(service) => service,
            None => serve(&directory).await,
        };
        let is_over = Arc::new(AtomicBool::new(false));
        let (sender, mut acknowledged) = watch::channel(0);
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let name = format!("{round}-{writer}");
                let (client, base) = (client.clone(), service.base.clone());
                let (log, sender) = (log.clone(), sender.clone());
                tokio::spawn(write(client, base, name, log, sender, is_over.clone()))
            })
            .collect();
        let enough = acknowledged.wait_for(|count| *count >= ACKNOWLEDGED);
        tokio::time::timeout(TIMEOUT, enough).await.expect("writes").expect("a sender");
        let server = postmaster(&directory.data()).expect("it runs");
        if round % 3 != 1 {
            kill(server, Signal::SIGKILL).expect("a signal");
        }
        if round % 3 == 0 {
            // The service survives, and the next round continues with it.
            service.wait_for_log("PostgreSQL runs again").await;
            is_over.store(true, Ordering::Relaxed);
            running = Some(service);
        } else {
            service.signal(Signal::SIGKILL);
            service.ended().await;
        }
        for writer in writers {
            writer.await.expect("no panic");
        }
        let answers = std::mem::take(&mut log.lock().expect("no panic").last_answers);
        if round % 3 == 0 {
            let unavailable = Some(StatusCode::SERVICE_UNAVAILABLE);
            assert!(answers.iter().all(|answer| *answer == unavailable), "{answers:?}");
        }
    }
    let service = running.expect("PostgreSQL was killed last");
    let ClientLog { mut acknowledged, unanswered, .. } =
        std::mem::take(&mut *log.lock().expect("no panic"));
    assert!(!unanswered.is_empty(), "a client was in the middle of a write");
    // Requests with an idempotency key are sent again, among them some acknowledged ones.
    let again: Vec<_> = unanswered.iter().chain(acknowledged.iter().step_by(7)).cloned().collect();
    for id in again.iter().filter(|id| has_key(id)) {
        assert_eq!(send(&client, &service.base, id).await, Some(StatusCode::OK), "{id}");
        let thread = service.get(&format!("/v1/tasks/{id}/thread")).await;
        let turns =
            thread.as_array().expect("messages").iter().filter(|message| message["role"] == "user");
        assert_eq!(turns.count(), 1, "{id} was recorded once");
        acknowledged.insert(id.clone());
    }
    let recorded = list(&client, &service).await;
    let lost: Vec<_> = acknowledged.difference(&recorded).collect();
    assert!(lost.is_empty(), "lost: {lost:?}");
    let others: Vec<_> =
        recorded.difference(&acknowledged).filter(|id| !unanswered.contains(*id)).collect();
    assert!(others.is_empty(), "recorded, but never sent: {others:?}");
    let verified = directory.run(&["verify"]).await;
    assert!(verified.status.success(), "{}", text(&verified.stdout));
    service.stop().await;
}

/// The ids of all tasks, each once.
async fn list(client: &Client, service: &RunningService) -> BTreeSet<String> {
    let mut ids = BTreeSet::new();
    let mut address = Some("/v1/tasks?per_page=50".to_owned());
    while let Some(path) = address {
        let request = client.get(format!("{}{path}", service.base)).header("x-api-key", KEY);
        let response = request.send().await.expect("an answer");
        let links = response.headers()["link"].to_str().expect("text").to_owned();
        let next = links.split(", ").find(|link| link.ends_with("rel=\"next\""));
        address = next.and_then(|link| Some(link.strip_prefix('<')?.split_once('>')?.0.to_owned()));
        let page: Value = response.json().await.expect("JSON");
        for item in page["items"].as_array().expect("items") {
            let id = item["id"].as_str().expect("an id").to_owned();
            assert!(ids.insert(id), "{item} is listed twice");
        }
        if address.is_none() {
            assert_eq!(page["total"], ids.len());
        }
    }
    ids
}
