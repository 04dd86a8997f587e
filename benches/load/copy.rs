//! `COPY`, the fastest way to load rows into PostgreSQL, as the baseline of imports.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use sqlx::{Connection, PgConnection};

use crate::data::{GeneratedTask, format_time};
use crate::database::TASK_COLUMNS;

const COPY_TURNS: &str = "COPY task_turns (organization_id, task_id, turn, input, request, \
                          status, internal_status, result, is_manually_stopped, created_at, \
                          started_at, finished_at) FROM STDIN";

/// Bytes of each message to the server.
const CHUNK: usize = 1 << 20;

/// Files with the rows of tasks and turns in the text format of `COPY`.
pub(crate) struct CopyFiles {
    tasks: PathBuf,
    turns: PathBuf,
}

impl CopyFiles {
    /// Writes the files for one organization.
    pub(crate) fn write(
        directory: &Path,
        organization: &str,
        all_tasks: impl Iterator<Item = GeneratedTask>,
    ) -> anyhow::Result<Self> {
        let path = |table: &str| directory.join(format!("{organization}-{table}.copy"));
        let files = Self { tasks: path("tasks"), turns: path("task_turns") };
        let mut tasks = BufWriter::new(File::create(&files.tasks)?);
        let mut turns = BufWriter::new(File::create(&files.turns)?);
        for task in all_tasks {
            write_task(&mut tasks, &mut turns, organization, &task)?;
        }
        tasks.flush()?;
        turns.flush()?;
        Ok(files)
    }

    /// Loads both files in one transaction.
    pub(crate) async fn load(&self, connection: &mut PgConnection) -> anyhow::Result<()> {
        let copy_tasks = format!("COPY tasks ({TASK_COLUMNS}) FROM STDIN");
        let mut transaction = connection.begin().await?;
        for (statement, path) in [(copy_tasks.as_str(), &self.tasks), (COPY_TURNS, &self.turns)] {
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

/// Writes the rows of a task. Its texts contain no character that `COPY` requires to be escaped.
fn write_task(
    tasks: &mut impl Write,
    turns: &mut impl Write,
    organization: &str,
    task: &GeneratedTask,
) -> std::io::Result<()> {
    let GeneratedTask {
        id,
        agent,
        user,
        parent,
        triggering_agent,
        source,
        title,
        created_at,
        updated_at,
        turns: all_turns,
    } = task;
    let Some(last) = all_turns.last() else { return Ok(()) };
    writeln!(
        tasks,
        "{organization}\t{id}\t{agent}\t{}\t{}\t{}\t{}\t{}\t{source}\t{title}\t{}\t{}\t{}\t{}",
        or_null(user.as_deref()),
        or_null(parent.as_deref()),
        or_null(triggering_agent.as_deref()),
        last.status,
        or_null(last.internal_status),
        or_null(last.result.as_deref()),
        all_turns.len(),
        format_time(*created_at),
        format_time(*updated_at),
    )?;
    for (index, turn) in all_turns.iter().enumerate() {
        let input = turn.input(user.as_deref());
        writeln!(
            turns,
            "{organization}\t{id}\t{}\t{input}\t{{}}\t{}\t{}\t{}\t{}\t{}\t{}\t{}",
            index + 1,
            turn.status,
            or_null(turn.internal_status),
            or_null(turn.result.as_deref()),
            turn.status == "stopped",
            format_time(turn.created_at),
            or_null(turn.started_at.map(format_time).as_deref()),
            or_null(turn.finished_at.map(format_time).as_deref()),
        )?;
    }
    Ok(())
}

fn or_null(value: Option<&str>) -> &str {
    value.unwrap_or("\\N")
}
