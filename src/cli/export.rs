//! Exporting tasks as NDJSON: `task-history export`.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;

use anyhow::{Context, bail};

use super::ExportArgs;
use super::output::print;
use super::progress::TransferProgress;
use super::session::with_store;
use crate::domain::{AgentId, ExportedTask};

/// Exports the tasks of an organization, one line each.
pub(super) async fn run(args: ExportArgs) -> anyhow::Result<()> {
    let ExportArgs { organization, agent_id, file, database } = args;
    let agent = agent_id.map(AgentId::parse).transpose().context("--agent-id")?;
    with_store(database, 1, async |store| {
        let organizations = store.list_organizations().await?;
        let Some((id, _)) = organizations.into_iter().find(|(_, name)| *name == organization)
        else {
            bail!(
                "there is no organization `{organization}`; `task-history keys list` shows those \
                 with keys"
            );
        };
        let mut output = open_output(file.as_ref())?;
        let progress = TransferProgress::new(None);
        let (mut tasks, mut written) = (0, Ok(()));
        store
            .export_tasks(id, agent.as_ref(), |records| {
                tasks += records.len();
                written = records.iter().try_for_each(|record| write_line(&mut output, record));
                progress.advance(0, tasks);
                written.is_ok()
            })
            .await?;
        progress.finish();
        match written.and_then(|()| output.flush()) {
            // A closed pipe, after `head` for example, is not an error.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
            written => written.context("the tasks cannot be written")?,
        }
        if file.is_some() {
            print(&format!("{tasks} tasks exported."));
        }
        Ok(())
    })
    .await
}

fn open_output(file: Option<&PathBuf>) -> anyhow::Result<Box<dyn Write>> {
    Ok(match file {
        None => Box::new(BufWriter::new(std::io::stdout().lock())),
        Some(file) => {
            let created = File::create_new(file).with_context(|| {
                format!("cannot create {}; an existing file is not overwritten", file.display())
            })?;
            Box::new(BufWriter::new(created))
        }
    })
}

fn write_line(output: &mut dyn Write, record: &ExportedTask) -> std::io::Result<()> {
    serde_json::to_writer(&mut *output, record)?;
    output.write_all(b"\n")
}
