//! The JSON of task lists.
//!
//! It is most of a list's cost in the service, so it is written directly from the tasks, without an
//! object for each. `schemas::TasksListItem` and `schemas::PaginatedTasks` describe it.

use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde_json::Number;

use super::execution::Timestamp;
use crate::domain::{AgentId, PageRequest, TaskId, TaskPage, TaskSummary, UserId, WireEnum};

/// The body of a list.
pub(crate) struct TaskListBody(Vec<u8>);

/// Bytes reserved for an item beside its title and its result. Most items need less.
const ITEM_BYTES: usize = 512;

impl TaskListBody {
    /// A page with its total and its numbers. `number` is the page's number as the client wrote it,
    /// which may exceed 64 bits.
    pub(crate) fn page(page: &TaskPage, request: &PageRequest, number: &Number) -> Self {
        let mut out = with_capacity_for(&page.items);
        out.extend_from_slice(br#"{"items":"#);
        push_items(&mut out, &page.items);
        let numbers = format!(
            r#","total":{},"page":{number},"per_page":{},"total_pages":{}}}"#,
            page.total,
            request.limit(),
            request.pages_for(page.total)
        );
        out.extend_from_slice(numbers.as_bytes());
        Self(out)
    }

    /// A page as a bare array, as the official SDK expects it.
    pub(crate) fn array(page: &TaskPage) -> Self {
        let mut out = with_capacity_for(&page.items);
        push_items(&mut out, &page.items);
        Self(out)
    }
}

impl IntoResponse for TaskListBody {
    fn into_response(self) -> Response {
        let content_type = HeaderValue::from_static("application/json");
        ([(header::CONTENT_TYPE, content_type)], self.0).into_response()
    }
}

fn with_capacity_for(tasks: &[TaskSummary]) -> Vec<u8> {
    let texts = |task: &TaskSummary| {
        task.title.as_ref().map_or(0, String::len) + task.result.as_ref().map_or(0, String::len)
    };
    Vec::with_capacity(
        tasks.iter().map(|task| texts(task) + ITEM_BYTES).sum::<usize>() + ITEM_BYTES,
    )
}

fn push_items(out: &mut Vec<u8>, tasks: &[TaskSummary]) {
    out.push(b'[');
    for (at, task) in tasks.iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        push_item(out, task);
    }
    out.push(b']');
}

/// Writes one task: every key, in the contract's order.
fn push_item(out: &mut Vec<u8>, task: &TaskSummary) {
    // No `..`: a new field of a task does not compile until it is written or left out here.
    let TaskSummary {
        organization_id,
        id,
        agent_id,
        user_id,
        parent_task_id,
        triggering_agent_id,
        status,
        internal_status: _,
        source,
        title,
        result,
        created_at,
        updated_at,
    } = task;
    out.extend_from_slice(br#"{"id":"#);
    push_text(out, id.as_str());
    out.extend_from_slice(br#","agent_id":"#);
    push_text(out, agent_id.as_str());
    out.extend_from_slice(br#","user_id":"#);
    push_optional(out, user_id.as_ref().map(UserId::as_str));
    out.extend_from_slice(br#","parent_task_id":"#);
    push_optional(out, parent_task_id.as_ref().map(TaskId::as_str));
    out.extend_from_slice(br#","triggering_agent_id":"#);
    push_optional(out, triggering_agent_id.as_ref().map(AgentId::as_str));
    out.extend_from_slice(br#","organization_id":"#);
    push_text(out, &organization_id.to_string());
    out.extend_from_slice(br#","status":"#);
    push_text(out, status.as_str());
    out.extend_from_slice(br#","created_at":"#);
    push_text(out, &Timestamp::from(*created_at).to_text());
    out.extend_from_slice(br#","updated_at":"#);
    push_text(out, &Timestamp::from(*updated_at).to_text());
    out.extend_from_slice(br#","source_node_type":"#);
    push_text(out, source.as_str());
    out.extend_from_slice(br#","result":"#);
    push_optional(out, result.as_deref());
    out.extend_from_slice(br#","title":"#);
    push_optional(out, title.as_deref());
    out.push(b'}');
}

fn push_optional(out: &mut Vec<u8>, text: Option<&str>) {
    match text {
        Some(text) => push_text(out, text),
        None => out.extend_from_slice(b"null"),
    }
}

/// Writes a JSON string as `serde_json` does. Bytes are tested in blocks, four times as fast as one
/// by one: long texts have few characters to escape.
fn push_text(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    let (blocks, rest) = text.as_bytes().as_chunks::<32>();
    for block in blocks {
        // A sum of numbers, not of booleans: only this form is vectorized.
        if block.iter().fold(0, |any, byte| any | u8::from(must_be_escaped(*byte))) > 0 {
            push_escaped(out, block);
        } else {
            out.extend_from_slice(block);
        }
    }
    push_escaped(out, rest);
    out.push(b'"');
}

fn must_be_escaped(byte: u8) -> bool {
    matches!(byte, 0..b' ' | b'"' | b'\\')
}

fn push_escaped(out: &mut Vec<u8>, bytes: &[u8]) {
    for byte in bytes.iter().copied() {
        if !must_be_escaped(byte) {
            out.push(byte);
            continue;
        }
        match byte {
            b'"' => out.extend_from_slice(br#"\""#),
            b'\\' => out.extend_from_slice(br"\\"),
            b'\n' => out.extend_from_slice(br"\n"),
            b'\r' => out.extend_from_slice(br"\r"),
            b'\t' => out.extend_from_slice(br"\t"),
            0x08 => out.extend_from_slice(br"\b"),
            0x0c => out.extend_from_slice(br"\f"),
            _ => out.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_escaped_as_serde_json_does() {
        let all: String =
            (0..0x80).map(|code| char::from_u32(code).expect("a character")).collect();
        let long = format!("語é🙂{}{all}", "plain ".repeat(20));
        // Each byte at each place of a block, at its edges, and in the rest after the last block.
        for start in 0..=64 {
            let text: String = std::iter::repeat_n('-', start).chain(long.chars()).collect();
            let mut out = Vec::new();
            push_text(&mut out, &text);
            assert_eq!(
                String::from_utf8(out).expect("UTF-8"),
                serde_json::to_string(&text).expect("JSON")
            );
        }
    }
}
