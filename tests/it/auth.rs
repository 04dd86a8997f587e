//! Who may do what.

use axum::body::Body;
use axum::http::{Request, StatusCode};
use chrono::TimeDelta;
use serde_json::{Value, json};
use task_history::store::{KeyRevocation, NewApiKey};

use crate::support::test_app::TestApp;

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

/// Walks the document, so that a new route is swept the day it is documented.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_documented_route_is_behind_the_wall() {
    let app = TestApp::start().await;
    app.invoke("a", json!({ "id": "t", "input": { "text": "mine alone" } })).await.ok();
    let before = app.get("/v1/tasks/t").await.ok();
    let (other, _) = app.other_organization().await;
    let document = app.get("/openapi.json").await.ok();
    let mut swept = 0;
    for (path, operations) in document["paths"].as_object().expect("paths") {
        for (method, operation) in operations.as_object().expect("operations") {
            if operation.get("security").is_none() {
                assert!(
                    ["/health", "/readyz"].contains(&path.as_str()),
                    "{path} is open to everybody"
                );
                continue;
            }
            swept += 1;
            let mut target = path.replace("{organization_id}", &app.organization.to_string());
            for name in ["{agent_id}", "{task_id}", "{id}", "{user_id}"] {
                target = target.replace(name, if name == "{agent_id}" { "a" } else { "t" });
            }
            let method = method.to_uppercase();
            let is_list = path.ends_with("/events/push");
            let body = operation.get("requestBody").map(|_| {
                if is_list {
                    json!([])
                } else {
                    json!({ "id": "t2", "input": {}, "execution_id": "t" })
                }
            });
            let answer = app.request_as("wrong", &method, &target, body.clone()).await;
            assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{method} {path}");
            if path.ends_with("/invoke/stream") {
                // It would record a task of the other organization's and follow it for ever.
                continue;
            }
            let answer = app.request_as(&other, &method, &target, body).await;
            assert!(
                !answer.text.contains("mine alone"),
                "{method} {path} shows another organization's data"
            );
            if path.contains("{task_id}") || path.contains("{organization_id}") {
                assert_eq!(answer.status, StatusCode::NOT_FOUND, "{method} {path}");
            }
        }
    }
    assert!(swept >= 30, "only {swept} routes were found");
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
    assert_eq!(
        app.request_as(key.expose(), "GET", "/v1/agents/a/tasks", None).await.ok()["total"],
        1
    );
    for (method, target, body) in [
        ("POST", "/v1/agents/a/invoke/async", json!({ "input": {} })),
        ("PATCH", "/agent-execution/t/update", json!({ "status": "stopped" })),
        ("POST", "/v1/agents/a/invoke/async", Value::Null),
    ] {
        let answer = app.request_as(key.expose(), method, target, Some(body)).await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN);
        assert_eq!(answer.json(), json!({ "detail": "This API key may only read" }));
    }
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
    let mut connection = crate::support::cluster::connect(&app.database).await;
    let rows: Vec<String> = sqlx::query_scalar("SELECT k::text FROM api_keys k")
        .fetch_all(&mut connection)
        .await
        .expect("rows");
    assert_eq!(rows.len(), 1);
    assert!(!rows[0].contains(&app.key));
    assert!(rows[0].contains(&app.key[..6]), "its beginning, to recognize it by");
}
