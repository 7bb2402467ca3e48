//! What is wrong with a field of a request, in words that hold nothing of the request.

use std::borrow::Cow;

/// One refused field: where it is, and why. Both come from constant texts (positions in arrays aside),
/// so that an answer built from them can echo nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldFault {
    /// RFC 6901 pointer to the field, or to its nearest ancestor whose name is known to the vault.
    pub pointer: Cow<'static, str>,
    /// Stable code, listed in `docs/errors.md`.
    pub code: &'static str,
}

impl FieldFault {
    /// A fault at a pointer that is known when the program is written.
    pub const fn at(pointer: &'static str, code: &'static str) -> Self {
        Self { pointer: Cow::Borrowed(pointer), code }
    }
}
