//! cardvault: a server-to-server PCI card vault and tokenizer. `ARCHITECTURE.md` is the map.

#![deny(unsafe_code)]
#![warn(missing_docs)]

pub mod app;
pub mod base;
pub mod cli;
pub mod config;
pub mod crypto;
pub mod doctor;
pub mod gateway;
pub mod http;
pub mod jobs;
pub mod metrics;
pub mod model;
pub mod ops;
pub mod ops_plane;
pub mod pki;
pub mod sandbox;
pub mod slots;
pub mod store;
pub mod telemetry;
