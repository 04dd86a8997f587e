//! Authentication and permissions.
//!
//! [`Caller`] is the only way from a request to an [`OrganizationId`], and every store method that
//! handlers call takes one: a handler without a caller does not compile. The caller is the first
//! argument of a handler, so a request without a valid key learns nothing else.

use std::marker::PhantomData;
use std::sync::Arc;

use axum::extract::{FromRequestParts, RawPathParams};
use axum::http::HeaderValue;
use axum::http::request::Parts;

use super::client::Client;
use super::error::ApiError;
use super::request::path::ORGANIZATION_PARAM;
use super::state::AppState;
use crate::domain::{Credential, KeyDigest, OrganizationId, Principal, TaskId};

/// The header with the API key.
pub(super) const API_KEY_HEADER: &str = "x-api-key";

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
    credential: Credential,
    client: Arc<Client>,
    permission: PhantomData<P>,
}

impl<P> Caller<P> {
    pub(crate) fn organization(&self) -> OrganizationId {
        self.credential.organization_id
    }

    /// What `Store::authenticate` needs to ask again whether the key is still valid.
    pub(crate) fn credential(&self) -> Credential {
        self.credential
    }

    /// Leaves a line in the log that the caller deleted a task.
    pub(crate) fn audit_deletion(&self, task: &TaskId) {
        tracing::info!(
            target: "audit",
            task_id = %task,
            key_id = self.client.principal().map(|principal| display(principal.key_id)),
            organization_id = %self.organization(),
            client_address = self.client.address().map(display),
            request_id = self.client.request_id().to_str().unwrap_or_default(),
            "task deleted"
        );
    }
}

impl<P: Permission> FromRequestParts<AppState> for Caller<P> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, ApiError> {
        let (digest, principal) = authenticate(parts, state).await?;
        let organization_id = principal.organization_id;
        check_organization_in_path(parts, organization_id).await?;
        if P::allows(&principal) {
            // The body is read next, on the organization's share of memory.
            parts.extensions.insert(organization_id);
            let credential = Credential { digest, organization_id };
            Ok(Self { credential, client: Client::of(parts), permission: PhantomData })
        } else {
            Err(ApiError::ReadOnlyKey)
        }
    }
}

async fn authenticate(parts: &Parts, state: &AppState) -> Result<(KeyDigest, Principal), ApiError> {
    let client = Client::of(parts);
    let key = parts.headers.get(API_KEY_HEADER).map(HeaderValue::as_bytes).unwrap_or_default();
    if key.is_empty() {
        return Err(client.refuse());
    }
    // Looked up by its digest: the time of the comparison tells nothing about stored keys.
    let digest = KeyDigest::of(key);
    // Known keys are not guesses: whoever guesses must not stop others behind the same address,
    // and a client that goes on sending one wrong key is told that it is wrong.
    let is_guess = !state.store.remembers_key(&digest);
    if is_guess {
        client.check_guess()?;
    }
    let Some(principal) = state.store.authenticate(digest, state.clock.now()).await? else {
        if is_guess {
            client.record_guess();
        }
        return Err(client.refuse());
    };
    client.identify(principal);
    Ok((digest, principal))
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
