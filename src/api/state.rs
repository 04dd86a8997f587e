//! What handlers work with.

use tokio_util::sync::CancellationToken;

use crate::domain::{Clock, Limits, NetworkOptions};
use crate::store::Store;

/// The state of the service, shared by all handlers. Cheap to clone.
#[derive(Clone)]
pub struct AppState {
    /// The task history.
    pub store: Store,
    /// The source of the current time.
    pub clock: Clock,
    /// The time limits of requests.
    pub limits: Limits,
    /// Which proxies are believed, and which sites may call the API.
    pub network: NetworkOptions,
    /// Canceled when the service stops. Waiting requests and streams then end.
    pub stopping: CancellationToken,
}
