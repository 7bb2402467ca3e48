//! Why an operation was not carried out: one thing for the caller, another for the log.

use crate::base::entropy::NoEntropy;
use crate::base::fault::FieldFault;
use crate::crypto::envelope::{OpenError, SealError};
use crate::crypto::keyring::{KeyringError, WrongPurpose};
use crate::model::access::MissingScope;
use crate::model::operation::OperationKind;
use crate::model::operation_refusal::OperationRefusal;
use crate::model::rules::Refusal;
use crate::store::backend::StoreError;

/// An operation that was refused, or failed.
#[derive(Debug, thiserror::Error)]
pub enum OpError {
    /// The object does not exist, or is another merchant's: the two look the same.
    #[error("not found")]
    NotFound(Option<FieldFault>),
    /// Members of the request are wrong.
    #[error("the request is not valid")]
    Invalid(Vec<FieldFault>),
    /// The client lacks a scope.
    #[error(transparent)]
    Forbidden(#[from] MissingScope),
    /// A rule of stored credentials forbids the payment; nothing was sent.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The payment does not allow a capture, refund or cancel; nothing was sent.
    #[error(transparent)]
    OperationRefused(#[from] OperationRefusal),
    /// As [`Self::OperationRefused`], where a member of a capture or refund is to blame.
    #[error("the payment does not allow the operation")]
    OperationNotAllowed(OperationKind, OperationRefusal),
    /// The request id is in use with another meaning; the pointer names it.
    #[error("the request id is in use")]
    RequestIdReused(&'static str),
    /// The CVV that was held for the card is not in this process.
    #[error("the held CVV is not available")]
    CvvNotAvailable,
    /// Too many CVVs are held.
    #[error("too many CVVs are held")]
    TooMuch,
    /// The KEK is split and its custodians have not unsealed this process.
    #[error("sealed")]
    Sealed,
    /// The database or a key is not available; nothing was sent.
    #[error("not available")]
    Unavailable(#[source] anyhow::Error),
    /// The database was to commit and did not answer: nobody can know whether it has. Nothing was sent before.
    #[error("not available")]
    Unclear(#[source] anyhow::Error),
    /// The request was sent, or may be yet, and its outcome is not recorded.
    #[error("the outcome is not known")]
    OutcomeNotKnown(#[source] anyhow::Error),
    /// Something that must not happen.
    #[error("internal")]
    Internal(#[source] anyhow::Error),
}

impl OpError {
    /// Whenever a record was sealed, the keys had changed before it was stored.
    pub fn keys_are_changing() -> Self {
        Self::Unavailable(anyhow::anyhow!("the keys are being changed faster than a record is stored"))
    }

    /// Why a statement that is its own transaction, or a commit, brought no answer.
    pub(super) fn of_commit(error: StoreError) -> Self {
        if error.is_unclear() { Self::Unclear(error.into()) } else { error.into() }
    }
}

impl From<StoreError> for OpError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unavailable(_) | StoreError::NotBegun(_) => Self::Unavailable(error.into()),
            other => Self::Internal(other.into()),
        }
    }
}

macro_rules! internal {
    ($($error:ty),*) => {$(
        impl From<$error> for OpError {
            fn from(error: $error) -> Self {
                Self::Internal(error.into())
            }
        }
    )*};
}

internal!(NoEntropy, OpenError, SealError, KeyringError, WrongPurpose);
