//! Event streams under load, under faults, and behind a proxy.

mod bounds;
mod ends;
mod listener;
mod proxy;
mod resume;

use std::time::Duration;

use axum::http::Request;
use serde_json::{Value, json};
use task_history::api::{self, AppState};
use task_history::domain::{Clock, Limits, NetworkOptions};
use task_history::store::{DatabaseUrl, Store};

use crate::support::test_app::TestApp;

/// A time limit that does not end within a test.
const LONG: Duration = Duration::from_hours(1);

/// Limits with which a stream reads only if it is woken, and waits for its reader.
fn patient_limits() -> Limits {
    Limits { recheck_interval: LONG, event_timeout: LONG, ..Limits::default() }
}

/// Pushes chunks of the result.
async fn push_chunks(app: &TestApp, id: &str, texts: impl IntoIterator<Item = String>) {
    let events: Value =
        texts.into_iter().map(|text| json!({ "type": "chunk", "data": text })).collect();
    let path = format!("/agent-execution/{id}/events/push");
    app.request("POST", &path, Some(events)).await.ok();
}

/// A store of another instance of the service, on the database at a URL.
fn store_at(url: &str, limits: &Limits) -> Store {
    Store::new(&DatabaseUrl::parse(url).expect("a URL"), 2, limits)
}

/// Another instance of the service, on the database at a URL.
fn instance(app: &TestApp, url: &str, limits: Limits) -> axum::Router {
    let store = store_at(url, &limits);
    let (clock, stopping) = (Clock::system(), app.stopping.clone());
    api::router(AppState { store, clock, limits, network: NetworkOptions::default(), stopping })
}

/// The head of a request for events, as it is on the wire.
fn events_request(app: &TestApp, id: &str) -> String {
    format!(
        "GET /agent-execution/{id}/events HTTP/1.1\r\nhost: localhost\r\nx-api-key: {}\r\n\
         accept-encoding: gzip\r\n\r\n",
        app.key
    )
}

/// A request for events.
fn get_events(key: &str, id: &str) -> axum::http::request::Builder {
    Request::get(format!("/agent-execution/{id}/events")).header("x-api-key", key)
}
