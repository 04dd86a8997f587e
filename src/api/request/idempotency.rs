//! The `Idempotency-Key` header, and the digest of the request that it belongs to.

use std::io;

use axum::http::HeaderMap;
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::text_header::read_text_header;
use crate::api::error::validation::{ValidationError, ValidationErrors};
use crate::domain::ShortText;
use crate::store::Idempotency;

/// The header that makes a request safe to send again.
const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// Reads the idempotency key of a request. An empty header is absent.
pub(crate) fn read_idempotency_key(
    headers: &HeaderMap,
    errors: &mut ValidationErrors,
) -> Option<ShortText> {
    let key = read_text_header(headers, IDEMPOTENCY_KEY, errors).filter(|key| !key.is_empty())?;
    ShortText::parse(key.as_str())
        .map_err(|error| {
            let loc = vec!["header".into(), IDEMPOTENCY_KEY.into()];
            errors.push(ValidationError::invalid_text(loc, error, key.into()));
        })
        .ok()
}

/// The key of an invocation. `source` is the route's own, which its answer may show.
pub(crate) fn of_invocation(
    key: ShortText,
    source: &str,
    version: Option<&str>,
    body: &Value,
) -> Idempotency {
    let mut earlier = Sink(Sha256::new());
    earlier.0.update(version.unwrap_or_default());
    earlier.0.update(" ");
    earlier.write_json(body);
    let earlier_digest = Some(earlier.0.finalize().into());
    let parts = ["invocation", source, version.unwrap_or_default()];
    Idempotency { key, digest: digest(&parts, body), earlier_digest }
}

/// The key of a turn that ran elsewhere.
pub(crate) fn of_external_turn(key: ShortText, body: &Value) -> Idempotency {
    Idempotency { key, digest: digest(&["external turn"], body), earlier_digest: None }
}

/// The SHA-256 of a request. The names of an object have no order, so a body in another order is
/// the same request.
fn digest(parts: &[&str], body: &Value) -> [u8; 32] {
    let mut sink = Sink(Sha256::new());
    for part in parts {
        // JSON strings end, so that no two lists of parts are the same text.
        sink.write_json(part);
    }
    sink.write_canonical(body);
    sink.0.finalize().into()
}

/// Digests what is written, so that the text of a body is never in memory a second time.
struct Sink(Sha256);

impl Sink {
    fn write_json(&mut self, value: &(impl Serialize + ?Sized)) {
        serde_json::to_writer(self, value).expect("a digest takes any text, and a value is JSON");
    }

    /// Writes JSON with the names of every object in order. The depth is that of a body, which is
    /// limited.
    fn write_canonical(&mut self, value: &Value) {
        match value {
            Value::Object(fields) => {
                let mut fields: Vec<_> = fields.iter().collect();
                fields.sort_unstable_by_key(|(name, _)| *name);
                self.0.update("{");
                for (name, value) in fields {
                    self.write_json(name);
                    self.0.update(":");
                    self.write_canonical(value);
                    self.0.update(",");
                }
                self.0.update("}");
            }
            Value::Array(items) => {
                self.0.update("[");
                for item in items {
                    self.write_canonical(item);
                    self.0.update(",");
                }
                self.0.update("]");
            }
            scalar => self.write_json(scalar),
        }
    }
}

impl io::Write for &mut Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest_of(body: &str) -> [u8; 32] {
        digest(&[], &serde_json::from_str(body).expect("JSON"))
    }

    #[test]
    fn only_the_order_of_names_does_not_count() {
        let body = r#"{"a":{"x":1,"y":[{"p":1,"q":2},"s"]},"b":null}"#;
        for same in [
            r#"{"b":null,"a":{"y":[{"q":2,"p":1},"s"],"x":1}}"#,
            r#" { "a" : {"x":1,"y":[{"p":1,"q":2},"\u0073"]}, "b":null } "#,
        ] {
            assert_eq!(digest_of(body), digest_of(same), "{same}");
        }
        for other in [
            r#"{"a":{"x":1,"y":["s",{"p":1,"q":2}]},"b":null}"#,
            r#"{"a":{"x":1,"y":[{"p":1,"q":2},"s"]}}"#,
            r#"{"a":{"x":1,"y":[{"p":1,"q":2},"s"],"b":null}}"#,
            r#"{"a":{"x":"1","y":[{"p":1,"q":2},"s"]},"b":null}"#,
            r#"{"a":{"x":1,"y":[{"p":1},{"q":2},"s"]},"b":null}"#,
        ] {
            assert_ne!(digest_of(body), digest_of(other), "{other}");
        }
    }

    #[test]
    fn another_route_or_version_is_another_request() {
        let key = || ShortText::parse("k").expect("a key");
        let body = Value::Null;
        let digests = [
            of_invocation(key(), "api", None, &body).digest,
            of_invocation(key(), "sdk", None, &body).digest,
            of_invocation(key(), "api", Some("v"), &body).digest,
            of_external_turn(key(), &body).digest,
        ];
        for (index, digest) in digests.iter().enumerate() {
            assert!(!digests[index + 1..].contains(digest), "{index}");
        }
    }
}
