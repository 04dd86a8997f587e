//! The first key: what a start does to the organization `default`.

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::api_keys::{NewApiKey, insert_api_key};
use super::organizations::ensure_organization;
use super::pool::Transaction;
use super::{Store, StoreError};
use crate::domain::{ApiKeySecret, KeyDigest, OrganizationId};

/// The organization that the first start creates.
const DEFAULT_ORGANIZATION: &str = "default";

/// The name of the keys that [`Store::bootstrap`] stores. It revokes others of this name.
pub const BOOTSTRAP_KEY_NAME: &str = "bootstrap";

/// The class of the lock of starts with a given key. `CONTRIBUTING.md` lists all classes.
const BOOTSTRAP_LOCK: i32 = 29_803;

/// What [`Store::bootstrap`] did.
#[derive(Debug)]
pub struct Bootstrap {
    /// The organization `default`.
    pub organization_id: OrganizationId,
    /// What became of its key.
    pub key: BootstrapKey,
    /// The bootstrap keys of earlier starts that it revoked.
    pub revoked: Vec<Uuid>,
}

/// What became of the key of the organization `default` at a start.
#[derive(Debug)]
pub enum BootstrapKey {
    /// The organization is new, and so is its key. The key cannot be read again.
    Created(Uuid, ApiKeySecret),
    /// The given key is stored with this id.
    Adopted(Uuid),
    /// Organization and key existed.
    Unchanged,
    /// The given key is revoked, has expired, or belongs to another organization. It is refused.
    Unusable,
}

impl Store {
    /// Ensures that the organization `default` exists and has a key: the given one, or at the first
    /// start a new one. A given key replaces those of earlier starts: they are revoked. Safe in
    /// several processes at once.
    pub async fn bootstrap(
        &self,
        given: Option<&ApiKeySecret>,
        now: DateTime<Utc>,
    ) -> Result<Bootstrap, StoreError> {
        let mut transaction = self.pool.shared().begin().await?;
        let (organization_id, is_new) =
            ensure_organization(&mut transaction, DEFAULT_ORGANIZATION, now).await?;
        let new_key = |name: &str| NewApiKey {
            organization: DEFAULT_ORGANIZATION.to_owned(),
            name: name.to_owned(),
            can_write: true,
            expires_at: None,
        };
        let mut revoked = Vec::new();
        let key = match given {
            Some(key) => {
                // Two starts with different keys follow each other: the later key is valid.
                sqlx::query!("SELECT pg_advisory_xact_lock($1, $2)", BOOTSTRAP_LOCK, 0)
                    .execute(&mut transaction)
                    .await?;
                let new = new_key(BOOTSTRAP_KEY_NAME);
                let adopted =
                    insert_api_key(&mut transaction, organization_id, &new, key, now).await?;
                let digest = KeyDigest::of(key.expose().as_bytes());
                let is_valid = match adopted {
                    Some(_) => true,
                    None => is_valid(&mut transaction, organization_id, &digest, now).await?,
                };
                if is_valid {
                    revoked = revoke_predecessors(&mut transaction, organization_id, &digest, now)
                        .await?;
                }
                match adopted {
                    Some(id) => BootstrapKey::Adopted(id),
                    None if is_valid => BootstrapKey::Unchanged,
                    None => BootstrapKey::Unusable,
                }
            }
            None if is_new => {
                let key = ApiKeySecret::generate();
                let new = new_key("first start");
                let id = insert_api_key(&mut transaction, organization_id, &new, &key, now)
                    .await?
                    .expect("a new random key differs from every other");
                BootstrapKey::Created(id, key)
            }
            None => BootstrapKey::Unchanged,
        };
        transaction.commit().await?;
        self.keys.forget_valid();
        self.keys.forget_invalid();
        Ok(Bootstrap { organization_id, key, revoked })
    }
}

/// Whether a stored key belongs to the organization and may be used.
async fn is_valid(
    connection: &mut Transaction,
    organization: OrganizationId,
    digest: &KeyDigest,
    now: DateTime<Utc>,
) -> Result<bool, StoreError> {
    let is_valid = sqlx::query_scalar!(
        r#"
        SELECT organization_id = $1 AND revoked_at IS NULL
               AND (expires_at IS NULL OR expires_at > $3) AS "is_valid!"
        FROM api_keys
        WHERE digest = $2
        "#,
        organization as OrganizationId,
        digest.as_bytes(),
        now
    )
    .fetch_one(connection)
    .await?;
    Ok(is_valid)
}

/// Revokes all bootstrap keys but one. Whoever sets another key wants the old one refused.
async fn revoke_predecessors(
    connection: &mut Transaction,
    organization: OrganizationId,
    current: &KeyDigest,
    now: DateTime<Utc>,
) -> Result<Vec<Uuid>, StoreError> {
    let revoked = sqlx::query_scalar!(
        r#"
        UPDATE api_keys
        SET revoked_at = $4
        WHERE organization_id = $1 AND name = $2 AND digest <> $3 AND revoked_at IS NULL
        RETURNING id
        "#,
        organization as OrganizationId,
        BOOTSTRAP_KEY_NAME,
        current.as_bytes(),
        now
    )
    .fetch_all(connection)
    .await?;
    Ok(revoked)
}
