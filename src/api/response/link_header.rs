//! The `Link` header of a list (RFC 8288): the first, previous, next and last page. The body is the
//! contract's and has no room for it.
//!
//! `next` and `prev` carry a cursor. A client that follows them gets each task once, also while
//! others are being recorded. `first` and `last` carry a page number. The parameter `cursor` is an
//! addition to the contract, and its text is opaque.

use std::fmt::Write;

use axum::http::{HeaderMap, HeaderValue, Uri, header};

use crate::api::cursor::{CURSOR, encode};
use crate::domain::{PageRequest, PageStart, TaskPage};

/// The header of a page of the list at `uri`.
pub(crate) fn link_header(uri: &Uri, request: &PageRequest, page: &TaskPage) -> HeaderMap {
    let number = request.number();
    let address = address_without_page(uri);
    // The query and the cursors are percent-encoded. The path is as the request line had it, and a
    // header may have the same characters.
    let mut text = format!("<{address}page=1>; rel=\"first\"");
    let mut add = |relation, page: u64, cursor: Option<String>| {
        let cursor = cursor.map(|cursor| format!("&{CURSOR}={cursor}")).unwrap_or_default();
        let _ = write!(text, ", <{address}page={page}{cursor}>; rel=\"{relation}\"");
    };
    if let Some(previous) = &page.previous {
        add("prev", number.saturating_sub(1).max(1), encode(&PageStart::Before(previous.clone())));
    }
    if let Some(next) = &page.next {
        add("next", number.saturating_add(1), encode(&PageStart::After(next.clone())));
    }
    add("last", u64::try_from(request.pages_for(page.total)).unwrap_or(1).max(1), None);
    let value = HeaderValue::from_str(&text).expect("a request line's characters are a header's");
    HeaderMap::from_iter([(header::LINK, value)])
}

/// The same address, up to the place of the page's number.
fn address_without_page(uri: &Uri) -> String {
    // The path as the client sent it, without the character that ends the reference.
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
