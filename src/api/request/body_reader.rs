//! Bodies that are JSON objects, read field by field.

use std::borrow::Cow;

use serde_json::{Map, Value, json};

use super::json_value::{
    not_a_json_object, not_a_string, parse_bool, read_json_object, read_string,
};
use crate::api::error::validation::{LocSegment, ValidationError, ValidationErrors};
use crate::domain::{TextError, WireEnum, has_nul};

/// An object in a body, read field by field in the contract's order. Other fields are ignored.
pub(crate) struct BodyReader<'a, 'e> {
    fields: &'a Map<String, Value>,
    loc: Vec<LocSegment>,
    errors: &'e mut ValidationErrors,
}

impl<'a, 'e> BodyReader<'a, 'e> {
    /// A reader of the whole body. If it is not an object: `None`, and an error.
    pub(crate) fn for_body(body: &'a Value, errors: &'e mut ValidationErrors) -> Option<Self> {
        Self::for_value(body, vec!["body".into()], errors)
    }

    /// A reader of one item of a body that is an array.
    pub(crate) fn for_item(
        item: &'a Value,
        index: usize,
        errors: &'e mut ValidationErrors,
    ) -> Option<Self> {
        Self::for_value(item, vec!["body".into(), LocSegment::Index(index)], errors)
    }

    fn for_value(
        value: &'a Value,
        loc: Vec<LocSegment>,
        errors: &'e mut ValidationErrors,
    ) -> Option<Self> {
        if let Value::Object(fields) = value {
            Some(Self { fields, loc, errors })
        } else {
            errors.push(ValidationError::not_an_object(loc, value.clone()));
            None
        }
    }

    fn loc_of(&self, name: &'static str) -> Vec<LocSegment> {
        let mut loc = self.loc.clone();
        loc.push(name.into());
        loc
    }

    fn loc_in(&self, name: &'static str, index: usize) -> Vec<LocSegment> {
        let mut loc = self.loc_of(name);
        loc.push(LocSegment::Index(index));
        loc
    }

    /// The field's value, if it is present.
    fn get(&self, name: &str) -> Option<&'a Value> {
        // Tests compare what is read with what is documented.
        tracing::trace!(
            target: "task_history::api::fields", loc = %json!(self.loc), field = name
        );
        self.fields.get(name)
    }

    /// The field's value, unless it is absent or null.
    pub(crate) fn value(&self, name: &str) -> Option<&'a Value> {
        self.get(name).filter(|value| !value.is_null())
    }

    /// The value of a required field. If it is missing: `None`, and an error.
    fn required(&mut self, name: &'static str) -> Option<&'a Value> {
        let value = self.get(name);
        if value.is_none() {
            let within = Value::Object(self.fields.clone());
            self.errors.push(ValidationError::missing(self.loc_of(name), within));
        }
        value
    }

    /// Adds an error about a field.
    fn push_error(&mut self, name: &'static str, kind: &'static str, msg: &str, value: &Value) {
        let error = ValidationError::new(kind, self.loc_of(name), msg, value.clone());
        self.errors.push(error);
    }

    /// Whether the field is present and null.
    pub(crate) fn is_null(&self, name: &str) -> bool {
        self.get(name).is_some_and(Value::is_null)
    }

    /// A required object.
    pub(crate) fn required_object(&mut self, name: &'static str) -> Option<BodyReader<'a, '_>> {
        let value = self.required(name)?;
        BodyReader::for_value(value, self.loc_of(name), self.errors)
    }

    /// An object that may be absent or null.
    pub(crate) fn object(&mut self, name: &'static str) -> Option<BodyReader<'a, '_>> {
        BodyReader::for_value(self.value(name)?, self.loc_of(name), self.errors)
    }

    /// A required string. If it is not one, the error is noted and the result is empty.
    pub(crate) fn required_string(&mut self, name: &'static str) -> String {
        let string = self
            .required(name)
            .and_then(|value| read_string(value, self.loc_of(name), self.errors));
        string.unwrap_or_default()
    }

    /// A string that may be absent or null.
    pub(crate) fn string(&mut self, name: &'static str) -> Option<String> {
        read_string(self.value(name)?, self.loc_of(name), self.errors)
    }

    /// Checks a string, then drops it: secrets, and what has no meaning here.
    pub(crate) fn discard_string(&mut self, name: &'static str) {
        if let Some(value) = self.value(name)
            && !value.is_string()
        {
            self.errors.push(not_a_string(self.loc_of(name), value));
        }
    }

    /// An id or a short text. An empty string is absent: official clients send one for what they do
    /// not have.
    pub(crate) fn parsed_string<T>(
        &mut self,
        name: &'static str,
        parse: impl Fn(String) -> Result<T, TextError>,
    ) -> Option<T> {
        let value = self.value(name)?;
        let loc = self.loc_of(name);
        let Some(text) = value.as_str() else {
            self.errors.push(not_a_string(loc, value));
            return None;
        };
        if text.is_empty() {
            return None;
        }
        self.parse(loc, value, text.to_owned(), parse)
    }

    /// A required id or short text.
    pub(crate) fn required_parsed_string<T>(
        &mut self,
        name: &'static str,
        parse: impl Fn(String) -> Result<T, TextError>,
    ) -> Option<T> {
        let value = self.required(name)?;
        let loc = self.loc_of(name);
        let text = read_string(value, loc.clone(), self.errors)?;
        self.parse(loc, value, text, parse)
    }

    fn parse<T>(
        &mut self,
        loc: Vec<LocSegment>,
        value: &Value,
        text: String,
        parse: impl Fn(String) -> Result<T, TextError>,
    ) -> Option<T> {
        parse(text)
            .map_err(|error| {
                self.errors.push(ValidationError::invalid_text(loc, error, value.clone()));
            })
            .ok()
    }

    /// An array of strings that may be absent (empty) or null.
    pub(crate) fn strings(&mut self, name: &'static str) -> Option<Vec<String>> {
        self.read_items(name, read_string)
    }

    /// An array of strings that may be absent or null, which both mean `None`.
    pub(crate) fn optional_strings(&mut self, name: &'static str) -> Option<Vec<String>> {
        self.value(name).and_then(|_| self.strings(name))
    }

    /// A number that may be absent or null.
    pub(crate) fn number(&mut self, name: &'static str) -> Option<f64> {
        let value = self.value(name)?;
        let number = value.as_f64().filter(|number| number.is_finite());
        if number.is_none() {
            self.push_error(name, "float_type", "Input should be a valid number", value);
        }
        number
    }

    /// An integer of 64 bits that may be absent or null.
    pub(crate) fn integer(&mut self, name: &'static str) -> Option<i64> {
        let value = self.value(name)?;
        let number = value.as_i64();
        if number.is_none() {
            self.push_error(name, "int_type", "Input should be a valid integer", value);
        }
        number
    }

    /// The number of a turn, from 1, that may be absent or null. As in JSON Schema, 2.0 is an
    /// integer, and it may have any size.
    pub(crate) fn turn(&mut self) -> Option<i32> {
        const NAME: &str = "turn";
        let value = self.value(NAME)?;
        #[expect(clippy::cast_possible_truncation, reason = "the cast saturates")]
        let of_float = |number: f64| (number.fract() == 0.0).then_some(number as i64);
        let number = value.as_i64().or_else(|| value.as_f64().and_then(of_float));
        let Some(number) = number else {
            self.push_error(NAME, "int_type", "Input should be a valid integer", value);
            return None;
        };
        if number < 1 {
            let msg = "Input should be greater than or equal to 1";
            let value = self.get(NAME).cloned().unwrap_or_default();
            let error = ValidationError::new("greater_than_equal", self.loc_of(NAME), msg, value);
            self.errors.push(error.with_ctx(json!({ "ge": 1 })));
        }
        // No task has as many turns as that.
        Some(i32::try_from(number).unwrap_or(i32::MAX))
    }

    /// An array of JSON objects that may be absent (empty) or null.
    pub(crate) fn json_objects(&mut self, name: &'static str) -> Option<Vec<Map<String, Value>>> {
        self.read_items(name, read_json_object)
    }

    /// The items of an array as `read` reads each, until there are too many errors. `None` if it is
    /// null or not an array.
    fn read_items<T>(
        &mut self,
        name: &'static str,
        read: impl Fn(&Value, Vec<LocSegment>, &mut ValidationErrors) -> Option<T>,
    ) -> Option<Vec<T>> {
        let mut found = Vec::new();
        for (index, item) in self.array(name)?.iter().enumerate() {
            if self.errors.is_full() {
                break;
            }
            found.extend(read(item, self.loc_in(name, index), self.errors));
        }
        Some(found)
    }

    /// A JSON object that may be absent or null: any keys, any values.
    pub(crate) fn json_object(&mut self, name: &'static str) -> Option<Map<String, Value>> {
        read_json_object(self.value(name)?, self.loc_of(name), self.errors)
    }

    /// An object that may be absent or null. It is kept as received if `check` finds no error in
    /// its known fields.
    pub(crate) fn checked_object(
        &mut self,
        name: &'static str,
        check: impl FnOnce(&mut BodyReader<'a, '_>),
    ) -> Option<Map<String, Value>> {
        let fields = self.json_object(name)?;
        let errors_before = self.errors.len();
        if let Some(mut object) = self.object(name) {
            check(&mut object);
        }
        (self.errors.len() == errors_before).then_some(fields)
    }

    /// Checks that every field is an integer or null.
    pub(crate) fn all_integers(&mut self) {
        for (name, value) in self.fields {
            if self.errors.is_full() {
                return;
            }
            // As in pydantic and JSON schema, 3.0 is an integer, and it may have any size.
            let is_integer =
                value.as_f64().is_some_and(|number| number.is_finite() && number.fract() == 0.0);
            if !value.is_null() && !is_integer {
                let mut loc = self.loc.clone();
                loc.push(LocSegment::Name(Cow::Owned(name.clone())));
                let msg = "Input should be a valid integer";
                self.errors.push(ValidationError::new("int_type", loc, msg, value.clone()));
            }
        }
    }

    /// Checks that a boolean is one, and neither null nor a value that could be taken for one. It
    /// may be absent.
    pub(crate) fn check_strict_bool(&mut self, name: &'static str) {
        if let Some(value) = self.get(name)
            && !value.is_boolean()
        {
            self.push_error(name, "bool_type", "Input should be a valid boolean", value);
        }
    }

    /// An array of objects that may be absent or null. `check` gets each.
    pub(crate) fn each_object(
        &mut self,
        name: &'static str,
        check: impl Fn(&mut BodyReader<'a, '_>),
    ) {
        let Some(items) = self.array(name) else { return };
        for (index, item) in items.iter().enumerate() {
            let loc = self.loc_in(name, index);
            if self.errors.is_full() {
                return;
            }
            if let Some(mut object) = BodyReader::for_value(item, loc, self.errors) {
                check(&mut object);
            }
        }
    }

    /// Checks a JSON object, then drops it.
    pub(crate) fn discard_object(&mut self, name: &'static str) {
        if let Some(value) = self.value(name)
            && !value.is_object()
        {
            // A string here is most likely the secret that the object should have held.
            let shown = if value.is_string() { &Value::from("**********") } else { value };
            self.errors.push(not_a_json_object(self.loc_of(name), shown));
        }
    }

    /// A boolean that may be absent (`false`) or null.
    pub(crate) fn bool(&mut self, name: &'static str) -> Option<bool> {
        if self.is_null(name) { None } else { Some(self.bool_not_null(name)) }
    }

    /// A boolean that may be absent (`false`), but not null.
    pub(crate) fn bool_not_null(&mut self, name: &'static str) -> bool {
        let Some(value) = self.get(name) else { return false };
        parse_bool(value).unwrap_or_else(|(kind, msg)| {
            self.push_error(name, kind, msg, value);
            false
        })
    }

    /// A boolean that may be absent or null, which both mean `default`.
    pub(crate) fn bool_or(&mut self, name: &'static str, default: bool) -> bool {
        if self.value(name).is_some() { self.bool_not_null(name) } else { default }
    }

    /// Any value that can be stored.
    pub(crate) fn storable_value(&mut self, name: &'static str) -> Option<Value> {
        let value = self.value(name)?;
        if has_nul(value) {
            let loc = self.loc_of(name);
            self.errors.push(ValidationError::invalid_text(loc, TextError::Nul, value.clone()));
            return None;
        }
        Some(value.clone())
    }

    /// A word of an enumeration that may be absent (`default`) or null.
    pub(crate) fn one_of<T: WireEnum>(
        &mut self,
        name: &'static str,
        default: Option<T>,
    ) -> Option<T> {
        let Some(value) = self.get(name) else { return default };
        if value.is_null() {
            return None;
        }
        let word = value.as_str().and_then(T::parse);
        if word.is_none() {
            let loc = self.loc_of(name);
            self.errors.push(ValidationError::not_one_of::<T>(loc, value.clone()));
        }
        word
    }

    /// The items of an array, none if it is absent. `None` if it is null or not an array.
    fn array(&mut self, name: &'static str) -> Option<&'a [Value]> {
        match self.get(name) {
            None => Some(&[]),
            Some(Value::Null) => None,
            Some(Value::Array(items)) => Some(items),
            Some(other) => {
                self.errors.push(ValidationError::not_a_list(self.loc_of(name), other.clone()));
                None
            }
        }
    }
}
