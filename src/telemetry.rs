//! Logs: one line a request, and what went wrong on our side once, with the request's id.

use std::io::IsTerminal;
use std::time::Instant;

use anyhow::Context;
use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use tracing_subscriber::EnvFilter;
use uuid::Uuid;

use crate::api::Failure;

/// Names a request in logs; taken from the caller or made up, and always returned.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Longest request id that is taken from a caller, in bytes.
const MAX_REQUEST_ID_BYTES: usize = 128;

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Human,
    /// One JSON object a line.
    Json,
}

/// Starts logging to standard error.
pub fn init(format: Option<LogFormat>, filter: &str) -> anyhow::Result<()> {
    let quiet = format!("sqlx::postgres::notice=warn,{filter}");
    let filter = EnvFilter::builder()
        .parse(&quiet)
        .with_context(|| format!("--log takes a level or a list of targets with levels, not `{filter}`"))?;
    let terminal = std::io::stderr().is_terminal();
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format.unwrap_or(if terminal { LogFormat::Human } else { LogFormat::Json }) {
        LogFormat::Human => builder.with_target(false).with_ansi(terminal).init(),
        LogFormat::Json => builder.json().flatten_event(true).with_current_span(false).init(),
    }
    Ok(())
}

/// Middleware around every route: gives the request its id, and logs it when it is answered, or given up.
pub async fn log_request(request: Request, next: Next) -> Response {
    let id = request_id(&request);
    let mut line = Line {
        started: Instant::now(),
        method: request.method().clone(),
        // The route, not the path: ids in paths are the clients' data.
        route: request.extensions().get::<MatchedPath>().cloned(),
        id: id.clone(),
        outcome: None,
    };
    let mut response = next.run(request).await;
    line.outcome = Some((response.status(), response.extensions_mut().remove::<Failure>()));
    response.headers_mut().insert(REQUEST_ID, id);
    response
}

/// The log's line of a request, written when this is dropped: also where the client went away before the answer.
struct Line {
    started: Instant,
    method: Method,
    route: Option<MatchedPath>,
    id: HeaderValue,
    outcome: Option<(StatusCode, Option<Failure>)>,
}

impl Drop for Line {
    fn drop(&mut self) {
        let method = &self.method;
        let route = self.route.as_ref().map_or("-", MatchedPath::as_str);
        let ms = self.started.elapsed().as_secs_f64() * 1e3;
        let ms = (ms * 1e3).round() / 1e3;
        let request_id = self.id.to_str().unwrap_or_default();
        match self.outcome.take() {
            Some((status, Some(Failure(error)))) => {
                let status = status.as_u16();
                tracing::error!(%method, route, status, ms, request_id, error, "request failed");
            }
            Some((status, None)) => {
                let status = status.as_u16();
                tracing::info!(%method, route, status, ms, request_id, "request");
            }
            // What nginx calls it.
            None => {
                tracing::info!(%method, route, status = 499, ms, request_id, "request given up by its client");
            }
        }
    }
}

fn request_id(request: &Request) -> HeaderValue {
    let given = request.headers().get(REQUEST_ID).filter(|id| {
        let bytes = id.as_bytes();
        (1..=MAX_REQUEST_ID_BYTES).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic)
    });
    given.cloned().unwrap_or_else(|| {
        HeaderValue::from_str(&Uuid::now_v7().to_string()).expect("a UUID is visible ASCII")
    })
}
