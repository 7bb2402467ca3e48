//! Agreements: look at them, and withdraw the buyer's consent. They are opened by payments.

use crate::base::clock::Millis;
use crate::base::ids::{AgreementId, CardId, Merchant};
use crate::base::json::ObjectWriter;
use crate::base::limits::PAGE;
use crate::model::access::{Allowed, ReadAgreements, WithdrawAgreements};
use crate::model::agreement::{AgreementEvent, AgreementState};
use crate::model::agreement_view::{AgreementView, LearnedView};
use crate::model::audit::Entry;
use crate::model::event::EventKind;
use crate::store::agreements as rows;
use crate::store::agreements::{AgreementRow, Learned};
use crate::store::backend::Tx;

use super::Vault;
use super::error::OpError;
use super::events::ReadyEvent;

impl Vault {
    /// A card's agreements, oldest first. They outlive the card: a dispute may ask for the consent.
    pub async fn list_agreements(
        &self,
        allowed: &Allowed<ReadAgreements>,
        card: &CardId,
    ) -> Result<Vec<AgreementView>, OpError> {
        let rows = rows::list_agreements(&self.db, allowed.merchant(), card, PAGE).await?;
        if rows.is_empty() {
            // An unknown card and another merchant's look the same.
            self.live_card(allowed.merchant(), card).await?;
        }
        Ok(rows.into_iter().map(view).collect())
    }

    /// One agreement.
    pub async fn read_agreement(
        &self,
        allowed: &Allowed<ReadAgreements>,
        id: &AgreementId,
    ) -> Result<AgreementView, OpError> {
        let row = rows::find_agreement(&self.db, allowed.merchant(), id).await?;
        row.map(view).ok_or(OpError::NotFound(None))
    }

    /// Withdraws the buyer's consent, at once and for good. Withdrawing again is withdrawing once.
    pub async fn withdraw_agreement(
        &self,
        allowed: &Allowed<WithdrawAgreements>,
        id: &AgreementId,
    ) -> Result<(), OpError> {
        let merchant = allowed.merchant();
        let row = rows::find_agreement(&self.db, merchant, id).await?.ok_or(OpError::NotFound(None))?;
        let (why, now) = (AgreementEvent::Withdrawn, self.now());
        let mut tx = self.begin().await?;
        if let Some(at) = rows::end_agreement(&mut tx, merchant, id, why.reason(), now).await? {
            let kind = EventKind::AgreementEnded;
            let event = agreement_event(merchant, id, row.card_id.as_ref(), kind, Some(why), at)?;
            event.insert(&mut tx).await?;
            tx.note(&Entry::done("agreement.withdraw", id.as_str())).await?;
        }
        tx.commit().await?;
        self.bell.ring_written();
        Ok(())
    }
}

impl Vault {
    /// Ends what is left of a card's agreements, and tells so.
    pub(super) async fn end_agreements(
        &self,
        tx: &mut Tx,
        merchant: &Merchant,
        card: &CardId,
        why: AgreementEvent,
    ) -> Result<(), OpError> {
        let now = self.now();
        for row in rows::list_agreements(&self.db, merchant, card, i64::MAX).await? {
            if let Some(at) = rows::end_agreement(tx, merchant, &row.agreement_id, why.reason(), now).await? {
                let kind = EventKind::AgreementEnded;
                let event = agreement_event(merchant, &row.agreement_id, Some(card), kind, Some(why), at)?;
                event.insert(tx).await?;
            }
        }
        // One that was opened since the list was read.
        rows::end_agreements_of_card(tx, merchant, card, why.reason(), now).await?;
        Ok(())
    }
}

/// The event of an agreement that has begun, or ended for a reason.
pub(super) fn agreement_event(
    merchant: &Merchant,
    id: &AgreementId,
    card: Option<&CardId>,
    kind: EventKind,
    why: Option<AgreementEvent>,
    now: Millis,
) -> Result<ReadyEvent, OpError> {
    let state = if why.is_some() { AgreementState::Ended } else { AgreementState::Active };
    let body = ObjectWriter::default()
        .string("agreementId", id.as_str())
        .string_or_null("cardId", card.map(CardId::as_str))
        .string("state", state.name())
        .string_or_null("endedReason", why.map(AgreementEvent::reason))
        .finish();
    Ok(ReadyEvent::new(merchant, kind, ("agreement", id.as_str()), body, now)?)
}

fn view(row: AgreementRow) -> AgreementView {
    let learned = |learned: Option<Learned>| {
        learned.map(|learned| LearnedView { value: learned.value, source: learned.source, at: learned.at })
    };
    AgreementView {
        agreement_id: row.agreement_id.to_string(),
        card_id: row.card_id.map(|id| id.to_string()),
        terms: row.terms,
        state: row.state,
        ended_reason: row.ended_reason,
        payment_request_id: Some(row.payment_request_id).filter(|id| !id.is_empty()),
        network_transaction_id: learned(row.network_transaction_id),
        latest_network_transaction_id: learned(row.latest_network_transaction_id),
        transaction_link_id: learned(row.transaction_link_id),
        created_at: row.created_at,
        activated_at: row.activated_at,
        ended_at: row.ended_at,
    }
}
