//! Request bodies: bounded in size and time, and JSON with the errors that FastAPI finds in it.

use axum::body::{Body, HttpBody};
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::response::{IntoResponseParts, ResponseParts};
use http_body_util::BodyExt;
use serde_json::Value;

use super::body_memory::{BodyClaim, BodyMemory};
use super::json_syntax::{self, JsonSyntaxError, LoneSurrogates, MAX_VALUES};
use crate::api::error::ApiError;
use crate::api::error::validation::{ValidationError, ValidationErrors};
use crate::api::state::AppState;
use crate::domain::{OrganizationId, TaskId, TextError};

/// Most bytes of a request body.
const MAX_BODY_BYTES: usize = 4 << 20;

/// How much of a body that is refused is read and discarded, in bytes. A client that sends all of
/// it before it reads then sees the answer.
const MAX_DISCARDED_BYTES: usize = 64 << 20;

/// How much memory a body gets at once if its head announces as much, in bytes. Most bodies are
/// shorter and never ask again. It is small, because a client may announce more than it sends.
const FIRST_BYTES: usize = 64 << 10;

/// How many texts of a report were changed, so that it could be stored. Absent if none was.
pub(crate) const TEXT_REPLACED: HeaderName = HeaderName::from_static("x-text-replaced");

/// A body as JSON; `None` if it is empty. A lone surrogate in it is an error.
pub(crate) struct JsonBody {
    value: Option<Value>,
    claim: BodyClaim,
}

/// The body of a report, as JSON. A lone surrogate in it is read as U+FFFD: an agent whose text was
/// cut within a character must not lose its result.
pub(crate) struct ReportBody {
    body: JsonBody,
    replaced: usize,
}

/// A part of an answer that says how many lone surrogates were replaced.
pub(crate) struct TextReplaced(usize);

impl JsonBody {
    /// The body, or the error that there is none.
    pub(crate) fn required(&self, errors: &mut ValidationErrors) -> Option<&Value> {
        if self.value.is_none() {
            errors.push(ValidationError::missing(vec!["body".into()], Value::Null));
        }
        self.value.as_ref()
    }

    /// Drops the value, and returns the claim on the memory of what was read from it.
    pub(super) fn into_claim(self) -> BodyClaim {
        self.claim
    }
}

impl ReportBody {
    /// The body, or the error that there is none.
    pub(crate) fn required(&self, errors: &mut ValidationErrors) -> Option<&Value> {
        self.body.required(errors)
    }

    /// Parses an id. An id is never changed: with another character it would name another task.
    pub(crate) fn parse_task_id(&self, text: String) -> Result<TaskId, TextError> {
        if self.replaced > 0 && text.contains(char::REPLACEMENT_CHARACTER) {
            return Err(TextError::LoneSurrogate);
        }
        TaskId::parse(text)
    }

    /// The part of the answer that says what was replaced.
    pub(crate) fn text_replaced(&self) -> TextReplaced {
        TextReplaced(self.replaced)
    }
}

impl IntoResponseParts for TextReplaced {
    type Error = std::convert::Infallible;

    fn into_response_parts(self, mut parts: ResponseParts) -> Result<ResponseParts, Self::Error> {
        if self.0 > 0 {
            parts.headers_mut().insert(TEXT_REPLACED, HeaderValue::from(self.0));
        }
        Ok(parts)
    }
}

impl FromRequest<AppState> for JsonBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, ApiError> {
        Ok(read_json(request, state, LoneSurrogates::Refused).await?.0)
    }
}

impl FromRequest<AppState> for ReportBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, ApiError> {
        let (body, replaced) = read_json(request, state, LoneSurrogates::Replaced).await?;
        Ok(Self { body, replaced })
    }
}

/// Reads a body, and how many lone surrogates were replaced in it.
async fn read_json(
    request: Request,
    state: &AppState,
    lone_surrogates: LoneSurrogates,
) -> Result<(JsonBody, usize), ApiError> {
    let is_json = has_json_type(request.headers());
    let mut claim = claim(&request, state)?;
    let bytes = read(request.into_body(), &mut claim);
    let bytes = tokio::time::timeout(state.limits.body_timeout, bytes)
        .await
        .map_err(|_| ApiError::BodyTooSlow)??;
    if bytes.is_empty() {
        return Ok((JsonBody { value: None, claim }, 0));
    }
    if !is_json {
        // FastAPI passes such a body on as text, and a text is not an object.
        let value = Some(Value::from(String::from_utf8_lossy(&bytes)));
        return Ok((JsonBody { value, claim }, 0));
    }
    let mut text = String::from_utf8(bytes).map_err(|_| ApiError::BodyUnreadable)?;
    if text.starts_with('\u{feff}') {
        text.remove(0);
    }
    let checked = json_syntax::check(&text, lone_surrogates).map_err(|error| match error {
        JsonSyntaxError::Syntax(position, error) => {
            ValidationError::json_invalid(position, error).into()
        }
        JsonSyntaxError::TooManyValues => ApiError::TooManyValues { limit: MAX_VALUES },
        JsonSyntaxError::TooDeep | JsonSyntaxError::ReservedName => ApiError::BodyUnreadable,
    })?;
    for at in &checked.lone_surrogates {
        // An escape of the same length.
        text.replace_range(*at..at + r"\ufffd".len(), r"\ufffd");
    }
    claim.take_values(checked.values).await?;
    let value = serde_json::from_str(&text).map_err(|_| ApiError::BodyUnreadable)?;
    Ok((JsonBody { value: Some(value), claim }, checked.lone_surrogates.len()))
}

/// A claim of the caller's organization on the memory of bodies.
fn claim(request: &Request, state: &AppState) -> Result<BodyClaim, ApiError> {
    let organization = request.extensions().get::<OrganizationId>();
    let memory = request.extensions().get::<BodyMemory>();
    let claim = memory.zip(organization).map(|(memory, organization)| {
        memory.claim(*organization, state.limits.body_memory_timeout)
    });
    claim.ok_or_else(|| ApiError::Internal("a body is read before its caller is known".to_owned()))
}

/// Reads a body. What is refused is read on and discarded.
async fn read(mut body: Body, claim: &mut BodyClaim) -> Result<Vec<u8>, ApiError> {
    let announced = body.size_hint().exact().and_then(|length| usize::try_from(length).ok());
    let first = announced.unwrap_or(0).min(FIRST_BYTES);
    let mut kept = Ok(Vec::new());
    let mut seen = 0;
    while let Some(frame) = body.frame().await {
        // The client closed the connection or broke the framing, so it does not see this error.
        let frame = frame.map_err(|_| ApiError::BodyUnreadable)?;
        let Some(data) = frame.data_ref() else { continue };
        seen += data.len();
        if seen > MAX_DISCARDED_BYTES {
            break;
        }
        if let Ok(bytes) = &mut kept {
            let room = if seen > MAX_BODY_BYTES {
                Err(ApiError::BodyTooLarge { limit: MAX_BODY_BYTES })
            } else {
                claim.cover_bytes(seen.max(first)).await
            };
            match room {
                Ok(()) => bytes.extend_from_slice(data),
                Err(error) => {
                    kept = Err(error);
                    claim.release();
                }
            }
        }
    }
    kept
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
