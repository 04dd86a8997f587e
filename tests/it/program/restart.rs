//! The embedded PostgreSQL ends by itself: the service starts it again and goes on.

use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use reqwest::StatusCode;

use crate::support::program::{DataDirectory, KEY, RunningService, children, postmaster, text};

const STARTING: &str = "PostgreSQL ended by itself, starting it again";
const RUNS: &str = "PostgreSQL runs again";

fn kill_postgres(data: &Path) {
    kill(postmaster(data).expect("it runs"), Signal::SIGKILL).expect("a signal");
}

async fn respond(service: &RunningService, path: &str) -> reqwest::Response {
    let request =
        reqwest::Client::new().get(format!("{}{path}", service.base)).header("x-api-key", KEY);
    request.send().await.expect("an answer")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_service_goes_on() {
    let directory = DataDirectory::new();
    let mut service = directory.serve().await;
    service.record("kept").await;
    kill_postgres(&directory.data());
    let line = service.wait_for_log(STARTING).await;
    assert!(line["reason"].as_str().is_some_and(|reason| reason.contains("SIGKILL")), "{line}");
    service.wait_for_log(RUNS).await;
    assert_eq!(service.get("/v1/tasks/kept").await["status"], "pending", "at the first attempt");
    service.record("new").await;
    let keys = directory.run(&["keys", "list"]).await;
    assert!(keys.status.success(), "commands find the new server: {}", text(&keys.stderr));
    service.stop().await;
    assert_eq!(postmaster(&directory.data()), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_answered_meanwhile() {
    let directory = DataDirectory::new();
    let mut service = directory.serve().await;
    service.record("kept").await;
    // A stopped child process keeps the shared memory, without which no new server starts.
    let server = postmaster(&directory.data()).expect("it runs");
    let (child, _) = children(server)
        .into_iter()
        .find(|(_, title)| title.contains("checkpointer"))
        .expect("a checkpointer");
    kill(child, Signal::SIGSTOP).expect("a signal");
    kill_postgres(&directory.data());
    service.wait_for_log(STARTING).await;
    for path in ["/v1/tasks/kept", "/v1/agents/a/tasks", "/readyz"] {
        let response = respond(&service, path).await;
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE, "{path}");
        assert_eq!(response.headers()["retry-after"], "1", "{path}");
    }
    assert_eq!(respond(&service, "/health").await.status(), StatusCode::OK);
    kill(child, Signal::SIGCONT).expect("a signal");
    service.wait_for_log(RUNS).await;
    assert_eq!(service.get("/v1/tasks/kept").await["status"], "pending");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_keeps_ending_is_given_up() {
    let directory = DataDirectory::new();
    let mut service = directory.serve().await;
    service.record("kept").await;
    for _ in 0..5 {
        kill_postgres(&directory.data());
        service.wait_for_log(RUNS).await;
    }
    kill_postgres(&directory.data());
    let (status, _, log) = service.ended().await;
    assert_eq!(status.code(), Some(3), "{log}");
    assert!(log.contains("ended too often") && log.contains("start the service again"), "{log}");
    let service = directory.serve().await;
    assert_eq!(service.get("/v1/tasks/kept").await["status"], "pending");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_that_fails_is_logged_with_the_words_of_postgres() {
    let directory = DataDirectory::new();
    let mut service = directory.serve().await;
    std::fs::write(directory.data().join("data/postgresql.auto.conf"), "no_such_setting = 1\n")
        .expect("written");
    kill_postgres(&directory.data());
    service.wait_for_log(STARTING).await;
    let line = service.wait_for_log(STARTING).await;
    let reason = line["reason"].as_str().expect("a reason");
    assert!(reason.contains("no_such_setting") && reason.contains("postgres.log"), "{reason}");
    // A stop signal ends the attempts.
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_socket_outside_of_the_data_directory_stays_where_it_is() {
    let directory = DataDirectory::new();
    let data = directory.path().join("with, comma");
    let mut command = directory.command(["--data-dir"]);
    command.arg(&data).env("TASK_HISTORY_BOOTSTRAP_KEY", KEY);
    let mut service = RunningService::start(command).await;
    let started = service.wait_for_log("PostgreSQL started").await;
    let socket = PathBuf::from(started["socket"].as_str().expect("a path"));
    assert!(socket.exists() && !socket.starts_with(&data), "{started}");
    kill_postgres(&data);
    service.wait_for_log(RUNS).await;
    service.record("new").await;
    assert!(socket.exists());
    service.stop().await;
    assert!(!socket.exists());
}
