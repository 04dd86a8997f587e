//! Every error that a client can see, in one table.

pub(crate) mod validation;

use axum::Json;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use validation::{ValidationError, ValidationErrors};

use crate::store::StoreError;

/// What went wrong, as far as the client is concerned.
#[derive(Debug)]
pub(crate) enum ApiError {
    /// The API key is missing, unknown, revoked or expired.
    Unauthenticated,
    /// The address has tried too many wrong API keys, and this one is not known.
    TooManyFailedKeys {
        /// The seconds until it may try another.
        retry_after: u64,
    },
    /// The API key is valid, but may only read.
    ReadOnlyKey,
    /// The organization has no such task. A task of another organization does not exist for it.
    TaskNotFound,
    /// The id belongs to a task of another agent.
    TaskOfAnotherAgent,
    /// The task has no turn with this number.
    TurnNotFound,
    /// The turn has ended with another status or result.
    TurnEnded,
    /// The idempotency key was used with another request.
    IdempotencyKeyReused,
    /// The request breaks the contract, in all these ways.
    Invalid(ValidationErrors),
    /// No route has this path.
    RouteNotFound,
    /// No route has this path and this method.
    MethodNotAllowed,
    /// The body has more than `limit` bytes.
    BodyTooLarge {
        /// Most bytes of a body.
        limit: usize,
    },
    /// The body has more than `limit` values.
    TooManyValues {
        /// Most values of a body.
        limit: usize,
    },
    /// The body did not arrive in time.
    BodyTooSlow,
    /// The body is not UTF-8, or nested too deeply.
    BodyUnreadable,
    /// The organization has as many streams and waiting invocations as it may have.
    TooManyStreams {
        /// Most of them in one process.
        limit: usize,
    },
    /// The database cannot be reached, or is too busy. Nothing was written.
    Unavailable(String),
    /// The database was lost while it committed a write. It may be written.
    OutcomeUnknown(String),
    /// A failure of the service.
    Internal(String),
}

/// The text of a failure of the service. It travels to the request log in the response's
/// extensions, never to a client.
#[derive(Debug, Clone)]
pub(crate) struct LoggedError(pub(crate) String);

impl ApiError {
    fn parts(&self) -> (StatusCode, Value) {
        let detail = |text: &str| Value::from(text);
        match self {
            Self::Unauthenticated => {
                (StatusCode::UNAUTHORIZED, detail("Invalid or missing API key"))
            }
            Self::TooManyFailedKeys { .. } => {
                (StatusCode::TOO_MANY_REQUESTS, detail("Too many wrong API keys, try again later"))
            }
            Self::ReadOnlyKey => (StatusCode::FORBIDDEN, detail("This API key may only read")),
            Self::TaskNotFound => (StatusCode::NOT_FOUND, detail("Task not found")),
            Self::TaskOfAnotherAgent => {
                (StatusCode::CONFLICT, detail("This id belongs to a task of another agent"))
            }
            Self::TurnNotFound => (StatusCode::NOT_FOUND, detail("This task has no such turn")),
            Self::TurnEnded => (
                StatusCode::CONFLICT,
                detail("This turn has ended, and its status and its result are final"),
            ),
            Self::IdempotencyKeyReused => {
                (StatusCode::CONFLICT, detail("This Idempotency-Key was used with another request"))
            }
            Self::Invalid(errors) => (StatusCode::UNPROCESSABLE_ENTITY, json!(errors)),
            Self::RouteNotFound => (StatusCode::NOT_FOUND, detail("Not Found")),
            Self::MethodNotAllowed => {
                (StatusCode::METHOD_NOT_ALLOWED, detail("Method Not Allowed"))
            }
            Self::BodyTooLarge { limit } => (
                StatusCode::PAYLOAD_TOO_LARGE,
                Value::from(format!("The request body has more than {limit} bytes")),
            ),
            Self::TooManyValues { limit } => (
                StatusCode::PAYLOAD_TOO_LARGE,
                Value::from(format!("The request body has more than {limit} values")),
            ),
            Self::BodyTooSlow => {
                (StatusCode::REQUEST_TIMEOUT, detail("The request body did not arrive in time"))
            }
            Self::BodyUnreadable => {
                (StatusCode::BAD_REQUEST, detail("There was an error parsing the body"))
            }
            Self::TooManyStreams { limit } => (
                StatusCode::TOO_MANY_REQUESTS,
                Value::from(format!(
                    "The organization has {limit} open event streams and waiting invocations, and \
                     may have no more: close some, then try again"
                )),
            ),
            Self::Unavailable(_) => (
                StatusCode::SERVICE_UNAVAILABLE,
                detail("The service is unavailable, try again later"),
            ),
            Self::OutcomeUnknown(_) => (
                StatusCode::SERVICE_UNAVAILABLE,
                detail(
                    "The service lost its database: it is not known whether this was recorded. \
                     Read the task before you try again",
                ),
            ),
            Self::Internal(_) => {
                (StatusCode::INTERNAL_SERVER_ERROR, detail("Internal Server Error"))
            }
        }
    }

    fn header(&self) -> Option<(HeaderName, HeaderValue)> {
        match self {
            Self::Unauthenticated => {
                Some((header::WWW_AUTHENTICATE, HeaderValue::from_static("APIKey")))
            }
            Self::TooManyFailedKeys { retry_after } => {
                Some((header::RETRY_AFTER, HeaderValue::from(*retry_after)))
            }
            Self::Unavailable(_) => Some((header::RETRY_AFTER, HeaderValue::from_static("1"))),
            Self::ReadOnlyKey
            | Self::TaskNotFound
            | Self::TaskOfAnotherAgent
            | Self::TurnNotFound
            | Self::TurnEnded
            | Self::IdempotencyKeyReused
            | Self::Invalid(_)
            | Self::RouteNotFound
            | Self::MethodNotAllowed
            | Self::BodyTooLarge { .. }
            | Self::TooManyValues { .. }
            | Self::BodyTooSlow
            | Self::BodyUnreadable
            // A client that obeys `Retry-After` would write twice.
            | Self::OutcomeUnknown(_)
            | Self::TooManyStreams { .. }
            | Self::Internal(_) => None,
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, detail) = self.parts();
        let header = self.header();
        let mut response = (status, Json(json!({ "detail": detail }))).into_response();
        if let Some((name, value)) = header {
            response.headers_mut().insert(name, value);
        }
        if let Self::Unavailable(text) | Self::OutcomeUnknown(text) | Self::Internal(text) = self {
            response.extensions_mut().insert(LoggedError(text));
        }
        response
    }
}

impl From<ValidationErrors> for ApiError {
    fn from(errors: ValidationErrors) -> Self {
        Self::Invalid(errors)
    }
}

impl From<ValidationError> for ApiError {
    fn from(error: ValidationError) -> Self {
        Self::Invalid(error.into())
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match &error {
            StoreError::TaskNotFound => Self::TaskNotFound,
            StoreError::TaskOfAnotherAgent => Self::TaskOfAnotherAgent,
            StoreError::TurnNotFound => Self::TurnNotFound,
            StoreError::TurnEnded => Self::TurnEnded,
            StoreError::IdempotencyKeyReused => Self::IdempotencyKeyReused,
            StoreError::Unavailable(_) | StoreError::Locked(_) => {
                Self::Unavailable(error.to_string())
            }
            StoreError::OutcomeUnknown(_) => Self::OutcomeUnknown(error.to_string()),
            StoreError::TooManyWatches(limit) => Self::TooManyStreams { limit: *limit },
            StoreError::Corrupt { .. }
            | StoreError::Query(_)
            | StoreError::DevelopmentSchema
            | StoreError::NewerSchema(_)
            | StoreError::Migrate(_) => Self::Internal(error.to_string()),
        }
    }
}
