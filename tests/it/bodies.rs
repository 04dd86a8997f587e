//! Request bodies: how much memory they may take, and texts in them that cannot be stored.
//!
//! A test of the memory that bodies share makes the wait for it short or very long. None measures
//! it.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{Request, StatusCode};
use futures_util::future::join_all;
use hyper::body::{Frame, SizeHint};
use serde_json::{Value, json};
use sqlx::Connection;
use task_history::domain::Limits;
use task_history::store::NewApiKey;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tower::ServiceExt;

use crate::support::cluster;
use crate::support::test_app::{Answer, TestApp};
use crate::writes::lock_tasks;

/// Most bytes of a body.
const LARGEST: usize = 4 << 20;

/// How many of the largest bodies fill the share of an organization.
const IN_SHARE: usize = 8;

const SHORT: Duration = Duration::from_millis(200);
const LONG: Duration = Duration::from_hours(1);

/// Limits that do not end within a test, but for the wait for memory.
fn limits(body_memory_timeout: Duration) -> Limits {
    Limits {
        body_memory_timeout,
        body_timeout: LONG,
        request_timeout: LONG,
        pool_timeout: LONG,
        statement_timeout: LONG,
        ..Limits::default()
    }
}

/// How long anything here may take, at most. It is generous: nothing is measured.
const OUTER_BOUND: Duration = Duration::from_secs(30);

/// The result of what must not wait for the end of a long limit.
async fn in_bound<T>(effect: impl Future<Output = T>) -> T {
    tokio::time::timeout(OUTER_BOUND, effect).await.expect("it waits")
}

fn assert_unavailable(answer: &Answer) {
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE, "{}", answer.text);
    assert_eq!(answer.headers["retry-after"], "1");
}

/// A body that says when each of its parts was taken. It never ends, unless it is told to.
struct Upload {
    announced: Option<u64>,
    parts: VecDeque<(Bytes, oneshot::Sender<()>)>,
    /// Told when the first part is handed out, before it is taken.
    offered: Option<oneshot::Sender<()>>,
    /// The part that was handed out last. The next poll means that it was taken.
    last: Option<oneshot::Sender<()>>,
    ends: bool,
}

impl hyper::body::Body for Upload {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Some(taken) = self.last.take() {
            let _ = taken.send(());
        }
        match self.parts.pop_front() {
            Some((part, taken)) => {
                self.last = Some(taken);
                if let Some(offered) = self.offered.take() {
                    let _ = offered.send(());
                }
                Poll::Ready(Some(Ok(Frame::data(part))))
            }
            None if self.ends => Poll::Ready(None),
            None => Poll::Pending,
        }
    }

    fn size_hint(&self) -> SizeHint {
        self.announced.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl Upload {
    /// A body of spaces in parts of these lengths, and what tells that the parts were taken.
    fn new(lengths: &[usize]) -> (Self, Vec<oneshot::Receiver<()>>) {
        let (parts, taken) = lengths
            .iter()
            .map(|length| {
                let (sender, receiver) = oneshot::channel();
                ((Bytes::from(vec![b' '; *length]), sender), receiver)
            })
            .unzip();
        (Self { announced: None, parts, offered: None, last: None, ends: false }, taken)
    }

    /// Sends it, in a task of its own.
    fn send(self, app: &TestApp, key: &str) -> JoinHandle<Answer> {
        let request = Request::post("/v1/agents/a/invoke/async")
            .header("x-api-key", key)
            .header("content-type", "application/json")
            .body(Body::new(self))
            .expect("a request");
        let router = app.router.clone();
        tokio::spawn(async move {
            let (parts, body) = router.oneshot(request).await.expect("infallible").into_parts();
            let bytes = axum::body::to_bytes(body, usize::MAX).await.expect("a body");
            let text = String::from_utf8_lossy(&bytes).into_owned();
            Answer { status: parts.status, headers: parts.headers, text }
        })
    }
}

/// Fills the share of a key's organization with unfinished bodies.
async fn fill_share(app: &TestApp, key: &str) -> Vec<JoinHandle<Answer>> {
    let mut uploads = Vec::new();
    for _ in 0..IN_SHARE {
        let (upload, taken) = Upload::new(&[LARGEST]);
        uploads.push(upload.send(app, key));
        for taken in taken {
            in_bound(taken).await.expect("the body is read");
        }
    }
    uploads
}

/// Closes the connection of an unfinished body.
async fn close(upload: JoinHandle<Answer>) {
    upload.abort();
    assert!(upload.await.expect_err("unfinished").is_cancelled());
}

async fn invoke_as(app: &TestApp, key: &str) -> Answer {
    app.request_as(key, "POST", "/v1/agents/a/invoke/async", Some(json!({ "input": {} }))).await
}

/// A body with so many values.
fn with_values(values: usize) -> Value {
    // The body, `input`, `payload_extension` and the array are values too.
    json!({ "input": {}, "payload_extension": { "a": vec![0; values - 4] } })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_with_too_many_values() {
    let app = TestApp::start().await;
    app.invoke("a", with_values(100_000)).await.ok();
    let answer = app.invoke("a", with_values(100_001)).await;
    assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE);
    let detail = "The request body has more than 100000 values";
    assert_eq!(answer.json(), json!({ "detail": detail }));
    // Objects count, and so do values that no route reads.
    let body = json!({ "input": {}, "unknown": vec![json!({ "": 0 }); 50_000] });
    assert_eq!(app.invoke("a", body).await.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(app.get("/v1/tasks").await.ok()["total"], 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_in_flight_share_their_memory() {
    let app = TestApp::start_with(limits(SHORT)).await;
    let (other, _) = app.other_organization().await;
    let third = NewApiKey {
        organization: "third".into(),
        name: "third".into(),
        can_write: true,
        expires_at: None,
    };
    let third = app.store.create_api_key(&third, app.now()).await.expect("a key").secret;
    let mut uploads = fill_share(&app, &app.key).await;
    assert_unavailable(&invoke_as(&app, &app.key).await);
    invoke_as(&app, &other).await.ok();
    let others = fill_share(&app, &other).await;
    assert_unavailable(&invoke_as(&app, third.expose()).await);
    // What needs no body is answered.
    app.get("/v1/tasks").await.ok();
    close(uploads.pop().expect("an upload")).await;
    invoke_as(&app, third.expose()).await.ok();
    invoke_as(&app, &app.key).await.ok();
    for upload in uploads.into_iter().chain(others) {
        close(upload).await;
    }
    // All of it is free again, and a body that was refused has none.
    for upload in fill_share(&app, &app.key).await {
        close(upload).await;
    }
}

/// One thread: when this test runs again after a part was offered, the claim for it is waiting.
#[tokio::test]
async fn a_body_waits_for_memory() {
    let app = TestApp::start_with(limits(LONG)).await;
    let mut uploads = fill_share(&app, &app.key).await;
    let (mut upload, mut taken) = Upload::new(&[1, 1]);
    let (offered, is_offered) = oneshot::channel();
    (upload.ends, upload.offered) = (true, Some(offered));
    let waiting = upload.send(&app, &app.key);
    in_bound(is_offered).await.expect("a part is offered");
    assert!(taken[0].try_recv().is_err(), "there is no memory for it");
    assert!(!waiting.is_finished(), "it waits");
    close(uploads.pop().expect("an upload")).await;
    // Its spaces are no JSON.
    assert_eq!(
        in_bound(waiting).await.expect("an answer").status,
        StatusCode::UNPROCESSABLE_ENTITY
    );
}

/// A client may announce a long body and send little of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_has_memory_for_what_was_sent() {
    let app = TestApp::start_with(limits(SHORT)).await;
    let mut uploads = Vec::new();
    for _ in 0..5 * IN_SHARE {
        let (mut upload, taken) = Upload::new(&[1]);
        upload.announced = Some(LARGEST as u64);
        uploads.push(upload.send(&app, &app.key));
        for taken in taken {
            in_bound(taken).await.expect("the part is read");
        }
    }
    invoke_as(&app, &app.key).await.ok();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_outgrows_the_memory_is_refused_at_once() {
    let app = TestApp::start_with(limits(LONG)).await;
    let mut uploads = fill_share(&app, &app.key).await;
    close(uploads.pop().expect("an upload")).await;
    let (half, mut taken) = Upload::new(&[LARGEST / 2]);
    let half = half.send(&app, &app.key);
    in_bound(taken.remove(0)).await.expect("the part is read");
    let (mut large, taken) = Upload::new(&[LARGEST / 4, LARGEST / 2, 1]);
    large.ends = true;
    // Its rest is read and discarded, so that its client sees the answer.
    assert_unavailable(&in_bound(large.send(&app, &app.key)).await.expect("an answer"));
    for taken in taken {
        in_bound(taken).await.expect("the part is read");
    }
    // What it had is free again.
    let (mut other, _) = Upload::new(&[LARGEST / 2]);
    other.ends = true;
    let answer = in_bound(other.send(&app, &app.key)).await.expect("an answer");
    assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "{}", answer.text);
    close(half).await;
}

/// Short bodies with many values take memory too, until they are recorded.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_in_flight_are_limited() {
    let app = TestApp::start_with(limits(SHORT)).await;
    let (other, _) = app.other_organization().await;
    // The keys are cached from now on.
    for key in [&app.key, &other] {
        invoke_as(&app, key).await.ok();
    }
    let lock = lock_tasks(&app).await;
    let send = async |key: &str| {
        let request = Request::post("/v1/agents/a/invoke/async")
            .header("x-api-key", &app.key)
            .header("content-type", "application/json")
            // Such an invocation is not written together with others.
            .header("idempotency-key", key)
            .body(Body::from(with_values(100_000).to_string()));
        app.send(request.expect("a request")).await
    };
    let check = async {
        let mut connection = cluster::connect(&app.database).await;
        let waiting = "SELECT count(*) FROM pg_stat_activity
                       WHERE datname = current_database() AND wait_event_type = 'Lock'";
        cluster::until_count(&mut connection, waiting, |count| count >= 2).await;
        assert_unavailable(&invoke_as(&app, &app.key).await);
        lock.close().await.expect("unlocked");
    };
    let requests = join_all(["k1", "k2"].map(send));
    let (answers, ()) = in_bound(futures_util::future::join(requests, check)).await;
    for answer in answers {
        answer.ok();
    }
    invoke_as(&app, &app.key).await.ok();
}

/// Sends a body as it is.
async fn send_text(app: &TestApp, method: &str, path: &str, body: &str) -> Answer {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("x-api-key", &app.key)
        .header("content-type", "application/json")
        .body(Body::from(body.to_owned()));
    app.send(request.expect("a request")).await
}

fn replaced(answer: &Answer) -> Option<&str> {
    answer.headers.get("x-text-replaced").map(|value| value.to_str().expect("text"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_report_with_half_a_character_is_recorded() {
    let app = TestApp::start().await;
    app.invoke("a", json!({ "id": "t", "input": {} })).await.ok();
    let update = "/agent-execution/t/update";
    let body = r#"{"result": "cut \ud83d", "payload_extension": {"\udc00": ["\ud800\ud83d\ude00"]},
                   "title": "\\ud800 \ud83d\ude00", "status": "completed"}"#;
    let answer = send_text(&app, "PATCH", update, body).await;
    let task = answer.ok();
    assert_eq!(replaced(&answer), Some("3"));
    assert_eq!(task["result"], "cut \u{fffd}");
    assert_eq!(task["payload_extension"], json!({ "\u{fffd}": ["\u{fffd}😀"] }));
    assert_eq!(task["title"], "\\ud800 😀", "an escaped backslash and a whole character stay");
    assert_eq!(app.get("/v1/tasks/t").await.ok(), task);
    let answer = send_text(&app, "PATCH", update, r#"{"result": "\ufffd"}"#).await;
    assert_eq!((replaced(&answer), &answer.ok()["result"]), (None, &json!("\u{fffd}")));

    let push = "/agent-execution/t/events/push";
    let answer = send_text(&app, "POST", push, r#"[{"type":"chunk","data":"\udfff"}]"#).await;
    assert_eq!((replaced(&answer), &answer.ok()["accepted"]), (Some("1"), &json!(1)));
    let metrics = "/agents-metrics/a/execution";
    let body = r#"{"execution_id": "t", "internal_status": "\ud800\n"}"#;
    let answer = send_text(&app, "POST", metrics, body).await;
    assert_eq!(replaced(&answer), Some("1"));
    assert_eq!(answer.ok()["internal_status"], "\u{fffd}\n");
    let elsewhere = "/agent-execution/a/report_task";
    let body = r#"{"id": "u", "input": "\ud800", "llm_response": {"a": "\ud800"}}"#;
    let answer = send_text(&app, "POST", elsewhere, body).await;
    assert_eq!(replaced(&answer), Some("2"));
    assert_eq!(answer.ok()["result"], "{\"a\":\"\u{fffd}\"}");

    // An id with another character would be the id of another task.
    for (path, name) in [(metrics, "execution_id"), (elsewhere, "id")] {
        let answer = send_text(&app, "POST", path, &format!(r#"{{"{name}": "t\ud800"}}"#)).await;
        assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "{}", answer.text);
        let error = &answer.json()["detail"][0];
        assert_eq!(error["loc"], json!(["body", name]));
        assert!(error["msg"].as_str().is_some_and(|msg| msg.contains("surrogate")), "{error}");
    }
    // A request that no agent's work depends on is refused as FastAPI refuses it.
    let body = r#"{"input": {"text": "\ud800"}}"#;
    let answer = send_text(&app, "POST", "/v1/agents/a/invoke/async", body).await;
    assert_eq!(answer.json()["detail"][0]["type"], "json_invalid");
    for body in [r#"{"result": "\ud800\x"}"#, r#"{"result": "\ud80"}"#, r#"{"result": "\ud800"#] {
        let answer = send_text(&app, "PATCH", update, body).await;
        assert_eq!(answer.json()["detail"][0]["type"], "json_invalid", "{body}");
    }
    assert_eq!(app.get("/v1/tasks").await.ok()["total"], 2);
}

/// Every text that would be stored, with a NUL, and the place that the error names.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_nul_in_a_report_is_named() {
    let app = TestApp::start().await;
    app.invoke("a", json!({ "id": "t", "input": {} })).await.ok();
    let before = app.get("/v1/tasks/t").await.ok();
    let nul = "a\0b";
    let deep = json!({ "a": [{ "b": ["\0"] }] });
    let key = json!({ "a": [{ "\0": 1 }] });
    let updates = [
        (json!({ "result": nul }), "result"),
        (json!({ "internal_status": nul }), "internal_status"),
        (json!({ "last_executed_node_id": nul }), "last_executed_node_id"),
        (json!({ "source": nul }), "source"),
        (json!({ "title": nul }), "title"),
        (json!({ "payload_extension": deep }), "payload_extension"),
        (json!({ "tool_call_payload_extension": key }), "tool_call_payload_extension"),
        (json!({ "tokens": { "\0": 1 } }), "tokens"),
        (json!({ "used_tools": ["ok", nul] }), "used_tools"),
        (json!({ "hitl_request": { "wait_node_id": "n", "x": deep } }), "hitl_request"),
        (
            json!({ "pending_eca_request": { "connector_name": nul, "auth_url": "u" } }),
            "pending_eca_request",
        ),
        (json!({ "deep_planning": { "tasks": [{ "id": nul, "title": "t" }] } }), "deep_planning"),
    ];
    let turns = [
        (json!({ "id": nul }), "id"),
        (json!({ "input": nul }), "input"),
        (json!({ "llm_response": nul }), "llm_response"),
        (json!({ "llm_response": deep }), "llm_response"),
        (json!({ "llm_response": key, "result": "r" }), "llm_response"),
        (json!({ "result": nul }), "result"),
        (json!({ "tokens": { "\0": 1 } }), "tokens"),
        (json!({ "used_tools": [nul] }), "used_tools"),
    ];
    let metrics = [
        (json!({ "execution_id": nul }), "execution_id"),
        (json!({ "execution_id": "t", "internal_status": nul }), "internal_status"),
        (json!({ "execution_id": "t", "llm_tokens": { "worker": { "\0": 1 } } }), "llm_tokens"),
        (json!({ "execution_id": "t", "llm_tokens": { "inner": { "\0": 1 } } }), "llm_tokens"),
    ];
    for (method, path, cases) in [
        ("PATCH", "/agent-execution/t/update", &updates[..]),
        ("POST", "/agent-execution/a/report_task", &turns[..]),
        ("POST", "/agents-metrics/a/execution", &metrics[..]),
    ] {
        for (body, field) in cases {
            let answer = app.request(method, path, Some(body.clone())).await;
            assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "{body}: {}", answer.text);
            let error = &answer.json()["detail"][0];
            assert_eq!((&error["loc"][0], &error["loc"][1]), (&json!("body"), &json!(field)));
            assert_eq!(error["msg"], "Value error, must not contain NUL (U+0000)", "{body}");
        }
    }
    for event in [json!({ "type": nul }), json!({ "type": "x", "data": deep })] {
        let events = Some(json!([{ "type": "chunk", "data": "ok" }, event]));
        let answer = app.request("POST", "/agent-execution/t/events/push", events).await;
        assert_eq!(answer.json()["detail"][0]["loc"][1], 1, "{}", answer.text);
    }
    assert_eq!(app.get("/v1/tasks/t").await.ok(), before);
    assert_eq!(app.get("/v1/tasks").await.ok()["total"], 1);
}

/// Bytes that are no text are refused. A character in their place would make different keys equal.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_header_that_is_no_text_is_named() {
    let app = TestApp::start().await;
    for (name, path) in [
        ("idempotency-key", "/v1/agents/a/invoke/async"),
        ("idempotency-key", "/agent-execution/b"),
        ("x-agent-version", "/agent-execution/b"),
    ] {
        let send = async |value: &[u8]| {
            let request = Request::post(path)
                .header("x-api-key", &app.key)
                .header("content-type", "application/json")
                .header(name, value)
                .body(Body::from(r#"{"input":{}}"#));
            app.send(request.expect("a request")).await
        };
        let answer = send(b"k\xff").await;
        assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY, "{name}: {}", answer.text);
        let error = &answer.json()["detail"][0];
        assert_eq!(error["loc"], json!(["header", name]));
        assert_eq!(error["msg"], "Value error, must be UTF-8");
        let version = send("é".as_bytes()).await.ok()["agent_version"].clone();
        assert_eq!(version, if name == "x-agent-version" { json!("é") } else { Value::Null });
    }
}
