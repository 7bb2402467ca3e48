//! Telling of what strangers do, but not of every one of a flood: whoever can connect could fill the disk
//! otherwise.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lets so many a second be told of, and counts those that were not.
pub struct Sparing {
    each_second: u32,
    said: Mutex<Said>,
}

#[derive(Default)]
struct Said {
    since: Option<Instant>,
    times: u32,
    left_out: u64,
}

impl Sparing {
    /// Tells of so many in a second.
    pub fn new(each_second: u32) -> Self {
        Self { each_second, said: Mutex::default() }
    }

    /// Whether this one is told of, and how many before it were not.
    pub fn say(&self) -> Option<u64> {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.since.is_none_or(|since| since.elapsed() >= Duration::from_secs(1)) {
            *said = Said { since: Some(Instant::now()), times: 0, left_out: said.left_out };
        }
        if said.times >= self.each_second {
            said.left_out += 1;
            return None;
        }
        said.times += 1;
        Some(std::mem::take(&mut said.left_out))
    }
}

/// A reason, and of how many before it nothing was told.
pub fn with_others(reason: &str, left_out: u64) -> String {
    match left_out {
        0 => reason.to_owned(),
        more => format!("{reason}, and {more} refused before it"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_told_of_sparingly_and_counted() {
        let sparing = Sparing::new(2);
        let told: Vec<_> = (0..5).map(|_| sparing.say()).collect();
        assert_eq!(told, [Some(0), Some(0), None, None, None]);
        sparing.said.lock().expect("not poisoned").since = None;
        assert_eq!((sparing.say(), sparing.say(), sparing.say()), (Some(3), Some(0), None));
        assert_eq!(with_others("why", 0), "why");
        assert_eq!(with_others("why", 3), "why, and 3 refused before it");
    }
}
