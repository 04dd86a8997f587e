//! API keys: creation, listing, revocation, authentication.

use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use quick_cache::sync::Cache;
use uuid::Uuid;

use super::organizations::ensure_organization;
use super::pool::Transaction;
use super::{Store, StoreError};
use crate::domain::{ApiKeySecret, KeyDigest, OrganizationId, Principal, uuid_v7};

/// Resolution of `last_used_at`. Updating it at each request would turn every read into a write.
const LAST_USED_RESOLUTION: TimeDelta = TimeDelta::minutes(1);

/// Most valid keys in the cache, and most others.
const MAX_CACHED_KEYS: usize = 10_000;

/// The keys that were looked up less than `ttl` ago.
///
/// Looking a key up for each request would cost as much as the request itself. A key that another
/// process revokes may keep working for up to `ttl`, and one that it creates may be refused.
pub(super) struct KeyCache {
    valid: Cache<KeyDigest, CachedKey>,
    /// The keys that were not valid, and when they were looked up.
    invalid: Cache<KeyDigest, Instant>,
    ttl: Duration,
}

#[derive(Clone)]
struct CachedKey {
    principal: Principal,
    expires_at: Option<DateTime<Utc>>,
    read_at: Instant,
}

impl KeyCache {
    pub(super) fn new(ttl: Duration) -> Self {
        Self { valid: Cache::new(MAX_CACHED_KEYS), invalid: Cache::new(MAX_CACHED_KEYS), ttl }
    }

    fn get(&self, digest: &KeyDigest, now: DateTime<Utc>) -> Option<Principal> {
        let key = self.valid.get(digest)?;
        let is_current =
            key.read_at.elapsed() < self.ttl && key.expires_at.is_none_or(|at| at > now);
        is_current.then_some(key.principal)
    }

    fn is_invalid(&self, digest: &KeyDigest) -> bool {
        self.invalid.get(digest).is_some_and(|read_at| read_at.elapsed() < self.ttl)
    }

    /// Keys were created.
    pub(super) fn forget_invalid(&self) {
        self.invalid.clear();
    }

    /// Keys were revoked.
    pub(super) fn forget_valid(&self) {
        self.valid.clear();
    }
}

/// An API key as listed.
#[derive(Debug, Clone)]
pub struct ApiKey {
    /// The id that revokes it.
    pub id: Uuid,
    /// Name of its organization.
    pub organization: String,
    /// Its purpose, as described by its creator.
    pub name: String,
    /// Its first characters.
    pub prefix: String,
    /// Whether it may record and report.
    pub can_write: bool,
    /// When it was created.
    pub created_at: DateTime<Utc>,
    /// When it expires. `None` means never.
    pub expires_at: Option<DateTime<Utc>>,
    /// When it was revoked.
    pub revoked_at: Option<DateTime<Utc>>,
    /// When it was last used, to the minute.
    pub last_used_at: Option<DateTime<Utc>>,
}

/// A key to create.
#[derive(Debug, Clone)]
pub struct NewApiKey {
    /// Name of the organization. It is created if it does not exist.
    pub organization: String,
    /// What the key is for.
    pub name: String,
    /// Whether it may record and report.
    pub can_write: bool,
    /// When it expires. `None` means never.
    pub expires_at: Option<DateTime<Utc>>,
}

/// A key that was just created.
#[derive(Debug)]
pub struct CreatedApiKey {
    /// The id that revokes it.
    pub id: Uuid,
    /// The key itself, which cannot be read again.
    pub secret: ApiKeySecret,
    /// Whether its organization was created with it.
    pub organization_is_new: bool,
}

/// What revoking a key found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyRevocation {
    /// The key is refused from now on.
    Revoked,
    /// The key had been revoked before.
    AlreadyRevoked,
    /// The organization has no such key.
    Unknown,
}

impl Store {
    /// The owner of a key, or `None` if the key is unknown, revoked or expired.
    ///
    /// This is the only way to an [`OrganizationId`] for a request, and the only statement of a
    /// request that cannot name one. The answer is cached for a moment.
    pub async fn authenticate(
        &self,
        digest: KeyDigest,
        now: DateTime<Utc>,
    ) -> Result<Option<Principal>, StoreError> {
        if let Some(principal) = self.keys.get(&digest, now) {
            return Ok(Some(principal));
        }
        if self.keys.is_invalid(&digest) {
            return Ok(None);
        }
        let read_at = Instant::now();
        let key = sqlx::query!(
            r#"
            SELECT organization_id AS "organization_id: OrganizationId", id, can_write, expires_at,
                   last_used_at
            FROM api_keys
            WHERE digest = $1
              AND revoked_at IS NULL
              AND (expires_at IS NULL OR expires_at > $2)
            "#,
            digest.as_bytes(),
            now
        )
        .fetch_optional(self.pool.shared())
        .await?;
        let Some(key) = key else {
            self.keys.valid.remove(&digest);
            self.keys.invalid.insert(digest, read_at);
            return Ok(None);
        };
        if key.last_used_at.is_none_or(|last| now - last >= LAST_USED_RESOLUTION) {
            self.update_last_used(key.organization_id, key.id, now).await;
        }
        let principal = Principal {
            organization_id: key.organization_id,
            key_id: key.id,
            can_write: key.can_write,
        };
        let cached = CachedKey { principal, expires_at: key.expires_at, read_at };
        self.keys.valid.insert(digest, cached);
        Ok(Some(principal))
    }

    /// Whether this process knows a key: it was valid when it was last looked up, or it was looked
    /// up a moment ago.
    pub fn remembers_key(&self, digest: &KeyDigest) -> bool {
        self.keys.valid.peek(digest).is_some() || self.keys.is_invalid(digest)
    }

    /// Best effort: a read-only server must still authenticate.
    async fn update_last_used(&self, organization: OrganizationId, id: Uuid, now: DateTime<Utc>) {
        let updated = sqlx::query!(
            r#"
            UPDATE api_keys
            SET last_used_at = $3
            WHERE organization_id = $1 AND id = $2 AND (last_used_at IS NULL OR last_used_at <= $4)
            "#,
            organization as OrganizationId,
            id,
            now,
            now - LAST_USED_RESOLUTION
        )
        .execute(self.pool.shared())
        .await;
        if let Err(error) = updated {
            tracing::warn!(%error, "failed to update last_used_at");
        }
    }

    /// Creates a key.
    pub async fn create_api_key(
        &self,
        new: &NewApiKey,
        now: DateTime<Utc>,
    ) -> Result<CreatedApiKey, StoreError> {
        let mut transaction = self.pool.shared().begin().await?;
        let (organization, organization_is_new) =
            ensure_organization(&mut transaction, &new.organization, now).await?;
        let secret = ApiKeySecret::generate();
        let id = insert_api_key(&mut transaction, organization, new, &secret, now)
            .await?
            .expect("a new random key differs from every other");
        transaction.commit().await?;
        self.keys.forget_invalid();
        Ok(CreatedApiKey { id, secret, organization_is_new })
    }

    /// All keys, by organization and age.
    pub async fn list_api_keys(&self) -> Result<Vec<ApiKey>, StoreError> {
        let keys = sqlx::query_as!(
            ApiKey,
            r#"
            SELECT key.id, organization.name AS organization, key.name, key.prefix, key.can_write,
                   key.created_at, key.expires_at, key.revoked_at, key.last_used_at
            FROM api_keys key
            JOIN organizations organization ON organization.id = key.organization_id
            ORDER BY organization.name, key.created_at, key.id
            "#
        )
        .fetch_all(self.pool.shared())
        .await?;
        Ok(keys)
    }

    /// Revokes a key of the named organization. This process refuses it from the next request on,
    /// others once their cache has expired.
    pub async fn revoke_api_key(
        &self,
        organization: &str,
        id: Uuid,
        now: DateTime<Utc>,
    ) -> Result<KeyRevocation, StoreError> {
        let revoked_at = sqlx::query_scalar!(
            r#"
            UPDATE api_keys key
            SET revoked_at = COALESCE(key.revoked_at, $3)
            FROM organizations organization
            WHERE key.organization_id = organization.id AND organization.name = $1 AND key.id = $2
            RETURNING key.revoked_at AS "revoked_at!"
            "#,
            organization,
            id,
            now
        )
        .fetch_optional(self.pool.shared())
        .await?;
        Ok(match revoked_at {
            None => KeyRevocation::Unknown,
            Some(at) if at == now => {
                self.keys.forget_valid();
                KeyRevocation::Revoked
            }
            Some(_) => KeyRevocation::AlreadyRevoked,
        })
    }
}

/// Stores a key unless it is stored. Returns its id if it was not.
pub(super) async fn insert_api_key(
    connection: &mut Transaction,
    organization: OrganizationId,
    new: &NewApiKey,
    secret: &ApiKeySecret,
    now: DateTime<Utc>,
) -> Result<Option<Uuid>, StoreError> {
    let digest = KeyDigest::of(secret.expose().as_bytes());
    let id = sqlx::query_scalar!(
        r#"
        INSERT INTO api_keys (
            organization_id, id, name, prefix, digest, can_write, created_at, expires_at
        )
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
        ON CONFLICT (digest) DO NOTHING
        RETURNING id
        "#,
        organization as OrganizationId,
        uuid_v7(now),
        &new.name,
        secret.prefix(),
        digest.as_bytes(),
        new.can_write,
        now,
        new.expires_at
    )
    .fetch_optional(connection)
    .await?;
    Ok(id)
}
