//! Lists: their rates and latencies, compared with PostgreSQL alone, with a small data set, and
//! with other pages.

use std::time::{Duration, Instant};

use anyhow::Context;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;
use sqlx::PgConnection;

use crate::Bench;
use crate::data::{BIG_AGENT, BUSY_USER};
use crate::data_set::DataSet;
use crate::database::{self, StatementRecorder};
use crate::http::{Client, Sample, get, load};
use crate::pgbench::{Pgbench, Script};
use crate::process::CpuTime;
use crate::report::{Cell, Section};
use crate::service::{DATABASE_CONNECTIONS, KEY, RunningService};
use crate::statistics::median;

/// Connections that saturate the service.
const CONNECTIONS: usize = 16;

/// How long the harness sends requests to a route before it measures the route.
const WARM_UP: Duration = Duration::from_millis(300);

/// Tasks of a page, unless the request sets another size.
const PAGE_SIZE: i64 = 20;

/// Pages that the paging measurement requests, evenly spread over all pages.
const STEPS: i64 = 50;

/// Starts of the service that are measured.
const STARTS: usize = 3;

/// A measured request.
struct Route {
    name: &'static str,
    path: String,
    /// If set, each request is for a random page up to this one.
    random_pages: Option<i64>,
    /// The statements that the service sends for the request, in several forms. Empty if the
    /// requests differ.
    scripts: Vec<Script>,
    /// The fastest of the scripts.
    script: Option<Script>,
    rows: usize,
    bytes: usize,
    rounds: Vec<ReadRound>,
}

/// The measurements of a route in one round.
struct ReadRound {
    busy: Sample,
    /// With one connection: the latency of a request that waits for no other.
    alone: Sample,
    /// The CPU time of the busy sample.
    cpu: CpuTime,
    /// Transactions a second of the baseline.
    baseline: Option<f64>,
    /// PostgreSQL's CPU seconds for a transaction of the baseline.
    baseline_cpu: Option<f64>,
}

impl Route {
    fn new(name: &'static str, path: String) -> Self {
        Self {
            name,
            path,
            random_pages: None,
            scripts: Vec::new(),
            script: None,
            rows: 0,
            bytes: 0,
            rounds: Vec::new(),
        }
    }

    /// The source of requests of one connection.
    fn requests(&self, seed: u64) -> impl FnMut() -> Vec<u8> + Send + 'static {
        let (path, pages) = (self.path.clone(), self.random_pages);
        let mut rng = StdRng::seed_from_u64(seed);
        move || match pages {
            None => get(KEY, &path),
            Some(pages) => get(KEY, &format!("{path}?page={}", rng.random_range(1..=pages))),
        }
    }

    /// Sends one request and returns it. Sets the number of rows and bytes of the response.
    async fn probe(&mut self, service: &RunningService) -> anyhow::Result<Vec<u8>> {
        let request = self.requests(0)();
        let mut client = Client::connect(service.port).await?;
        let body = client.send(&request).await.context(self.name)?;
        let page: Value = serde_json::from_slice(body)?;
        self.rows = page["items"].as_array().context("the response has no items")?.len();
        self.bytes = body.len();
        Ok(request)
    }

    async fn load(
        &self,
        service: &RunningService,
        connections: usize,
        duration: Duration,
    ) -> anyhow::Result<Sample> {
        // The pages differ between rounds but not between runs.
        let seed = self.rounds.len() * 1000;
        let requests = |number: usize| self.requests((seed + number) as u64);
        load(service.port, connections, duration, requests).await
    }

    /// The median of a value over the rounds.
    fn median(&self, value: impl Fn(&ReadRound) -> f64) -> f64 {
        median(self.rounds.iter().map(value))
    }

    fn cells(&self) -> Vec<Cell> {
        let values = |value: fn(&ReadRound) -> Option<f64>| -> Vec<f64> {
            self.rounds.iter().filter_map(value).collect()
        };
        let baselines = values(|round| round.baseline);
        let ratios = values(|round| Some(round.busy.rate() / round.baseline?));
        let baseline_cpus = values(|round| Some(round.baseline_cpu? * 1e6));
        vec![
            Cell::from(self.name),
            Cell::of_count(self.rows),
            Cell::of_count(self.bytes),
            Cell::Number(self.median(|round| round.busy.rate()), 0),
            Cell::median(&baselines, 0),
            Cell::median(&ratios, 2),
            Cell::Number(self.median(|round| round.alone.percentile(50.0)), 2),
            Cell::Number(self.median(|round| round.alone.percentile(99.0)), 2),
            Cell::Number(self.median(|round| round.busy.percentile(50.0)), 2),
            Cell::Number(self.median(|round| round.busy.percentile(99.0)), 2),
            Cell::Number(self.median(|round| round.cpu.service / round.busy.requests() * 1e6), 0),
            Cell::Number(self.median(|round| round.cpu.postgres / round.busy.requests() * 1e6), 0),
            Cell::median(&baseline_cpus, 0),
        ]
    }
}

/// Restarts the service several times, and reports how long a start takes.
pub(crate) async fn measure_start(bench: &mut Bench, data_set: DataSet) -> anyhow::Result<DataSet> {
    bench.log("restarting the service several times");
    let directory = data_set.service.directory.clone();
    let mut service = data_set.service;
    let mut times = Vec::new();
    for _ in 0..STARTS {
        service.stop().await?;
        service = RunningService::start(&bench.programs, &directory).await?;
        times.push(service.started_in.as_secs_f64() * 1e3);
    }
    let mut section = Section::new("Start on existing data", &["what", "ms"]);
    section.push_row(vec![
        Cell::from("from spawn to listening, start of PostgreSQL included"),
        Cell::median(&times, 0),
    ]);
    bench.report.add_section(section);
    Ok(DataSet { service, ..data_set })
}

pub(crate) async fn measure(
    bench: &mut Bench,
    big: &DataSet,
    small: &DataSet,
) -> anyhow::Result<()> {
    bench.log("recording the statements of the service");
    let mut connection = database::connect(&big.service).await?;
    let mut routes = routes(&mut connection, big.agent_tasks).await?;
    let pgbench = Pgbench::new(&bench.programs, &big.service, bench.work_directory.path());
    let mut recorder =
        StatementRecorder::start(&bench.programs, &big.service, &mut connection).await?;
    for route in &mut routes {
        let request = route.probe(&big.service).await?;
        if route.random_pages.is_none() {
            route.scripts = recorder.record(&request).await.context(route.name)?.into();
        }
    }
    recorder.stop(&mut connection).await?;
    // Only after the recorder has stopped: while the server logs statements, scripts run slower.
    for route in &mut routes {
        route.script = fastest(&pgbench, &route.scripts).await.context(route.name)?;
    }

    let mut small_routes = small_routes(small.agent_tasks);
    for route in &mut small_routes {
        route.probe(&small.service).await?;
    }
    let before = big.service.memory()?;
    for round in 1..=bench.options.rounds {
        bench.log(&format!("reads, round {round} of {}", bench.options.rounds));
        for route in &mut routes {
            measure_route(bench, route, &big.service, Some(&pgbench)).await?;
            // The small data set is measured directly after the route that it is compared with.
            let small_route = small_routes.iter_mut().find(|other| other.name == route.name);
            if let Some(small_route) = small_route {
                measure_route(bench, small_route, &small.service, None).await?;
            }
        }
    }
    let after = big.service.memory()?;

    let columns = [
        "route",
        "rows",
        "bytes",
        "req/s",
        "pgbench/s",
        "ratio",
        "p50 alone",
        "p99 alone",
        "p50 busy",
        "p99 busy",
        "service us",
        "postgres us",
        "pgbench us",
    ];
    let mut section = Section::new(
        format!(
            "Lists, {} tasks of the agent, {CONNECTIONS} connections; times in ms, CPU a request \
             in us",
            big.agent_tasks
        ),
        &columns,
    );
    for route in &routes {
        section.push_row(route.cells());
    }
    bench.report.add_section(section);
    let mut section = Section::new(
        format!("Lists of the small data set, {} tasks of the agent", small.agent_tasks),
        &columns,
    );
    for route in &small_routes {
        section.push_row(route.cells());
    }
    bench.report.add_section(section);
    set_targets(bench, &routes, &small_routes);

    measure_paging(bench, big).await?;
    measure_sizes(bench, &mut connection).await?;
    let mut section = Section::new("Memory of the service, MiB", &["when", "now", "peak"]);
    for (when, memory) in [("before the reads", before), ("after the reads", after)] {
        section.push_row(vec![
            Cell::from(when),
            Cell::Number(memory.resident, 1),
            Cell::Number(memory.peak, 1),
        ]);
    }
    bench.report.add_section(section);
    Ok(())
}

/// The fastest of some scripts. A generic plan may be faster or slower than a plan for the given
/// values, and the baseline must be the best that PostgreSQL can do.
async fn fastest(pgbench: &Pgbench, scripts: &[Script]) -> anyhow::Result<Option<Script>> {
    let mut best: Option<(f64, &Script)> = None;
    for script in scripts {
        let baseline = pgbench.run(script, DATABASE_CONNECTIONS, Duration::from_secs(1)).await?;
        if best.is_none_or(|(rate, _)| baseline.rate > rate) {
            best = Some((baseline.rate, script));
        }
    }
    Ok(best.map(|(_, script)| script.clone()))
}

/// Measures one round of a route: the busy service, PostgreSQL alone, and the service with one
/// request at a time.
async fn measure_route(
    bench: &Bench,
    route: &mut Route,
    service: &RunningService,
    pgbench: Option<&Pgbench>,
) -> anyhow::Result<()> {
    let duration = bench.duration();
    route.load(service, CONNECTIONS, WARM_UP).await.context(route.name)?;
    let before = service.cpu_time();
    let busy = route.load(service, CONNECTIONS, duration).await?;
    let cpu = service.cpu_time() - before;
    let (baseline, baseline_cpu) = match pgbench.zip(route.script.as_ref()) {
        Some((pgbench, script)) => {
            let before = service.cpu_time();
            let baseline = pgbench.run(script, DATABASE_CONNECTIONS, duration).await;
            let baseline = baseline.context(route.name)?;
            let cpu = service.cpu_time() - before;
            (Some(baseline.rate), Some(cpu.postgres / baseline.transactions))
        }
        None => (None, None),
    };
    let alone = route.load(service, 1, duration).await?;
    route.rounds.push(ReadRound { busy, alone, cpu, baseline, baseline_cpu });
    Ok(())
}

/// The measured lists of the big data set.
async fn routes(connection: &mut PgConnection, agent_tasks: i64) -> anyhow::Result<Vec<Route>> {
    let user = filter_value(
        connection,
        "SELECT user_id FROM tasks WHERE agent_id = $1 AND user_id LIKE 'user-%' \
         AND user_id <> 'user-0' LIMIT 1",
    )
    .await?;
    let parent = filter_value(
        connection,
        "SELECT parent_task_id FROM tasks WHERE agent_id = $1 AND parent_task_id IS NOT NULL \
         LIMIT 1",
    )
    .await?;
    let triggering_agent = filter_value(
        connection,
        "SELECT triggering_agent_id FROM tasks WHERE agent_id = $1 AND triggering_agent_id <> $1 \
         AND triggering_agent_id IS NOT NULL GROUP BY 1 ORDER BY count(*) DESC, 1 LIMIT 1",
    )
    .await?;
    let tasks_path = format!("/v1/agents/{BIG_AGENT}/tasks");
    let of_agent = |name, query: &str| Route::new(name, format!("{tasks_path}{query}"));
    let of_all = |name, query: &str| Route::new(name, format!("/v1/tasks{query}"));
    let last = last_page(agent_tasks);
    let statement = "SELECT count(*) FROM tasks WHERE agent_id = $1 AND user_id = $2";
    let user_tasks = database::integer(connection, statement, &[BIG_AGENT, BUSY_USER]).await?;
    let last_of_user = last_page(user_tasks);
    let statement = "SELECT count(*) FROM tasks \
                     WHERE created_at >= $1::date AND created_at < $1::date + 29";
    let last_of_days = last_page(database::integer(connection, statement, &["2025-06-01"]).await?);
    Ok(vec![
        Route::new(FIRST, tasks_path.clone()),
        of_agent(
            "page 1000, or the middle",
            &format!("?page={}", if last > 2000 { 1000 } else { last / 2 + 1 }),
        ),
        of_agent(LAST, &format!("?page={last}")),
        Route { random_pages: Some(last), ..Route::new(RANDOM, tasks_path.clone()) },
        of_agent(COMMON, "?status=completed"),
        of_agent(RARE, "?status=paused"),
        of_agent("user, busy", &format!("?user_id={BUSY_USER}")),
        of_agent(
            "user, busy, middle page",
            &format!("?user_id={BUSY_USER}&page={}", last_of_user / 2 + 1),
        ),
        of_agent("user, busy, last page", &format!("?user_id={BUSY_USER}&page={last_of_user}")),
        of_agent("user, ordinary", &format!("?user_id={user}")),
        of_agent("parent", &format!("?parent_task_id={parent}")),
        of_agent("triggering agent", &format!("?triggering_agent_id={triggering_agent}")),
        of_agent("internal status", "?internal_status=planning"),
        of_agent("status, user", &format!("?status=completed&user_id={BUSY_USER}")),
        of_agent("status, internal status", "?status=completed&internal_status=planning"),
        of_agent(
            "user, internal status",
            &format!("?user_id={BUSY_USER}&internal_status=planning"),
        ),
        of_all("all agents", ""),
        of_all("all agents, agent_id", &format!("?agent_id={BIG_AGENT}")),
        of_all("all agents, status", "?status=completed"),
        of_all("all agents, whole days", "?from_date=2025-06-01&to_date=2025-06-30"),
        of_all(
            "all agents, whole days, middle page",
            &format!("?from_date=2025-06-01&to_date=2025-06-30&page={}", last_of_days / 2 + 1),
        ),
        of_all(
            "all agents, odd times",
            "?from_date=2025-06-03T07:11:13Z&to_date=2025-06-20T19:23:47Z",
        ),
    ])
}

const FIRST: &str = "page 1";
const LAST: &str = "last page";
const RANDOM: &str = "random page";
const COMMON: &str = "status, common";
const RARE: &str = "status, rare";

fn small_routes(agent_tasks: i64) -> Vec<Route> {
    let tasks_path = format!("/v1/agents/{BIG_AGENT}/tasks");
    let last = last_page(agent_tasks);
    vec![
        Route::new(FIRST, tasks_path.clone()),
        Route::new(LAST, format!("{tasks_path}?page={last}")),
        Route { random_pages: Some(last), ..Route::new(RANDOM, tasks_path) },
    ]
}

fn last_page(tasks: i64) -> i64 {
    (tasks + PAGE_SIZE - 1) / PAGE_SIZE
}

/// A value that some tasks of the big agent have, to filter by.
async fn filter_value(
    connection: &mut PgConnection,
    statement: &'static str,
) -> anyhow::Result<String> {
    let value = database::text(connection, statement, &[BIG_AGENT]).await?;
    value.with_context(|| format!("no row: {statement}"))
}

/// Sets the measured values of the targets for lists.
fn set_targets(bench: &mut Bench, routes: &[Route], small_routes: &[Route]) {
    let p50 = |routes: &[Route], name: &str, round: usize| {
        let route = routes.iter().find(|route| route.name == name);
        route.map_or(f64::NAN, |route| route.rounds[round].alone.percentile(50.0))
    };
    let rounds = 0..bench.options.rounds as usize;
    // The ratios are within a round; the targets are the medians of the ratios.
    let against_first = |name: &str| {
        let ratio = |round| p50(routes, name, round) / p50(routes, FIRST, round);
        median(rounds.clone().map(ratio))
    };
    let depth = against_first(LAST).max(against_first(RANDOM));
    let status = against_first(COMMON).max(against_first(RARE));
    let size_ratio = |round| p50(routes, FIRST, round) / p50(small_routes, FIRST, round);
    let size = median(rounds.clone().map(size_ratio));
    if let Some(first) = routes.iter().find(|route| route.name == FIRST) {
        let rate = first.median(|round| {
            round.baseline.map_or(f64::NAN, |baseline| round.busy.rate() / baseline)
        });
        let cpu = first.median(|round| round.cpu.service / round.cpu.postgres);
        bench.report.set_measured("page-rate", rate);
        bench.report.set_measured("page-cpu", cpu);
    }
    bench.report.set_measured("size", size);
    bench.report.set_measured("depth", depth);
    bench.report.set_measured("status", status);
}

/// Measures pages of the big agent, from the first to the last.
async fn measure_paging(bench: &mut Bench, big: &DataSet) -> anyhow::Result<()> {
    bench.log("paging through all tasks");
    let last = last_page(big.agent_tasks);
    let pages: Vec<i64> = (0..STEPS).map(|step| 1 + step * (last - 1) / (STEPS - 1)).collect();
    let mut times: Vec<Vec<f64>> = vec![Vec::new(); pages.len()];
    let mut client = Client::connect(big.service.port).await?;
    for _ in 0..=bench.options.rounds.max(3) {
        for (page, times) in pages.iter().zip(&mut times) {
            let request = get(KEY, &format!("/v1/agents/{BIG_AGENT}/tasks?page={page}"));
            let sent = Instant::now();
            client.send(&request).await?;
            times.push(sent.elapsed().as_secs_f64() * 1e3);
        }
    }
    // The first pass only warms the caches.
    let times: Vec<f64> = times.iter().map(|times| median(times[1..].iter().copied())).collect();
    let mut section = Section::new(
        "Paging through all tasks of the agent, ms a page",
        &["page", "number", "p50"],
    );
    for (name, index) in
        [("first", 0), ("a quarter", 12), ("half", 24), ("three quarters", 37), ("last", 49)]
    {
        section.push_row(vec![
            Cell::from(name),
            Cell::of_count(pages[index]),
            Cell::Number(times[index], 2),
        ]);
    }
    bench.report.add_section(section);
    bench.report.set_measured("paging", times[times.len() - 1] / times[0]);
    Ok(())
}

/// Reports the disk usage of the tables and indexes.
async fn measure_sizes(bench: &mut Bench, connection: &mut PgConnection) -> anyhow::Result<()> {
    let tasks = database::integer(connection, "SELECT count(*) FROM tasks", &[]).await?;
    let mut section = Section::new("Disk usage", &["what", "MiB", "bytes a task"]);
    #[expect(clippy::cast_precision_loss, reason = "no database has 2^52 bytes")]
    for relation in database::relations(connection).await? {
        let bytes = relation.bytes as f64;
        let name = Cell::Text(relation.name);
        section.push_row(vec![
            name,
            Cell::Number(bytes / f64::from(1 << 20), 1),
            Cell::Number(bytes / tasks as f64, 1),
        ]);
    }
    bench.report.add_section(section);
    Ok(())
}
