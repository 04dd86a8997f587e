//! Bodies that are JSON objects, read field by field.

use std::borrow::Cow;

use serde_json::{Map, Value};

use super::faults::{Fault, Step};
use crate::domain::{TextError, Word};

/// How many faults a request may have before the rest of a list is not looked at any more: nobody reads a hundred, and
/// each says its place and its value again.
const MAX_FAULTS: usize = 100;

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

    /// A list of texts that may be absent (none) or null.
    pub(crate) fn texts(&mut self, name: &'static str) -> Option<Vec<String>> {
        self.read_items(name, read_text)
    }

    /// A list of texts that may be absent or null, which is the same.
    pub(crate) fn texts_or_null(&mut self, name: &'static str) -> Option<Vec<String>> {
        self.present(name).and_then(|_| self.texts(name))
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
        self.read_items(name, read_free_object)
    }

    /// The items of a list as `read` reads each, as far as it is worth it; `None` where the list is null or none.
    fn read_items<T>(
        &mut self,
        name: &'static str,
        read: impl Fn(&Value, Vec<Step>, &mut Vec<Fault>) -> Option<T>,
    ) -> Option<Vec<T>> {
        let mut found = Vec::new();
        for (at, item) in self.list(name)?.iter().enumerate() {
            if self.faults.len() >= MAX_FAULTS {
                break;
            }
            found.extend(read(item, self.loc_in(name, at), self.faults));
        }
        Some(found)
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
            // As pydantic and JSON schema have it, 3.0 is a whole number, and it may be of any size.
            let is_whole = value.as_f64().is_some_and(|number| number.is_finite() && number.fract() == 0.0);
            if !value.is_null() && !is_whole {
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

    /// A truth value, and nothing that could pass for one, not null either; it may be absent.
    pub(crate) fn exact_flag(&mut self, name: &'static str) {
        if let Some(value) = self.fields.get(name)
            && !value.is_boolean()
        {
            let fault =
                Fault::new("bool_type", self.loc_of(name), "Input should be a valid boolean", value.clone());
            self.faults.push(fault);
        }
    }

    /// A list of objects that may be absent or null; `check` looks at each.
    pub(crate) fn each_object(&mut self, name: &'static str, check: impl Fn(&mut ObjectReader<'a, '_>)) {
        let Some(items) = self.list(name) else { return };
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

    /// The items of a list, none where it is absent; `None` where it is null or no list.
    fn list(&mut self, name: &'static str) -> Option<&'a [Value]> {
        match self.fields.get(name) {
            None => Some(&[]),
            Some(Value::Null) => None,
            Some(Value::Array(items)) => Some(items),
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
