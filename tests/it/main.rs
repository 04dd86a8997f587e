//! The integration tests: the real service on a real PostgreSQL server, which all of them share.
//!
//! `support::cluster` starts the server and stops it again. Each test has a database of its own.
#![expect(unreachable_pub, reason = "nothing of a test binary can be reached from elsewhere")]

mod auth;
mod conversation;
mod document_walk;
mod errors;
mod events;
mod fastapi;
mod limits;
mod list;
mod migrations;
mod model;
mod openapi;
mod plans;
mod program;
mod sdk;
mod support;
mod tasks;
mod tidy;
mod writes;
