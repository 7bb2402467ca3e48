//! Looks at everything around a vault: configuration, files, certificates, database, keys, clock, host and
//! segment. It changes nothing, and tells nothing that is secret: names of files and of keys, never what is in
//! them. What is judged by a text of the system is judged by a pure function, so that tests can bring the text.

mod certificates;
mod clock;
mod database;
mod files;
mod host;
mod keys;
mod network;

use std::path::Path;

use crate::config::Config;

pub(crate) use host::{pipes_cores, swaps};

/// How a check went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// As it should be.
    Pass,
    /// It works, and should be better.
    Warn,
    /// It does not work, or is not safe.
    Fail,
}

impl Verdict {
    /// The verdict as it is printed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// What was looked at: `config`, `files` and so on.
    pub area: &'static str,
    /// How it went.
    pub verdict: Verdict,
    /// What was found.
    pub told: String,
    /// What to do about it.
    pub mend: Option<String>,
}

impl Line {
    fn pass(area: &'static str, told: impl Into<String>) -> Self {
        Self { area, verdict: Verdict::Pass, told: told.into(), mend: None }
    }

    fn warn(area: &'static str, told: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { area, verdict: Verdict::Warn, told: told.into(), mend: Some(mend.into()) }
    }

    fn fail(area: &'static str, told: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { area, verdict: Verdict::Fail, told: told.into(), mend: Some(mend.into()) }
    }

    /// The line for a program.
    pub fn as_json(&self) -> serde_json::Value {
        serde_json::json!({
            "area": self.area, "verdict": self.verdict.name(), "told": self.told, "mend": self.mend,
        })
    }
}

/// Makes every check. Where the configuration cannot be read, only the host is looked at.
pub async fn examine(path: &Path, environment: impl Iterator<Item = (String, String)>) -> Vec<Line> {
    let config = match Config::load(path, environment) {
        Ok(config) => config,
        Err(error) => {
            let mut lines = vec![Line::fail(
                "config",
                error.to_string(),
                "correct the file; cardvault.example.toml has every key",
            )];
            lines.extend(host::examine());
            return lines;
        }
    };
    let mut lines = vec![Line::pass("config", format!("{} is valid", path.display()))];
    for (one, other) in config.shared_accounts() {
        lines.push(Line::warn(
            "config",
            format!("the merchants {one} and {other} share a gateway account"),
            "give each its own account: a request id that one has used is refused to the other",
        ));
    }
    lines.extend(files::examine(&config, path));
    lines.extend(certificates::examine(&config));
    lines.extend(database::examine(&config).await);
    lines.extend(keys::examine(&config).await);
    lines.extend(clock::examine(&config).await);
    lines.extend(host::examine());
    lines.extend(network::examine(&config).await);
    lines
}
