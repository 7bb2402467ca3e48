//! Antom (Alipay's global acquiring API): exact-bytes signing, answer verification, pay bodies.

pub mod wire;
