//! Query strings, read parameter by parameter.

use std::borrow::Cow;

use chrono::{DateTime, Utc};
use serde_json::{Number, Value, json};
use strum::EnumMessage;

use super::faults::Fault;
use crate::domain::Word;

/// When a day begins.
const MIDNIGHT: speedate::Time =
    speedate::Time { hour: 0, minute: 0, second: 0, microsecond: 0, tz_offset: None };

/// A query string, read parameter by parameter in the contract's order.
pub(crate) struct QueryReader<'f> {
    pairs: Vec<(Cow<'static, str>, String)>,
    faults: &'f mut Vec<Fault>,
    /// How the official SDK writes some values; see [`QueryReader::lenient`].
    lenient: bool,
}

/// A whole number as the contract allows it: of up to 4,300 digits.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Integer {
    /// Its value, or the nearest that fits.
    pub(crate) value: i64,
    /// All its digits, to say it back.
    pub(crate) exact: Number,
}

impl<'f> QueryReader<'f> {
    pub(crate) fn new(query: Option<&str>, faults: &'f mut Vec<Fault>) -> Self {
        let pairs = form_urlencoded::parse(query.unwrap_or_default().as_bytes())
            .map(|(name, value)| (Cow::Owned(name.into_owned()), value.into_owned()))
            .collect();
        Self { pairs, faults, lenient: false }
    }

    /// Reads as the official SDK writes: an empty value is none, and the name of an enumeration may stand before a
    /// word of it, as in `AgentExecutionStatus.Completed`.
    pub(crate) fn lenient(query: Option<&str>, faults: &'f mut Vec<Fault>) -> Self {
        Self { lenient: true, ..Self::new(query, faults) }
    }

    /// A text; of several the last, and an empty one is not an absent one.
    pub(crate) fn text(&self, name: &str) -> Option<String> {
        let value = self.pairs.iter().rfind(|(other, _)| other == name).map(|(_, value)| value.clone());
        value.filter(|value| !(self.lenient && value.is_empty()))
    }

    /// Notes a fault that its reader found.
    pub(crate) fn fault(&mut self, fault: Fault) {
        self.faults.push(fault);
    }

    /// A word of an enumeration.
    pub(crate) fn one_of<T: Word>(&mut self, name: &'static str) -> Option<T> {
        let text = self.text(name)?;
        let word = match text.rsplit_once('.') {
            Some((_, member)) if self.lenient => Cow::Owned(member.to_ascii_lowercase()),
            _ => Cow::Borrowed(text.as_str()),
        };
        let value = T::parse(&word);
        if value.is_none() {
            self.faults.push(Fault::one_of::<T>(vec!["query".into(), name.into()], text.into()));
        }
        value
    }

    /// Words of an enumeration, separated by commas.
    pub(crate) fn any_of<T: Word>(&mut self, name: &'static str) -> Option<Vec<T>> {
        let text = self.text(name)?;
        let values: Option<Vec<T>> = text.split(',').map(|word| T::parse(word.trim())).collect();
        if values.is_none() {
            self.faults.push(Fault::one_of::<T>(vec!["query".into(), name.into()], text.into()));
        }
        values
    }

    /// A point in time, as pydantic reads one: ISO 8601, a date alone, or seconds since 1970. Without a zone it is UTC.
    pub(crate) fn datetime(&mut self, name: &'static str) -> Option<DateTime<Utc>> {
        let text = self.text(name)?;
        let time = speedate::DateTime::parse_str(&text).or_else(|_| {
            speedate::Date::parse_str(&text).map(|date| speedate::DateTime { date, time: MIDNIGHT })
        });
        let (kind, what, error) = match time {
            Ok(time) if time.date.year == 0 => ("datetime_parsing", "datetime", "year 0 is out of range"),
            Ok(time) => return DateTime::from_timestamp(time.timestamp_tz(), time.time.microsecond * 1_000),
            Err(error) => {
                let error = error.get_documentation().unwrap_or("invalid datetime");
                ("datetime_from_date_parsing", "datetime or date", error)
            }
        };
        let msg = format!("Input should be a valid {what}, {error}");
        let fault = Fault::new(kind, vec!["query".into(), name.into()], msg, text.into());
        self.faults.push(fault.with_ctx(json!({ "error": error })));
        None
    }

    /// A whole number from 1 to `max`.
    pub(crate) fn positive(&mut self, name: &'static str, default: i64, max: Option<i64>) -> Integer {
        let fallback = Integer { value: default, exact: default.into() };
        let Some(text) = self.text(name) else { return fallback };
        let fault = |kind, msg: String| {
            Fault::new(kind, vec!["query".into(), name.into()], msg, Value::from(text.as_str()))
        };
        let fault = match parse_integer(&text) {
            Err(NotAnInteger::Grammar) => fault(
                "int_parsing",
                "Input should be a valid integer, unable to parse string as an integer".to_owned(),
            ),
            Err(NotAnInteger::Size) => fault(
                "int_parsing_size",
                "Unable to parse input string as an integer, exceeded maximum size".to_owned(),
            ),
            Ok(number) if number.value < 1 => {
                fault("greater_than_equal", "Input should be greater than or equal to 1".to_owned())
                    .with_ctx(json!({ "ge": 1 }))
            }
            Ok(number) => match max {
                Some(max) if number.value > max => {
                    fault("less_than_equal", format!("Input should be less than or equal to {max}"))
                        .with_ctx(json!({ "le": max }))
                }
                _ => return number,
            },
        };
        self.faults.push(fault);
        fallback
    }
}

#[derive(Debug)]
enum NotAnInteger {
    Grammar,
    Size,
}

/// Most digits of a number: Python's own limit.
const MAX_INTEGER_DIGITS: usize = 4300;

/// Parses a whole number as pydantic does in its lax mode: space around it, a sign, leading zeros, single underscores
/// between digits, and a fraction of zeros are all allowed.
fn parse_integer(text: &str) -> Result<Integer, NotAnInteger> {
    let strict = |text: &str| {
        let digits = text.strip_prefix('-').unwrap_or(text);
        let well_formed = !digits.is_empty()
            && digits.bytes().all(|byte| byte.is_ascii_digit())
            && (digits.len() == 1 || !digits.starts_with('0'));
        if !well_formed {
            return Err(NotAnInteger::Grammar);
        }
        if digits.len() > MAX_INTEGER_DIGITS {
            return Err(NotAnInteger::Grammar);
        }
        let nearest = if text.starts_with('-') { i64::MIN } else { i64::MAX };
        let value = text.parse().unwrap_or(nearest);
        let exact = text.parse().map_err(|_| NotAnInteger::Grammar)?;
        Ok(Integer { value, exact })
    };

    // The size is only looked at where the text begins with its digits, whatever follows them.
    let untrimmed = text.strip_prefix('-').unwrap_or(text).as_bytes();
    let leading_digits = untrimmed.iter().take_while(|byte| byte.is_ascii_digit()).count();
    if leading_digits > MAX_INTEGER_DIGITS && untrimmed[0] != b'0' {
        return Err(NotAnInteger::Size);
    }

    let trimmed = text.trim();
    let (negative, unsigned) = match trimmed.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => match trimmed.strip_prefix('+') {
            Some(rest) if rest.starts_with('-') => return Err(NotAnInteger::Grammar),
            Some(rest) => (false, rest),
            None => (false, trimmed),
        },
    };
    let mut digits = strip_leading_zeros(unsigned).ok_or(NotAnInteger::Grammar)?;
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

/// The text from its first digit that is not zero on; `None` where it does not begin like a number.
fn strip_leading_zeros(text: &str) -> Option<&str> {
    match text.bytes().next()? {
        b'0' => {}
        b'1'..=b'9' | b'-' => return Some(text),
        _ => return None,
    }
    for (at, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            b'0' | b'_' => {}
            b'1'..=b'9' | b'-' => return Some(&text[at..]),
            b'.' => return Some(&text[at - 1..]),
            _ => return None,
        }
    }
    Some(&text[text.len() - 1..])
}
