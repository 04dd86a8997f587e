//! The operating system user that runs the server, and its access to the data directory.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::Path;

use nix::unistd::{Gid, Uid, User};

use super::error::{EmbeddedError, io_error_at};

/// The user that runs the server.
pub(super) struct RunAs {
    name: String,
    uid: Uid,
    gid: Gid,
    /// Whether this user is not the user of the current process.
    switch: bool,
}

impl RunAs {
    /// The user for a cluster. If the service runs as root: the owner of the cluster, or `postgres`
    /// or `nobody` for a new cluster. Otherwise: the user of the service.
    pub(super) fn choose(data: &Path) -> Result<Self, EmbeddedError> {
        let uid = Uid::effective();
        let lookup = |result: nix::Result<Option<User>>| result.ok().flatten();
        if !uid.is_root() {
            let user = lookup(User::from_uid(uid)).ok_or_else(|| {
                EmbeddedError::NoUser(format!("the user id {uid} has no name on this machine"))
            })?;
            return Ok(Self { name: user.name, uid, gid: user.gid, switch: false });
        }
        let owner = fs::metadata(data)
            .ok()
            .and_then(|data| lookup(User::from_uid(Uid::from_raw(data.uid()))));
        let user = owner.or_else(|| {
            ["postgres", "nobody"].into_iter().find_map(|name| lookup(User::from_name(name)))
        });
        let user = user.filter(|user| !user.uid.is_root()).ok_or_else(|| {
            EmbeddedError::NoUser(
                "this machine has neither a user `postgres` nor a user `nobody`".to_owned(),
            )
        })?;
        Ok(Self { name: user.name, uid: user.uid, gid: user.gid, switch: true })
    }

    /// The user and group to switch to before running a program. `None` if no switch is needed.
    pub(super) fn switch_to(&self) -> Option<(Uid, Gid)> {
        self.switch.then_some((self.uid, self.gid))
    }

    /// Checks that the user can enter the directory and all its ancestors. Without this check, the
    /// server would only report that its data is missing.
    pub(super) fn check_reaches(&self, directory: &Path) -> Result<(), EmbeddedError> {
        if !self.switch {
            return Ok(());
        }
        for ancestor in directory.ancestors() {
            let metadata = fs::metadata(ancestor).map_err(io_error_at(ancestor))?;
            let needed = if metadata.uid() == self.uid.as_raw() {
                0o100
            } else if metadata.gid() == self.gid.as_raw() {
                0o010
            } else {
                0o001
            };
            if metadata.permissions().mode() & needed == 0 {
                return Err(EmbeddedError::Unreachable {
                    user: self.name.clone(),
                    blocked: ancestor.to_owned(),
                });
            }
        }
        Ok(())
    }

    /// Creates a directory that only the server's user can access. It may exist already.
    pub(super) fn create_directory(&self, path: &Path) -> Result<(), EmbeddedError> {
        match DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            result => result.map_err(io_error_at(path))?,
        }
        self.own(path)
    }

    fn own(&self, path: &Path) -> Result<(), EmbeddedError> {
        if self.switch {
            std::os::unix::fs::chown(path, Some(self.uid.as_raw()), Some(self.gid.as_raw()))
                .map_err(io_error_at(path))?;
        }
        Ok(())
    }
}
