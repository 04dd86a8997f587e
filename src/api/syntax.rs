//! Where a text stops being JSON, in the words and by the count of Python's `json`, which clients know from FastAPI.

/// Deepest nesting that is looked into; Python gives up near it, and nobody means it.
const MAX_DEPTH: usize = 900;

/// Deepest nesting that is accepted: what is stored must be readable, and readers give up at 128.
const MAX_ACCEPTED_DEPTH: usize = 120;

/// How `serde_json` names its own messages to itself; with such a name an object would be taken for one.
const RESERVED: &str = "$serde_json::private::";

/// Why a text is not accepted as JSON.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It is none: where, in characters, and why.
    Fault(usize, &'static str),
    /// It is nested too deeply.
    TooDeep,
    /// It has a name that means something else to the parser.
    ReservedName,
}

/// Looks through a text before it is parsed.
///
///
/// `NaN` and `Infinity` are faults here although Python accepts them: JSON has no such numbers, and they could not
/// be stored or sent back.
pub(crate) fn check(text: &str) -> Result<(), Refusal> {
    let mut scanner = Scanner { bytes: text.as_bytes(), depth: 0, has_reserved_name: false };
    match scanner.document() {
        Err((at, error)) => Err(Refusal::Fault(text[..at].chars().count(), error)),
        Ok(_) if scanner.depth > MAX_ACCEPTED_DEPTH => Err(Refusal::TooDeep),
        Ok(_) if scanner.has_reserved_name => Err(Refusal::ReservedName),
        Ok(_) => Ok(()),
    }
}

type Scan = Result<usize, (usize, &'static str)>;

struct Scanner<'t> {
    bytes: &'t [u8],
    /// The deepest nesting so far.
    depth: usize,
    has_reserved_name: bool,
}

impl Scanner<'_> {
    fn at(&self, at: usize) -> Option<u8> {
        self.bytes.get(at).copied()
    }

    fn skip_space(&self, mut at: usize) -> usize {
        while matches!(self.at(at), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            at += 1;
        }
        at
    }

    /// Scans the whole text. Open objects and lists are on a stack of its own, so that no depth can exhaust the
    /// thread's.
    fn document(&mut self) -> Scan {
        let mut open = Vec::new();
        let mut at = self.skip_space(0);
        loop {
            self.depth = self.depth.max(open.len());
            if open.len() > MAX_DEPTH {
                return Ok(at);
            }
            // Here a value begins.
            match self.at(at) {
                Some(b'{') => {
                    at = self.skip_space(at + 1);
                    if self.at(at) == Some(b'}') {
                        at += 1;
                    } else {
                        at = self.name(at)?;
                        open.push(b'{');
                        continue;
                    }
                }
                Some(b'[') => {
                    at = self.skip_space(at + 1);
                    if self.at(at) == Some(b']') {
                        at += 1;
                    } else {
                        open.push(b'[');
                        continue;
                    }
                }
                _ => at = self.scalar(at)?,
            }
            // Here one has ended; so may the objects and lists that it is the last of.
            loop {
                at = self.skip_space(at);
                match (open.last(), self.at(at)) {
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

    /// A name and its colon; returns where its value begins.
    fn name(&mut self, start: usize) -> Scan {
        if self.at(start) != Some(b'"') {
            return Err((start, "Expecting property name enclosed in double quotes"));
        }
        let end = self.string(start)?;
        // Any of its characters may be escaped.
        let name = &self.bytes[start..end];
        if name.starts_with(b"\"$") || name.starts_with(b"\"\\") {
            let name = serde_json::from_slice::<String>(name).unwrap_or_default();
            self.has_reserved_name |= name.starts_with(RESERVED);
        }
        let at = self.skip_space(end);
        if self.at(at) == Some(b':') {
            Ok(self.skip_space(at + 1))
        } else {
            Err((at, "Expecting ':' delimiter"))
        }
    }

    fn scalar(&self, at: usize) -> Scan {
        if self.at(at) == Some(b'"') {
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
            while self.at(at).is_some_and(|byte| byte.is_ascii_digit()) {
                at += 1;
            }
            at
        };
        let mut at = start + usize::from(self.at(start) == Some(b'-'));
        at = match self.at(at)? {
            b'0' => at + 1,
            b'1'..=b'9' => digits(at),
            _ => return None,
        };
        if self.at(at) == Some(b'.') && digits(at + 1) > at + 1 {
            at = digits(at + 1);
        }
        if matches!(self.at(at), Some(b'e' | b'E')) {
            let exponent = at + 1 + usize::from(matches!(self.at(at + 1), Some(b'+' | b'-')));
            if digits(exponent) > exponent {
                at = digits(exponent);
            }
        }
        Some(at)
    }

    fn string(&self, start: usize) -> Scan {
        const UNTERMINATED: &str = "Unterminated string starting at";
        let mut at = start + 1;
        loop {
            match self.at(at) {
                None => return Err((start, UNTERMINATED)),
                Some(b'"') => return Ok(at + 1),
                Some(b'\\') => at = self.escape(start, at)?,
                Some(0..=0x1f) => return Err((at, "Invalid control character at")),
                Some(_) => at += 1,
            }
        }
    }

    /// An escape whose backslash is at `at`, in the string that starts at `start`.
    fn escape(&self, start: usize, at: usize) -> Scan {
        match self.at(at + 1) {
            None => Err((start, "Unterminated string starting at")),
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => Ok(at + 2),
            Some(b'u') => {
                let invalid = (at + 1, "Invalid \\uXXXX escape");
                // Python wants to see the character after the digits before it believes them.
                let first = self.hex(at + 2).filter(|_| at + 6 < self.bytes.len()).ok_or(invalid)?;
                match first {
                    // Half of a pair is no character; Python lets it pass, and then nothing can store it.
                    0xd800..0xdc00 => {
                        if self.at(at + 6) != Some(b'\\') || self.at(at + 7) != Some(b'u') {
                            return Err(invalid);
                        }
                        match self.hex(at + 8).filter(|_| at + 12 < self.bytes.len()) {
                            Some(0xdc00..0xe000) => Ok(at + 12),
                            Some(_) => Err(invalid),
                            None => Err((at + 7, invalid.1)),
                        }
                    }
                    0xdc00..0xe000 => Err(invalid),
                    _ => Ok(at + 6),
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
