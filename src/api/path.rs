//! Ids in paths.

use axum::extract::{FromRequestParts, RawPathParams};
use axum::http::request::Parts;

use super::error::ApiError;

/// The one id in a route's path, decoded. Any text but the empty one: whether it can be an id is for the handler to say.
pub(crate) struct Id(pub(crate) String);

impl<S: Send + Sync> FromRequestParts<S> for Id {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        // Bytes that are no UTF-8 are refused by the extractor: nothing has such an id.
        let params =
            RawPathParams::from_request_parts(parts, state).await.map_err(|_| ApiError::RouteNotFound)?;
        let id = params.iter().next().map(|(_, id)| id.to_owned());
        if id.as_deref() == Some("") {
            return Err(ApiError::RouteNotFound);
        }
        id.map(Self)
            .ok_or_else(|| ApiError::Internal("a route without an id in its path asks for one".to_owned()))
    }
}
