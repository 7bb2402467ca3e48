//! Before the first byte: resolve the card, apply the rules, build the request, record the intent.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::base::card::Pan;
use crate::base::clock::Millis;
use crate::base::cvv::Cvv;
use crate::base::fault::FieldFault;
use crate::base::ids::{
    AgreementId, BuyerId, CardId, ClientName, GatewayAccount, InstanceId, Merchant, PaymentRequestId,
};
use crate::base::money::Amount;
use crate::base::sealed::Sealed;
use crate::base::secret::{SecretBuf, SecretText};
use crate::crypto::aad::{Field, Place};
use crate::crypto::ephemeral::EphemeralSealed;
use crate::crypto::keyring::Purpose;
use crate::crypto::{envelope, request_mac};
use crate::gateway::antom::body::{CardFlags, Instrument, Template};
use crate::gateway::{Call, Gateway, Signed};
use crate::model::access::{Allowed, Pay, PayWithoutBuyer};
use crate::model::agreement::{AgreementEvent, AgreementState, Initiator, StoredCredential, Terms};
use crate::model::audit::Entry;
use crate::model::card::{Details, TypedCard};
use crate::model::decline::Decline;
use crate::model::pay_request::{CardForm, PayRequest, Sensitive};
use crate::model::payment::Status;
use crate::model::rules::{self, AgreementFacts, Asked, Asks, CardFacts, Column, Limits, Reason, Refusal};
use crate::slots::{self, Taken};
use crate::store::agreements::{AgreementRow, CardPast, card_past, find_agreement, insert_agreement};
use crate::store::cards as card_rows;
use crate::store::cards::{CardRow, CardToPay, Held};
use crate::store::keys::epoch;
use crate::store::payments as rows;
use crate::store::payments::{NewPayment, PaymentRow};

use super::super::Vault;
use super::super::error::OpError;
use super::{meaning_input, record_name};

/// One payment, on its way out.
pub(super) struct Attempt {
    pub account: GatewayAccount,
    pub id: PaymentRequestId,
    pub merchant: Merchant,
    pub amount: Amount,
    pub card: Option<CardId>,
    pub template: Template,
    /// CVV and its like, sealed under the process's key; none where the payment has none.
    pub sensitive: Option<EphemeralSealed>,
    /// Where it goes.
    pub gateway: Arc<dyn Gateway>,
    /// This attempt's own name, by which its row is known to be its own.
    pub name: String,
    /// Until when it may be sent: its row tells others that it is theirs to look after then.
    pub deadline: Instant,
    /// How often it was sent again.
    pub sends: u32,
    /// The card as it was when the body was built, sealed; none where it must be looked for.
    pub card_row: Option<Box<CardRow>>,
    /// The payment as it was recorded; none where it must be looked for.
    pub row: Option<Box<PaymentRow>>,
}

impl Attempt {
    /// Whether the send that is under way is the only one there was: then a request that did not leave
    /// proves that nothing was charged.
    pub fn never_repeated(&self) -> bool {
        self.sends == 0
    }
}

/// How often what was sealed under keys that have changed is sealed again.
const TURNS: usize = 8;

/// An attempt that is decided but not recorded.
pub(super) struct Prepared {
    attempt: Attempt,
    /// The bytes to send, PAN and CVV in them.
    body: SecretBuf,
    manual_capture: bool,
    wants_token: bool,
    expires_at: Option<Millis>,
    buyer: Option<BuyerId>,
    client: ClientName,
    meaning: [u8; 32],
    meaning_key: String,
    retyped: bool,
    deal: Deal,
    outgoing: Sealed,
    /// The epoch of the keys of `meaning` and `outgoing`.
    epoch: i64,
    slot: Option<HeldCvv>,
    is_old: bool,
}

/// A CVV that was taken from its slot for this payment.
struct HeldCvv {
    taken: Taken<EphemeralSealed>,
    until: Millis,
    /// Whether it is sent. A payment that says `OMIT`, or brings a CVV, ends the one that waits unused:
    /// it was the next payment.
    used: bool,
}

/// Whether the intent was recorded.
pub(super) enum Recorded {
    /// It is durable; the request may be sent.
    Ready(Box<Attempt>, Signed),
    /// Somebody else has used the id since it was looked up.
    InUse,
}

/// The card of a payment, with what is sent of it.
struct Chosen {
    card: CardId,
    /// Expiry, name and address; none where only Antom holds the card.
    details: Option<Details>,
    flags: CardFlags,
    retyped: bool,
    slot: Option<HeldCvv>,
    number: Number,
    /// Whether its number was typed so long ago that its time may be over: the payment then keeps it.
    is_old: bool,
}

/// Where the PAN comes from.
enum Number {
    Typed(Pan),
    Stored(Box<CardRow>),
}

/// What a payment has to do with an agreement.
pub(super) enum Deal {
    /// Nothing.
    None,
    /// It opens this one.
    Opens(AgreementId, Terms),
    /// It uses this one.
    Uses(Initiator, Box<AgreementRow>),
}

impl Deal {
    /// The agreement's id.
    pub(super) fn id(&self) -> Option<&AgreementId> {
        match self {
            Self::None => None,
            Self::Opens(id, _) => Some(id),
            Self::Uses(_, row) => Some(&row.agreement_id),
        }
    }

    /// Who begins the payment.
    pub(super) fn initiator(&self) -> Initiator {
        match self {
            Self::Uses(initiator, _) => *initiator,
            Self::None | Self::Opens(..) => Initiator::Customer,
        }
    }
}

/// A card whose number was typed so recently is kept whatever is configured (an hour at least), also where
/// clocks differ.
const YOUNG: Duration = Duration::from_secs(30 * 60);
/// How far back an issuer's declines are heard.
const DECLINES_COUNT: Duration = Duration::from_secs(30 * 24 * 3600);

impl Vault {
    /// Decides everything that can be decided before the payment is recorded. What is refused here has
    /// changed nothing. `found` is the card that the request refers to.
    pub(super) async fn prepare(
        &self,
        allowed: &Allowed<Pay>,
        mut request: PayRequest,
        canonical: &SecretText,
        found: Option<CardToPay>,
    ) -> Result<Prepared, OpError> {
        let merchant = allowed.merchant();
        let deal = self.deal_of(allowed, &mut request).await?;
        self.complete(&mut request, &deal)?;
        let form = std::mem::replace(&mut request.card, CardForm::HostedPage);
        let chosen = match form {
            CardForm::HostedPage => {
                check_hosted_page(&request, &deal)?;
                None
            }
            CardForm::Inline(card) => Some(self.choose_typed(merchant, card, &request, &deal).await?),
            CardForm::Token(token) => {
                let buyer = request.buyer.clone();
                let buyer = buyer.as_ref().map(BuyerId::as_str);
                if self.find_by_token(merchant, &token, buyer).await?.is_none() {
                    // What is refused leaves nothing behind.
                    request.pays_by_token = true;
                    check_token_claims(&request)?;
                    self.flags(merchant, &request, &deal, None, self.now()).await?;
                }
                let row = Box::new(self.card_for_token(merchant, &token, buyer).await?);
                let past = self.past_of(merchant, &row.card_id).await?;
                Some(self.choose_row(merchant, row, &mut request, &deal, self.now(), &past).await?)
            }
            CardForm::Reference(id) => {
                let found = found.filter(|found| found.card.card_id == id);
                let Some(CardToPay { card, past, .. }) = found else {
                    return Err(self.without_card(&request, &deal, &id));
                };
                let typed_at = card.typed_at;
                Some(self.choose_row(merchant, card, &mut request, &deal, typed_at, &past).await?)
            }
        };
        self.build(allowed, request, chosen, deal, canonical).await
    }

    /// What the vault adds to a request: where notifications go, and that a card typed on Antom's page is
    /// kept where an agreement needs it.
    pub(super) fn complete(&self, request: &mut PayRequest, deal: &Deal) -> Result<(), OpError> {
        request.notify_url.clone_from(&self.policy.notify_url);
        if let (CardForm::HostedPage, Deal::Opens(..)) = (&request.card, deal) {
            match request.tokenize {
                Some(true) => {}
                None => request.add_tokenize = true,
                Some(false) => {
                    let at = "/paymentMethod/paymentMethodMetaData/tokenize";
                    return Err(OpError::Invalid(vec![FieldFault::at(at, "conflict")]));
                }
            }
        }
        Ok(())
    }

    /// Why a card that is not there cannot be paid with: one whose agreement the merchant has was erased.
    pub(super) fn without_card(&self, request: &PayRequest, deal: &Deal, card: &CardId) -> OpError {
        let erased = CardFacts { erased: true, ..facts(Millis(0), None) };
        match deal {
            Deal::Uses(_, row) if row.card_id.as_ref() == Some(card) => {
                self.flags_for(request, deal, Some(card), &erased).err().unwrap_or_else(unknown_card)
            }
            _ => unknown_card(),
        }
    }

    pub(super) async fn deal_of(
        &self,
        allowed: &Allowed<Pay>,
        request: &mut PayRequest,
    ) -> Result<Deal, OpError> {
        match request.stored_credential.take() {
            None => Ok(Deal::None),
            Some(StoredCredential::Open(terms)) => Ok(Deal::Opens(AgreementId::make()?, terms)),
            Some(StoredCredential::Use { initiator, agreement_id }) => {
                if initiator == Initiator::Merchant {
                    allowed.caller().allow::<PayWithoutBuyer>()?;
                }
                let unknown =
                    || OpError::NotFound(Some(FieldFault::at("/storedCredential/agreementId", "not_found")));
                let row = find_agreement(&self.db, allowed.merchant(), &agreement_id).await?;
                Ok(Deal::Uses(initiator, Box::new(row.ok_or_else(unknown)?)))
            }
        }
    }

    async fn choose_typed(
        &self,
        merchant: &Merchant,
        card: TypedCard,
        request: &PayRequest,
        deal: &Deal,
    ) -> Result<Chosen, OpError> {
        if let Some(fault) = request.find_outside_card(&card.pan) {
            return Err(OpError::Invalid(vec![fault]));
        }
        let buyer = card.buyer.as_ref().map(|buyer| buyer.as_str());
        let known = self.find_by_pan(merchant, &card.pan, buyer).await?;
        // The number was typed just now, whatever the card's row says.
        let flags =
            self.flags(merchant, request, deal, known.as_ref().map(|row| &row.card_id), self.now()).await?;
        let (new, id) = self.card_for_payment(merchant, &card.pan, &card.details, buyer).await?;
        let number = Number::Typed(card.pan);
        let details = Some(card.details);
        Ok(Chosen { card: id, details, flags, retyped: !new, slot: None, number, is_old: !new })
    }

    /// Finds a card to pay by, and whether the account has used this payment's id.
    pub(super) async fn find_to_pay(
        &self,
        allowed: &Allowed<Pay>,
        card: &CardId,
        id: &PaymentRequestId,
    ) -> Result<Option<CardToPay>, OpError> {
        let (since, now) = self.times_of_past();
        let payment = (allowed.account(), id);
        Ok(card_rows::find_card_to_pay(&self.db, (allowed.merchant(), card), payment, since, now).await?)
    }

    async fn choose_row(
        &self,
        merchant: &Merchant,
        row: Box<CardRow>,
        request: &mut PayRequest,
        deal: &Deal,
        typed_at: Millis,
        past: &CardPast,
    ) -> Result<Chosen, OpError> {
        let id = row.card_id.clone();
        request.pays_by_token = matches!(row.held, Held::Token { .. });
        rules::same_buyer(row.buyer.as_deref(), request.buyer.as_ref().map(|buyer| buyer.as_str()))?;
        let flags = self.flags_for(request, deal, Some(&id), &facts(typed_at, Some(past)))?;
        let details = self.open_details(merchant, &row).await.map_err(or_unknown)?;
        check_claims(request, details.as_ref())?;
        let find = |card: Instrument<'_>| match card {
            Instrument::Pan(pan) => request.find_outside_card(pan),
            Instrument::Token(_) => None,
        };
        let outside = self.with_instrument(merchant, &row, find).await.map_err(or_unknown)?;
        if let Some(fault) = outside {
            return Err(OpError::Invalid(vec![fault]));
        }
        let slot = match deal.initiator() {
            Initiator::Customer => self.take_held_cvv(merchant, &row, request)?,
            // Without the buyer there is no CVV; one that is held waits for him.
            Initiator::Merchant => None,
        };
        let is_old = row.typed_at.plus(YOUNG) < self.now();
        let number = Number::Stored(row);
        Ok(Chosen { card: id, details, flags, retyped: false, slot, number, is_old })
    }

    /// As what a payment leaves whose card is not read with its past.
    pub(super) async fn flags(
        &self,
        merchant: &Merchant,
        request: &PayRequest,
        deal: &Deal,
        card: Option<&CardId>,
        typed_at: Millis,
    ) -> Result<CardFlags, OpError> {
        let past = match card {
            Some(card) => Some(self.past_of(merchant, card).await?),
            None => None,
        };
        self.flags_for(request, deal, card, &facts(typed_at, past.as_ref()))
    }

    async fn past_of(&self, merchant: &Merchant, card: &CardId) -> Result<CardPast, OpError> {
        let (since, now) = self.times_of_past();
        Ok(card_past(&self.db, merchant, card, since, now).await?)
    }

    /// Since when declines are heard, and now.
    fn times_of_past(&self) -> (Millis, Millis) {
        let now = self.now();
        let long = i64::try_from(DECLINES_COUNT.as_millis()).unwrap_or(0);
        (Millis(now.0.saturating_sub(long)), now)
    }

    /// As what a payment leaves: a column of the truth table, or why it does not leave at all.
    fn flags_for(
        &self,
        request: &PayRequest,
        deal: &Deal,
        card: Option<&CardId>,
        facts: &CardFacts,
    ) -> Result<CardFlags, OpError> {
        let asked = Asked {
            agreement: match deal {
                Deal::None => Asks::OneTime,
                Deal::Opens(..) => Asks::Opens,
                Deal::Uses(initiator, row) => Asks::Uses(*initiator, agreement_facts(row, card)),
            },
            cvv: request.sensitive.cvv.is_some() || request.sensitive.password_digest.is_some(),
            three_ds: request.three_ds,
            mpi_data: request.metadata.iter().any(|(name, _)| name == "mpiData"),
            amount: request.amount.clone(),
        };
        let limits =
            Limits { unattached: self.policy.unattached, declined_attempts: self.policy.declined_attempts };
        let flags = match (rules::decide(&asked, facts, limits, self.now())?, deal) {
            // What Antom holds is on file there, however new it is here (reference, section 8.2).
            (Column::OneTime | Column::First, _) if request.pays_by_token => CardFlags::on_file(),
            (Column::OneTime | Column::First, _) => CardFlags::fresh(),
            (Column::Merchant(kind), Deal::Uses(_, row)) => {
                let chain = row.network_transaction_id.as_ref().map(|id| id.value.clone());
                CardFlags::merchant(kind, chain.unwrap_or_default())
            }
            (Column::LaterCustomer | Column::Merchant(_), _) => CardFlags::on_file(),
        };
        check_flag_claims(request, &flags)?;
        Ok(flags)
    }

    /// Takes the CVV that is held for this payment, if one is.
    fn take_held_cvv(
        &self,
        merchant: &Merchant,
        row: &CardRow,
        request: &mut PayRequest,
    ) -> Result<Option<HeldCvv>, OpError> {
        let Some(slot) = row.cvv.as_ref().filter(|slot| {
            slot.until > self.now() && slots::is_for(slot.for_request.as_deref(), &request.payment_request_id)
        }) else {
            return Ok(None);
        };
        let here = slot.holder == self.instance.as_str();
        let taken = if here { self.slots.take(merchant, &row.card_id, slot.until) } else { None };
        if request.omit_cvv || request.sensitive.cvv.is_some() {
            return Ok(taken.map(|taken| HeldCvv { taken, until: slot.until, used: false }));
        }
        let taken = taken.ok_or(OpError::CvvNotAvailable)?;
        request.sensitive.cvv = self.open_taken(&row.card_id, &taken);
        if request.sensitive.cvv.is_none() {
            return Err(OpError::CvvNotAvailable);
        }
        Ok(Some(HeldCvv { taken, until: slot.until, used: true }))
    }

    async fn build(
        &self,
        allowed: &Allowed<Pay>,
        request: PayRequest,
        chosen: Option<Chosen>,
        deal: Deal,
        canonical: &SecretText,
    ) -> Result<Prepared, OpError> {
        let (manual_capture, expires_at) = (request.manual_capture, request.expires_at);
        let wants_token = request.add_tokenize || request.tokenize == Some(true);
        let buyer = request.buyer.clone();
        let built = self.build_attempt(allowed, request, chosen.as_ref()).await;
        let (card, retyped, slot, is_old, card_row) = match chosen {
            Some(chosen) => {
                let card_row = match chosen.number {
                    Number::Stored(row) => Some(row),
                    Number::Typed(_) => None,
                };
                (Some(chosen.card), chosen.retyped, chosen.slot, chosen.is_old, card_row)
            }
            None => (None, false, None, false, None),
        };
        let epoch = self.keys.epoch();
        let sealed = built.and_then(|(attempt, body)| {
            let meaning = self.meaning_of(canonical, card.as_ref())?;
            let outgoing = self.seal_outgoing(&attempt)?;
            Ok((Attempt { card_row, ..attempt }, body, meaning, outgoing))
        });
        match sealed {
            Ok((attempt, body, (meaning, meaning_key), outgoing)) => Ok(Prepared {
                attempt,
                body,
                manual_capture,
                wants_token,
                expires_at,
                buyer,
                client: allowed.caller().client().name.clone(),
                meaning,
                meaning_key,
                retyped,
                deal,
                outgoing,
                epoch,
                slot,
                is_old,
            }),
            Err(error) => {
                // Nothing was recorded, so the CVV goes on waiting.
                slot.into_iter().for_each(|held| self.slots.put_back(held.taken));
                Err(error)
            }
        }
    }

    async fn build_attempt(
        &self,
        allowed: &Allowed<Pay>,
        request: PayRequest,
        chosen: Option<&Chosen>,
    ) -> Result<(Attempt, SecretBuf), OpError> {
        let merchant = allowed.merchant();
        let template = match chosen {
            Some(Chosen { details: Some(details), flags, .. }) => {
                Template::with_card(&request, details, flags)
            }
            Some(Chosen { flags, .. }) => Template::with_token(&request, flags),
            None => Template::hosted_page(&request),
        };
        let body = match chosen.map(|chosen| &chosen.number) {
            None => template.fill(None, &request.sensitive),
            Some(Number::Typed(pan)) => template.fill(Some(Instrument::Pan(pan)), &request.sensitive),
            Some(Number::Stored(row)) => {
                let fill = |card: Instrument<'_>| template.fill(Some(card), &request.sensitive);
                self.with_instrument(merchant, row, fill).await.map_err(or_unknown)?
            }
        };
        let name = format!("{}/{}", self.instance, InstanceId::make()?);
        let sensitive = if request.sensitive.is_empty() {
            None
        } else {
            Some(self.process_key.seal(name.as_bytes(), &pack(&request.sensitive))?)
        };
        let body = body.map_err(|error| OpError::Internal(error.into()))?;
        let attempt = Attempt {
            account: allowed.account().clone(),
            id: request.payment_request_id,
            merchant: merchant.clone(),
            amount: request.amount,
            card: chosen.map(|chosen| chosen.card.clone()),
            template,
            sensitive,
            gateway: self.gateway(allowed.account())?,
            name,
            deadline: self.clock.instant() + self.policy.attempt_deadline,
            sends: 0,
            card_row: None,
            row: None,
        };
        Ok((attempt, body))
    }

    /// The digest of what a request means, and the key that made it.
    fn meaning_of(
        &self,
        canonical: &SecretText,
        card: Option<&CardId>,
    ) -> Result<([u8; 32], String), OpError> {
        let key = self.keys.active(Purpose::RequestMac)?;
        let meaning = request_mac::request_mac(&key, &meaning_input(canonical, card))?;
        Ok((meaning, key.id().to_string()))
    }

    /// The request as it is kept.
    fn seal_outgoing(&self, attempt: &Attempt) -> Result<Sealed, OpError> {
        let dek = self.keys.active(Purpose::Card)?;
        let record = record_name(&attempt.account, &attempt.id);
        let place = Place { merchant: &attempt.merchant, record: &record, field: Field::Outgoing };
        Ok(envelope::seal(&dek, &place, &attempt.template.to_bytes())?)
    }

    /// Makes the intent durable, and takes the CVV's slot in the same transaction.
    pub(super) async fn record(
        &self,
        allowed: &Allowed<Pay>,
        mut prepared: Prepared,
    ) -> Result<Recorded, OpError> {
        let gateway = Arc::clone(&prepared.attempt.gateway);
        let body = std::mem::replace(&mut prepared.body, SecretBuf::with_capacity(0));
        // While the database writes, the processor signs: not before it has been asked to.
        let sign = async {
            tokio::task::yield_now().await;
            gateway.sign(Call::Pay, body)
        };
        let (mut recorded, signed) = tokio::join!(biased; self.insert_intent(allowed, &prepared), sign);
        for _ in 0..TURNS {
            match recorded {
                Ok(Inserted::KeysMoved) => recorded = self.insert_anew(allowed, &mut prepared).await,
                _ => break,
            }
        }
        // A payment that was not made leaves the CVV waiting; one whose card was erased ends it.
        let goes_on = !matches!(recorded, Ok(Inserted::Yes(_) | Inserted::CardGone | Inserted::SlotGone));
        if let (true, Some(held)) = (goes_on, prepared.slot) {
            self.slots.put_back(held.taken);
        }
        match recorded? {
            Inserted::Yes(row) => {
                self.metrics.payment(Status::Unknown);
                let attempt = Attempt { row: Some(row), ..prepared.attempt };
                Ok(Recorded::Ready(Box::new(attempt), signed))
            }
            Inserted::InUse => Ok(Recorded::InUse),
            Inserted::CardGone => Err(unknown_card()),
            Inserted::AgreementGone => Err(Refusal::StoredCredential(Reason::AgreementEnded).into()),
            Inserted::SlotGone => Err(OpError::CvvNotAvailable),
            Inserted::KeysMoved => Err(OpError::keys_are_changing()),
        }
    }

    /// As [`Self::insert_intent`], with what is kept of the request sealed under the keys as they are by now.
    async fn insert_anew(
        &self,
        allowed: &Allowed<Pay>,
        prepared: &mut Prepared,
    ) -> Result<Inserted, OpError> {
        self.keys.follow().await?;
        prepared.epoch = self.keys.epoch();
        // The digest of its meaning stays; so does its key, unless it was destroyed before any payment had one.
        let known = self.keys.of_purpose(Purpose::RequestMac);
        if !known.iter().any(|key| key.id().as_str() == prepared.meaning_key) {
            return Err(OpError::Unavailable(anyhow::anyhow!("the key of a request's digest is gone")));
        }
        prepared.outgoing = self.seal_outgoing(&prepared.attempt)?;
        self.insert_intent(allowed, prepared).await
    }

    async fn insert_intent(&self, allowed: &Allowed<Pay>, prepared: &Prepared) -> Result<Inserted, OpError> {
        let (attempt, now) = (&prepared.attempt, self.now());
        let payment = NewPayment {
            account: &attempt.account,
            payment_request_id: &attempt.id,
            merchant: allowed.merchant(),
            client: &prepared.client,
            card_id: attempt.card.as_ref(),
            meaning: &prepared.meaning,
            meaning_key: &prepared.meaning_key,
            currency: attempt.amount.currency(),
            amount: attempt.amount.value(),
            had_sensitive: attempt.sensitive.is_some(),
            initiator: prepared.deal.initiator(),
            agreement_id: prepared.deal.id(),
            uses_agreement: matches!(prepared.deal, Deal::Uses(..)),
            retyped: prepared.retyped,
            outgoing: &prepared.outgoing,
            epoch: prepared.epoch,
            attempt: &attempt.name,
            manual_capture: prepared.manual_capture,
            buyer: prepared.buyer.as_ref().map(BuyerId::as_str),
            wants_token: prepared.wants_token,
            expires_at: prepared.expires_at,
            next_look: now.plus(self.policy.attempt_deadline),
            now,
        };
        let by = attempt.card.as_ref().map_or("hosted page", CardId::as_str);
        let note = Entry::done("payment.create", attempt.id.as_str()).with(by);
        let opens = matches!(prepared.deal, Deal::Opens(..));
        if !opens && !prepared.is_old && prepared.slot.is_none() {
            let values = rows::insert_values(&payment);
            let alone = (&rows::INSERT, values.as_slice());
            return match self.statements.run(alone, None, note).await {
                Ok(Some(row)) => Ok(Inserted::Yes(Box::new(rows::payment_row(&row)?))),
                Ok(None) => self.why_not(allowed.merchant(), prepared).await,
                Err(OpError::Unclear(error)) => self.after_unclear_commit(attempt, error).await,
                Err(error) => Err(error),
            };
        }
        let mut tx = self.begin().await?;
        let Some(row) = rows::insert_payment(&mut tx, &payment).await? else {
            tx.rollback().await?;
            return self.why_not(allowed.merchant(), prepared).await;
        };
        if let Deal::Opens(id, terms) = &prepared.deal {
            let opened_by = (&attempt.account, &attempt.id);
            let card = attempt.card.as_ref();
            insert_agreement(&mut tx, id, allowed.merchant(), card, terms, opened_by, self.now()).await?;
        }
        if let Some(card) = attempt.card.as_ref().filter(|_| prepared.is_old)
            && !card_rows::use_card(&mut tx, allowed.merchant(), card, now).await?
        {
            tx.rollback().await?;
            return Ok(Inserted::CardGone);
        }
        if let (Some(card), Some(held)) = (&attempt.card, &prepared.slot)
            && !card_rows::take_cvv(&mut tx, allowed.merchant(), card, &self.instance, held.until).await?
            && held.used
        {
            tx.rollback().await?;
            return Ok(Inserted::SlotGone);
        }
        tx.note(&note).await?;
        match tx.commit().await {
            Ok(()) => Ok(Inserted::Yes(Box::new(row))),
            Err(error) if error.is_unclear() => self.after_unclear_commit(attempt, error.into()).await,
            Err(error) => Err(error.into()),
        }
    }

    /// Why a payment was not inserted: somebody else has used its id since it was looked up, the keys have changed
    /// since it was sealed, its card was erased, or its agreement ended.
    async fn why_not(&self, merchant: &Merchant, prepared: &Prepared) -> Result<Inserted, OpError> {
        let (account, id) = (&prepared.attempt.account, &prepared.attempt.id);
        if rows::find_payment(&self.db, account, id).await?.is_some() {
            return Ok(Inserted::InUse);
        }
        if epoch(&self.db).await? != prepared.epoch {
            return Ok(Inserted::KeysMoved);
        }
        if let Deal::Uses(_, row) = &prepared.deal {
            let now = find_agreement(&self.db, merchant, &row.agreement_id).await?;
            if now.is_none_or(|now| now.state != AgreementState::Active) {
                return Ok(Inserted::AgreementGone);
            }
        }
        Ok(Inserted::CardGone)
    }

    /// A commit whose answer was lost may have happened: the row tells, by the attempt's own name. Without one it may
    /// come yet (a session that still waits for its standby, say), and whoever looks after it would send it: so the
    /// caller is not told that nothing was.
    async fn after_unclear_commit(
        &self,
        attempt: &Attempt,
        error: anyhow::Error,
    ) -> Result<Inserted, OpError> {
        match rows::find_payment(&self.db, &attempt.account, &attempt.id).await {
            Ok(Some(row)) if row.attempt == attempt.name => Ok(Inserted::Yes(Box::new(row))),
            Ok(Some(_)) => Ok(Inserted::InUse),
            _ => Err(OpError::OutcomeNotKnown(error)),
        }
    }
}

enum Inserted {
    Yes(Box<PaymentRow>),
    InUse,
    CardGone,
    AgreementGone,
    SlotGone,
    KeysMoved,
}

/// What the rules want to know of a card; what is new here has no past.
fn facts(typed_at: Millis, past: Option<&CardPast>) -> CardFacts {
    let decline = match past.map(|past| (past.revoked, past.never)) {
        Some((1.., _)) => Some(Decline::Revoked),
        Some((_, 1..)) => Some(Decline::Never),
        _ => None,
    };
    CardFacts {
        erased: false,
        has_active_agreement: past.is_some_and(|past| past.has_active_agreement),
        typed_at,
        decline,
        declined_attempts: past.map_or(0, |past| u32::try_from(past.declined_attempts).unwrap_or(u32::MAX)),
    }
}

fn agreement_facts(row: &AgreementRow, card: Option<&CardId>) -> AgreementFacts {
    AgreementFacts {
        same_card: card.is_some() && row.card_id.as_ref() == card,
        kind: row.terms.kind,
        state: row.state,
        revoked: row.ended_reason.as_deref() == Some(AgreementEvent::ConsentRevoked.reason()),
        expires_at: row.terms.expires_at,
        max_amount: row.terms.max_amount.clone(),
        has_network_transaction_id: row.network_transaction_id.is_some(),
    }
}

/// What the caller says of how the card is charged must be what is sent.
fn check_flag_claims(request: &PayRequest, flags: &CardFlags) -> Result<(), OpError> {
    const ON_FILE: &str = "/paymentMethod/paymentMethodMetaData/isCardOnFile";
    const RECURRING: &str = "/paymentMethod/paymentMethodMetaData/recurringType";
    const CHAIN: &str = "/paymentMethod/paymentMethodMetaData/networkTransactionId";
    let (kind, chain) = match &flags.merchant_initiated {
        Some((kind, chain)) => (Some(kind.name()), Some(chain.as_str())),
        None => (None, None),
    };
    let claims = &request.claims;
    let differs = |claim: &Option<String>, sent: Option<&str>| claim.is_some() && claim.as_deref() != sent;
    // There is no browser where there is no buyer (reference, section 7.5).
    let browser = kind.is_some() && request.has_browser_info;
    let faults: Vec<FieldFault> = [
        (ON_FILE, claims.is_card_on_file.is_some_and(|claim| claim != flags.is_card_on_file)),
        (RECURRING, differs(&claims.recurring_type, kind)),
        (CHAIN, differs(&claims.network_transaction_id, chain)),
        ("/env/browserInfo", browser),
    ]
    .into_iter()
    .filter(|(_, wrong)| *wrong)
    .map(|(pointer, _)| FieldFault::at(pointer, "conflict"))
    .collect();
    if faults.is_empty() { Ok(()) } else { Err(OpError::Invalid(faults)) }
}

/// A card that the buyer types on Antom's page is no agreement's yet, and is charged once: nothing is sent that
/// says otherwise.
pub(super) fn check_hosted_page(request: &PayRequest, deal: &Deal) -> Result<(), OpError> {
    if let Deal::Uses(..) = deal {
        return Err(Refusal::StoredCredential(Reason::OtherCard).into());
    }
    let claims = &request.claims;
    // `isCardOnFile` is the caller's own here: the vault knows nothing of the card.
    let sent = CardFlags { is_card_on_file: claims.is_card_on_file.unwrap_or(false), ..CardFlags::fresh() };
    check_flag_claims(request, &sent)
}

pub(super) fn unknown_card() -> OpError {
    OpError::NotFound(Some(FieldFault::at("/paymentMethod/paymentMethodId", "not_found")))
}

/// What a card's erasure, between its row and its opening, is to who pays with it.
pub(super) fn or_unknown(error: OpError) -> OpError {
    if matches!(error, OpError::NotFound(None)) { unknown_card() } else { error }
}

/// What the caller says of a referenced card must be what is stored.
pub(super) fn check_claims(request: &PayRequest, details: Option<&Details>) -> Result<(), OpError> {
    let Some(details) = details else { return check_token_claims(request) };
    let expiry = (details.expiry.month_text(), details.expiry.year_text());
    let two = |number: Option<u8>| number.map(|number| format!("{number:02}"));
    let mut faults = Vec::new();
    let mut disagree = |pointer, differs: bool| {
        if differs {
            faults.push(FieldFault::at(pointer, "conflict"));
        }
    };
    let claims = &request.claims;
    disagree(
        "/paymentMethod/paymentMethodMetaData/expiryMonth",
        two(claims.month).is_some_and(|month| month != expiry.0),
    );
    disagree(
        "/paymentMethod/paymentMethodMetaData/expiryYear",
        two(claims.year).is_some_and(|year| year != expiry.1),
    );
    disagree(
        "/paymentMethod/paymentMethodMetaData/cardholderName",
        claims.name.as_ref().is_some_and(|name| details.name.as_ref() != Some(name)),
    );
    if faults.is_empty() { Ok(()) } else { Err(OpError::Invalid(faults)) }
}

/// Beside Antom's token nothing of the card is sent: neither a CVV nor what only a number has.
pub(super) fn check_token_claims(request: &PayRequest) -> Result<(), OpError> {
    const CVV: &str = "/paymentMethod/paymentMethodMetaData/cvv";
    const MONTH: &str = "/paymentMethod/paymentMethodMetaData/expiryMonth";
    const YEAR: &str = "/paymentMethod/paymentMethodMetaData/expiryYear";
    const NAME: &str = "/paymentMethod/paymentMethodMetaData/cardholderName";
    const DIGEST: &str = "/paymentMethod/paymentMethodMetaData/cardPasswordDigest";
    const MPI: &str = "/paymentMethod/paymentMethodMetaData/mpiData";
    let (claims, sensitive) = (&request.claims, &request.sensitive);
    let faults: Vec<FieldFault> = [
        (CVV, sensitive.cvv.is_some()),
        (MONTH, claims.month.is_some()),
        (YEAR, claims.year.is_some()),
        (NAME, claims.name.is_some()),
        (DIGEST, sensitive.password_digest.is_some()),
        (MPI, request.metadata.iter().any(|(name, _)| name == "mpiData")),
    ]
    .into_iter()
    .filter(|(_, sent)| *sent)
    .map(|(pointer, _)| FieldFault::at(pointer, "held_by_gateway"))
    .collect();
    if faults.is_empty() { Ok(()) } else { Err(OpError::Invalid(faults)) }
}

/// Keeps a payment's sensitive data for a repeat, sealed; [`unpack`] reads it back.
pub(super) fn pack(sensitive: &Sensitive) -> SecretBuf {
    let part = |text: Option<&str>| text.unwrap_or_default().as_bytes().to_vec();
    let parts = [
        zeroize::Zeroizing::new(part(sensitive.cvv.as_ref().map(Cvv::expose))),
        zeroize::Zeroizing::new(part(sensitive.cavv.as_ref().map(SecretText::expose))),
        zeroize::Zeroizing::new(part(sensitive.password_digest.as_ref().map(SecretText::expose))),
    ];
    SecretBuf::from_vec(crate::base::bytes::length_prefixed(&[&parts[0], &parts[1], &parts[2]]))
}

/// Reads what [`pack`] wrote.
pub(super) fn unpack(bytes: &SecretBuf) -> Option<Sensitive> {
    let parts = crate::base::bytes::split_length_prefixed(bytes.expose())?;
    let [cvv, cavv, digest] = parts.as_slice() else { return None };
    let text =
        |bytes: &[u8]| std::str::from_utf8(bytes).ok().filter(|text| !text.is_empty()).map(SecretText::from);
    Some(Sensitive {
        cvv: std::str::from_utf8(cvv).ok().and_then(Cvv::parse),
        cavv: text(cavv),
        password_digest: text(digest),
    })
}
