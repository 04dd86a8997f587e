//! Validation errors in the words, the order and the shape of FastAPI and pydantic 2, which the
//! contract's clients were written against. `tests/it/contract/fastapi_answers.json` holds what
//! FastAPI itself answers.

use std::borrow::Cow;

use serde::Serialize;
use serde_json::{Value, json};

use crate::domain::{TextError, WireEnum};

/// Fields with secrets. Their values are not returned, not even in an error.
const SECRET_FIELDS: [&str; 6] =
    ["user_oidc_token", "user_tokens", "api_key", "client_secret", "headers", "env_vars"];

/// One validation error, as the contract writes it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct ValidationError {
    #[serde(rename = "type")]
    kind: &'static str,
    loc: Vec<LocSegment>,
    msg: String,
    input: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    ctx: Option<Value>,
}

/// One segment of the path to a value: a name, or an index in an array.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub(crate) enum LocSegment {
    Name(Cow<'static, str>),
    Index(usize),
}

impl From<&'static str> for LocSegment {
    fn from(name: &'static str) -> Self {
        Self::Name(Cow::Borrowed(name))
    }
}

impl ValidationError {
    pub(crate) fn new(
        kind: &'static str,
        loc: Vec<LocSegment>,
        msg: impl Into<String>,
        mut input: Value,
    ) -> Self {
        hide_secrets(&mut input);
        Self { kind, loc, msg: msg.into(), input, ctx: None }
    }

    pub(crate) fn with_ctx(mut self, ctx: Value) -> Self {
        self.ctx = Some(ctx);
        self
    }

    /// The body is not JSON. `position` counts characters from 0.
    pub(crate) fn json_invalid(position: usize, error: &'static str) -> Self {
        let loc = vec!["body".into(), LocSegment::Index(position)];
        Self::new("json_invalid", loc, "JSON decode error", json!({}))
            .with_ctx(json!({ "error": error }))
    }

    /// A required value is missing; `within` is the value that should have it.
    pub(crate) fn missing(loc: Vec<LocSegment>, within: Value) -> Self {
        Self::new("missing", loc, "Field required", within)
    }

    /// The value is not an object; an object with known fields is expected.
    pub(crate) fn not_an_object(loc: Vec<LocSegment>, input: Value) -> Self {
        let msg = "Input should be a valid dictionary or object to extract fields from";
        Self::new("model_attributes_type", loc, msg, input)
    }

    /// The value is not an array.
    pub(crate) fn not_a_list(loc: Vec<LocSegment>, input: Value) -> Self {
        Self::new("list_type", loc, "Input should be a valid list", input)
    }

    /// The array has too many items. They are not returned.
    pub(crate) fn too_long(loc: Vec<LocSegment>, max: usize, actual: usize) -> Self {
        let msg = format!("List should have at most {max} items after validation, not {actual}");
        Self::new("too_long", loc, msg, Value::Null)
            .with_ctx(json!({ "field_type": "List", "max_length": max, "actual_length": actual }))
    }

    /// The text is not a valid id or short text, or cannot be stored.
    pub(crate) fn invalid_text(loc: Vec<LocSegment>, error: TextError, input: Value) -> Self {
        match error {
            TextError::Empty => {
                Self::new("string_too_short", loc, "String should have at least 1 character", input)
                    .with_ctx(json!({ "min_length": 1 }))
            }
            TextError::TooManyCharacters => Self::new(
                "string_too_long",
                loc,
                "String should have at most 255 characters",
                input,
            )
            .with_ctx(json!({ "max_length": 255 })),
            TextError::TooManyBytes | TextError::Nul => {
                Self::new("value_error", loc, format!("Value error, {error}"), input)
                    .with_ctx(json!({ "error": {} }))
            }
        }
    }

    /// The value is not one of an enumeration's words.
    pub(crate) fn not_one_of<T: WireEnum>(loc: Vec<LocSegment>, input: Value) -> Self {
        let words: Vec<_> = T::ALL.iter().map(|value| format!("'{}'", value.as_str())).collect();
        let expected = match words.as_slice() {
            [start @ .., last] if !start.is_empty() => format!("{} or {last}", start.join(", ")),
            _ => words.concat(),
        };
        Self::new("enum", loc, format!("Input should be {expected}"), input)
            .with_ctx(json!({ "expected": expected }))
    }
}

/// Replaces the values of secret fields, as pydantic writes a secret.
fn hide_secrets(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                if SECRET_FIELDS.contains(&name.as_str()) && !value.is_null() {
                    *value = "**********".into();
                } else {
                    hide_secrets(value);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(hide_secrets),
        _ => {}
    }
}
