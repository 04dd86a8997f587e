//! Errors: what clients see of them, and what only the log shows.

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::{Request, StatusCode};
use serde_json::{Value, json};
use task_history::domain::{ApiKeySecret, Clock, Limits};
use task_history::embedded::{Embedded, EmbeddedOptions};
use task_history::store::{self, DatabaseUrl, Store};
use tower::ServiceExt;
use tracing_subscriber::fmt::MakeWriter;

use crate::support::cluster;
use crate::support::test_app::{self, Answer, TestApp, router};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_route_has_the_path() {
    let app = TestApp::start().await;
    for path in [
        "/",
        "/nope",
        "/v1",
        "/v1/agents//tasks",
        "/v1/tasks/a/b",
        "/v1/tasks/%FF",
        "/docs/nope",
        "//x/",
    ] {
        let answer = app.get(path).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{path}");
        assert_eq!(answer.json(), json!({ "detail": "Not Found" }), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_route_has_the_method() {
    let app = TestApp::start().await;
    for (method, path, allowed) in [
        ("POST", "/v1/agents/a/tasks", "GET"),
        ("GET", "/v1/agents/a/invoke/async", "POST"),
        ("PUT", "/agent-execution/t/update", "PATCH"),
        ("DELETE", "/health", "GET"),
    ] {
        let answer = app.request(method, path, None).await;
        assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED, "{method} {path}");
        assert_eq!(answer.json(), json!({ "detail": "Method Not Allowed" }));
        let allow = answer.headers["allow"].to_str().expect("text");
        assert!(allow.split(',').any(|method| method.trim() == allowed), "{allow}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slash_too_many_is_redirected() {
    let app = TestApp::start().await;
    let answer = app.get("/v1/agents/a%2Fb/tasks/?page=2").await;
    assert_eq!(answer.status, StatusCode::TEMPORARY_REDIRECT);
    assert_eq!(answer.headers["location"], "/v1/agents/a%2Fb/tasks?page=2");
    assert_eq!(answer.text, "");
    // Every client accepts a head of 4 KiB.
    let answer = app.get(&format!("/v1/tasks/?user_id={}", "x".repeat(3_000))).await;
    assert_eq!(answer.status, StatusCode::TEMPORARY_REDIRECT);
    let answer = app.get(&format!("/v1/tasks/?user_id={}", "x".repeat(60_000))).await;
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
    // To a browser, these would name another host.
    for path in ["//evil.example/agent-execution/x/", "/\\evil.example/agent-execution/x/"] {
        assert_eq!(app.get(path).await.status, StatusCode::NOT_FOUND, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_field_that_cannot_be_stored_is_named() {
    let app = TestApp::start().await;
    let body = json!({
        "input": { "text": "a\0b", "files": ["ok", "\0"], "user": { "email": "\0", "id": "\0" } },
        "payload_extension": { "deep": [{ "\0": 1 }] },
        "source": "\0",
        "user_oidc_token": "\0 is not stored, so any text is allowed"
    });
    let answer = app.request("POST", "/v1/agents/%00/invoke/async?version=%00", Some(body)).await;
    assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY);
    let detail = answer.json()["detail"].clone();
    let locs: Vec<_> =
        detail.as_array().expect("errors").iter().map(|error| error["loc"].to_string()).collect();
    assert_eq!(
        locs,
        [
            r#"["path","agent_id"]"#,
            r#"["query","version"]"#,
            r#"["body","input","text"]"#,
            r#"["body","input","files",1]"#,
            r#"["body","input","user","id"]"#,
            r#"["body","input","user","email"]"#,
            r#"["body","payload_extension"]"#,
            r#"["body","source"]"#,
        ]
    );
    assert_eq!(
        detail[2],
        json!({
            "type": "value_error",
            "loc": ["body", "input", "text"],
            "msg": "Value error, must not contain NUL (U+0000)",
            "input": "a\0b",
            "ctx": { "error": {} }
        })
    );
}

/// `serde_json` uses such names internally, for numbers and raw text.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_that_mean_something_to_the_parser_are_refused() {
    let app = TestApp::start().await;
    for name in [
        "$serde_json::private::RawValue",
        "$serde_json::private::Number",
        "\\u0024serde_json::private::X",
    ] {
        let body = format!(r#"{{"input":{{}},"payload_extension":{{"a":{{"{name}":"12"}}}}}}"#);
        let request = Request::post("/v1/agents/a/invoke/async")
            .header("x-api-key", &app.key)
            .header("content-type", "application/json")
            .body(Body::from(body));
        let answer = app.send(request.expect("a request")).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{name}: {}", answer.text);
    }
    // A task with the deepest nesting that is allowed can be read again.
    for (depth, status) in [(100, StatusCode::OK), (200, StatusCode::BAD_REQUEST)] {
        let value = format!("{}1{}", "[".repeat(depth), "]".repeat(depth));
        let body = format!(r#"{{"id":"deep","input":{{}},"payload_extension":{{"a":{value}}}}}"#);
        let request = Request::post("/v1/agents/a/invoke/async")
            .header("x-api-key", &app.key)
            .header("content-type", "application/json")
            .body(Body::from(body));
        assert_eq!(app.send(request.expect("a request")).await.status, status);
    }
    assert_eq!(app.get("/v1/tasks/deep").await.status, StatusCode::OK);
}

/// The errors of an answer, which has at most a hundred of them and at most 64 KiB.
fn bounded_errors(answer: &Answer) -> Vec<Value> {
    assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "{}", answer.text);
    assert!(answer.text.len() <= 64 << 10, "{} bytes", answer.text.len());
    let errors = answer.json()["detail"].as_array().expect("errors").clone();
    assert!((1..=100).contains(&errors.len()), "{} errors", errors.len());
    errors
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_list_of_faults_is_cut_short() {
    let app = TestApp::start().await;
    app.invoke("a", json!({ "id": "t", "input": {} })).await.ok();
    let texts: serde_json::Map<_, _> =
        (0..50_000).map(|n| (format!("key-{n}"), "text".into())).collect();
    let wrong_tasks = vec![json!({ "completed": 5 }); 1_000];
    for (method, path, body) in [
        ("POST", "/v1/agents/a/invoke/async", json!({ "input": { "files": vec![1; 90_000] } })),
        ("POST", "/v1/agents/a/invoke/async", json!({ "mcp_servers": vec![1; 90_000] })),
        ("PATCH", "/agent-execution/t/update", json!({ "tokens": texts, "title": 5 })),
        (
            "PATCH",
            "/agent-execution/t/update",
            json!({ "deep_planning": { "tasks": wrong_tasks } }),
        ),
        ("PATCH", "/agent-execution/t/update", json!({ "used_tools": vec![json!({}); 1_000] })),
        ("POST", "/agent-execution/t/events/push", json!(vec![json!({}); 1_000])),
        ("POST", "/agent-execution/t/events/push", json!(vec![5; 1_000])),
    ] {
        let answer = app.request(method, path, Some(body)).await;
        assert_eq!(bounded_errors(&answer).len(), 100, "{method} {path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_does_not_repeat_a_long_input() {
    let app = TestApp::start().await;
    app.invoke("a", json!({ "id": "t", "input": {} })).await.ok();
    let long = "语".repeat(1_000_000);
    // A text is cut. An input that fits is whole, and errors after a long input are listed.
    let answer = app.invoke("a", json!({ "id": long, "input": { "text": 5 }, "title": 6 })).await;
    let errors = bounded_errors(&answer);
    let inputs: Vec<_> = errors.iter().map(|error| error["input"].clone()).collect();
    let start = "语".repeat(32) + "…";
    assert_eq!(inputs, [json!(5), json!(start), json!(6)], "{}", answer.text);
    assert_eq!(errors[1]["type"], "string_too_long");
    // Anything else is left out, also what is around a missing field.
    let answer = app.invoke("a", json!({ "title": long })).await;
    assert_eq!(
        bounded_errors(&answer),
        [json!({ "type": "missing", "loc": ["body", "input"], "msg": "Field required" })]
    );
    // Many inputs that fit one by one.
    let files: Vec<_> = (0..200).map(|n| json!({ "n": n, "text": "x".repeat(5_000) })).collect();
    let errors = bounded_errors(&app.invoke("a", json!({ "input": { "files": files } })).await);
    assert_eq!(errors.len(), 100);
    assert_eq!(errors[0]["input"], files[0]);
    assert_eq!(errors[99].get("input"), None);
    // The client's own name in the path to a value.
    let answer = app.report("t", json!({ "tokens": { long: "text" } })).await;
    assert_eq!(bounded_errors(&answer)[0]["loc"], json!(["body", "tokens", start]));
    // Texts whose escapes are long, in every place that repeats them.
    let keys =
        (0..1_000).map(|n| (format!("{n}{}", "\u{1}".repeat(200)), json!("\u{2}".repeat(200))));
    let keys: serde_json::Map<_, _> = keys.collect();
    bounded_errors(&app.report("t", json!({ "tokens": keys })).await);
    // A text that is no JSON, and a parameter.
    let request = Request::post("/v1/agents/a/invoke/async").header("x-api-key", &app.key);
    let answer = app.send(request.body(Body::from("x".repeat(1 << 20))).expect("a request")).await;
    assert_eq!(bounded_errors(&answer)[0]["input"], "x".repeat(32) + "…");
    let answer = app.get(&format!("/v1/tasks?status={}", "x".repeat(60_000))).await;
    assert_eq!(bounded_errors(&answer)[0]["input"], "x".repeat(32) + "…");
}

/// A client that closes its request while that waits for a lock leaves no transaction behind. The
/// push has a transaction of its own, so the pool must close its connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_is_given_up_holds_nothing() {
    // No timeout of PostgreSQL ends the transaction.
    let hour = Duration::from_hours(1);
    let limits = Limits {
        statement_timeout: hour,
        idle_in_transaction_timeout: hour,
        ..test_app::short_limits()
    };
    let app = TestApp::start_with(limits).await;
    app.invoke("a", json!({ "id": "t", "input": {} })).await.ok();
    let mut other = cluster::connect(&app.database).await;
    sqlx::raw_sql("BEGIN; SELECT FROM tasks FOR UPDATE").execute(&mut other).await.expect("a lock");
    {
        let events = json!([{ "type": "chunk", "data": "x" }]);
        let push = app.request("POST", "/agent-execution/t/events/push", Some(events));
        tokio::select! {
            answer = push => panic!("it does not wait: {}", answer.text),
            () = cluster::until_waiting(&app.database) => {}
        }
    }
    let mut watcher = cluster::connect(&app.database).await;
    let transactions = "SELECT count(*) FROM pg_stat_activity
                        WHERE datname = current_database()
                          AND application_name = 'task-history'
                          AND xact_start IS NOT NULL";
    cluster::until_count(&mut watcher, transactions, |count| count == 0).await;
    sqlx::raw_sql("ROLLBACK").execute(&mut other).await.expect("unlocked");
    let lock = sqlx::raw_sql("BEGIN; SELECT FROM tasks FOR UPDATE NOWAIT; COMMIT");
    lock.execute(&mut watcher).await.expect("no other session holds the lock");
    let started = Instant::now();
    assert_eq!(app.invoke("a", json!({ "id": "t", "input": {} })).await.ok()["status"], "pending");
    assert!(started.elapsed() < Duration::from_secs(10), "the lock was held until a timeout");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_faults_of_a_report_at_once() {
    let app = TestApp::start().await;
    app.invoke("a", json!({ "id": "t", "input": {} })).await.ok();
    let before = app.get("/v1/tasks/t").await.ok();
    let body = json!({
        "result": { "a": 1 },
        "status": "running",
        "internal_status": "x".repeat(256),
        "title": 5
    });
    let answer = app.report("t", body).await;
    assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY);
    let detail = answer.json()["detail"].clone();
    let kinds: Vec<_> =
        detail.as_array().expect("errors").iter().map(|error| &error["type"]).collect();
    assert_eq!(kinds, ["enum", "string_type", "string_too_long", "string_type"]);
    assert_eq!(app.get("/v1/tasks/t").await.ok(), before);
    // Official clients must be able to read these fields when the task is returned.
    for (body, loc) in [
        (json!({ "tokens": { "total_tokens": 2.5 } }), json!(["body", "tokens", "total_tokens"])),
        (
            json!({ "hitl_request": { "wait_node_id": 5 } }),
            json!(["body", "hitl_request", "wait_node_id"]),
        ),
        (
            json!({ "pending_eca_request": { "connector_name": "c" } }),
            json!(["body", "pending_eca_request", "auth_url"]),
        ),
        (
            json!({ "deep_planning": { "enabled": "x" } }),
            json!(["body", "deep_planning", "enabled"]),
        ),
        (
            json!({ "deep_planning": { "tasks": [null] } }),
            json!(["body", "deep_planning", "tasks", 0]),
        ),
    ] {
        let answer = app.report("t", body).await;
        assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY);
        assert_eq!(answer.json()["detail"][0]["loc"], loc);
    }
    let plan =
        json!({ "enabled": true, "tasks": [{ "id": "1", "title": "one", "completed": false }] });
    let asked = json!({
        "status": "paused",
        "deep_planning": plan,
        "hitl_request": { "wait_node_id": "n" }
    });
    let paused = app.report("t", asked).await.ok();
    assert_eq!(
        (&paused["deep_planning"], &paused["hitl_request"]["wait_node_id"]),
        (&plan, &json!("n"))
    );
    let resumed = app.report("t", json!({ "status": "executing" })).await.ok();
    assert_eq!(resumed["hitl_request"], Value::Null, "a task that executes waits for no input");
    for body in [json!([]), json!(null), json!("x")] {
        assert_eq!(
            app.report("t", body).await.json()["detail"][0]["type"],
            "model_attributes_type"
        );
    }
}

/// Collects the log lines of this thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn lines(&self) -> Vec<Value> {
        let bytes = self.0.lock().expect("no panic").clone();
        let text = String::from_utf8(bytes).expect("UTF-8");
        text.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("no panic").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_table_shows_the_client_nothing_and_the_log_everything() {
    let app = TestApp::start().await;
    app.invoke("a", json!({ "id": "t", "input": {} })).await.ok();
    cluster::execute(&app.database, "ALTER TABLE tasks RENAME COLUMN title TO sabotaged").await;
    let log = Log::default();
    let subscriber =
        tracing_subscriber::fmt().json().flatten_event(true).with_writer(log.clone()).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    for (method, path, body) in [
        ("GET", "/v1/agents/a/tasks", None),
        ("GET", "/v1/tasks/t", None),
        ("POST", "/v1/agents/a/invoke/async", Some(json!({ "input": {} }))),
        ("PATCH", "/agent-execution/t/update", Some(json!({ "result": "x" }))),
    ] {
        let answer = app.request(method, path, body).await;
        assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR, "{method} {path}");
        assert_eq!(answer.json(), json!({ "detail": "Internal Server Error" }));
        let id = answer.headers["x-request-id"].to_str().expect("text");
        let lines = log.lines();
        let ours: Vec<_> = lines.iter().filter(|line| line["request_id"] == id).collect();
        assert_eq!(ours.len(), 1, "logged once: {ours:?}");
        assert_eq!(ours[0]["level"], "ERROR");
        assert!(
            ours[0]["error"].as_str().is_some_and(|text| text.contains("title")),
            "{}",
            ours[0]
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_is_answered() {
    let app = TestApp::start().await;
    let router = router(app.store.clone(), Clock::new(|| panic!("the clock stopped")));
    let request =
        Request::get("/v1/agents/a/tasks").header("x-api-key", &app.key).body(Body::empty());
    let response = router.oneshot(request.expect("a request")).await.expect("infallible");
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    let body = axum::body::to_bytes(response.into_body(), 1000).await.expect("a body");
    assert_eq!(body, r#"{"detail":"Internal Server Error"}"#);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_is_gone_is_said_to_be_unavailable() {
    let directory = cluster::world_readable_directory();
    let options = EmbeddedOptions {
        directory: directory.path().join("cluster"),
        binaries: None,
        durable: false,
    };
    let server = Embedded::start(&options).await.expect("it starts");
    let url = DatabaseUrl::parse(&server.database_url("postgres")).expect("a URL");
    store::migrate(&url).await.expect("migrations");
    let store = Store::new(&url, 2, &Limits::default());
    let key = ApiKeySecret::parse("test-key-of-the-default-organization").expect("a key");
    store.bootstrap(Some(&key), Clock::system().now()).await.expect("a first start");
    let router = router(store, Clock::system());
    let get = async |path: &str| {
        let request = Request::get(path).header("x-api-key", key.expose()).body(Body::empty());
        let response =
            router.clone().oneshot(request.expect("a request")).await.expect("infallible");
        let (parts, body) = response.into_parts();
        let body = axum::body::to_bytes(body, 1000).await.expect("a body");
        (parts.status, parts.headers, serde_json::from_slice::<Value>(&body).expect("JSON"))
    };
    assert_eq!(get("/readyz").await.2, "ok");
    assert_eq!(get("/v1/agents/a/tasks").await.0, StatusCode::OK);

    server.stop().await.expect("it stops");
    for path in ["/readyz", "/v1/agents/a/tasks"] {
        // The first uses an idle connection; the others cannot connect.
        for _ in 0..3 {
            let (status, headers, body) = get(path).await;
            assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{path} {body}");
            assert_eq!(body, json!({ "detail": "The service is unavailable, try again later" }));
            assert_eq!(headers["retry-after"], "1");
        }
    }
    assert_eq!(get("/health").await.2, "ok", "liveness does not depend on the database");

    let server = Embedded::start(&options).await.expect("it starts");
    assert_eq!(get("/readyz").await.2, "ok", "it reconnects");
    assert_eq!(get("/v1/agents/a/tasks").await.0, StatusCode::OK);
    server.stop().await.expect("it stops");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn request_ids_are_taken_or_made_and_returned() {
    let app = TestApp::start().await;
    let with_id = async |id: &str| {
        let request = Request::get("/health").header("x-request-id", id).body(Body::empty());
        app.send(request.expect("a request")).await.headers["x-request-id"]
            .to_str()
            .expect("text")
            .to_owned()
    };
    assert_eq!(with_id("caller-1").await, "caller-1");
    for unusable in ["", "has a space", &"x".repeat(129)] {
        assert_eq!(with_id(unusable).await.len(), 36, "generated instead of {unusable:?}");
    }
}
