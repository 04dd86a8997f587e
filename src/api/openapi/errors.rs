//! The errors that routes declare in the document. Validation errors (422) follow from parameters
//! and bodies, see `openapi::in_fastapi_dialect`.
#![expect(dead_code, reason = "these types describe JSON, they never hold any")]

use utoipa::IntoResponses;

use super::schemas::ErrorDetail;

/// The key is missing, unknown, revoked or expired.
#[derive(IntoResponses)]
pub(crate) enum Unauthenticated {
    /// The request is refused.
    #[response(status = 401, description = "The API key is missing or not valid")]
    WrongKey(ErrorDetail),
    /// The address has tried too many wrong keys. A key that has worked goes on working.
    #[response(
        status = 429,
        description = "This address has tried too many API keys that are not valid",
        headers(("Retry-After" = u64, description = "Seconds until it may try another"))
    )]
    TooManyFailedKeys(ErrorDetail),
}

/// The key has no permission to write.
#[derive(IntoResponses)]
#[response(status = 403, description = "The API key may only read")]
pub(crate) struct ReadOnlyKey(ErrorDetail);

/// The body cannot be read.
#[derive(IntoResponses)]
pub(crate) enum BodyUnreadable {
    /// It is not JSON in UTF-8.
    #[response(status = 400, description = "The body is not JSON")]
    NotJson(ErrorDetail),
    /// It did not arrive in time.
    #[response(status = 408, description = "The body did not arrive within 30 seconds")]
    TooSlow(ErrorDetail),
    /// It is too large.
    #[response(
        status = 413,
        description = "The body has more than 4 MiB, or more than 100,000 JSON values"
    )]
    TooLarge(ErrorDetail),
    /// Other bodies take all memory, or the database does not answer.
    #[response(
        status = 503,
        description = "The service has no memory for the body, or its database does not answer; \
                       `Retry-After` says when to try again"
    )]
    Unavailable(ErrorDetail),
}

/// The organization has no such task.
#[derive(IntoResponses)]
#[response(status = 404, description = "The organization has no such task")]
pub(crate) struct TaskNotFound(ErrorDetail);

/// The organization has no such task, or the task has no such turn.
#[derive(IntoResponses)]
#[response(status = 404, description = "There is no such task, or the task has no such turn")]
pub(crate) struct TurnNotFound(ErrorDetail);

/// The turn has ended.
#[derive(IntoResponses)]
#[response(status = 409, description = "The named turn has ended, with another status or result")]
pub(crate) struct TurnEnded(ErrorDetail);

/// The id or the idempotency key is in use.
#[derive(IntoResponses)]
#[response(
    status = 409,
    description = "The id belongs to a task of another agent, or the Idempotency-Key was used with \
                   another request"
)]
pub(crate) struct Conflict(ErrorDetail);

/// The organization has as many streams and waiting invocations as it may have.
#[derive(IntoResponses)]
#[response(
    status = 429,
    description = "The organization has too many open event streams and waiting invocations"
)]
pub(crate) struct TooManyStreams(ErrorDetail);

/// The database does not answer.
#[derive(IntoResponses)]
#[response(status = 503, description = "The database does not answer")]
pub(crate) struct DatabaseUnavailable(ErrorDetail);
