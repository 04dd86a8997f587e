//! The time limits of the service, and how many may wait at once.

use std::time::Duration;

/// Every limit of what waits, in one place: nothing waits without one.
///
/// The defaults are what the service runs with. Tests pass shorter ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// How long a request head may take to arrive, from its first byte.
    pub header_timeout: Duration,
    /// How long a connection may be open without a request. Load balancers keep idle connections
    /// for 60 seconds, and the one that closes first must be the balancer: otherwise its next
    /// request meets the closing.
    pub idle_timeout: Duration,
    /// How long a request body may take to arrive.
    pub body_timeout: Duration,
    /// How long a request body waits until other bodies leave it memory.
    pub body_memory_timeout: Duration,
    /// How long a whole request may take. It covers the body and several statements. Synchronous
    /// invocations have `invoke_timeout` instead.
    pub request_timeout: Duration,
    /// How long a synchronous invocation waits for its result.
    pub invoke_timeout: Duration,
    /// How long a client may take nothing of an answer that is ready before its connection is cut
    /// off. Of a large answer, it must take a mebibyte in this time.
    pub slow_reader_timeout: Duration,
    /// How long a client may take to read one event of a stream before it is disconnected.
    pub event_timeout: Duration,
    /// How long a client may acknowledge nothing of what the kernel has to send. The kernel then
    /// ends the connection. It holds for the ends of answers and for streams that seldom have an
    /// event, whose clients can vanish without a word.
    pub acknowledge_timeout: Duration,
    /// How often an idle stream sends a comment, so that proxies keep it open.
    pub keep_alive_interval: Duration,
    /// How often a stream or a waiting invocation reads its task without being notified, in case a
    /// notification was lost.
    pub recheck_interval: Duration,
    /// How long opening a stream or a waiting invocation waits for earlier writes of its task.
    pub watch_timeout: Duration,
    /// Most streams and waiting invocations of one organization in one process.
    pub max_watches_per_organization: usize,
    /// How often the idle connection that listens for changes is pinged.
    pub listener_ping_interval: Duration,
    /// How long a ping or a statement of that connection may take before it is made anew.
    pub listener_timeout: Duration,
    /// How long a stream tries to read from a database that is unavailable.
    pub stream_retry_timeout: Duration,
    /// How often a stream or a waiting invocation checks that its key is still valid. With
    /// `key_cache_ttl` it bounds how long they outlive the key.
    pub key_check_interval: Duration,
    /// How long requests may take to finish after the stop signal.
    pub drain_timeout: Duration,
    /// How long a request waits for a free connection to PostgreSQL.
    pub pool_timeout: Duration,
    /// How long PostgreSQL may take to accept a new connection.
    pub connect_timeout: Duration,
    /// How long one statement may run before PostgreSQL cancels it.
    pub statement_timeout: Duration,
    /// How long PostgreSQL may take to respond to a statement before its connection is given up.
    /// Longer than `statement_timeout`: a server that is there has canceled the statement by then.
    pub response_timeout: Duration,
    /// How long a statement waits for a lock.
    pub lock_timeout: Duration,
    /// How long a batch of writes waits for a lock before it goes on without the locked tasks.
    pub batch_lock_timeout: Duration,
    /// How long a write may wait, in its queue and for locks, before it is refused.
    pub write_timeout: Duration,
    /// How long a transaction may be idle before PostgreSQL ends its session. Locks of a lost
    /// connection are held for as long.
    pub idle_in_transaction_timeout: Duration,
    /// How long a connection may be idle before it is pinged at its next use.
    pub ping_after_idle: Duration,
    /// How long PostgreSQL may take to respond to a ping.
    pub ping_timeout: Duration,
    /// How often the service asks PostgreSQL for a sign of life.
    pub heartbeat_interval: Duration,
    /// How long the owner of an API key is cached, or that it has none. A revoked key may keep
    /// working for up to this long, and a new one may be refused.
    pub key_cache_ttl: Duration,
    /// How long it takes until an address that tried too many wrong API keys may try another. Less
    /// than `key_cache_ttl`: a client with one wrong key is never refused for that.
    pub failed_key_interval: Duration,
    /// How long a write may wait for others to share its batch.
    pub max_batch_delay: Duration,
    /// How long an `Idempotency-Key` is remembered. A client that retries does so within hours.
    pub idempotency_ttl: Duration,
    /// How long a statement of an export may run. Each reads one page.
    pub export_page_timeout: Duration,
    /// How long each statement of the import of a large task may run, and how long its file may be
    /// silent. The last statement writes the whole task.
    pub import_task_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            body_timeout: Duration::from_secs(30),
            body_memory_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_mins(1),
            invoke_timeout: Duration::from_mins(5),
            slow_reader_timeout: Duration::from_secs(10),
            // Four megabytes at half a megabit per second.
            event_timeout: Duration::from_mins(1),
            acknowledge_timeout: Duration::from_secs(30),
            keep_alive_interval: Duration::from_secs(15),
            recheck_interval: Duration::from_secs(30),
            watch_timeout: Duration::from_secs(5),
            max_watches_per_organization: 1000,
            // Together with a new connection: within fifteen seconds of a silent failover.
            listener_ping_interval: Duration::from_secs(5),
            listener_timeout: Duration::from_secs(4),
            stream_retry_timeout: Duration::from_secs(30),
            key_check_interval: Duration::from_millis(500),
            drain_timeout: Duration::from_secs(10),
            pool_timeout: Duration::from_secs(5),
            connect_timeout: Duration::from_secs(5),
            statement_timeout: Duration::from_secs(10),
            response_timeout: Duration::from_secs(12),
            lock_timeout: Duration::from_secs(5),
            batch_lock_timeout: Duration::from_millis(100),
            write_timeout: Duration::from_secs(10),
            idle_in_transaction_timeout: Duration::from_secs(5),
            ping_after_idle: Duration::from_secs(5),
            ping_timeout: Duration::from_secs(1),
            heartbeat_interval: Duration::from_secs(1),
            key_cache_ttl: Duration::from_secs(1),
            failed_key_interval: Duration::from_millis(500),
            max_batch_delay: Duration::from_millis(50),
            idempotency_ttl: Duration::from_hours(24),
            export_page_timeout: Duration::from_mins(1),
            import_task_timeout: Duration::from_mins(10),
        }
    }
}
