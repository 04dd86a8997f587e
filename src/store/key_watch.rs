//! Watching keys: what outlives its request ends with the key of the request.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;

use super::Store;
use crate::domain::{Clock, Credential, KeyDigest};

/// The keys that are watched. One task asks for each key, however many watches it has.
#[derive(Clone)]
pub(super) struct KeyWatches {
    keys: Arc<Mutex<HashMap<KeyDigest, watch::Sender<()>>>>,
    interval: Duration,
}

impl KeyWatches {
    pub(super) fn new(interval: Duration) -> Self {
        Self { keys: Arc::default(), interval }
    }
}

/// The watch on a key. Dropping it ends it.
#[derive(Debug)]
pub struct KeyWatch(watch::Receiver<()>);

impl KeyWatch {
    /// Returns when the key was revoked, or has expired.
    pub async fn ended(&mut self) {
        // The sender never sends. It is dropped with the key.
        while self.0.changed().await.is_ok() {}
    }
}

impl Store {
    /// Watches a key. If the database cannot be asked, the key counts as valid.
    pub fn watch_key(&self, credential: Credential, clock: &Clock) -> KeyWatch {
        let digest = credential.digest;
        let mut keys = self.key_watches.keys.lock().expect("no panic while it is locked");
        if let Some(sender) = keys.get(&digest) {
            return KeyWatch(sender.subscribe());
        }
        let (sender, receiver) = watch::channel(());
        keys.insert(digest, sender);
        tokio::spawn(check_key(self.clone(), digest, clock.clone()));
        KeyWatch(receiver)
    }
}

/// Asks for a key until nobody watches it, or until it is no longer valid.
async fn check_key(store: Store, digest: KeyDigest, clock: Clock) {
    loop {
        tokio::time::sleep(store.key_watches.interval).await;
        let answer = store.authenticate(digest, clock.now()).await;
        let is_refused = matches!(answer, Ok(None));
        let mut keys = store.key_watches.keys.lock().expect("no panic while it is locked");
        let is_watched = keys.get(&digest).is_some_and(|sender| sender.receiver_count() > 0);
        if is_refused || !is_watched {
            keys.remove(&digest);
            return;
        }
    }
}
