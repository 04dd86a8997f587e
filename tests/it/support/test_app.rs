//! The service in this process, requests to it, and a clock that tests set.

use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Request, StatusCode};
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::Value;
use task_history::api::{self, AppState};
use task_history::domain::{
    ApiKeySecret, Clock, KeyDigest, Limits, NetworkOptions, OrganizationId,
};
use task_history::store::{DatabaseUrl, NewApiKey, Store};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::cluster;

/// Most apps of one process at a time: each has up to twenty of the server's hundred connections.
const MAX_APPS: usize = 4;

/// The service on a database of its own.
pub struct TestApp {
    pub router: Router,
    pub store: Store,
    pub database: String,
    pub organization: OrganizationId,
    /// A key of the organization that may write.
    pub key: String,
    /// What cancels waiting requests and streams.
    pub stopping: CancellationToken,
    now: Arc<Mutex<DateTime<Utc>>>,
    _permit: OwnedSemaphorePermit,
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
        Self::start_with(short_limits()).await
    }

    /// With time limits of the test's own.
    pub async fn start_with(limits: Limits) -> Self {
        Self::start_at(limits, cluster::url_of).await
    }

    /// On a server that is reached at another address. `url_of` is the URL of a database there.
    pub async fn start_at(limits: Limits, url_of: impl Fn(&str) -> String) -> Self {
        static APPS: LazyLock<Arc<Semaphore>> =
            LazyLock::new(|| Arc::new(Semaphore::new(MAX_APPS)));
        let permit = APPS.clone().acquire_owned().await.expect("never closed");
        let now = Arc::new(Mutex::new("2026-03-23T00:45:22Z".parse().expect("a time")));
        let database = cluster::migrated_database().await;
        let url = DatabaseUrl::parse(&url_of(&database)).expect("a URL");
        let store = Store::new(&url, 8, &limits);
        let clock = {
            let now = now.clone();
            Clock::new(move || *now.lock().expect("no panic"))
        };
        let key = ApiKeySecret::parse("test-key-of-the-default-organization").expect("a key");
        store.bootstrap(Some(&key), clock.now()).await.expect("a first start");
        let stopping = CancellationToken::new();
        let state = AppState {
            store: store.clone(),
            clock: clock.clone(),
            limits,
            network: NetworkOptions::default(),
            stopping: stopping.clone(),
        };
        let router = api::router(state);
        let organization = organization_of(&store, key.expose(), clock.now()).await;
        Self {
            router,
            store,
            database,
            organization,
            key: key.expose().to_owned(),
            stopping,
            now,
            _permit: permit,
        }
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

    /// A key of another organization, and that organization.
    pub async fn other_organization(&self) -> (String, OrganizationId) {
        let new = NewApiKey {
            organization: "other".into(),
            name: "test".into(),
            can_write: true,
            expires_at: None,
        };
        let created = self.store.create_api_key(&new, self.now()).await.expect("a key");
        let key = created.secret.expose();
        (key.to_owned(), organization_of(&self.store, key, self.now()).await)
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

    pub async fn request_as(
        &self,
        key: &str,
        method: &str,
        target: &str,
        body: Option<Value>,
    ) -> Answer {
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

/// The limits of most tests: short timeouts for invocations and slow readers. An address that
/// guesses keys remains refused.
pub fn short_limits() -> Limits {
    let timeout = Duration::from_millis(300);
    Limits {
        invoke_timeout: timeout,
        slow_reader_timeout: timeout,
        failed_key_interval: Duration::from_hours(1),
        ..Limits::default()
    }
}

/// Another instance of the service.
pub fn router(store: Store, clock: Clock) -> Router {
    let stopping = CancellationToken::new();
    let (limits, network) = (short_limits(), NetworkOptions::default());
    api::router(AppState { store, clock, limits, network, stopping })
}

/// A store of one connection on a database.
pub fn single_connection_store(database: &str) -> Store {
    let url = DatabaseUrl::parse(&cluster::url_of(database)).expect("a URL");
    Store::new(&url, 1, &Limits::default())
}

async fn organization_of(store: &Store, key: &str, now: DateTime<Utc>) -> OrganizationId {
    let caller = store.authenticate(KeyDigest::of(key.as_bytes()), now).await.expect("an answer");
    caller.expect("a valid key").organization_id
}
