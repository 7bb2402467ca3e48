//! The edge: who is calling, over which connection, and what is asked. Requests that come this far carry
//! the verified names of their caller; what the caller may do is decided before anything is read.

pub mod admission;
pub mod extract;
pub mod notify;
pub mod outlasting;
pub mod pace;
pub mod peer;
pub mod problem;
pub mod router;
pub mod routes;
pub mod serve;
pub mod sparing;
pub mod tls;
