//! Cards that come from another vault, with what their buyers agreed to there. A batch is one audited
//! transaction; what is there already stays as it is, so that a batch can be cut off at any instant and run
//! again, beside servers and beside another import.

use std::collections::{HashMap, HashSet};

use crate::base::fault::FieldFault;
use crate::base::ids::{AgreementId, BuyerId, CardId, GatewayAccount, Merchant};
use crate::model::agreement::Brought;
use crate::model::audit::{Entry, Outcome};
use crate::model::event::EventKind;
use crate::model::import::ImportLine;
use crate::store::agreements as rows;
use crate::store::cards::{NewCard, insert_cards, use_card};
use crate::store::events::insert_events;

use super::Vault;
use super::agreements::agreement_event;
use super::audit::{AuditedTx, actor};
use super::error::OpError;
use super::events::ReadyEvent;

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

/// What a batch has found or stored so far in its transaction, which nobody else sees yet, and what is still to
/// be written there of it.
#[derive(Default)]
struct Here {
    cards: HashMap<Natural, CardId>,
    agreements: HashMap<(CardId, &'static str, Option<String>), AgreementId>,
    events: Vec<ReadyEvent>,
    notes: Vec<Entry>,
}

impl Vault {
    /// Stores a batch of lines; what became of each that was taken, in their order. Refused lines are noted
    /// in the audit trail.
    pub async fn import_batch(&self, importer: &Importer, lines: &[Numbered]) -> Result<Vec<Taken>, OpError> {
        let mut taken: Vec<Option<Taken>> = lines.iter().map(|_| None).collect();
        let refused = lines.iter().filter_map(|line| Some(refusal(line.number, line.read.as_ref().err()?)));
        let mut refused: Vec<Entry> = refused.collect();
        for _ in 0..TURNS {
            let open = lines.iter().enumerate().filter_map(|(at, line)| {
                let is_open = taken.get(at).is_none_or(Option::is_none);
                line.read.as_ref().ok().filter(|_| is_open).map(|read| (at, line.number, read))
            });
            let open: Vec<_> = open.collect();
            let mut here = Here { notes: refused.clone(), ..Here::default() };
            // What the transaction decides counts only once it is committed.
            let mut now = Vec::new();
            let mut tx = self.begin().await?;
            let sealed = self.store_cards(&mut tx, importer, &open, &mut here).await?;
            for ((at, number, line), card) in open.into_iter().zip(sealed) {
                if let Some(done) =
                    self.import_line(&mut tx, importer, (number, line), card, &mut here).await?
                {
                    now.push((at, done));
                }
            }
            self.tell(&mut tx, here).await?;
            tx.commit().await?;
            self.bell.ring_written();
            refused.clear();
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

    /// Seals the cards of lines, and stores those that are new, all by one statement: of each line its card, and
    /// whether it is the line that brought it.
    async fn store_cards(
        &self,
        tx: &mut AuditedTx<'_>,
        importer: &Importer,
        lines: &[(usize, u64, &ImportLine)],
        here: &mut Here,
    ) -> Result<Vec<(Natural, bool)>, OpError> {
        let mut new: Vec<NewCard> = Vec::new();
        let mut seen = HashSet::new();
        let mut cards = Vec::with_capacity(lines.len());
        for (_, _, line) in lines {
            let buyer = line.card.buyer.as_ref().map(BuyerId::as_str);
            let sealed = self.seal_card(&importer.merchant, &line.card.pan, &line.card.details, buyer)?;
            let natural = (sealed.buyer.clone(), sealed.fingerprints);
            let is_first = seen.insert(natural.clone());
            if is_first {
                new.push(sealed);
            }
            cards.push((natural, is_first));
        }
        let stored = insert_cards(tx, &new.iter().collect::<Vec<_>>()).await?;
        for (card, _) in new.into_iter().zip(stored).filter(|(_, stored)| *stored) {
            let (merchant, id) = (&card.merchant, &card.card_id);
            here.events.push(ReadyEvent::of_card(
                merchant,
                id,
                "PAN",
                EventKind::CardStored,
                None,
                card.now,
            )?);
            here.notes.push(Entry::done("card.store", id.as_str()));
            here.cards.insert((card.buyer, card.fingerprints), card.card_id);
        }
        Ok(cards)
    }

    /// Stores what else a line brings; nothing where somebody else is at its card just now, or the keys have
    /// changed.
    async fn import_line(
        &self,
        tx: &mut AuditedTx<'_>,
        importer: &Importer,
        (number, line): (u64, &ImportLine),
        (natural, is_first): (Natural, bool),
        here: &mut Here,
    ) -> Result<Option<Taken>, OpError> {
        let (card_id, is_stored) = match here.cards.get(&natural) {
            Some(id) => (id.clone(), true),
            None => {
                let buyer = line.card.buyer.as_ref().map(BuyerId::as_str);
                match self.find_by_pan(&importer.merchant, &line.card.pan, buyer).await? {
                    Some(row) => (row.card_id, false),
                    None => return Ok(None),
                }
            }
        };
        let is_new = is_stored && is_first;
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
        let kind = EventKind::AgreementActive;
        here.events.push(agreement_event(merchant, &id, Some(card_id), kind, None, now)?);
        here.notes.push(Entry::done("agreement.import", id.as_str()).with(card_id.as_str()));
        here.agreements.insert(name, id.clone());
        Ok(Some((id, true)))
    }

    /// Writes the events and the audit rows of a batch.
    async fn tell(&self, tx: &mut AuditedTx<'_>, here: Here) -> Result<(), OpError> {
        let events: Vec<_> = here.events.iter().map(ReadyEvent::row).collect();
        insert_events(tx, &events).await?;
        let (who, at) = (actor(), self.now());
        let notes: Vec<_> = here.notes.into_iter().map(|entry| (who.clone(), entry, at)).collect();
        tx.note_all(&notes).await
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
