//! `COPY`, the fastest way into PostgreSQL, of the same records that are imported.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use sqlx::{Connection, PgConnection};

use crate::data::{Record, time};

const COPY_TASKS: &str = "COPY tasks (organization_id, id, agent_id, user_id, parent_task_id, triggering_agent_id, \
                          status, internal_status, source, title, result, turns, created_at, updated_at) FROM STDIN";

const COPY_TURNS: &str = "COPY task_turns (organization_id, task_id, turn, input, request, status, internal_status, \
                          result, is_manually_stopped, created_at, started_at, finished_at) FROM STDIN";

/// Bytes that are sent at once.
const CHUNK: usize = 1 << 20;

/// The rows of both tables in files.
pub(crate) struct Rows {
    tasks: PathBuf,
    turns: PathBuf,
}

impl Rows {
    /// Writes the files, for one organisation.
    pub(crate) fn write(
        directory: &Path,
        organization: &str,
        records: impl Iterator<Item = Record>,
    ) -> anyhow::Result<Self> {
        let path = |table: &str| directory.join(format!("{organization}-{table}.copy"));
        let rows = Self { tasks: path("tasks"), turns: path("task_turns") };
        let mut tasks = BufWriter::new(File::create(&rows.tasks)?);
        let mut turns = BufWriter::new(File::create(&rows.turns)?);
        for record in records {
            write_record(&mut tasks, &mut turns, organization, &record)?;
        }
        tasks.flush()?;
        turns.flush()?;
        Ok(rows)
    }

    /// Copies them in, in one transaction.
    pub(crate) async fn copy(&self, connection: &mut PgConnection) -> anyhow::Result<()> {
        let mut transaction = connection.begin().await?;
        for (statement, path) in [(COPY_TASKS, &self.tasks), (COPY_TURNS, &self.turns)] {
            let mut file = tokio::fs::File::open(path).await?;
            file.set_max_buf_size(CHUNK);
            let mut copy = transaction.copy_in_raw(statement).await?;
            copy.read_from(&mut file).await?;
            copy.finish().await?;
        }
        transaction.commit().await?;
        Ok(())
    }
}

/// The texts hold nothing that COPY would escape.
fn write_record(
    tasks: &mut impl Write,
    turns: &mut impl Write,
    organization: &str,
    record: &Record,
) -> std::io::Result<()> {
    let Record {
        id,
        agent,
        user,
        parent,
        triggering_agent,
        source,
        title,
        created_at,
        updated_at,
        turns: all,
    } = record;
    let Some(last) = all.last() else { return Ok(()) };
    writeln!(
        tasks,
        "{organization}\t{id}\t{agent}\t{}\t{}\t{}\t{}\t{}\t{source}\t{title}\t{}\t{}\t{}\t{}",
        or_null(user.as_deref()),
        or_null(parent.as_deref()),
        or_null(triggering_agent.as_deref()),
        last.status,
        or_null(last.internal_status),
        or_null(last.result.as_deref()),
        all.len(),
        time(*created_at),
        time(*updated_at),
    )?;
    for (at, turn) in all.iter().enumerate() {
        let input = turn.input(user.as_deref());
        writeln!(
            turns,
            "{organization}\t{id}\t{}\t{input}\t{{}}\t{}\t{}\t{}\t{}\t{}\t{}\t{}",
            at + 1,
            turn.status,
            or_null(turn.internal_status),
            or_null(turn.result.as_deref()),
            turn.status == "stopped",
            time(turn.created_at),
            or_null(turn.started_at.map(time).as_deref()),
            or_null(turn.finished_at.map(time).as_deref()),
        )?;
    }
    Ok(())
}

fn or_null(value: Option<&str>) -> &str {
    value.unwrap_or("\\N")
}
