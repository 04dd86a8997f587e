//! The commands of the README, run in a shell.

use crate::support::program::{DataDirectory, KEY, run, text};

/// A command of a `console` block, and its output.
struct Step {
    command: String,
    printed: String,
}

/// The steps of all `console` blocks, in order.
fn steps(readme: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    for block in readme.split("```console\n").skip(1) {
        let block = block.split("```").next().expect("a block ends");
        for line in block.lines() {
            match line.strip_prefix("$ ") {
                Some(command) => {
                    steps.push(Step { command: command.to_owned(), printed: String::new() });
                }
                None => steps.last_mut().expect("a command comes first").printed += line,
            }
        }
    }
    steps
}

/// Whether a text matches the shown one, in which `…` matches any text.
fn is_as_shown(text: &str, shown: &str) -> bool {
    let mut parts: Vec<_> = shown.split('…').collect();
    let last = parts.pop().expect("one at least");
    if parts.is_empty() {
        return text == shown;
    }
    let (first, middle) = parts.split_first().expect("not empty");
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    for part in middle {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_session_prints_what_it_says() {
    let readme = include_str!("../../../README.md");
    let steps = steps(readme);
    assert!(steps.len() >= 8, "the README has {} steps", steps.len());
    let setup =
        readme.lines().find(|line| line.starts_with("api() {")).expect("the README defines `api`");

    let directory = DataDirectory::new();
    let service = directory.serve().await;
    for step in &steps {
        let script = format!(
            "KEY={KEY}\n{}\n{}",
            setup.replace("http://127.0.0.1:8080", &service.base),
            step.command
        );
        let mut shell = tokio::process::Command::new("bash");
        shell.args(["-ec", &script]);
        let output = run(shell).await;
        assert!(output.status.success(), "{}: {}", step.command, text(&output.stderr));
        let printed = text(&output.stdout).trim_end();
        assert!(
            is_as_shown(printed, &step.printed),
            "{}\nprints {printed}\nnot    {}",
            step.command,
            step.printed
        );
    }
    service.stop().await;
}
