//! What tests are written with: the service in this process, requests to it, and a clock that tests set.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode};
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::Value;
use task_history::api::Api;
use task_history::app;
use task_history::domain::{Clock, OrganizationId};
use task_history::store::{DatabaseUrl, KeyDigest, NewApiKey, Secret, Store};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::cluster;

/// A test of the list that `tests()` of each module returns.
macro_rules! tests {
    ($($name:ident),+ $(,)?) => {
        /// This module's tests.
        pub fn tests() -> Vec<libtest_mimic::Trial> {
            let module = module_path!().rsplit("::").next().expect("a module");
            vec![$(libtest_mimic::Trial::test(format!("{module}::{}", stringify!($name)), || {
                $crate::harness::block_on($name());
                Ok(())
            })),+]
        }
    };
}
pub(crate) use tests;

/// Runs a test on a runtime of its own.
pub fn block_on(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(test);
}

/// The service on a database of its own.
pub struct TestApp {
    pub router: Router,
    pub store: Store,
    pub database: String,
    pub organization: OrganizationId,
    /// A key of the organisation that may write.
    pub key: String,
    now: Arc<Mutex<DateTime<Utc>>>,
}

/// An answer, taken apart.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    /// The body as sent, where it is text.
    pub text: String,
}

impl Answer {
    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|_| panic!("{} {}", self.status, self.text))
    }

    /// The body of a success.
    #[track_caller]
    pub fn ok(&self) -> Value {
        assert_eq!(self.status, StatusCode::OK, "{}", self.text);
        self.json()
    }
}

impl TestApp {
    pub async fn start() -> Self {
        let now = Arc::new(Mutex::new("2026-03-23T00:45:22Z".parse().expect("a time")));
        let database = cluster::migrated_database().await;
        let store = Store::new(&DatabaseUrl::parse(&cluster::url_of(&database)).expect("a URL"), 8);
        let clock = {
            let now = now.clone();
            Clock::new(move || *now.lock().expect("no panic"))
        };
        let key = Secret::parse("test-key-of-the-default-organisation").expect("a key");
        store.bootstrap(Some(&key), clock.now()).await.expect("a first start");
        let router = router(store.clone(), clock.clone());
        let organization = organization_of(&store, key.expose(), clock.now()).await;
        Self { router, store, database, organization, key: key.expose().to_owned(), now }
    }

    /// Lets time pass.
    pub fn advance(&self, seconds: f64) {
        let micros = (seconds * 1e6).round();
        #[expect(clippy::cast_possible_truncation, reason = "tests wait for seconds, not for ages")]
        let delta = TimeDelta::microseconds(micros as i64);
        *self.now.lock().expect("no panic") += delta;
    }

    pub fn now(&self) -> DateTime<Utc> {
        *self.now.lock().expect("no panic")
    }

    /// A key of another organisation, and that organisation.
    pub async fn other_organization(&self) -> (String, OrganizationId) {
        let new = NewApiKey {
            organization: "other".into(),
            name: "test".into(),
            can_write: true,
            expires_at: None,
        };
        let (_, key, _) = self.store.create_api_key(&new, self.now()).await.expect("a key");
        let organization = organization_of(&self.store, key.expose(), self.now()).await;
        (key.expose().to_owned(), organization)
    }

    /// Sends a request as it is.
    pub async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.expect("infallible");
        let (parts, body) = response.into_parts();
        let bytes = axum::body::to_bytes(body, usize::MAX).await.expect("a body");
        let text = String::from_utf8_lossy(&bytes).into_owned();
        Answer { status: parts.status, headers: parts.headers, text }
    }

    /// Sends a request with the test's key, and a JSON body where one is given.
    pub async fn request(&self, method: &str, target: &str, body: Option<Value>) -> Answer {
        self.request_as(&self.key, method, target, body).await
    }

    pub async fn request_as(&self, key: &str, method: &str, target: &str, body: Option<Value>) -> Answer {
        let mut request = Request::builder().method(method).uri(target).header("x-api-key", key);
        if body.is_some() {
            request = request.header("content-type", "application/json");
        }
        let body = body.map_or_else(Body::empty, |body| Body::from(body.to_string()));
        self.send(request.body(body).expect("a request")).await
    }

    pub async fn get(&self, target: &str) -> Answer {
        self.request("GET", target, None).await
    }

    pub async fn invoke(&self, agent: &str, body: Value) -> Answer {
        self.request("POST", &format!("/v1/agents/{agent}/invoke/async"), Some(body)).await
    }

    pub async fn report(&self, task: &str, body: Value) -> Answer {
        self.request("PATCH", &format!("/agent-execution/{task}/update"), Some(body)).await
    }
}

/// The service as a router, with little patience for agents and readers.
pub fn router(store: Store, clock: Clock) -> Router {
    let patience = Duration::from_millis(300);
    app::router(Api {
        store,
        clock,
        invoke_timeout: patience,
        reader_patience: patience,
        stopping: CancellationToken::new(),
    })
}

async fn organization_of(store: &Store, key: &str, now: DateTime<Utc>) -> OrganizationId {
    let caller = store.authenticate(KeyDigest::of(key.as_bytes()), now).await.expect("an answer");
    caller.expect("a valid key").organization_id
}
