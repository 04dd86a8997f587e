//! A reader of server-sent events.

use axum::Router;
use axum::body::{Body, BodyDataStream};
use axum::http::{Request, StatusCode};
use futures_util::StreamExt;
use serde_json::Value;
use tower::ServiceExt;

use super::TIMEOUT;
use super::test_app::TestApp;

/// A stream of server-sent events.
pub struct SseClient {
    body: BodyDataStream,
    buffer: String,
}

impl SseClient {
    pub async fn open(router: &Router, request: Request<Body>) -> Self {
        let response = router.clone().oneshot(request).await.expect("infallible");
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self { body: response.into_body().into_data_stream(), buffer: String::new() }
    }

    /// The events of a task.
    pub async fn follow(app: &TestApp, id: &str) -> Self {
        Self::follow_at(app, &app.router, id).await
    }

    /// The events of a task, from another instance of the service.
    pub async fn follow_at(app: &TestApp, router: &Router, id: &str) -> Self {
        let request =
            Request::get(format!("/agent-execution/{id}/events")).header("x-api-key", &app.key);
        Self::open(router, request.body(Body::empty()).expect("a request")).await
    }

    /// The next event, or `None` if the stream has ended.
    pub async fn next(&mut self) -> Option<Value> {
        let find = async {
            loop {
                if let Some(end) = self.buffer.find("\n\n") {
                    let event: String = self.buffer.drain(..end + 2).collect();
                    let data = event
                        .strip_prefix("data: ")
                        .map(|data| serde_json::from_str(data).expect(data));
                    if data.is_some() {
                        return data;
                    }
                    continue;
                }
                let bytes = self.body.next().await?.expect("a body");
                self.buffer += std::str::from_utf8(&bytes).expect("UTF-8");
            }
        };
        tokio::time::timeout(TIMEOUT, find).await.expect("an event arrives")
    }

    /// All events to the end, as `type status`.
    pub async fn rest(&mut self) -> Vec<String> {
        let mut seen = Vec::new();
        while let Some(event) = self.next().await {
            let shown = event["data"]["status"]
                .as_str()
                .map_or_else(|| event["data"].to_string(), str::to_owned);
            seen.push(format!("{} {shown}", event["type"].as_str().expect("a type")));
        }
        seen
    }
}
