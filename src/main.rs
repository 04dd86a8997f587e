//! The `task-history` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    task_history::cli::run()
}
