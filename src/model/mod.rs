//! What things are, and which changes are legal. Pure: no I/O, no clock of its own.

pub mod access;
pub mod agreement;
pub mod agreement_view;
pub mod audit;
pub mod card;
pub mod decline;
pub mod event;
pub mod import;
pub mod key_life;
pub mod look;
mod misplaced;
pub mod operation;
pub mod operation_refusal;
pub mod operation_request;
pub mod operation_view;
pub mod pay_request;
pub mod payment;
pub mod payment_view;
pub mod retention;
pub mod rules;
pub mod vocabulary;
