//! What an answer means for the agreement of its payment: it begins, it ends, and the ids that the
//! schemes want to see again are kept. All of it happens in the transaction that changes the payment.

use crate::base::clock::Millis;
use crate::base::json::{self, Object};
use crate::model::agreement::{AgreementEvent, is_network_transaction_id, is_transaction_link_id};
use crate::model::decline::Decline;
use crate::model::event::EventKind;
use crate::model::payment::Status;
use crate::store::agreements::{Told, activate_agreement, end_agreement, fail_agreement, learn_ids};
use crate::store::backend::{StoreError, Tx};
use crate::store::payments::{Change, PaymentRow};

use super::super::Vault;
use super::super::agreements::agreement_event;
use super::super::error::OpError;

/// Names under which Mastercard's Transaction Link ID may come; Antom has not published one.
const TRANSACTION_LINK_NAMES: &[&str] =
    &["transactionLinkId", "transactionLinkID", "transactionLinkIdentifier", "mastercardTransactionLinkId"];

/// The ids in an answer that an agreement keeps.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ChainIds {
    network_transaction_id: Option<String>,
    transaction_link_id: Option<String>,
}

impl ChainIds {
    /// Reads them from a scrubbed answer of any kind.
    pub(super) fn of_answer(scrubbed: &str) -> Self {
        let object = Object::parse(scrubbed);
        let inside = |name: &str| object.as_ref().and_then(|object| object.get(name)).and_then(Object::parse);
        let places = [inside("paymentResultInfo"), inside("cardInfo"), Object::parse(scrubbed)];
        let find = |name: &str| {
            places.iter().flatten().find_map(|object| {
                let text = object.get(name).and_then(json::string)?;
                (!text.is_empty()).then(|| text.into_owned())
            })
        };
        Self {
            network_transaction_id: find("networkTransactionId")
                .filter(|text| is_network_transaction_id(text)),
            transaction_link_id: TRANSACTION_LINK_NAMES
                .iter()
                .find_map(|name| find(name))
                .filter(|text| is_transaction_link_id(text)),
        }
    }

    /// Whether the scheme's id of the payment is among them.
    pub(super) fn has_network_transaction_id(&self) -> bool {
        self.network_transaction_id.is_some()
    }

    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Vault {
    /// Carries a payment's change over to its agreement; `true` where that is news for the feed.
    pub(super) async fn carry_over(
        &self,
        tx: &mut Tx,
        payment: &PaymentRow,
        change: &Change<'_>,
    ) -> Result<bool, OpError> {
        let Some(id) = &payment.agreement_id else { return Ok(false) };
        let merchant = &payment.merchant;
        let first_failed = AgreementEvent::FirstPaymentFailed;
        let news = match change.to {
            Status::Authorized if activate_agreement(tx, merchant, id, change.now).await? => {
                Some((EventKind::AgreementActive, None, change.now))
            }
            Status::Failed | Status::Cancelled
                if fail_agreement(tx, merchant, id, first_failed.reason(), change.now).await? =>
            {
                Some((EventKind::AgreementEnded, Some(first_failed), change.now))
            }
            _ => None,
        };
        let revoked = AgreementEvent::ConsentRevoked;
        let ended = match change.decline {
            Some(Decline::Revoked) => end_agreement(tx, merchant, id, revoked.reason(), change.now).await?,
            _ => None,
        };
        let news = ended.map(|at| (EventKind::AgreementEnded, Some(revoked), at)).or(news);
        if let Some((kind, why, at)) = news {
            let card = payment.card_id.as_ref().or(change.token_card_id);
            let event = agreement_event(merchant, id, card, kind, why, at)?;
            event.insert(tx).await?;
        }
        Ok(news.is_some())
    }

    /// Keeps the ids that an answer to a paid payment told.
    pub(super) async fn keep_ids(
        &self,
        tx: &mut Tx,
        payment: &PaymentRow,
        ids: &ChainIds,
        source: &str,
        now: Millis,
    ) -> Result<(), StoreError> {
        let Some(id) = payment.agreement_id.as_ref().filter(|_| !ids.is_empty()) else { return Ok(()) };
        let told = Told {
            network_transaction_id: ids.network_transaction_id.as_deref(),
            transaction_link_id: ids.transaction_link_id.as_deref(),
            source,
        };
        learn_ids(tx, &payment.merchant, id, &told, now).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(text: &str) -> (Option<String>, Option<String>) {
        let ids = ChainIds::of_answer(text);
        (ids.network_transaction_id, ids.transaction_link_id)
    }

    #[test]
    fn ids_are_found_where_they_may_stand() {
        let link = "abcDEF0123456789_-abcd";
        assert_eq!(
            ids(&format!(
                r#"{{"paymentResultInfo":{{"networkTransactionId":"N1","transactionLinkId":"{link}"}}}}"#
            )),
            (Some("N1".into()), Some(link.into()))
        );
        assert_eq!(ids(r#"{"cardInfo":{"networkTransactionId":"N2"}}"#).0.as_deref(), Some("N2"));
        assert_eq!(ids(r#"{"paymentResultInfo":{"networkTransactionId":""}}"#), (None, None));
        assert_eq!(ids(r#"{"paymentResultInfo":{"transactionLinkId":"short"}}"#), (None, None));
        assert_eq!(ids("x"), (None, None));
        let long = "n".repeat(257);
        assert_eq!(
            ids(&format!(r#"{{"paymentResultInfo":{{"networkTransactionId":"{long}"}}}}"#)),
            (None, None)
        );
    }
}
