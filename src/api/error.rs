//! Everything that a client can see go wrong, in one table.

use axum::Json;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::body::MAX_BODY_BYTES;
use super::faults::Fault;
use crate::store::StoreError;

/// What went wrong, as far as the client is concerned.
#[derive(Debug)]
pub(crate) enum ApiError {
    /// No API key, or one that is unknown, revoked or expired.
    Unauthenticated,
    /// The key is valid, but may only read.
    ReadOnlyKey,
    /// The organisation has no such task; another organisation's is none.
    TaskNotFound,
    /// The id is that of another agent's task.
    OtherAgent,
    /// The idempotency key was used with another request.
    OtherRequest,
    /// The request breaks the contract; all faults that it has.
    Invalid(Vec<Fault>),
    /// No route has this path.
    RouteNotFound,
    /// No route has this path and this method.
    MethodNotAllowed,
    /// The body has more than [`MAX_BODY_BYTES`].
    BodyTooLarge,
    /// The body did not arrive in time.
    BodyTooSlow,
    /// The body is not UTF-8, or nested deeper than anyone could mean.
    BodyUnreadable,
    /// The database can't be reached, or is too busy.
    Unavailable(String),
    /// A fault of ours.
    Internal(String),
}

/// The text of a failure of ours, on its way to the log in a response's extensions. Clients never see it.
#[derive(Debug, Clone)]
pub(crate) struct Failure(pub(crate) String);

impl ApiError {
    fn parts(&self) -> (StatusCode, Value) {
        let detail = |text: &str| Value::from(text);
        match self {
            Self::Unauthenticated => (StatusCode::UNAUTHORIZED, detail("Invalid or missing API key")),
            Self::ReadOnlyKey => (StatusCode::FORBIDDEN, detail("This API key may only read")),
            Self::TaskNotFound => (StatusCode::NOT_FOUND, detail("Task not found")),
            Self::OtherAgent => (StatusCode::CONFLICT, detail("This id belongs to a task of another agent")),
            Self::OtherRequest => {
                (StatusCode::CONFLICT, detail("This Idempotency-Key was used with another request"))
            }
            Self::Invalid(faults) => (StatusCode::UNPROCESSABLE_ENTITY, json!(faults)),
            Self::RouteNotFound => (StatusCode::NOT_FOUND, detail("Not Found")),
            Self::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, detail("Method Not Allowed")),
            Self::BodyTooLarge => (
                StatusCode::PAYLOAD_TOO_LARGE,
                Value::from(format!("The request body has more than {MAX_BODY_BYTES} bytes")),
            ),
            Self::BodyTooSlow => {
                (StatusCode::REQUEST_TIMEOUT, detail("The request body did not arrive in time"))
            }
            Self::BodyUnreadable => (StatusCode::BAD_REQUEST, detail("There was an error parsing the body")),
            Self::Unavailable(_) => {
                (StatusCode::SERVICE_UNAVAILABLE, detail("The service is unavailable, try again later"))
            }
            Self::Internal(_) => (StatusCode::INTERNAL_SERVER_ERROR, detail("Internal Server Error")),
        }
    }

    fn header(&self) -> Option<(HeaderName, HeaderValue)> {
        match self {
            Self::Unauthenticated => Some((header::WWW_AUTHENTICATE, HeaderValue::from_static("APIKey"))),
            Self::Unavailable(_) => Some((header::RETRY_AFTER, HeaderValue::from_static("1"))),
            Self::ReadOnlyKey
            | Self::TaskNotFound
            | Self::OtherAgent
            | Self::OtherRequest
            | Self::Invalid(_)
            | Self::RouteNotFound
            | Self::MethodNotAllowed
            | Self::BodyTooLarge
            | Self::BodyTooSlow
            | Self::BodyUnreadable
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
        if let Self::Unavailable(text) | Self::Internal(text) = self {
            response.extensions_mut().insert(Failure(text));
        }
        response
    }
}

impl From<Vec<Fault>> for ApiError {
    fn from(faults: Vec<Fault>) -> Self {
        Self::Invalid(faults)
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match &error {
            StoreError::OtherAgent => Self::OtherAgent,
            StoreError::OtherRequest => Self::OtherRequest,
            StoreError::Unavailable(_) => Self::Unavailable(error.to_string()),
            StoreError::Corrupt { .. } | StoreError::Query(_) | StoreError::Migrate(_) => {
                Self::Internal(error.to_string())
            }
        }
    }
}
