//! The commands that manage API keys.

use serde_json::Value;

use crate::support::program::{DataDirectory, text};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_managed_beside_a_running_service() {
    let directory = DataDirectory::new();
    let service = directory.serve().await;
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
    let created = directory.run(&create).await;
    assert!(created.status.success(), "{}", text(&created.stderr));
    let created: Value = serde_json::from_slice(&created.stdout).expect("JSON");
    let key = created["key"].as_str().expect("a key");
    assert_eq!(status(key).await, 200);

    let shown = directory
        .run(&["keys", "create", "--organization", "Acme Ltd", "--name", "ro", "--read-only"])
        .await;
    let shown = text(&shown.stdout);
    assert!(
        shown.contains("shown only this once") && !shown.contains("Created organization"),
        "{shown}"
    );

    let listed = directory.run(&["keys", "list"]).await;
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
    let missed = directory.run(&["keys", "revoke", id]).await;
    assert_eq!(missed.status.code(), Some(1), "it is not one of the organization `default`");
    let revoked = directory.run(&["keys", "revoke", id, "--organization", "Acme Ltd"]).await;
    assert!(revoked.status.success(), "{}", text(&revoked.stderr));
    assert_eq!(status(key).await, 401);
    service.stop().await;
}
