//! Ciphers and hashes leave round keys and pads in dead stack frames, where no `Drop` reaches them.
//! Every routine that touches raw key bytes runs inside [`scrubbed`].

/// Deeper than any routine here gets in an optimised build, with a wide margin.
const STACK_BYTES: usize = 32 * 1024;

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
