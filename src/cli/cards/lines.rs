//! Lines of a file or pipe with card numbers in them: bounded in length, in buffers that are wiped.

use std::io::Read;

use zeroize::{Zeroize, Zeroizing};

use crate::base::limits::BODY_BYTES;

/// How much is read at once.
const CHUNK: usize = 64 * 1024;

/// What a line is.
pub enum Line<'a> {
    /// Its bytes, without the line's end.
    Bytes(&'a [u8]),
    /// It is longer than a request may be, and was passed over.
    TooLong,
}

/// Reads lines one after another; each is gone when the next one is read.
pub struct Lines<R> {
    input: R,
    chunk: Zeroizing<Vec<u8>>,
    /// What of the chunk was not handed out yet.
    rest: std::ops::Range<usize>,
    line: Zeroizing<Vec<u8>>,
    number: u64,
    offset: u64,
}

impl<R: Read> Lines<R> {
    /// Lines of `input`, of which `number` lines and `offset` bytes were read before.
    pub fn new(input: R, number: u64, offset: u64) -> Self {
        Self {
            input,
            chunk: Zeroizing::new(vec![0; CHUNK]),
            rest: 0..0,
            // It never regrows, so it leaves no copy behind.
            line: Zeroizing::new(Vec::with_capacity(BODY_BYTES)),
            number,
            offset,
        }
    }

    /// The number of the line that was read last, from 1.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// How many bytes were read with it, its end included.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The next line; none at the end.
    pub fn next(&mut self) -> std::io::Result<Option<Line<'_>>> {
        self.line.as_mut_slice().zeroize();
        self.line.clear();
        let (mut is_too_long, mut is_begun) = (false, false);
        loop {
            if self.rest.is_empty() {
                self.chunk.as_mut_slice().zeroize();
                let read = read_some(&mut self.input, &mut self.chunk)?;
                self.rest = 0..read;
                if read == 0 {
                    break;
                }
            }
            let Some(rest) = self.chunk.get(self.rest.clone()) else { break };
            let end = rest.iter().position(|byte| *byte == b'\n');
            let (piece, taken) = match end {
                Some(end) => (rest.get(..end).unwrap_or_default(), end + 1),
                None => (rest, rest.len()),
            };
            if self.line.len() + piece.len() > BODY_BYTES {
                is_too_long = true;
            } else if !is_too_long {
                self.line.extend_from_slice(piece);
            }
            self.rest.start += taken;
            self.offset += u64::try_from(taken).unwrap_or(u64::MAX);
            is_begun = true;
            if end.is_some() {
                break;
            }
        }
        if !is_begun {
            return Ok(None);
        }
        self.number += 1;
        Ok(Some(if is_too_long { Line::TooLong } else { Line::Bytes(&self.line) }))
    }
}

fn read_some(input: &mut impl Read, into: &mut [u8]) -> std::io::Result<usize> {
    loop {
        match input.read(into) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A reader that gives a few bytes at a time, as a pipe does.
    struct Drops<'a>(&'a [u8], usize);

    impl Read for Drops<'_> {
        fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
            let count = self.1.min(self.0.len()).min(into.len());
            let (now, later) = self.0.split_at(count);
            into[..count].copy_from_slice(now);
            self.0 = later;
            Ok(count)
        }
    }

    fn all(text: &[u8], at_once: usize) -> Vec<(u64, u64, Option<Vec<u8>>)> {
        let mut lines = Lines::new(Drops(text, at_once), 0, 0);
        let mut all = Vec::new();
        loop {
            let line = match lines.next().expect("no fault") {
                None => return all,
                Some(Line::TooLong) => None,
                Some(Line::Bytes(bytes)) => Some(bytes.to_vec()),
            };
            all.push((lines.number(), lines.offset(), line));
        }
    }

    #[test]
    fn lines_are_bounded_and_counted_however_they_come() {
        let long = [vec![b'x'; BODY_BYTES], vec![b'y']].concat();
        let just = vec![b'z'; BODY_BYTES];
        let text = [&b"a\n\nbc\r\n"[..], &long, b"\n", &just, b"\nend"].concat();
        let offset = |count: usize| u64::try_from(count).expect("small");
        let expected = [
            (1, 2, Some(b"a".to_vec())),
            (2, 3, Some(Vec::new())),
            (3, 7, Some(b"bc\r".to_vec())),
            (4, offset(7 + BODY_BYTES + 2), None),
            (5, offset(7 + 2 * BODY_BYTES + 3), Some(just.clone())),
            (6, offset(text.len()), Some(b"end".to_vec())),
        ];
        for at_once in [1, 7, 4096, usize::MAX] {
            assert_eq!(all(&text, at_once), expected, "{at_once}");
        }
        assert!(all(b"", 1).is_empty());
        assert_eq!(all(b"\n", 1), [(1, 1, Some(Vec::new()))]);
    }

    /// A line and a chunk are wiped before the next one is read.
    #[test]
    fn what_was_read_is_wiped() {
        let mut lines = Lines::new(Drops(b"4111111111111111\n", 5), 0, 0);
        assert!(matches!(lines.next(), Ok(Some(Line::Bytes(b"4111111111111111")))));
        let held = lines.line.as_ptr();
        assert!(matches!(lines.next(), Ok(None)));
        assert!(lines.line.is_empty() && std::ptr::eq(held, lines.line.as_ptr()));
        assert!(lines.chunk.iter().all(|byte| *byte == 0));
    }
}
