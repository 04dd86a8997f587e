//! Faults of a request, in the words, the order and the shape of FastAPI and pydantic 2, which is what clients of the
//! contract have been written against. The readers of queries (`query.rs`) and of bodies (`object.rs`) collect every fault
//! of a request instead of stopping at the first. `tests/it/contract/fastapi_answers.json` holds what FastAPI itself
//! answers.

use std::borrow::Cow;

use serde::Serialize;
use serde_json::{Value, json};

use crate::domain::{TextError, Word};

/// Fields whose values are secrets: they are not sent back, not even in a fault.
const SECRET_FIELDS: [&str; 6] =
    ["user_oidc_token", "user_tokens", "api_key", "client_secret", "headers", "env_vars"];

/// One fault, as the contract writes it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Fault {
    #[serde(rename = "type")]
    kind: &'static str,
    loc: Vec<Step>,
    msg: String,
    input: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    ctx: Option<Value>,
}

/// One step of the way to a value: a name, or an index in a list.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub(crate) enum Step {
    Name(Cow<'static, str>),
    Index(usize),
}

impl From<&'static str> for Step {
    fn from(name: &'static str) -> Self {
        Self::Name(Cow::Borrowed(name))
    }
}

impl Fault {
    pub(crate) fn new(kind: &'static str, loc: Vec<Step>, msg: impl Into<String>, mut input: Value) -> Self {
        hide_secrets(&mut input);
        Self { kind, loc, msg: msg.into(), input, ctx: None }
    }

    pub(super) fn with_ctx(mut self, ctx: Value) -> Self {
        self.ctx = Some(ctx);
        self
    }

    /// The body is no JSON; `position` counts characters from 0.
    pub(crate) fn json_invalid(position: usize, error: &'static str) -> Self {
        let loc = vec!["body".into(), Step::Index(position)];
        Self::new("json_invalid", loc, "JSON decode error", json!({})).with_ctx(json!({ "error": error }))
    }

    /// Something required is not there; `within` is where it should be.
    pub(crate) fn missing(loc: Vec<Step>, within: Value) -> Self {
        Self::new("missing", loc, "Field required", within)
    }

    /// The value is no object, where an object with known fields is wanted.
    pub(crate) fn not_an_object(loc: Vec<Step>, input: Value) -> Self {
        let msg = "Input should be a valid dictionary or object to extract fields from";
        Self::new("model_attributes_type", loc, msg, input)
    }

    /// The value is no list.
    pub(crate) fn not_a_list(loc: Vec<Step>, input: Value) -> Self {
        Self::new("list_type", loc, "Input should be a valid list", input)
    }

    /// The list has too many items. They are not sent back.
    pub(crate) fn too_long(loc: Vec<Step>, max: usize, actual: usize) -> Self {
        let msg = format!("List should have at most {max} items after validation, not {actual}");
        Self::new("too_long", loc, msg, Value::Null)
            .with_ctx(json!({ "field_type": "List", "max_length": max, "actual_length": actual }))
    }

    /// The text can't be an id or a label, or can't be stored.
    pub(crate) fn text(loc: Vec<Step>, error: TextError, input: Value) -> Self {
        match error {
            TextError::Empty => {
                Self::new("string_too_short", loc, "String should have at least 1 character", input)
                    .with_ctx(json!({ "min_length": 1 }))
            }
            TextError::TooManyCharacters => {
                Self::new("string_too_long", loc, "String should have at most 255 characters", input)
                    .with_ctx(json!({ "max_length": 255 }))
            }
            TextError::TooManyBytes | TextError::Nul => {
                Self::new("value_error", loc, format!("Value error, {error}"), input)
                    .with_ctx(json!({ "error": {} }))
            }
        }
    }

    pub(super) fn one_of<T: Word>(loc: Vec<Step>, input: Value) -> Self {
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
