//! A whole task with any number of sub-tasks.

use axum::body::Bytes;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use uuid::Uuid;

use super::execution::{AgentExecution, turn_header};
use super::json_stream::{HeldBytes, JsonParts, Part, push_json, respond};
use crate::api::error::ApiError;
use crate::api::state::AppState;
use crate::domain::{OrganizationId, Task, TaskId};
use crate::store::{MAX_SUB_TASKS, Reservation, SUB_TASK_PAGE, Store, StoreError, SubTask};

/// Answers up to this size reserve no memory.
const SMALL_BYTES: usize = 64 << 10;

/// The answer with a task. The ids of many sub-tasks are read while it is sent.
pub(crate) async fn task_response(state: &AppState, mut task: Task) -> Result<Response, ApiError> {
    if task.sub_executions.len() < MAX_SUB_TASKS {
        return small_response(state, task).await;
    }
    let turn = turn_header(task.turn.number);
    let (organization, id) = (task.summary.organization_id, task.summary.id.clone());
    // The places of the ids are marked with texts that nothing else in the task can have.
    let marks = [Uuid::new_v4().to_string(), Uuid::new_v4().to_string()];
    let mark = |mark: &str| vec![TaskId::parse(mark).expect("a UUID is an id")];
    task.sub_executions = mark(&marks[0]);
    task.finished_sub_executions = mark(&marks[1]);
    let mut text = Vec::new();
    push_json(&mut text, &AgentExecution::from(task));
    let reservation = state.store.reserve(organization, text.len()).await?;
    let text = String::from_utf8(text).expect("JSON is UTF-8");
    let split = |text: &str, mark: &str| {
        let (start, end) = text.split_once(&format!("\"{mark}\"")).expect("the mark is there");
        (start.to_owned(), end.to_owned())
    };
    let (start, rest) = split(&text, &marks[0]);
    let (between, end) = split(&rest, &marks[1]);
    let body = ExecutionBody {
        store: state.store.clone(),
        organization,
        id,
        texts: [start, between, end],
        at: 0,
        after: None,
        _reservation: reservation,
    };
    Ok((turn, respond(state, body).await?).into_response())
}

/// The answer with a task whose sub-tasks are all in memory. A large one reserves what it takes
/// until the connection has written it.
async fn small_response(state: &AppState, task: Task) -> Result<Response, ApiError> {
    let (turn, organization) = (turn_header(task.turn.number), task.summary.organization_id);
    let mut text = Vec::new();
    push_json(&mut text, &AgentExecution::from(task));
    let text = Bytes::from(text);
    let body = if text.len() > SMALL_BYTES {
        let reservation = state.store.reserve(organization, text.len()).await?;
        HeldBytes::hold(text, reservation)
    } else {
        text
    };
    let content_type = HeaderValue::from_static("application/json");
    Ok((turn, [(header::CONTENT_TYPE, content_type)], body).into_response())
}

struct ExecutionBody {
    store: Store,
    organization: OrganizationId,
    id: TaskId,
    /// What comes before, between and after the two arrays.
    texts: [String; 3],
    /// How many of `texts` are written.
    at: usize,
    /// The last sub-task that was written to the array in progress.
    after: Option<SubTask>,
    /// The memory of `texts`.
    _reservation: Reservation,
}

impl JsonParts for ExecutionBody {
    async fn write_part(&mut self, out: &mut Vec<u8>) -> Result<Part, StoreError> {
        if self.at > 0 {
            let only_finished = self.at == 2;
            let after = self.after.as_ref();
            let listed =
                self.store.list_sub_tasks(self.organization, &self.id, only_finished, after);
            let page = listed.await?;
            let is_last = i64::try_from(page.len()).is_ok_and(|read| read < SUB_TASK_PAGE);
            for task in page {
                if self.after.is_some() {
                    out.push(b',');
                }
                push_json(out, task.id.as_str());
                self.after = Some(task);
            }
            if !is_last {
                return Ok(Part { is_last: false, reservation: None });
            }
            self.after = None;
        }
        out.extend_from_slice(std::mem::take(&mut self.texts[self.at]).as_bytes());
        self.at += 1;
        Ok(Part { is_last: self.at == self.texts.len(), reservation: None })
    }
}
