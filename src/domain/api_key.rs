//! API keys: the key in clear, its digest, its owner.

use std::fmt;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::OrganizationId;

/// How many characters of a key are kept to recognize it by: few enough to keep a key of the
/// minimum length secret.
const PREFIX_CHARS: usize = 6;

/// An API key in clear. It is shown once and stored nowhere. Its debug output shows nothing.
#[derive(Clone)]
pub struct ApiKeySecret(String);

impl ApiKeySecret {
    /// Shortest key that a person may choose, in characters.
    pub const MIN_CHARS: usize = 24;

    /// Takes a key that a person chose: 24 to 256 visible ASCII characters.
    pub fn parse(text: &str) -> Result<Self, String> {
        if !text.chars().all(|c| c.is_ascii_graphic()) {
            return Err("an API key has visible ASCII characters only".to_owned());
        }
        if !(Self::MIN_CHARS..=256).contains(&text.len()) {
            return Err(format!(
                "an API key has {} to 256 characters, this one has {}; `openssl rand -hex 32` \
                 generates one",
                Self::MIN_CHARS,
                text.len()
            ));
        }
        Ok(Self(text.to_owned()))
    }

    /// A new key of 256 random bits.
    pub fn generate() -> Self {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).expect("the operating system provides random bytes");
        Self(format!("th_{}", BASE64_URL_SAFE_NO_PAD.encode(bytes)))
    }

    /// The key, to show it to its owner.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Its first characters, to recognize it by.
    pub fn prefix(&self) -> &str {
        &self.0[..PREFIX_CHARS]
    }
}

impl fmt::Debug for ApiKeySecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKeySecret(..)")
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

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// What a long answer keeps of its caller, to ask again whether the key is still valid: a stream
/// and a waiting invocation outlive the check at their start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Credential {
    /// The digest of the key.
    pub digest: KeyDigest,
    /// The organization that the key belonged to.
    pub organization_id: OrganizationId,
}

/// The owner of a valid key, and what the key allows. Every key allows reading.
#[derive(Debug, Clone, Copy)]
pub struct Principal {
    /// The organization.
    pub organization_id: OrganizationId,
    /// The id of the key, which `keys list` shows and `keys revoke` takes.
    pub key_id: Uuid,
    /// Whether the key may record and report.
    pub can_write: bool,
}
