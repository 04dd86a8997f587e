//! The memory of request bodies: what all bodies in flight may have together.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::api::error::ApiError;
use crate::domain::OrganizationId;
use crate::store::Shares;

/// Most bytes of all bodies in flight.
const MAX_BYTES: u32 = 64 << 20;

/// Most JSON values of all bodies in flight. A value takes up to some 300 bytes of memory, however
/// few bytes of its body it takes.
const MAX_VALUES: u32 = 400_000;

/// What all bodies in flight may have together. An organization may have half of it, so that it
/// cannot stop the others. Cheap to clone.
#[derive(Clone)]
pub(crate) struct BodyMemory {
    all: Arc<Pool>,
    /// The half of each organization.
    shares: Shares<Pool>,
}

/// What is left of a limit.
struct Pool {
    bytes: Semaphore,
    values: Semaphore,
}

impl Pool {
    fn new(divisor: u32) -> Self {
        let semaphore = |max: u32| Semaphore::new((max / divisor) as usize);
        Self { bytes: semaphore(MAX_BYTES), values: semaphore(MAX_VALUES) }
    }
}

impl BodyMemory {
    pub(crate) fn new() -> Self {
        Self { all: Arc::new(Pool::new(1)), shares: Shares::new(|| Pool::new(2)) }
    }

    /// A claim that has nothing yet. It waits for at most `timeout`.
    pub(super) fn claim(&self, organization: OrganizationId, timeout: Duration) -> BodyClaim {
        let share = self.shares.of(organization);
        BodyClaim { all: self.all.clone(), share, timeout, bytes: 0, values: 0 }
    }
}

/// What one body has of the memory. Dropping it returns all.
pub(crate) struct BodyClaim {
    all: Arc<Pool>,
    share: Arc<Pool>,
    timeout: Duration,
    bytes: u32,
    values: u32,
}

impl BodyClaim {
    /// Claims bytes until it has as many.
    ///
    /// Only a claim that has no bytes waits for them. If a claim waited while it has some, two
    /// bodies could wait for each other.
    pub(super) async fn cover_bytes(&mut self, bytes: usize) -> Result<(), ApiError> {
        let missing = count(bytes).saturating_sub(self.bytes);
        let pools = (&self.share.bytes, &self.all.bytes);
        if self.bytes == 0 {
            wait_for(pools, missing, self.timeout).await?;
        } else {
            take(pools, missing)?;
        }
        self.bytes += missing;
        Ok(())
    }

    /// Claims the values of the whole body, once.
    pub(super) async fn take_values(&mut self, values: usize) -> Result<(), ApiError> {
        let values = count(values);
        wait_for((&self.share.values, &self.all.values), values, self.timeout).await?;
        self.values += values;
        Ok(())
    }

    /// Returns all.
    pub(super) fn release(&mut self) {
        for pool in [&self.share, &self.all] {
            pool.bytes.add_permits(self.bytes as usize);
            pool.values.add_permits(self.values as usize);
        }
        (self.bytes, self.values) = (0, 0);
    }
}

impl Drop for BodyClaim {
    fn drop(&mut self) {
        self.release();
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// Takes permits from a share and from all, in the order in which they were asked for.
async fn wait_for(
    (share, all): (&Semaphore, &Semaphore),
    permits: u32,
    timeout: Duration,
) -> Result<(), ApiError> {
    let both = async {
        // The share first: who waits for it has nothing that other organizations wait for.
        let share = share.acquire_many(permits).await.expect("never closed");
        all.acquire_many(permits).await.expect("never closed").forget();
        share.forget();
    };
    tokio::time::timeout(timeout, both).await.map_err(|_| no_memory())
}

/// Takes permits from a share and from all, if there are as many at once.
fn take((share, all): (&Semaphore, &Semaphore), permits: u32) -> Result<(), ApiError> {
    let share = share.try_acquire_many(permits).map_err(|_| no_memory())?;
    all.try_acquire_many(permits).map_err(|_| no_memory())?.forget();
    share.forget();
    Ok(())
}

fn no_memory() -> ApiError {
    let text = "the request bodies in flight take all the memory that bodies may have";
    ApiError::Unavailable(text.to_owned())
}
