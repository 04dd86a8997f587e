//! The directory of the server's socket.

use std::fs;
use std::path::{Path, PathBuf};

use super::error::EmbeddedError;
use super::files;
use super::trust::Trust;
use super::user::RunAs;

/// Maximum length of the path of a socket directory, in bytes. A socket path has at most 107 bytes
/// (103 on macOS). The name of the socket's lock file, which is longer than the socket's, must fit.
const MAX_PATH_BYTES: usize = 103 - "/.s.PGSQL.5432.lock".len();

/// Prefix of the names of socket directories outside the data directory.
const SHORT_PREFIX: &str = "task-history-";

/// The files that a server makes in the directory.
const SOCKET_FILES: [&str; 2] = [".s.PGSQL.5432", ".s.PGSQL.5432.lock"];

/// The directory of the socket. It is `run` in the data directory if a client can use that path,
/// and otherwise a new directory with a short path.
#[derive(Debug)]
pub(super) struct SocketDirectory {
    path: PathBuf,
    is_short: bool,
}

impl SocketDirectory {
    /// Chooses the path. [`SocketDirectory::create`] makes the directory.
    pub(super) fn choose(
        directory: &Path,
        run_as: &RunAs,
        trust: &Trust,
    ) -> Result<Self, EmbeddedError> {
        let usual = directory.join("run");
        if is_usable(&usual) {
            return Ok(Self { path: usual, is_short: false });
        }
        let name = format!("{SHORT_PREFIX}{}", uuid::Uuid::new_v4());
        let mut parents = short_parents(trust);
        parents.retain(|parent| is_usable(&parent.join(&name)));
        let parent = parents.into_iter().find(|parent| run_as.check_reaches(parent).is_ok());
        let parent = parent.ok_or(EmbeddedError::NoSocketDirectory(usual))?;
        Ok(Self { path: parent.join(name), is_short: true })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Creates the directory, which may exist already.
    pub(super) fn create(&self, run_as: &RunAs) -> Result<(), EmbeddedError> {
        run_as.create_directory(&self.path)
    }

    /// Removes the directory if it is outside the data directory.
    pub(super) fn remove(&self) {
        if self.is_short {
            remove_directory(&self.path);
        }
    }
}

/// Removes a short directory that a killed server has left. The path comes from a file of the
/// server's user: only what this module has made for that user is removed.
pub(super) fn remove_left(path: &Path, run_as: &RunAs, trust: &Trust) {
    let is_ours = path
        .file_name()
        .and_then(|name| name.to_str()?.strip_prefix(SHORT_PREFIX))
        .is_some_and(|id| uuid::Uuid::try_parse(id).is_ok());
    let is_in_place = path
        .parent()
        .is_some_and(|parent| short_parents(trust).iter().any(|short| short == parent));
    let is_of_server =
        fs::symlink_metadata(path).is_ok_and(|found| found.is_dir() && run_as.owns(&found));
    if is_ours && is_in_place && is_of_server {
        remove_directory(path);
    }
}

/// Removes the files of a server, and the directory if nothing else is in it.
fn remove_directory(path: &Path) {
    for name in SOCKET_FILES {
        let _ = files::remove_if_exists(&path.join(name));
    }
    let _ = fs::remove_dir(path);
}

/// The directories for short directories. Other users can write to them, but cannot replace what
/// they do not own.
fn short_parents(trust: &Trust) -> Vec<PathBuf> {
    let candidates = [std::env::temp_dir(), PathBuf::from("/tmp")];
    let resolved = candidates.iter().filter_map(|path| trust.resolve(path).ok());
    resolved.filter(|path| path.missing.is_empty()).map(|path| path.existing).collect()
}

/// PostgreSQL and its clients separate directories by commas. A URL has only UTF-8.
fn is_usable(path: &Path) -> bool {
    path.as_os_str().len() <= MAX_PATH_BYTES
        && path.to_str().is_some_and(|path| !path.contains(','))
}
