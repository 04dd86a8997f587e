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
    /// The id of the last event, as a browser keeps it.
    pub last_id: Option<i64>,
}

impl SseClient {
    pub async fn open(router: &Router, request: Request<Body>) -> Self {
        let response = router.clone().oneshot(request).await.expect("infallible");
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        assert_eq!(response.headers()["cache-control"], "no-cache, no-transform");
        assert_eq!(response.headers()["x-accel-buffering"], "no");
        let body = response.into_body().into_data_stream();
        Self { body, buffer: String::new(), last_id: None }
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

    /// The events of a task after the event with a number.
    pub async fn follow_after(app: &TestApp, id: &str, number: i64) -> Self {
        let request = Request::get(format!("/agent-execution/{id}/events"))
            .header("x-api-key", &app.key)
            .header("last-event-id", number);
        Self::open(&app.router, request.body(Body::empty()).expect("a request")).await
    }

    /// The next event, or `None` if the stream has ended.
    pub async fn next(&mut self) -> Option<Value> {
        self.try_next().await.expect("the stream is not aborted")
    }

    /// The next event, `None` if the stream has ended, or an error if it was aborted.
    async fn try_next(&mut self) -> Result<Option<Value>, axum::Error> {
        let find = async {
            loop {
                if let Some(end) = self.buffer.find("\n\n") {
                    let event: String = self.buffer.drain(..end + 2).collect();
                    let field = |name| event.lines().find_map(|line| line.strip_prefix(name));
                    if let Some(id) = field("id: ") {
                        self.last_id = Some(id.parse().expect("a number"));
                    }
                    if let Some(data) = field("data: ") {
                        return Ok(Some(serde_json::from_str(data).expect(data)));
                    }
                    continue;
                }
                let Some(bytes) = self.body.next().await else { return Ok(None) };
                self.buffer += std::str::from_utf8(&bytes?).expect("UTF-8");
            }
        };
        tokio::time::timeout(TIMEOUT, find).await.expect("an event arrives")
    }

    /// Reads on until the stream is aborted. Returns the events before, as `type status`, and the
    /// reason that the last event gives.
    pub async fn aborted(&mut self) -> (Vec<String>, String) {
        let mut seen = Vec::new();
        while let Ok(Some(event)) = self.try_next().await {
            if event["type"] == "stream_error" {
                self.try_next().await.expect_err("the body is aborted after the error");
                let reason = event["data"]["code"].as_str().expect("a code").to_owned();
                return (seen, reason);
            }
            seen.push(shown(&event));
        }
        panic!("no error after {seen:?}")
    }

    /// All events to the end, as `type status`.
    pub async fn rest(&mut self) -> Vec<String> {
        let mut seen = Vec::new();
        while let Some(event) = self.next().await {
            seen.push(shown(&event));
        }
        seen
    }
}

/// An event as `type status`, or as `type data` if its data is not a task.
fn shown(event: &Value) -> String {
    let data = &event["data"];
    let text = data["status"].as_str().map_or_else(|| data.to_string(), str::to_owned);
    format!("{} {text}", event["type"].as_str().expect("a type"))
}
