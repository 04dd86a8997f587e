//! Values and the rules between them: no I/O, no SQL text, no HTTP.

mod clock;
mod event;
mod filter;
mod ids;
mod page;
mod record;
mod task;
mod thread;
mod turn;
mod word;

pub use clock::Clock;
pub use event::{Event, EventKind, NewEvent};
pub use filter::TaskFilter;
pub use ids::{AgentId, Label, OrganizationId, TaskId, TextError, UserId};
pub use page::{Cursor, PageRequest, Position, TaskPage};
pub use record::{EventRecord, TaskRecord, TurnRecord};
pub use task::{Progress, Report, Status, Task, TaskSummary};
pub use thread::{Message, Role, Thread};
pub use turn::{Input, Invocation, OutputFormat, ReasoningEffort, Reported, Request, ThinkMode, Turn, User};
pub use word::Word;
