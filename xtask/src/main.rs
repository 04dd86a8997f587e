//! The development tasks of this repository. `cargo xtask` lists them.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "results go to stdout, progress and errors to stderr"
)]

mod environment;

use std::env;
use std::ffi::OsString;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail, ensure};

use environment::{command, root};

/// How long fetching the advisory database may take. Not every machine can reach it.
const ADVISORIES_TIMEOUT: Duration = Duration::from_secs(20);

/// Version of the spell checker, a Python package that contains its binary.
const TYPOS_VERSION: &str = "1.52.0";

/// Version of the dependency checker, a crate.
const CARGO_DENY_VERSION: &str = "0.20.2";

/// What `cargo xtask NAME` runs.
struct Recipe {
    name: &'static str,
    /// Its arguments as the list shows them; empty if it takes none.
    arguments: &'static str,
    explanation: &'static str,
    run: fn(&[OsString]) -> anyhow::Result<()>,
}

const RECIPES: &[Recipe] = &[
    Recipe {
        name: "ci",
        arguments: "",
        explanation: "Run every check of CI (.ci/run)",
        run: |_| run(&mut command(".ci/run")),
    },
    Recipe {
        name: "lint",
        arguments: "",
        explanation: "Check format, clippy lints and spelling",
        run: |_| lint(),
    },
    Recipe {
        name: "test",
        arguments: "[ARGUMENT]...",
        explanation: "Run the tests; the arguments go to cargo test, for example list::",
        run: |arguments| run(cargo().arg("test").args(arguments)),
    },
    Recipe {
        name: "update",
        arguments: "",
        explanation: "Rewrite all generated files: .sqlx, docs/openapi.json and the schema",
        run: |_| update(),
    },
    Recipe {
        name: "prepare",
        arguments: "",
        explanation: "Rewrite .sqlx, after a change to a query!() statement or a migration",
        run: |_| prepare(),
    },
    Recipe {
        name: "bench-quick",
        arguments: "",
        explanation: "Run the load benchmark on a small data set, one short round",
        run: |_| run(cargo().args("bench -- --tasks 60000 --rounds 1 --seconds 1".split(' '))),
    },
    Recipe {
        name: "bench",
        arguments: "[OPTION]...",
        explanation: "Run the load benchmark; --help explains its options",
        run: |arguments| run(cargo().args(["bench", "--"]).args(arguments)),
    },
    Recipe {
        name: "fuzz",
        arguments: "",
        explanation: "Fuzz the release build with both OpenAPI documents",
        run: |_| fuzz(),
    },
    Recipe {
        name: "sdk",
        arguments: "",
        explanation: "Run the official Python SDK against the release build",
        run: |_| {
            build_release()?;
            run(&mut command("tests/sdk/run"))
        },
    },
    Recipe {
        name: "deny",
        arguments: "",
        explanation: "Check licenses, sources and advisories of all dependencies",
        run: |_| deny(),
    },
    Recipe {
        name: "typos",
        arguments: "",
        explanation: "Check the spelling",
        run: |_| run(&mut command(install_typos()?)),
    },
];

fn main() -> ExitCode {
    let arguments: Vec<OsString> = env::args_os().skip(1).collect();
    match run_recipe(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run_recipe(arguments: &[OsString]) -> anyhow::Result<()> {
    let Some((name, arguments)) = arguments.split_first() else {
        list_recipes();
        return Ok(());
    };
    if ["help", "-h", "--help"].iter().any(|help| name == help) {
        list_recipes();
        return Ok(());
    }
    let recipe = RECIPES.iter().find(|recipe| name == recipe.name).ok_or_else(|| {
        anyhow!("there is no recipe `{}`; `cargo xtask` lists all", name.display())
    })?;
    ensure!(
        arguments.is_empty() || !recipe.arguments.is_empty(),
        "`cargo xtask {}` takes no arguments",
        recipe.name
    );
    (recipe.run)(arguments)
}

fn list_recipes() {
    let usages: Vec<String> = RECIPES
        .iter()
        .map(|recipe| format!("{} {}", recipe.name, recipe.arguments).trim_end().to_owned())
        .collect();
    let width = usages.iter().map(String::len).max().unwrap_or_default();
    println!("Usage: cargo xtask RECIPE\n\nRecipes:");
    for (usage, recipe) in usages.iter().zip(RECIPES) {
        println!("  {usage:width$}  {}", recipe.explanation);
    }
}

/// The cargo that runs this program.
fn cargo() -> Command {
    command(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Runs the command and fails unless it succeeds.
fn run(command: &mut Command) -> anyhow::Result<()> {
    let text = describe(command);
    eprintln!("$ {text}");
    let status = command.status().with_context(|| format!("cannot run `{text}`"))?;
    ensure!(status.success(), "`{text}` failed ({status})");
    Ok(())
}

fn describe(command: &Command) -> String {
    let program = PathBuf::from(command.get_program());
    let mut words = vec![match program.strip_prefix(root()) {
        Ok(path) => path.display().to_string(),
        Err(_) => program.file_name().unwrap_or(program.as_os_str()).display().to_string(),
    }];
    words.extend(command.get_args().map(|argument| argument.display().to_string()));
    words.join(" ")
}

fn build_release() -> anyhow::Result<()> {
    run(cargo().args(["build", "--release", "--locked"]))
}

fn lint() -> anyhow::Result<()> {
    run(cargo().args(["fmt", "--all", "--check"]))
        .context("the format differs; run `cargo fmt --all`")?;
    run(cargo()
        .args(["clippy", "--locked", "--workspace", "--all-targets", "--all-features"])
        .args(["--", "-D", "warnings"]))?;
    if let Some(typos) = find_typos() {
        run(&mut command(typos))
    } else {
        println!(
            "The spelling was not checked: `cargo xtask typos` installs the checker and runs it."
        );
        Ok(())
    }
}

fn update() -> anyhow::Result<()> {
    // First, because the tests do not compile while .sqlx is out of date.
    prepare()?;
    run(cargo().args(["test", "--test", "it", "--", "openapi", "schema"]).env("UPDATE", "1"))
}

fn prepare() -> anyhow::Result<()> {
    let arguments = ["--package", "xtask", "--features", "prepare", "--bin", "prepare"];
    run(cargo().args(["run", "--quiet", "--locked"]).args(arguments))
}

fn fuzz() -> anyhow::Result<()> {
    build_release()?;
    run(&mut command("tests/contract/fuzz"))?;
    // The script explains these options.
    run(command("tests/contract/fuzz")
        .args(["target/release/task-history", "docs/openapi.json"])
        .args(["--exclude-checks", "negative_data_rejection", "--generation-allow-x00", "false"])
        .env("MAX_EXAMPLES", "60"))
}

/// Where the recipes install the programs that they need.
fn tools() -> PathBuf {
    root().join("target/tools")
}

fn has_version(program: &PathBuf, version: &str) -> bool {
    let output = command(program).arg("--version").output();
    output.is_ok_and(|output| {
        String::from_utf8_lossy(&output.stdout).split_whitespace().last() == Some(version)
    })
}

/// The installed spell checker of the right version, if there is one.
fn find_typos() -> Option<PathBuf> {
    let candidates = [tools().join("typos/bin/typos"), PathBuf::from("typos")];
    candidates.into_iter().find(|program| has_version(program, TYPOS_VERSION))
}

/// The spell checker. Installs it below target/ unless it is installed: 5 s and 20 MB.
fn install_typos() -> anyhow::Result<PathBuf> {
    if let Some(typos) = find_typos() {
        return Ok(typos);
    }
    let directory = tools().join("typos");
    run(command("python3").args(["-m", "venv", "--clear"]).arg(&directory)).context(
        "the spell checker needs python3 with venv; on Debian run `apt-get install python3-venv`",
    )?;
    run(command(directory.join("bin/python"))
        .args("-m pip install --quiet --disable-pip-version-check --no-input --no-deps".split(' '))
        .arg(format!("typos=={TYPOS_VERSION}")))?;
    find_typos().with_context(|| format!("{} does not contain typos", directory.display()))
}

/// The dependency checker. Builds it below target/ unless it is installed: 1 minute on 2 processors.
fn install_cargo_deny() -> anyhow::Result<PathBuf> {
    let candidates = [tools().join("bin/cargo-deny"), PathBuf::from("cargo-deny")];
    if let Some(found) = candidates.iter().find(|program| has_version(program, CARGO_DENY_VERSION))
    {
        return Ok(found.clone());
    }
    // The debug build takes a third of the time, and the check is as fast as the release build's.
    let arguments =
        ["install", "cargo-deny", "--version", CARGO_DENY_VERSION, "--locked", "--debug"];
    run(cargo().args(arguments).arg("--quiet").arg("--root").arg(tools()))?;
    let [installed, _] = candidates;
    Ok(installed)
}

fn deny() -> anyhow::Result<()> {
    let program = install_cargo_deny()?;
    let cargo_deny = || {
        let mut cargo_deny = command(&program);
        cargo_deny.args(["--workspace", "--locked"]);
        cargo_deny
    };
    run(cargo_deny().args(["check", "licenses", "bans", "sources"]))?;
    match fetch_advisories(cargo_deny().args(["fetch", "db"])) {
        Ok(()) => run(cargo_deny().args(["check", "--disable-fetch", "advisories"])),
        Err(error) => {
            println!("Advisories were not checked: cannot fetch their database: {error:#}");
            Ok(())
        }
    }
}

/// Runs the command that fetches the advisory database. Fails if it takes too long.
fn fetch_advisories(command: &mut Command) -> anyhow::Result<()> {
    // git, which it runs, belongs to the same process group and stops with it.
    let mut child = command.stderr(Stdio::piped()).process_group(0).spawn()?;
    let started = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if started.elapsed() > ADVISORIES_TIMEOUT {
            let group = format!("-{}", child.id());
            Command::new("kill").args(["-TERM", "--", &group]).status()?;
            child.wait()?;
            bail!("no answer within {} s", ADVISORIES_TIMEOUT.as_secs());
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    if status.success() {
        return Ok(());
    }
    let mut messages = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        stderr.read_to_string(&mut messages)?;
    }
    bail!("{}", messages.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("no reason given"))
}
