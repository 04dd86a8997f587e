//! JSON values of request bodies: what they may be, and the errors of what they may not be.

use serde_json::{Map, Value};

use crate::api::error::validation::{LocSegment, ValidationError, ValidationErrors};
use crate::domain::{TextError, has_nul};

/// A string that can be stored, or an error.
pub(super) fn read_string(
    value: &Value,
    loc: Vec<LocSegment>,
    errors: &mut ValidationErrors,
) -> Option<String> {
    let Some(text) = value.as_str() else {
        errors.push(not_a_string(loc, value));
        return None;
    };
    if text.contains('\0') {
        errors.push(ValidationError::invalid_text(loc, TextError::Nul, value.clone()));
        return None;
    }
    Some(text.to_owned())
}

/// The error of a value that should be a string.
pub(super) fn not_a_string(loc: Vec<LocSegment>, value: &Value) -> ValidationError {
    ValidationError::new("string_type", loc, "Input should be a valid string", value.clone())
}

/// An object that can be stored, or an error.
pub(super) fn read_json_object(
    value: &Value,
    loc: Vec<LocSegment>,
    errors: &mut ValidationErrors,
) -> Option<Map<String, Value>> {
    let Value::Object(fields) = value else {
        errors.push(not_a_json_object(loc, value));
        return None;
    };
    if has_nul(value) {
        errors.push(ValidationError::invalid_text(loc, TextError::Nul, value.clone()));
        return None;
    }
    Some(fields.clone())
}

/// The error of a value that should be an object.
pub(super) fn not_a_json_object(loc: Vec<LocSegment>, value: &Value) -> ValidationError {
    ValidationError::new("dict_type", loc, "Input should be a valid dictionary", value.clone())
}

/// A boolean as pydantic reads it in its lax mode; otherwise the error's type and message.
pub(super) fn parse_bool(value: &Value) -> Result<bool, (&'static str, &'static str)> {
    const WORD: (&str, &str) =
        ("bool_parsing", "Input should be a valid boolean, unable to interpret input");
    const TYPE: (&str, &str) = ("bool_type", "Input should be a valid boolean");
    match value {
        Value::Bool(flag) => Ok(*flag),
        Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(0), _) | (None, Some(0.0)) => Ok(false),
            (Some(1), _) | (None, Some(1.0)) => Ok(true),
            (Some(_), _) => Err(WORD),
            (None, _) => {
                let whole = number
                    .as_f64()
                    .is_some_and(|float| float.fract() == 0.0 && float.abs() < 2f64.powi(63));
                Err(if whole { WORD } else { TYPE })
            }
        },
        Value::String(text) => match text.to_ascii_lowercase().as_str() {
            "0" | "off" | "f" | "false" | "n" | "no" => Ok(false),
            "1" | "on" | "t" | "true" | "y" | "yes" => Ok(true),
            _ => Err(WORD),
        },
        Value::Null | Value::Array(_) | Value::Object(_) => Err(TYPE),
    }
}
