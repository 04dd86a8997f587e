//! The integration tests: the real service on a real PostgreSQL server, which all of them share.
//!
//! `support::cluster` starts the server and stops it again. Each test has a database of its own.
#![expect(unreachable_pub, reason = "nothing of a test binary can be reached from elsewhere")]

mod auth;
mod bodies;
mod browser;
mod connections;
mod database_faults;
mod document_walk;
mod errors;
mod events;
mod fastapi;
mod large_reads;
mod limits;
mod migrations;
mod openapi;
mod program;
mod sdk;
mod streams;
mod support;
mod tidy;
mod v1;
mod writes;
