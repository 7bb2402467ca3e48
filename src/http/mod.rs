//! The edge: who is calling, and over which connection. Requests that come this far carry the verified
//! names of their caller; what the caller may do is decided further in.

pub mod peer;
pub mod serve;
pub mod tls;
