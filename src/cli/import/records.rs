//! Splitting a file into records: lines, or the elements of a JSON array.

use std::io::{self, BufRead, BufReader, Read};

/// Longest record, in bytes. A turn is limited by what the API accepts, which is far less; a whole
/// task in one record is not.
pub(super) const MAX_RECORD_BYTES: usize = 64 << 20;

/// A buffer that grew for a longer record is not kept.
const KEPT_BUFFER_BYTES: usize = 1 << 20;

/// Where something is in the file, both from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) line: u64,
    /// In bytes.
    pub(super) column: usize,
}

/// What comes next in the file.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// A record, which begins here.
    Record(Position),
    /// Something that is no record, and why.
    Invalid(Position, String),
    /// The end of the file.
    End,
}

/// How records are separated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Separation {
    /// Not known yet.
    Unknown,
    /// Each is a line.
    Lines,
    /// They are the elements of an array; of the next one a comma is expected before it.
    Array { needs_comma: bool },
    /// There are no more.
    Ended,
}

/// Reads records one at a time.
pub(super) struct RecordReader {
    input: BufReader<Box<dyn Read + Send>>,
    separation: Separation,
    /// The next byte.
    at: Position,
    bytes_read: u64,
    buffer: Vec<u8>,
    /// Where the record is in the buffer.
    record: (usize, usize),
    ends_with_newline: bool,
}

impl RecordReader {
    pub(super) fn new(input: Box<dyn Read + Send>) -> Self {
        Self {
            input: BufReader::with_capacity(1 << 18, input),
            separation: Separation::Unknown,
            at: Position { line: 1, column: 1 },
            bytes_read: 0,
            buffer: Vec::new(),
            record: (0, 0),
            ends_with_newline: true,
        }
    }

    /// How much of the file was read.
    pub(super) fn bytes_read(&self) -> u64 {
        self.bytes_read
    }

    /// The line that is read next.
    pub(super) fn line(&self) -> u64 {
        self.at.line
    }

    /// Whether the last record was a line that was not ended, as in a file that was cut off.
    pub(super) fn is_cut_off(&self) -> bool {
        !self.ends_with_newline
    }

    /// The text of the record that was read last.
    pub(super) fn text(&self) -> &str {
        let (start, end) = self.record;
        std::str::from_utf8(&self.buffer[start..end]).expect("checked when it was read")
    }

    /// Forgets the record. The memory of a long one is freed.
    pub(super) fn release(&mut self) {
        self.record = (0, 0);
        if self.buffer.capacity() > KEPT_BUFFER_BYTES {
            self.buffer = Vec::new();
        }
    }

    /// Reads up to the end of the next record.
    pub(super) fn read_next(&mut self) -> io::Result<Next> {
        self.record = (0, 0);
        loop {
            self.buffer.clear();
            let next = match self.separation {
                Separation::Unknown => {
                    self.separation = self.find_separation()?;
                    continue;
                }
                Separation::Lines => self.read_line()?,
                Separation::Array { needs_comma } => self.read_element(needs_comma)?,
                Separation::Ended => return Ok(Next::End),
            };
            if let Some(next) = next {
                return Ok(next);
            }
        }
    }

    fn consume(&mut self, bytes: usize) {
        self.input.consume(bytes);
        self.bytes_read += u64::try_from(bytes).unwrap_or(0);
    }

    fn peek(&mut self) -> io::Result<Option<u8>> {
        Ok(self.input.fill_buf()?.first().copied())
    }

    /// Consumes one byte that was peeked.
    fn step(&mut self, byte: u8) {
        self.consume(1);
        if byte == b'\n' {
            self.at.line += 1;
            self.at.column = 1;
        } else {
            self.at.column += 1;
        }
    }

    /// Skips a byte order mark and white space before the first record.
    fn find_separation(&mut self) -> io::Result<Separation> {
        if self.input.fill_buf()?.starts_with("\u{feff}".as_bytes()) {
            self.consume(3);
        }
        while let Some(byte) = self.peek()? {
            match byte {
                b' ' | b'\t' | b'\r' | b'\n' => self.step(byte),
                b'[' => {
                    self.step(byte);
                    return Ok(Separation::Array { needs_comma: false });
                }
                _ => break,
            }
        }
        Ok(Separation::Lines)
    }

    /// Reads a line. `None` if it is blank.
    fn read_line(&mut self) -> io::Result<Option<Next>> {
        let start = self.at;
        let limit = u64::try_from(MAX_RECORD_BYTES).unwrap_or(u64::MAX);
        let length = self.input.by_ref().take(limit + 1).read_until(b'\n', &mut self.buffer)?;
        if length == 0 {
            self.separation = Separation::Ended;
            return Ok(Some(Next::End));
        }
        self.bytes_read += u64::try_from(length).unwrap_or(0);
        self.ends_with_newline = self.buffer.ends_with(b"\n");
        self.at = Position { line: start.line + 1, column: 1 };
        if length > MAX_RECORD_BYTES {
            self.buffer = Vec::new();
            if !self.ends_with_newline {
                self.skip_line()?;
            }
            return Ok(Some(too_long(start)));
        }
        Ok(self.found(start))
    }

    fn skip_line(&mut self) -> io::Result<()> {
        loop {
            let chunk = self.input.fill_buf()?;
            let newline = chunk.iter().position(|byte| *byte == b'\n');
            let length = newline.map_or(chunk.len(), |at| at + 1);
            self.consume(length);
            if newline.is_some() || length == 0 {
                return Ok(());
            }
        }
    }

    /// The record in the buffer, without the white space around it. `None` if there is none.
    fn found(&mut self, start: Position) -> Option<Next> {
        match std::str::from_utf8(&self.buffer) {
            Ok(text) => {
                let leading = text.len() - text.trim_start().len();
                let record = text.trim();
                if record.is_empty() {
                    return None;
                }
                self.record = (leading, leading + record.len());
                Some(Next::Record(Position { column: start.column + leading, ..start }))
            }
            Err(error) => {
                let at = within(start, &self.buffer, error.valid_up_to());
                Some(Next::Invalid(at, "it is not UTF-8".to_owned()))
            }
        }
    }

    /// Reads an element of the array.
    fn read_element(&mut self, mut needs_comma: bool) -> io::Result<Option<Next>> {
        loop {
            let Some(byte) = self.peek()? else {
                self.separation = Separation::Ended;
                let reason = "the array is not closed; the file may be cut off".to_owned();
                return Ok(Some(Next::Invalid(self.at, reason)));
            };
            match byte {
                b' ' | b'\t' | b'\r' | b'\n' => self.step(byte),
                b']' => {
                    self.step(byte);
                    return self.read_end().map(Some);
                }
                b',' if needs_comma => {
                    self.step(byte);
                    needs_comma = false;
                }
                _ if needs_comma => {
                    self.separation = Separation::Ended;
                    let reason = "`,` or `]` is expected after a record of the array; the rest of \
                                  the file cannot be read";
                    return Ok(Some(Next::Invalid(self.at, reason.to_owned())));
                }
                _ => break,
            }
        }
        self.separation = Separation::Array { needs_comma: true };
        let start = self.at;
        let mut scan = ElementScan::default();
        let mut is_too_long = false;
        loop {
            let chunk = self.input.fill_buf()?;
            if chunk.is_empty() {
                break;
            }
            let length = scan.scan(chunk);
            let (taken, is_complete) = (length.unwrap_or(chunk.len()), length.is_some());
            let part = &chunk[..taken];
            let at = within(self.at, part, taken);
            is_too_long |= self.buffer.len() + taken > MAX_RECORD_BYTES;
            if is_too_long {
                self.buffer = Vec::new();
            } else {
                self.buffer.extend_from_slice(part);
            }
            self.at = at;
            self.consume(taken);
            if is_complete {
                break;
            }
        }
        Ok(if is_too_long { Some(too_long(start)) } else { self.found(start) })
    }

    fn read_end(&mut self) -> io::Result<Next> {
        self.separation = Separation::Ended;
        while let Some(byte) = self.peek()? {
            if !byte.is_ascii_whitespace() {
                let reason = "text after the array is not read".to_owned();
                return Ok(Next::Invalid(self.at, reason));
            }
            self.step(byte);
        }
        Ok(Next::End)
    }
}

/// Finds the end of an array's element.
#[derive(Default)]
struct ElementScan {
    depth: usize,
    in_string: bool,
    is_escaped: bool,
}

impl ElementScan {
    /// Scans the next part. Returns the length of what belongs to the element, if it ends here.
    fn scan(&mut self, part: &[u8]) -> Option<usize> {
        for (at, byte) in part.iter().enumerate() {
            if self.in_string {
                match byte {
                    _ if self.is_escaped => self.is_escaped = false,
                    b'\\' => self.is_escaped = true,
                    b'"' => self.in_string = false,
                    _ => {}
                }
                continue;
            }
            match byte {
                b'"' => self.in_string = true,
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' if self.depth > 1 => self.depth -= 1,
                b'}' | b']' if self.depth == 1 => return Some(at + 1),
                b',' | b']' if self.depth == 0 => return Some(at),
                _ => {}
            }
        }
        None
    }
}

fn too_long(start: Position) -> Next {
    let reason = format!(
        "it is longer than {} MiB; export it again with this version, which writes a line for each \
         turn",
        MAX_RECORD_BYTES >> 20
    );
    Next::Invalid(start, reason)
}

/// The position of a byte of a record that begins at `start`.
pub(super) fn within(start: Position, record: &[u8], offset: usize) -> Position {
    let before = &record[..offset.min(record.len())];
    match before.iter().rposition(|byte| *byte == b'\n') {
        None => Position { column: start.column + before.len(), ..start },
        Some(last) => {
            let lines = before.split(|byte| *byte == b'\n').count() - 1;
            Position {
                line: start.line + u64::try_from(lines).unwrap_or(0),
                column: before.len() - last,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All records with their positions, and what is invalid.
    fn records(file: &'static [u8]) -> Vec<(u64, usize, String)> {
        let mut reader = RecordReader::new(Box::new(file));
        let mut found = Vec::new();
        loop {
            let (at, text) = match reader.read_next().expect("no failure") {
                Next::Record(at) => (at, reader.text().to_owned()),
                Next::Invalid(at, reason) => (at, format!("! {reason}")),
                Next::End => return found,
            };
            found.push((at.line, at.column, text));
        }
    }

    fn expect(file: &'static [u8], expected: &[(u64, usize, &str)]) {
        let found = records(file);
        let found: Vec<_> = found.iter().map(|(line, at, text)| (*line, *at, &text[..])).collect();
        assert_eq!(found, expected, "{:?}", std::str::from_utf8(file));
    }

    #[test]
    fn lines_are_records() {
        expect(b"", &[]);
        expect(b"\n \r\n", &[]);
        expect(b"{}\n\n  {1}\r\n{2}", &[(1, 1, "{}"), (3, 3, "{1}"), (4, 1, "{2}")]);
        expect(b"\xef\xbb\xbf\r\n{}\r\n", &[(2, 1, "{}")]);
        expect(b"{}\n{\"\xff\"}\n{}", &[(1, 1, "{}"), (2, 3, "! it is not UTF-8"), (3, 1, "{}")]);
    }

    #[test]
    fn elements_of_an_array_are_records() {
        expect(b"[]", &[]);
        expect(b" \n[ ]\n", &[]);
        expect(
            b"\xef\xbb\xbf[{\"a\":\"]}\\\"\"},\n  {\n\"b\":[{}]\n}\n, 1,[2]]\n",
            &[(1, 2, "{\"a\":\"]}\\\"\"}"), (2, 3, "{\n\"b\":[{}]\n}"), (5, 3, "1"), (5, 5, "[2]")],
        );
        let cut_off = "! the array is not closed; the file may be cut off";
        expect(b"[{}", &[(1, 2, "{}"), (1, 4, cut_off)]);
        expect(b"[{},", &[(1, 2, "{}"), (1, 5, cut_off)]);
        expect(b"[{\"a\n", &[(1, 2, "{\"a"), (2, 1, cut_off)]);
        expect(b"[{}]\n{}", &[(1, 2, "{}"), (2, 1, "! text after the array is not read")]);
        let expected = "! `,` or `]` is expected after a record of the array; the rest of the \
                        file cannot be read";
        expect(b"[{}\n {}]", &[(1, 2, "{}"), (2, 2, expected)]);
    }

    #[test]
    fn positions_count_lines_and_bytes() {
        let start = Position { line: 7, column: 5 };
        let at = |offset| {
            let Position { line, column } = within(start, b"ab\ncd\nef", offset);
            (line, column)
        };
        assert_eq!([at(0), at(2), at(3), at(4), at(99)], [(7, 5), (7, 7), (8, 1), (8, 2), (9, 3)]);
    }
}
