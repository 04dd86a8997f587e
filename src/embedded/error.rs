//! The errors of the embedded PostgreSQL server.

use std::io;
use std::path::{Path, PathBuf};

/// Why the server could not be started. Most messages tell the user what to do next.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    /// Another service uses the directory.
    #[error("another task-history uses {0}; stop it, or choose another directory with --data-dir")]
    InUse(PathBuf),
    /// The search found no server binaries. The value is the major version of the cluster, if any.
    #[error("{}", missing_binaries_message(.0))]
    NoBinaries(Option<u32>),
    /// The given directory has no server binaries.
    #[error(
        "there are no programs `postgres` and `initdb` in {0}; without --postgres-bin-dir, \
         task-history searches the usual directories for them"
    )]
    NoBinariesHere(PathBuf),
    /// The binaries have another major version than the cluster.
    #[error(
        "the database in {directory} was made by PostgreSQL {cluster}, but the binaries in {found} \
         are of version {binaries}; install PostgreSQL {cluster}, or move the data with pg_upgrade"
    )]
    OtherMajor {
        /// The data directory.
        directory: PathBuf,
        /// The cluster's major version.
        cluster: u32,
        /// The directory of the binaries.
        found: PathBuf,
        /// The major version of the binaries.
        binaries: u32,
    },
    /// The user that runs the server cannot enter the directory.
    #[error(
        "PostgreSQL does not run as root, and the user {user} that runs it cannot enter {blocked}; \
         with --data-dir, choose a directory that every user can enter, for example \
         /var/lib/task-history"
    )]
    Unreachable {
        /// The user that runs the server.
        user: String,
        /// The directory, or the ancestor of it, that the user cannot enter.
        blocked: PathBuf,
    },
    /// No user can run the server.
    #[error(
        "PostgreSQL needs a user that has a name and is not root: {0}; run task-history as an \
         ordinary user, or set DATABASE_URL to use a server that already runs"
    )]
    NoUser(String),
    /// A file or directory cannot be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file or directory.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// A program could not be run, or it failed.
    #[error("{program} failed: {detail}")]
    Program {
        /// The program.
        program: &'static str,
        /// The output of the program.
        detail: String,
    },
    /// The server of a killed service still runs and does not stop.
    #[error(
        "process {0} is a PostgreSQL server that uses {1} and does not stop; end it with \
         `kill {0}`, then start again"
    )]
    Orphan(i32, PathBuf),
}

/// Converts an I/O error on `path` to an [`EmbeddedError`].
pub(super) fn io_error_at(path: &Path) -> impl FnOnce(io::Error) -> EmbeddedError + '_ {
    move |source| EmbeddedError::File { path: path.to_owned(), source }
}

fn missing_binaries_message(cluster_major: &Option<u32>) -> String {
    let version = cluster_major.map_or_else(String::new, |major| format!(" {major}"));
    format!(
        "found no PostgreSQL{version} server on this machine. Install one:\n  \
         Debian, Ubuntu   apt-get install postgresql\n  \
         Fedora           dnf install postgresql-server\n  \
         Alpine           apk add postgresql\n  \
         macOS            brew install postgresql@17\n\
         or use a server that already runs:\n  \
         DATABASE_URL=postgres://user:password@host/database task-history\n\
         or run everything in containers, from a checkout of the project:\n  \
         docker compose up\n\
         If the binaries are in an unusual directory, set --postgres-bin-dir."
    )
}
