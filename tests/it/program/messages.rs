//! What the program says: error messages, help texts and log lines.

use serde_json::Value;

use crate::support::program::{DataDirectory, KEY, text};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_say_what_to_do() {
    let directory = DataDirectory::new();
    let service = directory.serve().await;
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
        (vec!["--max-connections", "0"], "--max-connections must be at least 1"),
        (vec!["--max-connections-per-address", "0"], "-per-address must be at least 1"),
        (vec!["--idle-timeout", "x"], "expected a duration, for example 10s"),
        (vec!["healthcheck", "http://127.0.0.1:1/"], "cannot be reached"),
        (vec!["healthcheck", "ftp://x"], "not an http:// URL"),
        (vec!["keys", "create", "--name", "x", "--organization", " "], "must have a name"),
        (
            vec!["keys", "create", "--name", "x", "--expires-in", "soon"],
            "expected a duration, for example 10s",
        ),
        (vec!["--trusted-proxies", "proxy"], "--trusted-proxies takes addresses and networks"),
        (vec!["--cors-origins", "app.example.com"], "--cors-origins takes origins"),
        (vec!["--drain-timeout", "x"], "expected a duration, for example 10s"),
        (vec!["--idempotency-ttl", "0s"], "--idempotency-ttl must be longer than 0"),
        (vec!["keys", "revoke", "x"], "`keys list` shows the ids"),
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
    let directory = DataDirectory::new();
    let service = directory.serve().await;
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
    let mut fields: Vec<_> = requests[1].as_object().expect("an object").keys().collect();
    fields.sort();
    let expected = [
        "client_address",
        "duration_ms",
        "key_id",
        "level",
        "message",
        "method",
        "organization_id",
        "request_id",
        "route",
        "status",
        "target",
        "timestamp",
    ];
    assert_eq!(fields, expected, "all fields of a request line; a duration has its unit");
    for secret in [KEY, "secret-task-id", "secret-query"] {
        assert!(!log.contains(secret), "{log}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_command_explains_itself() {
    let directory = DataDirectory::new();
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
        let help = directory.run(&command).await;
        assert!(help.status.success(), "{command:?}");
        assert!(text(&help.stdout).contains("Usage: task-history"), "{command:?}");
    }
    let document = directory.run(&["openapi"]).await;
    let committed = include_str!("../../../docs/openapi.json");
    assert_eq!(text(&document.stdout), committed, "the command prints the committed document");
    assert!(!directory.data().exists(), "explaining touches nothing");
}
