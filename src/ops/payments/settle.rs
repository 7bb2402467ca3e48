//! What a verified answer changes.

use std::time::Duration;

use crate::base::clock::Millis;
use crate::base::ids::{CardId, Merchant};
use crate::base::json::{self, Object};
use crate::base::money::Amount;
use crate::base::sealed::Sealed;
use crate::base::secret::{SecretBuf, SecretText};
use crate::crypto::aad::{Field, Place};
use crate::crypto::envelope;
use crate::crypto::keyring::Purpose;
use crate::gateway::antom::answer::{Expected, Reading, read_inquiry};
use crate::gateway::antom::body::Template;
use crate::gateway::antom::scrub::{Own, card_token, scrub};
use crate::gateway::antom::verify::Verified;
use crate::gateway::{Call, Exchange};
use crate::model::agreement::parse_time;
use crate::model::audit::Entry;
use crate::model::card::Details;
use crate::model::decline::Decline;
use crate::model::look::{Waits, pause};
use crate::model::payment::{Source, Status, Verdict, next};
use crate::model::payment_view::{KeptAnswer, PaymentView, REDIRECTS};
use crate::store::agreements::attach_card;
use crate::store::backend::Tx;
use crate::store::cards::{find_card, update_details, use_card};
use crate::store::payments as rows;
use crate::store::payments::{CancelState, Change, NextLook, PaymentRow};

use super::super::Vault;
use super::super::cards::ReadyDetails;
use super::super::error::OpError;
use super::super::events::ReadyEvent;
use super::chain::ChainIds;
use super::record_name;

/// How often a lost race is run again.
const TURNS: usize = 8;

impl Vault {
    /// Applies what a verified answer says to a payment that was read just now, and gives the row as it stands
    /// then. `own` is the card data that the answered call carried; it is looked for and taken out before
    /// anything is kept.
    pub(in crate::ops) async fn settle(
        &self,
        row: PaymentRow,
        answer: &Verified<'_>,
        verdict: Verdict,
        source: Source,
        own: Own<'_>,
    ) -> Result<PaymentRow, OpError> {
        let token = card_token(answer.text());
        let own = Own { token: token.as_ref().or(own.token), ..own };
        let scrubbed = scrub(answer.text(), own)
            .ok_or_else(|| OpError::Internal(anyhow::anyhow!("a verified answer is not JSON")))?;
        self.settle_scrubbed(row, &scrubbed, verdict, source, token.as_ref()).await
    }

    /// As [`Self::settle`], for an answer that is scrubbed already; `token` is what was taken out of it.
    pub(super) async fn settle_scrubbed(
        &self,
        row: PaymentRow,
        scrubbed: &str,
        verdict: Verdict,
        source: Source,
        token: Option<&SecretText>,
    ) -> Result<PaymentRow, OpError> {
        let (scrubbed, token_card) = self.keep_token(&row, scrubbed, verdict, token).await?;
        let facts = Facts::read(&scrubbed);
        let answer = KeptAnswer::json(source, &scrubbed);
        let mut sealed: Option<(Sealed, i64)> = None;
        let mut now = row;
        for turn in 0..TURNS {
            if turn > 0 {
                now = self.find_again(&now).await?;
            }
            let to = match next(now.status, verdict, source) {
                Some(to) => to,
                // An answer that settles nothing is kept for people to see, while nothing better is known.
                None if now.status == Status::Unknown
                    && verdict == Verdict::Unclear
                    && source == Source::Pay =>
                {
                    Status::Unknown
                }
                None if self.tells_more(&now, verdict, &scrubbed, &facts).await => now.status,
                None => {
                    let token_card = token_card.as_ref();
                    return match self.keep_late(&now, verdict, &scrubbed, &facts, token_card, source).await? {
                        true => self.find_again(&now).await,
                        false => Ok(now),
                    };
                }
            };
            if turn > 0 {
                // What was sealed under keys that have changed since is not stored.
                self.keys.follow().await?;
                sealed = sealed.filter(|(_, epoch)| *epoch == self.keys.epoch());
            }
            let (kept, epoch) = match &mut sealed {
                Some(sealed) => &*sealed,
                none => none.insert(self.seal_answer(&now, &answer)?),
            };
            // A look that is due may have been asked for by another notification, for what this one does not
            // tell: the gateway's own capture, say, which came first.
            let look = self.look_after_change(&now, to, &facts, &scrubbed, token_card.is_some());
            let next_look = match (look, source) {
                // It tells of what is settled; nothing that is waited for has come to an end.
                (NextLook::At(None), _) if to == now.status => NextLook::Keep,
                (NextLook::At(at), Source::Notification) => NextLook::AtUnlessDue(at),
                (look, _) => look,
            };
            let change = Change {
                from: now.status,
                to,
                payment_id: facts.payment_id.as_deref(),
                result_code: facts.result_code.as_deref(),
                result_status: facts.result_status.as_deref(),
                settled_by: (to != now.status && to.is_final()).then(|| source.name()),
                answer: Some((kept, *epoch)),
                decline: if to == Status::Failed { Decline::of_answer(&scrubbed) } else { None },
                token_card_id: token_card.as_ref(),
                auth_expires_at: facts.auth_expires_at,
                auth_review: facts.review(&now, source),
                next_look,
                attempt: None,
                version: Some(now.version),
                now: self.next_moment(&now),
            };
            let brings = now.card_id.as_ref().filter(|_| now.retyped && to == Status::Authorized);
            let _turn = match brings {
                Some(card) => Some(self.queues.turn(card).await),
                None => None,
            };
            let typed = match brings {
                Some(card) => self.typed_with(&now, card).await?,
                None => None,
            };
            if let Some(after) = self.change(&now, &change, Some((&answer, source)), typed.as_ref()).await? {
                if to != now.status {
                    after_change(&now, to, source);
                }
                return Ok(after);
            }
        }
        Err(OpError::Unavailable(anyhow::anyhow!("a payment is being changed by many at once")))
    }

    /// An answer as it is kept, and the epoch of the keys in which it was sealed.
    fn seal_answer(&self, row: &PaymentRow, answer: &str) -> Result<(Sealed, i64), OpError> {
        let epoch = self.keys.epoch();
        let dek = self.keys.active(Purpose::Card)?;
        let record = record_name(&row.account, &row.payment_request_id);
        let place = Place { merchant: &row.merchant, record: &record, field: Field::GatewayAnswer };
        Ok((envelope::seal(&dek, &place, &SecretBuf::from_vec(answer.as_bytes().to_vec()))?, epoch))
    }

    /// Keeps the card that a paid payment's answer tells under Antom's token, where the request asked for
    /// it, and puts its reference in the token's place.
    async fn keep_token(
        &self,
        row: &PaymentRow,
        scrubbed: &str,
        verdict: Verdict,
        token: Option<&SecretText>,
    ) -> Result<(String, Option<CardId>), OpError> {
        let Some(token) = token.filter(|_| row.wants_token && verdict == Verdict::Paid) else {
            return Ok((scrubbed.to_owned(), None));
        };
        let card = self.card_for_token(&row.merchant, token, row.buyer.as_deref()).await?;
        let own = Own { token: Some(token), token_card: Some(&card.card_id), ..Own::default() };
        let text = scrub(scrubbed, own)
            .ok_or_else(|| OpError::Internal(anyhow::anyhow!("a verified answer is not JSON")))?;
        Ok((text, Some(card.card_id)))
    }

    /// When the gateway is asked again once a payment has this status.
    fn look_after_change(
        &self,
        row: &PaymentRow,
        to: Status,
        facts: &Facts,
        scrubbed: &str,
        has_token: bool,
    ) -> NextLook {
        let after = |waits| pause(waits, 0, row.payment_request_id.as_str()).map(|gap| self.now().plus(gap));
        match to {
            Status::Unknown => NextLook::Keep,
            Status::Processing => {
                let waits = if facts.sends_buyer { Waits::Buyer } else { Waits::Gateway };
                NextLook::At(after(waits))
            }
            Status::Authorized => {
                let id =
                    row.agreement_id.is_some() && !ChainIds::of_answer(scrubbed).has_network_transaction_id();
                let token = row.wants_token && row.token_card_id.is_none() && !has_token;
                let review = facts.auth_review.as_deref() == Some(UNDER_REVIEW);
                // A cancel of the vault's own that is still out may take effect.
                let cancel = row.cancel.as_ref().is_some_and(|cancel| cancel.state == CancelState::Open);
                NextLook::At(if id || token || review || cancel { after(Waits::Detail) } else { None })
            }
            Status::Failed | Status::Cancelled => NextLook::At(None),
        }
    }

    /// Applies a change to a payment as it was read, with the event of a new status in the same
    /// transaction, and gives the payment as it is then; none where it has another status by now, the keys have
    /// changed since its answer was sealed, or the card whose details were `typed` with it has others. `answer` is
    /// what the change seals.
    pub(super) async fn change(
        &self,
        before: &PaymentRow,
        change: &Change<'_>,
        answer: Option<(&str, Source)>,
        typed: Option<&ReadyDetails>,
    ) -> Result<Option<PaymentRow>, OpError> {
        let moves = change.to != change.from;
        let event = match moves {
            false => None,
            true => {
                let view = Self::view_after(before, change, answer.map(|(text, _)| text));
                ReadyEvent::of_payment(&before.merchant, &view)?
            }
        };
        let by = change.settled_by.or(answer.map(|(_, source)| source.name())).unwrap_or("vault");
        let id = before.payment_request_id.as_str();
        let note = if moves {
            Some(Entry::done("payment.change", id).with(format!("{} by {by}", change.to.name())))
        } else {
            before.status.is_final().then(|| Entry::done("payment.learn", id).with(by))
        };
        let tells = event.is_some() || typed.is_some_and(|typed| typed.event.is_some());
        let (after, news) = match note {
            // Neither an agreement nor a card has to do with it.
            Some(note)
                if before.agreement_id.is_none() && change.token_card_id.is_none() && typed.is_none() =>
            {
                let values = rows::change_values(&before.account, &before.payment_request_id, change);
                let alone = (&rows::CHANGE, values.as_slice());
                let row = self.statements.run(alone, event, note).await?;
                (row.as_ref().map(rows::payment_row).transpose()?, false)
            }
            note => self.change_with_others(before, change, answer, event.as_ref(), note, typed).await?,
        };
        if after.is_some() {
            if moves {
                self.metrics.payment(change.to);
            }
            if tells || news {
                self.bell.ring_written();
            }
        }
        Ok(after)
    }

    /// As [`Self::change`], with what it means for the payment's agreement, for its card, and for the card that
    /// the gateway holds; and whether that is news of the agreement for the feed.
    async fn change_with_others(
        &self,
        before: &PaymentRow,
        change: &Change<'_>,
        answer: Option<(&str, Source)>,
        event: Option<&ReadyEvent>,
        note: Option<Entry>,
        typed: Option<&ReadyDetails>,
    ) -> Result<(Option<PaymentRow>, bool), OpError> {
        let mut tx = self.begin().await?;
        let after =
            rows::change_payment(&mut tx, &before.account, &before.payment_request_id, change).await?;
        if after.is_none() {
            tx.rollback().await?;
            return Ok((None, false));
        }
        if let Some(card) = change.token_card_id {
            self.keep_token_card(&mut tx, &before.merchant, card).await?;
        }
        if let Some(typed) = typed {
            if update_details(&mut tx, &[&typed.new]).await? != [true] {
                tx.rollback().await?;
                return Ok((None, false));
            }
            if let Some(event) = &typed.event {
                event.insert(&mut tx).await?;
            }
            tx.note(&typed.note).await?;
        }
        if let Some(event) = event {
            event.insert(&mut tx).await?;
        }
        let news = self.carry_over(&mut tx, before, change).await?;
        if let (Status::Authorized, Some((text, source))) = (change.to, answer) {
            let ids = ChainIds::of_answer(KeptAnswer::answer(text).unwrap_or_default());
            self.keep_ids(&mut tx, before, &ids, source.name(), change.now).await?;
        }
        if let (Some(agreement), Some(card)) = (&before.agreement_id, change.token_card_id) {
            attach_card(&mut tx, &before.merchant, agreement, card, change.now).await?;
        }
        if let Some(note) = &note {
            tx.note(note).await?;
        }
        tx.commit().await?;
        Ok((after, news))
    }

    /// The time of a payment's next change: now, and later than its last one, so that its events are
    /// numbered in their order even where clocks differ or a millisecond sees two.
    pub(super) fn next_moment(&self, before: &PaymentRow) -> Millis {
        self.now().max(before.updated_at.plus(Duration::from_millis(1)))
    }

    /// A payment as a change will leave it. An older answer is not opened for it: nothing that is only
    /// shown may stand in the way of a settlement.
    fn view_after(before: &PaymentRow, change: &Change<'_>, answer: Option<&str>) -> PaymentView {
        let before = Self::shown(before, answer.map(str::to_owned));
        PaymentView {
            status: change.to,
            payment_id: change.payment_id.map(str::to_owned).or(before.payment_id),
            card_id: before.card_id.or_else(|| change.token_card_id.map(ToString::to_string)),
            settled_by: change.settled_by.map(str::to_owned).or(before.settled_by),
            updated_at: change.now,
            ..before
        }
    }

    /// An answer that changes no status may still tell what is waited for: the network transaction id of an
    /// agreement's first payment, Antom's token, the end of the authorisation, its review. `true` where
    /// something was written.
    async fn keep_late(
        &self,
        payment: &PaymentRow,
        verdict: Verdict,
        scrubbed: &str,
        facts: &Facts,
        token_card: Option<&CardId>,
        source: Source,
    ) -> Result<bool, OpError> {
        if verdict != Verdict::Paid || payment.status != Status::Authorized {
            return Ok(false);
        }
        let ids = ChainIds::of_answer(scrubbed);
        let review = facts.review(payment, source);
        let begins = review == Some(UNDER_REVIEW) && payment.auth_review.is_none();
        let news = (facts.auth_expires_at.is_some() && facts.auth_expires_at != payment.auth_expires_at)
            || (review.is_some() && review != payment.auth_review.as_deref())
            || (token_card.is_some() && payment.token_card_id.is_none());
        let wanted = payment.agreement_id.is_some() && !ids.is_empty();
        if !news && !wanted {
            return Ok(false);
        }
        let now = self.now();
        let mut tx = self.begin().await?;
        if let Some(card) = token_card {
            self.keep_token_card(&mut tx, &payment.merchant, card).await?;
        }
        let gap = pause(Waits::Detail, 0, payment.payment_request_id.as_str()).filter(|_| begins);
        let late = rows::LateFacts {
            auth_expires_at: facts.auth_expires_at,
            auth_review: review,
            token_card_id: token_card,
            look: gap.map(|gap| now.plus(gap)),
        };
        rows::keep_facts(&mut tx, payment, &late).await?;
        self.keep_ids(&mut tx, payment, &ids, source.name(), now).await?;
        if let (Some(agreement), Some(card)) = (&payment.agreement_id, token_card) {
            attach_card(&mut tx, &payment.merchant, agreement, card, now).await?;
        }
        tx.note(&Entry::done("payment.learn", payment.payment_request_id.as_str()).with(source.name()))
            .await?;
        tx.commit().await?;
        Ok(true)
    }

    /// Whether an answer that changes no status tells what the kept one does not: the page that a payment in process
    /// waits for, or more of what issuer and scheme said of one that is settled.
    async fn tells_more(&self, now: &PaymentRow, verdict: Verdict, scrubbed: &str, facts: &Facts) -> bool {
        match (now.status, verdict) {
            // What cannot be read now is not replaced: this is for showing.
            (Status::Processing, Verdict::InProcess) => {
                facts.sends_buyer && !self.sends_buyer(now).await.unwrap_or(true)
            }
            (Status::Authorized, Verdict::Paid) | (Status::Failed, Verdict::Failed) => {
                let told = Object::parse(scrubbed).and_then(|told| told.get(RESULT_INFO));
                let Some(told) = told else { return false };
                let kept = match &now.answer {
                    None => return true,
                    Some(sealed) => self.open_answer(now, sealed).await,
                };
                let Ok(kept) = kept else { return false };
                let kept = KeptAnswer::answer(&kept).and_then(Object::parse);
                kept.is_none_or(|kept| adds_to(told, kept.get(RESULT_INFO)))
            }
            _ => false,
        }
    }

    /// A card that the gateway has told is taken by its payment, and stays; where its time was over and it
    /// was erased just now, the next look at the gateway brings it again.
    async fn keep_token_card(&self, tx: &mut Tx, merchant: &Merchant, card: &CardId) -> Result<(), OpError> {
        if use_card(tx, merchant, card, self.now()).await? {
            return Ok(());
        }
        Err(OpError::Unavailable(anyhow::anyhow!("a card was erased while its payment was settled")))
    }

    pub(in crate::ops) async fn find_again(&self, row: &PaymentRow) -> Result<PaymentRow, OpError> {
        rows::find_payment(&self.db, &row.account, &row.payment_request_id)
            .await?
            .ok_or_else(|| OpError::Internal(anyhow::anyhow!("a payment's row is gone")))
    }

    /// What was typed with a payment that named a known card by its number: it is right once the payment has
    /// succeeded, and becomes the card's in that very transaction, in which the payment's copy of it goes. None
    /// where the card is gone, or the copy cannot be read: neither may stand in the way of a settlement.
    async fn typed_with(&self, before: &PaymentRow, card: &CardId) -> Result<Option<ReadyDetails>, OpError> {
        let Some(row) = find_card(&self.db, &before.merchant, card).await? else { return Ok(None) };
        // As it was read, its copy may be under a key that has been destroyed since, and by now be under another.
        let again = match &before.outgoing {
            None => return Ok(None),
            Some(outgoing) if self.keys.of(outgoing).await.is_ok() => None,
            Some(_) => Some(self.find_again(before).await?),
        };
        let Some(outgoing) = &again.as_ref().unwrap_or(before).outgoing else { return Ok(None) };
        let ready = async {
            let dek = self.keys.of(outgoing).await?;
            let record = record_name(&before.account, &before.payment_request_id);
            let place = Place { merchant: &before.merchant, record: &record, field: Field::Outgoing };
            let template = Template::from_bytes(&envelope::open(&dek, &place, outgoing)?)
                .map_err(|error| OpError::Internal(error.into()))?;
            match typed_details(&template) {
                Some(details) => self.ready_retype(&before.merchant, &row, &details).await.map(Some),
                None => Ok(None),
            }
        };
        match ready.await {
            // What is away for now is away for the settlement too, which is tried again.
            Err(error @ (OpError::Unavailable(_) | OpError::Unclear(_) | OpError::Sealed)) => Err(error),
            Err(error) => {
                let id = &before.payment_request_id;
                tracing::error!(alarm = true, payment = %id, %error, "the card's details could not be updated by its payment");
                Ok(None)
            }
            Ok(ready) => Ok(ready),
        }
    }

    /// Asks the gateway what became of a payment. An answer that cannot be trusted changes nothing.
    pub(in crate::ops) async fn inquire(
        &self,
        row: &PaymentRow,
    ) -> Result<(PaymentRow, Option<Verdict>), OpError> {
        let gateway = self.gateway(&row.account)?;
        let amount = Amount::from_wire(&row.currency, &row.amount)
            .map_err(|_| OpError::Internal(anyhow::anyhow!("a payment's amount cannot be read")))?;
        let body = json::ObjectWriter::default()
            .string("paymentRequestId", row.payment_request_id.as_str())
            .finish();
        let exchange = gateway.call(Call::InquiryPayment, SecretBuf::from_vec(body.into_bytes())).await;
        let answer = match exchange {
            Exchange::Answered(answer) => answer,
            Exchange::NotSent(reason) | Exchange::NoAnswer(reason) => {
                tracing::warn!(payment = %row.payment_request_id, reason, "an inquiry brought no answer");
                return Ok((self.find_again(row).await?, None));
            }
        };
        let expected = Expected { payment_request_id: &row.payment_request_id, amount: &amount };
        match read_inquiry(&answer.verified(), &expected) {
            Reading::Says(verdict) => {
                let (row, own) = (self.find_again(row).await?, Own::default());
                let row = self.settle(row, &answer.verified(), verdict, Source::Inquiry, own).await?;
                self.learn_transactions(&row, &answer.verified()).await?;
                Ok((self.find_again(&row).await?, Some(verdict)))
            }
            Reading::Disagrees => {
                tracing::error!(
                    alarm = true, payment = %row.payment_request_id,
                    "a signed inquiry answer speaks of another payment or amount"
                );
                Ok((self.find_again(row).await?, None))
            }
        }
    }
}

/// `authReviewStatus` while somebody looks at the authorisation.
pub(super) const UNDER_REVIEW: &str = "PROCESSING";
/// What issuer and scheme said.
const RESULT_INFO: &str = "paymentResultInfo";

/// Whether an object has all members of another, and more.
fn adds_to(told: &str, kept: Option<&str>) -> bool {
    let Some(told) = Object::parse(told) else { return false };
    let Some(kept) = kept.and_then(Object::parse) else { return told.iter().next().is_some() };
    kept.iter().all(|(name, _)| told.get(name).is_some()) && told.iter().count() > kept.iter().count()
}

/// What of an answer stands in columns of its own.
struct Facts {
    payment_id: Option<String>,
    result_code: Option<String>,
    result_status: Option<String>,
    auth_expires_at: Option<Millis>,
    auth_review: Option<String>,
    /// Whether the buyer is sent somewhere.
    sends_buyer: bool,
}

impl Facts {
    fn read(scrubbed: &str) -> Self {
        let text = |raw: Option<&str>| {
            raw.and_then(json::string).map(|text| text.into_owned()).filter(|text| text.len() <= 64)
        };
        let object = Object::parse(scrubbed);
        let top = |name: &str| object.as_ref().and_then(|object| object.get(name));
        let result = top("result").and_then(Object::parse);
        let inner = |name: &str| result.as_ref().and_then(|result| result.get(name));
        Self {
            payment_id: text(top("paymentId")),
            result_code: text(inner("resultCode")),
            result_status: text(inner("resultStatus")),
            auth_expires_at: text(top("authExpiryTime")).and_then(|text| parse_time(&text)),
            auth_review: text(top("authReviewStatus")),
            sends_buyer: REDIRECTS.iter().any(|name| top(name).is_some()),
        }
    }

    /// The review as it stands now. A notification that says that it goes on may come after one that told its end.
    fn review(&self, payment: &PaymentRow, source: Source) -> Option<&str> {
        let is_late = |review: &str| {
            source == Source::Notification && review == UNDER_REVIEW && payment.auth_review.is_some()
        };
        self.auth_review.as_deref().filter(|review| !is_late(review))
    }
}

fn after_change(before: &PaymentRow, to: Status, source: Source) {
    let id = &before.payment_request_id;
    if before.status.is_final() {
        tracing::error!(
            alarm = true, payment = %id, from = before.status.name(), to = to.name(),
            "the gateway changed its word about a settled payment"
        );
    } else {
        tracing::info!(payment = %id, from = before.status.name(), to = to.name(), by = source.name(), "payment changed");
    }
}

/// Expiry, name and address as a pay body carries them.
fn typed_details(template: &Template) -> Option<Details> {
    let body = template.masked("");
    let top = Object::parse(&body)?;
    let method = Object::parse(top.get("paymentMethod")?)?;
    let metadata = Object::parse(method.get("paymentMethodMetaData")?)?;
    let mut out = json::ObjectWriter::default();
    for name in ["expiryMonth", "expiryYear", "cardholderName"] {
        if let Some(raw) = metadata.get(name) {
            out.raw(name, raw);
        }
    }
    let address =
        metadata.get("billingAddress").map(|raw| crate::model::card::Parts::address(raw, "", false));
    let mut details = Details::from_json(&out.finish())?;
    details.address = address.and_then(Result::ok);
    Some(details)
}
