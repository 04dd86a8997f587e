//! Request bodies: bounded, read in bounded time, and JSON with the faults that FastAPI finds in it.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, header};
use http_body_util::BodyExt;
use serde_json::Value;

use super::error::ApiError;
use super::faults::Fault;
use super::syntax::{self, Refusal};

/// Most bytes of a request body.
pub(crate) const MAX_BODY_BYTES: usize = 4 << 20;

/// How much of a body that is too large is read, and thrown away, so that a client which sends all before it reads
/// gets to see the answer.
const MAX_DISCARDED_BYTES: usize = 64 << 20;

/// How long a body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// A body as JSON; `None` where there is none.
pub(crate) struct JsonBody(pub(crate) Option<Value>);

impl<S: Sync> FromRequest<S> for JsonBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let is_json = has_json_type(request.headers());
        let bytes = tokio::time::timeout(BODY_TIMEOUT, read(request.into_body()))
            .await
            .map_err(|_| ApiError::BodyTooSlow)??;
        if bytes.is_empty() {
            return Ok(Self(None));
        }
        if !is_json {
            // FastAPI hands such a body on as it is, and then it is no object.
            return Ok(Self(Some(Value::from(String::from_utf8_lossy(&bytes)))));
        }
        let text = std::str::from_utf8(&bytes).map_err(|_| ApiError::BodyUnreadable)?;
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        syntax::check(text).map_err(|refusal| match refusal {
            Refusal::Fault(position, error) => ApiError::Invalid(vec![Fault::json_invalid(position, error)]),
            Refusal::TooDeep | Refusal::ReservedName => ApiError::BodyUnreadable,
        })?;
        serde_json::from_str(text).map(|value| Self(Some(value))).map_err(|_| ApiError::BodyUnreadable)
    }
}

async fn read(mut body: Body) -> Result<Vec<u8>, ApiError> {
    let mut bytes = Vec::new();
    let mut seen = 0;
    while let Some(frame) = body.frame().await {
        // The client went away or broke the framing; there is nobody left to explain it to.
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
    if seen > MAX_BODY_BYTES { Err(ApiError::BodyTooLarge) } else { Ok(bytes) }
}

/// `application/json`, or any `application/…+json`.
fn has_json_type(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()) else {
        return false;
    };
    let essence = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence
        .strip_prefix("application/")
        .is_some_and(|subtype| !subtype.contains('/') && (subtype == "json" || subtype.ends_with("+json")))
}
