//! The limit on open files.

use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};

/// Raises the soft limit on open files to the hard limit, and returns the limit that holds then.
///
/// The usual soft limit of 1,024 is for programs that use `select`. Each connection is an open file
/// here.
pub fn raise_open_files_limit() -> usize {
    let (soft, hard) = match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok(limits) => limits,
        Err(error) => {
            tracing::warn!(%error, "failed to read the limit on open files");
            return 1024;
        }
    };
    let raised = if soft < hard { setrlimit(Resource::RLIMIT_NOFILE, hard, hard) } else { Ok(()) };
    match raised {
        Ok(()) => {
            tracing::info!(open_files = hard, before = soft, "limit on open files");
            as_usize(hard)
        }
        Err(error) => {
            tracing::warn!(%error, open_files = soft, "failed to raise the limit on open files");
            as_usize(soft)
        }
    }
}

fn as_usize(limit: rlim_t) -> usize {
    usize::try_from(limit).unwrap_or(usize::MAX)
}
