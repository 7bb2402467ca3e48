//! Antom (Alipay's global acquiring API): exact-bytes signing, answer verification, pay bodies.

pub mod answer;
pub mod body;
pub mod client;
pub mod notification;
pub mod scrub;
pub mod sign;
pub mod verify;
pub mod wire;
