//! What tests are written with.

pub mod cluster;
pub mod program;
pub mod sse_client;
pub mod test_app;

use std::time::{Duration, Instant};

/// How long anything may take before a test fails.
pub const TIMEOUT: Duration = Duration::from_mins(1);

/// Polls a condition until it holds. For what no event announces.
#[track_caller]
pub fn until(mut condition: impl FnMut() -> bool) -> impl Future<Output = ()> {
    let caller = std::panic::Location::caller();
    let started = Instant::now();
    async move {
        while !condition() {
            assert!(started.elapsed() < TIMEOUT, "{caller}: the condition never held");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}
