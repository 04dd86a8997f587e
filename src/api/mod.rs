//! HTTP in, HTTP out. No SQL here, and no connection: handlers extract, call the store, and shape its answer.

mod auth;
mod body;
mod error;
mod faults;
mod health;
mod invocations;
mod links;
mod list;
mod models;
mod object;
mod openapi;
mod path;
mod query;
mod schemas;
mod sdk;
mod stream;
mod syntax;
mod tasks;
mod threads;

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, Uri, header};
use axum::middleware::{Next, from_fn, map_response};
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use tower_http::CompressionLevel;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::compression::CompressionLayer;
use tower_http::compression::predicate::{DefaultPredicate, Predicate, SizeAbove};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use utoipa_swagger_ui::{Config, SwaggerUi};

use crate::domain::Clock;
use crate::store::Store;

pub(crate) use error::Failure;
pub(crate) use stream::READER_PATIENCE;

use error::ApiError;

/// Answers shorter than this are not worth compressing, in bytes.
const MIN_COMPRESSED_BYTES: u64 = 1024;

/// How long a request may take: its body may take 30 seconds, each of its statements 15.
const REQUEST_TIMEOUT: Duration = Duration::from_mins(1);

/// What handlers work with.
#[derive(Clone)]
pub struct Api {
    /// The task history.
    pub store: Store,
    /// The time.
    pub clock: Clock,
    /// How long a synchronous invocation waits for its outcome.
    pub invoke_timeout: Duration,
    /// How long a reader of events may leave sixteen of them waiting before it is dropped.
    pub reader_patience: Duration,
    /// Cancelled when the service stops: what waits or streams then ends.
    pub stopping: CancellationToken,
}

/// Every route of the service.
pub fn router(api: Api) -> Router {
    let (routes, document) = documented_routes();
    let paths = Arc::new(paths_of(&document));
    let docs = SwaggerUi::new("/docs")
        .config(Config::new(["/openapi.json"]).validator_url("none"))
        .external_url_unchecked("/openapi.json", document);
    let docs = Router::from(docs).layer(map_response(async |response: Response| match response.status() {
        StatusCode::NOT_FOUND => ApiError::RouteNotFound.into_response(),
        _ => response,
    }));
    routes
        .with_state(api)
        .merge(docs)
        .fallback(move |uri: Uri| async move { not_found(&paths, &uri) })
        .method_not_allowed_fallback(async || ApiError::MethodNotAllowed)
        .layer(
            CompressionLayer::new()
                .quality(CompressionLevel::Fastest)
                .compress_when(DefaultPredicate::new().and(SizeAbove::new(MIN_COMPRESSED_BYTES))),
        )
        .layer(from_fn(answer_in_time))
        .layer(CatchPanicLayer::custom(answer_panic))
}

/// The OpenAPI document of [`router`].
pub fn openapi_document() -> Value {
    documented_routes().1
}

fn documented_routes() -> (Router<Api>, Value) {
    let (routes, document) = OpenApiRouter::with_openapi(openapi::base())
        .routes(routes!(tasks::list_agent_tasks))
        .routes(routes!(tasks::list_tasks))
        .routes(routes!(tasks::get_task, tasks::delete_task))
        .routes(routes!(tasks::stop_task))
        .routes(routes!(threads::get_thread))
        .routes(routes!(threads::get_full_thread))
        .routes(routes!(invocations::invoke))
        .routes(routes!(invocations::invoke_async))
        .routes(routes!(invocations::invoke_stream))
        .routes(routes!(health::health))
        .routes(routes!(health::readyz))
        .merge(sdk_routes())
        .nest("/{organization_id}", sdk_routes())
        .split_for_parts();
    (routes, openapi::in_fastapi_dialect(&document))
}

/// The routes of the official SDK, which may put the organisation before them.
fn sdk_routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(sdk::list_agent_history))
        .routes(routes!(sdk::list_user_history))
        .routes(routes!(sdk::create_task, sdk::stop_task))
        .routes(routes!(sdk::get_status))
        .routes(routes!(sdk::update_task))
        .routes(routes!(sdk::report_task))
        .routes(routes!(sdk::get_events))
        .routes(routes!(sdk::push_events))
        .routes(routes!(sdk::get_activity))
        .routes(routes!(sdk::report_metrics))
}

/// The documented paths, for looking one up.
fn paths_of(document: &Value) -> matchit::Router<()> {
    let mut paths = matchit::Router::new();
    for path in document["paths"].as_object().into_iter().flat_map(serde_json::Map::keys) {
        paths.insert(path, ()).expect("paths that axum routes can be told apart");
    }
    paths
}

/// 404, but for a known path with a slash too many: FastAPI redirects there, and so does this. The address is
/// relative, so that it also holds behind a proxy that ends TLS.
fn not_found(paths: &matchit::Router<()>, uri: &Uri) -> Response {
    let known = uri.path().strip_suffix('/').filter(|path| paths.at(path).is_ok());
    let Some(path) = known else { return ApiError::RouteNotFound.into_response() };
    let address = match uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    match HeaderValue::from_str(&address) {
        Ok(address) => (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, address)]).into_response(),
        Err(_) => ApiError::RouteNotFound.into_response(),
    }
}

/// Ends a request that takes longer than anything in it may: its database hangs, most likely, which no server's own
/// limits can end. A synchronous invocation waits for its agent and looks after itself.
async fn answer_in_time(request: Request, next: Next) -> Response {
    let waits = request.uri().path().ends_with("/invoke");
    let answer = next.run(request);
    if waits {
        return answer.await;
    }
    let late = |_| ApiError::Unavailable(format!("no answer within {REQUEST_TIMEOUT:?}")).into_response();
    tokio::time::timeout(REQUEST_TIMEOUT, answer).await.unwrap_or_else(late)
}

#[expect(clippy::needless_pass_by_value, reason = "the layer hands it over")]
fn answer_panic(panic: Box<dyn Any + Send>) -> Response {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message");
    ApiError::Internal(format!("a handler panicked: {text}")).into_response()
}
