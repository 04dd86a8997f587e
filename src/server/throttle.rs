//! Log lines of events that an attacker can cause.

use std::time::{Duration, Instant};

/// How long events are only counted after a line about them.
const INTERVAL: Duration = Duration::from_secs(5);

/// Lets one line pass at a time, with the number of events since the one before.
#[derive(Debug, Default)]
pub(super) struct Throttle {
    last: Option<Instant>,
    count: u64,
}

impl Throttle {
    /// Counts an event. Returns the number of events that a line has to report now, if it is time.
    pub(super) fn record(&mut self) -> Option<u64> {
        self.count += 1;
        if self.last.is_some_and(|last| last.elapsed() < INTERVAL) {
            return None;
        }
        self.last = Some(Instant::now());
        Some(std::mem::take(&mut self.count))
    }
}
