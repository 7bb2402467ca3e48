//! What a task leaves in dead frames of its thread's stack: a card number that was moved, the arguments of a
//! library's function. No `Drop` reaches it, and it stays until a deeper call happens to overwrite it, which on an
//! idle thread is never.

/// Deeper than requests get. Unoptimised frames are several times larger.
const BYTES: usize = if cfg!(debug_assertions) { 512 * 1024 } else { 128 * 1024 };

/// Overwrites the part of the stack that lies below the caller. A runtime calls it on each of its threads that
/// has nothing more to do.
pub fn overwrite() {
    zeroize::zeroize_stack::<BYTES>();
}
