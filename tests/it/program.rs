//! The program as it is run: starting, stopping, its commands, its messages.

use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::cluster;
use crate::support::program::{DataDirectory, KEY, RunningService, run, text};
use crate::support::until;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_start_shows_a_key_once() {
    let home = DataDirectory::new();
    let mut service = RunningService::start(home.command::<&str>([])).await;
    let base = service.base.clone();
    // What is printed for pasting is pasted.
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

    let again = RunningService::start(home.command::<&str>([])).await;
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
    let home = DataDirectory::new();
    for _ in 0..2 {
        let service = home.serve().await;
        assert_eq!(service.get("/v1/agents/a/tasks").await["total"], 0);
        let (printed, log) = service.stop().await;
        assert_eq!(printed, "");
        assert!(!log.contains(KEY));
    }
    let keys = home.run(&["keys", "list", "--json"]).await;
    let keys: Value = serde_json::from_slice(&keys.stdout).expect("JSON");
    assert_eq!(keys.as_array().expect("keys").len(), 1);
    assert_eq!(keys[0]["name"], "bootstrap");

    let mut command = home.command::<&str>([]);
    command.env("TASK_HISTORY_BOOTSTRAP_KEY", "short");
    let refused = run(command).await;
    assert_eq!(refused.status.code(), Some(1));
    let said = text(&refused.stderr);
    assert!(said.contains("24 to 256 characters") && said.contains("openssl rand"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_given_database_is_used_and_nothing_started() {
    let home = DataDirectory::new();
    let database = cluster::empty_database().await;
    let url = cluster::url_of(&database);
    let mut command = home.command(["migrate"]);
    command.env("DATABASE_URL", &url);
    let migrated = run(command).await;
    assert!(migrated.status.success(), "{}", text(&migrated.stderr));
    let mut command = home.command(["serve", "--listen", "127.0.0.1:0"]);
    command.env("DATABASE_URL", &url).env("TASK_HISTORY_BOOTSTRAP_KEY", KEY);
    let service = RunningService::start(command).await;
    service.record("t").await;
    service.stop().await;
    assert!(!home.data().exists(), "no data directory was made");
    let mut connection = cluster::connect(&database).await;
    let tasks: i64 = sqlx::query_scalar("SELECT count(*) FROM tasks")
        .fetch_one(&mut connection)
        .await
        .expect("a count");
    assert_eq!(tasks, 1);
}

/// Opens a request whose body is still to come.
async fn open_request(service: &RunningService, body_bytes: usize) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", service.port)).await.expect("a connection");
    let head = format!(
        "POST /v1/agents/a/invoke/async HTTP/1.1\r\nhost: x\r\nx-api-key: {KEY}\r\ncontent-type: application/json\r\n\
         expect: 100-continue\r\ncontent-length: {body_bytes}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.expect("sent");
    // The service says so once a handler waits for the body.
    let mut continued = [0; 25];
    stream.read_exact(&mut continued).await.expect("an answer");
    assert!(continued.starts_with(b"HTTP/1.1 100"), "{}", String::from_utf8_lossy(&continued));
    stream
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_under_way_are_finished() {
    let home = DataDirectory::new();
    let mut service = home.serve().await;
    let body = r#"{"id":"last","input":{}}"#;
    let mut stream = open_request(&service, body.len()).await;
    service.signal(Signal::SIGTERM);
    service.wait_for_log("stopping").await;
    until(|| std::net::TcpStream::connect(("127.0.0.1", service.port)).is_err()).await;
    stream.write_all(body.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let (status, _, _) = service.ended().await;
    assert!(status.success());
    let service = home.serve().await;
    assert_eq!(service.get("/v1/tasks/last").await["status"], "pending");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_take_too_long_are_ended() {
    let home = DataDirectory::new();
    let mut command = home.command(["--drain-timeout", "50ms"]);
    command.env("TASK_HISTORY_BOOTSTRAP_KEY", KEY);
    let service = RunningService::start(command).await;
    let _never_sent = open_request(&service, 10).await;
    let (_, log) = service.stop().await;
    assert!(log.contains("drain timeout, aborting requests"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_managed_beside_a_running_service() {
    let home = DataDirectory::new();
    let service = home.serve().await;
    let status = async |key: &str| {
        let request = reqwest::Client::new().get(format!("{}/v1/agents/a/tasks", service.base));
        request.header("x-api-key", key).send().await.expect("an answer").status().as_u16()
    };
    let create = [
        "keys",
        "create",
        "--organization",
        "Acme Ltd",
        "--name",
        "ci",
        "--expires-in",
        "90d",
        "--json",
    ];
    let created = home.run(&create).await;
    assert!(created.status.success(), "{}", text(&created.stderr));
    let created: Value = serde_json::from_slice(&created.stdout).expect("JSON");
    let key = created["key"].as_str().expect("a key");
    assert_eq!(status(key).await, 200);

    let shown = home
        .run(&["keys", "create", "--organization", "Acme Ltd", "--name", "ro", "--read-only"])
        .await;
    let shown = text(&shown.stdout);
    assert!(
        shown.contains("shown only this once") && !shown.contains("Created organization"),
        "{shown}"
    );

    let listed = home.run(&["keys", "list"]).await;
    let listed = text(&listed.stdout);
    assert_eq!(listed.lines().count(), 4, "{listed}");
    let column = |line: &str, name: &str| line.find(name);
    let header = listed.lines().next().expect("a header");
    let row = listed.lines().nth(1).expect("a row");
    assert_eq!(
        column(header, "ORGANIZATION"),
        column(row, "Acme Ltd"),
        "columns are aligned:\n{listed}"
    );
    assert!(!listed.contains(key));

    let id = created["id"].as_str().expect("an id");
    let missed = home.run(&["keys", "revoke", id]).await;
    assert_eq!(missed.status.code(), Some(1), "it is not one of the organization `default`");
    let revoked = home.run(&["keys", "revoke", id, "--organization", "Acme Ltd"]).await;
    assert!(revoked.status.success(), "{}", text(&revoked.stderr));
    assert_eq!(status(key).await, 401);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_say_what_to_do() {
    let home = DataDirectory::new();
    let service = home.serve().await;
    let other = DataDirectory::new();
    let port = format!("127.0.0.1:{}", service.port);
    let cases = [
        (vec!["--listen", &port], "choose another address with --listen"),
        (vec!["--listen", "nonsense"], "127.0.0.1:8080"),
        (vec!["--database-url", "mysql://u:hunter2@x/y"], "postgres://user:password@host"),
        (vec!["--log", "a=b=c"], "--log takes"),
        (vec!["--log-format", "xml"], "`text` or `json`"),
        (vec!["keys", "list"], "start the service there first"),
        (vec!["--database-connections", "0"], "from 1 to 50"),
        (vec!["healthcheck", "http://127.0.0.1:1/"], "cannot be reached"),
        (vec!["healthcheck", "ftp://x"], "not an http:// URL"),
        (vec!["keys", "create", "--name", "x", "--organization", " "], "must have a name"),
        (vec!["keys", "create", "--name", "x", "--expires-in", "soon"], "--expires-in"),
    ];
    for (arguments, hint) in cases {
        let refused = other.run(&arguments).await;
        assert!(!refused.status.success(), "{arguments:?}");
        let said = text(&refused.stderr);
        assert!(said.contains(hint), "{arguments:?}: {said}");
        assert!(!said.contains("hunter2"), "a password is shown: {said}");
    }
    let healthy = other.run(&["healthcheck", &format!("{}/readyz", service.base)]).await;
    assert!(healthy.status.success());
    let unhealthy = other.run(&["healthcheck", &format!("{}/nope", service.base)]).await;
    assert_eq!(unhealthy.status.code(), Some(1));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_has_one_line_a_request_and_no_secret() {
    let home = DataDirectory::new();
    let service = home.serve().await;
    service.record("secret-task-id").await;
    service.get("/v1/tasks/secret-task-id?x=secret-query").await;
    let (_, log) = service.stop().await;
    let lines: Vec<Value> =
        log.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    let requests: Vec<_> = lines.iter().filter(|line| line["message"] == "request").collect();
    assert_eq!(requests.len(), 2, "{log}");
    assert_eq!(requests[1]["route"], "/v1/tasks/{task_id}");
    assert_eq!(requests[1]["method"], "GET");
    assert_eq!(requests[1]["status"], 200);
    assert!(requests[1]["duration_ms"].as_f64().is_some_and(|ms| ms > 0.0), "{}", requests[1]);
    assert_eq!(requests[1]["request_id"].as_str().map(str::len), Some(36));
    for secret in [KEY, "secret-task-id", "secret-query"] {
        assert!(!log.contains(secret), "{log}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_command_explains_itself() {
    let home = DataDirectory::new();
    for command in [
        vec!["--help"],
        vec!["serve", "--help"],
        vec!["migrate", "--help"],
        vec!["keys", "--help"],
        vec!["keys", "create", "--help"],
        vec!["keys", "list", "--help"],
        vec!["keys", "revoke", "--help"],
        vec!["import", "--help"],
        vec!["export", "--help"],
        vec!["verify", "--help"],
        vec!["openapi", "--help"],
        vec!["healthcheck", "--help"],
    ] {
        let help = home.run(&command).await;
        assert!(help.status.success(), "{command:?}");
        assert!(text(&help.stdout).contains("Usage: task-history"), "{command:?}");
    }
    let document = home.run(&["openapi"]).await;
    let committed = include_str!("../../docs/openapi.json");
    assert_eq!(text(&document.stdout), committed, "the command prints the committed document");
    assert!(!home.data().exists(), "explaining touches nothing");
}
