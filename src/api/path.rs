//! Ids in paths.

use axum::extract::{FromRequestParts, RawPathParams};
use axum::http::request::Parts;

use super::error::ApiError;

/// The last id in a route's path, decoded. Any text but the empty one: whether it can be an id is for the handler to say.
pub(crate) struct Id(pub(crate) String);

/// The name of the path parameter that says whose data a request is about, where the official SDK says so.
pub(crate) const ORGANIZATION: &str = "organization_id";

impl<S: Send + Sync> FromRequestParts<S> for Id {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        // Bytes that are no UTF-8 are refused by the extractor: nothing has such an id.
        let params =
            RawPathParams::from_request_parts(parts, state).await.map_err(|_| ApiError::RouteNotFound)?;
        let mut ids = params.iter().filter(|(name, _)| *name != ORGANIZATION).map(|(_, id)| id);
        if ids.any(str::is_empty) {
            return Err(ApiError::RouteNotFound);
        }
        let last = params.iter().last().map(|(_, id)| Self(id.to_owned()));
        last.ok_or_else(|| ApiError::Internal("a route without an id in its path asks for one".to_owned()))
    }
}
