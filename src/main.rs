//! The `task-history` program.

use std::process::ExitCode;

/// A request is some two hundred small allocations, and the system's allocator is slow at them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    task_history::cli::run()
}
