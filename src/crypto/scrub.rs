//! Ciphers and hashes leave round keys and pads in dead stack frames, where no `Drop` reaches them.
//! Every routine that touches raw key bytes runs inside [`scrubbed`].

/// Nearly three times as deep as any routine here gets: sealing 4.4 KiB in an optimised build. Not deeper than
/// that: what is written here takes the place of what the processor has at hand.
const STACK_BYTES: usize = if cfg!(debug_assertions) { 32 * 1024 } else { 12 * 1024 };

/// Runs `work` in a frame of its own, then overwrites the stack that it used.
///
/// Best effort, as the `zeroize` crate says of it: what the compiler keeps in registers, or spills above
/// this frame, stays until it is overwritten.
pub(super) fn scrubbed<T>(work: impl FnOnce() -> T) -> T {
    let outcome = apart(work);
    zeroize::zeroize_stack::<STACK_BYTES>();
    outcome
}

#[inline(never)]
fn apart<T>(work: impl FnOnce() -> T) -> T {
    work()
}
