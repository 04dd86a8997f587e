//! The routes of the official Python SDK. They translate its requests for the logic behind REST v1,
//! and accept its dialect. Each also exists with the organization before it.

pub(super) mod activity;
pub(super) mod events;
pub(super) mod executions;
pub(super) mod reports;

/// How tasks of these routes are invoked, unless their callers say otherwise.
const SOURCE: &str = "sdk";
