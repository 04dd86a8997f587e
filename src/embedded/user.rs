//! The user that the server runs as, and what it must be able to get at.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::Path;

use nix::unistd::{Gid, Uid, User};

use super::{EmbeddedError, at};

/// The user that the server runs as.
pub(super) struct RunAs {
    pub(super) name: String,
    pub(super) uid: Uid,
    pub(super) gid: Gid,
    /// Whether that is another user than this process's.
    pub(super) switch: bool,
}

impl RunAs {
    /// The user for a cluster: under root its owner, or for a new one `postgres` or `nobody`; otherwise whoever starts it.
    pub(super) fn choose(data: &Path) -> Result<Self, EmbeddedError> {
        let uid = Uid::effective();
        let lookup = |result: nix::Result<Option<User>>| result.ok().flatten();
        if !uid.is_root() {
            let user = lookup(User::from_uid(uid)).ok_or_else(|| {
                EmbeddedError::NoUser(format!("the user id {uid} has no name on this machine"))
            })?;
            return Ok(Self { name: user.name, uid, gid: user.gid, switch: false });
        }
        let owner =
            fs::metadata(data).ok().and_then(|data| lookup(User::from_uid(Uid::from_raw(data.uid()))));
        let user = owner
            .or_else(|| ["postgres", "nobody"].into_iter().find_map(|name| lookup(User::from_name(name))));
        let user = user.filter(|user| !user.uid.is_root()).ok_or_else(|| {
            EmbeddedError::NoUser("this machine has neither a user `postgres` nor `nobody`".to_owned())
        })?;
        Ok(Self { name: user.name, uid: user.uid, gid: user.gid, switch: true })
    }

    /// Another user may be shut out by a directory above; the server would only say that its data is missing.
    pub(super) fn check_reaches(&self, directory: &Path) -> Result<(), EmbeddedError> {
        if !self.switch {
            return Ok(());
        }
        for ancestor in directory.ancestors() {
            let metadata = fs::metadata(ancestor).map_err(at(ancestor))?;
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

    /// Makes a directory that is the server's alone.
    pub(super) fn create_directory(&self, path: &Path) -> Result<(), EmbeddedError> {
        match DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            result => result.map_err(at(path))?,
        }
        self.own(path)
    }

    fn own(&self, path: &Path) -> Result<(), EmbeddedError> {
        if self.switch {
            std::os::unix::fs::chown(path, Some(self.uid.as_raw()), Some(self.gid.as_raw()))
                .map_err(at(path))?;
        }
        Ok(())
    }
}
