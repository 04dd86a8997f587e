//! Authentication, and the permissions of API keys.

use axum::body::Body;
use axum::http::{Request, StatusCode};
use chrono::TimeDelta;
use serde_json::{Value, json};
use task_history::store::{KeyRevocation, NewApiKey};

use crate::support::test_app::TestApp;
use crate::support::{TIMEOUT, cluster};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_valid_key_nothing_else_is_looked_at() {
    let app = TestApp::start().await;
    for key in ["", "wrong", &format!("{}x", app.key), &app.key.to_uppercase(), &"k".repeat(5000)] {
        let answer = app.request_as(key, "GET", "/v1/agents/a/tasks?page=0&status=x", None).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
        assert_eq!(answer.json(), json!({ "detail": "Invalid or missing API key" }));
        assert_eq!(answer.headers["www-authenticate"], "APIKey");
    }
    let bare = Request::post("/v1/agents/a/invoke/async").body(Body::from("{")).expect("a request");
    assert_eq!(app.send(bare).await.status, StatusCode::UNAUTHORIZED);
}

/// An operation of the OpenAPI document, and a request for it.
struct Operation {
    path: String,
    method: String,
    target: String,
    body: Option<Value>,
}

/// Every documented operation that needs a key. A new route is tested once it is documented.
async fn protected_operations(app: &TestApp) -> Vec<Operation> {
    let document = app.get("/openapi.json").await.ok();
    let mut found = Vec::new();
    for (path, operations) in document["paths"].as_object().expect("paths") {
        for (method, operation) in operations.as_object().expect("operations") {
            if operation.get("security").is_none() {
                assert!(["/health", "/readyz"].contains(&path.as_str()), "{path} needs no key");
                continue;
            }
            let mut target = path.replace("{organization_id}", &app.organization.to_string());
            for name in ["{agent_id}", "{task_id}", "{id}", "{user_id}"] {
                target = target.replace(name, if name == "{agent_id}" { "a" } else { "t" });
            }
            let body = operation.get("requestBody").map(|_| {
                if path.ends_with("/events/push") {
                    json!([])
                } else {
                    json!({ "id": "t2", "input": {}, "execution_id": "t" })
                }
            });
            let (path, method) = (path.clone(), method.to_uppercase());
            found.push(Operation { path, method, target, body });
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_documented_route_is_behind_the_wall() {
    let app = TestApp::start().await;
    app.invoke("a", json!({ "id": "t", "input": { "text": "mine alone" } })).await.ok();
    let before = app.get("/v1/tasks/t").await.ok();
    let (other, _) = app.other_organization().await;
    let operations = protected_operations(&app).await;
    assert!(operations.len() >= 30, "only {} operations were found", operations.len());
    for Operation { path, method, target, body } in operations {
        let answer = app.request_as("wrong", &method, &target, body.clone()).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{method} {path}");
        if path.ends_with("/invoke/stream") {
            // It would record a task of the other organization and follow it without end.
            continue;
        }
        let answer = app.request_as(&other, &method, &target, body).await;
        assert!(
            !answer.text.contains("mine alone"),
            "{method} {path} shows data of another organization"
        );
        if path.contains("{task_id}") || path.contains("{organization_id}") {
            assert_eq!(answer.status, StatusCode::NOT_FOUND, "{method} {path}");
        }
    }
    assert_eq!(app.get("/v1/tasks/t").await.ok(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_only_key_reads() {
    let app = TestApp::start().await;
    app.invoke("a", json!({ "id": "t", "input": {} })).await.ok();
    let new = NewApiKey {
        organization: "default".into(),
        name: "reader".into(),
        can_write: false,
        expires_at: None,
    };
    let created = app.store.create_api_key(&new, app.now()).await.expect("a key");
    let (key, is_new) = (created.secret, created.organization_is_new);
    assert!(!is_new);
    let key = key.expose();
    assert_eq!(app.request_as(key, "GET", "/v1/agents/a/tasks", None).await.ok()["total"], 1);
    let mut connection = cluster::connect(&app.database).await;
    // All rows that a client can change.
    let rows = "SELECT (SELECT json_agg(task ORDER BY id)::text FROM tasks task)
                    || (SELECT json_agg(turn ORDER BY task_id, turn)::text FROM task_turns turn)
                    || (SELECT count(*) FROM task_events)";
    let before: String = sqlx::query_scalar(rows).fetch_one(&mut connection).await.expect("rows");
    let operations = protected_operations(&app).await;
    let writes = || operations.iter().filter(|operation| operation.method != "GET");
    let in_organization = writes().filter(|write| write.path.starts_with("/{organization_id}/"));
    assert!(in_organization.count() >= 6, "too few write operations with an organization");
    assert!(writes().count() >= 17, "only {} write operations", writes().count());
    for Operation { path, method, target, body } in writes() {
        let request = app.request_as(key, method, target, body.clone());
        // A stream would have no end.
        let answer = tokio::time::timeout(TIMEOUT, request).await;
        let answer = answer.unwrap_or_else(|_| panic!("{method} {path} does not end"));
        assert_eq!(answer.status, StatusCode::FORBIDDEN, "{method} {path}: {}", answer.text);
        assert_eq!(
            answer.json(),
            json!({ "detail": "This API key may only read" }),
            "{method} {path}"
        );
    }
    // The permission is checked before the body.
    let invoke = "/v1/agents/a/invoke/async";
    let answer = app.request_as(key, "POST", invoke, Some(Value::Null)).await;
    assert_eq!(answer.status, StatusCode::FORBIDDEN);
    assert_eq!(answer.json(), json!({ "detail": "This API key may only read" }));
    let after: String = sqlx::query_scalar(rows).fetch_one(&mut connection).await.expect("rows");
    assert_eq!(after, before);
    assert_eq!(app.get("/v1/tasks/t").await.ok()["status"], "pending");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expired_and_revoked_keys_are_refused() {
    let app = TestApp::start().await;
    let expires_at = Some(app.now() + TimeDelta::seconds(60));
    let new = NewApiKey {
        organization: "default".into(),
        name: "brief".into(),
        can_write: true,
        expires_at,
    };
    let created = app.store.create_api_key(&new, app.now()).await.expect("a key");
    let (id, key) = (created.id, created.secret);
    let status =
        async || app.request_as(key.expose(), "GET", "/v1/agents/a/tasks", None).await.status;
    app.advance(59.0);
    assert_eq!(status().await, StatusCode::OK);
    app.advance(1.0);
    assert_eq!(status().await, StatusCode::UNAUTHORIZED);

    let new = NewApiKey { expires_at: None, ..new };
    let created = app.store.create_api_key(&new, app.now()).await.expect("a key");
    let (other_id, key) = (created.id, created.secret);
    let status =
        async || app.request_as(key.expose(), "GET", "/v1/agents/a/tasks", None).await.status;
    assert_eq!(status().await, StatusCode::OK);
    let revoke =
        async |organization: &str, id| app.store.revoke_api_key(organization, id, app.now()).await;
    assert_eq!(revoke("other", other_id).await.expect("an answer"), KeyRevocation::Unknown);
    assert_eq!(status().await, StatusCode::OK);
    assert_eq!(revoke("default", other_id).await.expect("an answer"), KeyRevocation::Revoked);
    assert_eq!(status().await, StatusCode::UNAUTHORIZED);
    app.advance(1.0);
    assert_eq!(
        revoke("default", other_id).await.expect("an answer"),
        KeyRevocation::AlreadyRevoked
    );

    let keys = app.store.list_api_keys().await.expect("keys");
    let used = |id| keys.iter().find(|key| key.id == id).expect("listed").last_used_at;
    assert!(used(id).is_some() && used(other_id).is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_not_stored() {
    let app = TestApp::start().await;
    let mut connection = cluster::connect(&app.database).await;
    let rows: Vec<String> = sqlx::query_scalar("SELECT k::text FROM api_keys k")
        .fetch_all(&mut connection)
        .await
        .expect("rows");
    assert_eq!(rows.len(), 1);
    assert!(!rows[0].contains(&app.key));
    assert!(rows[0].contains(&app.key[..6]), "its prefix, which identifies it in lists");
}
