//! The `task-history` program.

use std::process::ExitCode;

/// A request makes about two hundred small allocations, which are slow in the system's allocator.
/// Version 2 of mimalloc (a feature in `Cargo.toml`): version 3 keeps half as much again of freed
/// memory.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    task_history::cli::run()
}
