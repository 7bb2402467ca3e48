//! An agreement as callers see it.

use crate::base::clock::Millis;
use crate::base::json::ObjectWriter;
use crate::base::money::Amount;

use super::agreement::{AgreementState, Terms};

/// A value that the gateway told, or another vault, with its source and time.
pub struct LearnedView {
    /// As received.
    pub value: String,
    /// `pay`, `inquiry`, `notification` or `import`.
    pub source: String,
    /// When.
    pub at: Millis,
}

/// An agreement.
pub struct AgreementView {
    /// Its id.
    pub agreement_id: String,
    /// Its card.
    pub card_id: Option<String>,
    /// What the buyer agreed to.
    pub terms: Terms,
    /// Where it stands.
    pub state: AgreementState,
    /// Why it ended.
    pub ended_reason: Option<String>,
    /// The payment that opened it; none where it came from another vault.
    pub payment_request_id: Option<String>,
    /// The scheme's id of the first payment.
    pub network_transaction_id: Option<LearnedView>,
    /// The newest one.
    pub latest_network_transaction_id: Option<LearnedView>,
    /// Mastercard's Transaction Link ID.
    pub transaction_link_id: Option<LearnedView>,
    /// When it was opened.
    pub created_at: Millis,
    /// When its first payment succeeded.
    pub activated_at: Option<Millis>,
    /// When it ended.
    pub ended_at: Option<Millis>,
}

impl AgreementView {
    /// The agreement as the API shows it.
    pub fn json(&self) -> String {
        let time = |at: Option<Millis>| at.map(Millis::rfc3339);
        let mut out = ObjectWriter::default();
        out.string("agreementId", &self.agreement_id)
            .string_or_null("cardId", self.card_id.as_deref())
            .string("type", self.terms.kind.name())
            .string("state", self.state.name())
            .string_or_null("endedReason", self.ended_reason.as_deref())
            .string_or_null("paymentRequestId", self.payment_request_id.as_deref())
            .raw("consent", &self.terms.consent)
            .raw("maxAmount", &self.terms.max_amount.as_ref().map_or("null".to_owned(), amount))
            .string_or_null("interval", self.terms.interval.as_deref())
            .string_or_null("expiresAt", time(self.terms.expires_at).as_deref())
            .raw("networkTransactionId", &learned(self.network_transaction_id.as_ref()))
            .raw("latestNetworkTransactionId", &learned(self.latest_network_transaction_id.as_ref()))
            .raw("transactionLinkId", &learned(self.transaction_link_id.as_ref()))
            .string("createdAt", &self.created_at.rfc3339())
            .string_or_null("activatedAt", time(self.activated_at).as_deref())
            .string_or_null("endedAt", time(self.ended_at).as_deref());
        out.finish()
    }
}

fn amount(amount: &Amount) -> String {
    ObjectWriter::default().string("currency", amount.currency()).string("value", amount.value()).finish()
}

fn learned(learned: Option<&LearnedView>) -> String {
    learned.map_or("null".to_owned(), |learned| {
        ObjectWriter::default()
            .string("value", &learned.value)
            .string("source", &learned.source)
            .string("receivedAt", &learned.at.rfc3339())
            .finish()
    })
}
