//! Cancels: the caller's, and the vault's own, which end what cannot be cleared up. That a cancel is on its
//! way is durable before its first byte leaves: from then on the payment is never sent again, and neither
//! captured nor refunded until the cancel's outcome is known.

use std::sync::Arc;

use crate::base::clock::Millis;
use crate::base::ids::{GatewayAccount, PaymentRequestId};
use crate::base::json::{self, Object};
use crate::base::secret::SecretBuf;
use crate::gateway::antom::answer::{CancelReading, read_cancel};
use crate::gateway::{Call, Exchange};
use crate::model::access::{Allowed, ModifyPayments};
use crate::model::audit::Entry;
use crate::model::operation_refusal::OperationRefusal;
use crate::model::payment::{Source, Status, Verdict, next};
use crate::model::payment_view::PaymentView;
use crate::store::operations::allowance;
use crate::store::payments as rows;
use crate::store::payments::{CancelState, Change, NextLook, PaymentRow};

use super::super::Vault;
use super::super::error::OpError;

/// How often a lost race is run again.
const TURNS: usize = 8;

impl Vault {
    /// Cancels a payment, whole. Cancelling again tells what is known; while the outcome of a cancel is not
    /// known, the vault goes on with it alone.
    pub async fn cancel_payment(
        self: &Arc<Self>,
        allowed: &Allowed<ModifyPayments>,
        id: &PaymentRequestId,
    ) -> Result<PaymentView, OpError> {
        let _running = self.running().begin();
        let mut decided = None;
        for _ in 0..TURNS {
            let row = self.own_payment(allowed, id).await?;
            if row.status == Status::Cancelled || whose(&row) == Some(By::Caller) {
                return self.view(&row).await;
            }
            let next_look = self.now().plus(self.policy.look_lease);
            let done =
                self.open_cancel(&row.account, id, true, next_look).await.map_err(|error| match error {
                    // Who looks after the payment sends a cancel that was recorded all the same.
                    OpError::Unclear(error) => OpError::OutcomeNotKnown(error),
                    error => error,
                });
            if done? {
                decided = Some(row);
                break;
            }
            self.why_no_cancel(&row).await?;
        }
        let row = decided.ok_or_else(changed_by_many)?;
        let account = &row.account;
        let sent = self.send_cancel(&row).await.map_err(|error| OpError::OutcomeNotKnown(error.into()))?;
        if sent.1 == CancelReading::Unclear || sent.1 == CancelReading::NotExist {
            rows::look_by(&self.db, account, id, self.now()).await.map_err(not_recorded)?;
        }
        self.view(&sent.0).await.map_err(|error| OpError::OutcomeNotKnown(error.into()))
    }

    /// Decides to cancel a payment, for a caller or by itself; `false` where that cannot be any more. A cancel of the
    /// vault's own that is out is the caller's from then on, and so is not left off where the payment turns out to be
    /// paid.
    pub(super) async fn open_cancel(
        &self,
        account: &GatewayAccount,
        id: &PaymentRequestId,
        by_caller: bool,
        next_look: Millis,
    ) -> Result<bool, OpError> {
        let mut tx = self.begin().await?;
        if !rows::open_cancel(&mut tx, account, id, by_caller, self.now(), next_look).await? {
            tx.rollback().await?;
            return Ok(false);
        }
        tx.note(&Entry::done("payment.cancel", id.as_str()).with("decided")).await?;
        tx.commit().await.map_err(OpError::of_commit)?;
        Ok(true)
    }

    /// Ends a cancel that had no effect, with the gateway's code if it was refused.
    pub(super) async fn close_cancel(
        &self,
        account: &GatewayAccount,
        id: &PaymentRequestId,
        code: Option<&str>,
    ) -> Result<(), OpError> {
        let mut tx = self.begin().await?;
        if !rows::close_cancel(&mut tx, account, id, code).await? {
            return Ok(tx.rollback().await?);
        }
        tx.note(&Entry::done("payment.cancel", id.as_str()).with("no effect")).await?;
        Ok(tx.commit().await?)
    }

    /// A payment with its cancel; none where it was never cancelled.
    pub async fn read_cancel(
        &self,
        allowed: &Allowed<ModifyPayments>,
        id: &PaymentRequestId,
    ) -> Result<Option<PaymentView>, OpError> {
        let row = self.own_payment(allowed, id).await?;
        self.view(&row).await.map(Some)
    }

    /// A payment of the caller's own merchant.
    pub(in crate::ops) async fn own_payment(
        &self,
        allowed: &Allowed<ModifyPayments>,
        id: &PaymentRequestId,
    ) -> Result<PaymentRow, OpError> {
        let row = rows::find_payment(&self.db, allowed.account(), id).await?;
        row.filter(|row| row.merchant == *allowed.merchant()).ok_or(OpError::NotFound(None))
    }

    /// Refuses, unless somebody else was faster and there is something to tell or to take over.
    async fn why_no_cancel(&self, row: &PaymentRow) -> Result<(), OpError> {
        let now = self.find_again(row).await?;
        if now.status == Status::Cancelled || whose(&now) != whose(row) {
            return Ok(());
        }
        let sums = allowance(&self.db, &row.account, &row.payment_request_id).await?;
        Err(OpError::OperationRefused(match sums {
            _ if now.status == Status::Failed => OperationRefusal::NotAuthorized,
            Some(sums) if sums.open_operations > 0 => OperationRefusal::OperationOpen,
            _ => OperationRefusal::Refunded,
        }))
    }

    /// Sends an open cancel, once, and records what came of it. One of the vault's own is not sent any more
    /// where the payment was found paid meanwhile, nor one at a time that is not the one on record.
    pub(super) async fn send_cancel(&self, row: &PaymentRow) -> Result<(PaymentRow, CancelReading), OpError> {
        let gateway = self.gateway(&row.account)?;
        let (id, begun) = (&row.payment_request_id, self.clock.instant());
        if !rows::note_cancel_sent(&self.db, &row.account, id, self.now()).await?
            || self.clock.instant().saturating_duration_since(begun) >= self.policy.attempt_deadline
        {
            return Ok((self.find_again(row).await?, CancelReading::Unclear));
        }
        let body = json::ObjectWriter::default().string("paymentRequestId", id.as_str()).finish();
        let answer = match gateway.call(Call::Cancel, SecretBuf::from_vec(body.into_bytes())).await {
            Exchange::Answered(answer) => answer,
            Exchange::NotSent(reason) | Exchange::NoAnswer(reason) => {
                tracing::warn!(payment = %id, reason, "a cancel brought no answer");
                return Ok((self.find_again(row).await?, CancelReading::Unclear));
            }
        };
        let reading = read_cancel(&answer.verified(), id, row.payment_id.as_deref());
        match reading {
            CancelReading::Done => self.note_cancelled(row).await?,
            CancelReading::Refused => {
                let code = result_code(answer.verified().text());
                tracing::warn!(payment = %id, code, "the gateway refuses a cancel");
                self.close_cancel(&row.account, id, Some(&code)).await?;
            }
            CancelReading::NotExist | CancelReading::Unclear => {}
        }
        Ok((self.find_again(row).await?, reading))
    }

    async fn note_cancelled(&self, row: &PaymentRow) -> Result<(), OpError> {
        for _ in 0..TURNS {
            let now = self.find_again(row).await?;
            let Some(to) = next(now.status, Verdict::Cancelled, Source::Cancel) else { return Ok(()) };
            let change = Change {
                from: now.status,
                to,
                payment_id: None,
                result_code: None,
                result_status: None,
                settled_by: Some(Source::Cancel.name()),
                answer: None,
                decline: None,
                token_card_id: None,
                auth_expires_at: None,
                auth_review: None,
                next_look: NextLook::At(None),
                attempt: None,
                version: None,
                now: self.next_moment(&now),
            };
            if self.change(&now, &change, None, None).await?.is_some() {
                tracing::info!(payment = %now.payment_request_id, from = now.status.name(), "payment cancelled");
                return Ok(());
            }
        }
        Err(changed_by_many())
    }
}

/// Whose cancel a payment's is.
#[derive(PartialEq, Eq)]
enum By {
    Caller,
    Vault,
}

/// Who wanted the cancel that is out; none where none is.
fn whose(row: &PaymentRow) -> Option<By> {
    let open = row.cancel.as_ref().filter(|cancel| cancel.state == CancelState::Open)?;
    Some(if open.by_caller { By::Caller } else { By::Vault })
}

fn changed_by_many() -> OpError {
    OpError::Unavailable(anyhow::anyhow!("a payment is being changed by many at once"))
}

fn not_recorded(error: crate::store::backend::StoreError) -> OpError {
    OpError::OutcomeNotKnown(error.into())
}

/// `result.resultCode`, as far as it is a code.
fn result_code(text: &str) -> String {
    let code = || {
        let result = Object::parse(Object::parse(text)?.get("result")?)?;
        json::string(result.get("resultCode")?).map(|code| code.into_owned())
    };
    let plain =
        |code: &String| code.len() <= 64 && code.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    code().filter(plain).unwrap_or_default()
}
