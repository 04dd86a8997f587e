//! Data sets, the services that run on them, and the directory that holds them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use sqlx::PgConnection;
use tempfile::TempDir;

use crate::Bench;
use crate::data::{BIG_AGENT, Generator, ndjson_chunks};
use crate::database;
use crate::service::{RunningService, create_world_readable, wait_until_server_stops};

/// The prefix of the names of organizations that hold what a run writes.
const ORGANIZATION_PREFIX: &str = "load-";

/// The organization of rows that are written while triggers are disabled.
pub(crate) const BARE: &str = "bare";

/// The directory that holds the data sets and the harness's scratch files.
pub(crate) struct WorkDirectory {
    path: PathBuf,
    /// The directory if it is temporary, that is if it is removed at the end.
    temporary: Option<TempDir>,
}

impl WorkDirectory {
    pub(crate) fn open(path: Option<&Path>) -> anyhow::Result<Self> {
        let temporary = match path {
            Some(_) => None,
            None => Some(tempfile::Builder::new().prefix("th-load-").tempdir()?),
        };
        let path = path.or(temporary.as_ref().map(TempDir::path)).context("no directory")?;
        create_world_readable(path)?;
        Ok(Self { path: fs::canonicalize(path)?, temporary })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the data sets stay for another run.
    pub(crate) fn is_kept(&self) -> bool {
        self.temporary.is_none()
    }

    /// Waits for servers whose services were killed, and removes the directory if it is temporary.
    pub(crate) fn close(&mut self) {
        for entry in fs::read_dir(&self.path).into_iter().flatten().flatten() {
            wait_until_server_stops(&entry.path());
        }
        self.temporary = None;
    }
}

/// A data set, and the service that runs on it.
pub(crate) struct DataSet {
    pub(crate) service: RunningService,
    /// Tasks of `BIG_AGENT`.
    pub(crate) agent_tasks: i64,
}

impl DataSet {
    /// Starts a service on a data set, and fills the data set unless an earlier run did.
    pub(crate) async fn open(bench: &Bench, name: &str, tasks: u64) -> anyhow::Result<Self> {
        let seed = bench.options.seed;
        let directory = bench.work_directory.path().join(format!("{name}-{tasks}-{seed}"));
        let filled_marker = directory.with_extension("filled");
        if !filled_marker.exists() && directory.exists() {
            // The run that created it was interrupted before the data set was complete.
            fs::remove_dir_all(&directory)?;
        }
        if filled_marker.exists() {
            bench.log(&format!("reading the {name} data set into memory"));
            warm_page_cache(&directory.join("data/base"))?;
        }
        let service = RunningService::start(&bench.programs, &directory).await?;
        if !filled_marker.exists() {
            bench.log(&format!("filling the {name} data set: {tasks} tasks"));
            let chunks = ndjson_chunks(Generator::new(tasks, seed));
            service.import(&bench.programs, "default", chunks).await?;
            let mut connection = database::connect(&service).await?;
            database::vacuum_and_checkpoint(&mut connection).await?;
            fs::write(&filled_marker, "")?;
        }
        let mut connection = database::connect(&service).await?;
        // An interrupted run may have left its tasks.
        remove_written_tasks(&mut connection).await?;
        let statement = "SELECT count(*) FROM tasks JOIN organizations \
                         ON organizations.id = organization_id \
                         WHERE organizations.name = 'default' AND agent_id = $1";
        let agent_tasks = database::integer(&mut connection, statement, &[BIG_AGENT]).await?;
        Ok(Self { service, agent_tasks })
    }

    /// Creates an organization to write into, and returns its id and an API key.
    pub(crate) async fn create_organization(
        &self,
        bench: &Bench,
        name: &str,
    ) -> anyhow::Result<(String, String)> {
        let name = organization_name(name);
        let key = self.service.create_key(&bench.programs, &name).await?;
        let mut connection = database::connect(&self.service).await?;
        let statement = "SELECT id::text FROM organizations WHERE name = $1";
        let id = database::text(&mut connection, statement, &[&name]).await?;
        Ok((id.context("the organization was not created")?, key))
    }

    /// Removes the rows that were written while triggers were disabled.
    pub(crate) async fn remove_bare_rows(&self) -> anyhow::Result<()> {
        remove_bare_rows(&mut database::connect(&self.service).await?).await.map(|_| ())
    }

    /// Restores the data as it was before the measurements.
    pub(crate) async fn remove_written_tasks(&self) -> anyhow::Result<()> {
        remove_written_tasks(&mut database::connect(&self.service).await?).await
    }
}

/// Reads all files below a directory, so that the page cache has them as far as memory allows.
///
/// The cache is then as on a server that has been up for a while, and as after filling.
fn warm_page_cache(directory: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(directory).with_context(|| directory.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            warm_page_cache(&path)?;
        } else {
            std::io::copy(&mut fs::File::open(&path)?, &mut std::io::sink())?;
        }
    }
    Ok(())
}

/// Removes the rows that were written while triggers were disabled, and returns their number.
///
/// `task_counts` does not count these rows, so they are also removed while triggers are disabled.
/// This disables foreign keys too.
async fn remove_bare_rows(connection: &mut PgConnection) -> anyhow::Result<u64> {
    database::execute(connection, "SET session_replication_role = replica").await?;
    let mut removed = 0;
    for statement in [
        "DELETE FROM task_turns USING organizations \
         WHERE organizations.id = organization_id AND organizations.name = $1",
        "DELETE FROM tasks USING organizations \
         WHERE organizations.id = organization_id AND organizations.name = $1",
    ] {
        let query = sqlx::query(statement).bind(organization_name(BARE));
        removed += query.execute(&mut *connection).await?.rows_affected();
    }
    database::execute(connection, "RESET session_replication_role").await?;
    Ok(removed)
}

async fn remove_written_tasks(connection: &mut PgConnection) -> anyhow::Result<()> {
    let bare = remove_bare_rows(connection).await?;
    let statement = "DELETE FROM tasks USING organizations \
                     WHERE organizations.id = organization_id AND organizations.name LIKE $1";
    let query = sqlx::query(statement).bind(format!("{ORGANIZATION_PREFIX}%"));
    let deleted = query.execute(&mut *connection).await?;
    if deleted.rows_affected() + bare > 0 {
        database::vacuum_and_checkpoint(connection).await?;
    }
    Ok(())
}

/// The name of an organization that holds what a run writes.
pub(crate) fn organization_name(name: &str) -> String {
    format!("{ORGANIZATION_PREFIX}{name}")
}
