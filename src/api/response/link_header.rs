//! The `Link` header of a list (RFC 8288): the first, previous, next and last page. The body is the
//! contract's and has no room for it.
//!
//! `next` and `prev` carry a cursor. A client that follows them gets each task once, also while
//! others are being recorded. `first` and `last` carry a page number. The parameter `cursor` is an
//! addition to the contract, and its text is opaque.

use axum::http::{HeaderMap, HeaderValue, header};

use crate::api::cursor::{CURSOR, encode};
use crate::domain::{PageRequest, PageStart, TaskPage};

/// The parameter with the number of a page.
pub(crate) const PAGE: &str = "page";

/// Longest header, in bytes. Proxies and clients accept heads of 4 KiB, and the other headers of a
/// list have less than 700 bytes.
const MAX_BYTES: usize = 3_328;

/// The header of a page of the list at `path`. `query` has the parameters that select the list,
/// without those of the page.
///
/// If the header would be too long, it has fewer links: `next` is the last one to be left out.
pub(crate) fn link_header(
    path: &str,
    query: &str,
    request: &PageRequest,
    page: &TaskPage,
) -> HeaderMap {
    // The path as the client sent it, without the character that ends the reference.
    let path = path.replace('>', "%3E");
    let separator = if query.is_empty() { "" } else { "&" };
    let link = |relation, number: u64, start: &PageStart| {
        let cursor = encode(start).map(|cursor| format!("&{CURSOR}={cursor}")).unwrap_or_default();
        format!("<{path}?{query}{separator}{PAGE}={number}{cursor}>; rel=\"{relation}\"")
    };
    let number = request.number();
    let last = u64::try_from(request.pages_for(page.total)).unwrap_or(1).max(1);
    let previous = page.previous.clone().map(|previous| {
        link("prev", number.saturating_sub(1).max(1), &PageStart::Before(previous))
    });
    let next = page
        .next
        .clone()
        .map(|next| link("next", number.saturating_add(1), &PageStart::After(next)));
    let mut links = [
        Some(link("first", 1, &PageStart::FromNumber)),
        previous,
        next,
        Some(link("last", last, &PageStart::FromNumber)),
    ];
    for left_out in [None, Some(LAST), Some(PREVIOUS), Some(FIRST)] {
        if let Some(index) = left_out {
            links[index] = None;
        }
        let text = links.iter().flatten().map(String::as_str).collect::<Vec<_>>().join(", ");
        if text.is_empty() || text.len() > MAX_BYTES {
            continue;
        }
        // The query and the cursors are percent-encoded. The path is as the request line had it,
        // and a header may have the same characters.
        let value = HeaderValue::from_str(&text).expect("a request line's characters");
        return HeaderMap::from_iter([(header::LINK, value)]);
    }
    HeaderMap::new()
}

/// Places of the links in the header.
const FIRST: usize = 0;
const PREVIOUS: usize = 1;
const LAST: usize = 3;
