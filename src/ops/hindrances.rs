//! What is known to keep a process from its work, told by who finds it out: readiness fails with it.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

/// What is in the way at the moment: constant sentences.
#[derive(Default)]
pub struct Hindrances(Mutex<BTreeSet<&'static str>>);

impl Hindrances {
    /// Says whether something is in the way.
    pub fn set(&self, what: &'static str, there: bool) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if there {
            all.insert(what);
        } else {
            all.remove(what);
        }
    }

    /// One of those that are there.
    pub fn first(&self) -> Option<&'static str> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).first().copied()
    }
}
