//! Lists: how fast, how far from what PostgreSQL alone does, and whether size or depth matter.

use std::time::{Duration, Instant};

use anyhow::Context;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::Value;
use sqlx::PgConnection;

use crate::Bench;
use crate::data::{BIG_AGENT, BUSY_USER};
use crate::database::{self, Recorder};
use crate::http::{Client, Sample, get, load};
use crate::numbers::median;
use crate::pgbench::{Pgbench, Script};
use crate::process::{self, Cpu};
use crate::report::{Cell, Section};
use crate::service::{DATABASE_CONNECTIONS, KEY, Service};
use crate::sites::Site;

/// Connections that keep the service busy.
const CONNECTIONS: usize = 16;

/// How long a route is asked for before it is measured.
const WARM_UP: Duration = Duration::from_millis(300);

/// Tasks of a page, unless a request says otherwise.
const PAGE: i64 = 20;

/// Pages that are looked at on the way through all of them.
const STEPS: i64 = 50;

/// Starts that are timed.
const STARTS: usize = 3;

/// A request that is measured, and what it asks for.
struct Route {
    name: &'static str,
    path: String,
    /// Pages to draw one of for each request.
    random_pages: Option<i64>,
    /// What the service asks PostgreSQL for it, in several forms; none where each request is another.
    scripts: Vec<Script>,
    /// The form that PostgreSQL is fastest at.
    script: Option<Script>,
    rows: usize,
    bytes: usize,
    rounds: Vec<Round>,
}

/// One round's measurements of a route.
struct Round {
    busy: Sample,
    /// One connection, to see how long a request takes that waits for no other.
    alone: Sample,
    floor: Option<f64>,
    cpu: Cpu,
    /// Of PostgreSQL for a transaction of the floor.
    floor_cpu: Option<f64>,
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

    /// Makes the requests of one connection.
    fn requests(&self, seed: u64) -> impl FnMut() -> Vec<u8> + Send + 'static {
        let (path, pages) = (self.path.clone(), self.random_pages);
        let mut rng = StdRng::seed_from_u64(seed);
        move || match pages {
            None => get(KEY, &path),
            Some(pages) => get(KEY, &format!("{path}?page={}", rng.random_range(1..=pages))),
        }
    }

    /// Sends one request, returns it, and notes what it is answered with.
    async fn probe(&mut self, service: &Service) -> anyhow::Result<Vec<u8>> {
        let request = self.requests(0)();
        let mut client = Client::connect(service.port).await?;
        let body = client.send(&request).await.context(self.name)?;
        let page: Value = serde_json::from_slice(body)?;
        self.rows = page["items"].as_array().context("a list")?.len();
        self.bytes = body.len();
        Ok(request)
    }

    async fn load(
        &self,
        service: &Service,
        connections: usize,
        duration: Duration,
    ) -> anyhow::Result<Sample> {
        // Other pages in each round, the same in each run.
        let seed = self.rounds.len() * 1000;
        load(service.port, connections, duration, |number| self.requests((seed + number) as u64)).await
    }

    /// The medians of what each round says.
    fn median(&self, of: impl Fn(&Round) -> f64) -> f64 {
        median(self.rounds.iter().map(of))
    }

    fn cells(&self) -> Vec<Cell> {
        let floors: Vec<f64> = self.rounds.iter().filter_map(|round| round.floor).collect();
        let ratios: Vec<f64> =
            self.rounds.iter().filter_map(|round| Some(round.busy.rate() / round.floor?)).collect();
        let floor_cpus: Vec<f64> =
            self.rounds.iter().filter_map(|round| Some(round.floor_cpu? * 1e6)).collect();
        vec![
            Cell::from(self.name),
            Cell::of_count(self.rows),
            Cell::of_count(self.bytes),
            Cell::Number(self.median(|round| round.busy.rate()), 0),
            Cell::median(&floors, 0),
            Cell::median(&ratios, 2),
            Cell::Number(self.median(|round| round.alone.percentile(50.0)), 2),
            Cell::Number(self.median(|round| round.alone.percentile(99.0)), 2),
            Cell::Number(self.median(|round| round.busy.percentile(50.0)), 2),
            Cell::Number(self.median(|round| round.busy.percentile(99.0)), 2),
            Cell::Number(self.median(|round| round.cpu.service / round.busy.requests() * 1e6), 0),
            Cell::Number(self.median(|round| round.cpu.postgres / round.busy.requests() * 1e6), 0),
            Cell::median(&floor_cpus, 0),
        ]
    }
}

/// Starts the service again and again, and says how long that takes.
pub(crate) async fn measure_start(bench: &mut Bench, site: Site) -> anyhow::Result<Site> {
    bench.say("starting the service again and again");
    let directory = site.service.directory.clone();
    let mut service = site.service;
    let mut times = Vec::new();
    for _ in 0..STARTS {
        service.stop().await?;
        service = Service::start(&bench.programs, &directory).await?;
        times.push(service.started_in.as_secs_f64() * 1e3);
    }
    let mut section = Section::new("Start, on data that is there", &["what", "ms"]);
    section.row(vec![
        Cell::from("from spawn to listening, PostgreSQL's start included"),
        Cell::median(&times, 0),
    ]);
    bench.report.add(section);
    Ok(Site { service, ..site })
}

pub(crate) async fn measure(bench: &mut Bench, big: &Site, small: &Site) -> anyhow::Result<()> {
    bench.say("recording what the service asks PostgreSQL");
    let mut connection = database::connect(&big.service).await?;
    let mut routes = routes(&mut connection, big.agent_tasks).await?;
    let pgbench = Pgbench::new(&bench.programs, &big.service, bench.home.path());
    let mut recorder = Recorder::start(&bench.programs, &big.service, &mut connection).await?;
    for route in &mut routes {
        let request = route.probe(&big.service).await?;
        if route.random_pages.is_none() {
            route.scripts = recorder.record(&request).await.context(route.name)?.into();
        }
    }
    recorder.stop(&mut connection).await?;
    // Not before the server has ceased to write statements down.
    for route in &mut routes {
        route.script = fastest(&pgbench, &route.scripts).await.context(route.name)?;
    }

    let mut small_routes = small_routes(small.agent_tasks);
    for route in &mut small_routes {
        route.probe(&small.service).await?;
    }
    let before = process::memory(big.service.pid)?;
    for round in 1..=bench.options.rounds {
        bench.say(&format!("reads, round {round} of {}", bench.options.rounds));
        for route in &mut routes {
            measure_route(bench, route, &big.service, Some(&pgbench)).await?;
            // Right after what it is compared with.
            if let Some(small_route) = small_routes.iter_mut().find(|other| other.name == route.name) {
                measure_route(bench, small_route, &small.service, None).await?;
            }
        }
    }
    let after = process::memory(big.service.pid)?;

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
            "Lists, {} tasks of the agent, {CONNECTIONS} connections; times in ms, CPU a request in us",
            big.agent_tasks
        ),
        &columns,
    );
    for route in &routes {
        section.row(route.cells());
    }
    bench.report.add(section);
    let mut section =
        Section::new(format!("The same where the agent has {} tasks", small.agent_tasks), &columns);
    for route in &small_routes {
        section.row(route.cells());
    }
    bench.report.add(section);
    judge(bench, &routes, &small_routes);

    walk(bench, big).await?;
    measure_sizes(bench, &mut connection).await?;
    let mut section = Section::new("Memory of the service, MiB", &["when", "now", "most"]);
    for (when, memory) in [("before the reads", before), ("after the reads", after)] {
        let (now, most) = (Cell::Number(memory.resident, 1), Cell::Number(memory.peak, 1));
        section.row(vec![Cell::from(when), now, most]);
    }
    bench.report.add(section);
    Ok(())
}

/// The script that runs fastest. A plan for all values may be better or worse than one for these, and the floor shall be
/// the best that PostgreSQL can do.
async fn fastest(pgbench: &Pgbench, scripts: &[Script]) -> anyhow::Result<Option<Script>> {
    let mut best: Option<(f64, &Script)> = None;
    for script in scripts {
        let floor = pgbench.run(script, DATABASE_CONNECTIONS, Duration::from_secs(1)).await?;
        if best.is_none_or(|(rate, _)| floor.rate > rate) {
            best = Some((floor.rate, script));
        }
    }
    Ok(best.map(|(_, script)| script.clone()))
}

/// One round of a route: the service busy, PostgreSQL alone, the service with one request at a time.
async fn measure_route(
    bench: &Bench,
    route: &mut Route,
    service: &Service,
    pgbench: Option<&Pgbench>,
) -> anyhow::Result<()> {
    let duration = bench.duration();
    route.load(service, CONNECTIONS, WARM_UP).await.context(route.name)?;
    let before = process::cpu(service);
    let busy = route.load(service, CONNECTIONS, duration).await?;
    let cpu = process::cpu(service) - before;
    let (floor, floor_cpu) = match pgbench.zip(route.script.as_ref()) {
        Some((pgbench, script)) => {
            let before = process::cpu(service);
            let floor = pgbench.run(script, DATABASE_CONNECTIONS, duration).await.context(route.name)?;
            let cpu = process::cpu(service) - before;
            (Some(floor.rate), Some(cpu.postgres / floor.transactions))
        }
        None => (None, None),
    };
    let alone = route.load(service, 1, duration).await?;
    route.rounds.push(Round { busy, alone, floor, cpu, floor_cpu });
    Ok(())
}

/// What lists are asked for.
async fn routes(connection: &mut PgConnection, agent_tasks: i64) -> anyhow::Result<Vec<Route>> {
    let user = value(
        connection,
        "SELECT user_id FROM tasks WHERE agent_id = $1 AND user_id LIKE 'user-%' AND user_id <> 'user-0' LIMIT 1",
    )
    .await?;
    let parent = value(
        connection,
        "SELECT parent_task_id FROM tasks WHERE agent_id = $1 AND parent_task_id IS NOT NULL LIMIT 1",
    )
    .await?;
    let triggering = value(
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
    let last_of_user = last_page(database::number(connection, statement, &[BIG_AGENT, BUSY_USER]).await?);
    let statement = "SELECT count(*) FROM tasks WHERE created_at >= $1::date AND created_at < $1::date + 29";
    let last_of_days = last_page(database::number(connection, statement, &["2025-06-01"]).await?);
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
        of_agent("user, busy, middle page", &format!("?user_id={BUSY_USER}&page={}", last_of_user / 2 + 1)),
        of_agent("user, busy, last page", &format!("?user_id={BUSY_USER}&page={last_of_user}")),
        of_agent("user, ordinary", &format!("?user_id={user}")),
        of_agent("parent", &format!("?parent_task_id={parent}")),
        of_agent("triggering agent", &format!("?triggering_agent_id={triggering}")),
        of_agent("internal status", "?internal_status=planning"),
        of_agent("status, user", &format!("?status=completed&user_id={BUSY_USER}")),
        of_agent("status, internal status", "?status=completed&internal_status=planning"),
        of_agent("user, internal status", &format!("?user_id={BUSY_USER}&internal_status=planning")),
        of_all("all agents", ""),
        of_all("all agents, agent_id", &format!("?agent_id={BIG_AGENT}")),
        of_all("all agents, status", "?status=completed"),
        of_all("all agents, whole days", "?from_date=2025-06-01&to_date=2025-06-30"),
        of_all(
            "all agents, whole days, middle page",
            &format!("?from_date=2025-06-01&to_date=2025-06-30&page={}", last_of_days / 2 + 1),
        ),
        of_all("all agents, odd times", "?from_date=2025-06-03T07:11:13Z&to_date=2025-06-20T19:23:47Z"),
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
    (tasks + PAGE - 1) / PAGE
}

/// A value of the big agent's tasks to filter by.
async fn value(connection: &mut PgConnection, statement: &'static str) -> anyhow::Result<String> {
    let value = database::text(connection, statement, &[BIG_AGENT]).await?;
    value.with_context(|| format!("no task has what this looks for: {statement}"))
}

fn judge(bench: &mut Bench, routes: &[Route], small_routes: &[Route]) {
    let of = |routes: &[Route], name: &str, round: usize| {
        let route = routes.iter().find(|route| route.name == name);
        route.map_or(f64::NAN, |route| route.rounds[round].alone.percentile(50.0))
    };
    let rounds = 0..bench.options.rounds as usize;
    // Each round against itself; the median of what they say.
    let against_first =
        |name: &str| median(rounds.clone().map(|round| of(routes, name, round) / of(routes, FIRST, round)));
    let depth = against_first(LAST).max(against_first(RANDOM));
    let status = against_first(COMMON).max(against_first(RARE));
    let size = median(rounds.clone().map(|round| of(routes, FIRST, round) / of(small_routes, FIRST, round)));
    if let Some(first) = routes.iter().find(|route| route.name == FIRST) {
        bench.report.measured(
            "page-rate",
            first.median(|round| round.floor.map_or(f64::NAN, |floor| round.busy.rate() / floor)),
        );
        bench.report.measured("page-cpu", first.median(|round| round.cpu.service / round.cpu.postgres));
    }
    bench.report.measured("size", size);
    bench.report.measured("depth", depth);
    bench.report.measured("status", status);
}

/// Goes through all pages of the big agent, and looks at some on the way.
async fn walk(bench: &mut Bench, big: &Site) -> anyhow::Result<()> {
    bench.say("walking through all pages");
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
    // The first way through warms what it passes.
    let times: Vec<f64> = times.iter().map(|times| median(times[1..].iter().copied())).collect();
    let mut section =
        Section::new("Walking through all pages of the agent, ms a page", &["page", "number", "p50"]);
    for (name, at) in [("first", 0), ("a quarter", 12), ("half", 24), ("three quarters", 37), ("last", 49)] {
        section.row(vec![Cell::from(name), Cell::of_count(pages[at]), Cell::Number(times[at], 2)]);
    }
    bench.report.add(section);
    bench.report.measured("walk", times[times.len() - 1] / times[0]);
    Ok(())
}

/// What a task takes on the disk.
async fn measure_sizes(bench: &mut Bench, connection: &mut PgConnection) -> anyhow::Result<()> {
    let tasks = database::number(connection, "SELECT count(*) FROM tasks", &[]).await?;
    let mut section = Section::new("On the disk", &["what", "MiB", "bytes a task"]);
    #[expect(clippy::cast_precision_loss, reason = "sizes of databases")]
    for relation in database::relations(connection).await? {
        let bytes = relation.bytes as f64;
        let name = Cell::Text(relation.name);
        section.row(vec![
            name,
            Cell::Number(bytes / f64::from(1 << 20), 1),
            Cell::Number(bytes / tasks as f64, 1),
        ]);
    }
    bench.report.add(section);
    Ok(())
}
