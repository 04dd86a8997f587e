//! Authentication, and the permissions of API keys.

use std::net::SocketAddr;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use chrono::TimeDelta;
use serde_json::{Value, json};
use sqlx::Connection;
use task_history::domain::{ApiKeySecret, Limits, PeerAddress};
use task_history::store::{BootstrapKey, KeyRevocation, NewApiKey};

use crate::support::test_app::{Answer, TestApp, short_limits, single_connection_store};
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

/// Makes every statement wait that looks a key up, until the connection is closed.
async fn hold_api_keys(app: &TestApp) -> sqlx::PgConnection {
    let mut connection = cluster::connect(&app.database).await;
    sqlx::raw_sql("BEGIN; LOCK TABLE api_keys IN ACCESS EXCLUSIVE MODE")
        .execute(&mut connection)
        .await
        .expect("a lock");
    connection
}

/// A request that comes through a connection.
async fn request_from(app: &TestApp, address: &str, key: &str) -> Answer {
    let peer: SocketAddr = address.parse().expect("an address");
    let request = Request::get("/v1/agents/a/tasks").header("x-api-key", key);
    let request = request.extension(PeerAddress(peer)).body(Body::empty()).expect("a request");
    tokio::time::timeout(TIMEOUT, app.send(request)).await.expect("an answer")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_key_is_looked_up_once_and_a_new_one_at_once() {
    let key_cache_ttl = Duration::from_hours(1);
    let app = TestApp::start_with(Limits { key_cache_ttl, ..short_limits() }).await;
    let key = ApiKeySecret::parse("another-key-of-the-default-organization").expect("a key");
    let answer =
        async || app.request_as(key.expose(), "GET", "/v1/agents/a/tasks", None).await.status;
    assert_eq!(answer().await, StatusCode::UNAUTHORIZED);
    let held = hold_api_keys(&app).await;
    assert_eq!(answer().await, StatusCode::UNAUTHORIZED);
    held.close().await.expect("closed");
    app.store.bootstrap(Some(&key), app.now()).await.expect("a key");
    assert_eq!(answer().await, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_guesses_is_refused_without_a_look_into_the_database() {
    let limits = Limits { key_cache_ttl: Duration::ZERO, ..short_limits() };
    let app = TestApp::start_with(limits).await;
    let (other, _) = app.other_organization().await;
    let (guesser, neighbor, stranger) = ("[2001:db8::1]:1", "[2001:db8::ff:2]:1", "192.0.2.1:1");
    assert_eq!(request_from(&app, guesser, &app.key).await.status, StatusCode::OK);
    for number in 0..20 {
        for key in ["", &format!("guess-{number}")] {
            let answer = request_from(&app, guesser, key).await;
            assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
        }
    }
    let held = hold_api_keys(&app).await;
    assert_eq!(request_from(&app, guesser, "").await.status, StatusCode::UNAUTHORIZED);
    for address in [guesser, neighbor] {
        let answer = request_from(&app, address, "guess").await;
        assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS, "{address}");
        let detail = "Too many wrong API keys, try again later";
        assert_eq!(answer.json(), json!({ "detail": detail }));
        let seconds = answer.headers["retry-after"].to_str().expect("ASCII");
        assert!((3590..=3600).contains(&seconds.parse::<u32>().expect("a number")), "{seconds}");
    }
    held.close().await.expect("closed");
    // A key that has worked before goes on working, even if it has to be looked up again.
    assert_eq!(request_from(&app, guesser, &app.key).await.status, StatusCode::OK);
    assert_eq!(request_from(&app, stranger, "guess").await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(request_from(&app, stranger, &other).await.status, StatusCode::OK);
    // Once revoked, it is a wrong key.
    let keys = app.store.list_api_keys().await.expect("keys");
    let id = keys.iter().find(|key| key.organization == "default").expect("listed").id;
    app.store.revoke_api_key("default", id, app.now()).await.expect("an answer");
    let answer = request_from(&app, guesser, &app.key).await;
    assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_bootstrap_keys_at_once_one_remains() {
    let app = TestApp::start().await;
    let mut connection = cluster::connect(&app.database).await;
    sqlx::raw_sql("BEGIN; SELECT pg_advisory_xact_lock(29803, 0)")
        .execute(&mut connection)
        .await
        .expect("the lock of starts");
    let now = app.now();
    let starts = ["first-of-two-bootstrap-keys", "second-of-two-bootstrap-keys"].map(|key| {
        let store = single_connection_store(&app.database);
        let key = ApiKeySecret::parse(key).expect("a key");
        tokio::spawn(async move { store.bootstrap(Some(&key), now).await.expect("a start") })
    });
    let waiting = "SELECT count(*) FROM pg_locks
                   WHERE locktype = 'advisory' AND classid = 29803 AND NOT granted";
    let mut other = cluster::connect(&app.database).await;
    cluster::until_count(&mut other, waiting, |count| count == 2).await;
    connection.close().await.expect("closed");
    let mut revoked = 0;
    for start in starts {
        let start = start.await.expect("no panic");
        assert!(matches!(start.key, BootstrapKey::Adopted(_)), "{start:?}");
        revoked += start.revoked.len();
    }
    // That of the app, and the first of the two.
    assert_eq!(revoked, 2);
    let keys = app.store.list_api_keys().await.expect("keys");
    assert_eq!(keys.iter().filter(|key| key.revoked_at.is_none()).count(), 1);
}
