//! The text of a cursor, in the query parameter `cursor` and in `Link` headers.

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use chrono::DateTime;

use crate::domain::{Cursor, PageStart, TaskId};

/// The parameter with the start of a page. It is an addition to the contract; its text is opaque.
pub(crate) const CURSOR: &str = "cursor";

/// The text of a start; `None` if the page's number says it.
pub(crate) fn encode(start: &PageStart) -> Option<String> {
    let (direction, cursor) = match start {
        PageStart::FromNumber => return None,
        PageStart::After(cursor) => ('>', cursor),
        PageStart::Before(cursor) => ('<', cursor),
    };
    let text = format!("{direction}{} {}", cursor.created_at.timestamp_micros(), cursor.id);
    Some(BASE64_URL_SAFE_NO_PAD.encode(text))
}

/// Reads what [`encode`] wrote.
pub(crate) fn parse(text: &str) -> Option<PageStart> {
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(text).ok()?;
    let text = String::from_utf8(bytes).ok()?;
    let (direction, rest) = text.split_at_checked(1)?;
    let (micros, id) = rest.split_once(' ')?;
    let created_at = DateTime::from_timestamp_micros(micros.parse().ok()?)?;
    let cursor = Cursor::new(created_at, TaskId::parse(id).ok()?)?;
    match direction {
        ">" => Some(PageStart::After(cursor)),
        "<" => Some(PageStart::Before(cursor)),
        _ => None,
    }
}
