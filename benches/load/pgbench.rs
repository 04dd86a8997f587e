//! The floor: what PostgreSQL itself does with a statement, driven by its own `pgbench`.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::process::Command;

use crate::numbers::percentile;
use crate::service::{Programs, Service};

/// Statements, and the variables in them. With variables they are planned once for all values.
#[derive(Debug, Clone, Default)]
pub(crate) struct Script {
    pub(crate) text: String,
    pub(crate) variables: Vec<(String, String)>,
    /// Whether no trigger fires, those behind foreign keys included.
    pub(crate) is_bare: bool,
}

/// Runs scripts against one server.
pub(crate) struct Pgbench {
    program: PathBuf,
    socket: PathBuf,
    scratch: PathBuf,
}

/// What a script did.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Floor {
    /// Transactions a second, connecting aside.
    pub(crate) rate: f64,
    /// The median of how long each took, in milliseconds; of several clients the mean.
    pub(crate) latency: f64,
    pub(crate) transactions: f64,
}

impl Pgbench {
    pub(crate) fn new(programs: &Programs, service: &Service, scratch: &Path) -> Self {
        Self {
            program: programs.directory.join("pgbench"),
            socket: service.socket.clone(),
            scratch: scratch.to_owned(),
        }
    }

    /// Runs a script in prepared statements.
    pub(crate) async fn run(
        &self,
        script: &Script,
        clients: usize,
        duration: Duration,
    ) -> anyhow::Result<Floor> {
        let directory = tempfile::Builder::new().prefix("pgbench-").tempdir_in(&self.scratch)?;
        let file = directory.path().join("script.sql");
        std::fs::write(&file, &script.text)?;
        let mut command = Command::new(&self.program);
        command.args(["-n", "-M", "prepared", "-U", "postgres", "-h"]).arg(&self.socket);
        command.args(["-c", &clients.to_string(), "-j", &clients.min(2).to_string()]);
        command.args(["-T", &duration.as_secs().max(1).to_string()]).arg("-f").arg(&file);
        for (name, value) in &script.variables {
            command.arg("-D").arg(format!("{name}={value}"));
        }
        if clients == 1 {
            // Every transaction in a line: what a mean says of a few hundred commits, the slowest of them decides.
            command.args(["-l", "--log-prefix"]).arg(directory.path().join("log"));
        }
        command
            .arg("task_history")
            .env_clear()
            .env("PGOPTIONS", script.options())
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let output = command.output().await.context("pgbench")?;
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "pgbench: {said}{}", String::from_utf8_lossy(&output.stderr));
        let number = |start: &str| {
            let rest = said.lines().find_map(|line| line.strip_prefix(start))?;
            rest.split(['/', ' ']).find_map(|word| word.parse::<f64>().ok())
        };
        let rate = number("tps = ").context("pgbench says no rate")?;
        let mean = number("latency average = ").context("pgbench says no latency")?;
        let transactions =
            number("number of transactions actually processed: ").context("pgbench says no count")?;
        let latency = match clients {
            1 => median_of_logs(directory.path())?,
            _ => mean,
        };
        Ok(Floor { rate, latency, transactions })
    }
}

impl Script {
    /// Settings of its connections. Planning again and again, as PostgreSQL may choose to, would make the floor lower.
    fn options(&self) -> &'static str {
        if self.is_bare {
            "-c plan_cache_mode=force_generic_plan -c session_replication_role=replica"
        } else {
            "-c plan_cache_mode=force_generic_plan"
        }
    }
}

/// The median of the third column, microseconds, of `pgbench`'s logs.
fn median_of_logs(directory: &Path) -> anyhow::Result<f64> {
    let mut latencies = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("log") {
            let text = std::fs::read_to_string(entry.path())?;
            let column = text.lines().filter_map(|line| line.split(' ').nth(2)?.parse::<f64>().ok());
            latencies.extend(column.map(|microseconds| microseconds / 1e3));
        }
    }
    latencies.sort_unstable_by(f64::total_cmp);
    Ok(percentile(&latencies, 50.0))
}
