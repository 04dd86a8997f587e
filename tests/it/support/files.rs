//! Waiting for files.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::TIMEOUT;

/// Waits until a directory has an entry whose name starts like this, and returns its path.
pub async fn until_created(directory: PathBuf, prefix: &'static str) -> PathBuf {
    let wait = move || {
        let events = Inotify::init(InitFlags::IN_CLOEXEC).expect("inotify");
        events.add_watch(&directory, AddWatchFlags::IN_CREATE).expect("a watch");
        let started = Instant::now();
        loop {
            // After the watch: what is created from now on is an event.
            let entries = std::fs::read_dir(&directory).expect("a directory");
            let mut paths = entries.map(|entry| entry.expect("an entry").path());
            let is_wanted = |path: &PathBuf| {
                let name = path.file_name().and_then(|name| name.to_str());
                name.is_some_and(|name| name.starts_with(prefix))
            };
            if let Some(path) = paths.find(is_wanted) {
                return path;
            }
            let remaining = TIMEOUT.saturating_sub(started.elapsed());
            let timeout = PollTimeout::try_from(remaining).expect("a short time");
            let mut descriptors = [PollFd::new(events.as_fd(), PollFlags::POLLIN)];
            let ready = poll(&mut descriptors, timeout).expect("a poll");
            assert!(ready > 0, "nothing in {} starts with {prefix}", directory.display());
            events.read_events().expect("events");
        }
    };
    tokio::task::spawn_blocking(wait).await.expect("it is created")
}
