//! Why a capture, a refund or a cancel is refused before anything is sent.

use super::operation::OperationKind;

/// Which rule forbids it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the payment does not allow the operation")]
pub enum OperationRefusal {
    /// The payment is not authorised (yet, or any more).
    NotAuthorized,
    /// The gateway captures by itself.
    AutomaticCapture,
    /// The sum is in another currency than the payment.
    CurrencyMismatch,
    /// More than is left: of the authorisation for captures, of what was captured for refunds.
    AboveRemaining,
    /// The authorisation's time is over.
    AuthorizationExpired,
    /// The authorisation is under review, or was refused in it.
    UnderReview,
    /// A cancel is on its way.
    CancelOpen,
    /// Captures or refunds are on their way.
    OperationOpen,
    /// Money was given back already: refund the rest.
    Refunded,
    /// The body names another payment's `paymentId`.
    OtherPayment,
}

impl OperationRefusal {
    /// Every refusal.
    pub const ALL: [Self; 10] = [
        Self::NotAuthorized,
        Self::AutomaticCapture,
        Self::CurrencyMismatch,
        Self::AboveRemaining,
        Self::AuthorizationExpired,
        Self::UnderReview,
        Self::CancelOpen,
        Self::OperationOpen,
        Self::Refunded,
        Self::OtherPayment,
    ];

    /// The stable code that callers see.
    pub fn code(self) -> &'static str {
        match self {
            Self::NotAuthorized => "payment_not_authorized",
            Self::AutomaticCapture => "automatic_capture",
            Self::CurrencyMismatch => "currency_mismatch",
            Self::AboveRemaining => "amount_above_remaining",
            Self::AuthorizationExpired => "authorization_expired",
            Self::UnderReview => "authorization_under_review",
            Self::CancelOpen => "cancel_open",
            Self::OperationOpen => "operation_open",
            Self::Refunded => "already_refunded",
            Self::OtherPayment => "other_payment",
        }
    }

    /// The member that it is about; none where it is about the payment.
    pub fn pointer(self, kind: Option<OperationKind>) -> &'static str {
        match (self, kind) {
            (Self::AboveRemaining, Some(OperationKind::Capture)) => "/captureAmount/value",
            (Self::AboveRemaining, Some(OperationKind::Refund)) => "/refundAmount/value",
            (Self::CurrencyMismatch, Some(OperationKind::Capture)) => "/captureAmount/currency",
            (Self::CurrencyMismatch, Some(OperationKind::Refund)) => "/refundAmount/currency",
            (Self::OtherPayment, _) => "/paymentId",
            _ => "",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_has_a_code_of_its_own_and_is_documented() {
        let documented = include_str!("../../docs/errors.md");
        let mut codes: Vec<&str> = OperationRefusal::ALL.iter().map(|refusal| refusal.code()).collect();
        assert!(codes.iter().all(|code| documented.contains(&format!("`{code}`"))), "{codes:?}");
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), OperationRefusal::ALL.len());
    }
}
