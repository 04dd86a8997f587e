//! Durable turns and reports: how many a second, and how long one takes.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::{Context, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;

use crate::Bench;
use crate::http::{Sample, load, with_body};
use crate::numbers::median;
use crate::pgbench::{Floor, Pgbench, Script};
use crate::process::{self, Cpu};
use crate::report::{Cell, Section};
use crate::sites::{BARE, Site};

/// Connections, and clients of `pgbench`, that write at once.
const WRITERS: usize = 64;

/// Agents that turns are spread over, where they are.
const AGENTS: u32 = 200;

/// What is asked in each turn.
const TEXT: &str = "Compare the price of the last quarter's invoices with the market, and write a summary of what has \
                    changed since the last meeting: one table, one paragraph, and the sources that you found.";

/// What each turn comes to.
const RESULT: &str = "The invoices of the last quarter are four in a hundred above the market. Two of the suppliers \
                      have raised their prices since the last meeting, one has lowered them; the table below has all \
                      of them in order of what they cost. The sources are the invoices themselves and the price list \
                      of the first of the month.";

/// One row of the table.
struct Kind {
    name: &'static str,
    connections: usize,
    rounds: Vec<Round>,
}

struct Round {
    sample: Sample,
    cpu: Cpu,
    floor: Option<Floor>,
    /// The same where no trigger fires.
    bare: Option<Floor>,
}

/// Ids of tasks that the run has made.
type Ids = Arc<Mutex<Vec<String>>>;

pub(crate) async fn measure(bench: &mut Bench, site: &Site) -> anyhow::Result<()> {
    let (_, key) = site.organization(bench, "writes").await?;
    // Another organisation: what is written past the service shall not be in its lists.
    let (naive, _) = site.organization(bench, "naive").await?;
    let pgbench = Pgbench::new(&bench.programs, &site.service, bench.home.path());
    let script = naive_upsert(&naive);
    // Rows that no trigger has seen are in no count and must go the way they came.
    let (bare, _) = site.organization(bench, BARE).await?;
    let bare_script = Script { is_bare: true, ..naive_upsert(&bare) };
    let turns = Turns { key, ids: Ids::default() };
    let kind = |name, connections| Kind { name, connections, rounds: Vec::new() };
    let mut one_agent = kind("new tasks of one agent", WRITERS);
    let mut many_agents = kind("new tasks of 200 agents", WRITERS);
    let mut continuing = kind("of five turns one continues a task", WRITERS);
    let mut reports = kind("outcomes", WRITERS);
    let mut alone = kind("one new task at a time", 1);
    let mut reports_alone = kind("one outcome at a time", 1);
    let duration = bench.duration();
    for round in 0..bench.options.rounds {
        bench.say(&format!("writes, round {} of {}", round + 1, bench.options.rounds));
        turns.ids.lock().expect("no panic").clear();
        let seed = (bench.options.seed << 32) + (u64::from(round) << 16);
        measure_kind(bench, site, &mut one_agent, |number| turns.new_tasks(seed + number as u64, 1, 0.0))
            .await?;
        one_agent.floor(
            pgbench.run(&script, WRITERS, duration).await?,
            pgbench.run(&bare_script, WRITERS, duration).await?,
        );
        measure_kind(bench, site, &mut many_agents, |number| {
            turns.new_tasks(seed + 1000 + number as u64, AGENTS, 0.0)
        })
        .await?;
        let outcomes = turns.outcomes()?;
        measure_kind(bench, site, &mut reports, |_| outcomes.requests()).await?;
        measure_kind(bench, site, &mut reports_alone, |_| outcomes.requests()).await?;
        measure_kind(bench, site, &mut continuing, |number| {
            turns.new_tasks(seed + 2000 + number as u64, 1, 0.2)
        })
        .await?;
        measure_kind(bench, site, &mut alone, |number| turns.new_tasks(seed + 3000 + number as u64, 1, 0.0))
            .await?;
        alone.floor(pgbench.run(&script, 1, duration).await?, pgbench.run(&bare_script, 1, duration).await?);
    }
    site.remove_bare().await?;

    let mut section = Section::new(
        "Writes, each durable when it is answered; times in ms, CPU a request in us",
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
    for kind in [&one_agent, &many_agents, &continuing, &reports, &alone, &reports_alone] {
        section.row(kind.cells());
    }
    bench.report.add(section);
    bench.report.measured("write-rate", median(one_agent.rate_ratios()));
    bench.report.measured("write-rate-bare", median(one_agent.bare_ratios()));
    bench.report.measured("write-alone", median(alone.latency_ratios()));
    Ok(())
}

async fn measure_kind<R: FnMut() -> Vec<u8> + Send + 'static>(
    bench: &Bench,
    site: &Site,
    kind: &mut Kind,
    requests: impl Fn(usize) -> R,
) -> anyhow::Result<()> {
    let before = process::cpu(&site.service);
    let sample =
        load(site.service.port, kind.connections, bench.duration(), requests).await.context(kind.name)?;
    let cpu = process::cpu(&site.service) - before;
    kind.rounds.push(Round { sample, cpu, floor: None, bare: None });
    Ok(())
}

impl Kind {
    /// What `pgbench` did right after the last measurement.
    fn floor(&mut self, floor: Floor, bare: Floor) {
        if let Some(round) = self.rounds.last_mut() {
            round.floor = Some(floor);
            round.bare = Some(bare);
        }
    }

    fn rate_ratios(&self) -> Vec<f64> {
        self.rounds.iter().filter_map(|round| Some(round.sample.rate() / round.floor?.rate)).collect()
    }

    fn bare_ratios(&self) -> Vec<f64> {
        self.rounds.iter().filter_map(|round| Some(round.sample.rate() / round.bare?.rate)).collect()
    }

    fn latency_ratios(&self) -> Vec<f64> {
        let ratio = |round: &Round| Some(round.sample.percentile(50.0) / round.floor?.latency);
        self.rounds.iter().filter_map(ratio).collect()
    }

    fn cells(&self) -> Vec<Cell> {
        let of = |value: fn(&Round) -> f64| median(self.rounds.iter().map(value));
        let floors = |value: fn(Floor) -> f64| -> Vec<f64> {
            self.rounds.iter().filter_map(|round| round.floor.map(value)).collect()
        };
        let bare_rates: Vec<f64> =
            self.rounds.iter().filter_map(|round| round.bare.map(|floor| floor.rate)).collect();
        vec![
            Cell::from(self.name),
            Cell::of_count(self.connections),
            Cell::Number(of(|round| round.sample.rate()), 0),
            Cell::median(&floors(|floor| floor.rate), 0),
            Cell::median(&self.rate_ratios(), 2),
            Cell::median(&bare_rates, 0),
            Cell::median(&self.bare_ratios(), 2),
            Cell::Number(of(|round| round.sample.percentile(50.0)), 2),
            Cell::Number(of(|round| round.sample.percentile(99.0)), 2),
            Cell::median(&floors(|floor| floor.latency), 2),
            Cell::median(&self.latency_ratios(), 2),
            Cell::Number(of(|round| round.cpu.service / round.sample.requests() * 1e6), 0),
            Cell::Number(of(|round| round.cpu.postgres / round.sample.requests() * 1e6), 0),
        ]
    }
}

/// Makes invocations.
struct Turns {
    key: String,
    ids: Ids,
}

impl Turns {
    /// Invocations of one of some agents, of which a share are turns of a task that this connection made before.
    fn new_tasks(&self, seed: u64, agents: u32, continued: f64) -> impl FnMut() -> Vec<u8> + Send + 'static {
        let (key, ids) = (self.key.clone(), self.ids.clone());
        let mut rng = StdRng::seed_from_u64(seed);
        let mut own: Vec<(String, u32)> = Vec::new();
        // Across runs on the same data the ids must be new, whatever the seed.
        let run = uuid::Uuid::now_v7().as_u128();
        move || {
            let (id, agent) = if !own.is_empty() && rng.random_bool(continued) {
                own[rng.random_range(0..own.len())].clone()
            } else {
                let bits = rng.random::<u128>() ^ run;
                let id = uuid::Builder::from_random_bytes(bits.to_be_bytes()).into_uuid().to_string();
                let agent = rng.random_range(0..agents);
                own.push((id.clone(), agent));
                ids.lock().expect("no panic").push(id.clone());
                (id, agent)
            };
            let body = json!({ "id": id, "input": { "text": TEXT } }).to_string();
            with_body("POST", &key, &format!("/v1/agents/writer-{agent}/invoke/async"), &body)
        }
    }

    /// Reports for the tasks that were made so far.
    fn outcomes(&self) -> anyhow::Result<Outcomes> {
        let ids: Arc<[String]> = self.ids.lock().expect("no panic").as_slice().into();
        ensure!(!ids.is_empty(), "no task was made");
        // The last of each connection may be on its way still.
        Ok(Outcomes { key: self.key.clone(), ids, next: Arc::default() })
    }
}

/// Reports for tasks, for each the first until none is left without one.
struct Outcomes {
    key: String,
    ids: Arc<[String]>,
    next: Arc<AtomicUsize>,
}

impl Outcomes {
    fn requests(&self) -> impl FnMut() -> Vec<u8> + Send + 'static {
        let (key, ids, next) = (self.key.clone(), self.ids.clone(), self.next.clone());
        let body = json!({ "status": "completed", "result": RESULT }).to_string();
        move || {
            let id = &ids[next.fetch_add(1, Ordering::Relaxed) % ids.len()];
            with_body("PATCH", &key, &format!("/agent-execution/{id}/update"), &body)
        }
    }
}

/// A turn as anybody would write it down: one task and one turn, in one statement of its own.
fn naive_upsert(organization: &str) -> Script {
    let input = json!({ "text": TEXT, "files": [], "user": null }).to_string();
    let text = "\
         WITH t AS (\
         INSERT INTO tasks AS task (organization_id, id, agent_id, user_id, parent_task_id, triggering_agent_id, \
         status, internal_status, source, title, result, turns, created_at, updated_at) \
         VALUES (:organization, gen_random_uuid()::text, 'writer-0', NULL, NULL, NULL, 'pending', NULL, 'api', \
         :title, NULL, 1, now(), now()) \
         ON CONFLICT (organization_id, id) DO UPDATE \
         SET user_id = COALESCE(task.user_id, EXCLUDED.user_id), \
         parent_task_id = COALESCE(task.parent_task_id, EXCLUDED.parent_task_id), \
         triggering_agent_id = COALESCE(task.triggering_agent_id, EXCLUDED.triggering_agent_id), \
         status = EXCLUDED.status, internal_status = EXCLUDED.internal_status, source = EXCLUDED.source, \
         title = EXCLUDED.title, result = EXCLUDED.result, turns = task.turns + 1, \
         updated_at = GREATEST(task.updated_at, EXCLUDED.updated_at) \
         WHERE task.agent_id = EXCLUDED.agent_id \
         RETURNING *), \
         l AS (\
         INSERT INTO task_turns (organization_id, task_id, turn, input, request, status, is_manually_stopped, \
         created_at) \
         SELECT t.organization_id, t.id, t.turns, (:input)::text::json, '{}'::json, t.status, false, now() FROM t \
         RETURNING *) \
         SELECT t.*, l.* FROM t, l;\n";
    let variables = [("organization", organization), ("title", TEXT), ("input", &input)];
    let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    Script { text: text.to_owned(), variables, is_bare: false }
}
