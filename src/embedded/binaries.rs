//! Where PostgreSQL's programs are.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::EmbeddedError;

/// The programs of one installation.
#[derive(Debug)]
pub(super) struct Binaries {
    pub(super) directory: PathBuf,
    pub(super) postgres: PathBuf,
    pub(super) initdb: PathBuf,
    pub(super) major: u32,
}

impl Binaries {
    /// The installation to use: the given one; else the one of the cluster's major version; else the newest.
    pub(super) fn find(given: Option<&Path>, cluster_major: Option<u32>) -> Result<Self, EmbeddedError> {
        if let Some(directory) = given {
            return Self::in_directory(directory)
                .ok_or_else(|| EmbeddedError::NoBinariesHere(directory.to_owned()));
        }
        let mut found: Vec<_> =
            candidates().iter().filter_map(|directory| Self::in_directory(directory)).collect();
        // Stable, so that of one version the first place wins, which is PATH.
        found.sort_by_key(|binaries| {
            (Some(binaries.major) != cluster_major, std::cmp::Reverse(binaries.major))
        });
        found.into_iter().next().ok_or(EmbeddedError::NoBinaries(cluster_major))
    }

    fn in_directory(directory: &Path) -> Option<Self> {
        // A link on PATH leads to the real directory, where the programs that postgres itself looks for are.
        let postgres = fs::canonicalize(directory.join("postgres")).ok()?;
        let directory = postgres.parent()?.to_owned();
        let initdb = directory.join("initdb");
        if !initdb.exists() {
            return None;
        }
        let output = Command::new(&postgres).arg("--version").output().ok()?;
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

/// Directories that may hold the programs: those on PATH, then where distributions and macOS put them.
fn candidates() -> Vec<PathBuf> {
    #[expect(clippy::disallowed_methods, reason = "PATH is no setting of ours, it is where programs are")]
    let path = std::env::var("PATH").unwrap_or_default();
    let mut directories: Vec<PathBuf> = std::env::split_paths(&path).collect();
    for (parent, prefix, bin) in [
        ("/usr/lib/postgresql", "", "bin"),         // Debian, Ubuntu
        ("/usr", "pgsql-", "bin"),                  // Fedora and Red Hat, from the PostgreSQL project
        ("/usr/libexec", "postgresql", ""),         // Alpine
        ("/opt/homebrew/opt", "postgresql", "bin"), // macOS on Apple silicon
        ("/usr/local/opt", "postgresql", "bin"),    // macOS on Intel
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

/// What to tell a person whose machine has no binaries.
pub(super) fn missing_message(cluster_major: &Option<u32>) -> String {
    let version = cluster_major.map_or_else(String::new, |major| format!(" {major}"));
    format!(
        "found no PostgreSQL{version} server on this machine. Install one:\n  \
         Debian, Ubuntu   apt-get install postgresql\n  \
         Fedora           dnf install postgresql-server\n  \
         Alpine           apk add postgresql\n  \
         macOS            brew install postgresql@17\n\
         or use one that runs already:\n  \
         DATABASE_URL=postgres://user:password@host/database task-history\n\
         or run everything in containers, from a checkout of the project:\n  \
         docker compose up\n\
         Binaries in an unusual place are found with --postgres-bin-dir."
    )
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
