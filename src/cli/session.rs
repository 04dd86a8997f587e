//! The database for one command.

use crate::config::{DatabaseArgs, DatabaseConfig};
use crate::database::{Database, OpenMode};
use crate::domain::Limits;
use crate::store::Store;
use crate::telemetry;

/// Opens the database for a command and closes it afterwards.
///
/// It is the given one, or that of a service which runs on the data directory; otherwise the
/// private server is started for the command. The database is neither created nor migrated: `serve`
/// and `migrate` do that.
pub(super) async fn with_store<T>(
    args: DatabaseArgs,
    connections: usize,
    work: impl AsyncFnOnce(Store) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let (format, filter) = args.logging("warn,audit=info")?;
    let _flush = telemetry::init(format, &filter)?;
    let database = Database::open(&DatabaseConfig::new(args)?, OpenMode::Existing).await?;
    let store = Store::new(&database.url, connections, &Limits::default());
    let outcome = work(store.clone()).await;
    store.close();
    database.close().await?;
    outcome
}
