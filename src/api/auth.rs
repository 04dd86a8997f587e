//! Who calls. These extractors are the only way from a request to an [`OrganizationId`], and every method of the
//! store that handlers call wants one, so a handler without them does not compile. They come first in a handler's arguments: a request
//! without a valid key learns nothing about what else is wrong with it.

use axum::extract::{FromRequestParts, RawPathParams};
use axum::http::request::Parts;

use super::Api;
use super::error::ApiError;
use super::path::ORGANIZATION;
use crate::domain::OrganizationId;
use crate::store::{Authenticated, KeyDigest};

/// The header that carries the API key.
const HEADER: &str = "x-api-key";

/// A caller with a valid key.
pub(crate) struct Reader {
    organization_id: OrganizationId,
}

/// A caller whose key may also record and report.
pub(crate) struct Writer {
    organization_id: OrganizationId,
}

impl Reader {
    pub(crate) fn organization(&self) -> OrganizationId {
        self.organization_id
    }
}

impl Writer {
    pub(crate) fn organization(&self) -> OrganizationId {
        self.organization_id
    }
}

impl FromRequestParts<Api> for Reader {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, ApiError> {
        let Authenticated { organization_id, .. } = authenticate(parts, api).await?;
        check_organization_in_path(parts, organization_id).await?;
        Ok(Self { organization_id })
    }
}

impl FromRequestParts<Api> for Writer {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, api: &Api) -> Result<Self, ApiError> {
        let Authenticated { organization_id, can_write } = authenticate(parts, api).await?;
        check_organization_in_path(parts, organization_id).await?;
        if can_write { Ok(Self { organization_id }) } else { Err(ApiError::ReadOnlyKey) }
    }
}

async fn authenticate(parts: &Parts, api: &Api) -> Result<Authenticated, ApiError> {
    let key = parts.headers.get(HEADER).map(axum::http::HeaderValue::as_bytes).unwrap_or_default();
    if key.is_empty() {
        return Err(ApiError::Unauthenticated);
    }
    // Looked up by its digest: how long the comparison takes tells nothing about the keys that are stored.
    let caller = api.store.authenticate(KeyDigest::of(key), api.clock.now()).await?;
    caller.ok_or(ApiError::Unauthenticated)
}

/// A path may name the organisation; then it must be the caller's own, or the path leads nowhere. The official SDK
/// writes `None` where it has not been told.
async fn check_organization_in_path(parts: &mut Parts, organization: OrganizationId) -> Result<(), ApiError> {
    let params = RawPathParams::from_request_parts(parts, &()).await.map_err(|_| ApiError::RouteNotFound)?;
    let named = params.iter().find(|(name, _)| *name == ORGANIZATION).map(|(_, value)| value);
    match named {
        Some(named) if named != "None" && named != organization.to_string() => Err(ApiError::RouteNotFound),
        _ => Ok(()),
    }
}
