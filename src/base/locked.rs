//! Memory for keys: pages of their own that are locked (never swapped), left out of core dumps, and empty in a
//! forked child. The only module with `unsafe` code; everything it hands out is used by safe references.
//!
//! Pages are never given back: a vault has some dozens of keys, and as many derived ones as requests at once.

use std::ptr::{NonNull, null_mut};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mlock, mmap_anonymous};
use rustix::param::page_size;
use zeroize::Zeroize;

/// Bytes of a slot: one 256-bit key.
pub const SLOT: usize = 32;

/// A place that nobody has. It is zero.
struct Free(NonNull<[u8; SLOT]>);

// SAFETY: a `Free` is the only way to its place, which no thread owns.
unsafe impl Send for Free {}

/// All places.
struct Arena {
    free: Vec<Free>,
    unlocked: bool,
}

static ARENA: Mutex<Arena> = Mutex::new(Arena { free: Vec::new(), unlocked: false });

/// A panic while the lock was held leaves the list whole: each change is one call.
fn arena() -> MutexGuard<'static, Arena> {
    ARENA.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Arena {
    fn take(&mut self) -> Free {
        if let Some(free) = self.free.pop() {
            return free;
        }
        self.grow();
        // No page could be had: a key in ordinary memory, which is wiped like any other.
        self.free.pop().unwrap_or_else(|| {
            self.unlocked = true;
            Free(NonNull::from(Box::leak(Box::new([0; SLOT]))))
        })
    }

    fn grow(&mut self) {
        let length = page_size();
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing. It is readable,
        // writable, zero, and never unmapped.
        let Ok(page) = (unsafe { mmap_anonymous(null_mut(), length, protection, flags) }) else { return };
        // SAFETY: this is exactly the mapping that was made above. Locking and advising change no byte of it;
        // `LinuxWipeOnFork` empties it only in a child, where no slot is used before the child becomes another
        // program.
        let private = unsafe {
            mlock(page, length).is_ok()
                & madvise(page, length, Advice::LinuxDontDump).is_ok()
                & madvise(page, length, Advice::LinuxWipeOnFork).is_ok()
        };
        self.unlocked |= !private;
        for place in 0..length / SLOT {
            // SAFETY: `place * SLOT + SLOT` is at most `length`, so it stays within the mapping.
            let slot = unsafe { page.cast::<[u8; SLOT]>().add(place) };
            self.free.extend(NonNull::new(slot).map(Free));
        }
    }
}

/// 32 bytes in locked memory, wiped on drop.
pub struct Slot(Free);

// SAFETY: shared references to a slot only read it; it changes through `&mut` alone.
unsafe impl Sync for Slot {}

impl Slot {
    /// A slot of zeros.
    pub fn zeroed() -> Self {
        Self(arena().take())
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8; SLOT] {
        // SAFETY: the place is valid for ever (a page that is never unmapped, or a leaked box), holds bytes,
        // for which every value is good, and belongs to this slot alone, which is borrowed for as long.
        unsafe { self.0.0.as_ref() }
    }

    /// Its bytes, to fill.
    pub fn bytes_mut(&mut self) -> &mut [u8; SLOT] {
        // SAFETY: as above, and the slot is borrowed mutably.
        unsafe { self.0.0.as_mut() }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.bytes_mut().zeroize();
        let place = Free(self.0.0);
        arena().free.push(place);
    }
}

/// Whether all keys are in memory that is locked and left out of dumps.
pub fn is_private() -> bool {
    // One page at least is tried.
    drop(Slot::zeroed());
    !arena().unlocked
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_apart_and_begin_empty() {
        let mut slots: Vec<Slot> = (0..300).map(|_| Slot::zeroed()).collect();
        for (number, slot) in slots.iter_mut().enumerate() {
            assert_eq!(slot.bytes(), &[0; SLOT]);
            slot.bytes_mut().fill(u8::try_from(number % 255).expect("a byte") + 1);
        }
        for (number, slot) in slots.iter().enumerate() {
            assert_eq!(slot.bytes(), &[u8::try_from(number % 255).expect("a byte") + 1; SLOT]);
        }
        drop(slots);
        let again: Vec<Slot> = (0..300).map(|_| Slot::zeroed()).collect();
        assert!(again.iter().all(|slot| slot.bytes() == &[0; SLOT]), "what is given back is empty");
    }

    #[test]
    fn slots_may_be_used_by_many_threads() {
        let threads: Vec<_> = (1..9_u8)
            .map(|number| {
                std::thread::spawn(move || {
                    for _ in 0..2_000 {
                        let mut slot = Slot::zeroed();
                        assert_eq!(slot.bytes(), &[0; SLOT]);
                        slot.bytes_mut().fill(number);
                        std::thread::yield_now();
                        assert_eq!(slot.bytes(), &[number; SLOT]);
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().expect("no two have one slot");
        }
    }
}
