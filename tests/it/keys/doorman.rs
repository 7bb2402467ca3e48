//! A door to the database that holds one who works there, so that others come in between.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cardvault::app;
use cardvault::base::clock::{SharedClock, SystemClock};
use cardvault::ops::rotation::Admin;
use cardvault::ops::rotation::reencrypt::Pace;
use cardvault::store::backend::{Passage, Turn, Turnstile, Work};
use tokio::sync::Notify;

use crate::support::vault::TestVault;

/// Without a pause, and so that one batch is enough.
pub const PACE: Pace = Pace { batch: 100, pause: Duration::ZERO };

/// Lets everybody through but the one whom it is to hold until it is told.
#[derive(Default)]
pub struct Doorman {
    holds: Mutex<Option<(Work, usize)>>,
    arrived: Notify,
    told: Notify,
}

impl Doorman {
    /// Holds the so-and-so-manyeth work of this kind that comes from now on; the next one is the first.
    pub fn hold(&self, work: Work, nth: usize) {
        *self.holds.lock().unwrap_or_else(PoisonError::into_inner) = Some((work, nth));
    }

    /// Returns when it holds somebody.
    pub async fn arrived(&self) {
        tokio::time::timeout(Duration::from_secs(60), self.arrived.notified())
            .await
            .expect("somebody to hold");
    }

    /// Lets whom it holds go on.
    pub fn let_go(&self) {
        self.told.notify_one();
    }

    fn is_held(&self, work: Work) -> bool {
        let mut holds = self.holds.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((what, left)) = holds.as_mut() else { return false };
        if *what != work {
            return false;
        }
        *left -= 1;
        let is_held = *left == 0;
        if is_held {
            *holds = None;
        }
        is_held
    }
}

struct Through;

impl Passage for Through {
    fn leave(self: Box<Self>) -> Turn<'static, ()> {
        Box::pin(async { Ok(()) })
    }
}

impl Turnstile for Doorman {
    fn enter(&self, work: Work) -> Turn<'_, Box<dyn Passage>> {
        Box::pin(async move {
            if self.is_held(work) {
                self.arrived.notify_one();
                self.told.notified().await;
            }
            Ok(Box::new(Through) as Box<dyn Passage>)
        })
    }
}

/// What a command of this vault works with, in this process and through a door, with the keys as they are now.
pub async fn command_through(vault: &TestVault, door: &Arc<Doorman>) -> Admin {
    let clock: SharedClock = Arc::new(SystemClock);
    let db = app::open_database(&vault.config).await.expect("a database").through(door.clone());
    let keks = Arc::new(app::keks(&vault.config).expect("a keyring"));
    let policy = vault.config.keys.policy();
    let admin = Admin::new(db, keks, &clock, policy, Duration::from_secs(60)).expect("a command");
    admin.keys.open_only().await.expect("keys");
    admin
}
