//! Lines of log on their way out. Each is a call to the operating system, under a lock that all threads share; for
//! a request of a fraction of a millisecond that is a large part. So the lines that every request has are gathered
//! for a moment and written together, and everything else at once, after what was gathered before it.

use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

use crate::base::mutex::held;

/// How long a line waits for others.
const WAIT: Duration = Duration::from_millis(10);
/// How many bytes wait at most: who brings more writes them. Where the log is read too slowly, requests become slow
/// too, and memory does not fill.
const MOST: usize = 64 * 1024;

/// Lines, in the order in which they came.
pub struct Lines<W>(Arc<Inner<W>>);

struct Inner<W> {
    /// Held from before what waits is taken until it is written, so that no line overtakes another.
    out: Mutex<W>,
    waiting: Mutex<Vec<u8>>,
    came: Condvar,
    /// The module whose lines wait for others, once there is a thread that writes them.
    gathered: OnceLock<&'static str>,
}

impl<W> Clone for Lines<W> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<W: Write + Send + 'static> Lines<W> {
    /// Writes to `out`. What the module `gathered` tells at level INFO waits for others, 10 ms at most.
    pub fn new(out: W, gathered: &'static str) -> Self {
        let inner = Arc::new(Inner {
            out: Mutex::new(out),
            waiting: Mutex::default(),
            came: Condvar::new(),
            gathered: OnceLock::new(),
        });
        let writer = Arc::clone(&inner);
        let thread = thread::Builder::new().name("log".to_owned());
        // Without the thread every line is written at once.
        if thread.spawn(move || writer.write_gathered()).is_ok() {
            let _ = inner.gathered.set(gathered);
        }
        Self(inner)
    }

    /// Writes what waits.
    pub fn flush(&self) -> io::Result<()> {
        self.0.flush()
    }
}

impl<W: Write> Inner<W> {
    fn flush(&self) -> io::Result<()> {
        let mut out = held(&self.out);
        let lines = std::mem::take(&mut *held(&self.waiting));
        out.write_all(&lines)?;
        out.flush()
    }

    fn write_gathered(&self) {
        loop {
            let waiting = held(&self.waiting);
            drop(
                self.came
                    .wait_while(waiting, |lines| lines.is_empty())
                    .unwrap_or_else(PoisonError::into_inner),
            );
            thread::sleep(WAIT);
            // There is no other place to tell of it.
            let _ = self.flush();
        }
    }

    fn add(&self, line: &[u8], waits: bool) -> io::Result<()> {
        let (first, full) = {
            let mut lines = held(&self.waiting);
            lines.extend_from_slice(line);
            (lines.len() == line.len(), lines.len() > MOST)
        };
        if full || !waits {
            return self.flush();
        }
        if first {
            self.came.notify_one();
        }
        Ok(())
    }
}

impl<'a, W: Write + 'a> MakeWriter<'a> for Lines<W> {
    type Writer = Line<'a, W>;

    fn make_writer(&'a self) -> Line<'a, W> {
        Line { lines: &self.0, waits: false }
    }

    fn make_writer_for(&'a self, of: &Metadata<'_>) -> Line<'a, W> {
        let waits = *of.level() == Level::INFO && self.0.gathered.get() == Some(&of.target());
        Line { lines: &self.0, waits }
    }
}

/// Takes one line, in one piece.
pub struct Line<'a, W> {
    lines: &'a Inner<W>,
    waits: bool,
}

impl<W: Write> Write for Line<'_, W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.lines.add(line, self.waits)?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Sends on what is written to it, call by call.
    struct Calls(mpsc::Sender<String>);

    impl Write for Calls {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let text = String::from_utf8(bytes.to_vec()).map_err(io::Error::other)?;
            self.0.send(text).map_err(io::Error::other)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn lines() -> (Lines<Calls>, mpsc::Receiver<String>) {
        let (calls, written) = mpsc::channel();
        (Lines::new(Calls(calls), "many"), written)
    }

    fn say(lines: &Lines<Calls>, what: impl FnOnce()) {
        let plain = tracing_subscriber::fmt().without_time().with_ansi(false).with_target(false);
        let plain = plain.with_max_level(Level::DEBUG).with_writer(lines.clone()).finish();
        tracing::subscriber::with_default(plain, what);
    }

    #[test]
    fn what_many_say_is_written_together_and_soon() {
        let (lines, written) = lines();
        // Before the writer looks.
        let out = held(&lines.0.out);
        say(&lines, || (1..4).for_each(|number| tracing::info!(target: "many", number, "said")));
        drop(out);
        let expected = " INFO said number=1\n INFO said number=2\n INFO said number=3\n";
        assert_eq!(written.recv().as_deref(), Ok(expected));
        say(&lines, || tracing::info!(target: "many", "again"));
        assert_eq!(written.recv().as_deref(), Ok(" INFO again\n"));
    }

    #[test]
    fn nothing_else_waits_and_nothing_overtakes() {
        let (lines, written) = lines();
        let seen = || written.try_iter().collect::<String>();
        say(&lines, || tracing::info!("another's"));
        assert_eq!(seen(), " INFO another's\n");
        say(&lines, || {
            tracing::info!(target: "many", "first");
            tracing::error!(target: "many", "second");
        });
        assert_eq!(seen(), " INFO first\nERROR second\n");
        say(&lines, || tracing::info!(target: "many", "last"));
        lines.flush().expect("written");
        assert_eq!(seen(), " INFO last\n");
    }

    #[test]
    fn no_more_waits_than_there_is_room_for() {
        let (lines, written) = lines();
        let long = "x".repeat(MOST / 4);
        say(&lines, || (0..8).for_each(|_| tracing::info!(target: "many", "{long}")));
        assert!(held(&lines.0.waiting).len() <= MOST);
        lines.flush().expect("written");
        assert_eq!(written.try_iter().map(|text| text.matches(&long).count()).sum::<usize>(), 8);
    }
}
