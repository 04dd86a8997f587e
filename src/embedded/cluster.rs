//! The data directory and its database cluster: creation, the file lock, and `initdb`.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::binaries::Binaries;
use super::error::{EmbeddedError, io_error_at};
use super::files;
use super::process::{self, POLL_INTERVAL};
use super::trust::{Resolved, Trust};
use super::user::RunAs;

/// How long a start waits for the lock. A service that was just killed may still hold it.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// Maximum length of the path of the data directory, in bytes. PostgreSQL cuts paths off at 1023
/// bytes, and the names of its files below the directory take up to a hundred.
const MAX_PATH_BYTES: usize = 900;

/// Name of the database superuser, which is the only database user.
pub(super) const SUPERUSER: &str = "postgres";

/// Creates the data directory if it is missing. Returns its canonical path and the user that runs
/// the server.
pub(super) fn prepare_directory(
    directory: &Path,
    trust: &Trust,
) -> Result<(PathBuf, RunAs), EmbeddedError> {
    let Resolved { existing: mut path, missing } = trust.resolve(directory)?;
    let complete = path.join(missing.iter().collect::<PathBuf>());
    check_name(&complete)?;
    let data = complete.join("data");
    check_link(&data, trust)?;
    let run_as = RunAs::choose(&data)?;
    if let Some((last, ancestors)) = missing.split_last() {
        for name in ancestors {
            path.push(name);
            files::create_directory(&path, 0o755, None)?;
        }
        path.push(last);
        run_as.create_data_directory(&path)?;
        // Another process may have made one of them meanwhile.
        trust.resolve(&path)?;
    }
    trust.check_private(&path)?;
    Ok((path, run_as))
}

/// Checks that the programs of PostgreSQL can use the path.
fn check_name(path: &Path) -> Result<(), EmbeddedError> {
    let bytes = path.as_os_str().as_bytes();
    // initdb refuses line breaks, and `postmaster.pid` has a path on a line.
    let reason = if bytes.iter().any(u8::is_ascii_control) {
        "the path has a line break or another control character"
    } else if bytes.len() > MAX_PATH_BYTES {
        "the path is too long"
    } else {
        return Ok(());
    };
    Err(EmbeddedError::UnusableName(path.to_owned(), reason))
}

/// The cluster may be on another disk, behind a link of a trusted user.
fn check_link(data: &Path, trust: &Trust) -> Result<(), EmbeddedError> {
    match fs::symlink_metadata(data) {
        Ok(metadata) if metadata.is_symlink() => trust.check_owner(data, &metadata),
        _ => Ok(()),
    }
}

/// Locks the data directory. The lock is held until the returned file is closed.
pub(super) async fn lock(directory: &Path, trust: &Trust) -> Result<File, EmbeddedError> {
    let path = directory.join("lock");
    // Only the owner has access, because every user that can open a file can lock it.
    let file = files::open_private(&path, trust)?;
    let started = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if started.elapsed() < LOCK_TIMEOUT => {
                tokio::time::sleep(POLL_INTERVAL).await;
            }
            Err(TryLockError::WouldBlock) => {
                return Err(EmbeddedError::InUse(directory.to_owned()));
            }
            Err(TryLockError::Error(error)) => return Err(io_error_at(&path)(error)),
        }
    }
}

/// The major version of the PostgreSQL that created the cluster. `None` if there is no cluster.
pub(super) fn cluster_major(data: &Path) -> Result<Option<u32>, EmbeddedError> {
    let path = data.join("PG_VERSION");
    match files::read_small(&path) {
        Ok(bytes) => {
            let version =
                std::str::from_utf8(&bytes).ok().and_then(|text| text.trim().parse().ok());
            // The content is not shown: it may come from another file.
            let no_version = || io::Error::new(io::ErrorKind::InvalidData, "it has no version");
            version.map(Some).ok_or_else(|| io_error_at(&path)(no_version()))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io_error_at(&path)(error)),
    }
}

/// Creates the cluster under a temporary name and renames it when it is complete. If the start is
/// killed before that, it leaves nothing that looks like a cluster.
pub(super) async fn create_cluster(
    directory: &Path,
    data: &Path,
    binaries: &Binaries,
    run_as: &RunAs,
    durable: bool,
) -> Result<(), EmbeddedError> {
    tracing::info!(
        directory = %directory.display(),
        version = binaries.major,
        "creating a database cluster"
    );
    remove_unfinished(directory)?;
    // The name is unique. The initdb of a killed start may still run and write to its own
    // directory.
    let unfinished = directory.join(format!("data.new.{}", uuid::Uuid::new_v4()));
    run_as.create_directory(&unfinished)?;
    let mut initdb = process::command(&binaries.initdb, directory, run_as.switch_to());
    initdb.arg("--pgdata").arg(&unfinished);
    initdb.args(["--username", SUPERUSER, "--encoding", "UTF8", "--locale", "C"]);
    initdb.args(["--data-checksums", "--auth-local", "trust", "--auth-host", "reject"]);
    if !durable {
        initdb.arg("--no-sync");
    }
    let output = initdb.output().await.map_err(io_error_at(&binaries.initdb))?;
    if !output.status.success() {
        let detail = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(EmbeddedError::Program { program: "initdb", detail });
    }
    fs::rename(&unfinished, data).map_err(io_error_at(data))?;
    // An initdb that was still running has ended by now, and may have written once more.
    remove_unfinished(directory)?;
    // The new name must be on disk before the service acknowledges any data below it.
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(io_error_at(directory))
}

/// Removes what starts have left that were killed while they made the cluster.
fn remove_unfinished(directory: &Path) -> Result<(), EmbeddedError> {
    for entry in fs::read_dir(directory).map_err(io_error_at(directory))?.flatten() {
        if entry.file_name().to_string_lossy().starts_with("data.new.") {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    Ok(())
}
