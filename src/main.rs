//! The `cardvault` binary.

fn main() {}
