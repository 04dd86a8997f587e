//! Writing: invocations, and reports about their turns, each committed in groups.

mod group_commit;
mod invocations;
mod reports;
mod statements;

pub use invocations::{Idempotency, RecordedInvocation};

pub(super) use group_commit::GroupCommit;
pub(super) use invocations::InvocationBatches;
pub(super) use reports::UpdateBatches;
