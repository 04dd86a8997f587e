//! Validation errors in the words, the order and the shape of FastAPI and pydantic 2, which the
//! contract's clients were written against. `tests/it/contract/fastapi_answers.json` holds what
//! FastAPI itself answers.

use std::borrow::Cow;
use std::io;

use serde::Serialize;
use serde_json::{Value, json};

use crate::domain::{TextError, WireEnum};

/// Fields with secrets. Their values are not returned, not even in an error.
const SECRET_FIELDS: [&str; 6] =
    ["user_oidc_token", "user_tokens", "api_key", "client_secret", "headers", "env_vars"];

/// Most errors of one answer. Readers stop when there are as many.
const MAX_ERRORS: usize = 100;

/// Most bytes that the errors of one answer repeat of the request, as JSON.
const MAX_INPUT_BYTES: usize = 32 << 10;

/// Most bytes of the errors of one answer, as JSON.
const MAX_BYTES: usize = 60 << 10;

/// Longest name in the path to a value, in characters.
const MAX_NAME_CHARS: usize = 255;

/// What is kept of a text that is too long to be repeated, in characters.
const KEPT_CHARS: usize = 32;

/// The errors of one request, in the order in which they were found.
///
/// It is the only list of errors, and it is bounded: at most a hundred errors, and at most 60 KiB
/// of JSON. A longer request gets the errors that were found first. Inputs that are too long are
/// not repeated; of texts, the start is.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(transparent)]
pub(crate) struct ValidationErrors {
    errors: Vec<ValidationError>,
    #[serde(skip)]
    input_bytes: usize,
    #[serde(skip)]
    bytes: usize,
    #[serde(skip)]
    is_full: bool,
}

impl ValidationErrors {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Adds an error, unless the list is full.
    pub(crate) fn push(&mut self, mut error: ValidationError) {
        if self.is_full {
            return;
        }
        let room = MAX_INPUT_BYTES - self.input_bytes;
        match json_bytes(&error.input, room) {
            Some(bytes) => self.input_bytes += bytes,
            None => error.shorten_input(),
        }
        error.shorten_loc();
        let Some(bytes) = json_bytes(&error, MAX_BYTES - self.bytes) else {
            self.is_full = true;
            return;
        };
        // The comma counts too.
        self.bytes = (self.bytes + bytes + 1).min(MAX_BYTES);
        self.errors.push(error);
        self.is_full = self.errors.len() >= MAX_ERRORS;
    }

    /// Whether no more errors are listed, so that reading on would tell nothing.
    pub(crate) fn is_full(&self) -> bool {
        self.is_full
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.errors.is_empty() && !self.is_full
    }

    pub(crate) fn len(&self) -> usize {
        self.errors.len()
    }
}

impl From<ValidationError> for ValidationErrors {
    fn from(error: ValidationError) -> Self {
        let mut errors = Self::new();
        errors.push(error);
        errors
    }
}

/// The length of a value as JSON; `None` if it is longer than `max`.
fn json_bytes(value: &impl Serialize, max: usize) -> Option<usize> {
    struct Counter {
        left: usize,
    }

    impl io::Write for Counter {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.left = self.left.checked_sub(bytes.len()).ok_or(io::ErrorKind::FileTooLarge)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    let mut counter = Counter { left: max };
    serde_json::to_writer(&mut counter, value).ok()?;
    Some(max - counter.left)
}

/// The start of a text that is too long to be repeated.
fn shortened(text: &str) -> String {
    let start: String = text.chars().take(KEPT_CHARS).collect();
    start + "…"
}

/// One validation error, as the contract writes it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct ValidationError {
    #[serde(rename = "type")]
    kind: &'static str,
    loc: Vec<LocSegment>,
    msg: String,
    /// What was received, unless it is too long to be repeated.
    #[serde(skip_serializing_if = "Input::is_left_out")]
    input: Input,
    #[serde(skip_serializing_if = "Option::is_none")]
    ctx: Option<Value>,
}

/// What was received.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
enum Input {
    Given(Value),
    LeftOut,
}

impl Input {
    fn is_left_out(&self) -> bool {
        matches!(self, Self::LeftOut)
    }
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
        Self { kind, loc, msg: msg.into(), input: Input::Given(input), ctx: None }
    }

    /// Keeps the start of a text, and nothing of other values.
    fn shorten_input(&mut self) {
        self.input = match &self.input {
            Input::Given(Value::String(text)) => Input::Given(shortened(text).into()),
            Input::Given(_) | Input::LeftOut => Input::LeftOut,
        };
    }

    /// Keeps the start of each name that the client chose.
    fn shorten_loc(&mut self) {
        for segment in &mut self.loc {
            if let LocSegment::Name(Cow::Owned(name)) = segment
                && name.chars().nth(MAX_NAME_CHARS).is_some()
            {
                *name = shortened(name);
            }
        }
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
            TextError::TooManyBytes
            | TextError::Nul
            | TextError::LoneSurrogate
            | TextError::NotUtf8 => {
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
