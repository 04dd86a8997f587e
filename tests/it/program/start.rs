//! Starting: the first API key, the bootstrap key, and a database that is given.

use serde_json::Value;

use crate::support::cluster;
use crate::support::program::{DataDirectory, KEY, RunningService, run, text};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_start_shows_a_key_once() {
    let directory = DataDirectory::new();
    let mut service = RunningService::start(directory.command::<&str>([])).await;
    let base = service.base.clone();
    // The printed commands are run as a user would paste them.
    let printed = service.read_stdout_until("/tasks").await;
    let curls = printed.split_once("Record a task, and list it:").expect("a hint").1.to_owned();
    let output =
        tokio::process::Command::new("bash").args(["-ec", &curls]).output().await.expect("bash");
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains(r#""total":1"#), "{}", text(&output.stdout));
    assert!(curls.contains(&base));
    let key = printed
        .lines()
        .find(|line| line.trim().starts_with("th_"))
        .expect("a key")
        .trim()
        .to_owned();
    service.wait_for_log("listening").await;
    let (_, log) = service.stop().await;
    assert!(!log.contains(&key));

    let again = RunningService::start(directory.command::<&str>([])).await;
    let client = reqwest::Client::new().get(format!("{}/v1/agents/my-agent/tasks", again.base));
    let page: Value = client
        .header("x-api-key", &key)
        .send()
        .await
        .expect("an answer")
        .json()
        .await
        .expect("JSON");
    assert_eq!(page["total"], 1);
    let (printed, _) = again.stop().await;
    assert_eq!(printed, "", "the key is not shown again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bootstrap_key_is_taken_and_taken_again() {
    let directory = DataDirectory::new();
    for _ in 0..2 {
        let service = directory.serve().await;
        assert_eq!(service.get("/v1/agents/a/tasks").await["total"], 0);
        let (printed, log) = service.stop().await;
        assert_eq!(printed, "");
        assert!(!log.contains(KEY));
    }
    let keys = directory.run(&["keys", "list", "--json"]).await;
    let keys: Value = serde_json::from_slice(&keys.stdout).expect("JSON");
    assert_eq!(keys.as_array().expect("keys").len(), 1);
    assert_eq!(keys[0]["name"], "bootstrap");

    let mut command = directory.command::<&str>([]);
    command.env("TASK_HISTORY_BOOTSTRAP_KEY", "short");
    let refused = run(command).await;
    assert_eq!(refused.status.code(), Some(1));
    let said = text(&refused.stderr);
    assert!(said.contains("24 to 256 characters") && said.contains("openssl rand"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_given_database_is_used_and_nothing_started() {
    let directory = DataDirectory::new();
    let database = cluster::empty_database().await;
    let url = cluster::url_of(&database);
    let mut command = directory.command(["migrate"]);
    command.env("DATABASE_URL", &url);
    let migrated = run(command).await;
    assert!(migrated.status.success(), "{}", text(&migrated.stderr));
    let mut command = directory.command(["serve", "--listen", "127.0.0.1:0"]);
    command.env("DATABASE_URL", &url).env("TASK_HISTORY_BOOTSTRAP_KEY", KEY);
    let service = RunningService::start(command).await;
    service.record("t").await;
    service.stop().await;
    assert!(!directory.data().exists(), "no data directory was made");
    let mut connection = cluster::connect(&database).await;
    let tasks: i64 = sqlx::query_scalar("SELECT count(*) FROM tasks")
        .fetch_one(&mut connection)
        .await
        .expect("a count");
    assert_eq!(tasks, 1);
}
