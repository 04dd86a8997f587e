//! The environment of the commands that a task runs.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The directory of the repository.
///
/// `cargo run` says it at run time. `env!` would say it at compile time, which is wrong if several
/// checkouts share a target directory: cargo does not build the program again for each.
pub(crate) fn root() -> PathBuf {
    let manifest = env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    manifest.as_deref().and_then(Path::parent).unwrap_or(Path::new(".")).to_owned()
}

/// A command that runs in the directory of the repository.
///
/// `cargo run` describes the package that it runs in environment variables. Build scripts read the
/// same variables, so a nested cargo that inherits them builds some dependencies again (ring, for
/// example), and so does the next cargo outside of `cargo xtask`.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(root());
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(name);
        }
    }
    command
}
