//! Files and directories that the service shares with the server's user. Symbolic links and special
//! files are never followed: the server's user could make them.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::Path;

use nix::libc;
use nix::unistd::{Gid, Uid};

use super::error::{EmbeddedError, io_error_at};
use super::trust::{Trust, user_name};

/// Maximum size of a small file of the server. Its longest line is a path.
const MAX_SMALL_FILE_BYTES: u64 = 16 << 10;

/// Opens a file for appending, and creates it if it is missing. Only its owner can access it.
pub(super) fn open_private(path: &Path, trust: &Trust) -> Result<File, EmbeddedError> {
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        // Without O_NONBLOCK, opening a named pipe waits for its reader.
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
        .map_err(|error| open_error(path, error))?;
    let metadata = file.metadata().map_err(io_error_at(path))?;
    if !metadata.is_file() {
        return Err(EmbeddedError::NotOrdinary(path.to_owned()));
    }
    trust.check_owner(path, &metadata)?;
    if metadata.permissions().mode() & 0o777 != 0o600 {
        file.set_permissions(Permissions::from_mode(0o600)).map_err(io_error_at(path))?;
    }
    Ok(file)
}

/// Reads a small file of the server.
pub(super) fn read_small(path: &Path) -> io::Result<Vec<u8>> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is not an ordinary file"));
    }
    let mut bytes = Vec::new();
    file.take(MAX_SMALL_FILE_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Creates a directory with this mode, whatever the umask is, and gives it to a group. An existing
/// one is left as it is.
pub(super) fn create_directory(
    path: &Path,
    mode: u32,
    group: Option<Gid>,
) -> Result<(), EmbeddedError> {
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => own_directory(path, mode, None, group),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(io_error_at(path)(error)),
    }
}

/// Creates a directory that only this user can access, or accepts an existing one of this user.
/// `group` is given if the user is not the user of this process.
pub(super) fn create_or_accept_directory(
    path: &Path,
    user: Uid,
    group: Option<Gid>,
) -> Result<(), EmbeddedError> {
    let new_owner = group.map(|_| user);
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => return own_directory(path, 0o700, new_owner, group),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(io_error_at(path)(error)),
    }
    let metadata = fs::symlink_metadata(path).map_err(io_error_at(path))?;
    if !metadata.is_dir() {
        return Err(EmbeddedError::NotOrdinary(path.to_owned()));
    }
    if metadata.uid() == user.as_raw() {
        return own_directory(path, 0o700, None, None);
    }
    // A start that was killed may have left it: new, and not yet given to the user.
    let is_own = metadata.uid() == Uid::effective().as_raw();
    let is_empty = fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none());
    if is_own && is_empty {
        return own_directory(path, 0o700, new_owner, group);
    }
    Err(EmbeddedError::NotOfServer {
        path: path.to_owned(),
        owner: user_name(metadata.uid()),
        user: user_name(user.as_raw()),
    })
}

/// Changes a directory through a handle, so that the name cannot lead to something else meanwhile.
fn own_directory(
    path: &Path,
    mode: u32,
    user: Option<Uid>,
    group: Option<Gid>,
) -> Result<(), EmbeddedError> {
    let directory = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_DIRECTORY)
        .open(path)
        .map_err(|error| open_error(path, error))?;
    if user.is_some() || group.is_some() {
        fchown(&directory, user.map(Uid::as_raw), group.map(Gid::as_raw))
            .map_err(io_error_at(path))?;
    }
    directory.set_permissions(Permissions::from_mode(mode)).map_err(io_error_at(path))
}

pub(super) fn remove_if_exists(path: &Path) -> Result<(), EmbeddedError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error_at(path)(error)),
        _ => Ok(()),
    }
}

/// The operating system names symbolic links and named pipes in several ways.
fn open_error(path: &Path, error: io::Error) -> EmbeddedError {
    match error.raw_os_error() {
        Some(libc::ELOOP | libc::ENOTDIR | libc::ENXIO | libc::EISDIR) => {
            EmbeddedError::NotOrdinary(path.to_owned())
        }
        _ => io_error_at(path)(error),
    }
}
