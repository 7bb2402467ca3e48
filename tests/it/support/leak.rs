//! The leak guard: everything that this process logs, at the finest level, goes into one buffer, and
//! the buffer, the databases' files and anything else can be searched for card data in the encodings
//! in which it might slip out. Numbers are found as text, spaced, as UTF-16, hexadecimal, base64, BCD,
//! URL-encoded, escaped, and as the lists of bytes that a careless `{:?}` prints. A CVV of three digits would be
//! found everywhere, so it counts only as a whole JSON string, or where a name of it stands in front. The last
//! four digits of some card are bound to equal a CVV of four now and then, and are no secret.
//! What is compressed or encrypted is not seen: with PostgreSQL, values over 2 kB.

use std::collections::BTreeSet;
use std::fs::{self, DirEntry};
use std::io::{self, ErrorKind, Write};
use std::path::Path;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aho_corasick::{AhoCorasick, AhoCorasickKind};
use data_encoding::{BASE64, BASE64URL, HEXLOWER, HEXUPPER};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::FmtSpan;

/// More than this and nobody can vouch for the rest.
const CAPTURE_BYTES: usize = 512 * 1024 * 1024;
/// From here on the quicker search, some milliseconds longer to make for a few secrets, is worth making.
const MUCH: usize = 1024 * 1024;
/// Names of a card verification value, as they stand before one.
const CVV_NAMES: [&str; 8] = ["cvv", "cvv2", "cvc", "cvc2", "cvn", "csc", "securitycode", "security_code"];

static CAPTURED: Mutex<Vec<u8>> = Mutex::new(Vec::new());
static INSTALL: Once = Once::new();
/// Set where something was left out.
static OVERFLOWED: AtomicBool = AtomicBool::new(false);
/// How many threads have their own work left out.
static SILENT: AtomicUsize = AtomicUsize::new(0);

/// Captures what is logged from its creation on.
pub struct LeakGuard {
    from: usize,
}

impl LeakGuard {
    /// Starts the capture, once for the process: all events and spans at TRACE (of the `log` crate too)
    /// and all panic messages.
    pub fn install() -> Self {
        INSTALL.call_once(|| {
            tracing_subscriber::fmt()
                .json()
                .with_max_level(tracing::Level::TRACE)
                .with_span_events(FmtSpan::NEW)
                .with_writer(Capture)
                .try_init()
                .expect("no other subscriber in this process");
            let shown = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| {
                let _ = writeln!(Capture, "{info}");
                shown(info);
            }));
        });
        Self { from: captured().len() }
    }

    /// What was logged since this guard was made, by any test of the process.
    pub fn captured(&self) -> Vec<u8> {
        assert!(!OVERFLOWED.load(SeqCst), "too much was logged to be searched");
        captured().get(self.from..).unwrap_or_default().to_vec()
    }

    /// Fails if a secret was logged since this guard was made.
    pub fn assert_clean(&self, secrets: &[&str]) {
        assert_clean(secrets, &self.captured(), "the log");
    }
}

/// Does a thread's work without capturing what it logs: for the thousands of schedules of the simulation, whose
/// handlers other tests run with the guard at work, and which would fill its memory.
pub fn unheard<T>(work: impl FnOnce() -> T) -> T {
    struct Heard;
    impl Drop for Heard {
        fn drop(&mut self) {
            SILENT.fetch_sub(1, SeqCst);
        }
    }
    SILENT.fetch_add(1, SeqCst);
    let _heard = Heard;
    tracing::subscriber::with_default(tracing::subscriber::NoSubscriber::new(), work)
}

struct Capture;

impl Write for Capture {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // SQLite's threads log the texts of statements, and cannot tell for whom.
        if SILENT.load(SeqCst) > 0
            && std::thread::current().name().is_some_and(|name| name.starts_with("sqlx-sqlite"))
        {
            return Ok(bytes.len());
        }
        let mut captured = captured();
        if captured.len() + bytes.len() <= CAPTURE_BYTES {
            captured.extend_from_slice(bytes);
        } else {
            // Who searches it fails. A panic here would be logged here.
            OVERFLOWED.store(true, SeqCst);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Capture {
    type Writer = Capture;

    fn make_writer(&'a self) -> Capture {
        Capture
    }
}

fn captured() -> MutexGuard<'static, Vec<u8>> {
    CAPTURED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Fails if `haystack` holds one of the secrets. `what` names the haystack.
pub fn assert_clean(secrets: &[&str], haystack: &[u8], what: &str) {
    let found = find(secrets, haystack);
    assert!(found.is_empty(), "card data in {what}:\n{}", found.join("\n"));
}

/// Fails if a file below `folder` holds one of the secrets.
pub fn scan_dir(folder: &Path, secrets: &[&str]) {
    scan_dir_since(folder, UNIX_EPOCH, secrets);
}

/// As [`scan_dir`], of the files that were written to since: a database server has those of many tests, and what a
/// test typed is in none that was there before it and has stayed as it was.
pub fn scan_dir_since(folder: &Path, since: SystemTime, secrets: &[&str]) {
    let found = find_in_dir(secrets, folder, since);
    assert!(found.is_empty(), "card data in files:\n{}", found.join("\n"));
}

/// Every place in the files below `folder`, as far as they were written to since, where one of the secrets is.
/// Files that go away meanwhile are skipped; one that cannot be read is a failure.
pub fn find_in_dir(secrets: &[&str], folder: &Path, since: SystemTime) -> Vec<String> {
    // File systems tell times by a clock of their own, which is behind by a few milliseconds.
    let since = since.checked_sub(Duration::from_secs(2)).unwrap_or(UNIX_EPOCH);
    let written = |entry: &DirEntry| {
        let changed = present(entry.metadata()).map(|it| it.modified().expect("a time of change"));
        changed.is_some_and(|at| at >= since)
    };
    let needles = Needles::new(secrets).searcher(true);
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in present(fs::read_dir(&folder)).into_iter().flatten() {
            let Some(entry) = present(entry) else { continue };
            let Some(kind) = present(entry.file_type()) else { continue };
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file()
                && written(&entry)
                && let Some(bytes) = present(fs::read(entry.path()))
            {
                let places = needles.find(&bytes);
                found.extend(places.into_iter().map(|place| format!("{}: {place}", entry.path().display())));
            }
        }
    }
    found
}

fn present<T>(result: io::Result<T>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => panic!("a file cannot be searched: {error}"),
    }
}

/// Every place in `haystack` where one of the secrets is, without repeating it.
///
/// A secret of 3 or 4 digits is searched as a CVV, one of 12 to 19 digits as a PAN, any other as it is.
pub fn find(secrets: &[&str], haystack: &[u8]) -> Vec<String> {
    Needles::new(secrets).searcher(haystack.len() > MUCH).find(haystack)
}

/// The names of all encodings in which a secret is searched.
pub fn encodings(secret: &str) -> BTreeSet<&'static str> {
    Needles::new(&[secret]).0.iter().map(|needle| needle.encoding).collect()
}

/// One spelling of one secret.
struct Needle {
    secret: usize,
    encoding: &'static str,
    bytes: Vec<u8>,
    context: Context,
}

/// What must stand around the bytes.
enum Context {
    Anything,
    /// Half-bytes of a BCD number that does not begin or end with a whole byte.
    Nibbles {
        before: Option<u8>,
        after: Option<u8>,
    },
    /// A whole JSON string, or a name of a CVV in front.
    Cvv,
}

/// All spellings.
struct Needles(Vec<Needle>);

impl Needles {
    fn new(secrets: &[&str]) -> Self {
        let mut all = Self(Vec::new());
        for (secret, text) in secrets.iter().enumerate() {
            let digits = text.bytes().all(|it| it.is_ascii_digit());
            match text.len() {
                3 | 4 if digits => all.cvv(secret, text),
                12..=19 if digits => all.pan(secret, text),
                length => {
                    assert!(length >= 4, "secret {secret} is too short to be searched for");
                    all.text(secret, text);
                }
            }
        }
        all
    }

    fn add(&mut self, secret: usize, encoding: &'static str, bytes: impl Into<Vec<u8>>, context: Context) {
        self.0.push(Needle { secret, encoding, bytes: bytes.into(), context });
    }

    fn cvv(&mut self, secret: usize, digits: &str) {
        self.add(secret, "text", digits, Context::Cvv);
        // In other encodings three digits are too few, so only the likeliest surroundings count.
        for form in
            [format!("\"cvv\":\"{digits}\""), format!("\"cvv\": \"{digits}\""), format!("cvv={digits}")]
        {
            self.encoded(secret, &form);
        }
    }

    fn pan(&mut self, secret: usize, digits: &str) {
        self.text(secret, digits);
        for (encoding, separator) in [
            ("spaced", " "),
            ("hyphenated", "-"),
            ("spaced, form-encoded", "+"),
            ("spaced, URL-encoded", "%20"),
        ] {
            self.add(secret, encoding, grouped(digits, &[4, 4, 4, 4], separator), Context::Anything);
            if digits.len() == 15 {
                self.add(secret, encoding, grouped(digits, &[4, 6], separator), Context::Anything);
            }
        }
        let numbers: Vec<u8> = digits.bytes().map(|digit| digit - b'0').collect();
        for skip in [0, 1] {
            let pairs = numbers[skip..].chunks_exact(2);
            let after = pairs.remainder().first().copied();
            let packed: Vec<u8> = pairs.map(|pair| pair[0] << 4 | pair[1]).collect();
            let before = (skip == 1).then(|| numbers[0]);
            self.add(secret, "BCD", packed, Context::Nibbles { before, after });
        }
        self.add(secret, "one digit a byte", numbers, Context::Anything);
    }

    fn text(&mut self, secret: usize, text: &str) {
        self.add(secret, "text", text, Context::Anything);
        self.encoded(secret, text);
    }

    fn encoded(&mut self, secret: usize, text: &str) {
        let any = || Context::Anything;
        let each = |form: fn(u8) -> String| text.bytes().map(form).collect::<Vec<_>>();
        self.add(secret, "UTF-16LE", utf16(text, u16::to_le_bytes), any());
        self.add(secret, "UTF-16BE", utf16(text, u16::to_be_bytes), any());
        self.add(secret, "hexadecimal", HEXLOWER.encode(text.as_bytes()), any());
        self.add(secret, "hexadecimal", HEXUPPER.encode(text.as_bytes()), any());
        self.add(secret, "URL-encoded", each(|byte| format!("%{byte:02X}")).concat(), any());
        self.add(secret, "URL-encoded", each(|byte| format!("%{byte:02x}")).concat(), any());
        self.add(secret, "escaped", each(|byte| format!("\\x{byte:02x}")).concat(), any());
        self.add(secret, "escaped", each(|byte| format!("\\u{byte:04x}")).concat(), any());
        for between in [", ", ",", " "] {
            self.add(secret, "list of bytes", each(|byte| byte.to_string()).join(between), any());
            self.add(
                secret,
                "list of bytes, hexadecimal",
                each(|byte| format!("{byte:x}")).join(between),
                any(),
            );
            let zeros = each(|byte| format!("0x{byte:02x}")).join(between);
            self.add(secret, "list of bytes, 0x", zeros, any());
        }
        // `{:#?}`, as it stands and inside a JSON string, at the depths that happen.
        for end in [",\n", ",\\n"] {
            for depth in 1..=6 {
                let between = format!("{end}{}", "    ".repeat(depth));
                self.add(
                    secret,
                    "list of bytes, one a line",
                    each(|byte| byte.to_string()).join(&between),
                    any(),
                );
            }
        }
        for shift in 0..3 {
            for alphabet in [&BASE64, &BASE64URL] {
                // The characters that come from the secret alone, whatever stands around it.
                let shifted = [&[0; 3][..shift], text.as_bytes()].concat();
                let (first, end) = ((shift * 8).div_ceil(6), shifted.len() * 8 / 6);
                let characters = alphabet.encode(&shifted).into_bytes();
                self.add(secret, "base64", &characters[first..end], any());
            }
        }
    }

    fn searcher(self, much: bool) -> Searcher {
        let spellings = self.0.iter().map(|needle| &needle.bytes);
        // Four times as quick, and longer to make.
        let kind = much.then_some(AhoCorasickKind::DFA);
        let automaton = AhoCorasick::builder().kind(kind).build(spellings).expect("few spellings");
        Searcher { needles: self.0, automaton }
    }
}

/// All spellings at once, by a library that dependencies' optimisation makes quick: tests search gigabytes, in a
/// build that is not optimised.
struct Searcher {
    needles: Vec<Needle>,
    automaton: AhoCorasick,
}

impl Searcher {
    fn find(&self, haystack: &[u8]) -> Vec<String> {
        let mut found = Vec::new();
        // Overlapping: one spelling may begin within another one.
        for one in self.automaton.find_overlapping_iter(haystack) {
            let (needle, place) = (&self.needles[one.pattern().as_usize()], one.start());
            if needle.fits(haystack, place) {
                let before = String::from_utf8_lossy(&haystack[place.saturating_sub(60)..place]);
                found.push((
                    place,
                    format!(
                        "secret {} as {} at byte {place}, after {:?}",
                        needle.secret, needle.encoding, before
                    ),
                ));
            }
        }
        found.sort_by_key(|(place, _)| *place);
        found.into_iter().map(|(_, told)| told).collect()
    }
}

impl Needle {
    fn fits(&self, haystack: &[u8], place: usize) -> bool {
        let (before, after) = (&haystack[..place], &haystack[place + self.bytes.len()..]);
        match self.context {
            Context::Anything => true,
            Context::Nibbles { before: low, after: high } => {
                low.is_none_or(|low| before.last().is_some_and(|byte| byte & 0xf == low))
                    && high.is_none_or(|high| after.first().is_some_and(|byte| byte >> 4 == high))
            }
            Context::Cvv => {
                let whole = |byte: Option<&u8>| !byte.is_some_and(u8::is_ascii_digit);
                whole(before.last())
                    && whole(after.first())
                    && (is_json_string(before, after) && !is_last4(before) || is_named(before))
            }
        }
    }
}

/// `"…"`, also inside a JSON string.
fn is_json_string(before: &[u8], after: &[u8]) -> bool {
    before.ends_with(b"\"") && (after.starts_with(b"\"") || after.starts_with(b"\\\""))
}

/// Whether the string that begins here is the value of a member named `last4`, also inside a JSON string.
fn is_last4(before: &[u8]) -> bool {
    let name: Vec<u8> = before[before.len().saturating_sub(16)..]
        .iter()
        .filter(|byte| !matches!(byte, b'\\' | b' '))
        .copied()
        .collect();
    name.ends_with(b"\"last4\":\"")
}

/// Whether a name of a CVV stands before, with at most punctuation and a `Some` between.
fn is_named(before: &[u8]) -> bool {
    let mut before = &before[before.len().saturating_sub(48)..];
    loop {
        let length = before.iter().rposition(u8::is_ascii_alphanumeric).map_or(0, |place| place + 1);
        if before.len() - length > 12 {
            return false;
        }
        before = &before[..length];
        match before.strip_suffix(b"Some") {
            Some(rest) => before = rest,
            None => break,
        }
    }
    let text = String::from_utf8_lossy(before).to_ascii_lowercase();
    CVV_NAMES.iter().any(|name| text.ends_with(name))
}

fn grouped(digits: &str, groups: &[usize], separator: &str) -> String {
    let mut parts = Vec::new();
    let mut rest = digits;
    for &length in groups {
        if rest.len() > length {
            let (part, tail) = rest.split_at(length);
            parts.push(part);
            rest = tail;
        }
    }
    parts.push(rest);
    parts.join(separator)
}

fn utf16(text: &str, bytes: fn(u16) -> [u8; 2]) -> Vec<u8> {
    text.encode_utf16().flat_map(bytes).collect()
}
