//! A bar for people, lines of JSON for scripts.

use indicatif::{ProgressBar, ProgressStyle};

use crate::ops::rotation::reencrypt::Progress;

/// Shows how far a long job is.
pub struct Shown {
    bar: Option<ProgressBar>,
    json: bool,
    last: u64,
}

impl Shown {
    /// A bar on standard error, where that is a terminal; lines of JSON on standard output with `json`.
    pub fn new(json: bool) -> Self {
        let style = ProgressStyle::with_template("{bar:32} {pos}/{len} rows, {msg}, {eta} left");
        let bar = (!json)
            .then(|| ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar())));
        Self { bar, json, last: 0 }
    }

    /// Shows one step.
    pub fn step(&mut self, progress: Progress) {
        if let Some(bar) = &self.bar {
            bar.set_length(progress.moved + progress.left);
            bar.set_position(progress.moved);
            bar.set_message(format!("{:.0} rows/s, {} left", progress.rate, progress.left));
        }
        // A line for each batch would be too much: one for each thousand rows, and one at the end.
        if self.json && (progress.moved / 1000 != self.last / 1000 || progress.left == 0) {
            #[expect(clippy::cast_precision_loss, reason = "a time for people")]
            let seconds = if progress.rate > 0.0 { progress.left as f64 / progress.rate } else { 0.0 };
            println!(
                "{}",
                serde_json::json!({
                    "event": "progress", "moved": progress.moved, "left": progress.left,
                    "rowsPerSecond": progress.rate.round(), "secondsLeft": seconds.round(),
                })
            );
        }
        self.last = progress.moved;
    }

    /// Takes the bar away.
    pub fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
