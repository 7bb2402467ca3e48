//! A bar for people, lines of JSON for scripts.

use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value, json};

/// How often a line of JSON tells how far it is, in things done.
const EVERY: u64 = 10_000;

/// Shows how far a long job is.
pub struct Shown {
    bar: Option<ProgressBar>,
    begin: Instant,
    what: &'static str,
    told: u64,
}

/// How far it is.
pub struct Step {
    /// Things done: cards, or lines.
    pub done: u64,
    /// How much of the whole is behind, in whatever is counted.
    pub at: u64,
    /// The whole, where it is known.
    pub of: Option<u64>,
    /// More to tell, by name.
    pub counts: Vec<(&'static str, u64)>,
}

impl Shown {
    /// A bar on standard error, where that is a terminal; lines of JSON on standard output with `json`.
    pub fn new(json: bool, what: &'static str) -> Self {
        let style = ProgressStyle::with_template("{bar:32} {percent:>3} %, {msg}, {eta} left");
        let bar = (!json)
            .then(|| ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar())));
        Self { bar, begin: Instant::now(), what, told: 0 }
    }

    /// Things a second, so far.
    fn rate(&self, done: u64) -> f64 {
        let seconds = self.begin.elapsed().as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
        let rate = if seconds > 0.0 { done as f64 / seconds } else { 0.0 };
        rate
    }

    /// Shows one step.
    pub fn step(&mut self, step: &Step) {
        let rate = self.rate(step.done);
        if let Some(bar) = &self.bar {
            bar.set_length(step.of.unwrap_or(0).max(step.at));
            bar.set_position(step.at);
            let counts: String =
                step.counts.iter().map(|(name, count)| format!(", {count} {name}")).collect();
            bar.set_message(format!("{} {}{counts}, {rate:.0}/s", step.done, self.what));
            return;
        }
        if step.done / EVERY != self.told / EVERY {
            let mut line = self.line("progress", step);
            line.insert("perSecond".to_owned(), json!(rate.round()));
            if let Some(of) = step.of.filter(|_| step.at > 0) {
                #[expect(clippy::cast_precision_loss, reason = "a time for people")]
                let left =
                    self.begin.elapsed().as_secs_f64() / step.at as f64 * of.saturating_sub(step.at) as f64;
                line.insert("secondsLeft".to_owned(), json!(left.round()));
            }
            println!("{}", Value::Object(line));
        }
        self.told = step.done;
    }

    fn line(&self, event: &str, step: &Step) -> Map<String, Value> {
        let mut line = Map::new();
        line.insert("event".to_owned(), json!(event));
        line.insert(self.what.to_owned(), json!(step.done));
        line.extend(step.counts.iter().map(|(name, count)| ((*name).to_owned(), json!(count))));
        line
    }

    /// Takes the bar away, and tells in JSON what it came to, with more members.
    pub fn end(&self, event: &str, step: &Step, more: &[(&str, Value)]) {
        match &self.bar {
            Some(bar) => bar.finish_and_clear(),
            None => {
                let mut line = self.line(event, step);
                line.insert("seconds".to_owned(), json!(self.begin.elapsed().as_secs_f64()));
                line.extend(more.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
                println!("{}", Value::Object(line));
            }
        }
    }

    /// Whether people look on.
    pub fn is_for_people(&self) -> bool {
        self.bar.is_some()
    }
}
