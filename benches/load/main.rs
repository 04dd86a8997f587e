//! The load harness, `cargo bench`: how the service does against the PostgreSQL it stands on, on the same machine in the
//! same minutes. `docs/performance.md` says how to read what it prints.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the report goes to the one, progress to the other"
)]

mod copy;
mod data;
mod database;
mod events;
mod http;
mod imports;
mod numbers;
mod pgbench;
mod process;
mod reads;
mod report;
mod service;
mod sites;
mod writes;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::{Parser, ValueEnum};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use report::Report;
use service::Programs;
use sites::{Home, Site};

/// Measures the service under load, against the PostgreSQL it stands on
#[derive(Debug, Parser)]
struct Options {
    /// Tasks of the big data set, of which one agent has a third
    #[arg(long, default_value_t = 1_000_000, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1000..))]
    tasks: u64,
    /// Tasks of the small data set
    #[arg(long, default_value_t = 10_000, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(300..))]
    small: u64,
    /// A big data set of ten million tasks
    #[arg(long, conflicts_with = "tasks")]
    large: bool,
    /// How often everything is measured; the median counts
    #[arg(long, default_value_t = 5, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// How long each measurement takes
    #[arg(long, default_value_t = 2, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// Records of each import
    #[arg(long, default_value_t = 100_000, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    records: u64,
    /// What the data and the requests are drawn from
    #[arg(long, default_value_t = 1, value_name = "NUMBER")]
    seed: u64,
    /// Directory for the data, which is kept and used again [default: a temporary one]
    #[arg(long, value_name = "DIRECTORY")]
    data_dir: Option<PathBuf>,
    /// Measure a part only
    #[arg(long, value_name = "PART")]
    only: Option<Part>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// What cargo says to every benchmark
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    Reads,
    Writes,
    Import,
}

/// What every part works with.
struct Bench {
    options: Options,
    programs: Programs,
    home: Home,
    report: Report,
    begun: Instant,
}

impl Bench {
    /// How long a measurement takes.
    fn duration(&self) -> Duration {
        Duration::from_secs(self.options.seconds)
    }

    fn wants(&self, part: Part) -> bool {
        self.options.only.is_none_or(|only| only == part)
    }

    /// Says what begins now.
    fn say(&self, what: &str) {
        eprintln!("{:7.1} s  {what}", self.begun.elapsed().as_secs_f64());
    }
}

fn main() -> ExitCode {
    let options = Options::parse();
    let as_json = options.json;
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::FAILURE;
        }
    };
    let outcome = prepare(options).and_then(|mut bench| {
        // However `run` ends, its services end with it; the home is left, or removed, after them.
        let ended = runtime.block_on(async {
            let mut terminate = signal(SignalKind::terminate())?;
            tokio::select! {
                outcome = run(&mut bench) => outcome.map(|()| true),
                _ = tokio::signal::ctrl_c() => Ok(false),
                _ = terminate.recv() => Ok(false),
            }
        });
        bench.home.close();
        ended.map(|is_whole| is_whole.then_some(bench.report))
    });
    match outcome {
        Ok(Some(report)) if as_json => println!("{:#}", report.to_json()),
        Ok(Some(report)) => println!("{}", report.to_text()),
        Ok(None) => return ExitCode::from(130),
        Err(error) => {
            eprintln!("error: {error:#}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn prepare(mut options: Options) -> anyhow::Result<Bench> {
    if options.large {
        options.tasks = 10_000_000;
    }
    let home = Home::open(options.data_dir.as_deref())?;
    let programs = Programs::find(home.path())?;
    Ok(Bench { options, programs, home, report: Report::default(), begun: Instant::now() })
}

async fn run(bench: &mut Bench) -> anyhow::Result<()> {
    let Options { tasks, small, rounds, seconds, seed, .. } = bench.options;
    let big = Site::open(bench, "big", tasks).await?;
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let mut connection = database::connect(&big.service).await?;
    let version = database::text(&mut connection, "SELECT current_setting('server_version')", &[]).await?;
    drop(connection);
    for (name, value) in [
        ("cores", json!(cores)),
        ("postgresql", json!(version.context("PostgreSQL has no version")?)),
        ("tasks", json!(tasks)),
        ("tasks of the big agent", json!(big.agent_tasks)),
        ("small", json!(small)),
        ("rounds", json!(rounds)),
        ("seconds", json!(seconds)),
        ("seed", json!(seed)),
    ] {
        bench.report.setting.insert(name.to_owned(), value);
    }

    let big = if bench.wants(Part::Reads) {
        let big = reads::measure_start(bench, big).await?;
        let small = Site::open(bench, "small", small).await?;
        reads::measure(bench, &big, &small).await?;
        small.service.stop().await?;
        big
    } else {
        big
    };
    if bench.wants(Part::Writes) {
        writes::measure(bench, &big).await?;
        events::measure(bench, &big).await?;
    }
    let memory = process::memory(big.service.pid)?;
    if bench.options.only != Some(Part::Import) {
        bench.report.measured("memory", memory.peak);
    }
    if bench.wants(Part::Import) {
        imports::measure(bench, &big).await?;
    }
    if bench.home.is_kept() {
        bench.say("removing what was written");
        big.remove_written().await?;
    }
    bench.say("stopping");
    big.service.stop().await
}
