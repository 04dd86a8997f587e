//! The brake on guessed keys: an address that tries too many is refused for a while.

use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use quick_cache::unsync::Cache;

use crate::domain::network_of;

/// How many wrong keys an address may try at once.
const MAX_GUESSES: u32 = 20;

/// How many log lines an address may cause at once with missing and wrong keys.
const MAX_LINES: u32 = 1000;

/// How long it takes until an address may cause another line.
const LINE_INTERVAL: Duration = Duration::from_millis(100);

/// How often the log says how many requests had no line.
const SUMMARY_INTERVAL: Duration = Duration::from_secs(10);

/// Most addresses that are remembered. Others are forgotten, those first that were seen once.
const MAX_ADDRESSES: usize = 10_000;

/// The addresses that sent missing and wrong keys.
pub(super) struct FailedKeys(Mutex<State>);

struct State {
    guesses: TokenBuckets,
    lines: TokenBuckets,
    /// Requests without a line since the last summary.
    unlogged: u64,
    summary_at: Option<Instant>,
}

impl FailedKeys {
    /// `guess_interval` is how long it takes until an address may try another key.
    pub(super) fn new(guess_interval: Duration) -> Self {
        Self(Mutex::new(State {
            guesses: TokenBuckets::new(MAX_GUESSES, guess_interval),
            lines: TokenBuckets::new(MAX_LINES, LINE_INTERVAL),
            unlogged: 0,
            summary_at: None,
        }))
    }

    /// Whether an address may try a key that is not known. If not, the seconds until it may.
    pub(super) fn check_guess(&self, address: IpAddr) -> Result<(), u64> {
        let wait = self.lock().guesses.wait(network_of(address), Instant::now());
        if wait.is_zero() { Ok(()) } else { Err(wait.as_secs() + 1) }
    }

    /// Counts a key that was looked up and is wrong.
    pub(super) fn record_guess(&self, address: IpAddr) {
        self.lock().guesses.take(network_of(address), Instant::now());
    }

    /// Whether the request log has a line for a refused request. If not, a summary counts it:
    /// whoever guesses must not fill the log.
    pub(super) fn take_line(&self, address: IpAddr, is_guess: bool) -> bool {
        let network = network_of(address);
        let now = Instant::now();
        let mut state = self.lock();
        if !is_guess && state.lines.wait(network, now).is_zero() {
            state.lines.take(network, now);
            return true;
        }
        state.unlogged += 1;
        if state.summary_at.is_none_or(|at| now.duration_since(at) >= SUMMARY_INTERVAL) {
            state.summary_at = Some(now);
            let requests = std::mem::take(&mut state.unlogged);
            drop(state);
            tracing::warn!(
                client_address = %address,
                requests,
                "too many missing and wrong API keys; further ones of an address have no line \
                 here, and keys that are not known are refused for a while. If this is the \
                 address of your proxy, name it with --trusted-proxies"
            );
        }
        false
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A token bucket for each address.
struct TokenBuckets {
    capacity: u32,
    /// How long a new token takes.
    interval: Duration,
    /// When a bucket is full again.
    full_at: Cache<IpAddr, Instant>,
}

impl TokenBuckets {
    fn new(capacity: u32, interval: Duration) -> Self {
        Self { capacity, interval, full_at: Cache::new(MAX_ADDRESSES) }
    }

    /// How long it takes until there is a token.
    fn wait(&self, network: IpAddr, now: Instant) -> Duration {
        let until_full =
            self.full_at.get(&network).map_or(Duration::ZERO, |at| at.duration_since(now));
        until_full.saturating_sub(self.interval * (self.capacity - 1))
    }

    /// Takes a token. A bucket is never emptier than empty: requests that found the last token
    /// together do not wait for each other.
    fn take(&mut self, network: IpAddr, now: Instant) {
        let full_at = self.full_at.get(&network).map_or(now, |at| now.max(*at));
        let full_at = (full_at + self.interval).min(now + self.interval * self.capacity);
        self.full_at.insert(network, full_at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_bounded_number_of_lines() {
        let keys = FailedKeys::new(Duration::from_hours(1));
        let [noisy, quiet] = [1, 2].map(|last| IpAddr::from([192, 0, 2, last]));
        let lines = (0..2 * MAX_LINES).filter(|_| keys.take_line(noisy, false)).count();
        assert!((1000..2000).contains(&lines), "{lines}");
        assert!(keys.take_line(quiet, false));
        assert!(!keys.take_line(quiet, true), "a refused guess has no line");
    }

    #[test]
    fn the_table_of_addresses_is_bounded() {
        let mut buckets = TokenBuckets::new(2, Duration::from_hours(1));
        let now = Instant::now();
        for number in 0..20_000_u32 {
            buckets.take(IpAddr::from(number.to_be_bytes()), now);
        }
        assert!(buckets.full_at.len() <= MAX_ADDRESSES);
        let last = IpAddr::from(19_999_u32.to_be_bytes());
        assert!(buckets.wait(last, now).is_zero());
        buckets.take(last, now);
        assert!(!buckets.wait(last, now).is_zero());
        assert!(buckets.wait(last, now + Duration::from_hours(1)).is_zero());
    }
}
