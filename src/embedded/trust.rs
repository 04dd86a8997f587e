//! Which directories can be trusted: those that no other user can replace or write to.
//!
//! A data directory that another user controls is dangerous, above all if root runs the service.
//! That user could put symbolic links there, or exchange the data.

use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use nix::libc;
use nix::unistd::{Gid, Uid, User};

use super::error::{EmbeddedError, io_error_at};

/// Maximum number of symbolic links in a path, as in Linux.
const MAX_LINKS: usize = 40;

const STICKY: u32 = 0o1000;
const GROUP_WRITES: u32 = 0o020;
const OTHERS_WRITE: u32 = 0o002;

/// The users and groups that may own, or write to, the directories above the data.
#[derive(Debug, Clone)]
pub(super) struct Trust {
    users: Vec<u32>,
    groups: Vec<u32>,
}

/// A path without symbolic links.
pub(super) struct Resolved {
    /// The longest part of the path that exists.
    pub(super) existing: PathBuf,
    /// The names below it, which do not exist.
    pub(super) missing: Vec<OsString>,
}

impl Trust {
    /// Root, the user of this process, and the user `postgres` if this process runs as root. The
    /// groups are those of this process.
    pub(super) fn of_this_process() -> Self {
        let user = Uid::effective();
        let mut users = vec![0, user.as_raw()];
        if user.is_root()
            && let Some(server) = server_user()
        {
            users.push(server.uid.as_raw());
        }
        let mut groups = vec![0, Gid::effective().as_raw()];
        #[cfg(not(target_vendor = "apple"))]
        groups.extend(nix::unistd::getgroups().into_iter().flatten().map(Gid::as_raw));
        Self { users, groups }
    }

    /// Follows a path from the root directory on. Every directory and every symbolic link on the
    /// way must be trusted.
    pub(super) fn resolve(&self, path: &Path) -> Result<Resolved, EmbeddedError> {
        let absolute = std::path::absolute(path).map_err(io_error_at(path))?;
        let mut existing = PathBuf::from("/");
        let mut pending = Vec::new();
        push_names(&mut pending, &absolute);
        let mut links = 0;
        while let Some(name) = pending.pop() {
            if name == ".." {
                existing.pop();
                continue;
            }
            let next = existing.join(&name);
            let metadata = match fs::symlink_metadata(&next) {
                Ok(metadata) => metadata,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    pending.push(name);
                    pending.reverse();
                    return Ok(Resolved { existing, missing: pending });
                }
                Err(error) => return Err(io_error_at(&next)(error)),
            };
            self.check_owner(&next, &metadata)?;
            if metadata.is_symlink() {
                links += 1;
                if links > MAX_LINKS {
                    let error = io::Error::from_raw_os_error(libc::ELOOP);
                    return Err(io_error_at(&next)(error));
                }
                let target = fs::read_link(&next).map_err(io_error_at(&next))?;
                if target.is_absolute() {
                    existing = PathBuf::from("/");
                }
                push_names(&mut pending, &target);
            } else if metadata.is_dir() {
                // In a sticky directory such as /tmp, others cannot replace what they do not own.
                if metadata.mode() & STICKY == 0 {
                    self.check_writers(&next, &metadata)?;
                }
                existing = next;
            } else {
                return Err(EmbeddedError::NotOrdinary(next));
            }
        }
        Ok(Resolved { existing, missing: pending })
    }

    /// Checks that no other user can create a file in this directory.
    pub(super) fn check_private(&self, directory: &Path) -> Result<(), EmbeddedError> {
        let metadata = fs::symlink_metadata(directory).map_err(io_error_at(directory))?;
        self.check_writers(directory, &metadata)
    }

    pub(super) fn check_owner(
        &self,
        path: &Path,
        metadata: &Metadata,
    ) -> Result<(), EmbeddedError> {
        if self.users.contains(&metadata.uid()) {
            return Ok(());
        }
        Err(EmbeddedError::OtherOwner { path: path.to_owned(), owner: user_name(metadata.uid()) })
    }

    fn check_writers(&self, path: &Path, metadata: &Metadata) -> Result<(), EmbeddedError> {
        let mode = metadata.mode();
        let by_group = mode & GROUP_WRITES != 0 && !self.groups.contains(&metadata.gid());
        if by_group || mode & OTHERS_WRITE != 0 {
            return Err(EmbeddedError::WritableByOthers(path.to_owned()));
        }
        Ok(())
    }
}

/// Pushes the names of a path, the first one last.
fn push_names(pending: &mut Vec<OsString>, path: &Path) {
    let names = path.components().rev().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::CurDir | Component::RootDir | Component::Prefix(_) => None,
    });
    pending.extend(names);
}

/// The user that runs the server for root, if this machine has it. A user that other programs share
/// (`nobody`) would give all of them access to the data.
pub(super) fn server_user() -> Option<User> {
    User::from_name("postgres").ok().flatten().filter(|user| !user.uid.is_root())
}

/// The name of a user, or the number if it has none.
pub(super) fn user_name(uid: u32) -> String {
    let user = User::from_uid(Uid::from_raw(uid)).ok().flatten();
    user.map_or_else(|| uid.to_string(), |user| user.name)
}
