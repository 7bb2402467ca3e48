//! What a task leaves in dead frames of its thread's stack: a card number that was moved, the arguments of a
//! library's function. No `Drop` reaches it, and it stays until a deeper call happens to overwrite it, which on an
//! idle thread is never. Worse, it is taken along: a value that is made in such a frame and moved to the heap has
//! the old bytes in its padding, for as long as it lives (a connection's channel, for one).

use std::future::{Future, poll_fn};
use std::pin::pin;

/// Deeper than requests get. Unoptimised frames are several times larger.
const BYTES: usize = if cfg!(debug_assertions) { 512 * 1024 } else { 128 * 1024 };
/// Deeper than the frames of a request that hold what is secret: its handler, its operation, and what they call.
const STEP: usize = if cfg!(debug_assertions) { 256 * 1024 } else { 32 * 1024 };

/// Overwrites the part of the stack that lies below the caller. A runtime calls it on each of its threads that
/// has nothing more to do.
pub fn overwrite() {
    zeroize::zeroize_stack::<BYTES>();
}

/// Runs `work`, and overwrites the stack below it each time that it waits and when it is done, before its thread
/// goes on to something else.
pub async fn leaving_nothing<F: Future>(work: F) -> F::Output {
    let mut work = pin!(work);
    poll_fn(|context| cleared::<STEP, _>(|| work.as_mut().poll(context))).await
}

/// Runs `work` in a frame of its own, then overwrites as many bytes of the stack from there on.
///
/// Best effort, as the `zeroize` crate says of it: what the compiler keeps in registers, or spills above
/// this frame, stays until it is overwritten.
pub(crate) fn cleared<const BYTES: usize, T>(work: impl FnOnce() -> T) -> T {
    let outcome = apart(work);
    zeroize::zeroize_stack::<BYTES>();
    outcome
}

#[inline(never)]
fn apart<T>(work: impl FnOnce() -> T) -> T {
    work()
}
