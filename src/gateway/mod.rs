//! The way out to the payment gateway.

pub mod antom;
