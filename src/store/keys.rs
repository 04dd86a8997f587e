//! Organisations and their API keys.

use std::fmt;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use chrono::{DateTime, TimeDelta, Utc};
use sha2::{Digest, Sha256};
use sqlx::Connection;
use uuid::Uuid;

use super::{Store, StoreError};
use crate::domain::OrganizationId;

/// The organisation that the first start creates.
const DEFAULT_ORGANIZATION: &str = "default";

/// How many characters of a key are kept to recognise it by: few enough to leave a key of the shortest length secret.
const PREFIX_CHARS: usize = 6;

/// How exact `last_used_at` is. Writing it down at each request would turn every read into a write.
const LAST_USED_GRAIN: TimeDelta = TimeDelta::minutes(1);

/// How long the answer about a valid key is trusted, in each process: so long may a key still work that another process
/// has revoked. Looking it up for each request would cost as much as the request itself.
pub const KEY_TRUST: Duration = Duration::from_secs(1);

/// How many valid keys are remembered.
pub(super) const CACHED_KEYS: usize = 10_000;

/// The valid keys of the last second.
pub(super) type KeyCache = quick_cache::sync::Cache<KeyDigest, CachedKey>;

/// What is remembered of a valid key.
#[derive(Clone)]
pub(super) struct CachedKey {
    key: Authenticated,
    expires_at: Option<DateTime<Utc>>,
    read_at: Instant,
}

/// An API key in clear. It is shown once and stored nowhere; printing it for debugging shows nothing.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// Shortest key that a person may choose, in characters.
    pub const MIN_CHARS: usize = 24;

    /// Takes a key that a person chose: 24 to 256 visible ASCII characters.
    pub fn parse(text: &str) -> Result<Self, String> {
        if !text.chars().all(|c| c.is_ascii_graphic()) {
            return Err("an API key has visible ASCII characters only".to_owned());
        }
        if !(Self::MIN_CHARS..=256).contains(&text.len()) {
            return Err(format!(
                "an API key has {} to 256 characters, this one has {}; `openssl rand -hex 32` makes a good one",
                Self::MIN_CHARS,
                text.len()
            ));
        }
        Ok(Self(text.to_owned()))
    }

    /// A new key of 256 random bits.
    fn generate() -> Self {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).expect("the operating system gives random bytes");
        Self(format!("th_{}", BASE64_URL_SAFE_NO_PAD.encode(bytes)))
    }

    /// The key, to show it to its owner.
    pub fn expose(&self) -> &str {
        &self.0
    }

    fn prefix(&self) -> &str {
        &self.0[..PREFIX_CHARS]
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// What is stored of an API key: its SHA-256.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyDigest([u8; 32]);

impl KeyDigest {
    /// The digest of a key as a caller sent it.
    pub fn of(key: &[u8]) -> Self {
        Self(Sha256::digest(key).into())
    }
}

/// Whom a valid key belongs to, and what it allows. It always allows reading.
#[derive(Debug, Clone, Copy)]
pub struct Authenticated {
    /// The organisation.
    pub organization_id: OrganizationId,
    /// Whether it may record and report.
    pub can_write: bool,
}

/// An API key as listed.
#[derive(Debug, Clone)]
pub struct ApiKey {
    /// Its id, to revoke it by.
    pub id: Uuid,
    /// Name of its organisation.
    pub organization: String,
    /// What it is for, in its maker's words.
    pub name: String,
    /// How it begins.
    pub prefix: String,
    /// Whether it may record and report.
    pub can_write: bool,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// From when on it is refused.
    pub expires_at: Option<DateTime<Utc>>,
    /// When it was revoked.
    pub revoked_at: Option<DateTime<Utc>>,
    /// When it was last used, to the minute.
    pub last_used_at: Option<DateTime<Utc>>,
}

/// A key to make.
#[derive(Debug, Clone)]
pub struct NewApiKey {
    /// Name of the organisation; one that doesn't exist yet is created.
    pub organization: String,
    /// What it is for.
    pub name: String,
    /// Whether it may record and report.
    pub can_write: bool,
    /// From when on it is refused.
    pub expires_at: Option<DateTime<Utc>>,
}

/// What the first start made, or a later one found.
#[derive(Debug)]
pub enum Bootstrap {
    /// The organisation and a key for it are new. The key can't be read again.
    Created(Secret),
    /// The key that was given is now one of the organisation's.
    Adopted,
    /// Everything was there.
    Unchanged,
    /// The key that was given can't be used: it is revoked, has expired, or belongs to another organisation.
    Unusable,
}

/// What revoking a key found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyRevocation {
    /// It is refused from now on.
    Revoked,
    /// It had been revoked before.
    AlreadyRevoked,
    /// The organisation has no such key.
    Unknown,
}

impl Store {
    /// Whom the key belongs to, or `None` where it is unknown, revoked or expired.
    ///
    /// The only way to an [`OrganizationId`] for a request, and the only statement of one that can't name any. A valid
    /// key is remembered for [`KEY_TRUST`].
    pub async fn authenticate(
        &self,
        digest: KeyDigest,
        now: DateTime<Utc>,
    ) -> Result<Option<Authenticated>, StoreError> {
        if let Some(known) = self.keys.get(&digest)
            && known.read_at.elapsed() < KEY_TRUST
            && known.expires_at.is_none_or(|at| at > now)
        {
            return Ok(Some(known.key));
        }
        let read_at = Instant::now();
        let mut connection = self.pool.get().await?;
        let key = sqlx::query!(
            r#"
            SELECT organization_id AS "organization_id: OrganizationId", id, can_write, expires_at, last_used_at
            FROM api_keys
            WHERE digest = $1
              AND revoked_at IS NULL
              AND (expires_at IS NULL OR expires_at > $2)
            "#,
            digest.0.as_slice(),
            now
        )
        .fetch_optional(&mut *connection)
        .await?;
        if let Some(key) = &key
            && key.last_used_at.is_none_or(|last| now - last >= LAST_USED_GRAIN)
        {
            let noted = sqlx::query!(
                r#"
                UPDATE api_keys
                SET last_used_at = $3
                WHERE organization_id = $1 AND id = $2 AND (last_used_at IS NULL OR last_used_at <= $4)
                "#,
                key.organization_id as OrganizationId,
                key.id,
                now,
                now - LAST_USED_GRAIN
            )
            .execute(&mut *connection)
            .await;
            // A note for the operator, and no reason to refuse a reader whom a read-only server can serve.
            match noted {
                Ok(_) => connection.done(),
                Err(error) => tracing::warn!(%error, "can't note when an API key was used"),
            }
        } else {
            connection.done();
        }
        let Some(key) = key else {
            self.keys.remove(&digest);
            return Ok(None);
        };
        let known = CachedKey {
            key: Authenticated { organization_id: key.organization_id, can_write: key.can_write },
            expires_at: key.expires_at,
            read_at,
        };
        self.keys.insert(digest, known.clone());
        Ok(Some(known.key))
    }

    /// Sees to it that the organisation `default` exists and has a key: the given one, or at the first start a new
    /// one. Does nothing where that is so already, and may run in several processes at once.
    pub async fn bootstrap(
        &self,
        given: Option<&Secret>,
        now: DateTime<Utc>,
    ) -> Result<Bootstrap, StoreError> {
        let mut connection = self.pool.get().await?;
        let mut transaction = connection.begin().await?;
        let (organization, created) =
            ensure_organization(&mut transaction, DEFAULT_ORGANIZATION, now).await?;
        let outcome = match given {
            Some(key) => {
                let adopted =
                    insert_api_key(&mut transaction, organization, "bootstrap", true, None, key, now).await?;
                let digest = KeyDigest::of(key.expose().as_bytes());
                let is_valid = sqlx::query_scalar!(
                    r#"
                    SELECT organization_id = $1 AND revoked_at IS NULL
                           AND (expires_at IS NULL OR expires_at > $3) AS "is_valid!"
                    FROM api_keys
                    WHERE digest = $2
                    "#,
                    organization as OrganizationId,
                    digest.0.as_slice(),
                    now
                )
                .fetch_one(&mut *transaction)
                .await?;
                match (adopted, is_valid) {
                    (Some(_), _) => Bootstrap::Adopted,
                    (None, true) => Bootstrap::Unchanged,
                    (None, false) => Bootstrap::Unusable,
                }
            }
            None if created => {
                let key = Secret::generate();
                insert_api_key(&mut transaction, organization, "first start", true, None, &key, now).await?;
                Bootstrap::Created(key)
            }
            None => Bootstrap::Unchanged,
        };
        transaction.commit().await?;
        connection.done();
        Ok(outcome)
    }

    /// The organisation with a name, created if there is none; and whether it was.
    pub async fn ensure_organization(
        &self,
        name: &str,
        now: DateTime<Utc>,
    ) -> Result<(OrganizationId, bool), StoreError> {
        let mut connection = self.pool.get().await?;
        let organization = ensure_organization(&mut connection, name, now).await?;
        connection.done();
        Ok(organization)
    }

    /// Makes a key. Returns its id, the key itself (this once), and whether the organisation is new.
    pub async fn create_api_key(
        &self,
        new: &NewApiKey,
        now: DateTime<Utc>,
    ) -> Result<(Uuid, Secret, bool), StoreError> {
        let mut connection = self.pool.get().await?;
        let mut transaction = connection.begin().await?;
        let (organization, created) = ensure_organization(&mut transaction, &new.organization, now).await?;
        let key = Secret::generate();
        let id = insert_api_key(
            &mut transaction,
            organization,
            &new.name,
            new.can_write,
            new.expires_at,
            &key,
            now,
        )
        .await?
        .expect("a new random key is unlike every other");
        transaction.commit().await?;
        connection.done();
        Ok((id, key, created))
    }

    /// All keys, by organisation and age.
    pub async fn list_api_keys(&self) -> Result<Vec<ApiKey>, StoreError> {
        let mut connection = self.pool.get().await?;
        let keys = sqlx::query_as!(
            ApiKey,
            r#"
            SELECT k.id, o.name AS organization, k.name, k.prefix, k.can_write,
                   k.created_at, k.expires_at, k.revoked_at, k.last_used_at
            FROM api_keys k
            JOIN organizations o ON o.id = k.organization_id
            ORDER BY o.name, k.created_at, k.id
            "#
        )
        .fetch_all(&mut *connection)
        .await?;
        connection.done();
        Ok(keys)
    }

    /// Revokes a key of the named organisation: from the next request on, and after [`KEY_TRUST`] in other processes.
    pub async fn revoke_api_key(
        &self,
        organization: &str,
        id: Uuid,
        now: DateTime<Utc>,
    ) -> Result<KeyRevocation, StoreError> {
        let mut connection = self.pool.get().await?;
        let revoked_at = sqlx::query_scalar!(
            r#"
            UPDATE api_keys k
            SET revoked_at = COALESCE(k.revoked_at, $3)
            FROM organizations o
            WHERE k.organization_id = o.id AND o.name = $1 AND k.id = $2
            RETURNING k.revoked_at AS "revoked_at!"
            "#,
            organization,
            id,
            now
        )
        .fetch_optional(&mut *connection)
        .await?;
        connection.done();
        Ok(match revoked_at {
            None => KeyRevocation::Unknown,
            Some(at) if at == now => {
                self.keys.clear();
                KeyRevocation::Revoked
            }
            Some(_) => KeyRevocation::AlreadyRevoked,
        })
    }
}

/// The organisation with this name, created if there is none; and whether it was.
async fn ensure_organization(
    connection: &mut sqlx::PgConnection,
    name: &str,
    now: DateTime<Utc>,
) -> Result<(OrganizationId, bool), StoreError> {
    // The one that loses a race waits here for the winner's commit, then reads the winner's row.
    let created = sqlx::query_scalar!(
        r#"
        INSERT INTO organizations (id, name, created_at)
        VALUES ($1, $2, $3)
        ON CONFLICT (name) DO NOTHING
        RETURNING id AS "id: OrganizationId"
        "#,
        OrganizationId::generate() as OrganizationId,
        name,
        now
    )
    .fetch_optional(&mut *connection)
    .await?;
    if let Some(id) = created {
        return Ok((id, true));
    }
    let id =
        sqlx::query_scalar!(r#"SELECT id AS "id: OrganizationId" FROM organizations WHERE name = $1"#, name)
            .fetch_one(&mut *connection)
            .await?;
    Ok((id, false))
}

/// Stores a key, unless it is stored already; returns its id if it was not.
async fn insert_api_key(
    connection: &mut sqlx::PgConnection,
    organization: OrganizationId,
    name: &str,
    can_write: bool,
    expires_at: Option<DateTime<Utc>>,
    key: &Secret,
    now: DateTime<Utc>,
) -> Result<Option<Uuid>, StoreError> {
    let digest = KeyDigest::of(key.expose().as_bytes());
    let id = sqlx::query_scalar!(
        r#"
        INSERT INTO api_keys (organization_id, id, name, prefix, digest, can_write, created_at, expires_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
        ON CONFLICT (digest) DO NOTHING
        RETURNING id
        "#,
        organization as OrganizationId,
        Uuid::now_v7(),
        name,
        key.prefix(),
        digest.0.as_slice(),
        can_write,
        now,
        expires_at
    )
    .fetch_optional(connection)
    .await?;
    Ok(id)
}
