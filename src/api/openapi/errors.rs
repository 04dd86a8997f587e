//! The errors that routes declare in the document. Validation errors (422) follow from parameters
//! and bodies, see `openapi::in_fastapi_dialect`.
#![expect(dead_code, reason = "these types describe JSON, they never hold any")]

use utoipa::IntoResponses;

use super::schemas::ErrorDetail;

/// The key is missing, unknown, revoked or expired.
#[derive(IntoResponses)]
#[response(status = 401, description = "The API key is missing or not valid")]
pub(crate) struct Unauthenticated(ErrorDetail);

/// The key has no permission to write.
#[derive(IntoResponses)]
#[response(status = 403, description = "The API key may only read")]
pub(crate) struct ReadOnlyKey(ErrorDetail);

/// The body is not JSON in UTF-8.
#[derive(IntoResponses)]
#[response(status = 400, description = "The body is not JSON")]
pub(crate) struct BodyUnreadable(ErrorDetail);

/// The organization has no such task.
#[derive(IntoResponses)]
#[response(status = 404, description = "The organization has no such task")]
pub(crate) struct TaskNotFound(ErrorDetail);

/// The id or the idempotency key is in use.
#[derive(IntoResponses)]
#[response(
    status = 409,
    description = "The id belongs to a task of another agent, or the Idempotency-Key was used with \
                   another request"
)]
pub(crate) struct Conflict(ErrorDetail);

/// The database does not answer.
#[derive(IntoResponses)]
#[response(status = 503, description = "The database does not answer")]
pub(crate) struct DatabaseUnavailable(ErrorDetail);
