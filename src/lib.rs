//! task-history: a persistent history of what AI agents did, served over REST from PostgreSQL.
//!
//! The layers point one way, `domain` <- `store` <- `api`, and `app` connects them:
//!
//! - [`domain`]: values and rules. What a turn does to a task is decided here, without a database.
//! - [`store`]: the only place with SQL. Every statement names its organization first.
//! - [`api`]: HTTP in, HTTP out. Every route is in [`api::router`].
//! - [`embedded`]: a private PostgreSQL in the data directory, if no server is given.
//! - [`database`], [`server`], [`app`]: opening the database, serving HTTP, and both together.
//! - [`cli`], [`config`], [`telemetry`]: the command line, its settings, logs.
//!
//! `docs/ARCHITECTURE.md` is the map, `docs/decisions.md` has the reasons.

pub mod domain;

pub mod store;

pub mod api;

pub mod embedded;

pub mod config;

pub mod telemetry;

pub mod database;

pub mod server;

pub mod app;

pub mod cli;
