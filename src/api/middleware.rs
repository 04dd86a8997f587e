//! What surrounds every route: the request log, the timeout, panics, trailing slashes, compression.

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use tower_http::CompressionLevel;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::compression::CompressionLayer;
use tower_http::compression::predicate::{DefaultPredicate, Predicate, SizeAbove};
use uuid::Uuid;

use super::error::{ApiError, LoggedError};

/// The request's id in logs. It is taken from the caller or generated, and always returned.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Longest request id that is taken from a caller, in bytes.
const MAX_REQUEST_ID_BYTES: usize = 128;

/// Answers shorter than this are not compressed, in bytes.
const MIN_COMPRESSED_BYTES: u64 = 1024;

/// The code of nginx for a client that closed the request.
const CLIENT_CLOSED_REQUEST: u16 = 499;

/// Puts the middleware around all routes. The outermost is the request log.
pub(super) fn wrap(router: Router, request_timeout: Duration) -> Router {
    router
        .layer(
            CompressionLayer::new()
                .quality(CompressionLevel::Fastest)
                .compress_when(DefaultPredicate::new().and(SizeAbove::new(MIN_COMPRESSED_BYTES))),
        )
        .layer(from_fn(move |request, next| timeout(request_timeout, request, next)))
        .layer(CatchPanicLayer::custom(panic_response))
        .layer(from_fn(log_request))
}

/// Ends a request that takes longer than anything in it may.
///
/// Most likely its database hangs, which the server's own limits cannot end. A synchronous
/// invocation waits for its agent and has a timeout of its own.
async fn timeout(limit: Duration, request: Request, next: Next) -> Response {
    let has_own_timeout = request.uri().path().ends_with("/invoke");
    let answer = next.run(request);
    if has_own_timeout {
        return answer.await;
    }
    let timed_out =
        |_| ApiError::Unavailable(format!("no answer within {limit:?}")).into_response();
    tokio::time::timeout(limit, answer).await.unwrap_or_else(timed_out)
}

#[expect(clippy::needless_pass_by_value, reason = "the signature that the layer calls")]
fn panic_response(panic: Box<dyn Any + Send>) -> Response {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message");
    ApiError::Internal(format!("a handler panicked: {text}")).into_response()
}

/// The documented paths, to look one up.
pub(super) struct KnownPaths(matchit::Router<()>);

impl KnownPaths {
    /// The paths of an OpenAPI document.
    pub(super) fn new(document: &Value) -> Arc<Self> {
        let mut paths = matchit::Router::new();
        for path in document["paths"].as_object().into_iter().flat_map(serde_json::Map::keys) {
            paths.insert(path, ()).expect("axum routes the same paths");
        }
        Arc::new(Self(paths))
    }

    /// Answers 404, or redirects a known path with a trailing slash, as FastAPI does.
    ///
    /// The address is relative, so that it also works behind a proxy that terminates TLS.
    pub(super) fn not_found(&self, uri: &Uri) -> Response {
        let known = uri.path().strip_suffix('/').filter(|path| self.0.at(path).is_ok());
        let Some(path) = known else { return ApiError::RouteNotFound.into_response() };
        let address = match uri.query() {
            Some(query) => format!("{path}?{query}"),
            None => path.to_owned(),
        };
        match HeaderValue::from_str(&address) {
            Ok(address) => {
                (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, address)]).into_response()
            }
            Err(_) => ApiError::RouteNotFound.into_response(),
        }
    }
}

/// Gives a request its id, and logs it when it is answered or its client has closed it.
async fn log_request(request: Request, next: Next) -> Response {
    let id = request_id(&request);
    let mut log = RequestLog {
        started: Instant::now(),
        method: request.method().clone(),
        // The route, not the path: ids in paths are the client's data.
        route: request.extensions().get::<MatchedPath>().cloned(),
        id: id.clone(),
        response: None,
    };
    let mut response = next.run(request).await;
    let error = response.extensions_mut().remove::<LoggedError>();
    log.response = Some((response.status(), error));
    response.headers_mut().insert(REQUEST_ID, id);
    response
}

/// The log line of a request. It is written when this is dropped, so also if the client closed the
/// request before the answer.
struct RequestLog {
    started: Instant,
    method: Method,
    route: Option<MatchedPath>,
    id: HeaderValue,
    response: Option<(StatusCode, Option<LoggedError>)>,
}

impl Drop for RequestLog {
    fn drop(&mut self) {
        let method = &self.method;
        let route = self.route.as_ref().map_or("-", MatchedPath::as_str);
        let duration_ms = (self.started.elapsed().as_secs_f64() * 1e6).round() / 1e3;
        let request_id = self.id.to_str().unwrap_or_default();
        match self.response.take() {
            Some((status, Some(LoggedError(error)))) => {
                let status = status.as_u16();
                tracing::error!(
                    %method, route, status, duration_ms, request_id, error, "request failed"
                );
            }
            Some((status, None)) => {
                let status = status.as_u16();
                tracing::info!(%method, route, status, duration_ms, request_id, "request");
            }
            None => {
                let status = CLIENT_CLOSED_REQUEST;
                tracing::info!(
                    %method, route, status, duration_ms, request_id, "client closed request"
                );
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
        HeaderValue::from_str(&Uuid::new_v4().to_string()).expect("a UUID is visible ASCII")
    })
}
