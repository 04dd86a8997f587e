//! Writing answers: what knows no route.

pub(crate) mod event_stream;
pub(crate) mod execution;
pub(crate) mod link_header;
pub(crate) mod task_list_json;
