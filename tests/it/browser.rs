//! What browsers are told: security headers, and which sites may call the API.

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode};
use serde_json::json;
use task_history::api::{self, AppState};
use task_history::domain::{Clock, CorsOrigins, NetworkOptions};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::support::test_app::{TestApp, short_limits};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_are_neither_guessed_nor_framed_nor_kept() {
    let app = TestApp::start().await;
    app.invoke("a", json!({ "id": "t", "input": {} })).await.ok();
    let bare = async |method: &str, target: &str| {
        let request = Request::builder().method(method).uri(target).body(Body::empty());
        app.send(request.expect("a request")).await
    };
    let answers = [
        (app.get("/v1/agents/a/tasks").await, StatusCode::OK),
        (app.get("/v1/tasks/unknown").await, StatusCode::NOT_FOUND),
        (bare("GET", "/v1/tasks/t").await, StatusCode::UNAUTHORIZED),
        (bare("PUT", "/v1/tasks/t").await, StatusCode::METHOD_NOT_ALLOWED),
        (bare("GET", "/v1/tasks/").await, StatusCode::TEMPORARY_REDIRECT),
        (bare("GET", "/health").await, StatusCode::OK),
        (bare("GET", "/openapi.json").await, StatusCode::OK),
        (bare("GET", "/docs").await, StatusCode::SEE_OTHER),
        (bare("GET", "/docs/").await, StatusCode::OK),
        (bare("GET", "/docs/swagger-ui-bundle.js").await, StatusCode::OK),
        (bare("GET", "/docs/nothing").await, StatusCode::NOT_FOUND),
    ];
    for (answer, status) in &answers {
        let headers = &answer.headers;
        assert_eq!(answer.status, *status);
        assert_eq!(headers["x-content-type-options"], "nosniff", "{headers:?}");
        assert_eq!(headers["x-frame-options"], "DENY", "{headers:?}");
        assert_eq!(headers["referrer-policy"], "no-referrer", "{headers:?}");
        assert!(!headers.contains_key("access-control-allow-origin"), "{headers:?}");
    }
    assert_eq!(answers[0].0.headers["cache-control"], "no-store");
    assert_eq!(answers[1].0.headers["cache-control"], "no-store");
    let policy = answers[8].0.headers["content-security-policy"].to_str().expect("ASCII");
    for directive in ["default-src 'none'", "script-src 'self';", "frame-ancestors 'none'"] {
        assert!(policy.contains(directive), "{policy}");
    }
    // The page has no script of its own in its text, which the policy would refuse.
    let page = &answers[8].0.text;
    for script in page.split("<script").skip(1) {
        assert!(script.split('>').next().is_some_and(|tag| tag.contains("src=")), "{page}");
    }

    // A route that says itself how long its answer may be kept.
    let request = Request::get("/agent-execution/t/events").header("x-api-key", &app.key);
    let request = request.body(Body::empty()).expect("a request");
    let stream = app.router.clone().oneshot(request).await.expect("infallible");
    assert_eq!(stream.headers()["cache-control"], "no-cache, no-transform");
    assert_eq!(stream.headers()["x-content-type-options"], "nosniff");
}

/// The service with another list of sites.
fn service_for(app: &TestApp, sites: &str) -> Router {
    let cors_origins = CorsOrigins::parse(sites).expect("origins");
    let now = app.now();
    api::router(AppState {
        store: app.store.clone(),
        clock: Clock::new(move || now),
        limits: short_limits(),
        network: NetworkOptions { cors_origins, ..NetworkOptions::default() },
        stopping: CancellationToken::new(),
    })
}

/// The answer to a request from a page of a site.
async fn from_site(
    router: &Router,
    site: &str,
    method: &str,
    headers: &[(&str, &str)],
) -> (StatusCode, HeaderMap) {
    let mut request =
        Request::builder().method(method).uri("/v1/agents/a/tasks").header("origin", site);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Body::empty()).expect("a request");
    let response = router.clone().oneshot(request).await.expect("infallible");
    (response.status(), response.headers().clone())
}

const PREFLIGHT: [(&str, &str); 2] = [
    ("access-control-request-method", "GET"),
    ("access-control-request-headers", "x-api-key,content-type"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_listed_sites_may_call() {
    let app = TestApp::start().await;
    let key = ("x-api-key", app.key.as_str());
    let ours = "https://app.example.com";
    let allowed = "access-control-allow-origin";

    let listed = service_for(&app, "https://app.example.com, http://localhost:3000");
    let (status, headers) = from_site(&listed, ours, "OPTIONS", &PREFLIGHT).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(headers[allowed], ours);
    assert_eq!(headers["access-control-allow-headers"], "x-api-key,content-type");
    let methods = headers["access-control-allow-methods"].to_str().expect("ASCII");
    for method in ["GET", "POST", "PUT", "PATCH", "DELETE"] {
        assert!(methods.contains(method), "{methods}");
    }
    let (status, headers) = from_site(&listed, ours, "GET", &[key]).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(headers[allowed], ours);
    let exposed = headers["access-control-expose-headers"].to_str().expect("ASCII");
    for name in ["link", "retry-after", "x-request-id", "x-task-turn", "x-text-replaced"] {
        assert!(exposed.contains(name), "{exposed}");
    }
    // A page can read errors too.
    let (status, headers) = from_site(&listed, ours, "GET", &[]).await;
    assert_eq!((status, &headers[allowed]), (StatusCode::UNAUTHORIZED, &ours.parse().expect("")));
    for method in ["OPTIONS", "GET"] {
        let (_, headers) = from_site(&listed, "https://evil.example", method, &PREFLIGHT).await;
        assert!(!headers.contains_key(allowed), "{headers:?}");
    }

    let any = service_for(&app, "*");
    let (status, headers) = from_site(&any, "https://evil.example", "OPTIONS", &PREFLIGHT).await;
    assert_eq!((status, &headers[allowed]), (StatusCode::OK, &"*".parse().expect("")));
    assert!(!headers.contains_key("access-control-allow-credentials"), "{headers:?}");

    let none = service_for(&app, "");
    let (status, headers) = from_site(&none, ours, "OPTIONS", &PREFLIGHT).await;
    assert_eq!(status, StatusCode::METHOD_NOT_ALLOWED);
    assert!(!headers.contains_key(allowed), "{headers:?}");
}
