//! Organizations, the tenants that own tasks.

use chrono::{DateTime, Utc};

use super::pool::Transaction;
use super::{Store, StoreError};
use crate::domain::OrganizationId;

impl Store {
    /// All organizations with their names, by name.
    pub async fn list_organizations(&self) -> Result<Vec<(OrganizationId, String)>, StoreError> {
        let rows = sqlx::query!(
            r#"
            SELECT id AS "organization_id: OrganizationId", name
            FROM organizations ORDER BY name
            "#
        )
        .fetch_all(self.pool.shared())
        .await?;
        Ok(rows.into_iter().map(|row| (row.organization_id, row.name)).collect())
    }

    /// The organization with a name, created if there is none, and whether it was created.
    pub async fn ensure_organization(
        &self,
        name: &str,
        now: DateTime<Utc>,
    ) -> Result<(OrganizationId, bool), StoreError> {
        let mut transaction = self.pool.shared().begin().await?;
        let organization = ensure_organization(&mut transaction, name, now).await?;
        transaction.commit().await?;
        Ok(organization)
    }
}

/// The organization with this name, created if there is none, and whether it was created.
pub(super) async fn ensure_organization(
    connection: &mut Transaction,
    name: &str,
    now: DateTime<Utc>,
) -> Result<(OrganizationId, bool), StoreError> {
    // If two transactions create it, the second waits here for the first, then reads its row.
    let created = sqlx::query_scalar!(
        r#"
        INSERT INTO organizations (id, name, created_at)
        VALUES ($1, $2, $3)
        ON CONFLICT (name) DO NOTHING
        RETURNING id AS "id: OrganizationId"
        "#,
        OrganizationId::generate(now) as OrganizationId,
        name,
        now
    )
    .fetch_optional(&mut *connection)
    .await?;
    if let Some(id) = created {
        return Ok((id, true));
    }
    let id = sqlx::query_scalar!(
        r#"SELECT id AS "id: OrganizationId" FROM organizations WHERE name = $1"#,
        name
    )
    .fetch_one(connection)
    .await?;
    Ok((id, false))
}
