//! Reports JSON syntax errors with the messages and character offsets of Python's `json`, which
//! clients know from FastAPI.

use crate::domain::RESERVED_NAMES;

/// Deepest nesting that is scanned. Python stops near it too.
const MAX_DEPTH: usize = 900;

/// Deepest nesting that is accepted. What is stored must be readable, and `serde_json` reads 127.
const MAX_ACCEPTED_DEPTH: usize = 120;

/// Most values of a body: objects, arrays and scalars. Each takes memory, however short it is.
pub(super) const MAX_VALUES: usize = 100_000;

/// Why a text is not accepted as JSON.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum JsonSyntaxError {
    /// It is not JSON: the offset in characters, and why.
    Syntax(usize, &'static str),
    /// It is nested too deeply.
    TooDeep,
    /// It has a name that the parser reserves.
    ReservedName,
    /// It has too many values.
    TooManyValues,
}

/// What to do with an escape of a surrogate without its other half. It is no character. Python
/// accepts it, and nothing stores it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LoneSurrogates {
    /// It is an error.
    Refused,
    /// The caller replaces it.
    Replaced,
}

/// What is known of a text that is JSON.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct CheckedJson {
    /// How many values it has.
    pub(super) values: usize,
    /// Where its escapes of lone surrogates begin, in bytes.
    pub(super) lone_surrogates: Vec<usize>,
}

/// Checks a text before it is parsed.
///
/// `NaN` and `Infinity` are errors here although Python accepts them: JSON has no such numbers, and
/// they could not be stored or returned.
pub(super) fn check(
    text: &str,
    lone_surrogates: LoneSurrogates,
) -> Result<CheckedJson, JsonSyntaxError> {
    let mut scanner = Scanner {
        bytes: text.as_bytes(),
        depth: 0,
        has_reserved_name: false,
        values: 0,
        replaces: lone_surrogates == LoneSurrogates::Replaced,
        lone_surrogates: Vec::new(),
    };
    match scanner.document() {
        Err((at, error)) => Err(JsonSyntaxError::Syntax(text[..at].chars().count(), error)),
        Ok(_) if scanner.depth > MAX_ACCEPTED_DEPTH => Err(JsonSyntaxError::TooDeep),
        Ok(_) if scanner.values > MAX_VALUES => Err(JsonSyntaxError::TooManyValues),
        Ok(_) if scanner.has_reserved_name => Err(JsonSyntaxError::ReservedName),
        Ok(_) => {
            Ok(CheckedJson { values: scanner.values, lone_surrogates: scanner.lone_surrogates })
        }
    }
}

type Scan = Result<usize, (usize, &'static str)>;

struct Scanner<'t> {
    bytes: &'t [u8],
    /// The deepest nesting so far.
    depth: usize,
    has_reserved_name: bool,
    /// The values so far.
    values: usize,
    /// Whether lone surrogates are replaced.
    replaces: bool,
    lone_surrogates: Vec<usize>,
}

impl Scanner<'_> {
    fn byte_at(&self, at: usize) -> Option<u8> {
        self.bytes.get(at).copied()
    }

    fn skip_space(&self, mut at: usize) -> usize {
        while matches!(self.byte_at(at), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            at += 1;
        }
        at
    }

    /// Scans the whole text. Open objects and arrays are on a stack of their own, so that no depth
    /// exhausts the thread's.
    fn document(&mut self) -> Scan {
        let mut open = Vec::new();
        let mut at = self.skip_space(0);
        loop {
            self.depth = self.depth.max(open.len());
            // A value starts here.
            self.values += 1;
            if open.len() > MAX_DEPTH || self.values > MAX_VALUES {
                return Ok(at);
            }
            match self.byte_at(at) {
                Some(b'{') => {
                    at = self.skip_space(at + 1);
                    if self.byte_at(at) == Some(b'}') {
                        at += 1;
                    } else {
                        at = self.name(at)?;
                        open.push(b'{');
                        continue;
                    }
                }
                Some(b'[') => {
                    at = self.skip_space(at + 1);
                    if self.byte_at(at) == Some(b']') {
                        at += 1;
                    } else {
                        open.push(b'[');
                        continue;
                    }
                }
                _ => at = self.scalar(at)?,
            }
            // A value has ended here, and with it perhaps the objects and arrays around it.
            loop {
                at = self.skip_space(at);
                match (open.last(), self.byte_at(at)) {
                    (None, None) => return Ok(at),
                    (None, Some(_)) => return Err((at, "Extra data")),
                    (Some(b'{'), Some(b'}')) | (Some(b'['), Some(b']')) => {
                        open.pop();
                        at += 1;
                    }
                    (Some(b'{'), Some(b',')) => {
                        at = self.name(self.skip_space(at + 1))?;
                        break;
                    }
                    (Some(_), Some(b',')) => {
                        at = self.skip_space(at + 1);
                        break;
                    }
                    (Some(_), _) => return Err((at, "Expecting ',' delimiter")),
                }
            }
        }
    }

    /// A name and its colon; returns the start of its value.
    fn name(&mut self, start: usize) -> Scan {
        if self.byte_at(start) != Some(b'"') {
            return Err((start, "Expecting property name enclosed in double quotes"));
        }
        let end = self.string(start)?;
        // Any of its characters may be escaped.
        let name = &self.bytes[start..end];
        if name.starts_with(b"\"$") || name.starts_with(b"\"\\") {
            let name = serde_json::from_slice::<String>(name).unwrap_or_default();
            self.has_reserved_name |= name.starts_with(RESERVED_NAMES);
        }
        let at = self.skip_space(end);
        if self.byte_at(at) == Some(b':') {
            Ok(self.skip_space(at + 1))
        } else {
            Err((at, "Expecting ':' delimiter"))
        }
    }

    fn scalar(&mut self, at: usize) -> Scan {
        if self.byte_at(at) == Some(b'"') {
            return self.string(at);
        }
        for word in ["null", "true", "false"] {
            if self.bytes[at..].starts_with(word.as_bytes()) {
                return Ok(at + word.len());
            }
        }
        self.number(at).ok_or((at, "Expecting value"))
    }

    fn number(&self, start: usize) -> Option<usize> {
        let digits = |mut at: usize| {
            while self.byte_at(at).is_some_and(|byte| byte.is_ascii_digit()) {
                at += 1;
            }
            at
        };
        let mut at = start + usize::from(self.byte_at(start) == Some(b'-'));
        at = match self.byte_at(at)? {
            b'0' => at + 1,
            b'1'..=b'9' => digits(at),
            _ => return None,
        };
        if self.byte_at(at) == Some(b'.') && digits(at + 1) > at + 1 {
            at = digits(at + 1);
        }
        if matches!(self.byte_at(at), Some(b'e' | b'E')) {
            let exponent = at + 1 + usize::from(matches!(self.byte_at(at + 1), Some(b'+' | b'-')));
            if digits(exponent) > exponent {
                at = digits(exponent);
            }
        }
        Some(at)
    }

    fn string(&mut self, start: usize) -> Scan {
        const UNTERMINATED: &str = "Unterminated string starting at";
        let mut at = start + 1;
        loop {
            match self.byte_at(at) {
                None => return Err((start, UNTERMINATED)),
                Some(b'"') => return Ok(at + 1),
                Some(b'\\') => at = self.escape(start, at)?,
                Some(0..=0x1f) => return Err((at, "Invalid control character at")),
                Some(_) => at += 1,
            }
        }
    }

    /// An escape whose backslash is at `at`, in the string that starts at `start`.
    fn escape(&mut self, start: usize, at: usize) -> Scan {
        match self.byte_at(at + 1) {
            None => Err((start, "Unterminated string starting at")),
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => Ok(at + 2),
            Some(b'u') => {
                let invalid = (at + 1, "Invalid \\uXXXX escape");
                // Python requires a character after the digits.
                let first =
                    self.hex(at + 2).filter(|_| at + 6 < self.bytes.len()).ok_or(invalid)?;
                let second_at = match first {
                    0xd800..0xdc00 if self.bytes[at + 6..].starts_with(b"\\u") => Some(at + 8),
                    0xd800..0xe000 => None,
                    _ => return Ok(at + 6),
                };
                let second = second_at.map(|second_at| {
                    self.hex(second_at).filter(|_| second_at + 4 < self.bytes.len())
                });
                match second {
                    Some(Some(0xdc00..0xe000)) => Ok(at + 12),
                    _ if self.replaces => {
                        self.lone_surrogates.push(at);
                        Ok(at + 6)
                    }
                    Some(None) => Err((at + 7, invalid.1)),
                    _ => Err(invalid),
                }
            }
            Some(_) => Err((at, "Invalid \\escape")),
        }
    }

    fn hex(&self, at: usize) -> Option<u32> {
        let digits = std::str::from_utf8(self.bytes.get(at..at + 4)?).ok()?;
        if !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        u32::from_str_radix(digits, 16).ok()
    }
}
