//! Reading requests: what knows no route.
//!
//! The readers collect every validation error of a request, in the contract's order, instead of
//! stopping at the first.

pub(crate) mod body;
pub(crate) mod body_memory;
pub(crate) mod body_reader;
pub(crate) mod idempotency;
pub(crate) mod invocation;
mod json_syntax;
mod json_value;
pub(crate) mod list_query;
pub(crate) mod path;
pub(crate) mod query_reader;
pub(crate) mod text_header;
