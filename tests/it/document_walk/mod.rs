//! Walks the OpenAPI document and proves that the document and the readers of requests agree.
//!
//! Every operation is walked, so a new route, parameter or field is checked when it is documented.

mod read_fields;
mod walk;

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::Request;
use futures_util::stream;
use serde_json::{Value, json};
use task_history::api::{self, AppState};
use task_history::domain::{Clock, Limits, NetworkOptions, PeerAddress};
use task_history::store::{DatabaseUrl, NewApiKey, Store};
use tower::ServiceExt;
use tracing::instrument::WithSubscriber;
use tracing_subscriber::layer::SubscriberExt;

use self::read_fields::{ReadFields, joined};
use self::walk::{Walk, check_words, count, error_at, replaced};
use crate::support::test_app::{TestApp, router};

/// Fields of bodies that accept any value, and why.
const UNTYPED: &[(&str, &str)] = &[
    ("data", "the event's own data; the official SDK reads any JSON value"),
    ("llm_response", "the contract types it as any value"),
];

/// What is read and not documented, and why.
const UNDOCUMENTED: &[(&str, &str)] = &[
    ("cursor", "only the Link header's addresses have it; it is opaque to clients"),
    ("attachments", "the official SDK sends it; the contract's requests do not have it"),
    ("principal", "the official SDK sends it; the contract's requests do not have it"),
    ("voice_id", "the official SDK sends it; the contract's requests do not have it"),
    ("tool_call_limit", "the official SDK sends it; the contract's requests do not have it"),
    ("harness_cli", "the official SDK sends it; the contract's requests do not have it"),
    ("permission_mode", "the official SDK sends it; the contract's requests do not have it"),
];

/// Error statuses that an operation answers and does not document, and why.
const UNDOCUMENTED_STATUSES: &[(&str, u16, &str)] = &[
    ("get /v1/agents/{agent_id}/tasks", 401, "the contract documents 200 and 422 only"),
    ("get /v1/agents/{agent_id}/tasks", 429, "the contract documents 200 and 422 only"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_documented_query_parameter_is_read() {
    let walk = Walk::start().await;
    let mut walked = 0;
    for operation in &walk.operations {
        walk.record_task().await;
        let body = operation.body.as_ref().map(|schema| walk.example(schema));
        for parameter in &operation.parameters {
            walked += 1;
            let name = parameter["name"].as_str().expect("a name");
            let (schema, _) = walk.resolve(&parameter["schema"]);
            let loc = [json!("query"), json!(name)];
            let with = async |value: &str| {
                walk.call(operation, &format!("?{name}={value}"), body.as_ref()).await
            };
            let what = format!("{} {name}", operation.name);
            let pattern = schema["pattern"].as_str().map(|pattern| {
                let words = pattern.strip_prefix("^(").and_then(|rest| rest.split_once(')'));
                words.expect("words").0.split('|').collect::<Vec<_>>()
            });
            let words = schema["enum"].as_array().map(|words| {
                words.iter().map(|word| word.as_str().expect("a word")).collect::<Vec<_>>()
            });
            if let Some(words) = words.or(pattern) {
                check_words(&error_at(&with("unknown").await, &loc, &what), &words, &what);
                let mut counts = Vec::new();
                for word in &words {
                    counts.push(count(&with(word).await));
                }
                assert_eq!(counts.iter().sum::<usize>(), 1, "{what}: one status has the task");
            } else if schema["type"] == "integer" {
                error_at(&with("x").await, &loc, &what);
                let minimum = schema["minimum"].as_i64().expect("a minimum");
                error_at(&with(&(minimum - 1).to_string()).await, &loc, &what);
                assert_eq!(with(&minimum.to_string()).await.status, 200, "{what}");
                if let Some(maximum) = schema["maximum"].as_i64() {
                    assert_eq!(with(&maximum.to_string()).await.status, 200, "{what}");
                    error_at(&with(&(maximum + 1).to_string()).await, &loc, &what);
                }
            } else if schema["format"] == "date-time" {
                error_at(&with("x").await, &loc, &what);
                let counts = (count(&with("1970-01-01").await), count(&with("9999-01-01").await));
                assert!([(0, 1), (1, 0)].contains(&counts), "{what}: {counts:?}");
            } else if name == "version" {
                assert_eq!(with("x1").await.status, 200, "{what}");
                assert_eq!(walk.app.get("/v1/tasks/x").await.ok()["agent_version"], "x1", "{what}");
            } else {
                let counts = (count(&with("x").await), count(&with("unknown").await));
                assert_eq!(counts, (1, 0), "{what}: it filters");
            }
        }
    }
    assert!(walked >= 40, "only {walked} parameters were found");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_documented_field_is_read() {
    let walk = Walk::start().await;
    walk.record_task().await;
    let (mut walked, mut untyped) = (0, BTreeSet::new());
    for operation in &walk.operations {
        let Some(schema) = &operation.body else { continue };
        let full = walk.example(schema);
        let answer = walk.call(operation, "", Some(&full)).await;
        assert_eq!(answer.status, 200, "{}: {}", operation.name, answer.text);
        for site in walk.body_sites(operation) {
            walked += 1;
            let what = format!("{} {}", operation.name, json!(site.loc));
            let with = async |value: Option<Value>| {
                walk.call(operation, "", Some(&replaced(&full, &site.loc, value))).await
            };
            let words = site.schema["enum"].as_array().map(|words| {
                words.iter().map(|word| word.as_str().expect("a word")).collect::<Vec<_>>()
            });
            let wrong = match (&words, site.schema["type"].as_str()) {
                (Some(_), _) => vec![json!("unknown"), json!(1)],
                (None, Some("string")) => vec![json!(1), json!({})],
                (None, Some("integer")) => vec![json!("x"), json!(1.5)],
                (None, Some(_)) => vec![json!("x")],
                (None, None) => Vec::new(),
            };
            if wrong.is_empty() {
                untyped.extend(site.loc.last().and_then(Value::as_str).map(str::to_owned));
            }
            for value in wrong {
                let error = error_at(&with(Some(value)).await, &site.loc, &what);
                if let Some(words) = &words {
                    check_words(&error, words, &what);
                }
            }
            for word in words.into_iter().flatten() {
                // A turn that a body names and that has ended keeps its status.
                let mut body = replaced(&full, &site.loc, Some(json!(word)));
                body.as_object_mut().and_then(|fields| fields.remove("turn"));
                let answer = walk.call(operation, "", Some(&body)).await;
                assert_eq!(answer.status, 200, "{what} {word}: {}", answer.text);
            }
            let null = with(Some(Value::Null)).await;
            if site.is_nullable {
                assert_eq!(null.status, 200, "{what} null: {}", null.text);
            } else {
                error_at(&null, &site.loc, &what);
            }
            match site.is_required {
                Some(true) => {
                    let error = error_at(&with(None).await, &site.loc, &what);
                    assert_eq!(error["type"], "missing", "{what}");
                }
                Some(false) => assert_eq!(with(None).await.status, 200, "{what} is optional"),
                None => {}
            }
        }
    }
    assert!(walked >= 200, "only {walked} fields were found");
    assert_eq!(untyped, UNTYPED.iter().map(|(name, _)| (*name).to_owned()).collect());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_that_is_read_is_documented() {
    let walk = Walk::start().await;
    let mut excused = BTreeSet::new();
    let mut fields_read = 0;
    for operation in &walk.operations {
        walk.record_task().await;
        let body = operation.body.as_ref().map(|schema| walk.example(schema));
        let fields = ReadFields::default();
        let subscriber = tracing_subscriber::registry().with(fields.clone());
        let answer = walk.call(operation, "", body.as_ref()).with_subscriber(subscriber).await;
        assert!(answer.status.is_success(), "{}: {}", operation.name, answer.text);
        let documented: BTreeSet<String> = {
            let body = walk.body_sites(operation).into_iter().map(|site| joined(&site.loc));
            let query = operation.parameters.iter().map(|one| one["name"].as_str().expect("name"));
            body.chain(query.map(|name| format!("query/{name}"))).collect()
        };
        let read = fields.0.lock().expect("no panic").clone();
        fields_read += read.len();
        for name in read.difference(&documented) {
            let last = name.rsplit('/').next().expect("a name");
            let excuse = UNDOCUMENTED.iter().find(|(name, _)| *name == last);
            let (name, _) =
                excuse.unwrap_or_else(|| panic!("{} reads {name}, undocumented", operation.name));
            excused.insert(*name);
        }
    }
    assert!(fields_read >= 200, "only {fields_read} fields were read");
    assert_eq!(excused, UNDOCUMENTED.iter().map(|(name, _)| *name).collect());
}

/// The service of an app that waits for no body.
fn without_patience(app: &TestApp) -> Router {
    let limits = Limits { body_timeout: Duration::ZERO, ..Limits::default() };
    api::router(AppState {
        store: app.store.clone(),
        clock: Clock::system(),
        limits,
        network: NetworkOptions::default(),
        stopping: app.stopping.clone(),
    })
}

/// Tries as many wrong keys as an address may.
async fn guess_keys(app: &TestApp, guesser: PeerAddress) {
    for number in 0..20 {
        let request = Request::get("/v1/tasks").header("x-api-key", format!("guess-{number}"));
        let request = request.extension(guesser).body(Body::empty()).expect("a request");
        let _ = app.router.clone().oneshot(request).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_documented_error_is_answered_and_no_other() {
    let walk = Walk::start().await;
    let app = &walk.app;
    app.invoke("other", json!({ "id": "other", "input": {} })).await.ok();
    let new = NewApiKey {
        organization: "default".into(),
        name: "reader".into(),
        can_write: false,
        expires_at: None,
    };
    let reader = app.store.create_api_key(&new, app.now()).await.expect("a key").secret;
    let (other_key, _) = app.other_organization().await;
    let url = DatabaseUrl::parse("postgres://x@127.0.0.1:1/x").expect("a URL");
    let without_database = router(Store::new(&url, 1, &Limits::default()), Clock::system());
    let without_patience = without_patience(app);
    let guesser = PeerAddress(([192, 0, 2, 1], 1).into());
    guess_keys(app, guesser).await;
    let mut excused = BTreeSet::new();
    for (index, operation) in walk.operations.iter().enumerate() {
        walk.record_task().await;
        // Bodies name this turn, and one of them another status.
        app.report("x", json!({ "turn": 1, "status": "completed" })).await.ok();
        let body = operation.body.as_ref().map(|schema| walk.example(schema));
        // The ids of a body, as a task of another agent and as one that does not exist.
        let with_id = |id: &str| {
            let mut body = body.clone()?;
            for name in ["id", "execution_id"] {
                body.get_mut(name).into_iter().for_each(|value| *value = id.into());
            }
            Some(body.to_string().into_bytes())
        };
        let target = walk.target(operation, "x");
        // Some operations create what they do not find, so each has an unknown id of its own.
        let unknown_id = format!("unknown-{index}");
        let unknown = walk.target(operation, &unknown_id);
        let bad_query = format!("{target}?page=x");
        let key = app.key.as_str();
        let broken = body.as_ref().map(|_| b"{\"x\": \"\xff\"}".to_vec());
        let wrong = body.as_ref().map(|_| b"5".to_vec());
        let huge = body.as_ref().map(|_| format!("[{}0]", "0,".repeat(100_000)).into_bytes());
        let requests = [
            ("wrong", &target, with_id("x")),
            (reader.expose(), &target, with_id("x")),
            (other_key.as_str(), &unknown, with_id(&unknown_id)),
            (key, &unknown, with_id(&unknown_id)),
            (key, &target, with_id("other")),
            (key, &target, broken),
            (key, &target, wrong),
            (key, &target, huge),
            (key, &bad_query, with_id("x")),
        ];
        let mut answered = BTreeSet::new();
        for (key, target, body) in requests {
            answered.insert(walk.send(key, &operation.method, target, body).await.status.as_u16());
        }
        if body.is_some() {
            for (router, body) in [
                (&without_database, Body::from("{}")),
                (
                    &without_patience,
                    Body::from_stream(stream::pending::<Result<Bytes, Infallible>>()),
                ),
            ] {
                let request = Request::builder()
                    .method(operation.method.as_str())
                    .uri(&target)
                    .header("x-api-key", key)
                    .body(body)
                    .expect("a request");
                let response = router.clone().oneshot(request).await.expect("infallible");
                answered.insert(response.status().as_u16());
            }
        }
        // Of an address that has guessed keys.
        let request = Request::builder().method(operation.method.as_str()).uri(&target);
        let guess = request.extension(guesser).header("x-api-key", "guess-of-the-operation");
        let guess = guess.body(Body::empty()).expect("a request");
        if operation.needs_key {
            let response = app.router.clone().oneshot(guess).await.expect("infallible");
            answered.insert(response.status().as_u16());
        } else {
            let request = Request::get(&operation.path).body(Body::empty()).expect("a request");
            let response = without_database.clone().oneshot(request).await.expect("infallible");
            answered.insert(response.status().as_u16());
        }
        for status in answered.difference(&operation.statuses) {
            let excuse = UNDOCUMENTED_STATUSES
                .iter()
                .find(|(name, other, _)| *name == operation.name && other == status);
            assert!(excuse.is_some(), "{} answers {status}, undocumented", operation.name);
            excused.insert((operation.name.as_str(), *status));
        }
        for status in operation.statuses.difference(&answered) {
            // FastAPI documents 422 for every operation with a parameter, and the contract's
            // documents have it. A path parameter alone cannot be invalid: it is a string.
            let has_no_input = operation.body.is_none() && operation.parameters.is_empty();
            assert!(
                *status < 300 || (*status == 422 && has_no_input),
                "{} documents {status}, which no request provokes: {answered:?}",
                operation.name
            );
        }
    }
    let listed = UNDOCUMENTED_STATUSES.iter().map(|(name, status, _)| (*name, *status));
    assert_eq!(excused, listed.collect());
}
