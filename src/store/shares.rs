//! What each organization may take of something that all of them use.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::Semaphore;

use crate::domain::OrganizationId;

/// How many shares of idle organizations are kept before they are dropped.
const MAX_IDLE: usize = 1024;

/// The share of each organization. Cheap to clone.
#[derive(Clone)]
pub(super) struct Shares(Arc<Inner>);

struct Inner {
    size: usize,
    semaphores: Mutex<HashMap<OrganizationId, Weak<Semaphore>>>,
}

impl Shares {
    /// Shares of `size` permits each.
    pub(super) fn new(size: usize) -> Self {
        Self(Arc::new(Inner { size, semaphores: Mutex::default() }))
    }

    /// The permits of an organization.
    pub(super) fn of(&self, organization: OrganizationId) -> Arc<Semaphore> {
        // No code panics while it holds the lock.
        let mut semaphores = self.0.semaphores.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(semaphore) = semaphores.get(&organization).and_then(Weak::upgrade) {
            return semaphore;
        }
        if semaphores.len() >= MAX_IDLE {
            semaphores.retain(|_, semaphore| semaphore.strong_count() > 0);
        }
        let semaphore = Arc::new(Semaphore::new(self.0.size));
        semaphores.insert(organization, Arc::downgrade(&semaphore));
        semaphore
    }
}
