//! Cards that come from another vault, with what their buyers agreed to there. A batch is one audited
//! transaction; what is there already stays as it is, so that a batch can be cut off at any instant and run
//! again, beside servers and beside another import.

use std::collections::HashMap;

use crate::base::fault::FieldFault;
use crate::base::ids::{AgreementId, BuyerId, CardId, GatewayAccount, Merchant};
use crate::model::agreement::Brought;
use crate::model::audit::{Entry, Outcome};
use crate::model::event::EventKind;
use crate::model::import::ImportLine;
use crate::store::agreements as rows;
use crate::store::cards::use_card;

use super::Vault;
use super::agreements::insert_agreement_event;
use super::audit::AuditedTx;
use super::error::OpError;

/// How often a batch goes round for lines that somebody else was at, or because the keys changed.
const TURNS: usize = 8;

/// A line and its number.
pub struct Numbered {
    /// From 1.
    pub number: u64,
    /// What it says, or why it is refused.
    pub read: Result<ImportLine, Vec<FieldFault>>,
}

/// What became of a line that was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// The line.
    pub number: u64,
    /// The card's reference here.
    pub card_id: CardId,
    /// Whether the card is new here.
    pub is_new: bool,
    /// Its agreements, in the line's order.
    pub agreements: Vec<AgreementId>,
    /// How many of them are new here.
    pub new_agreements: u64,
}

/// Whose cards come.
#[derive(Debug, Clone)]
pub struct Importer {
    /// The merchant.
    pub merchant: Merchant,
    /// The account that his payments go through.
    pub account: GatewayAccount,
}

/// A card as the database tells cards apart: its buyer, and its number's digest.
type Natural = (Option<String>, [Option<[u8; 32]>; 2]);

/// What this batch has stored so far in its transaction, which nobody else sees yet.
#[derive(Default)]
struct Here {
    cards: HashMap<Natural, CardId>,
    agreements: HashMap<(CardId, &'static str, Option<String>), AgreementId>,
}

impl Vault {
    /// Stores a batch of lines; what became of each that was taken, in their order. Refused lines are noted
    /// in the audit trail.
    pub async fn import_batch(&self, importer: &Importer, lines: &[Numbered]) -> Result<Vec<Taken>, OpError> {
        let mut taken: Vec<Option<Taken>> = lines.iter().map(|_| None).collect();
        let mut is_noted = false;
        for _ in 0..TURNS {
            let mut here = Here::default();
            // What the transaction decides counts only once it is committed.
            let mut now = Vec::new();
            let mut tx = self.begin().await?;
            for (at, line) in lines.iter().enumerate() {
                match &line.read {
                    Ok(read) => {
                        if taken.get(at).is_none_or(Option::is_none)
                            && let Some(done) =
                                self.import_line(&mut tx, importer, line.number, read, &mut here).await?
                        {
                            now.push((at, done));
                        }
                    }
                    Err(faults) if !is_noted => tx.note(&refusal(line.number, faults)).await?,
                    Err(_) => {}
                }
            }
            tx.commit().await?;
            self.bell.ring_written();
            is_noted = true;
            for (at, done) in now {
                if let Some(slot) = taken.get_mut(at) {
                    *slot = Some(done);
                }
            }
            let is_done = |(line, taken): (&Numbered, &Option<Taken>)| taken.is_some() || line.read.is_err();
            if lines.iter().zip(&taken).all(is_done) {
                return Ok(taken.into_iter().flatten().collect());
            }
            self.keys.follow().await?;
        }
        Err(OpError::Unavailable(anyhow::anyhow!("cards of this batch are being changed by many at once")))
    }

    /// Stores a line; nothing where somebody else is at its card just now, or the keys have changed.
    async fn import_line(
        &self,
        tx: &mut AuditedTx<'_>,
        importer: &Importer,
        number: u64,
        line: &ImportLine,
        here: &mut Here,
    ) -> Result<Option<Taken>, OpError> {
        let merchant = &importer.merchant;
        let buyer = line.card.buyer.as_ref().map(BuyerId::as_str);
        let sealed = self.seal_card(merchant, &line.card.pan, &line.card.details, buyer)?;
        let natural = (buyer.map(str::to_owned), sealed.fingerprints);
        let (card_id, is_new) = if let Some(id) = here.cards.get(&natural) {
            (id.clone(), false)
        } else if self.insert_sealed(tx, &sealed).await? {
            here.cards.insert(natural, sealed.card_id.clone());
            (sealed.card_id, true)
        } else {
            match self.find_by_pan(merchant, &line.card.pan, buyer).await? {
                Some(row) => (row.card_id, false),
                None => return Ok(None),
            }
        };
        let mut taken = Taken { number, card_id, is_new, agreements: Vec::new(), new_agreements: 0 };
        for brought in &line.agreements {
            match self.import_agreement(tx, importer, &taken.card_id, is_new, brought, here).await? {
                Some((id, is_new)) => {
                    taken.agreements.push(id);
                    taken.new_agreements += u64::from(is_new);
                }
                None => return Ok(None),
            }
        }
        Ok(Some(taken))
    }

    /// Stores an agreement, in force at once, unless the card has it; nothing where the card is gone.
    async fn import_agreement(
        &self,
        tx: &mut AuditedTx<'_>,
        importer: &Importer,
        card_id: &CardId,
        is_new_card: bool,
        brought: &Brought,
        here: &mut Here,
    ) -> Result<Option<(AgreementId, bool)>, OpError> {
        let (merchant, now) = (&importer.merchant, self.now());
        let (kind, chain) = (brought.terms.kind, brought.network_transaction_id.as_deref());
        let name = (card_id.clone(), kind.name(), chain.map(str::to_owned));
        if let Some(id) = here.agreements.get(&name) {
            return Ok(Some((id.clone(), false)));
        }
        if !is_new_card {
            let known = rows::find_same_agreement(&self.db, merchant, card_id, kind, chain).await?;
            if let Some(id) = known {
                return Ok(Some((id, false)));
            }
            // Kept from here on: it may be so old that its time is over.
            if !use_card(tx, merchant, card_id, now).await? {
                return Ok(None);
            }
        }
        let id = AgreementId::make()?;
        let new = rows::Brought {
            id: &id,
            merchant,
            account: &importer.account,
            card_id,
            terms: &brought.terms,
            network_transaction_id: chain,
            transaction_link_id: brought.transaction_link_id.as_deref(),
        };
        if !rows::insert_brought(tx, &new, now).await? {
            // Another import was first.
            return Ok(None);
        }
        insert_agreement_event(tx, merchant, &id, Some(card_id), EventKind::AgreementActive, None, now)
            .await?;
        tx.note(&Entry::done("agreement.import", id.as_str()).with(card_id.as_str())).await?;
        here.agreements.insert(name, id.clone());
        Ok(Some((id, true)))
    }
}

/// A refused line: its number and the first code.
fn refusal(number: u64, faults: &[FieldFault]) -> Entry {
    let code = faults.first().map_or("invalid_request", |fault| fault.code);
    Entry {
        action: "card.store",
        object: Some(format!("line {number}")),
        outcome: Outcome::Refused,
        detail: Some(code.to_owned()),
    }
}
