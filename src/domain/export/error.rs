//! What is wrong with a record, and where.

use serde::Deserialize;
use serde_json::value::RawValue;

/// Why a record cannot be imported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordError {
    /// The byte of the record at which it was noticed.
    pub offset: usize,
    /// Why, for the author of the file.
    pub reason: String,
}

impl RecordError {
    pub(super) fn new(offset: usize, reason: impl Into<String>) -> Self {
        Self { offset, reason: reason.into() }
    }

    /// An error that the parser found in a part of the record's text.
    pub(super) fn of_json(text: &str, part: &str, error: &serde_json::Error) -> Self {
        let (line, column) = (error.line(), error.column());
        let full = error.to_string();
        let reason = full.strip_suffix(&format!(" at line {line} column {column}"));
        let reason = reason.unwrap_or(&full).to_owned();
        let line_start: usize =
            part.split_inclusive('\n').take(line.saturating_sub(1)).map(str::len).sum();
        let within = (line_start + column.saturating_sub(1)).min(part.len());
        Self { offset: offset_in(text, part) + within, reason }
    }
}

/// Where a part of a text begins in it, in bytes.
pub(super) fn offset_in(text: &str, part: &str) -> usize {
    part.as_ptr().addr().saturating_sub(text.as_ptr().addr())
}

/// Parses a part of a record.
pub(super) fn from_part<'a, T: Deserialize<'a>>(
    text: &str,
    part: &'a RawValue,
) -> Result<T, RecordError> {
    serde_json::from_str(part.get()).map_err(|error| RecordError::of_json(text, part.get(), &error))
}
