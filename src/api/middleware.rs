//! What surrounds every route: the request log, headers for browsers, the timeout, panics, trailing
//! slashes, compression.

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use tower_http::CompressionLevel;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::compression::CompressionLayer;
use tower_http::compression::predicate::{DefaultPredicate, Predicate, SizeAbove};
use tracing::field::display;

use super::browser;
use super::client::{Client, Clients, REQUEST_ID};
use super::error::{ApiError, LoggedError};
use super::failed_keys::FailedKeys;
use crate::domain::{Limits, NetworkOptions};

/// Longest address of a redirect, in bytes. A longer one would not fit into the head of 4 KiB that
/// every client accepts.
const MAX_LOCATION_BYTES: usize = 3 << 10;

/// Answers shorter than this are not compressed, in bytes.
const MIN_COMPRESSED_BYTES: u64 = 1024;

/// The route of synchronous invocations.
const INVOKE_ROUTE: &str = "/v1/agents/{agent_id}/invoke";

/// The code of nginx for a client that closed the request.
const CLIENT_CLOSED_REQUEST: u16 = 499;

/// Puts the middleware around all routes. The outermost is the request log.
pub(super) fn wrap(router: Router, limits: &Limits, network: NetworkOptions) -> Router {
    let request_timeout = limits.request_timeout;
    let clients = Arc::new(Clients {
        trusted_proxies: network.trusted_proxies,
        failed_keys: FailedKeys::new(limits.failed_key_interval),
    });
    let router = router
        .layer(
            CompressionLayer::new()
                .quality(CompressionLevel::Fastest)
                .compress_when(DefaultPredicate::new().and(SizeAbove::new(MIN_COMPRESSED_BYTES))),
        )
        .layer(from_fn(move |request, next| timeout(request_timeout, request, next)))
        .layer(CatchPanicLayer::custom(panic_response));
    let router = match browser::cors(&network.cors_origins) {
        Some(cors) => router.layer(cors),
        None => router,
    };
    router
        .layer(from_fn(browser::add_security_headers))
        .layer(from_fn(move |request, next| log_request(clients.clone(), request, next)))
}

/// Ends a request that takes longer than anything in it may. A synchronous invocation waits for its
/// agent and has a timeout of its own; all that it asks the database has deadlines.
async fn timeout(limit: Duration, request: Request, next: Next) -> Response {
    let is_read = request.method().is_safe();
    let route = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let has_own_timeout = request.method() == Method::POST && route == Some(INVOKE_ROUTE);
    let answer = next.run(request);
    if has_own_timeout {
        return answer.await;
    }
    tokio::time::timeout(limit, answer).await.unwrap_or_else(|_| {
        let text = format!("no answer within {limit:?}");
        let error =
            if is_read { ApiError::Unavailable(text) } else { ApiError::OutcomeUnknown(text) };
        error.into_response()
    })
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
    /// The address is relative, so that it also works behind a proxy that terminates TLS. Clients
    /// take `\` for `/`, and an address that begins with two of them names another host.
    pub(super) fn not_found(&self, uri: &Uri) -> Response {
        let path = uri.path();
        let is_local = !path.starts_with("//") && !path.contains('\\');
        let known = path.strip_suffix('/').filter(|path| is_local && self.0.at(path).is_ok());
        let Some(path) = known else { return ApiError::RouteNotFound.into_response() };
        let address = match uri.query() {
            Some(query) => format!("{path}?{query}"),
            None => path.to_owned(),
        };
        match HeaderValue::from_str(&address) {
            Ok(value) if address.len() <= MAX_LOCATION_BYTES => {
                (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, value)]).into_response()
            }
            _ => ApiError::RouteNotFound.into_response(),
        }
    }
}

/// Gives a request its id and its client, and logs it when it is answered or its client has closed
/// it.
async fn log_request(clients: Arc<Clients>, mut request: Request, next: Next) -> Response {
    let client = clients.client_of(&request);
    request.extensions_mut().insert(client.clone());
    let mut log = RequestLog {
        started: Instant::now(),
        method: request.method().clone(),
        // The route, not the path: ids in paths are the client's data.
        route: request.extensions().get::<MatchedPath>().cloned(),
        client: client.clone(),
        response: None,
    };
    let mut response = next.run(request).await;
    let error = response.extensions_mut().remove::<LoggedError>();
    log.response = Some((response.status(), error));
    response.headers_mut().insert(REQUEST_ID, client.request_id().clone());
    response
}

/// The log line of a request. It is written when this is dropped, so also if the client closed the
/// request before the answer.
struct RequestLog {
    started: Instant,
    method: Method,
    route: Option<MatchedPath>,
    client: Arc<Client>,
    response: Option<(StatusCode, Option<LoggedError>)>,
}

impl Drop for RequestLog {
    fn drop(&mut self) {
        if self.client.is_summarized() {
            return;
        }
        let status = self.response.as_ref().map_or(CLIENT_CLOSED_REQUEST, |(s, _)| s.as_u16());
        let method = &self.method;
        let route = self.route.as_ref().map_or("-", MatchedPath::as_str);
        let duration_ms = (self.started.elapsed().as_secs_f64() * 1e6).round() / 1e3;
        let request_id = self.client.request_id().to_str().unwrap_or_default();
        let client_address = self.client.address().map(display);
        let principal = self.client.principal();
        let key_id = principal.map(|principal| display(principal.key_id));
        let organization_id = principal.map(|principal| display(principal.organization_id));
        // A field without a value is left out.
        macro_rules! line {
            ($level:ident, $($field:ident,)? $message:literal) => {
                tracing::$level!(
                    %method, route, status, duration_ms, request_id, client_address, key_id,
                    organization_id, $($field,)? $message
                )
            };
        }
        match &self.response {
            Some((_, Some(LoggedError(error)))) => line!(error, error, "request failed"),
            Some((_, None)) => line!(info, "request"),
            None => line!(info, "client closed request"),
        }
    }
}
