//! What commands print.

use std::io::Write;

use chrono::{DateTime, Utc};
use serde_json::Value;

/// Prints a line to standard output.
pub(super) fn print(text: &str) {
    // A closed pipe, after `head` for example, is not an error.
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// Prints a line to standard error, beside the output.
pub(super) fn note(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// JSON for `--json`.
pub(super) fn print_json(value: &Value) {
    print(&format!("{value:#}"));
}

/// A point in time, to the second.
pub(super) fn time(time: DateTime<Utc>) -> String {
    time.format("%Y-%m-%dT%H:%M:%SZ").to_string()
}
