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
    /// Another user owns a directory or a file, and could exchange the data.
    #[error(
        "{path} belongs to the user {owner}, who could exchange the data; with --data-dir, choose \
         a directory of your own, or take this one over with `chown`"
    )]
    OtherOwner {
        /// The directory, an ancestor of it, or a file in it.
        path: PathBuf,
        /// The name of its owner.
        owner: String,
    },
    /// Other users can write to a directory.
    #[error(
        "other users can write to {0} and could exchange the data; run `chmod go-w {0}`, or choose \
         another directory with --data-dir"
    )]
    WritableByOthers(PathBuf),
    /// A directory of the server belongs to another user.
    #[error(
        "{path} belongs to the user {owner}, but PostgreSQL runs as {user}; run \
         `chown -R {user} {path}`, or choose another directory with --data-dir"
    )]
    NotOfServer {
        /// The directory.
        path: PathBuf,
        /// The name of its owner.
        owner: String,
        /// The user that runs the server.
        user: String,
    },
    /// A symbolic link or a special file is where the server needs a directory or a file.
    #[error(
        "{0} is a symbolic link or a special file, which is not used; remove it, or choose another \
         directory with --data-dir"
    )]
    NotOrdinary(PathBuf),
    /// PostgreSQL cannot use the name of the directory.
    #[error("PostgreSQL cannot use {0:?}: {1}; choose another directory with --data-dir")]
    UnusableName(PathBuf, &'static str),
    /// The path of the socket is too long or has a comma, and no other directory can be used.
    #[error(
        "{0} cannot hold a socket, because the path is too long or has a comma, and neither TMPDIR \
         nor /tmp can be used instead; choose another directory with --data-dir"
    )]
    NoSocketDirectory(PathBuf),
    /// The server ended again and again.
    #[error("PostgreSQL ended too often ({limit} restarts in {window:?}), the last time: {last}")]
    KeepsEnding {
        /// Maximum number of restarts.
        limit: usize,
        /// The time in which they are counted.
        window: std::time::Duration,
        /// How it ended, or why it could not be started.
        last: String,
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
