//! Ids and short texts: checked text, each kind its own type.

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::Mutex;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;
use uuid::{ContextV7, Timestamp, Uuid};

/// Longest id or short text, in characters.
const MAX_CHARS: usize = 255;

/// Longest id or short text, in bytes of UTF-8.
///
/// Six of them share an index entry, which PostgreSQL limits to 2,704 bytes: 6 x 430 fit, a seventh
/// would not. A new filter column in the covering indexes needs a lower limit.
const MAX_BYTES: usize = 430;

/// Why a text is not a valid id or short text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// It has no characters.
    #[error("must not be empty")]
    Empty,
    /// It has more than 255 characters.
    #[error("must have at most 255 characters")]
    TooManyCharacters,
    /// It has at most 255 characters, but more than 430 bytes of UTF-8.
    #[error("must have at most 430 bytes in UTF-8")]
    TooManyBytes,
    /// It contains U+0000, which PostgreSQL cannot store in text.
    #[error("must not contain NUL (U+0000)")]
    Nul,
    /// It contains half of a surrogate pair, which is no character. Only JSON can write one.
    #[error("must not contain a surrogate (U+D800 to U+DFFF) without its other half")]
    LoneSurrogate,
    /// It is not UTF-8. Only headers can have such a text.
    #[error("must be UTF-8")]
    NotUtf8,
}

fn check(text: &str) -> Result<(), TextError> {
    if text.len() > MAX_CHARS && text.chars().count() > MAX_CHARS {
        return Err(TextError::TooManyCharacters);
    }
    if text.len() > MAX_BYTES {
        return Err(TextError::TooManyBytes);
    }
    if text.contains('\0') {
        return Err(TextError::Nul);
    }
    Ok(())
}

/// Whether a string in a JSON value contains U+0000, which PostgreSQL cannot store.
pub(crate) fn has_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(items) => items.iter().any(has_nul),
        Value::Object(fields) => {
            fields.iter().any(|(name, value)| name.contains('\0') || has_nul(value))
        }
        _ => false,
    }
}

macro_rules! text_type {
    ($(#[$doc:meta])* $name:ident, $check_empty:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, sqlx::Type)]
        #[serde(try_from = "String")]
        #[sqlx(transparent)]
        pub struct $name(String);

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl $name {
            /// Checks the text and keeps it unchanged: no trimming, no case folding.
            pub fn parse(text: impl Into<String>) -> Result<Self, TextError> {
                let text = text.into();
                if $check_empty && text.is_empty() {
                    return Err(TextError::Empty);
                }
                check(&text)?;
                Ok(Self(text))
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = TextError;

            fn try_from(text: String) -> Result<Self, TextError> {
                Self::parse(text)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

text_type! {
    /// A task's id, which is also its conversation's id: client text of 1 to 255 characters.
    TaskId, true
}
text_type! {
    /// An agent's id: client text of 1 to 255 characters. An agent exists by having tasks.
    AgentId, true
}
text_type! {
    /// The id of the end user that a task was created for: client text of 1 to 255 characters.
    UserId, true
}
text_type! {
    /// Short client text of 0 to 255 characters: `source`, `internal_status`, an event's type, an
    /// idempotency key.
    ShortText, false
}

/// A UUIDv7 for a time. Ids of one process that are made later sort later, also within one
/// millisecond.
pub(crate) fn uuid_v7(now: DateTime<Utc>) -> Uuid {
    static CONTEXT: Mutex<AssertUnwindSafe<ContextV7>> =
        Mutex::new(AssertUnwindSafe(ContextV7::new()));
    let seconds = u64::try_from(now.timestamp()).unwrap_or(0);
    Uuid::new_v7(Timestamp::from_unix(&CONTEXT, seconds, now.timestamp_subsec_nanos()))
}

impl TaskId {
    /// A new id for a task whose caller named none: a UUIDv7.
    pub fn generate(now: DateTime<Utc>) -> Self {
        Self(uuid_v7(now).to_string())
    }
}

/// An organization: the tenant that owns tasks.
///
/// It has no public constructor. For a request, the store reads it from the row of an authenticated
/// API key. A statement therefore cannot run for an organization that its caller does not belong
/// to. Operator commands, which have the whole database, find an organization by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, sqlx::Type)]
#[serde(transparent)]
#[sqlx(transparent)]
pub struct OrganizationId(Uuid);

impl OrganizationId {
    /// The id of a new organization. Only the store creates organizations.
    pub(crate) fn generate(now: DateTime<Utc>) -> Self {
        Self(uuid_v7(now))
    }
}

impl fmt::Display for OrganizationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_count_characters_then_bytes() {
        assert_eq!(TaskId::parse(""), Err(TextError::Empty));
        assert_eq!(ShortText::parse("").map(|text| text.as_str().len()), Ok(0));
        assert!(TaskId::parse("é".repeat(175) + &"e".repeat(80)).is_ok());
        assert!(TaskId::parse("語".repeat(143)).is_ok());
        assert_eq!(TaskId::parse("a".repeat(256)), Err(TextError::TooManyCharacters));
        assert_eq!(TaskId::parse("語".repeat(144)), Err(TextError::TooManyBytes));
        assert_eq!(TaskId::parse("a\0b"), Err(TextError::Nul));
    }

    #[test]
    fn generated_ids_carry_the_clocks_time_and_sort_by_age() {
        let now: DateTime<Utc> = "2026-03-23T00:45:22.5Z".parse().expect("a time");
        let ids: Vec<_> = (0..100).map(|_| TaskId::generate(now)).collect();
        assert!(ids.is_sorted_by(|a, b| a < b), "{ids:?}");
        let uuid: Uuid = ids[0].as_str().parse().expect("a UUID");
        let (seconds, nanos) = uuid.get_timestamp().expect("a UUIDv7").to_unix();
        assert_eq!((i64::try_from(seconds), nanos / 1_000_000), (Ok(now.timestamp()), 500));
    }
}
