//! Restarts in place: a server that ends by itself is started again.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::Embedded;
use super::error::EmbeddedError;

/// Maximum number of restarts within [`WINDOW`]. A server that ends more often has a lasting
/// reason.
const MAX_RESTARTS: usize = 5;

/// The time in which restarts are counted.
const WINDOW: Duration = Duration::from_mins(5);

/// How long to wait after a start that failed. Each further failure doubles it.
const RETRY_DELAY: Duration = Duration::from_millis(500);

/// The times of the restarts within the window.
#[derive(Default)]
struct Restarts(VecDeque<Instant>);

impl Restarts {
    /// Counts a restart. `false` if there were too many.
    fn allow(&mut self, now: Instant) -> bool {
        self.0.retain(|restart| now.duration_since(*restart) < WINDOW);
        let allowed = self.0.len() < MAX_RESTARTS;
        if allowed {
            self.0.push_back(now);
        }
        allowed
    }
}

impl Embedded {
    /// Starts the server again whenever it ends by itself, and then calls `restarted`. Returns when
    /// it has ended too often. Dropping the future is allowed at any time.
    pub async fn keep_running(&mut self, restarted: impl AsyncFn()) -> EmbeddedError {
        let mut restarts = Restarts::default();
        loop {
            let mut last = self.exited().await;
            let mut delay = RETRY_DELAY;
            loop {
                if !restarts.allow(Instant::now()) {
                    return EmbeddedError::KeepsEnding {
                        limit: MAX_RESTARTS,
                        window: WINDOW,
                        last,
                    };
                }
                tracing::error!(reason = last, "PostgreSQL ended by itself, starting it again");
                match self.restart().await {
                    Ok(()) => break,
                    Err(error) => last = error.to_string(),
                }
                tokio::time::sleep(delay).await;
                delay *= 2;
            }
            restarted().await;
            tracing::warn!("PostgreSQL runs again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restarts_are_counted_within_the_window() {
        let start = Instant::now();
        let mut restarts = Restarts::default();
        for second in 0..MAX_RESTARTS as u64 {
            assert!(restarts.allow(start + Duration::from_secs(second)));
        }
        assert!(!restarts.allow(start + WINDOW / 2));
        assert!(restarts.allow(start + WINDOW), "the first is forgotten");
        assert!(!restarts.allow(start + WINDOW), "the others are not");
    }
}
