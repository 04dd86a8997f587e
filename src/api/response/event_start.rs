//! Where a stream of events begins.

use chrono::{DateTime, Utc};

use super::execution::AgentExecution;
use crate::api::state::AppState;
use crate::domain::{EventKind, OrganizationId, Status, Task, TaskId};
use crate::store::{Reservation, StoreError};

/// Where a stream begins.
pub(crate) enum StreamStart {
    /// With the event after one, to follow a turn.
    After {
        /// The number of that event.
        event: i64,
        /// The turn.
        turn: i32,
    },
    /// With a state of the task.
    At(WrittenState),
}

impl StreamStart {
    /// The turn that the stream follows.
    pub(crate) fn turn(&self) -> i32 {
        match self {
            Self::After { turn, .. } | Self::At(WrittenState { turn, .. }) => *turn,
        }
    }
}

/// A state of a task, written as the data of an event.
pub(crate) struct WrittenState {
    pub(super) turn: i32,
    /// The number of the task's latest event.
    pub(super) event: i64,
    pub(super) kind: &'static str,
    pub(super) time: DateTime<Utc>,
    pub(super) json: String,
    pub(super) reservation: Reservation,
}

/// Reads the current state of a task, and writes it.
pub(crate) async fn read_state(
    state: &AppState,
    organization: OrganizationId,
    id: &TaskId,
) -> Result<WrittenState, StoreError> {
    let reservation = state.store.start_read(organization).await?;
    let task = state.store.get_task(organization, id).await?;
    let (turn, event, time) = (task.turn.number, task.events, task.summary.updated_at);
    let kind = match task.turn.state.status {
        Status::Pending => EventKind::CREATED,
        status if status.is_terminal() => EventKind::FINISHED,
        _ => EventKind::UPDATED,
    };
    let (json, reservation) = write_task(state, organization, task, reservation).await?;
    Ok(WrittenState { turn, event, kind, time, json, reservation })
}

/// A task as JSON, and the memory that it takes.
pub(super) async fn write_task(
    state: &AppState,
    organization: OrganizationId,
    task: Task,
    mut reservation: Reservation,
) -> Result<(String, Reservation), StoreError> {
    let json = serde_json::to_string(&AgentExecution::from(task)).expect("plain data");
    state.store.hold_read(organization, &mut reservation, json.len()).await?;
    reservation.end_read(json.len());
    Ok((json, reservation))
}
