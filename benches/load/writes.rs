//! Durable invocations and reports: their rates and latencies.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::{Context, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;

use crate::Bench;
use crate::data::unique_id;
use crate::data_set::{BARE, DataSet};
use crate::database::TASK_COLUMNS;
use crate::http::{Sample, load, with_body};
use crate::pgbench::{Baseline, Pgbench, Script};
use crate::process::CpuTime;
use crate::report::{Cell, Section};
use crate::service::RunningService;
use crate::statistics::median;

/// Concurrent connections to the service, and clients of `pgbench`.
const WRITERS: usize = 64;

/// Agents of the workload with several agents.
const AGENTS: u32 = 200;

/// The input of each turn.
const TEXT: &str = "Compare the price of the last quarter's invoices with the market, and write a \
                    summary of what has changed since the last meeting: one table, one paragraph, \
                    and the sources that you found.";

/// The result of each turn.
const RESULT: &str = "The invoices of the last quarter are four in a hundred above the market. Two \
                      of the suppliers have raised their prices since the last meeting, one has \
                      lowered them; the table below has all of them in order of what they cost. \
                      The sources are the invoices themselves and the price list of the first of \
                      the month.";

/// One row of the table.
struct Workload {
    name: &'static str,
    connections: usize,
    rounds: Vec<WriteRound>,
}

struct WriteRound {
    sample: Sample,
    cpu: CpuTime,
    baseline: Option<Baseline>,
    /// The baseline without triggers.
    bare: Option<Baseline>,
}

/// Ids of tasks that the run has created.
type Ids = Arc<Mutex<Vec<String>>>;

pub(crate) async fn measure(bench: &mut Bench, data_set: &DataSet) -> anyhow::Result<()> {
    let service = &data_set.service;
    let (_, key) = data_set.create_organization(bench, "writes").await?;
    // The baselines write to other organizations, so that the lists of the first do not contain
    // their rows.
    let (naive, _) = data_set.create_organization(bench, "naive").await?;
    let pgbench = Pgbench::new(&bench.programs, service, bench.work_directory.path());
    let script = naive_upsert(&naive);
    // Rows that are written without triggers are in no count, so they are also removed without
    // triggers.
    let (bare, _) = data_set.create_organization(bench, BARE).await?;
    let bare_script = Script { is_bare: true, ..naive_upsert(&bare) };
    let invocations = InvocationSource { key, ids: Ids::default() };
    let workload = |name, connections| Workload { name, connections, rounds: Vec::new() };
    let mut one_agent = workload("new tasks of one agent", WRITERS);
    let mut many_agents = workload("new tasks of 200 agents", WRITERS);
    let mut continuing = workload("one turn of five continues a task", WRITERS);
    let mut reports = workload("reports", WRITERS);
    let mut alone = workload("one new task at a time", 1);
    let mut reports_alone = workload("one report at a time", 1);
    let duration = bench.duration();
    for round in 0..bench.options.rounds {
        bench.log(&format!("writes, round {} of {}", round + 1, bench.options.rounds));
        invocations.ids.lock().expect("no thread panics").clear();
        let seed = (bench.options.seed << 32) + (u64::from(round) << 16);
        measure_workload(bench, service, &mut one_agent, |number| {
            invocations.requests(seed + number as u64, 1, 0.0)
        })
        .await?;
        one_agent.set_baselines(
            pgbench.run(&script, WRITERS, duration).await?,
            pgbench.run(&bare_script, WRITERS, duration).await?,
        );
        measure_workload(bench, service, &mut many_agents, |number| {
            invocations.requests(seed + 1000 + number as u64, AGENTS, 0.0)
        })
        .await?;
        let report_source = invocations.reports()?;
        measure_workload(bench, service, &mut reports, |_| report_source.requests()).await?;
        measure_workload(bench, service, &mut reports_alone, |_| report_source.requests()).await?;
        measure_workload(bench, service, &mut continuing, |number| {
            invocations.requests(seed + 2000 + number as u64, 1, 0.2)
        })
        .await?;
        measure_workload(bench, service, &mut alone, |number| {
            invocations.requests(seed + 3000 + number as u64, 1, 0.0)
        })
        .await?;
        alone.set_baselines(
            pgbench.run(&script, 1, duration).await?,
            pgbench.run(&bare_script, 1, duration).await?,
        );
    }
    data_set.remove_bare_rows().await?;

    let mut section = Section::new(
        "Writes, durable before the response; times in ms, CPU a request in us",
        &[
            "what",
            "connections",
            "req/s",
            "pgbench/s",
            "ratio",
            "bare/s",
            "against bare",
            "p50",
            "p99",
            "pgbench p50",
            "ratio of p50",
            "service us",
            "postgres us",
        ],
    );
    for workload in [&one_agent, &many_agents, &continuing, &reports, &alone, &reports_alone] {
        section.push_row(workload.cells());
    }
    bench.report.add_section(section);
    bench.report.set_measured("write-rate", median(one_agent.rate_ratios()));
    bench.report.set_measured("write-rate-bare", median(one_agent.bare_ratios()));
    bench.report.set_measured("write-alone", median(alone.latency_ratios()));
    Ok(())
}

/// Measures one round of a workload.
async fn measure_workload<R: FnMut() -> Vec<u8> + Send + 'static>(
    bench: &Bench,
    service: &RunningService,
    workload: &mut Workload,
    requests: impl Fn(usize) -> R,
) -> anyhow::Result<()> {
    let before = service.cpu_time();
    let sample = load(service.port, workload.connections, bench.duration(), requests)
        .await
        .context(workload.name)?;
    let cpu = service.cpu_time() - before;
    workload.rounds.push(WriteRound { sample, cpu, baseline: None, bare: None });
    Ok(())
}

impl Workload {
    /// Adds what `pgbench` measured directly after the last round.
    fn set_baselines(&mut self, baseline: Baseline, bare: Baseline) {
        if let Some(round) = self.rounds.last_mut() {
            round.baseline = Some(baseline);
            round.bare = Some(bare);
        }
    }

    fn rate_ratios(&self) -> Vec<f64> {
        let ratio = |round: &WriteRound| Some(round.sample.rate() / round.baseline?.rate);
        self.rounds.iter().filter_map(ratio).collect()
    }

    fn bare_ratios(&self) -> Vec<f64> {
        let ratio = |round: &WriteRound| Some(round.sample.rate() / round.bare?.rate);
        self.rounds.iter().filter_map(ratio).collect()
    }

    fn latency_ratios(&self) -> Vec<f64> {
        let ratio =
            |round: &WriteRound| Some(round.sample.percentile(50.0) / round.baseline?.latency);
        self.rounds.iter().filter_map(ratio).collect()
    }

    fn cells(&self) -> Vec<Cell> {
        let median_of = |value: fn(&WriteRound) -> f64| median(self.rounds.iter().map(value));
        let baselines = |value: fn(Baseline) -> f64| -> Vec<f64> {
            self.rounds.iter().filter_map(|round| round.baseline.map(value)).collect()
        };
        let bare_rates: Vec<f64> =
            self.rounds.iter().filter_map(|round| Some(round.bare?.rate)).collect();
        vec![
            Cell::from(self.name),
            Cell::of_count(self.connections),
            Cell::Number(median_of(|round| round.sample.rate()), 0),
            Cell::median(&baselines(|baseline| baseline.rate), 0),
            Cell::median(&self.rate_ratios(), 2),
            Cell::median(&bare_rates, 0),
            Cell::median(&self.bare_ratios(), 2),
            Cell::Number(median_of(|round| round.sample.percentile(50.0)), 2),
            Cell::Number(median_of(|round| round.sample.percentile(99.0)), 2),
            Cell::median(&baselines(|baseline| baseline.latency), 2),
            Cell::median(&self.latency_ratios(), 2),
            Cell::Number(median_of(|round| round.cpu.service / round.sample.requests() * 1e6), 0),
            Cell::Number(median_of(|round| round.cpu.postgres / round.sample.requests() * 1e6), 0),
        ]
    }
}

/// A source of requests that invoke agents.
struct InvocationSource {
    key: String,
    ids: Ids,
}

impl InvocationSource {
    /// The invocations of one connection, each for a random one of `agents` agents. The share
    /// `continued` of them continues a task that the same connection created before.
    fn requests(
        &self,
        seed: u64,
        agents: u32,
        continued: f64,
    ) -> impl FnMut() -> Vec<u8> + Send + 'static {
        let (key, ids) = (self.key.clone(), self.ids.clone());
        let mut rng = StdRng::seed_from_u64(seed);
        let mut own: Vec<(String, u32)> = Vec::new();
        // Runs on the same data set need different ids, even if their seeds are equal.
        let run = unique_id().as_u128();
        move || {
            let (id, agent) = if !own.is_empty() && rng.random_bool(continued) {
                own[rng.random_range(0..own.len())].clone()
            } else {
                let bits = (rng.random::<u128>() ^ run).to_be_bytes();
                let id = uuid::Builder::from_random_bytes(bits).into_uuid().to_string();
                let agent = rng.random_range(0..agents);
                own.push((id.clone(), agent));
                ids.lock().expect("no thread panics").push(id.clone());
                (id, agent)
            };
            let body = json!({ "id": id, "input": { "text": TEXT } }).to_string();
            with_body("POST", &key, &format!("/v1/agents/writer-{agent}/invoke/async"), &body)
        }
    }

    /// Reports for the tasks that were created so far.
    fn reports(&self) -> anyhow::Result<ReportSource> {
        let ids: Arc<[String]> = self.ids.lock().expect("no thread panics").as_slice().into();
        ensure!(!ids.is_empty(), "no task was created");
        Ok(ReportSource { key: self.key.clone(), ids, next: Arc::default() })
    }
}

/// A source of requests that report the result of tasks. Its connections share the tasks: each task
/// gets one report before any task gets a second one.
struct ReportSource {
    key: String,
    ids: Arc<[String]>,
    next: Arc<AtomicUsize>,
}

impl ReportSource {
    fn requests(&self) -> impl FnMut() -> Vec<u8> + Send + 'static {
        let (key, ids, next) = (self.key.clone(), self.ids.clone(), self.next.clone());
        let body = json!({ "status": "completed", "result": RESULT }).to_string();
        move || {
            let id = &ids[next.fetch_add(1, Ordering::Relaxed) % ids.len()];
            with_body("PATCH", &key, &format!("/agent-execution/{id}/update"), &body)
        }
    }
}

/// The straightforward upsert of one task and one turn, in a single statement and a transaction of
/// its own.
fn naive_upsert(organization: &str) -> Script {
    let input = json!({ "text": TEXT, "files": [], "user": null }).to_string();
    let text = format!(
        "WITH upserted AS (\
         INSERT INTO tasks AS task ({TASK_COLUMNS}) \
         VALUES (:organization, gen_random_uuid()::text, 'writer-0', NULL, NULL, NULL, 'pending', \
         NULL, 'api', :title, NULL, 1, now(), now()) \
         ON CONFLICT (organization_id, id) DO UPDATE \
         SET user_id = COALESCE(task.user_id, EXCLUDED.user_id), \
         parent_task_id = COALESCE(task.parent_task_id, EXCLUDED.parent_task_id), \
         triggering_agent_id = COALESCE(task.triggering_agent_id, EXCLUDED.triggering_agent_id), \
         status = EXCLUDED.status, internal_status = EXCLUDED.internal_status, \
         source = EXCLUDED.source, title = EXCLUDED.title, result = EXCLUDED.result, \
         turns = task.turns + 1, updated_at = GREATEST(task.updated_at, EXCLUDED.updated_at) \
         WHERE task.agent_id = EXCLUDED.agent_id \
         RETURNING *), \
         inserted AS (\
         INSERT INTO task_turns (organization_id, task_id, turn, input, request, status, \
         is_manually_stopped, created_at) \
         SELECT upserted.organization_id, upserted.id, upserted.turns, (:input)::text::json, \
         '{{}}'::json, upserted.status, false, now() FROM upserted \
         RETURNING *) \
         SELECT upserted.*, inserted.* FROM upserted, inserted;\n"
    );
    let variables = [("organization", organization), ("title", TEXT), ("input", &input)];
    let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    Script { text, variables, is_bare: false }
}
