//! API keys: `task-history keys`.

use anyhow::{Context, bail};
use chrono::{DateTime, TimeDelta, Utc};
use comfy_table::{Table, presets};
use nix::unistd::Uid;
use serde_json::{Value, json};
use uuid::Uuid;

use super::KeysCommand;
use super::output::{print, print_json, time};
use super::session::with_store;
use crate::domain::{Clock, Limits};
use crate::store::{ApiKey, BOOTSTRAP_KEY_NAME, CreatedApiKey, KeyRevocation, NewApiKey, Store};

/// Runs a `keys` command.
pub(super) async fn run(command: KeysCommand) -> anyhow::Result<()> {
    let now = Clock::system().now();
    match command {
        KeysCommand::Create { organization, name, expires_in, read_only, json, database } => {
            if organization.trim().is_empty() {
                bail!("an organization must have a name");
            }
            if name == BOOTSTRAP_KEY_NAME {
                bail!(
                    "a start with another --bootstrap-key revokes all keys named \
                     `{BOOTSTRAP_KEY_NAME}`; choose another --name"
                );
            }
            let expires_at = expires_in
                .map(|duration| {
                    TimeDelta::from_std(duration)
                        .ok()
                        .and_then(|delta| now.checked_add_signed(delta))
                })
                .map(|at| {
                    at.context("--expires-in is too far in the future; leave it out for no expiry")
                })
                .transpose()?;
            let new = NewApiKey { organization, name, can_write: !read_only, expires_at };
            with_store(database, 1, async |store| create_key(&store, &new, now, json).await).await
        }
        KeysCommand::List { json, database } => {
            with_store(database, 1, async |store| {
                let keys = store.list_api_keys().await?;
                if json {
                    print_json(&keys_as_json(&keys));
                } else {
                    print(&keys_as_table(&keys, now));
                }
                Ok(())
            })
            .await
        }
        KeysCommand::Revoke { id, organization, database } => {
            with_store(database, 1, async |store| {
                match store.revoke_api_key(&organization, id, now).await? {
                    KeyRevocation::Revoked => {
                        audit("API key revoked", id, &organization);
                        // Running services may have the key in their caches until then.
                        tokio::time::sleep(Limits::default().key_cache_ttl).await;
                        print(&format!("Revoked key {id}. It is refused from now on."));
                        Ok(())
                    }
                    KeyRevocation::AlreadyRevoked => {
                        print(&format!("Key {id} was revoked before."));
                        Ok(())
                    }
                    KeyRevocation::Unknown => bail!(
                        "organization `{organization}` has no key {id}; `task-history keys list` \
                     shows all of them"
                    ),
                }
            })
            .await
        }
    }
}

async fn create_key(
    store: &Store,
    new: &NewApiKey,
    now: DateTime<Utc>,
    json: bool,
) -> anyhow::Result<()> {
    let CreatedApiKey { id, secret, organization_is_new } = store.create_api_key(new, now).await?;
    audit("API key created", id, &new.organization);
    if json {
        print_json(&json!({
            "id": id.to_string(),
            "organization": new.organization,
            "name": new.name,
            "can_write": new.can_write,
            "expires_at": new.expires_at.map(time),
            "key": secret.expose(),
        }));
        return Ok(());
    }
    if organization_is_new {
        print(&format!("Created organization `{}`.", new.organization));
    }
    print(&format!("Key {id}, shown only this once:\n\n    {}\n", secret.expose()));
    print("Send it in the x-api-key header of each request.");
    Ok(())
}

/// Leaves a line in the log that a person changed a key.
fn audit(what: &str, key_id: Uuid, organization: &str) {
    let uid = Uid::current();
    tracing::info!(
        target: "audit", %key_id, organization, by = "command line", %uid, "{what}"
    );
}

fn keys_as_json(keys: &[ApiKey]) -> Value {
    let keys = keys.iter().map(|key| {
        json!({
            "id": key.id.to_string(),
            "organization": key.organization,
            "name": key.name,
            "prefix": key.prefix,
            "can_write": key.can_write,
            "created_at": time(key.created_at),
            "expires_at": key.expires_at.map(time),
            "revoked_at": key.revoked_at.map(time),
            "last_used_at": key.last_used_at.map(time),
        })
    });
    keys.collect()
}

fn keys_as_table(keys: &[ApiKey], now: DateTime<Utc>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_header([
        "ID",
        "ORGANIZATION",
        "NAME",
        "KEY",
        "ACCESS",
        "STATE",
        "CREATED",
        "LAST USED",
    ]);
    for key in keys {
        let state = match (key.revoked_at, key.expires_at) {
            (Some(at), _) => format!("revoked {}", time(at)),
            (None, Some(at)) if at <= now => format!("expired {}", time(at)),
            (None, Some(at)) => format!("valid until {}", time(at)),
            (None, None) => "valid".to_owned(),
        };
        table.add_row([
            key.id.to_string(),
            key.organization.clone(),
            key.name.clone(),
            format!("{}…", key.prefix),
            if key.can_write { "write" } else { "read" }.to_owned(),
            state,
            time(key.created_at),
            key.last_used_at.map_or_else(|| "never".to_owned(), time),
        ]);
    }
    table.trim_fmt()
}
