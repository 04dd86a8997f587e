//! Faults of a request, in the words, the order and the shape of FastAPI and pydantic 2, which is what clients of the
//! contract have been written against. A reader collects every fault of a request instead of stopping at the first.
//! `tests/it/contract/fastapi_answers.json` holds what FastAPI itself answers.

use std::borrow::Cow;

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::{Map, Number, Value, json};
use strum::EnumMessage;

use crate::domain::{TextError, Word};

/// How many faults a request may have before the rest of a list is not looked at any more: nobody reads a hundred, and
/// each says its place and its value again.
const MAX_FAULTS: usize = 100;

/// Fields whose values are secrets: they are not sent back, not even in a fault.
const SECRET_FIELDS: [&str; 6] =
    ["user_oidc_token", "user_tokens", "api_key", "client_secret", "headers", "env_vars"];

/// When a day begins.
const MIDNIGHT: speedate::Time =
    speedate::Time { hour: 0, minute: 0, second: 0, microsecond: 0, tz_offset: None };

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

    fn with_ctx(mut self, ctx: Value) -> Self {
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

    fn one_of<T: Word>(loc: Vec<Step>, input: Value) -> Self {
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

/// An object in a body, read field by field in the contract's order. Fields that nobody reads are ignored.
pub(crate) struct ObjectReader<'a, 'f> {
    fields: &'a Map<String, Value>,
    loc: Vec<Step>,
    faults: &'f mut Vec<Fault>,
}

impl<'a, 'f> ObjectReader<'a, 'f> {
    /// A reader of the whole body, or `None`, and a fault, where it is no object.
    pub(crate) fn of_body(body: &'a Value, faults: &'f mut Vec<Fault>) -> Option<Self> {
        Self::of(body, vec!["body".into()], faults)
    }

    /// A reader of an item of the body, where that is a list.
    pub(crate) fn of_item(item: &'a Value, at: usize, faults: &'f mut Vec<Fault>) -> Option<Self> {
        Self::of(item, vec!["body".into(), Step::Index(at)], faults)
    }

    fn of(value: &'a Value, loc: Vec<Step>, faults: &'f mut Vec<Fault>) -> Option<Self> {
        if let Value::Object(fields) = value {
            Some(Self { fields, loc, faults })
        } else {
            faults.push(Fault::not_an_object(loc, value.clone()));
            None
        }
    }

    fn loc_of(&self, name: &'static str) -> Vec<Step> {
        let mut loc = self.loc.clone();
        loc.push(name.into());
        loc
    }

    /// The field's value, unless it is absent or null.
    fn present(&self, name: &str) -> Option<&'a Value> {
        self.fields.get(name).filter(|value| !value.is_null())
    }

    /// Whether the field is there and null.
    pub(crate) fn is_null(&self, name: &str) -> bool {
        self.fields.get(name).is_some_and(Value::is_null)
    }

    /// An object that must be there.
    pub(crate) fn required_object(&mut self, name: &'static str) -> Option<ObjectReader<'a, '_>> {
        let loc = self.loc_of(name);
        let Some(value) = self.fields.get(name) else {
            self.faults.push(Fault::missing(loc, Value::Object(self.fields.clone())));
            return None;
        };
        ObjectReader::of(value, loc, self.faults)
    }

    /// An object that may be absent or null.
    pub(crate) fn object(&mut self, name: &'static str) -> Option<ObjectReader<'a, '_>> {
        ObjectReader::of(self.present(name)?, self.loc_of(name), self.faults)
    }

    /// A text that must be there. Where it is not, the fault is noted and the empty text stands in for it.
    pub(crate) fn required_text(&mut self, name: &'static str) -> String {
        let loc = self.loc_of(name);
        match self.fields.get(name) {
            None => self.faults.push(Fault::missing(loc, Value::Object(self.fields.clone()))),
            Some(value) => return read_text(value, loc, self.faults).unwrap_or_default(),
        }
        String::new()
    }

    /// A text that may be absent or null.
    pub(crate) fn text(&mut self, name: &'static str) -> Option<String> {
        read_text(self.present(name)?, self.loc_of(name), self.faults)
    }

    /// A text that is checked, and then forgotten: secrets, and what means nothing here.
    pub(crate) fn ignored_text(&mut self, name: &'static str) {
        if let Some(value) = self.present(name)
            && !value.is_string()
        {
            self.faults.push(not_a_text(self.loc_of(name), value));
        }
    }

    /// An id or a label. An empty one is none: official clients send empty texts for what they don't have.
    pub(crate) fn parsed_text<T>(
        &mut self,
        name: &'static str,
        parse: impl Fn(String) -> Result<T, TextError>,
    ) -> Option<T> {
        let value = self.present(name)?;
        let loc = self.loc_of(name);
        let Some(text) = value.as_str() else {
            self.faults.push(not_a_text(loc, value));
            return None;
        };
        if text.is_empty() {
            return None;
        }
        parse(text.to_owned()).map_err(|error| self.faults.push(Fault::text(loc, error, value.clone()))).ok()
    }

    /// An id or a label that must be there.
    pub(crate) fn required_parsed_text<T>(
        &mut self,
        name: &'static str,
        parse: impl Fn(String) -> Result<T, TextError>,
    ) -> Option<T> {
        let loc = self.loc_of(name);
        let Some(value) = self.fields.get(name) else {
            self.faults.push(Fault::missing(loc, Value::Object(self.fields.clone())));
            return None;
        };
        let text = read_text(value, loc.clone(), self.faults)?;
        parse(text).map_err(|error| self.faults.push(Fault::text(loc, error, value.clone()))).ok()
    }

    /// A list of texts that may be absent (`default`) or null.
    pub(crate) fn texts(&mut self, name: &'static str, default: Vec<String>) -> Option<Vec<String>> {
        let items = self.list(name, default)?;
        Some(match items {
            Ok(default) => default,
            Err(items) => items
                .iter()
                .enumerate()
                .map_while(|(at, item)| {
                    let is_worth_it = self.faults.len() < MAX_FAULTS;
                    is_worth_it.then(|| read_text(item, self.loc_in(name, at), self.faults))
                })
                .flatten()
                .collect(),
        })
    }

    /// A list of texts that may be absent or null, which is the same.
    pub(crate) fn texts_or_null(&mut self, name: &'static str) -> Option<Vec<String>> {
        self.present(name).and_then(|_| self.texts(name, Vec::new()))
    }

    /// A number that may be absent or null.
    pub(crate) fn number(&mut self, name: &'static str) -> Option<f64> {
        let value = self.present(name)?;
        let number = value.as_f64().filter(|number| number.is_finite());
        if number.is_none() {
            let fault =
                Fault::new("float_type", self.loc_of(name), "Input should be a valid number", value.clone());
            self.faults.push(fault);
        }
        number
    }

    /// A whole number of 64 bits that may be absent or null.
    pub(crate) fn integer(&mut self, name: &'static str) -> Option<i64> {
        let value = self.present(name)?;
        let number = value.as_i64();
        if number.is_none() {
            let fault =
                Fault::new("int_type", self.loc_of(name), "Input should be a valid integer", value.clone());
            self.faults.push(fault);
        }
        number
    }

    /// Any value but null.
    pub(crate) fn value(&self, name: &str) -> Option<&'a Value> {
        self.present(name)
    }

    /// A list of free objects that may be absent (none) or null.
    pub(crate) fn free_objects(&mut self, name: &'static str) -> Option<Vec<Map<String, Value>>> {
        let items = self.list(name, Vec::new())?;
        Some(match items {
            Ok(default) => default,
            Err(items) => items
                .iter()
                .enumerate()
                .map_while(|(at, item)| {
                    let is_worth_it = self.faults.len() < MAX_FAULTS;
                    is_worth_it.then(|| read_free_object(item, self.loc_in(name, at), self.faults))
                })
                .flatten()
                .collect(),
        })
    }

    /// A free object that may be absent or null: any keys, any values.
    pub(crate) fn free_object(&mut self, name: &'static str) -> Option<Map<String, Value>> {
        read_free_object(self.present(name)?, self.loc_of(name), self.faults)
    }

    /// An object that may be absent or null and is kept as it came, once `check` has found no fault in its known fields.
    pub(crate) fn checked_object(
        &mut self,
        name: &'static str,
        check: impl FnOnce(&mut ObjectReader<'a, '_>),
    ) -> Option<Map<String, Value>> {
        let fields = self.free_object(name)?;
        let faults_before = self.faults.len();
        if let Some(mut object) = self.object(name) {
            check(&mut object);
        }
        (self.faults.len() == faults_before).then_some(fields)
    }

    /// Every field is a whole number or null.
    pub(crate) fn all_integers(&mut self) {
        for (name, value) in self.fields {
            if !value.is_null() && value.as_i64().is_none() {
                let mut loc = self.loc.clone();
                loc.push(Step::Name(Cow::Owned(name.clone())));
                self.faults.push(Fault::new(
                    "int_type",
                    loc,
                    "Input should be a valid integer",
                    value.clone(),
                ));
            }
        }
    }

    /// A truth value, and nothing that could pass for one, that may be absent or null.
    pub(crate) fn exact_flag(&mut self, name: &'static str) {
        if let Some(value) = self.present(name)
            && !value.is_boolean()
        {
            let fault =
                Fault::new("bool_type", self.loc_of(name), "Input should be a valid boolean", value.clone());
            self.faults.push(fault);
        }
    }

    /// A list of objects that may be absent or null; `check` looks at each.
    pub(crate) fn each_object(&mut self, name: &'static str, check: impl Fn(&mut ObjectReader<'a, '_>)) {
        let Some(Err(items)) = self.list(name, ()) else { return };
        for (at, item) in items.iter().enumerate() {
            let loc = self.loc_in(name, at);
            if self.faults.len() >= MAX_FAULTS {
                return;
            }
            if let Some(mut object) = ObjectReader::of(item, loc, self.faults) {
                check(&mut object);
            }
        }
    }

    /// A free object that is checked, and then forgotten.
    pub(crate) fn ignored_object(&mut self, name: &'static str) {
        if let Some(value) = self.present(name)
            && !value.is_object()
        {
            // A text here is most likely the secret that the object should have held.
            let shown = if value.is_string() { &Value::from("**********") } else { value };
            self.faults.push(not_a_free_object(self.loc_of(name), shown));
        }
    }

    /// A truth value that may be absent (`false`) or null.
    pub(crate) fn flag(&mut self, name: &'static str) -> Option<bool> {
        if self.is_null(name) { None } else { Some(self.strict_flag(name)) }
    }

    /// A truth value that may be absent (`false`), but not null.
    pub(crate) fn strict_flag(&mut self, name: &'static str) -> bool {
        let Some(value) = self.fields.get(name) else { return false };
        match parse_flag(value) {
            Ok(flag) => flag,
            Err((kind, msg)) => {
                self.faults.push(Fault::new(kind, self.loc_of(name), msg, value.clone()));
                false
            }
        }
    }

    /// A truth value that may be absent or null, which both mean `default`.
    pub(crate) fn flag_or(&mut self, name: &'static str, default: bool) -> bool {
        if self.present(name).is_some() { self.strict_flag(name) } else { default }
    }

    /// Any value that can be stored.
    pub(crate) fn stored_value(&mut self, name: &'static str) -> Option<Value> {
        let value = self.present(name)?;
        if has_nul(value) {
            self.faults.push(Fault::text(self.loc_of(name), TextError::Nul, value.clone()));
            return None;
        }
        Some(value.clone())
    }

    /// A word of an enumeration that may be absent (`default`) or null.
    pub(crate) fn one_of<T: Word>(&mut self, name: &'static str, default: Option<T>) -> Option<T> {
        let Some(value) = self.fields.get(name) else { return default };
        if value.is_null() {
            return None;
        }
        let word = value.as_str().and_then(T::parse);
        if word.is_none() {
            self.faults.push(Fault::one_of::<T>(self.loc_of(name), value.clone()));
        }
        word
    }

    /// The items of a list, or the default where it is absent; `None` where it is null or no list.
    fn list<T>(&mut self, name: &'static str, default: T) -> Option<Result<T, &'a [Value]>> {
        match self.fields.get(name) {
            None => Some(Ok(default)),
            Some(Value::Null) => None,
            Some(Value::Array(items)) => Some(Err(items)),
            Some(other) => {
                self.faults.push(Fault::not_a_list(self.loc_of(name), other.clone()));
                None
            }
        }
    }

    fn loc_in(&self, name: &'static str, index: usize) -> Vec<Step> {
        let mut loc = self.loc_of(name);
        loc.push(Step::Index(index));
        loc
    }
}

fn read_text(value: &Value, loc: Vec<Step>, faults: &mut Vec<Fault>) -> Option<String> {
    let Some(text) = value.as_str() else {
        faults.push(not_a_text(loc, value));
        return None;
    };
    if text.contains('\0') {
        faults.push(Fault::text(loc, TextError::Nul, value.clone()));
        return None;
    }
    Some(text.to_owned())
}

fn not_a_text(loc: Vec<Step>, value: &Value) -> Fault {
    Fault::new("string_type", loc, "Input should be a valid string", value.clone())
}

fn read_free_object(value: &Value, loc: Vec<Step>, faults: &mut Vec<Fault>) -> Option<Map<String, Value>> {
    let Value::Object(fields) = value else {
        faults.push(not_a_free_object(loc, value));
        return None;
    };
    if has_nul(value) {
        faults.push(Fault::text(loc, TextError::Nul, value.clone()));
        return None;
    }
    Some(fields.clone())
}

fn not_a_free_object(loc: Vec<Step>, value: &Value) -> Fault {
    Fault::new("dict_type", loc, "Input should be a valid dictionary", value.clone())
}

fn has_nul(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
        Value::String(text) => text.contains('\0'),
        Value::Array(items) => items.iter().any(has_nul),
        Value::Object(fields) => fields.iter().any(|(key, value)| key.contains('\0') || has_nul(value)),
    }
}

/// A truth value as pydantic reads it in its lax mode; otherwise the fault's type and message.
fn parse_flag(value: &Value) -> Result<bool, (&'static str, &'static str)> {
    const WORD: (&str, &str) = ("bool_parsing", "Input should be a valid boolean, unable to interpret input");
    const TYPE: (&str, &str) = ("bool_type", "Input should be a valid boolean");
    match value {
        Value::Bool(flag) => Ok(*flag),
        Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(0), _) | (None, Some(0.0)) => Ok(false),
            (Some(1), _) | (None, Some(1.0)) => Ok(true),
            (Some(_), _) => Err(WORD),
            (None, _) => {
                let whole =
                    number.as_f64().is_some_and(|float| float.fract() == 0.0 && float.abs() < 2f64.powi(63));
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
