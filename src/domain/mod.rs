//! Values and the rules between them: no I/O, no SQL text, no HTTP.

mod api_key;
mod clock;
mod event;
mod export;
mod filter;
mod ids;
mod invocation;
mod limits;
mod network;
mod page;
mod peer_address;
mod task;
mod thread;
mod turn;
mod wire_enum;

pub use api_key::{ApiKeySecret, Credential, KeyDigest, Principal};
pub use clock::Clock;
pub use event::{Event, EventKind, EventParseError, NewEvent};
pub use export::{
    CompleteTask, EXPORT_VERSION, ExportHeader, ExportLine, ExportedEvent, ExportedTask,
    ExportedTurn, ImportRecord, MAX_EVENT_NUMBER, RESERVED_NAMES, RecordError, WholeTask,
    first_name, raw_json,
};
pub use filter::TaskFilter;
pub use ids::{AgentId, OrganizationId, ShortText, TaskId, TextError, UserId};
pub(crate) use ids::{has_nul, uuid_v7};
pub use invocation::{
    Input, Invocation, InvocationOptions, OutputFormat, ReasoningEffort, ThinkMode, User,
};
pub use limits::Limits;
pub use network::{CorsOrigins, NetworkOptions, TrustedProxies};
pub use page::{Cursor, PageRequest, PageStart, TaskPage};
pub use peer_address::{PeerAddress, network_of};
pub use task::{Report, Task, TaskSummary};
pub use thread::{Message, Role, ThreadEntry};
pub use turn::{Status, Turn, TurnDetails, TurnOutcome, TurnState};
pub use wire_enum::WireEnum;
