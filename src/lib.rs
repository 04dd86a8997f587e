//! task-history: a persistent history of what AI agents did, served over REST from PostgreSQL.
//!
//! The layers point one way, `domain` <- `store` <- `api`, and `app` wires them:
//!
//! - [`domain`]: values and rules. What a turn does to a task is decided here, without a database.
//! - [`store`]: the only place with SQL. Every statement names its organisation first.
//! - [`api`]: HTTP in, HTTP out. Every route is in [`api::router`].
//! - [`embedded`]: a private PostgreSQL in the data directory, for where no server is given.
//! - [`app`]: from a [`config::Config`] to a service that listens, and back down again.
//! - [`cli`], [`config`], [`telemetry`]: the command line, its settings, logs.
//!
//! `docs/ARCHITECTURE.md` is the map, `docs/decisions.md` says why.

pub mod domain;

pub mod store;

pub mod api;

pub mod embedded;

pub mod config;

pub mod telemetry;

pub mod app;

pub mod cli;
