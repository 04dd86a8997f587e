//! The data directory and its database cluster: creation, the file lock, and `initdb`.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::binaries::Binaries;
use super::error::{EmbeddedError, io_error_at};
use super::process::{self, POLL_INTERVAL};
use super::user::RunAs;

/// How long a start waits for the lock. A service that was just killed may still hold it.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);

/// Name of the database superuser, which is the only database user.
pub(super) const SUPERUSER: &str = "postgres";

/// Creates the data directory if it is missing, and returns its canonical path.
pub(super) fn prepare_directory(directory: &Path) -> Result<PathBuf, EmbeddedError> {
    if !directory.exists() {
        DirBuilder::new().recursive(true).create(directory).map_err(io_error_at(directory))?;
        // Independent of the umask: the server may run as another user, which must be able to
        // enter.
        fs::set_permissions(directory, Permissions::from_mode(0o755))
            .map_err(io_error_at(directory))?;
    }
    fs::canonicalize(directory).map_err(io_error_at(directory))
}

/// Locks the data directory. The lock is held until the returned file is closed.
pub(super) async fn lock(directory: &Path) -> Result<File, EmbeddedError> {
    let path = directory.join("lock");
    // Only the owner has access, because every user that can open a file can lock it.
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(io_error_at(&path))?;
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
    match fs::read_to_string(&path) {
        Ok(text) => text.trim().parse().map(Some).map_err(|_| {
            io_error_at(&path)(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("`{}` is not a version", text.trim()),
            ))
        }),
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
    for entry in fs::read_dir(directory).map_err(io_error_at(directory))?.flatten() {
        if entry.file_name().to_string_lossy().starts_with("data.new.") {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
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
    // The new name must be on disk before the service acknowledges any data below it.
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(io_error_at(directory))
}
