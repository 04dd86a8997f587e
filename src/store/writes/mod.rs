//! Writing: invocations, and reports about their turns, each committed in groups.

mod group_commit;
mod idempotency;
mod invocations;
mod new_turn;
mod reports;
mod update;
mod upsert;
mod write_queue;

pub use idempotency::RecordedInvocation;
pub use new_turn::{Idempotency, NewInvocation};

pub(super) use group_commit::GroupCommit;
pub(super) use invocations::InvocationBatches;
pub(super) use reports::UpdateBatches;
pub(super) use update::lock_tasks;
pub(super) use write_queue::MAX_BATCHES;
