//! The load harness, `cargo bench`: it compares the service with its own PostgreSQL, on the same
//! machine in the same minutes. `docs/performance.md` explains the report.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the report goes to standard output, progress to standard error"
)]

mod copy;
mod data;
mod data_set;
mod database;
mod events;
mod http;
mod imports;
mod pgbench;
mod pressure;
mod process;
mod reads;
mod report;
mod service;
mod statistics;
mod writes;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::{Parser, ValueEnum};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use data_set::{DataSet, WorkDirectory};
use report::Report;
use service::Programs;

/// Measure the service under load, and compare it with its own PostgreSQL
#[derive(Debug, Parser)]
struct BenchOptions {
    /// Tasks of the big data set; one agent has a third of them
    #[arg(
        long,
        default_value_t = 1_000_000,
        value_name = "NUMBER",
        value_parser = clap::value_parser!(u64).range(1000..),
    )]
    tasks: u64,
    /// Tasks of the small data set
    #[arg(
        long,
        default_value_t = 10_000,
        value_name = "NUMBER",
        value_parser = clap::value_parser!(u64).range(300..),
    )]
    small: u64,
    /// Use a big data set of ten million tasks
    #[arg(long, conflicts_with = "tasks")]
    large: bool,
    /// Rounds of all measurements; the report has their medians
    #[arg(
        long,
        default_value_t = 5,
        value_name = "NUMBER",
        value_parser = clap::value_parser!(u32).range(1..),
    )]
    rounds: u32,
    /// Seconds that each measurement takes
    #[arg(
        long,
        default_value_t = 2,
        value_name = "NUMBER",
        value_parser = clap::value_parser!(u64).range(1..),
    )]
    seconds: u64,
    /// Records of each import
    #[arg(
        long,
        default_value_t = 100_000,
        value_name = "NUMBER",
        value_parser = clap::value_parser!(u64).range(1..),
    )]
    records: u64,
    /// Seed of the random data and requests
    #[arg(long, default_value_t = 1, value_name = "NUMBER")]
    seed: u64,
    /// Directory for the data sets, which are kept for later runs [default: a temporary directory]
    #[arg(long, value_name = "DIRECTORY")]
    data_dir: Option<PathBuf>,
    /// Run one part of the measurements only
    #[arg(long, value_name = "PART")]
    only: Option<Part>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Ignored: cargo passes it to all benchmarks
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    Reads,
    Writes,
    Pressure,
    Import,
}

/// The state that all parts share.
struct Bench {
    options: BenchOptions,
    programs: Programs,
    work_directory: WorkDirectory,
    report: Report,
    started: Instant,
}

impl Bench {
    /// The duration of each measurement.
    fn duration(&self) -> Duration {
        Duration::from_secs(self.options.seconds)
    }

    fn includes(&self, part: Part) -> bool {
        self.options.only.is_none_or(|only| only == part)
    }

    /// Prints progress: the step that begins now.
    fn log(&self, step: &str) {
        eprintln!("{:7.1} s  {step}", self.started.elapsed().as_secs_f64());
    }
}

fn main() -> ExitCode {
    let options = BenchOptions::parse();
    let as_json = options.json;
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::FAILURE;
        }
    };
    let outcome = prepare(options).and_then(|mut bench| {
        // The services end with `run`, even if it is canceled. The directory is closed after that.
        let is_complete = runtime.block_on(async {
            let mut terminate = signal(SignalKind::terminate())?;
            tokio::select! {
                outcome = run(&mut bench) => outcome.map(|()| true),
                _ = tokio::signal::ctrl_c() => Ok(false),
                _ = terminate.recv() => Ok(false),
            }
        });
        bench.work_directory.close();
        is_complete.map(|is_complete| is_complete.then_some(bench.report))
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

fn prepare(mut options: BenchOptions) -> anyhow::Result<Bench> {
    if options.large {
        options.tasks = 10_000_000;
    }
    let work_directory = WorkDirectory::open(options.data_dir.as_deref())?;
    let programs = Programs::find(work_directory.path())?;
    let (report, started) = (Report::default(), Instant::now());
    Ok(Bench { options, programs, work_directory, report, started })
}

async fn run(bench: &mut Bench) -> anyhow::Result<()> {
    let BenchOptions { tasks, small, rounds, seconds, seed, .. } = bench.options;
    let big = DataSet::open(bench, "big", tasks).await?;
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let mut connection = database::connect(&big.service).await?;
    let statement = "SELECT current_setting('server_version')";
    let version = database::text(&mut connection, statement, &[]).await?;
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

    let big = if bench.includes(Part::Reads) {
        let big = reads::measure_start(bench, big).await?;
        let small = DataSet::open(bench, "small", small).await?;
        reads::measure(bench, &big, &small).await?;
        small.service.stop().await?;
        big
    } else {
        big
    };
    if bench.includes(Part::Writes) {
        writes::measure(bench, &big).await?;
        events::measure(bench, &big).await?;
    }
    let memory = big.service.memory()?;
    if bench.options.only.is_none_or(|only| matches!(only, Part::Reads | Part::Writes)) {
        bench.report.set_measured("memory", memory.peak);
    }
    if bench.includes(Part::Pressure) {
        pressure::measure(bench, &big).await?;
    }
    if bench.includes(Part::Import) {
        imports::measure(bench, &big).await?;
    }
    if bench.work_directory.is_kept() {
        bench.log("removing the tasks that this run wrote");
        big.remove_written_tasks().await?;
    }
    bench.log("stopping");
    big.service.stop().await
}
