//! CVVs that wait for their payment: in memory only, sealed, for a few minutes, used once (PCI DSS 3.3.1,
//! 3.3.2). A slot that is not taken in time is wiped by [`Slots::sweep`], not left for a reader to find.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::base::clock::{Millis, SharedClock};
use crate::base::ids::{CardId, Merchant, PaymentRequestId};
use crate::base::limits::{CVV_HOLD, CVV_SLOTS};

/// A slot's content and how long it may live.
struct Slot<T> {
    sealed: T,
    until: Instant,
    until_wall: Millis,
}

/// No more CVVs are taken until some were used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("too many CVVs are held")]
pub struct SlotsFull;

/// The slots of one process, of things sealed as `T`.
pub struct Slots<T> {
    slots: Mutex<HashMap<(Merchant, CardId), Slot<T>>>,
    clock: SharedClock,
}

impl<T: Send> Slots<T> {
    /// No slots yet.
    pub fn new(clock: SharedClock) -> Self {
        Self { slots: Mutex::new(HashMap::new()), clock }
    }

    /// Holds something for a card and tells until when; what was held before is wiped.
    pub fn hold(&self, merchant: &Merchant, card: &CardId, sealed: T) -> Result<Millis, SlotsFull> {
        let until_wall = self.clock.now().plus(CVV_HOLD);
        let slot = Slot { sealed, until: self.clock.instant() + CVV_HOLD, until_wall };
        let mut slots = self.lock();
        let key = (merchant.clone(), card.clone());
        if slots.len() >= CVV_SLOTS && !slots.contains_key(&key) {
            return Err(SlotsFull);
        }
        slots.insert(key, slot);
        Ok(until_wall)
    }

    /// Takes what is held for a card; a second taker gets nothing. `until` is what the database says of
    /// the slot: another one has been held since, or before.
    pub fn take(&self, merchant: &Merchant, card: &CardId, until: Millis) -> Option<Taken<T>> {
        let mut slots = self.lock();
        let key = (merchant.clone(), card.clone());
        let held = slots.get(&key)?;
        if held.until_wall != until {
            return None;
        }
        let slot = slots.remove(&key)?;
        (slot.until > self.clock.instant()).then_some(Taken { key, slot })
    }

    /// Puts back what was taken for a payment that was then not made, unless a newer one is held.
    pub fn put_back(&self, taken: Taken<T>) {
        self.lock().entry(taken.key).or_insert(taken.slot);
    }

    /// Wipes what is held for a card.
    pub fn forget(&self, merchant: &Merchant, card: &CardId) {
        self.lock().remove(&(merchant.clone(), card.clone()));
    }

    /// Wipes everything whose time is over, and tells how much that was.
    pub fn sweep(&self) -> usize {
        let now = self.clock.instant();
        let mut slots = self.lock();
        let before = slots.len();
        slots.retain(|_, slot| slot.until > now);
        before - slots.len()
    }

    /// Wipes everything.
    pub fn clear(&self) {
        self.lock().clear();
    }

    /// How many are held.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether none is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    // A panic while the lock was held leaves the map whole: each change is one call.
    fn lock(&self) -> MutexGuard<'_, HashMap<(Merchant, CardId), Slot<T>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Something taken out of its slot.
pub struct Taken<T> {
    key: (Merchant, CardId),
    slot: Slot<T>,
}

impl<T> Taken<T> {
    /// What was sealed.
    pub fn sealed(&self) -> &T {
        &self.slot.sealed
    }
}

/// Whether a slot for one payment only may serve this one.
pub fn is_for(slot: Option<&str>, payment: &PaymentRequestId) -> bool {
    slot.is_none_or(|id| id == payment.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock::SetClock;
    use std::sync::Arc;
    use std::sync::atomic::Ordering;

    fn slots() -> (Slots<&'static str>, Arc<SetClock>, Merchant, CardId) {
        let clock = SetClock::at(Millis(1_000));
        let merchant = Merchant::parse("acme").expect("a merchant");
        (Slots::new(clock.clone()), clock, merchant, CardId::make().expect("entropy"))
    }

    #[test]
    fn what_is_held_is_taken_once() {
        let (slots, _, merchant, card) = slots();
        let until = slots.hold(&merchant, &card, "one").expect("held");
        assert!(slots.take(&merchant, &card, Millis(until.0 + 1)).is_none());
        let taken = slots.take(&merchant, &card, until).expect("taken");
        assert_eq!(*taken.sealed(), "one");
        assert!(slots.take(&merchant, &card, until).is_none());
        slots.put_back(taken);
        assert!(slots.take(&merchant, &card, until).is_some());
    }

    #[test]
    fn another_merchant_or_card_has_another_slot() {
        let (slots, _, merchant, card) = slots();
        let until = slots.hold(&merchant, &card, "one").expect("held");
        assert!(slots.take(&Merchant::parse("globex").expect("a merchant"), &card, until).is_none());
        assert!(slots.take(&merchant, &CardId::make().expect("entropy"), until).is_none());
        slots.forget(&merchant, &card);
        assert!(slots.is_empty());
    }

    #[test]
    fn a_slot_ends_by_the_monotonic_clock_and_is_swept() {
        let (slots, clock, merchant, card) = slots();
        let until = slots.hold(&merchant, &card, "one").expect("held");
        clock.monotonic.store(15 * 60 - 1, Ordering::SeqCst);
        assert_eq!((slots.sweep(), slots.len()), (0, 1));
        clock.monotonic.store(15 * 60, Ordering::SeqCst);
        assert!(slots.take(&merchant, &card, until).is_none());
        assert!(slots.is_empty(), "a slot that is over is gone once it was asked for");
        slots.hold(&merchant, &card, "two").expect("held");
        clock.monotonic.store(30 * 60, Ordering::SeqCst);
        assert_eq!((slots.sweep(), slots.len()), (1, 0));
    }
}
