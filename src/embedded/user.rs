//! The operating system user that runs the server, and its access to the data directory.

use std::fs::{self, Metadata};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use nix::unistd::{Gid, Uid, User};

use super::error::{EmbeddedError, io_error_at};
use super::files;
use super::trust::server_user;

/// The user that runs the server.
#[derive(Debug)]
pub(super) struct RunAs {
    name: String,
    uid: Uid,
    gid: Gid,
    /// Whether this user is not the user of the current process.
    switch: bool,
}

impl RunAs {
    /// The user for a cluster. If the service runs as root: the owner of the cluster, or `postgres`
    /// for a new cluster. Otherwise: the user of the service.
    pub(super) fn choose(data: &Path) -> Result<Self, EmbeddedError> {
        let uid = Uid::effective();
        let named = |uid: Uid| {
            let user = User::from_uid(uid).ok().flatten();
            user.ok_or_else(|| {
                EmbeddedError::NoUser(format!("the user id {uid} has no name on this machine"))
            })
        };
        if !uid.is_root() {
            let user = named(uid)?;
            return Ok(Self { name: user.name, uid, gid: user.gid, switch: false });
        }
        let user = match fs::metadata(data) {
            Ok(data) => named(Uid::from_raw(data.uid()))?,
            Err(_) => server_user().ok_or_else(|| {
                EmbeddedError::NoUser(
                    "this machine has no user `postgres`, which `useradd --system postgres` creates"
                        .to_owned(),
                )
            })?,
        };
        if user.uid.is_root() || user.name == "nobody" {
            let data = data.display();
            return Err(EmbeddedError::NoUser(format!(
                "the database in {data} belongs to `{}`; give it to a user that no other program \
                 uses, for example with `chown -R postgres {data}`",
                user.name
            )));
        }
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

    /// Creates the data directory. Besides the user of this process, only the server's user can
    /// enter it.
    pub(super) fn create_data_directory(&self, path: &Path) -> Result<(), EmbeddedError> {
        let mode = if self.switch { 0o710 } else { 0o700 };
        files::create_directory(path, mode, self.switch.then_some(self.gid))
    }

    /// Creates a directory that only the server's user can access. It may exist already.
    pub(super) fn create_directory(&self, path: &Path) -> Result<(), EmbeddedError> {
        files::create_or_accept_directory(path, self.uid, self.switch.then_some(self.gid))
    }

    /// Whether the user owns this.
    pub(super) fn owns(&self, metadata: &Metadata) -> bool {
        metadata.uid() == self.uid.as_raw()
    }
}
