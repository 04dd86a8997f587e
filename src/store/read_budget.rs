//! The memory of large reads.
//!
//! What a request reads depends on what clients have stored, so every read of several rows is done
//! in steps that are bounded in bytes. The first step of an answer needs no permission, so that its
//! head waits for no other reader. Every further step reserves its memory first: until a client has
//! taken what was read, it is in memory. While it is being read, it is there several times, so few
//! steps are read at the same time.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::shares::Shares;
use super::{Store, StoreError};
use crate::domain::OrganizationId;

/// Most bytes of stored texts that a step reads, unless a single row has more.
pub const STEP_BYTES: usize = 1 << 20;

/// Most bytes that all organizations hold.
const MAX_BYTES: usize = 48 << 20;

/// Most bytes that an organization holds.
const MAX_ORGANIZATION_BYTES: usize = 16 << 20;

/// Most steps of an organization that are read at the same time.
const MAX_READING: usize = 2;

/// The memory of all steps. Cheap to clone.
#[derive(Clone)]
pub(super) struct ReadBudget {
    total: Arc<Semaphore>,
    shares: Shares<Semaphore>,
    reading: Shares<Semaphore>,
    timeout: Duration,
}

/// A read under way, and its memory. It is free again when this is dropped.
///
/// The order is the same everywhere, so requests cannot deadlock: first the permission to read,
/// then memory. Who holds memory waits for its client only.
#[derive(Debug)]
pub struct Reservation {
    reading: Option<OwnedSemaphorePermit>,
    /// Of the organization, and of the total.
    memory: Option<[OwnedSemaphorePermit; 2]>,
}

impl ReadBudget {
    /// A budget whose reservations wait at most `timeout`.
    pub(super) fn new(timeout: Duration) -> Self {
        Self {
            total: Arc::new(Semaphore::new(MAX_BYTES)),
            shares: Shares::new(|| Semaphore::new(MAX_ORGANIZATION_BYTES)),
            reading: Shares::new(|| Semaphore::new(MAX_READING)),
            timeout,
        }
    }

    /// Waits until a step of so many bytes may be read. A step that is larger than the whole share
    /// gets all of it.
    pub(super) async fn reserve(
        &self,
        organization: OrganizationId,
        bytes: usize,
    ) -> Result<Reservation, StoreError> {
        let mut reservation = self.start(organization).await?;
        self.hold(organization, &mut reservation, bytes).await?;
        Ok(reservation)
    }

    async fn start(&self, organization: OrganizationId) -> Result<Reservation, StoreError> {
        let reading = self.acquire(self.reading.of(organization), 1).await?;
        Ok(Reservation { reading: Some(reading), memory: None })
    }

    async fn hold(
        &self,
        organization: OrganizationId,
        reservation: &mut Reservation,
        bytes: usize,
    ) -> Result<(), StoreError> {
        let bytes = bytes.min(MAX_ORGANIZATION_BYTES);
        let share = self.acquire(self.shares.of(organization), bytes).await?;
        let total = self.acquire(self.total.clone(), bytes).await?;
        reservation.memory = Some([share, total]);
        Ok(())
    }

    async fn acquire(
        &self,
        semaphore: Arc<Semaphore>,
        permits: usize,
    ) -> Result<OwnedSemaphorePermit, StoreError> {
        let permits = u32::try_from(permits).expect("the budget has fewer");
        let limit = self.timeout;
        match timeout(limit, semaphore.acquire_many_owned(permits)).await {
            Ok(permit) => Ok(permit.expect("the semaphore is never closed")),
            Err(_) => Err(StoreError::Unavailable(format!(
                "other large reads have taken all memory for {limit:?}"
            ))),
        }
    }
}

impl Store {
    /// Memory of a large answer that is in memory already.
    pub async fn reserve(
        &self,
        organization: OrganizationId,
        bytes: usize,
    ) -> Result<Reservation, StoreError> {
        let mut reservation = self.read_budget.reserve(organization, bytes).await?;
        reservation.end_read(bytes);
        Ok(reservation)
    }

    /// Waits until the organization may read something whose size is not known before.
    pub async fn start_read(
        &self,
        organization: OrganizationId,
    ) -> Result<Reservation, StoreError> {
        self.read_budget.start(organization).await
    }

    /// Waits until there is memory to hold what was read.
    pub async fn hold_read(
        &self,
        organization: OrganizationId,
        reservation: &mut Reservation,
        bytes: usize,
    ) -> Result<(), StoreError> {
        self.read_budget.hold(organization, reservation, bytes).await
    }
}

impl Reservation {
    /// Ends the read. From now on only so many bytes are held.
    pub fn end_read(&mut self, bytes: usize) {
        self.reading = None;
        for memory in self.memory.iter_mut().flatten() {
            let surplus = memory.num_permits().saturating_sub(bytes);
            drop(memory.split(surplus));
        }
    }
}
