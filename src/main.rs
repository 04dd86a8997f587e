//! The `task-history` program.

use std::process::ExitCode;

/// A request is some two hundred small allocations, and the system's allocator is slow at them. Version 2 (a feature, see
/// `Cargo.toml`), since version 3 keeps half as much again of what is no longer used.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    task_history::cli::run()
}
