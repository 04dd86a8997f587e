//! Authentication and permissions.
//!
//! [`Caller`] is the only way from a request to an [`OrganizationId`], and every store method that
//! handlers call takes one: a handler without a caller does not compile. The caller is the first
//! argument of a handler, so a request without a valid key learns nothing else.

use std::marker::PhantomData;

use axum::extract::{FromRequestParts, RawPathParams};
use axum::http::HeaderValue;
use axum::http::request::Parts;

use super::error::ApiError;
use super::request::path::ORGANIZATION_PARAM;
use super::state::AppState;
use crate::domain::{KeyDigest, OrganizationId, Principal};

/// The header with the API key.
const API_KEY_HEADER: &str = "x-api-key";

/// What a handler does with its caller's data.
pub(crate) trait Permission: Send + Sync {
    /// Whether a principal has the permission.
    fn allows(principal: &Principal) -> bool;
}

/// The permission to list and to read. Every valid key has it.
pub(crate) struct Read;

/// The permission to record, to report and to delete.
pub(crate) struct Write;

impl Permission for Read {
    fn allows(_: &Principal) -> bool {
        true
    }
}

impl Permission for Write {
    fn allows(principal: &Principal) -> bool {
        principal.can_write
    }
}

/// The sender of a request: it has a valid key with the permission `P`.
pub(crate) struct Caller<P> {
    organization_id: OrganizationId,
    permission: PhantomData<P>,
}

impl<P> Caller<P> {
    pub(crate) fn organization(&self) -> OrganizationId {
        self.organization_id
    }
}

impl<P: Permission> FromRequestParts<AppState> for Caller<P> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, ApiError> {
        let principal = authenticate(parts, state).await?;
        let organization_id = principal.organization_id;
        check_organization_in_path(parts, organization_id).await?;
        if P::allows(&principal) {
            Ok(Self { organization_id, permission: PhantomData })
        } else {
            Err(ApiError::ReadOnlyKey)
        }
    }
}

async fn authenticate(parts: &Parts, state: &AppState) -> Result<Principal, ApiError> {
    let key = parts.headers.get(API_KEY_HEADER).map(HeaderValue::as_bytes).unwrap_or_default();
    if key.is_empty() {
        return Err(ApiError::Unauthenticated);
    }
    // Looked up by its digest: the time of the comparison tells nothing about stored keys.
    let principal = state.store.authenticate(KeyDigest::of(key), state.clock.now()).await?;
    principal.ok_or(ApiError::Unauthenticated)
}

/// Checks the organization in a path, if there is one: it must be the caller's own, otherwise the
/// route does not exist. The official SDK sends `None` if none is configured.
async fn check_organization_in_path(
    parts: &mut Parts,
    organization: OrganizationId,
) -> Result<(), ApiError> {
    let params =
        RawPathParams::from_request_parts(parts, &()).await.map_err(|_| ApiError::RouteNotFound)?;
    let named = params.iter().find(|(name, _)| *name == ORGANIZATION_PARAM);
    match named {
        Some((_, named)) if named != "None" && named != organization.to_string() => {
            Err(ApiError::RouteNotFound)
        }
        _ => Ok(()),
    }
}
