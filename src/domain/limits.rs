//! The time limits of the service.

use std::time::Duration;

/// Every time limit, in one place: nothing waits without one.
///
/// The defaults are what the service runs with. Tests pass shorter ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// How long a connection may be open without a complete request head, also between requests.
    pub header_timeout: Duration,
    /// How long a request body may take to arrive.
    pub body_timeout: Duration,
    /// How long a whole request may take. It covers the body and several statements. Synchronous
    /// invocations have `invoke_timeout` instead.
    pub request_timeout: Duration,
    /// How long a synchronous invocation waits for its result.
    pub invoke_timeout: Duration,
    /// How long a client may leave all queued events of a stream unread before it is disconnected.
    pub slow_reader_timeout: Duration,
    /// How often an idle stream sends a comment, so that proxies keep it open.
    pub keep_alive_interval: Duration,
    /// How often a stream or a waiting invocation reads its task without being notified, in case a
    /// notification was lost.
    pub recheck_interval: Duration,
    /// How long requests may take to finish after the stop signal.
    pub drain_timeout: Duration,
    /// How long a request waits for a free connection to PostgreSQL.
    pub pool_timeout: Duration,
    /// How long PostgreSQL may take to accept a new connection.
    pub connect_timeout: Duration,
    /// How long one statement may run before PostgreSQL cancels it.
    pub statement_timeout: Duration,
    /// How long a transaction may be idle before PostgreSQL ends its session.
    pub idle_in_transaction_timeout: Duration,
    /// How long a connection may be idle before it is pinged at its next use.
    pub ping_after_idle: Duration,
    /// How long a valid API key is cached. A revoked key may keep working for up to this long.
    pub key_cache_ttl: Duration,
    /// How long a write may wait for others to share its batch.
    pub max_batch_delay: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            header_timeout: Duration::from_mins(1),
            body_timeout: Duration::from_secs(30),
            request_timeout: Duration::from_mins(1),
            invoke_timeout: Duration::from_mins(5),
            slow_reader_timeout: Duration::from_secs(10),
            keep_alive_interval: Duration::from_secs(15),
            recheck_interval: Duration::from_secs(30),
            drain_timeout: Duration::from_secs(10),
            pool_timeout: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(5),
            statement_timeout: Duration::from_secs(15),
            idle_in_transaction_timeout: Duration::from_secs(30),
            ping_after_idle: Duration::from_secs(30),
            key_cache_ttl: Duration::from_secs(1),
            max_batch_delay: Duration::from_millis(50),
        }
    }
}
