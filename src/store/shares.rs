//! What each organization may take of something that all of them use.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::domain::OrganizationId;

/// How many shares of idle organizations are kept before they are dropped.
const MAX_IDLE: usize = 1024;

/// The share of each organization, for example a semaphore. Cheap to clone.
pub struct Shares<T>(Arc<Inner<T>>);

struct Inner<T> {
    new_share: Box<dyn Fn() -> T + Send + Sync>,
    shares: Mutex<HashMap<OrganizationId, Weak<T>>>,
}

impl<T> Shares<T> {
    /// Shares that begin as `new_share` makes them.
    pub fn new(new_share: impl Fn() -> T + Send + Sync + 'static) -> Self {
        Self(Arc::new(Inner { new_share: Box::new(new_share), shares: Mutex::default() }))
    }

    /// The share of an organization. It is the same as long as somebody holds it.
    pub fn of(&self, organization: OrganizationId) -> Arc<T> {
        // No code panics while it holds the lock.
        let mut shares = self.0.shares.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(share) = shares.get(&organization).and_then(Weak::upgrade) {
            return share;
        }
        if shares.len() >= MAX_IDLE {
            shares.retain(|_, share| share.strong_count() > 0);
        }
        let share = Arc::new((self.0.new_share)());
        shares.insert(organization, Arc::downgrade(&share));
        share
    }
}

impl<T> Clone for Shares<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}
