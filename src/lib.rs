//! cardvault: a server-to-server PCI card vault and tokenizer. `ARCHITECTURE.md` is the map.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod base;
pub mod crypto;
pub mod gateway;
pub mod http;
pub mod model;
pub mod ops;
pub mod pki;
pub mod sandbox;
pub mod slots;
pub mod store;
