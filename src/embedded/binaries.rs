//! The search for the programs of PostgreSQL.

use std::fs;
use std::path::{Path, PathBuf};

use super::error::EmbeddedError;
use super::process;

/// The programs of one PostgreSQL installation.
#[derive(Debug)]
pub(super) struct Binaries {
    pub(super) directory: PathBuf,
    pub(super) postgres: PathBuf,
    pub(super) initdb: PathBuf,
    pub(super) major: u32,
}

impl Binaries {
    /// The installation to use: the one in the given directory; without one, an installation of the
    /// cluster's major version; without that, the newest.
    pub(super) fn find(
        given: Option<&Path>,
        cluster_major: Option<u32>,
    ) -> Result<Self, EmbeddedError> {
        if let Some(directory) = given {
            return Self::in_directory(directory)
                .ok_or_else(|| EmbeddedError::NoBinariesHere(directory.to_owned()));
        }
        let mut found: Vec<_> =
            candidates().iter().filter_map(|directory| Self::in_directory(directory)).collect();
        // The sort is stable: among installations of one version the first candidate wins, and the
        // directories on PATH come first.
        found.sort_by_key(|binaries| {
            (Some(binaries.major) != cluster_major, std::cmp::Reverse(binaries.major))
        });
        found.into_iter().next().ok_or(EmbeddedError::NoBinaries(cluster_major))
    }

    fn in_directory(directory: &Path) -> Option<Self> {
        // PATH may contain a link. The programs that postgres itself runs are in the real
        // directory.
        let postgres = fs::canonicalize(directory.join("postgres")).ok()?;
        let directory = postgres.parent()?.to_owned();
        let initdb = directory.join("initdb");
        if !initdb.exists() {
            return None;
        }
        let output = process::in_clean_environment(&postgres).arg("--version").output().ok()?;
        let major = parse_major(&String::from_utf8_lossy(&output.stdout))?;
        Some(Self { directory, postgres, initdb, major })
    }
}

/// The major version in `postgres (PostgreSQL) 15.8 (Debian 15.8-0+deb12u1)`.
fn parse_major(version: &str) -> Option<u32> {
    let number = version.split(") ").nth(1)?;
    let digits = number.find(|c: char| !c.is_ascii_digit()).map_or(number, |end| &number[..end]);
    digits.parse().ok()
}

/// Directories that may contain the programs: first those on PATH, then the installation
/// directories of Linux distributions and macOS.
fn candidates() -> Vec<PathBuf> {
    #[expect(clippy::disallowed_methods, reason = "PATH is not a setting of the service")]
    let path = std::env::var("PATH").unwrap_or_default();
    let mut directories: Vec<PathBuf> = std::env::split_paths(&path).collect();
    for (parent, prefix, bin) in [
        ("/usr/lib/postgresql", "", "bin"),         // Debian, Ubuntu
        ("/usr", "pgsql-", "bin"), // Fedora, Red Hat: packages of the PostgreSQL project
        ("/usr/libexec", "postgresql", ""), // Alpine
        ("/opt/homebrew/opt", "postgresql", "bin"), // macOS on Apple silicon
        ("/usr/local/opt", "postgresql", "bin"), // macOS on Intel
        ("/Applications/Postgres.app/Contents/Versions", "", "bin"),
    ] {
        for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(prefix) {
                directories.push(entry.path().join(bin));
            }
        }
    }
    directories
}

#[cfg(test)]
mod tests {
    use super::parse_major;

    #[test]
    fn versions_of_distributions_and_betas() {
        assert_eq!(parse_major("postgres (PostgreSQL) 15.8 (Debian 15.8-0+deb12u1)\n"), Some(15));
        assert_eq!(parse_major("postgres (PostgreSQL) 17beta1\n"), Some(17));
        assert_eq!(parse_major("postgres (PostgreSQL) 18.0\n"), Some(18));
        assert_eq!(parse_major("something else"), None);
    }
}
