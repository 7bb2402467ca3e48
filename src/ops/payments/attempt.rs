//! After the intent is durable: send, read the answer, and follow up where there is none.
//!
//! Only the process that sent a payment repeats it, with the same id and the same bytes, before the
//! attempt's deadline, and only after the gateway has said in a verified answer that it does not know
//! the payment. Its CVV waits for that repeat, sealed in memory, and is gone at the first verified
//! answer to the pay call, at the deadline, or with the process.

use std::sync::Arc;

use crate::base::secret::{SecretBuf, SecretText};
use crate::base::stack::leaving_nothing;
use crate::gateway::antom::answer::{Expected, Reading, read_pay};
use crate::gateway::antom::body::Instrument;
use crate::gateway::antom::scrub::{Own, card_token, scrub};
use crate::gateway::antom::verify::VerifiedText;
use crate::gateway::{Call, Exchange, Signed};
use crate::model::pay_request::Sensitive;
use crate::model::payment::{Source, Status, Verdict};
use crate::model::payment_view::PaymentView;
use crate::store::cards::{self as card_rows, find_card};
use crate::store::payments as rows;
use crate::store::payments::{Change, NextLook, PaymentRow};

use super::super::Vault;
use super::super::error::OpError;
use super::prepare::{Attempt, unpack};

/// What an attempt keeps between its sends.
pub(super) struct Held {
    attempt: Attempt,
    /// What is known and not recorded yet, because the database was away.
    finding: Option<Finding>,
}

impl Held {
    /// An attempt whose sender's time is over: it is sent once more, and not followed.
    pub(super) fn over(attempt: Attempt) -> Self {
        Self { attempt, finding: None }
    }
}

/// What one send of the pay call came to, where that is anything.
enum Finding {
    /// The gateway answered.
    Says(Said),
    /// Provably nothing was sent.
    NotSent,
}

/// What a verified answer says of a payment.
struct Said {
    /// The answer without the CVV that its own call carried.
    text: SecretText,
    verdict: Verdict,
    /// Antom's token, where the answer told one.
    token: Option<SecretText>,
    /// Whether the card's number, or its token, is out of the text too. Where it could not be opened just now,
    /// that is done before the text is recorded.
    is_clean: bool,
}

impl Vault {
    /// Sends a recorded payment for the first time and tells what is known then.
    pub(super) async fn send_first(
        self: &Arc<Self>,
        attempt: Box<Attempt>,
        signed: Signed,
    ) -> Result<PaymentView, OpError> {
        let mut held = Held { attempt: *attempt, finding: None };
        let exchange = self.send_in_time(&held.attempt, signed).await;
        self.take_answer(&mut held, exchange).await;
        let recorded = self.record_finding(&mut held).await;
        // From here on the request may have arrived: no failure may say that nothing was sent, and none
        // may end the search for the outcome.
        if !recorded.as_ref().is_ok_and(|row| row.status != Status::Unknown) {
            self.follow_up(held);
        }
        let row = recorded.map_err(not_recorded)?;
        self.view(&row).await.map_err(not_recorded)
    }

    /// Sends a payment, unless the database or this process have taken so long since it was asked for that
    /// others look after it, and may have cancelled it.
    pub(super) async fn send_in_time(&self, attempt: &Attempt, signed: Signed) -> Exchange {
        if self.clock.instant() >= attempt.deadline {
            return Exchange::NotSent("the time to send the payment was over");
        }
        attempt.gateway.send(signed).await
    }

    async fn row_of(&self, attempt: &Attempt) -> Result<PaymentRow, OpError> {
        rows::find_payment(&self.db, &attempt.account, &attempt.id)
            .await?
            .ok_or_else(|| OpError::Internal(anyhow::anyhow!("a payment's row is gone")))
    }

    /// Reads what a pay call came to. A signed answer ends the CVV, whatever it says: a decline completes
    /// an authorization too.
    pub(super) async fn take_answer(&self, held: &mut Held, exchange: Exchange) {
        held.finding = match exchange {
            Exchange::Answered(answer) => {
                let finding = self.read_answer(held, &answer).await;
                held.attempt.sensitive = None;
                finding
            }
            Exchange::NotSent(reason) if held.attempt.never_repeated() => {
                tracing::warn!(payment = %held.attempt.id, reason, "a payment was not sent");
                held.attempt.sensitive = None;
                Some(Finding::NotSent)
            }
            Exchange::NotSent(reason) | Exchange::NoAnswer(reason) => {
                tracing::warn!(payment = %held.attempt.id, reason, "a payment has no answer");
                None
            }
        };
    }

    /// What a signed answer says of this payment, without the CVV that its own call carried.
    async fn read_answer(&self, held: &Held, answer: &VerifiedText) -> Option<Finding> {
        let attempt = &held.attempt;
        let expected = Expected { payment_request_id: &attempt.id, amount: &attempt.amount };
        let Reading::Says(verdict) = read_pay(&answer.verified(), &expected) else {
            tracing::error!(
                alarm = true, payment = %attempt.id,
                "a signed answer speaks of another payment or amount"
            );
            return None;
        };
        let sensitive = self.open_sensitive(held);
        let cvv = sensitive.as_ref().and_then(|sensitive| sensitive.cvv.as_ref());
        let text = answer.verified().text().to_owned();
        let token = card_token(&text);
        let own = Own { cvv, token: token.as_ref(), ..Own::default() };
        let (text, is_clean) = match (&attempt.card, &attempt.card_row) {
            (None, _) => (scrub(&text, own)?, true),
            (Some(_), Some(row)) if matches!(row.held, card_rows::Held::Pan(_)) => {
                let with_pan = |card: Instrument<'_>| match card {
                    Instrument::Pan(pan) => scrub(&text, Own { pan: Some(pan), ..own }),
                    Instrument::Token(_) => None,
                };
                match self.with_instrument(&attempt.merchant, row, with_pan).await {
                    Ok(Some(clean)) => (clean, true),
                    _ => (scrub(&text, own)?, false),
                }
            }
            _ => (scrub(&text, own)?, false),
        };
        Some(Finding::Says(Said { text: SecretText::new(text), verdict, token, is_clean }))
    }

    /// Records what is known, if anything, and gives the row as it stands then.
    pub(super) async fn record_finding(&self, held: &mut Held) -> Result<PaymentRow, OpError> {
        // As it was recorded is as it is, if nobody has changed it since, which recording an answer finds out.
        let row = match (held.attempt.row.take(), &held.finding) {
            (Some(row), Some(_)) => *row,
            _ => self.row_of(&held.attempt).await?,
        };
        let row = match &held.finding {
            None => row,
            Some(Finding::NotSent) => self.fail_unsent(&row, &held.attempt.name).await?,
            Some(Finding::Says(said)) => {
                let (text, token) = (said.text.expose(), said.token.as_ref());
                let scrubbed = match said.is_clean {
                    true => text.to_owned(),
                    false => self.scrub_card(&held.attempt, text).await?,
                };
                self.settle_scrubbed(row, &scrubbed, said.verdict, Source::Pay, token).await?
            }
        };
        held.finding = None;
        Ok(row)
    }

    /// The answer without the card's number, or Antom's token of it, that its own call carried.
    async fn scrub_card(&self, attempt: &Attempt, text: &str) -> Result<String, OpError> {
        let card = match &attempt.card {
            Some(id) => find_card(&self.db, &attempt.merchant, id).await?,
            None => None,
        };
        let scrubbed = match card {
            Some(row) => {
                let own = |card: Instrument<'_>| match card {
                    Instrument::Pan(pan) => scrub(text, Own { pan: Some(pan), ..Own::default() }),
                    Instrument::Token(token) => {
                        let own =
                            Own { token: Some(token), token_card: Some(&row.card_id), ..Own::default() };
                        scrub(text, own)
                    }
                };
                self.with_instrument(&attempt.merchant, &row, own).await?
            }
            None => scrub(text, Own::default()),
        };
        scrubbed.ok_or_else(|| OpError::Internal(anyhow::anyhow!("a verified answer is not JSON")))
    }

    fn open_sensitive(&self, held: &Held) -> Option<Sensitive> {
        let sealed = held.attempt.sensitive.as_ref()?;
        let bytes = self.process_key.open(held.attempt.name.as_bytes(), sealed).ok()?;
        unpack(&bytes)
    }

    /// A payment of which provably nothing was sent has failed, once that is durable. Where another has taken
    /// the payment over meanwhile, and so may have sent it, it is his.
    async fn fail_unsent(&self, row: &PaymentRow, attempt: &str) -> Result<PaymentRow, OpError> {
        let change = Change {
            from: Status::Unknown,
            to: Status::Failed,
            payment_id: None,
            result_code: None,
            result_status: None,
            settled_by: Some("not_sent"),
            answer: None,
            decline: None,
            token_card_id: None,
            auth_expires_at: None,
            auth_review: None,
            next_look: NextLook::At(None),
            attempt: Some(attempt),
            version: None,
            now: self.next_moment(row),
        };
        match self.change(row, &change, None, None).await? {
            Some(after) => Ok(after),
            None => self.find_again(row).await,
        }
    }

    /// Asks after a payment without a clear answer until it has one, or its attempt is over.
    fn follow_up(self: &Arc<Self>, held: Held) {
        let vault = Arc::clone(self);
        tokio::spawn(leaving_nothing(async move { vault.follow(held).await }));
    }

    async fn follow(self: Arc<Self>, mut held: Held) {
        let pauses = self.policy.inquiry_pauses.clone();
        let last = pauses.last().copied().unwrap_or(std::time::Duration::from_secs(5));
        for pause in pauses.into_iter().chain(std::iter::repeat(last)) {
            let left = held.attempt.deadline.saturating_duration_since(self.clock.instant());
            if left.is_zero() {
                held.attempt.sensitive = None;
                // An answer that is known outlasts the attempt: only the database is waited for.
                if held.finding.is_none() {
                    break;
                }
            }
            let pause = if left.is_zero() { pause } else { pause.min(left) };
            tokio::select! {
                () = self.clock.sleep(pause) => {}
                () = self.running.closing() => return,
            }
            let _running = self.running.begin();
            match self.follow_once(&mut held).await {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(payment = %held.attempt.id, error = &error as &dyn std::error::Error, "following up a payment failed");
                }
            }
        }
        held.attempt.sensitive = None;
        tracing::warn!(payment = %held.attempt.id, "a payment has no outcome in its sender's time; it is looked after");
    }

    /// Records what could not be recorded, or inquires and repeats where that is called for; `true` where
    /// there is nothing left to do.
    async fn follow_once(self: &Arc<Self>, held: &mut Held) -> Result<bool, OpError> {
        let row = self.record_finding(held).await?;
        if row.status != Status::Unknown {
            return Ok(true);
        }
        let (row, verdict) = self.inquire_and_wipe(&row, held).await?;
        if row.status != Status::Unknown {
            return Ok(true);
        }
        if verdict == Some(Verdict::NotExist) && self.clock.instant() < held.attempt.deadline {
            return self.send_again(&row, held).await;
        }
        Ok(false)
    }

    /// Inquires; the CVV does not wait for an answer that comes after the deadline.
    async fn inquire_and_wipe(
        &self,
        row: &PaymentRow,
        held: &mut Held,
    ) -> Result<(PaymentRow, Option<Verdict>), OpError> {
        let left = held.attempt.deadline.saturating_duration_since(self.clock.instant());
        let mut inquiry = std::pin::pin!(self.inquire(row));
        tokio::select! {
            told = &mut inquiry => return told,
            () = self.clock.sleep(left) => held.attempt.sensitive = None,
        }
        inquiry.await
    }

    /// Sends the same bytes again, under the same id.
    async fn send_again(&self, row: &PaymentRow, held: &mut Held) -> Result<bool, OpError> {
        let Some(body) = self.fill_again(held).await? else { return Ok(false) };
        let attempt = &held.attempt;
        if !rows::note_resend(&self.db, &attempt.account, &attempt.id, &attempt.name, self.now()).await? {
            return Ok(false);
        }
        held.attempt.sends += 1;
        tracing::info!(payment = %row.payment_request_id, "repeating a payment that the gateway does not know");
        let signed = held.attempt.gateway.sign(Call::Pay, body);
        let exchange = self.send_in_time(&held.attempt, signed).await;
        self.take_answer(held, exchange).await;
        Ok(self.record_finding(held).await?.status != Status::Unknown)
    }

    /// The bytes that were sent; none where what they need is gone (the CVV was answered, the card was
    /// erased).
    async fn fill_again(&self, held: &Held) -> Result<Option<SecretBuf>, OpError> {
        let sensitive = self.open_sensitive(held).unwrap_or_default();
        let attempt = &held.attempt;
        let Some(id) = &attempt.card else { return Ok(attempt.template.fill(None, &sensitive).ok()) };
        let Some(row) = find_card(&self.db, &attempt.merchant, id).await? else { return Ok(None) };
        let fill = |card: Instrument<'_>| attempt.template.fill(Some(card), &sensitive).ok();
        self.with_instrument(&attempt.merchant, &row, fill).await
    }
}

/// The request was sent and its outcome could not be recorded.
fn not_recorded(error: OpError) -> OpError {
    OpError::OutcomeNotKnown(error.into())
}
