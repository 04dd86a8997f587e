//! HTTP in, HTTP out. Handlers extract, call the store, and shape its answer. There is no SQL here
//! and no connection.

mod auth;
mod browser;
mod client;
mod cursor;
mod error;
mod failed_keys;
mod health;
mod middleware;
mod openapi;
mod request;
mod response;
mod sdk;
mod state;
mod v1;

use axum::Router;
use axum::extract::Extension;
use axum::http::{StatusCode, Uri};
use axum::middleware::map_response;
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use utoipa_swagger_ui::{Config, SwaggerUi};

pub use state::AppState;

use error::ApiError;
use middleware::KnownPaths;
use request::body_memory::BodyMemory;

/// The service as a router: every route, and the middleware around them.
pub fn router(state: AppState) -> Router {
    let (routes, document) = documented_routes();
    let paths = KnownPaths::new(&document);
    let (limits, network) = (state.limits.clone(), state.network.clone());
    let service = routes
        .with_state(state)
        .merge(docs(document))
        .fallback(move |uri: Uri| async move { paths.not_found(&uri) })
        .method_not_allowed_fallback(async || ApiError::MethodNotAllowed)
        .layer(Extension(BodyMemory::new()));
    middleware::wrap(service, &limits, network)
}

/// The OpenAPI document of [`router`].
pub fn openapi_document() -> Value {
    documented_routes().1
}

fn documented_routes() -> (Router<AppState>, Value) {
    let (routes, document) = OpenApiRouter::with_openapi(openapi::base())
        .routes(routes!(v1::tasks::list_agent_tasks))
        .routes(routes!(v1::tasks::list_tasks))
        .routes(routes!(v1::tasks::get_task, v1::tasks::delete_task))
        .routes(routes!(v1::tasks::stop_task))
        .routes(routes!(v1::threads::get_thread))
        .routes(routes!(v1::threads::get_full_thread))
        .routes(routes!(v1::invocations::invoke))
        .routes(routes!(v1::invocations::invoke_async))
        .routes(routes!(v1::invocations::invoke_stream))
        .routes(routes!(health::health))
        .routes(routes!(health::readyz))
        .merge(sdk_routes())
        .nest("/{organization_id}", sdk_routes())
        .split_for_parts();
    (routes, openapi::in_fastapi_dialect(&document))
}

/// The routes of the official SDK, which may put the organization before them.
fn sdk_routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(sdk::executions::list_agent_history))
        .routes(routes!(sdk::executions::list_user_history))
        .routes(routes!(sdk::executions::create_task, sdk::executions::stop_task))
        .routes(routes!(sdk::executions::get_status))
        .routes(routes!(sdk::reports::update_task))
        .routes(routes!(sdk::reports::report_task))
        .routes(routes!(sdk::events::get_events))
        .routes(routes!(sdk::events::push_events))
        .routes(routes!(sdk::activity::get_activity))
        .routes(routes!(sdk::reports::report_metrics))
}

/// The interactive documentation at `/docs`.
fn docs(document: Value) -> Router {
    let docs = SwaggerUi::new("/docs")
        .config(Config::new(["/openapi.json"]).validator_url("none"))
        .external_url_unchecked("/openapi.json", document);
    Router::from(docs)
        .layer(map_response(async |response: Response| match response.status() {
            StatusCode::NOT_FOUND => ApiError::RouteNotFound.into_response(),
            _ => response,
        }))
        .layer(map_response(browser::add_docs_policy))
}
