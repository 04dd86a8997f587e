//! Signs of life.

use axum::Json;
use axum::extract::State;

use super::Api;
use super::error::ApiError;

/// Is the process alive?
///
/// Always answers, whatever the database does: a restart would not help where this answers.
#[utoipa::path(
    get,
    path = "/health",
    operation_id = "get_health_get",
    responses((status = 200, description = "Successful Response"))
)]
pub(crate) async fn health() -> Json<&'static str> {
    Json("ok")
}

/// Can it serve?
///
/// Asks the database for a sign of life; 503 where there is none, and then requests should go elsewhere.
#[utoipa::path(
    get,
    path = "/readyz",
    operation_id = "get_readyz_get",
    responses(
        (status = 200, description = "Successful Response"),
        (status = 503, description = "The database can't be reached", body = super::schemas::ErrorDetail)
    )
)]
pub(crate) async fn readyz(State(api): State<Api>) -> Result<Json<&'static str>, ApiError> {
    api.store.ready().await?;
    Ok(Json("ok"))
}
