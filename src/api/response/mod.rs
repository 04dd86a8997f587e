//! Writing answers: what knows no route.

pub(crate) mod event_reader;
pub(crate) mod event_start;
pub(crate) mod event_stream;
pub(crate) mod execution;
pub(crate) mod json_stream;
pub(crate) mod large_execution;
pub(crate) mod link_header;
pub(crate) mod task_list_json;

/// The header that tells the number of the turn that an answer is about.
pub(crate) const TASK_TURN: &str = "x-task-turn";
