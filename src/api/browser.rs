//! What answers tell browsers: not to guess, frame or keep them, and which sites may read them.

use std::time::Duration;

use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, Method, header};
use axum::middleware::Next;
use axum::response::Response;
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use super::auth::API_KEY_HEADER;
use super::client::REQUEST_ID;
use super::request::body::TEXT_REPLACED;
use super::response::TASK_TURN;
use crate::domain::CorsOrigins;

/// How long a browser may keep the answer to a preflight request. Some keep it for two hours at
/// most.
const PREFLIGHT_MAX_AGE: Duration = Duration::from_hours(1);

/// The policy of the documentation: its own scripts, and requests to this service. Swagger UI sets
/// styles on its elements and has images in its styles.
const DOCS_POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; \
     img-src 'self' data:; font-src 'self'; connect-src 'self'; base-uri 'none'; \
     form-action 'none'; frame-ancestors 'none'",
);

/// Adds the headers that protect what a browser shows. Few and short: a list has them too.
pub(super) async fn add_security_headers(request: Request, next: Next) -> Response {
    let has_key = request.headers().contains_key(API_KEY_HEADER);
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    if has_key {
        // An organization's data is in no cache, unless its route says how.
        let entry = headers.entry(header::CACHE_CONTROL);
        entry.or_insert(HeaderValue::from_static("no-store"));
    }
    response
}

/// Adds the policy of the documentation.
pub(super) async fn add_docs_policy(mut response: Response) -> Response {
    response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, DOCS_POLICY);
    response
}

/// Lets the pages of other sites call the API. `None` if no site may.
pub(super) fn cors(origins: &CorsOrigins) -> Option<CorsLayer> {
    let origins = match origins {
        CorsOrigins::None => return None,
        CorsOrigins::Any => AllowOrigin::any(),
        CorsOrigins::Listed(origins) => {
            // An origin that was parsed is visible ASCII.
            AllowOrigin::list(origins.iter().filter_map(|origin| origin.parse().ok()))
        }
    };
    let layer = CorsLayer::new()
        .allow_origin(origins)
        .allow_methods([Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE])
        // The key is a header that a page sets, not a cookie: no header gives a site more rights.
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers([
            header::LINK,
            header::RETRY_AFTER,
            REQUEST_ID,
            HeaderName::from_static(TASK_TURN),
            TEXT_REPLACED,
        ])
        .max_age(PREFLIGHT_MAX_AGE);
    Some(layer)
}
