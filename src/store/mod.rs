//! The SQL database: SQLite inside the process, or PostgreSQL. It only ever holds sealed bytes, and
//! knows nothing of keys.

pub mod agreements;
pub mod alone;
pub mod audit;
pub mod backend;
pub mod cards;
pub mod events;
pub mod facts;
pub mod fingerprints;
pub mod groups;
pub mod keys;
pub mod leases;
mod lent;
pub mod many;
pub mod migrate;
pub mod notices;
pub mod operations;
pub mod payments;
pub mod replicas;
pub mod reseal;
pub mod retention;
