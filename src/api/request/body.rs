//! Request bodies: bounded in size and time, and JSON with the errors that FastAPI finds in it.

use axum::body::Body;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, header};
use http_body_util::BodyExt;
use serde_json::Value;

use super::json_syntax::{self, JsonSyntaxError};
use crate::api::error::ApiError;
use crate::api::error::validation::ValidationError;
use crate::api::state::AppState;

/// Most bytes of a request body.
const MAX_BODY_BYTES: usize = 4 << 20;

/// How much of a body that is too large is read and discarded, in bytes. A client that sends all of
/// it before it reads then sees the answer.
const MAX_DISCARDED_BYTES: usize = 64 << 20;

/// A body as JSON; `None` if it is empty.
pub(crate) struct JsonBody(Option<Value>);

impl JsonBody {
    /// The body, or the error that there is none.
    pub(crate) fn required(&self, errors: &mut Vec<ValidationError>) -> Option<&Value> {
        if self.0.is_none() {
            errors.push(ValidationError::missing(vec!["body".into()], Value::Null));
        }
        self.0.as_ref()
    }
}

impl FromRequest<AppState> for JsonBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, ApiError> {
        let is_json = has_json_type(request.headers());
        let bytes = tokio::time::timeout(state.limits.body_timeout, read(request.into_body()))
            .await
            .map_err(|_| ApiError::BodyTooSlow)??;
        if bytes.is_empty() {
            return Ok(Self(None));
        }
        if !is_json {
            // FastAPI passes such a body on as text, and a text is not an object.
            return Ok(Self(Some(Value::from(String::from_utf8_lossy(&bytes)))));
        }
        let text = std::str::from_utf8(&bytes).map_err(|_| ApiError::BodyUnreadable)?;
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        json_syntax::check(text).map_err(|error| match error {
            JsonSyntaxError::Syntax(position, error) => {
                ApiError::Invalid(vec![ValidationError::json_invalid(position, error)])
            }
            JsonSyntaxError::TooDeep | JsonSyntaxError::ReservedName => ApiError::BodyUnreadable,
        })?;
        serde_json::from_str(text)
            .map(|value| Self(Some(value)))
            .map_err(|_| ApiError::BodyUnreadable)
    }
}

async fn read(mut body: Body) -> Result<Vec<u8>, ApiError> {
    let mut bytes = Vec::new();
    let mut seen = 0;
    while let Some(frame) = body.frame().await {
        // The client closed the connection or broke the framing, so it does not see this error.
        let frame = frame.map_err(|_| ApiError::BodyUnreadable)?;
        let Some(data) = frame.data_ref() else { continue };
        seen += data.len();
        if seen <= MAX_BODY_BYTES {
            bytes.extend_from_slice(data);
        } else if seen > MAX_DISCARDED_BYTES {
            break;
        } else {
            bytes = Vec::new();
        }
    }
    if seen > MAX_BODY_BYTES {
        Err(ApiError::BodyTooLarge { limit: MAX_BODY_BYTES })
    } else {
        Ok(bytes)
    }
}

/// `application/json`, or any `application/…+json`.
fn has_json_type(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok())
    else {
        return false;
    };
    let essence = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence.strip_prefix("application/").is_some_and(|subtype| {
        !subtype.contains('/') && (subtype == "json" || subtype.ends_with("+json"))
    })
}
