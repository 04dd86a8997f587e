//! Query strings, read parameter by parameter.

use std::borrow::Cow;

use chrono::{DateTime, Utc};
use serde_json::{Number, Value, json};
use speedate::MicrosecondsPrecisionOverflowBehavior::Truncate;
use speedate::{DateTimeConfig, TimeConfig};
use strum::EnumMessage;

use crate::api::error::validation::{LocSegment, ValidationError, ValidationErrors};
use crate::domain::WireEnum;

/// The time of a date alone.
const MIDNIGHT: speedate::Time =
    speedate::Time { hour: 0, minute: 0, second: 0, microsecond: 0, tz_offset: None };

/// A query string, read parameter by parameter in the contract's order.
pub(crate) struct QueryReader<'e> {
    parameters: Vec<Parameter>,
    errors: &'e mut ValidationErrors,
    /// Whether to read as the official SDK writes; see [`QueryReader::sdk_dialect`].
    sdk_dialect: bool,
}

/// A parameter as received.
struct Parameter {
    name: String,
    value: String,
    /// Whether the route has read it.
    is_known: bool,
}

/// An integer as the contract allows it: of up to 4,300 digits.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct LosslessInteger {
    /// Its value, or the nearest one that fits.
    pub(crate) value: i64,
    /// All its digits, to return them.
    pub(crate) exact: Number,
}

impl<'e> QueryReader<'e> {
    pub(crate) fn new(query: Option<&str>, errors: &'e mut ValidationErrors) -> Self {
        let parameters = form_urlencoded::parse(query.unwrap_or_default().as_bytes())
            .map(|(name, value)| Parameter {
                name: name.into_owned(),
                value: value.into_owned(),
                is_known: false,
            })
            .collect();
        Self { parameters, errors, sdk_dialect: false }
    }

    /// Reads as the official SDK writes. An empty value is absent, and the name of an enumeration
    /// may precede its word, as in `AgentExecutionStatus.Completed`.
    pub(crate) fn sdk_dialect(query: Option<&str>, errors: &'e mut ValidationErrors) -> Self {
        Self { sdk_dialect: true, ..Self::new(query, errors) }
    }

    /// A string. Of repeated parameters the last one counts. An empty string is not absent.
    pub(crate) fn string(&mut self, name: &str) -> Option<String> {
        // Tests compare what is read with what is documented.
        tracing::trace!(target: "task_history::api::fields", parameter = name);
        let parameter = self.parameters.iter_mut().rfind(|parameter| parameter.name == name)?;
        parameter.is_known = true;
        let is_absent = self.sdk_dialect && parameter.value.is_empty();
        (!is_absent).then(|| parameter.value.clone())
    }

    /// A query string with the parameters that were read, in the order in which they were sent,
    /// except those with these names.
    pub(crate) fn known_except(&self, names: &[&str]) -> String {
        let known = self
            .parameters
            .iter()
            .filter(|parameter| parameter.is_known && !names.contains(&parameter.name.as_str()));
        form_urlencoded::Serializer::new(String::new())
            .extend_pairs(known.map(|parameter| (&parameter.name, &parameter.value)))
            .finish()
    }

    /// Adds an error that the caller found.
    pub(crate) fn push_error(&mut self, error: ValidationError) {
        self.errors.push(error);
    }

    /// A word of an enumeration.
    pub(crate) fn one_of<T: WireEnum>(&mut self, name: &'static str) -> Option<T> {
        let text = self.string(name)?;
        let word = match text.rsplit_once('.') {
            Some((_, member)) if self.sdk_dialect => Cow::Owned(member.to_ascii_lowercase()),
            _ => Cow::Borrowed(text.as_str()),
        };
        let value = T::parse(&word);
        if value.is_none() {
            self.errors.push(ValidationError::not_one_of::<T>(loc_of(name), text.into()));
        }
        value
    }

    /// Words of an enumeration, separated by commas.
    pub(crate) fn comma_separated<T: WireEnum>(&mut self, name: &'static str) -> Option<Vec<T>> {
        let text = self.string(name)?;
        let values: Option<Vec<T>> = text.split(',').map(|word| T::parse(word.trim())).collect();
        if values.is_none() {
            self.errors.push(ValidationError::not_one_of::<T>(loc_of(name), text.into()));
        }
        values
    }

    /// A point in time, as pydantic reads one: ISO 8601, a date alone, or seconds since 1970. It is
    /// UTC if it has no time zone. What is shorter than a microsecond is cut off.
    pub(crate) fn datetime(&mut self, name: &'static str) -> Option<DateTime<Utc>> {
        let text = self.string(name)?;
        let config = DateTimeConfig {
            time_config: TimeConfig {
                microseconds_precision_overflow_behavior: Truncate,
                unix_timestamp_offset: None,
            },
            ..DateTimeConfig::default()
        };
        let time = speedate::DateTime::parse_str_with_config(&text, &config).or_else(|_| {
            let date = speedate::Date::parse_str(&text);
            date.map(|date| speedate::DateTime { date, time: MIDNIGHT })
        });
        let (kind, what, error) = match time {
            Ok(time) if time.date.year == 0 => {
                ("datetime_parsing", "datetime", "year 0 is out of range")
            }
            Ok(time) => {
                let nanoseconds = time.time.microsecond * 1_000;
                return DateTime::from_timestamp(time.timestamp_tz(), nanoseconds);
            }
            Err(error) => {
                let error = error.get_documentation().unwrap_or("invalid datetime");
                ("datetime_from_date_parsing", "datetime or date", error)
            }
        };
        let hint = if has_space_for_plus(&text) { SPACE_FOR_PLUS } else { "" };
        let msg = format!("Input should be a valid {what}, {error}{hint}");
        let error_value = ValidationError::new(kind, loc_of(name), msg, text.into());
        self.errors.push(error_value.with_ctx(json!({ "error": error })));
        None
    }

    /// An integer from 1 to `max`.
    pub(crate) fn positive_integer(
        &mut self,
        name: &'static str,
        default: i64,
        max: Option<i64>,
    ) -> LosslessInteger {
        let fallback = LosslessInteger { value: default, exact: default.into() };
        let Some(text) = self.string(name) else { return fallback };
        let error = |kind, msg: String| {
            ValidationError::new(kind, loc_of(name), msg, Value::from(text.as_str()))
        };
        let error = match parse_integer(&text) {
            Err(IntegerError::Grammar) => error(
                "int_parsing",
                "Input should be a valid integer, unable to parse string as an integer".to_owned(),
            ),
            Err(IntegerError::Size) => error(
                "int_parsing_size",
                "Unable to parse input string as an integer, exceeded maximum size".to_owned(),
            ),
            Ok(number) if number.value < 1 => {
                let msg = "Input should be greater than or equal to 1".to_owned();
                error("greater_than_equal", msg).with_ctx(json!({ "ge": 1 }))
            }
            Ok(number) => match max {
                Some(max) if number.value > max => {
                    let msg = format!("Input should be less than or equal to {max}");
                    error("less_than_equal", msg).with_ctx(json!({ "le": max }))
                }
                _ => return number,
            },
        };
        self.errors.push(error);
        fallback
    }
}

/// What most likely went wrong with a time whose time zone follows a space.
const SPACE_FOR_PLUS: &str = ". A + in a query means a space: write the time zone with %2B";

/// Whether a text ends with a time zone that has a space in place of its sign, as in `00:00 02:00`.
fn has_space_for_plus(text: &str) -> bool {
    text.rsplit_once(' ').is_some_and(|(time, zone)| {
        let digits = zone.replacen(':', "", 1);
        matches!(digits.len(), 2 | 4)
            && digits.bytes().all(|byte| byte.is_ascii_digit())
            && time.contains(':')
    })
}

fn loc_of(name: &'static str) -> Vec<LocSegment> {
    vec!["query".into(), name.into()]
}

#[derive(Debug)]
enum IntegerError {
    Grammar,
    Size,
}

/// Most digits of an integer: Python's own limit.
const MAX_INTEGER_DIGITS: usize = 4300;

/// Parses an integer as pydantic does in its lax mode. It allows space around it, a sign, leading
/// zeros, single underscores between digits, and a fraction of zeros.
fn parse_integer(text: &str) -> Result<LosslessInteger, IntegerError> {
    let strict = |text: &str| {
        let digits = text.strip_prefix('-').unwrap_or(text);
        let well_formed = !digits.is_empty()
            && digits.bytes().all(|byte| byte.is_ascii_digit())
            && (digits.len() == 1 || !digits.starts_with('0'));
        if !well_formed {
            return Err(IntegerError::Grammar);
        }
        if digits.len() > MAX_INTEGER_DIGITS {
            return Err(IntegerError::Grammar);
        }
        let nearest = if text.starts_with('-') { i64::MIN } else { i64::MAX };
        let value = text.parse().unwrap_or(nearest);
        let exact = text.parse().map_err(|_| IntegerError::Grammar)?;
        Ok(LosslessInteger { value, exact })
    };

    // The size is only checked if the text starts with its digits, whatever follows them.
    let untrimmed = text.strip_prefix('-').unwrap_or(text).as_bytes();
    let leading_digits = untrimmed.iter().take_while(|byte| byte.is_ascii_digit()).count();
    if leading_digits > MAX_INTEGER_DIGITS && untrimmed[0] != b'0' {
        return Err(IntegerError::Size);
    }

    let trimmed = text.trim();
    let (negative, unsigned) = match trimmed.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => match trimmed.strip_prefix('+') {
            Some(rest) if rest.starts_with('-') => return Err(IntegerError::Grammar),
            Some(rest) => (false, rest),
            None => (false, trimmed),
        },
    };
    let mut digits = strip_leading_zeros(unsigned).ok_or(IntegerError::Grammar)?;
    if let Some((whole, fraction)) = digits.split_once('.')
        && !fraction.is_empty()
        && fraction.bytes().all(|byte| byte == b'0')
    {
        digits = whole;
    }
    let digits = if digits.starts_with('_') || digits.ends_with('_') || digits.contains("__") {
        Cow::Borrowed(digits)
    } else {
        Cow::Owned(digits.replace('_', ""))
    };
    if negative { strict(&format!("-{digits}")) } else { strict(&digits) }
}

/// The text from its first digit that is not zero; `None` if it does not start like a number.
fn strip_leading_zeros(text: &str) -> Option<&str> {
    match text.bytes().next()? {
        b'0' => {}
        b'1'..=b'9' | b'-' => return Some(text),
        _ => return None,
    }
    for (index, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            b'0' | b'_' => {}
            b'1'..=b'9' | b'-' => return Some(&text[index..]),
            b'.' => return Some(&text[index - 1..]),
            _ => return None,
        }
    }
    Some(&text[text.len() - 1..])
}
