//! Words that every floor uses: secrets, cards, ids, money, strict JSON, time, randomness, limits.
//!
//! Pure: nothing here reads a file, a socket or a database. Values are parsed once, at the edge; after
//! that their type says that they are good.

pub mod bytes;
pub mod card;
pub mod clock;
pub mod cvv;
pub mod entropy;
pub mod fault;
pub mod ids;
pub mod json;
pub mod limits;
#[expect(unsafe_code, reason = "the system's calls for locked memory are; this module is the only one")]
pub mod locked;
pub mod money;
pub mod mutex;
pub mod names;
pub mod private_file;
pub mod sealed;
pub mod secret;
pub mod stack;
