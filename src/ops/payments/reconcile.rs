//! Looks after payments whose outcome is not clear once their sender's time is over, and after what a paid
//! one has still to tell: across restarts, and with any number of processes on one database. A payment is
//! taken by lease, so that none does the work of another; what a look does is safe to do twice all the same.
//!
//! A look inquires first. What stays UNKNOWN is sent again only where the gateway has said that it does not
//! know it and nothing that may not be kept went with it; all else is cancelled. A payment that was once
//! cancelled is never sent again.

use std::sync::Arc;
use std::time::Duration;

use crate::base::clock::Millis;
use crate::base::ids::InstanceId;
use crate::base::json::Object;
use crate::base::money::Amount;
use crate::crypto::aad::{Field, Place};
use crate::crypto::envelope;
use crate::gateway::antom::answer::CancelReading;
use crate::gateway::antom::body::{Instrument, Template};
use crate::gateway::{Call, Exchange};
use crate::model::look::{Waits, pause};
use crate::model::pay_request::Sensitive;
use crate::model::payment::{Status, Verdict};
use crate::model::payment_view::{KeptAnswer, REDIRECTS};
use crate::store::agreements::find_agreement;
use crate::store::cards::find_card;
use crate::store::operations::{self, OperationRow};
use crate::store::payments as rows;
use crate::store::payments::{CancelState, Change, NextLook, PaymentRow};

use super::super::Vault;
use super::super::error::OpError;
use super::attempt::Held;
use super::prepare::Attempt;
use super::record_name;
use super::settle::UNDER_REVIEW;

/// How long a gateway may take to let a request arrive: only what is not known this long after the last
/// send does not exist (DESIGN: absence).
const ARRIVAL: Duration = Duration::from_secs(15 * 60);
/// How long a payment may be sent again. A charge that comes later than that surprises.
const REPEATS: Duration = Duration::from_secs(15 * 60);
/// After so many looks in vain somebody is called.
const ALARM_AFTER: i64 = 6;
/// The same for a payment on which the gateway says that it works: some ten minutes.
const ALARM_WHILE_PROCESSING: i64 = 10;
/// How long after a payment's end one looks what has become of it.
const AFTER_EXPIRY: Duration = Duration::from_secs(5);

/// Something that is due for a look, taken for this process.
pub enum Due {
    /// A payment.
    Payment(Box<PaymentRow>),
    /// A capture or a refund.
    Operation(Box<OperationRow>),
}

impl Vault {
    /// Takes what is due, at most `limit` of each kind, the longest due first.
    pub async fn take_due(&self, limit: i64) -> Result<Vec<Due>, OpError> {
        let now = self.now();
        let until = now.plus(self.policy.look_lease);
        let mut taken = Vec::new();
        for row in rows::list_due(&self.db, now, limit).await? {
            if rows::claim(&self.db, &row, &self.instance, now, until).await? {
                taken.push(Due::Payment(Box::new(row)));
            }
        }
        for row in operations::list_due(&self.db, now, limit).await? {
            if operations::claim(&self.db, &row, &self.instance, now, until).await? {
                taken.push(Due::Operation(Box::new(row)));
            }
        }
        Ok(taken)
    }

    /// Looks after one thing, and gives it back. A failure leaves it to a later look.
    pub async fn look_after(self: &Arc<Self>, due: Due) {
        let _running = self.running().begin();
        let done = match due {
            Due::Payment(row) => self.look_at_payment(&row).await,
            Due::Operation(row) => self.look_at_operation(&row).await,
        };
        self.metrics.look(done.is_ok());
        if let Err(error) = done {
            tracing::warn!(error = &error as &dyn std::error::Error, "a look at the gateway failed");
        }
    }

    /// Takes what is due and looks after it, one after the other; tells how much there was.
    pub async fn reconcile_once(self: &Arc<Self>, limit: i64) -> Result<usize, OpError> {
        let due = self.take_due(limit).await?;
        let count = due.len();
        for due in due {
            self.look_after(due).await;
        }
        Ok(count)
    }

    async fn look_at_payment(self: &Arc<Self>, taken: &PaymentRow) -> Result<(), OpError> {
        let waits = self.clear_up(taken).await;
        let next = match &waits {
            Ok(waits) => *waits,
            Err(_) => Some(Waits::Outcome),
        };
        let gap = next.and_then(|waits| pause(waits, taken.looks, taken.payment_request_id.as_str()));
        if next == Some(Waits::Detail) && gap.is_none() {
            tracing::error!(
                alarm = true, payment = %taken.payment_request_id,
                "a paid payment never told what its agreement, token or review waits for"
            );
        }
        let now = self.now();
        let next = gap.map(|gap| now.plus(gap)).map(|next| match taken.expires_at {
            // What ends by itself is looked at when it has.
            Some(end) if now < end && end < next => end.plus(AFTER_EXPIRY),
            _ => next,
        });
        rows::release(&self.db, taken, &self.instance, next).await?;
        waits.map(|_| ())
    }

    /// One look; tells what is still waited for.
    async fn clear_up(self: &Arc<Self>, taken: &PaymentRow) -> Result<Option<Waits>, OpError> {
        // What the gateway does not know is judged by when it was asked, however late it answers.
        let asked = self.now();
        let (row, verdict) = self.inquire(taken).await?;
        match row.status {
            Status::Unknown => self.clear_unknown(row, verdict, asked).await,
            Status::Processing => {
                if self.is_cancelling(&row) {
                    self.send_cancel(&row).await?;
                    return Ok(Some(Waits::Outcome));
                }
                if self.sends_buyer(&row).await? {
                    return Ok(Some(Waits::Buyer));
                }
                // It is the gateway's to end, and never cancelled from here; but somebody should know.
                if taken.looks >= ALARM_WHILE_PROCESSING {
                    tracing::error!(
                        alarm = true, payment = %row.payment_request_id,
                        "the gateway is still working on a payment"
                    );
                }
                Ok(Some(Waits::Gateway))
            }
            Status::Authorized => {
                let waits = self.complete_authorized(row, verdict, asked).await?;
                Ok(waits.or(unanswered(verdict)))
            }
            Status::Failed | Status::Cancelled => Ok(unanswered(verdict)),
        }
    }

    fn is_cancelling(&self, row: &PaymentRow) -> bool {
        row.cancel.as_ref().is_some_and(|cancel| cancel.state == CancelState::Open)
    }

    async fn clear_unknown(
        self: &Arc<Self>,
        row: PaymentRow,
        verdict: Option<Verdict>,
        asked: Millis,
    ) -> Result<Option<Waits>, OpError> {
        // A notification may have asked for a look while the sender still follows its payment: until its time
        // is over, nobody else repeats or cancels.
        let sender_follows = self.now() < row.created_at.plus(self.policy.attempt_deadline);
        if sender_follows && !self.is_cancelling(&row) {
            return Ok(Some(Waits::Outcome));
        }
        let unknown_there = verdict == Some(Verdict::NotExist);
        let repeatable = row.cancel.is_none() && !row.had_sensitive && self.may_repeat(&row);
        if unknown_there
            && repeatable
            && let Some(settled) = self.repeat_from_copy(&row).await?
        {
            return Ok((settled.status == Status::Unknown).then_some(Waits::Outcome));
        }
        let (now, id) = (self.now(), &row.payment_request_id);
        if !self.is_cancelling(&row) {
            let by_look = now.plus(self.policy.look_lease);
            // The look's own time stays: releasing it sets the next one.
            let next_look = row.next_look.unwrap_or(by_look);
            if !self.open_cancel(&row.account, id, false, next_look).await? {
                // It was settled since it was read, or somebody else cancels it.
                return Ok(Some(Waits::Outcome));
            }
        }
        let (row, reading) = self.send_cancel(&row).await?;
        if row.status != Status::Unknown {
            return Ok(None);
        }
        let arrived = row.sent_at.plus(ARRIVAL).max(row.expires_at.unwrap_or(row.sent_at));
        if unknown_there && reading == CancelReading::NotExist && asked > arrived {
            self.fail_absent(&row).await?;
            return Ok(None);
        }
        if row.looks >= ALARM_AFTER {
            tracing::error!(alarm = true, payment = %row.payment_request_id, "a payment's outcome is still unknown");
        }
        Ok(Some(Waits::Outcome))
    }

    fn may_repeat(&self, row: &PaymentRow) -> bool {
        let now = self.now();
        now < row.created_at.plus(REPEATS) && row.expires_at.is_none_or(|end| now < end)
    }

    /// Sends a payment's kept bytes again under the same id; none where it cannot: its card is gone, or
    /// another process has the right to.
    async fn repeat_from_copy(self: &Arc<Self>, row: &PaymentRow) -> Result<Option<PaymentRow>, OpError> {
        let Some(outgoing) = &row.outgoing else { return Ok(None) };
        let dek = self.keys.of(outgoing).await?;
        let record = record_name(&row.account, &row.payment_request_id);
        let place = Place { merchant: &row.merchant, record: &record, field: Field::Outgoing };
        let template = Template::from_bytes(&envelope::open(&dek, &place, outgoing)?)
            .map_err(|error| OpError::Internal(error.into()))?;
        let nothing = Sensitive::default();
        let body = match &row.card_id {
            None => template.fill(None, &nothing).ok(),
            Some(id) => match find_card(&self.db, &row.merchant, id).await? {
                None => None,
                Some(card) => {
                    let fill = |card: Instrument<'_>| template.fill(Some(card), &nothing).ok();
                    self.with_instrument(&row.merchant, &card, fill).await?
                }
            },
        };
        let Some(body) = body else { return Ok(None) };
        let name = format!("{}/{}", self.instance, InstanceId::make()?);
        let deadline = self.clock.instant() + self.policy.attempt_deadline;
        let (account, id) = (&row.account, &row.payment_request_id);
        if !rows::take_over(&self.db, account, id, &row.attempt, &name).await?
            || !rows::note_resend(&self.db, account, id, &name, self.now()).await?
        {
            return Ok(None);
        }
        tracing::info!(payment = %id, "repeating a payment that the gateway does not know");
        let attempt = Attempt {
            account: account.clone(),
            id: id.clone(),
            merchant: row.merchant.clone(),
            amount: amount_of(row)?,
            card: row.card_id.clone(),
            template,
            sensitive: None,
            gateway: self.gateway(account)?,
            name,
            deadline,
            sends: 1,
            card_row: None,
            row: None,
        };
        let exchange = if self.may_repeat(row) {
            self.send_in_time(&attempt, attempt.gateway.sign(Call::Pay, body)).await
        } else {
            Exchange::NotSent("the time to send the payment again was over")
        };
        let mut held = Held::over(attempt);
        self.take_answer(&mut held, exchange).await;
        self.record_finding(&mut held).await.map(Some)
    }

    /// What neither an inquiry nor a cancel knows, long after it was sent, was never charged.
    async fn fail_absent(&self, row: &PaymentRow) -> Result<(), OpError> {
        let change = Change {
            from: Status::Unknown,
            to: Status::Failed,
            payment_id: None,
            result_code: None,
            result_status: None,
            settled_by: Some("absence"),
            answer: None,
            decline: None,
            token_card_id: None,
            auth_expires_at: None,
            auth_review: None,
            next_look: NextLook::At(None),
            attempt: None,
            version: None,
            now: self.next_moment(row),
        };
        if self.change(row, &change, None, None).await?.is_some() {
            tracing::error!(alarm = true, payment = %row.payment_request_id, "the gateway never got a payment");
        }
        Ok(())
    }

    /// A paid payment: its cancel, and what it has still to tell.
    async fn complete_authorized(
        &self,
        row: PaymentRow,
        verdict: Option<Verdict>,
        asked: Millis,
    ) -> Result<Option<Waits>, OpError> {
        if let Some(cancel) = row.cancel.as_ref().filter(|cancel| cancel.state == CancelState::Open) {
            if cancel.by_caller {
                let (row, _) = self.send_cancel(&row).await?;
                return Ok(
                    (row.status == Status::Authorized && self.is_cancelling(&row)).then_some(Waits::Outcome)
                );
            }
            // The payment was found paid after the vault had sent a cancel in vain. It is not sent again: the
            // caller may know that it is paid. It may still take effect, for as long as a request may arrive.
            if asked <= cancel.at.plus(ARRIVAL) {
                return Ok(Some(Waits::Detail));
            }
            // Only the gateway's own word, given after that, says that it did not.
            if verdict != Some(Verdict::Paid) {
                return Ok(Some(Waits::Outcome));
            }
            self.close_cancel(&row.account, &row.payment_request_id, None).await?;
        }
        let waits = self.waits_for_id(&row).await?
            || (row.wants_token && row.token_card_id.is_none())
            || row.auth_review.as_deref() == Some(UNDER_REVIEW);
        Ok(waits.then_some(Waits::Detail))
    }

    /// Whether an agreement waits for the scheme's id of this payment.
    async fn waits_for_id(&self, row: &PaymentRow) -> Result<bool, OpError> {
        let Some(id) = &row.agreement_id else { return Ok(false) };
        let agreement = find_agreement(&self.db, &row.merchant, id).await?;
        Ok(agreement.is_some_and(|agreement| {
            agreement.network_transaction_id.is_none()
                && agreement.payment_request_id == row.payment_request_id.as_str()
        }))
    }

    /// Whether a payment in process waits for its buyer on a page.
    pub(super) async fn sends_buyer(&self, row: &PaymentRow) -> Result<bool, OpError> {
        let Some(sealed) = &row.answer else { return Ok(false) };
        let kept = self.open_answer(row, sealed).await?;
        let answer = KeptAnswer::answer(&kept).and_then(Object::parse);
        Ok(answer.is_some_and(|answer| REDIRECTS.iter().any(|name| answer.get(name).is_some())))
    }
}

/// What is settled is looked at because a notification asked for it, which was acknowledged and does not come again:
/// until the gateway has given its word, the question stays.
fn unanswered(verdict: Option<Verdict>) -> Option<Waits> {
    matches!(verdict, None | Some(Verdict::Unclear)).then_some(Waits::Gateway)
}

fn amount_of(row: &PaymentRow) -> Result<Amount, OpError> {
    Amount::from_wire(&row.currency, &row.amount)
        .map_err(|_| OpError::Internal(anyhow::anyhow!("a payment's amount cannot be read")))
}
