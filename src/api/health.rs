//! Probes for load balancers and orchestrators.

use axum::Json;
use axum::extract::State;

use super::error::ApiError;
use super::openapi::errors::DatabaseUnavailable;
use super::state::AppState;

/// Liveness probe
///
/// Always answers, whatever the state of the database: a restart would not help.
#[utoipa::path(
    get,
    path = "/health",
    operation_id = "get_health_get",
    responses((status = 200, description = "Successful Response")),
    security(())
)]
pub(crate) async fn health() -> Json<&'static str> {
    Json("ok")
}

/// Readiness probe
///
/// Says within a second whether the database responds and can be written to, also while the service
/// is busy. With 503, send requests to another instance.
#[utoipa::path(
    get,
    path = "/readyz",
    operation_id = "get_readyz_get",
    responses((status = 200, description = "Successful Response"), DatabaseUnavailable),
    security(())
)]
pub(crate) async fn readyz(State(state): State<AppState>) -> Result<Json<&'static str>, ApiError> {
    state.store.ready().await?;
    Ok(Json("ok"))
}
