//! Ciphers and hashes leave round keys and pads in dead stack frames, where no `Drop` reaches them.
//! Every routine that touches raw key bytes runs inside [`scrubbed`].

use crate::base::stack::cleared;

/// Nearly three times as deep as any routine here gets: sealing 4.4 KiB in an optimised build. Not deeper than
/// that: what is written here takes the place of what the processor has at hand.
const STACK_BYTES: usize = if cfg!(debug_assertions) { 32 * 1024 } else { 12 * 1024 };

/// Runs `work`, then overwrites the stack that it used.
pub(super) fn scrubbed<T>(work: impl FnOnce() -> T) -> T {
    cleared::<STACK_BYTES, T>(work)
}
