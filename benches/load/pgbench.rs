//! The baseline: what PostgreSQL alone does with a statement, driven by its own `pgbench`.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::process::Command;

use crate::service::{Programs, RunningService};
use crate::statistics::percentile;

/// Statements for `pgbench`, and the variables in them. PostgreSQL plans a statement with variables
/// once for all values.
#[derive(Debug, Clone, Default)]
pub(crate) struct Script {
    pub(crate) text: String,
    pub(crate) variables: Vec<(String, String)>,
    /// Whether triggers are disabled. This disables foreign keys too.
    pub(crate) is_bare: bool,
}

/// Runs scripts against one server.
pub(crate) struct Pgbench {
    program: PathBuf,
    socket: PathBuf,
    scratch: PathBuf,
}

/// What `pgbench` measured for a script.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Baseline {
    /// Transactions a second, without the time to connect.
    pub(crate) rate: f64,
    /// Latency in milliseconds: the median with one client, the mean with several.
    pub(crate) latency: f64,
    pub(crate) transactions: f64,
}

impl Pgbench {
    pub(crate) fn new(programs: &Programs, service: &RunningService, scratch: &Path) -> Self {
        Self {
            program: programs.directory.join("pgbench"),
            socket: service.socket.clone(),
            scratch: scratch.to_owned(),
        }
    }

    /// Runs a script with prepared statements.
    pub(crate) async fn run(
        &self,
        script: &Script,
        clients: usize,
        duration: Duration,
    ) -> anyhow::Result<Baseline> {
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
            // Log each transaction, for the median: the slowest of a few hundred commits dominate
            // the mean.
            command.args(["-l", "--log-prefix"]).arg(directory.path().join("log"));
        }
        command
            .arg("task_history")
            .env_clear()
            .env("PGOPTIONS", script.server_options())
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let output = command.output().await.context("pgbench")?;
        let stdout = String::from_utf8_lossy(&output.stdout);
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "pgbench: {stdout}{stderr}");
        let number = |prefix: &str| {
            let rest = stdout.lines().find_map(|line| line.strip_prefix(prefix))?;
            rest.split(['/', ' ']).find_map(|word| word.parse::<f64>().ok())
        };
        let rate = number("tps = ").context("pgbench printed no rate")?;
        let mean = number("latency average = ").context("pgbench printed no latency")?;
        let transactions = number("number of transactions actually processed: ")
            .context("pgbench printed no number of transactions")?;
        let latency = match clients {
            1 => median_of_logs(directory.path())?,
            _ => mean,
        };
        Ok(Baseline { rate, latency, transactions })
    }
}

impl Script {
    /// The server settings of its connections. PostgreSQL may choose to plan a statement for each
    /// execution, which would lower the baseline.
    fn server_options(&self) -> &'static str {
        if self.is_bare {
            "-c plan_cache_mode=force_generic_plan -c session_replication_role=replica"
        } else {
            "-c plan_cache_mode=force_generic_plan"
        }
    }
}

/// The median latency in the logs of `pgbench`, in milliseconds. The third column of a log is the
/// latency in microseconds.
fn median_of_logs(directory: &Path) -> anyhow::Result<f64> {
    let mut latencies = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("log") {
            let text = std::fs::read_to_string(entry.path())?;
            let column =
                text.lines().filter_map(|line| line.split(' ').nth(2)?.parse::<f64>().ok());
            latencies.extend(column.map(|microseconds| microseconds / 1e3));
        }
    }
    latencies.sort_unstable_by(f64::total_cmp);
    Ok(percentile(&latencies, 50.0))
}
