//! Checks of JSON that keep no values.

use std::fmt;

use serde::de::{Error, MapAccess, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Number;

/// Prefix of the names by which `serde_json` marks its own values. It would misread an object with
/// such a name.
pub const RESERVED_NAMES: &str = "$serde_json::private::";

/// The name that it gives to visitors of numbers.
const NUMBER: &str = "$serde_json::private::Number";

/// Any JSON without NUL, which PostgreSQL cannot store. Nested as deeply as it can be read back.
pub(super) struct Json;

/// A JSON object, of which the rest is as in [`Json`].
pub(super) struct Object;

/// A text.
pub(super) struct Text;

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(JsonVisitor { only_objects: false }).map(|()| Self)
    }
}

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_map(JsonVisitor { only_objects: true }).map(|()| Self)
    }
}

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct TextVisitor;
        impl Visitor<'_> for TextVisitor {
            type Value = Text;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_str<E: Error>(self, _: &str) -> Result<Text, E> {
                Ok(Text)
            }
        }
        from.deserialize_str(TextVisitor)
    }
}

/// The name of a field, as far as it matters.
enum Name {
    Number,
    Other,
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct NameVisitor;
        impl Visitor<'_> for NameVisitor {
            type Value = Name;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name")
            }

            fn visit_str<E: Error>(self, name: &str) -> Result<Name, E> {
                refuse_nul(name)?;
                match name {
                    NUMBER => Ok(Name::Number),
                    name if name.starts_with(RESERVED_NAMES) => {
                        Err(E::custom(format!("the name `{name}` is reserved")))
                    }
                    _ => Ok(Name::Other),
                }
            }
        }
        from.deserialize_identifier(NameVisitor)
    }
}

fn refuse_nul<E: Error>(text: &str) -> Result<(), E> {
    if text.contains('\0') {
        return Err(E::custom("a text contains NUL (U+0000), which cannot be stored"));
    }
    Ok(())
}

struct JsonVisitor {
    only_objects: bool,
}

impl JsonVisitor {
    fn scalar<E: Error>(&self, unexpected: Unexpected<'_>) -> Result<(), E> {
        if self.only_objects { Err(E::invalid_type(unexpected, self)) } else { Ok(()) }
    }
}

impl<'de> Visitor<'de> for JsonVisitor {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.only_objects { "a map" } else { "JSON" })
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
        self.scalar(Unexpected::Bool(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        self.scalar(Unexpected::Signed(value))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        self.scalar(Unexpected::Unsigned(value))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        self.scalar(Unexpected::Float(value))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        self.scalar(Unexpected::Str(text))?;
        refuse_nul(text)
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        self.scalar(Unexpected::Unit)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        self.scalar(Unexpected::Seq)?;
        while items.next_element::<Json>()?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<(), A::Error> {
        while let Some(name) = fields.next_key::<Name>()? {
            match name {
                // A number. An object with this name is read as one too, so it must be one.
                Name::Number => {
                    let text: String = fields.next_value()?;
                    return match text.parse::<Number>() {
                        Ok(_) => self.scalar(Unexpected::Other("number")),
                        Err(_) => Err(A::Error::custom("the name is reserved")),
                    };
                }
                Name::Other => {
                    fields.next_value::<Json>()?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    /// The check accepts what the parser of values accepts, apart from reserved names.
    #[test]
    fn any_json_is_what_can_be_read_back() {
        let nested = |levels| "[".repeat(levels) + &"]".repeat(levels);
        let valid = [
            "1",
            "-1",
            "1.50",
            "1e400",
            "123456789012345678901234567890",
            "\"a\"",
            "null",
            "true",
            "[[],{}]",
            "{\"a\":{\"b\":[1,\"\\u00e9\"]}}",
            "\"\\\\u0000\"",
        ];
        for text in valid.map(str::to_owned).into_iter().chain([nested(127)]) {
            assert!(serde_json::from_str::<Value>(&text).is_ok(), "{text}");
            assert!(serde_json::from_str::<Json>(&text).is_ok(), "{text}");
        }
        let invalid = [
            "\"\\ud800\"",
            "\"\\u0000\"",
            "{\"\\u0000\":1}",
            "{\"$serde_json::private::Number\":\"x\"}",
            "{\"$serde_json::private::RawValue\":\"1\"}",
            "{\"\\u0024serde_json::private::RawValue\":\"1\"}",
        ];
        for text in invalid.map(str::to_owned).into_iter().chain([nested(128)]) {
            assert!(serde_json::from_str::<Json>(&text).is_err(), "{text}");
        }
        assert!(serde_json::from_str::<Object>("5").is_err());
        assert!(serde_json::from_str::<Object>("[]").is_err());
    }
}
