//! Data directories with tasks in them, and the services on them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use sqlx::PgConnection;
use tempfile::TempDir;

use crate::Bench;
use crate::data::{BIG_AGENT, Generator, lines};
use crate::database;
use crate::service::{Service, open_to_all, wait_for_server_to_end};

/// How the names of organisations begin that hold what a run writes.
const WRITTEN: &str = "load-";

/// The organisation of what is written while no trigger fires.
pub(crate) const BARE: &str = "bare";

/// Where data directories are.
pub(crate) struct Home {
    path: PathBuf,
    /// The directory, where it is removed at the end.
    temporary: Option<TempDir>,
}

impl Home {
    pub(crate) fn open(path: Option<&Path>) -> anyhow::Result<Self> {
        let temporary = match path {
            Some(_) => None,
            None => Some(tempfile::Builder::new().prefix("th-load-").tempdir()?),
        };
        let path = path.or(temporary.as_ref().map(TempDir::path)).context("a directory")?;
        open_to_all(path)?;
        Ok(Self { path: fs::canonicalize(path)?, temporary })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the data stays for another run.
    pub(crate) fn is_kept(&self) -> bool {
        self.temporary.is_none()
    }

    /// Waits for servers whose services were killed, and removes the data unless it is kept.
    pub(crate) fn close(&mut self) {
        for entry in fs::read_dir(&self.path).into_iter().flatten().flatten() {
            wait_for_server_to_end(&entry.path());
        }
        self.temporary = None;
    }
}

/// A service on a data set.
pub(crate) struct Site {
    pub(crate) service: Service,
    /// Tasks of the agent that has a third of them.
    pub(crate) agent_tasks: i64,
}

impl Site {
    /// Starts a service on a data set, which is filled first unless an earlier run did.
    pub(crate) async fn open(bench: &Bench, name: &str, tasks: u64) -> anyhow::Result<Self> {
        let seed = bench.options.seed;
        let directory = bench.home.path().join(format!("{name}-{tasks}-{seed}"));
        let mark = directory.with_extension("filled");
        if !mark.exists() && directory.exists() {
            // A run that did not come to its end left it.
            fs::remove_dir_all(&directory)?;
        }
        if mark.exists() {
            bench.say(&format!("reading the {name} data set once"));
            read_once(&directory.join("data/base"))?;
        }
        let service = Service::start(&bench.programs, &directory).await?;
        if !mark.exists() {
            bench.say(&format!("filling the {name} data set: {tasks} tasks"));
            service.import(&bench.programs, "default", lines(Generator::new(tasks, seed))).await?;
            let mut connection = database::connect(&service).await?;
            database::settle(&mut connection).await?;
            fs::write(&mark, "")?;
        }
        let mut connection = database::connect(&service).await?;
        // A run that was interrupted may have left what it wrote.
        remove_written(&mut connection).await?;
        let statement = "SELECT count(*) FROM tasks JOIN organizations o ON o.id = organization_id \
                         WHERE o.name = 'default' AND agent_id = $1";
        let agent_tasks = database::number(&mut connection, statement, &[BIG_AGENT]).await?;
        Ok(Self { service, agent_tasks })
    }

    /// Makes an organisation to write into, and returns its id and a key.
    pub(crate) async fn organization(&self, bench: &Bench, name: &str) -> anyhow::Result<(String, String)> {
        let name = organization_name(name);
        let key = self.service.create_key(&bench.programs, &name).await?;
        let mut connection = database::connect(&self.service).await?;
        let statement = "SELECT id::text FROM organizations WHERE name = $1";
        let id = database::text(&mut connection, statement, &[&name]).await?;
        Ok((id.context("the organisation is not there")?, key))
    }

    /// Removes what was written while no trigger fired.
    pub(crate) async fn remove_bare(&self) -> anyhow::Result<()> {
        remove_bare(&mut database::connect(&self.service).await?).await.map(|_| ())
    }

    /// Leaves the data as it was before anything was measured.
    pub(crate) async fn remove_written(&self) -> anyhow::Result<()> {
        remove_written(&mut database::connect(&self.service).await?).await
    }
}

/// Reads all files below a directory, so that the system has them in memory as far as it has room for them: as on a server
/// that has been up for a while, and as after filling.
fn read_once(directory: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(directory).with_context(|| directory.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            read_once(&path)?;
        } else {
            std::io::copy(&mut fs::File::open(&path)?, &mut std::io::sink())?;
        }
    }
    Ok(())
}

/// Removes rows that no trigger has seen, unseen; returns how many there were. Foreign keys rest meanwhile too.
async fn remove_bare(connection: &mut PgConnection) -> anyhow::Result<u64> {
    database::execute(connection, "SET session_replication_role = replica").await?;
    let mut removed = 0;
    for statement in [
        "DELETE FROM task_turns USING organizations o WHERE o.id = organization_id AND o.name = $1",
        "DELETE FROM tasks USING organizations o WHERE o.id = organization_id AND o.name = $1",
    ] {
        let query = sqlx::query(statement).bind(organization_name(BARE));
        removed += query.execute(&mut *connection).await?.rows_affected();
    }
    database::execute(connection, "RESET session_replication_role").await?;
    Ok(removed)
}

async fn remove_written(connection: &mut PgConnection) -> anyhow::Result<()> {
    let bare = remove_bare(connection).await?;
    let statement = "DELETE FROM tasks USING organizations o WHERE o.id = organization_id AND o.name LIKE $1";
    let done = sqlx::query(statement).bind(format!("{WRITTEN}%")).execute(&mut *connection).await?;
    if done.rows_affected() + bare > 0 {
        database::settle(connection).await?;
    }
    Ok(())
}

/// The name of an organisation that holds what a run writes.
pub(crate) fn organization_name(name: &str) -> String {
    format!("{WRITTEN}{name}")
}
