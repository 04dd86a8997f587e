//! Requests that the HTTP library accepts and RFC 9112 refuses.
//!
//! A proxy may read such a request differently than this service. Whoever knows both readings can
//! hide a request in another one.

use axum::body::Body;
use http::header::{CONNECTION, CONTENT_TYPE, HOST, TRANSFER_ENCODING};
use http::uri::Authority;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Version};

/// The answer to a request whose host or framing is not valid, if it is so. It closes the
/// connection.
pub(super) fn refusal<B>(request: &Request<B>) -> Option<Response<Body>> {
    let (status, detail) = problem(request.headers(), request.version())?;
    let mut response = Response::new(Body::from(format!(r#"{{"detail":"{detail}"}}"#)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    Some(response)
}

fn problem(headers: &HeaderMap, version: Version) -> Option<(StatusCode, &'static str)> {
    if !has_one_host(headers, version) {
        return Some((StatusCode::BAD_REQUEST, "The request must have one valid Host header"));
    }
    // RFC 9112, 6.1: `chunked` occurs once, at the end, and other codings are answered with 501.
    let values = headers.get_all(TRANSFER_ENCODING).iter();
    let codings: Vec<_> = values
        .flat_map(|value| value.to_str().unwrap_or_default().split(','))
        .map(|coding| coding.trim().to_ascii_lowercase())
        .collect();
    let last = codings.last()?;
    if last != "chunked" || codings.iter().filter(|coding| *coding == "chunked").count() > 1 {
        let detail = "The Transfer-Encoding must be `chunked` once, at its end";
        return Some((StatusCode::BAD_REQUEST, detail));
    }
    (codings.len() > 1)
        .then_some((StatusCode::NOT_IMPLEMENTED, "The only Transfer-Encoding here is `chunked`"))
}

/// RFC 9112, 3.2: HTTP/1.1 needs a `Host`, and no request has two. An empty one is valid.
fn has_one_host(headers: &HeaderMap, version: Version) -> bool {
    let mut hosts = headers.get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (None, _) => version < Version::HTTP_11,
        (Some(host), None) => {
            let is_host = |host: Authority| !host.as_str().contains('@');
            host.is_empty() || Authority::try_from(host.as_bytes()).is_ok_and(is_host)
        }
        (Some(_), Some(_)) => false,
    }
}
