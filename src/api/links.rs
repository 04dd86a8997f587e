//! The `Link` header of a list: how to go on from a page (RFC 8288). The body has no room for it, since it is the contract's.
//!
//! `next` and `prev` carry a cursor, so whoever follows them meets each task once while others are being recorded;
//! `first` and `last` carry a page number. The parameter `cursor` is this service's own, its text opaque.

use std::fmt::Write;

use axum::http::{HeaderMap, HeaderValue, Uri, header};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use chrono::DateTime;

use super::faults::Fault;
use super::query::QueryReader;
use crate::domain::{Cursor, PageRequest, Position, TaskId, TaskPage};

/// The parameter that says where a page begins.
const CURSOR: &str = "cursor";

/// Reads where a page begins: where its number says, unless there is a cursor.
pub(crate) fn read_position(query: &mut QueryReader<'_>) -> Position {
    let Some(text) = query.text(CURSOR) else { return Position::Number };
    parse(&text).unwrap_or_else(|| {
        let loc = vec!["query".into(), CURSOR.into()];
        let msg = "Value error, must be taken from a Link header as it is";
        query.fault(Fault::new("value_error", loc, msg, text.into()));
        Position::Number
    })
}

fn parse(text: &str) -> Option<Position> {
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(text).ok()?;
    let text = String::from_utf8(bytes).ok()?;
    let (direction, rest) = text.split_at_checked(1)?;
    let (micros, id) = rest.split_once(' ')?;
    let created_at = DateTime::from_timestamp_micros(micros.parse().ok()?)?;
    let cursor = Cursor { created_at, id: TaskId::parse(id).ok()? };
    match direction {
        ">" => Some(Position::After(cursor)),
        "<" => Some(Position::Before(cursor)),
        _ => None,
    }
}

fn encode(direction: char, cursor: &Cursor) -> String {
    let text = format!("{direction}{} {}", cursor.created_at.timestamp_micros(), cursor.id);
    BASE64_URL_SAFE_NO_PAD.encode(text)
}

/// The header of a page of the list at `uri`.
pub(crate) fn headers(uri: &Uri, request: &PageRequest, page: &TaskPage) -> HeaderMap {
    let number = request.number();
    let address = address_without_page(uri);
    // The query and the cursors are percent-encoded; the path is as a request line had it, which a header may have too.
    let mut text = format!("<{address}page=1>; rel=\"first\"");
    let mut add = |relation, page: u64, cursor: Option<String>| {
        let cursor = cursor.map(|cursor| format!("&{CURSOR}={cursor}")).unwrap_or_default();
        let _ = write!(text, ", <{address}page={page}{cursor}>; rel=\"{relation}\"");
    };
    if let Some(previous) = &page.previous {
        add("prev", number.saturating_sub(1).max(1), Some(encode('<', previous)));
    }
    if let Some(next) = &page.next {
        add("next", number.saturating_add(1), Some(encode('>', next)));
    }
    add("last", u64::try_from(request.pages_for(page.total)).unwrap_or(1).max(1), None);
    let value = HeaderValue::from_str(&text).expect("what a request line may have, a header may");
    HeaderMap::from_iter([(header::LINK, value)])
}

/// The same address, up to the place for a page's number.
fn address_without_page(uri: &Uri) -> String {
    // The path without what could end the reference; axum leaves it as the client sent it.
    let mut address = uri.path().replace('>', "%3E") + "?";
    let query = uri.query().unwrap_or_default();
    if !query.is_empty() {
        let others = form_urlencoded::parse(query.as_bytes());
        let others = others.filter(|(name, _)| name != "page" && name != CURSOR);
        let start = address.len();
        let mut serializer = form_urlencoded::Serializer::for_suffix(address, start);
        address = serializer.extend_pairs(others).finish();
        if address.len() > start {
            address.push('&');
        }
    }
    address
}
