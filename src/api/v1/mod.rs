//! REST v1, the public contract's own routes.

pub(super) mod invocations;
pub(super) mod tasks;
pub(super) mod threads;
