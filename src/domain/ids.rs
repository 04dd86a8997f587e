//! Ids and short labels: checked text, each kind its own type.

use std::fmt;

use serde::{Deserialize, Serialize, Serializer};
use uuid::Uuid;

/// Longest id or label, in characters.
const MAX_CHARS: usize = 255;

/// Longest id or label, in bytes of UTF-8. Six of them share an index entry, which PostgreSQL limits to 2,704 bytes.
const MAX_BYTES: usize = 430;

/// Why a text can't be an id or a label.
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
    /// It contains U+0000, which PostgreSQL can't store in text.
    #[error("must not contain NUL (U+0000)")]
    Nul,
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
            /// Checks the text and takes it as it is: no trimming, no change of case.
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
    /// A task's id, which is its conversation's id: the client's own text, 1 to 255 characters.
    TaskId, true
}
text_type! {
    /// An agent's id: the client's own text, 1 to 255 characters. Agents exist by having tasks.
    AgentId, true
}
text_type! {
    /// The id of the end user that a task was made for: the client's own text, 1 to 255 characters.
    UserId, true
}
text_type! {
    /// Free text that tasks are marked with (`source`, `internal_status`): 0 to 255 characters.
    Label, false
}

impl TaskId {
    /// A new id for a task whose caller gave none: a `UUIDv7`, so that ids made later sort later.
    pub fn generate() -> Self {
        Self(Uuid::now_v7().to_string())
    }
}

/// An organisation: the tenant that owns tasks.
///
/// It has no public constructor. For a request, the store reads it from the row of an authenticated API key, and there is
/// no other way to get one, so a statement can't be run for an organisation that its caller doesn't belong to. The
/// commands of an operator, who has the whole database, find one by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, sqlx::Type)]
#[serde(transparent)]
#[sqlx(transparent)]
pub struct OrganizationId(Uuid);

impl OrganizationId {
    /// A new organisation's id, for the store that creates it.
    pub(crate) fn generate() -> Self {
        Self(Uuid::now_v7())
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
        assert_eq!(Label::parse("").map(|label| label.as_str().len()), Ok(0));
        assert!(TaskId::parse("é".repeat(175) + &"e".repeat(80)).is_ok());
        assert!(TaskId::parse("語".repeat(143)).is_ok());
        assert_eq!(TaskId::parse("a".repeat(256)), Err(TextError::TooManyCharacters));
        assert_eq!(TaskId::parse("語".repeat(144)), Err(TextError::TooManyBytes));
        assert_eq!(TaskId::parse("a\0b"), Err(TextError::Nul));
    }
}
