//! Asks the database for a sign of life, on a connection of its own.
//!
//! - Readiness is what the next heartbeat finds: it does not wait for a busy pool. However often it
//!   is asked, the database gets at most one heartbeat in [`MIN_INTERVAL`].
//! - After a failover or a lost firewall state, established connections may swallow everything and
//!   say nothing, while new ones work. The heartbeat notices within some three seconds, and ends
//!   all connections, also those in use.
//! - If its own connection was closed, others may be closed too: they are pinged before their next
//!   use.

use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Executor};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::StoreError;
use crate::domain::Limits;

/// Shortest time between two heartbeats.
const MIN_INTERVAL: Duration = Duration::from_millis(20);

/// Name of the connection, as `pg_stat_activity.application_name` shows it.
const APPLICATION_NAME: &str = "task-history heartbeat";

/// Writes something that needs space on the disk, and leaves nothing.
const PROBE: &str = "CREATE TEMPORARY TABLE probe ON COMMIT DROP AS SELECT 1 AS written";

/// Watches over one database. Cheap to clone; it runs from its first use until the last clone is
/// dropped.
#[derive(Clone)]
pub(super) struct Heartbeat(Arc<Inner>);

struct Inner {
    options: PgConnectOptions,
    interval: Duration,
    ping_timeout: Duration,
    generation: Mutex<CancellationToken>,
    /// When its connection was last found closed.
    closed_at: Mutex<Option<Instant>>,
    pulse: watch::Sender<Pulse>,
    /// Why the last write failed, if the database was the reason.
    write_failure: Mutex<Option<String>>,
    started: OnceLock<()>,
    /// Asks for a heartbeat at once.
    wake: Arc<Notify>,
}

/// What the last heartbeat found.
#[derive(Debug, Clone)]
enum Pulse {
    /// There was none yet.
    Unknown,
    /// The database responded, and can be written to.
    Alive,
    /// The database does not respond, or cannot be written to.
    Failed(String),
}

impl Heartbeat {
    pub(super) fn new(options: PgConnectOptions, limits: &Limits) -> Self {
        Self(Arc::new(Inner {
            options: options.application_name(APPLICATION_NAME),
            interval: limits.heartbeat_interval,
            ping_timeout: limits.ping_timeout,
            generation: Mutex::default(),
            closed_at: Mutex::default(),
            pulse: watch::Sender::new(Pulse::Unknown),
            write_failure: Mutex::default(),
            started: OnceLock::new(),
            wake: Arc::default(),
        }))
    }

    /// Starts it, unless it runs.
    pub(super) fn start(&self) {
        self.0.started.get_or_init(|| {
            tokio::spawn(run(Arc::downgrade(&self.0)));
        });
    }

    /// Canceled when all connections that were made until then are dead.
    pub(super) fn generation(&self) -> CancellationToken {
        lock(&self.0.generation).clone()
    }

    /// Whether a connection that is idle since then may be closed.
    pub(super) fn is_doubtful(&self, idle_since: Instant) -> bool {
        lock(&self.0.closed_at).is_some_and(|closed_at| closed_at >= idle_since)
    }

    /// Notes how a write ended. `failure` is the database's reason, if that was one.
    pub(super) fn note_write(&self, failure: Option<String>) {
        *lock(&self.0.write_failure) = failure;
    }

    /// Whether the database responds and can be written to. Answers within a second.
    pub(super) async fn ready(&self) -> Result<(), StoreError> {
        self.start();
        let mut pulse = self.0.pulse.subscribe();
        self.0.wake.notify_one();
        let beat = timeout(self.0.ping_timeout, pulse.changed()).await;
        match &*pulse.borrow() {
            Pulse::Failed(reason) => return Err(StoreError::Unavailable(reason.clone())),
            Pulse::Alive if beat.is_ok() => {}
            Pulse::Alive | Pulse::Unknown => {
                return Err(StoreError::Unavailable("PostgreSQL does not respond".to_owned()));
            }
        }
        match &*lock(&self.0.write_failure) {
            Some(reason) => Err(StoreError::Unavailable(format!("writes fail: {reason}"))),
            None => Ok(()),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code panics while it holds a lock.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn run(heartbeat: Weak<Inner>) {
    let Some((interval, options, wake)) = heartbeat
        .upgrade()
        .map(|inner| (inner.interval, inner.options.clone(), inner.wake.clone()))
    else {
        return;
    };
    let mut connection = None;
    while heartbeat.strong_count() > 0 {
        connection = beat(&heartbeat, &options, connection).await;
        tokio::time::sleep(MIN_INTERVAL).await;
        let _ = timeout(interval, wake.notified()).await;
    }
}

/// One heartbeat. Returns the connection for the next.
async fn beat(
    heartbeat: &Weak<Inner>,
    options: &PgConnectOptions,
    connection: Option<PgConnection>,
) -> Option<PgConnection> {
    let limit = heartbeat.upgrade()?.ping_timeout;
    let Some(mut connection) = connection else { return connect(heartbeat, options, limit).await };
    let response = {
        let mut check = pin!(check(heartbeat, &mut connection));
        if let Ok(response) = timeout(limit, &mut check).await {
            response
        } else {
            show(heartbeat, Pulse::Failed(format!("PostgreSQL has not responded for {limit:?}")));
            let mut replacement = pin!(connect(heartbeat, options, limit));
            tokio::select! {
                biased;
                response = &mut check => response,
                replacement = &mut replacement => {
                    let replacement = replacement?;
                    // If the whole server was frozen, both respond at the same time.
                    if timeout(limit, &mut check).await.is_err() {
                        renew(heartbeat);
                    }
                    return Some(replacement);
                }
            }
        }
    };
    if let Ok(pulse) = response {
        show(heartbeat, pulse);
        return Some(connection);
    }
    if let Some(inner) = heartbeat.upgrade() {
        *lock(&inner.closed_at) = Some(Instant::now());
    }
    connect(heartbeat, options, limit).await
}

/// Connects anew, and asks for a sign of life.
async fn connect(
    heartbeat: &Weak<Inner>,
    options: &PgConnectOptions,
    limit: Duration,
) -> Option<PgConnection> {
    let connected = timeout(limit, async {
        let mut connection = options.connect().await?;
        let pulse = check(heartbeat, &mut connection).await?;
        Ok::<_, sqlx::Error>((connection, pulse))
    });
    match connected.await {
        Ok(Ok((connection, pulse))) => {
            show(heartbeat, pulse);
            Some(connection)
        }
        Ok(Err(error)) => {
            show(heartbeat, Pulse::Failed(error.to_string()));
            None
        }
        Err(_) => {
            let text = format!("PostgreSQL did not accept a connection within {limit:?}");
            show(heartbeat, Pulse::Failed(text));
            None
        }
    }
}

/// Asks whether the database can be written to. While writes fail, it writes.
async fn check(
    heartbeat: &Weak<Inner>,
    connection: &mut PgConnection,
) -> Result<Pulse, sqlx::Error> {
    let is_read_only = sqlx::query_scalar!(
        r#"SELECT current_setting('transaction_read_only')::boolean AS "is_read_only!""#
    )
    .fetch_one(&mut *connection)
    .await?;
    if is_read_only {
        return Ok(Pulse::Failed("the database is read-only".to_owned()));
    }
    let has_failed = |inner: Arc<Inner>| lock(&inner.write_failure).is_some();
    if heartbeat.upgrade().is_some_and(has_failed) {
        if let Err(error) = connection.execute(PROBE).await {
            return match error {
                sqlx::Error::Database(error) => Ok(Pulse::Failed(format!("writes fail: {error}"))),
                error => Err(error),
            };
        }
        if let Some(inner) = heartbeat.upgrade() {
            *lock(&inner.write_failure) = None;
        }
    }
    Ok(Pulse::Alive)
}

fn show(heartbeat: &Weak<Inner>, pulse: Pulse) {
    if let Some(inner) = heartbeat.upgrade() {
        inner.pulse.send_replace(pulse);
    }
}

/// Ends all connections that exist.
fn renew(heartbeat: &Weak<Inner>) {
    if let Some(inner) = heartbeat.upgrade() {
        tracing::warn!(
            "established connections to the database are silent while new ones work; all of them \
             are made anew"
        );
        std::mem::take(&mut *lock(&inner.generation)).cancel();
    }
}
