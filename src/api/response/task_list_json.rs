//! The JSON of task lists.
//!
//! It is most of a list's cost in the service, so it is written directly from the tasks, without an
//! object for each. `schemas::TasksListItem` and `schemas::PaginatedTasks` describe it.

use std::collections::{HashMap, VecDeque};

use serde_json::Number;

use super::execution::Timestamp;
use super::json_stream::{JsonParts, Part};
use crate::domain::{
    AgentId, OrganizationId, PageRequest, TaskId, TaskPage, TaskSummary, UserId, WireEnum,
};
use crate::store::{STEP_BYTES, Store, StoreError};

/// The body of a list.
pub(crate) struct TaskListBody {
    store: Store,
    organization: OrganizationId,
    tasks: VecDeque<TaskSummary>,
    /// Those of `tasks` whose texts are read while the body is sent.
    unread: HashMap<TaskId, usize>,
    /// What comes before the first item, until it is written.
    start: Option<&'static [u8]>,
    end: String,
    has_items: bool,
}

/// Bytes reserved for an item beside its title and its result. Most items need less.
const ITEM_BYTES: usize = 512;

impl TaskListBody {
    /// A page with its total and its numbers. `number` is the page's number as the client wrote it,
    /// which may exceed 64 bits.
    pub(crate) fn page(
        store: Store,
        organization: OrganizationId,
        page: TaskPage,
        request: &PageRequest,
        number: &Number,
    ) -> Self {
        let end = format!(
            r#"],"total":{},"page":{number},"per_page":{},"total_pages":{}}}"#,
            page.total,
            request.limit(),
            request.pages_for(page.total)
        );
        let start: &[u8] = br#"{"items":["#;
        Self { start: Some(start), end, ..Self::array(store, organization, page) }
    }

    /// A page as a bare array, as the official SDK expects it.
    pub(crate) fn array(store: Store, organization: OrganizationId, page: TaskPage) -> Self {
        Self {
            store,
            organization,
            tasks: page.items.into(),
            unread: page.unread,
            start: Some(b"["),
            end: "]".to_owned(),
            has_items: false,
        }
    }

    /// The next tasks with long texts, as many as a step reads, and the bytes of these texts.
    fn next_unread(&self) -> (Vec<TaskId>, usize) {
        let mut bytes = 0;
        let mut ids = Vec::new();
        for task in &self.tasks {
            let Some(size) = self.unread.get(&task.id) else { continue };
            if !ids.is_empty() && bytes + size > STEP_BYTES {
                break;
            }
            bytes += size;
            ids.push(task.id.clone());
        }
        (ids, bytes)
    }

    /// Writes the next tasks, up to the first whose texts are still unread. `read` has those that
    /// were read for this part, and `None` for one that was deleted meanwhile.
    fn push_items(&mut self, out: &mut Vec<u8>, mut read: HashMap<TaskId, Option<TaskSummary>>) {
        while let Some(task) = self.tasks.pop_front_if(|task| !self.unread.contains_key(&task.id)) {
            let Some(task) = read.remove(&task.id).unwrap_or(Some(task)) else { continue };
            if std::mem::replace(&mut self.has_items, true) {
                out.push(b',');
            }
            push_item(out, &task);
        }
    }
}

impl JsonParts for TaskListBody {
    async fn write_part(&mut self, out: &mut Vec<u8>) -> Result<Part, StoreError> {
        let mut reservation = None;
        if let Some(start) = self.start.take() {
            // The first part is what has been read already, so it waits for no memory.
            out.reserve(self.tasks.iter().map(item_bytes).sum::<usize>() + ITEM_BYTES);
            out.extend_from_slice(start);
            self.push_items(out, HashMap::new());
        } else {
            let (ids, bytes) = self.next_unread();
            let mut step = self.store.read_summaries(self.organization, &ids, bytes).await?;
            out.reserve(bytes + ids.len() * ITEM_BYTES);
            for id in &ids {
                self.unread.remove(id);
            }
            let read = ids.into_iter().filter(|id| !step.unread.contains_key(id));
            let read = read.map(|id| (id.clone(), step.tasks.remove(&id))).collect();
            self.unread.extend(step.unread);
            self.push_items(out, read);
            reservation = Some(step.reservation);
        }
        let is_last = self.tasks.is_empty();
        if is_last {
            out.extend_from_slice(self.end.as_bytes());
        }
        Ok(Part { is_last, reservation })
    }
}

/// The bytes of an item in JSON, more or less.
fn item_bytes(task: &TaskSummary) -> usize {
    let text = |text: Option<&String>| text.map_or(0, String::len);
    text(task.title.as_ref()) + text(task.result.as_ref()) + ITEM_BYTES
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
