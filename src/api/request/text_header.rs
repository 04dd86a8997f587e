//! Headers that are read as text.

use axum::http::HeaderMap;

use crate::api::error::validation::{ValidationError, ValidationErrors};
use crate::domain::TextError;

/// The text of a header, or an error: other bytes are no text, and nothing stands for them.
pub(crate) fn read_text_header(
    headers: &HeaderMap,
    name: &'static str,
    errors: &mut ValidationErrors,
) -> Option<String> {
    let value = headers.get(name)?.as_bytes();
    let text = std::str::from_utf8(value).map(str::to_owned);
    if text.is_err() {
        let loc = vec!["header".into(), name.into()];
        let shown = String::from_utf8_lossy(value).into_owned().into();
        errors.push(ValidationError::invalid_text(loc, TextError::NotUtf8, shown));
    }
    text.ok()
}
