//! Cards: tokenise, read masked, update, hold a CVV, erase. This is the one place where a PAN is sealed
//! and opened.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use crate::base::card::Pan;
use crate::base::clock::Millis;
use crate::base::cvv::Cvv;
use crate::base::fault::FieldFault;
use crate::base::ids::{CardId, Merchant, PaymentRequestId};
use crate::base::limits::PAGE;
use crate::base::sealed::Sealed;
use crate::base::secret::{SecretBuf, SecretText};
use crate::crypto::aad::{Field, Place};
use crate::crypto::ephemeral::EphemeralSealed;
use crate::crypto::keyring::{DataKey, Purpose};
use crate::crypto::{envelope, fingerprint, request_mac};
use crate::gateway::antom::body::Instrument;
use crate::model::access::{Allowed, EraseCards, ReadCards, WriteCards};
use crate::model::agreement::AgreementEvent;
use crate::model::audit::Entry;
use crate::model::card::{CardPatch, Details, MaskedCard, MaskedPan, TypedCard};
use crate::model::event::EventKind;
use crate::slots::Taken;
use crate::store::agreements::has_active;
use crate::store::backend::Db;
use crate::store::cards as rows;
use crate::store::cards::{CardFilter, CardRow, CvvSlot, Held, HeldPan, NewCard, NewDetails};

use super::error::OpError;
use super::events::ReadyEvent;
use super::gather::{Gather, Grouped, as_for_another};
use super::keys::DataKeys;
use super::writer::Change;
use super::{Vault, cvv_of};

/// How often a lost race is run again. Each turn somebody else has won, so progress is made.
const TURNS: usize = 8;

/// Most cards that are read by one statement.
const READS: usize = 64;
/// How long one may take.
const READ_LONGEST: Duration = Duration::from_secs(10);

/// Reads cards that many ask for at once.
pub(super) struct CardReads(Db);

impl CardReads {
    /// Gathers reads of a database.
    pub(super) fn gather(db: Db) -> Gather<Self> {
        Gather::new(Self(db), READS, READ_LONGEST)
    }
}

impl Grouped for CardReads {
    type Asked = (Merchant, CardId);
    type Told = Option<CardRow>;

    async fn run(&self, group: Vec<Self::Asked>) -> Vec<Result<Option<CardRow>, OpError>> {
        // PostgreSQL has a plan at hand for one, and makes one each time for many.
        if let [(merchant, id)] = group.as_slice() {
            return vec![rows::find_card(&self.0, merchant, id).await.map_err(OpError::from)];
        }
        match rows::find_cards(&self.0, &group).await {
            Ok(found) => found.into_iter().map(|row| row.map_err(OpError::from)).collect(),
            Err(error) => {
                let error = OpError::from(error);
                let mut told: Vec<_> = group.iter().skip(1).map(|_| Err(as_for_another(&error))).collect();
                told.push(Err(error));
                told
            }
        }
    }
}

/// A card's new details, with what tells of them.
pub(super) struct ReadyDetails {
    pub(super) new: Box<NewDetails>,
    pub(super) event: Option<ReadyEvent>,
    pub(super) note: Entry,
}

/// Which cards to list.
#[derive(Default)]
pub struct CardQuery {
    /// Of one buyer.
    pub buyer: Option<String>,
    /// Of one PAN.
    pub fingerprint: Option<[u8; 32]>,
    /// After this card.
    pub after: Option<CardId>,
}

impl Vault {
    /// Tokenises a card; `true` where it is new. A known card keeps its reference and takes the details
    /// that were typed now; details that were not typed stay.
    pub async fn tokenise(
        &self,
        allowed: &Allowed<WriteCards>,
        card: TypedCard,
        cvv: Option<Cvv>,
    ) -> Result<(bool, MaskedCard), OpError> {
        let merchant = allowed.merchant();
        let TypedCard { pan, details, buyer } = card;
        let buyer = buyer.as_ref().map(|buyer| buyer.as_str());
        // Most cards are new, and whether one is shows when it is stored. A CVV has one place, so a card that
        // brings one is looked for first.
        let mut tried = false;
        for _ in 0..TURNS {
            if tried || cvv.is_some() {
                if let Some(CardRow { card_id: id, .. }) = self.find_by_pan(merchant, &pan, buyer).await? {
                    if self.retype_known(merchant, &id, &details).await? {
                        if let Some(cvv) = &cvv {
                            self.hold(merchant, &id, cvv, None).await?;
                        }
                        let row = self.live_card(merchant, &id).await?;
                        return Ok((false, self.masked(merchant, &row).await?));
                    }
                    continue;
                }
                if tried {
                    self.keys.follow().await?;
                }
            }
            if let Some(new) = self.insert(merchant, &pan, &details, buyer, cvv.as_ref()).await? {
                return Ok((true, new.masked(details)));
            }
            tried = true;
        }
        Err(OpError::Unavailable(anyhow::anyhow!("a card is being changed by many callers at once")))
    }

    /// Gives a known card the details that were typed again; `false` where it was erased or changed meanwhile.
    async fn retype_known(
        &self,
        merchant: &Merchant,
        id: &CardId,
        details: &Details,
    ) -> Result<bool, OpError> {
        let _turn = self.queues.turn(id).await;
        // It may have been changed, or erased, while this caller waited.
        match rows::find_card(&self.db, merchant, id).await? {
            Some(row) => self.retype(merchant, &row, details).await,
            None => Ok(false),
        }
    }

    /// The card that a payment names by its number. A known one stays as it is until the payment has
    /// succeeded.
    pub(super) async fn card_for_payment(
        &self,
        merchant: &Merchant,
        pan: &Pan,
        details: &Details,
        buyer: Option<&str>,
    ) -> Result<(bool, CardId), OpError> {
        for _ in 0..TURNS {
            if let Some(row) = self.find_by_pan(merchant, pan, buyer).await? {
                return Ok((false, row.card_id));
            }
            if let Some(new) = self.insert(merchant, pan, details, buyer, None).await? {
                return Ok((true, new.card_id));
            }
            self.keys.follow().await?;
        }
        Err(OpError::Unavailable(anyhow::anyhow!("a card is being changed by many callers at once")))
    }

    /// The merchant's card with this PAN.
    pub(super) async fn find_by_pan(
        &self,
        merchant: &Merchant,
        pan: &Pan,
        buyer: Option<&str>,
    ) -> Result<Option<CardRow>, OpError> {
        let key = self.keys.fingerprint_key()?;
        let digest = fingerprint::fingerprint(&key.key, merchant, pan)?;
        Ok(rows::find_card_by_pan(&self.db, merchant, buyer, key.slot, &digest).await?)
    }

    /// Whether a card has this PAN.
    pub(super) fn has_pan(&self, merchant: &Merchant, row: &CardRow, pan: &Pan) -> Result<bool, OpError> {
        let key = self.keys.fingerprint_key()?;
        let digest = fingerprint::fingerprint(&key.key, merchant, pan)?;
        let Held::Pan(held) = &row.held else { return Ok(false) };
        let known = held.fingerprints.get(key.slot).and_then(Option::as_ref);
        Ok(known.is_some_and(|known| *known == digest))
    }

    /// Stores a card, with a CVV that is held for it; none where the merchant's buyer has one with this PAN,
    /// or where the keys were changed meanwhile.
    async fn insert(
        &self,
        merchant: &Merchant,
        pan: &Pan,
        details: &Details,
        buyer: Option<&str>,
        cvv: Option<&Cvv>,
    ) -> Result<Option<Stored>, OpError> {
        let shown = self.keys.fingerprint_key()?.slot;
        let mut card = self.seal_card(merchant, pan, details, buyer)?;
        let id = card.card_id.clone();
        let event = ReadyEvent::of_card(merchant, &id, "PAN", EventKind::CardStored, None, card.now)?;
        let mut notes = vec![Entry::done("card.store", id.as_str())];
        // The memory comes first: a row that promises a CVV which is not there would refuse payments.
        card.cvv = cvv.map(|cvv| self.hold_in_memory(merchant, &id, cvv, None)).transpose()?;
        if card.cvv.is_some() {
            notes.push(Entry::done("cvv.hold", id.as_str()));
        }
        let all = card.fingerprints;
        let known = all.get(shown).copied().flatten().or(all.into_iter().flatten().next());
        let stored = Stored {
            card_id: id,
            fingerprint: known.ok_or_else(no_fingerprint)?,
            brand: card.brand,
            bin: card.bin.clone(),
            last4: card.last4.clone(),
            buyer: card.buyer.clone(),
            cvv_until: card.cvv.as_ref().map(|slot| slot.until),
            now: card.now,
        };
        let done = self.writer.write(Change::Store(Box::new(card)), Some(event), notes).await;
        if stored.cvv_until.is_some() && !matches!(done, Ok(true)) {
            self.slots.forget(merchant, &stored.card_id);
        }
        Ok(done?.then_some(stored))
    }

    /// Seals a card that is new, under a fresh reference. Nothing is stored.
    pub(super) fn seal_card(
        &self,
        merchant: &Merchant,
        pan: &Pan,
        details: &Details,
        buyer: Option<&str>,
    ) -> Result<NewCard, OpError> {
        let card_id = CardId::at(self.now())?;
        // Before the keys: where they change after this, the card is not stored, and sealed again.
        let epoch = self.keys.epoch();
        self.keys.active(Purpose::Fingerprint)?;
        let mut fingerprints = [None; 2];
        for key in self.keys.fingerprint_keys() {
            if let Some(digest) = fingerprints.get_mut(key.slot) {
                *digest = Some(fingerprint::fingerprint(&key.key, merchant, pan)?);
            }
        }
        let dek = self.keys.active(Purpose::Card)?;
        let place = Place { merchant, record: card_id.as_str(), field: Field::Pan };
        Ok(NewCard {
            pan: envelope::seal_pan(&dek, &place, pan)?,
            details: self.seal_details(merchant, &card_id, details)?,
            card_id,
            merchant: merchant.clone(),
            buyer: buyer.map(str::to_owned),
            fingerprints,
            epoch,
            brand: pan.brand().name(),
            bin: pan.bin(self.policy.bin_format),
            last4: pan.last4(),
            cvv: None,
            now: self.now(),
        })
    }

    /// The merchant's card that Antom holds under this token.
    pub(super) async fn find_by_token(
        &self,
        merchant: &Merchant,
        token: &SecretText,
        buyer: Option<&str>,
    ) -> Result<Option<CardRow>, OpError> {
        self.keys.active(Purpose::RequestMac)?;
        for key in self.keys.of_purpose(Purpose::RequestMac) {
            let digest = request_mac::token_digest(&key, merchant, token)?;
            if let Some(row) = rows::find_card_by_token(&self.db, merchant, buyer, &digest).await? {
                return Ok(Some(row));
            }
        }
        Ok(None)
    }

    /// Whether a card is the one that Antom holds under this token.
    pub(super) fn has_token(
        &self,
        merchant: &Merchant,
        row: &CardRow,
        token: &SecretText,
    ) -> Result<bool, OpError> {
        let Held::Token { digest: known, .. } = &row.held else { return Ok(false) };
        for key in self.keys.of_purpose(Purpose::RequestMac) {
            if request_mac::same(&request_mac::token_digest(&key, merchant, token)?, known) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The card that a payment names by Antom's token, or that the gateway has told; a token that is new
    /// here is kept.
    pub(super) async fn card_for_token(
        &self,
        merchant: &Merchant,
        token: &SecretText,
        buyer: Option<&str>,
    ) -> Result<CardRow, OpError> {
        for _ in 0..TURNS {
            // Before it is looked for: a key that comes after that was not asked.
            let epoch = self.keys.epoch();
            if let Some(row) = self.find_by_token(merchant, token, buyer).await? {
                return Ok(row);
            }
            let now = self.now();
            let card_id = CardId::at(now)?;
            let mac_key = self.keys.active(Purpose::RequestMac)?;
            let digest = request_mac::token_digest(&mac_key, merchant, token)?;
            let dek = self.keys.active(Purpose::GatewayToken)?;
            let place = Place { merchant, record: card_id.as_str(), field: Field::Token };
            let text = SecretBuf::from_vec(token.expose().as_bytes().to_vec());
            let sealed = envelope::seal(&dek, &place, &text)?;
            let card = rows::NewTokenCard {
                card_id: &card_id,
                merchant,
                buyer,
                token: &sealed,
                digest: &digest,
                digest_key: mac_key.id().as_str(),
                now,
            };
            let mut tx = self.begin().await?;
            if rows::insert_token_card(&mut tx, &card).await? {
                let kind = EventKind::CardStored;
                let event = ReadyEvent::of_card(merchant, &card_id, "GATEWAY_TOKEN", kind, None, now)?;
                event.insert(&mut tx).await?;
                tx.note(&Entry::done("card.store", card_id.as_str()).with("GATEWAY_TOKEN")).await?;
                match tx.commit_sealed_once(epoch).await? {
                    true => self.bell.ring_written(),
                    false => drop(self.keys.follow().await?),
                }
            } else {
                tx.rollback().await?;
            }
        }
        Err(OpError::Unavailable(anyhow::anyhow!("a card is being changed by many callers at once")))
    }

    /// Gives a card the details that were typed again; `false` where somebody else changed it meanwhile.
    pub(super) async fn retype(
        &self,
        merchant: &Merchant,
        row: &CardRow,
        details: &Details,
    ) -> Result<bool, OpError> {
        let ready = self.ready_retype(merchant, row, details).await?;
        self.write_details(ready).await
    }

    /// The details that were typed again for a card, ready to be written.
    pub(super) async fn ready_retype(
        &self,
        merchant: &Merchant,
        row: &CardRow,
        details: &Details,
    ) -> Result<ReadyDetails, OpError> {
        let old = self.open_details(merchant, row).await?.ok_or_else(held_by_gateway)?;
        let before = old.json();
        let merged = details.over(old);
        let news = before != merged.json();
        self.ready_details(merchant, row, &merged, true, news).await
    }

    /// A card's details, sealed, with the event where they are news and an agreement in force uses the card.
    async fn ready_details(
        &self,
        merchant: &Merchant,
        row: &CardRow,
        details: &Details,
        typed: bool,
        news: bool,
    ) -> Result<ReadyDetails, OpError> {
        let (id, now) = (&row.card_id, self.now());
        let epoch = self.keys.epoch();
        let details = self.seal_details(merchant, id, details)?;
        let agreed = news && has_active(&self.db, merchant, id).await?;
        let event = match agreed {
            true => Some(ReadyEvent::of_card(merchant, id, "PAN", EventKind::CardUpdated, None, now)?),
            false => None,
        };
        let (card_id, merchant) = (id.clone(), merchant.clone());
        let note = Entry::done("card.update", id.as_str()).with(if typed { "typed" } else { "patched" });
        let new = NewDetails { card_id, merchant, version: row.version, epoch, details, typed, now };
        Ok(ReadyDetails { new: Box::new(new), event, note })
    }

    /// Writes a card's details. `false` where the card, or the keys, were changed meanwhile.
    async fn write_details(&self, ready: ReadyDetails) -> Result<bool, OpError> {
        let ReadyDetails { new, event, note } = ready;
        if !self.writer.write(Change::Retype(new), event, vec![note]).await? {
            self.keys.follow().await?;
            return Ok(false);
        }
        Ok(true)
    }

    /// A masked card.
    pub async fn read_card(&self, allowed: &Allowed<ReadCards>, id: &CardId) -> Result<MaskedCard, OpError> {
        let row = self.reader.ask((allowed.merchant().clone(), id.clone())).await?;
        self.masked(allowed.merchant(), &row.ok_or(OpError::NotFound(None))?).await
    }

    /// A page of masked cards, and whether there are more.
    pub async fn list_cards(
        &self,
        allowed: &Allowed<ReadCards>,
        query: &CardQuery,
        limit: i64,
    ) -> Result<(Vec<MaskedCard>, bool), OpError> {
        let merchant = allowed.merchant();
        let filter = CardFilter {
            buyer: query.buyer.as_deref(),
            fingerprint: query.fingerprint.as_ref().map(<[u8; 32]>::as_slice),
            after: query.after.as_ref(),
        };
        let limit = limit.clamp(1, PAGE);
        let mut page = rows::list_cards(&self.db, merchant, &filter, limit + 1).await?;
        let more = i64::try_from(page.len()).unwrap_or(i64::MAX) > limit;
        page.truncate(usize::try_from(limit).unwrap_or_default());
        let mut cards = Vec::with_capacity(page.len());
        for row in &page {
            match self.masked(merchant, row).await {
                // Erased meanwhile.
                Err(OpError::NotFound(_)) => {}
                card => cards.push(card?),
            }
        }
        Ok((cards, more))
    }

    /// Changes expiry, name or address.
    pub async fn patch_card(
        &self,
        allowed: &Allowed<WriteCards>,
        id: &CardId,
        patch: impl Fn() -> Result<CardPatch, Vec<FieldFault>>,
    ) -> Result<MaskedCard, OpError> {
        let merchant = allowed.merchant();
        let _turn = self.queues.turn(id).await;
        for _ in 0..TURNS {
            let row = self.live_card(merchant, id).await?;
            let patch = patch().map_err(OpError::Invalid)?;
            let old = self.open_details(merchant, &row).await?.ok_or_else(held_by_gateway)?;
            let before = old.json();
            let details = patch.apply(old);
            let news = before != details.json();
            let ready = self.ready_details(merchant, &row, &details, false, news).await?;
            if self.write_details(ready).await? {
                let row = self.live_card(merchant, id).await?;
                return self.masked(merchant, &row).await;
            }
        }
        Err(OpError::Unavailable(anyhow::anyhow!("a card is being changed by many callers at once")))
    }

    /// Holds a CVV for the card's next payment, or for one payment only.
    pub async fn hold_cvv(
        &self,
        allowed: &Allowed<WriteCards>,
        id: &CardId,
        cvv: Cvv,
        for_request: Option<&PaymentRequestId>,
    ) -> Result<MaskedCard, OpError> {
        let merchant = allowed.merchant();
        if let Held::Token { .. } = self.live_card(merchant, id).await?.held {
            return Err(held_by_gateway());
        }
        self.hold(merchant, id, &cvv, for_request).await?;
        drop(cvv);
        let row = self.live_card(merchant, id).await?;
        self.masked(merchant, &row).await
    }

    async fn hold(
        &self,
        merchant: &Merchant,
        id: &CardId,
        cvv: &Cvv,
        for_request: Option<&PaymentRequestId>,
    ) -> Result<(), OpError> {
        let slot = self.hold_in_memory(merchant, id, cvv, for_request)?;
        // The memory came first: a row that promises a CVV which is not there would refuse payments.
        let written = self.write_slot(merchant, id, &slot).await;
        if written.is_err() {
            self.slots.forget(merchant, id);
        }
        written
    }

    /// Holds a CVV; what is returned is for the card's row.
    fn hold_in_memory(
        &self,
        merchant: &Merchant,
        id: &CardId,
        cvv: &Cvv,
        for_request: Option<&PaymentRequestId>,
    ) -> Result<CvvSlot, OpError> {
        let mut bytes = SecretBuf::with_capacity(4);
        bytes.push(cvv.expose().as_bytes()).map_err(|error| OpError::Internal(error.into()))?;
        let sealed = self.process_key.seal(id.as_str().as_bytes(), &bytes)?;
        let until = self.slots.hold(merchant, id, sealed).map_err(|_| OpError::TooMuch)?;
        Ok(CvvSlot {
            holder: self.instance.as_str().to_owned(),
            until,
            for_request: for_request.map(|id| id.as_str().to_owned()),
        })
    }

    async fn write_slot(&self, merchant: &Merchant, id: &CardId, slot: &CvvSlot) -> Result<(), OpError> {
        let mut tx = self.begin().await?;
        if !rows::hold_cvv(&mut tx, merchant, id, slot).await? {
            tx.rollback().await?;
            return Err(OpError::NotFound(None));
        }
        tx.note(&Entry::done("cvv.hold", id.as_str())).await?;
        Ok(tx.commit().await?)
    }

    /// Opens the CVV that was taken from its slot.
    pub(super) fn open_taken(&self, id: &CardId, taken: &Taken<EphemeralSealed>) -> Option<Cvv> {
        let bytes = self.process_key.open(id.as_str().as_bytes(), taken.sealed()).ok()?;
        cvv_of(&bytes)
    }

    /// Erases a card, at once and for good, and ends its agreements. Erasing it again is erasing it once.
    pub async fn erase_card(&self, allowed: &Allowed<EraseCards>, id: &CardId) -> Result<(), OpError> {
        let merchant = allowed.merchant();
        let mut tx = self.begin().await?;
        if !rows::erase_card(&mut tx, merchant, id, self.now()).await? {
            tx.rollback().await?;
            return Err(OpError::NotFound(None));
        }
        self.end_agreements(&mut tx, merchant, id, AgreementEvent::CardErased).await?;
        tx.note(&Entry::done("card.erase", id.as_str())).await?;
        tx.commit().await?;
        self.bell.ring_written();
        self.slots.forget(merchant, id);
        Ok(())
    }

    pub(super) async fn live_card(&self, merchant: &Merchant, id: &CardId) -> Result<CardRow, OpError> {
        rows::find_card(&self.db, merchant, id).await?.ok_or(OpError::NotFound(None))
    }

    /// Opens what a card is paid with for `use_it`, and nowhere else.
    pub(super) async fn with_instrument<T>(
        &self,
        merchant: &Merchant,
        row: &CardRow,
        use_it: impl FnOnce(Instrument<'_>) -> T,
    ) -> Result<T, OpError> {
        let record = row.card_id.as_str();
        let part: Part = |held| match held {
            Held::Pan(held) => Some(&held.pan),
            Held::Token { token, .. } => Some(token),
        };
        let found = self.with_its_key(merchant, row, part).await?;
        let (dek, sealed) = found.ok_or(OpError::NotFound(None))?;
        match &row.held {
            Held::Pan(_) => {
                let pan = envelope::open_pan(&dek, &Place { merchant, record, field: Field::Pan }, &sealed)?;
                Ok(use_it(Instrument::Pan(&pan)))
            }
            Held::Token { .. } => {
                let text = envelope::open(&dek, &Place { merchant, record, field: Field::Token }, &sealed)?;
                let text = std::str::from_utf8(text.expose())
                    .map(SecretText::from)
                    .map_err(|_| OpError::Internal(anyhow::anyhow!("a token is not text")))?;
                Ok(use_it(Instrument::Token(&text)))
            }
        }
    }

    /// A card's expiry, name and address; none where only Antom holds the card.
    pub(super) async fn open_details(
        &self,
        merchant: &Merchant,
        row: &CardRow,
    ) -> Result<Option<Details>, OpError> {
        let part: Part = |held| match held {
            Held::Pan(held) => Some(&held.details),
            Held::Token { .. } => None,
        };
        let Some((dek, sealed)) = self.with_its_key(merchant, row, part).await? else { return Ok(None) };
        let place = Place { merchant, record: row.card_id.as_str(), field: Field::Details };
        let bytes = envelope::open(&dek, &place, &sealed)?;
        let text = std::str::from_utf8(bytes.expose()).ok();
        text.and_then(Details::from_json)
            .map(Some)
            .ok_or_else(|| OpError::Internal(anyhow::anyhow!("details cannot be read")))
    }

    /// A sealed part of a card, with its key. As the row was read, that may have been destroyed since: then the row is
    /// read again. [`OpError::NotFound`] where the card was erased meanwhile.
    async fn with_its_key<'a>(
        &self,
        merchant: &Merchant,
        row: &'a CardRow,
        part: Part,
    ) -> Result<Option<(Arc<DataKey>, Cow<'a, Sealed>)>, OpError> {
        let Some(sealed) = part(&row.held) else { return Ok(None) };
        match self.keys.of(sealed).await {
            Err(OpError::Internal(_)) => {
                let now = Box::pin(self.live_card(merchant, &row.card_id)).await?;
                let Some(sealed) = part(&now.held) else { return Ok(None) };
                Ok(Some((self.keys.of(sealed).await?, Cow::Owned(sealed.clone()))))
            }
            key => Ok(Some((key?, Cow::Borrowed(sealed)))),
        }
    }

    fn seal_details(&self, merchant: &Merchant, id: &CardId, details: &Details) -> Result<Sealed, OpError> {
        let dek = self.keys.active(Purpose::Card)?;
        let place = Place { merchant, record: id.as_str(), field: Field::Details };
        Ok(envelope::seal(&dek, &place, &SecretBuf::from_vec(details.json().into_bytes()))?)
    }

    /// The fingerprint that callers see: the active key's. While this process does not know yet that the key
    /// was changed, the other column has one too.
    fn shown_fingerprint(&self, held: &HeldPan) -> Result<[u8; 32], OpError> {
        let slot = self.keys.fingerprint_key()?.slot;
        let known = held.fingerprints.get(slot).and_then(Option::as_deref);
        let known = known.or(held.fingerprints.iter().flatten().next().map(Vec::as_slice));
        known.and_then(|known| known.try_into().ok()).ok_or_else(no_fingerprint)
    }

    async fn masked(&self, merchant: &Merchant, row: &CardRow) -> Result<MaskedCard, OpError> {
        let number = match (&row.held, self.open_details(merchant, row).await?) {
            (Held::Pan(held), Some(details)) => Some(MaskedPan {
                brand: held.brand.clone(),
                bin: held.bin.clone(),
                last4: held.last4.clone(),
                details,
                fingerprint: fingerprint::show(&self.shown_fingerprint(held)?),
            }),
            _ => None,
        };
        let now = self.now();
        Ok(MaskedCard {
            card_id: row.card_id.clone(),
            number,
            buyer: row.buyer.clone(),
            cvv_held_until: row.cvv.as_ref().map(|slot| slot.until).filter(|until| *until > now),
            created_at: row.created_at,
            updated_at: row.updated_at,
        })
    }
}

/// One of the sealed parts of what is held of a card.
type Part = fn(&Held) -> Option<&Sealed>;

/// A card that was stored just now: what its caller is shown, without reading it back.
struct Stored {
    card_id: CardId,
    fingerprint: [u8; 32],
    brand: &'static str,
    bin: String,
    last4: String,
    buyer: Option<String>,
    cvv_until: Option<Millis>,
    now: Millis,
}

impl Stored {
    fn masked(self, details: Details) -> MaskedCard {
        MaskedCard {
            card_id: self.card_id,
            number: Some(MaskedPan {
                brand: self.brand.to_owned(),
                bin: self.bin,
                last4: self.last4,
                details,
                fingerprint: fingerprint::show(&self.fingerprint),
            }),
            buyer: self.buyer,
            cvv_held_until: self.cvv_until,
            created_at: self.now,
            updated_at: self.now,
        }
    }
}

fn no_fingerprint() -> OpError {
    OpError::Internal(anyhow::anyhow!("a card has no fingerprint of the right length"))
}

/// The vault knows neither the number of such a card nor what goes with it.
fn held_by_gateway() -> OpError {
    OpError::Invalid(vec![FieldFault::at("", "held_by_gateway")])
}

/// A stored card's fingerprint under a key, for the rotation of fingerprint keys: the number is opened and
/// wiped here.
pub(super) async fn fingerprint_of_record(
    keys: &DataKeys,
    key: &DataKey,
    merchant: &Merchant,
    id: &CardId,
    sealed: &Sealed,
) -> Result<[u8; 32], OpError> {
    let dek = keys.of(sealed).await?;
    let place = Place { merchant, record: id.as_str(), field: Field::Pan };
    let pan = envelope::open_pan(&dek, &place, sealed)?;
    Ok(fingerprint::fingerprint(key, merchant, &pan)?)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::path::Path;
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio::sync::Notify;

    use super::*;
    use crate::base::clock::{Clock, SharedClock, SystemClock};
    use crate::crypto::kek::{Keks, file};
    use crate::ops::Policy;
    use crate::ops::keys::KeyPolicy;
    use crate::ops::rotation::Admin;
    use crate::store::backend::{Options, Passage, Turn, Turnstile, Work};
    use crate::store::migrate;

    /// Holds the next one who has read, before he knows what.
    #[derive(Default)]
    struct Gate {
        holds: AtomicBool,
        arrived: Notify,
        told: Notify,
    }

    struct Entrance(Arc<Gate>);

    struct Exit(Arc<Gate>);

    impl Turnstile for Entrance {
        fn enter(&self, _: Work) -> Turn<'_, Box<dyn Passage>> {
            Box::pin(async { Ok(Box::new(Exit(self.0.clone())) as Box<dyn Passage>) })
        }
    }

    impl Passage for Exit {
        fn leave(self: Box<Self>) -> Turn<'static, ()> {
            Box::pin(async move {
                if self.0.holds.swap(false, Ordering::SeqCst) {
                    self.0.arrived.notify_one();
                    self.0.told.notified().await;
                }
                Ok(())
            })
        }
    }

    async fn database(folder: &Path) -> Db {
        let url = format!("sqlite:{}", folder.join("vault.db").display());
        Db::open(&Options { url, password_file: None }).await.expect("a database")
    }

    /// A token is looked for, and before the caller knows that it is not there, another process keeps it and the key
    /// changes by which it is known again: it is one card.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_token_is_one_card_though_the_key_changes_after_the_look_up() {
        let folder = tempfile::tempdir().expect("a folder");
        let keyring = folder.path().join("keyring.toml");
        file::create_new(&keyring, &file::generate(SystemClock.now()).expect("entropy")).expect("written");
        let clock: SharedClock = Arc::new(SystemClock);
        let keks = Arc::new(Keks::open(&keyring, None).unwrap_or_else(|error| panic!("{error}")));
        migrate::run(&database(folder.path()).await).await.expect("a schema");
        let gate = Arc::new(Gate::default());
        let mut vaults = Vec::new();
        for door in [Some(Arc::new(Entrance(gate.clone()))), None] {
            let db = database(folder.path()).await;
            let keys = DataKeys::start(db.clone(), keks.clone(), &clock, KeyPolicy::default()).await;
            let keys = keys.unwrap_or_else(|error| panic!("{error}"));
            let db = match door {
                Some(door) => db.through(door),
                None => db,
            };
            let vault = Vault::new(db, keys, HashMap::new(), clock.clone(), Policy::default());
            vaults.push(Arc::new(vault.unwrap_or_else(|error| panic!("{error}"))));
        }
        let (merchant, token) = (Merchant::parse("shop").expect("a name"), SecretText::from("ALIPAYonce=="));
        gate.holds.store(true, Ordering::SeqCst);
        let late = tokio::spawn({
            let (vault, merchant, token) =
                (vaults[0].clone(), merchant.clone(), SecretText::from("ALIPAYonce=="));
            async move { vault.card_for_token(&merchant, &token, None).await.map(|row| row.card_id) }
        });
        gate.arrived.notified().await;
        let known = vaults[1].card_for_token(&merchant, &token, None).await;
        let known = known.unwrap_or_else(|error| panic!("{error}")).card_id;
        let db = database(folder.path()).await;
        let admin = Admin::new(db, keks, &clock, KeyPolicy::default(), Duration::from_secs(1));
        let admin = admin.unwrap_or_else(|error| panic!("{error}"));
        admin.keys.open_only().await.unwrap_or_else(|error| panic!("{error}"));
        admin.rotate_data_key(Purpose::RequestMac).await.unwrap_or_else(|error| panic!("{error}"));
        assert!(vaults[0].keys.follow().await.unwrap_or_else(|error| panic!("{error}")));
        gate.told.notify_one();
        let late = late.await.expect("a task").unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(late, known);
    }
}
