//! What tests are written with.

pub mod cluster;
pub mod files;
pub mod program;
pub mod proxy;
pub mod sse_client;
pub mod tcp_server;
pub mod test_app;

use std::time::Duration;

/// How long anything may take before a test fails.
pub const TIMEOUT: Duration = Duration::from_mins(1);
