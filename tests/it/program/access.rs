//! Who did what: the callers in the log, audit lines, and the brake on wrong keys.

use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::support::cluster;
use crate::support::program::{DataDirectory, KEY, RunningService, run, text};

/// The address of a client, as a proxy writes it.
const CLIENT: &str = "198.51.100.9";

/// A service behind a proxy on this machine.
async fn serve_behind_a_proxy(directory: &DataDirectory) -> RunningService {
    let mut command = directory.command::<&str>([]);
    command.env("TASK_HISTORY_BOOTSTRAP_KEY", KEY);
    command.env("TASK_HISTORY_TRUSTED_PROXIES", "192.0.2.1, 127.0.0.0/8");
    command.env("TASK_HISTORY_CORS_ORIGINS", "https://app.example.com");
    RunningService::start(command).await
}

/// The log lines with a message.
fn lines_with(log: &str, message: &str) -> Vec<Value> {
    let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).expect(line));
    lines.filter(|line| line["message"] == message).collect()
}

async fn keys_of(directory: &DataDirectory) -> Value {
    let keys = directory.run(&["keys", "list", "--json"]).await;
    serde_json::from_slice(&keys.stdout).expect("JSON")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_says_who_and_from_where() {
    let directory = DataDirectory::new();
    let mut service = serve_behind_a_proxy(&directory).await;
    let created = service.wait_for_log("API key created").await;
    assert_eq!(created["target"], "audit");
    service.record("kept").await;
    service.record("deleted").await;
    let client = reqwest::Client::new();
    let task = format!("{}/v1/tasks/deleted", service.base);
    let request = client.delete(&task).header("x-forwarded-for", format!("203.0.113.5, {CLIENT}"));
    let deleted = request.header("x-api-key", KEY).header("x-request-id", "r-1").send();
    assert_eq!(deleted.await.expect("an answer").status(), 204);
    let refused = client.get(&task).header("x-api-key", "wrong").header("forwarded", "for=1.2.3.4");
    assert_eq!(refused.send().await.expect("an answer").status(), 401);
    let preflight = client
        .request(reqwest::Method::OPTIONS, &task)
        .header("origin", "https://app.example.com")
        .header("access-control-request-method", "DELETE");
    let answer = preflight.send().await.expect("an answer");
    assert_eq!(answer.headers()["access-control-allow-origin"], "https://app.example.com");

    let key = &keys_of(&directory).await[0];
    let (_, log) = service.stop().await;
    let requests = lines_with(&log, "request");
    let by_bootstrap_key =
        requests.iter().filter(|line| line["key_id"] == key["id"]).collect::<Vec<_>>();
    assert_eq!(by_bootstrap_key.len(), 3, "{log}");
    assert_eq!(by_bootstrap_key[0]["client_address"], "127.0.0.1");
    assert_eq!(by_bootstrap_key[2]["client_address"], CLIENT);
    assert_eq!(by_bootstrap_key[2]["organization_id"], created["organization_id"]);
    let refused = requests.iter().find(|line| line["status"] == 401).expect("a line");
    assert_eq!(refused["client_address"], "1.2.3.4");
    assert!(refused.get("key_id").is_none() && refused.get("organization_id").is_none());

    let audit = &lines_with(&log, "task deleted")[..];
    assert_eq!(audit.len(), 1, "{log}");
    assert_eq!(audit[0]["target"], "audit");
    assert_eq!(audit[0]["task_id"], "deleted");
    assert_eq!(audit[0]["key_id"], key["id"]);
    assert_eq!(audit[0]["organization_id"], created["organization_id"]);
    assert_eq!(audit[0]["client_address"], CLIENT);
    assert_eq!(audit[0]["request_id"], "r-1");
    assert!(!log.contains(KEY), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failed_and_abandoned_requests_have_a_caller_too() {
    let directory = DataDirectory::new();
    let database = cluster::empty_database().await;
    let mut command = directory.command(["serve"]);
    command.env("DATABASE_URL", cluster::url_of(&database));
    command.env("TASK_HISTORY_BOOTSTRAP_KEY", KEY);
    let mut service = RunningService::start(command).await;
    let created = service.wait_for_log("API key created").await;

    let mut connection = TcpStream::connect(("127.0.0.1", service.port)).await.expect("a socket");
    let body = r#"{"input": {"text": "x"}}"#;
    let head = format!(
        "POST /v1/agents/a/invoke HTTP/1.1\r\nhost: x\r\nx-api-key: {KEY}\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    connection.write_all(head.as_bytes()).await.expect("sent");
    let mut database = cluster::connect(&database).await;
    let tasks = "SELECT count(*) FROM tasks";
    cluster::until_count(&mut database, tasks, |count| count == 1).await;
    drop(connection);
    let closed = service.wait_for_log("client closed request").await;
    assert_eq!(closed["key_id"], created["key_id"]);
    assert_eq!(closed["client_address"], "127.0.0.1");

    sqlx::query("ALTER TABLE tasks RENAME TO away").execute(&mut database).await.expect("renamed");
    let request = reqwest::Client::new().get(format!("{}/v1/tasks/t", service.base));
    let failed = request.header("x-api-key", KEY).send().await.expect("an answer");
    assert_eq!(failed.status(), 500);
    let failed = service.wait_for_log("request failed").await;
    assert_eq!(failed["key_id"], created["key_id"]);
    assert_eq!(failed["organization_id"], created["organization_id"]);
    assert_eq!(failed["client_address"], "127.0.0.1");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_line_leaves_audit_lines() {
    let directory = DataDirectory::new();
    let service = directory.serve().await;
    let created = directory.run(&["keys", "create", "--name", "ci", "--json"]).await;
    let said = lines_with(text(&created.stderr), "API key created");
    let created: Value = serde_json::from_slice(&created.stdout).expect("JSON");
    let id = created["id"].as_str().expect("an id");
    assert_eq!(said.len(), 1);
    assert_eq!(said[0]["target"], "audit");
    assert_eq!(said[0]["key_id"], id);
    assert_eq!(said[0]["organization"], "default");
    assert_eq!(said[0]["uid"], nix::unistd::Uid::current().to_string());

    let revoked = directory.run(&["keys", "revoke", id]).await;
    let said = lines_with(text(&revoked.stderr), "API key revoked");
    assert_eq!(said.len(), 1);
    assert_eq!(said[0]["key_id"], id);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guessed_keys_do_not_fill_the_log() {
    let directory = DataDirectory::new();
    let service = serve_behind_a_proxy(&directory).await;
    service.get("/v1/tasks").await;
    let client = reqwest::Client::new();
    let answer = async |key: &str, address: &str| {
        let request = client.get(format!("{}/v1/tasks", service.base)).header("x-api-key", key);
        request.header("x-forwarded-for", address).send().await.expect("an answer").status()
    };
    let (mut unauthorized, mut refused) = (0, 0);
    for number in 0.. {
        match answer(&format!("guess-{number}"), CLIENT).await.as_u16() {
            401 => unauthorized += 1,
            429 => refused += 1,
            other => panic!("{other}"),
        }
        if refused == 5 {
            break;
        }
        assert!(number < 1000, "never refused");
    }
    assert_eq!(answer(KEY, CLIENT).await, 200, "a key in use goes on working");
    assert_eq!(answer("wrong", "198.51.100.10").await, 401, "another client is not refused");
    let (_, log) = service.stop().await;
    let statuses: Vec<_> =
        lines_with(&log, "request").iter().map(|line| line["status"].as_u64()).collect();
    assert_eq!(statuses.iter().filter(|status| **status == Some(401)).count(), unauthorized + 1);
    assert!(!statuses.contains(&Some(429)), "{log}");
    let summaries: Vec<&str> =
        log.lines().filter(|line| line.contains("too many missing and wrong API keys")).collect();
    assert_eq!(summaries.len(), 1, "{log}");
    assert!(summaries[0].contains(CLIENT), "{}", summaries[0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bootstrap_key_replaces_the_one_before() {
    let directory = DataDirectory::new();
    let next = "next-key-of-the-default-organization";
    let start = async |key: &str| {
        let mut command = directory.command::<&str>([]);
        command.env("TASK_HISTORY_BOOTSTRAP_KEY", key);
        RunningService::start(command).await
    };
    let status = async |service: &RunningService, key: &str| {
        let request = reqwest::Client::new().get(format!("{}/v1/tasks", service.base));
        request.header("x-api-key", key).send().await.expect("an answer").status().as_u16()
    };
    let service = directory.serve().await;
    let other = directory.run(&["keys", "create", "--name", "other", "--json"]).await;
    let other: Value = serde_json::from_slice(&other.stdout).expect("JSON");
    let other = other["key"].as_str().expect("a key");
    service.stop().await;

    let mut service = start(next).await;
    let revoked = service.wait_for_log("API key revoked: another --bootstrap-key").await;
    assert_eq!(revoked["target"], "audit");
    assert_eq!(status(&service, next).await, 200);
    assert_eq!(status(&service, KEY).await, 401);
    assert_eq!(status(&service, other).await, 200);
    service.stop().await;

    // A revoked key is no reason not to start.
    let mut service = start(KEY).await;
    let refused = service.wait_for_log("is refused: it is revoked").await;
    assert_eq!(refused["level"], "WARN");
    assert_eq!(status(&service, KEY).await, 401);
    assert_eq!(status(&service, next).await, 200, "an older key takes nothing back");
    assert_eq!(status(&service, other).await, 200);
    service.stop().await;

    let mut command = directory.command(["keys", "create", "--name", "bootstrap"]);
    command.env("TASK_HISTORY_LOG", "off");
    let reserved = run(command).await;
    assert_eq!(reserved.status.code(), Some(1));
    assert!(text(&reserved.stderr).contains("choose another --name"));
}
