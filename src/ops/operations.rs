//! Captures and refunds. The sum is reserved together with the operation's row before the first byte
//! leaves, and given back only by a verified failure. An operation carries no card data, and the gateway
//! charges one id once, so one whose outcome is unknown is inquired after and, where the gateway does not
//! know it, sent again with the same bytes: it is never left undone.

use std::sync::Arc;

use crate::base::bytes::length_prefixed;
use crate::base::ids::{DekId, GatewayAccount, PaymentRequestId};
use crate::base::json::{self, Object, ObjectWriter};
use crate::base::money::Amount;
use crate::base::sealed::Sealed;
use crate::base::secret::{SecretBuf, SecretText};
use crate::crypto::aad::{Field, Place};
use crate::crypto::keyring::Purpose;
use crate::crypto::{envelope, request_mac};
use crate::gateway::antom::answer::{
    ExpectedOperation, OperationReading, Transaction, read_operation, read_refund_inquiry, transactions,
};
use crate::gateway::antom::scrub::{Own, scrub};
use crate::gateway::antom::verify::Verified;
use crate::gateway::{Call, Exchange};
use crate::model::access::{Allowed, ModifyPayments};
use crate::model::audit::Entry;
use crate::model::look::{Waits, pause};
use crate::model::operation::{
    OperationKind, OperationSource, OperationStatus, OperationVerdict, contradicts, next,
};
use crate::model::operation_refusal::OperationRefusal;
use crate::model::operation_request::{OperationRequest, read_request_id};
use crate::model::operation_view::OperationView;
use crate::model::payment::{Status, Verdict};
use crate::store::operations as rows;
use crate::store::operations::{Asked, NewOperation, OperationChange, OperationRow};
use crate::store::payments::{CancelState, PaymentRow, find_payment};

use super::Vault;
use super::error::OpError;
use super::events::insert_operation_event;

/// How often a lost race is run again.
const TURNS: usize = 8;
/// After so many looks in vain somebody is called.
const ALARM_AFTER: i64 = 8;

impl Vault {
    /// Captures or refunds. `body` is one strict JSON object. A repeat of a known id tells what is known, at
    /// once; it never waits and never sends.
    pub async fn operate(
        self: &Arc<Self>,
        allowed: &Allowed<ModifyPayments>,
        kind: OperationKind,
        payment: &PaymentRequestId,
        body: SecretText,
    ) -> Result<OperationView, OpError> {
        let _running = self.running().begin();
        let payment = self.own_payment(allowed, payment).await?;
        let request_id = {
            let object = Object::parse(body.expose());
            let object = object.ok_or_else(|| OpError::Invalid(vec![type_fault()]))?;
            read_request_id(kind, &object).map_err(|fault| OpError::Invalid(vec![fault]))?
        };
        let meaning_of = |key: &crate::crypto::keyring::DataKey| {
            let canonical = OperationRequest::canonical(kind, body.expose());
            let id = payment.payment_request_id.as_str();
            let parts = [kind.name().as_bytes(), id.as_bytes(), canonical.expose().as_bytes()];
            request_mac::request_mac(key, &length_prefixed(&parts))
        };
        if let Some(row) = rows::find_operation(&self.db, &payment.account, kind, &request_id).await? {
            return self.repeat_operation(&payment, &row, meaning_of).await;
        }
        let request = OperationRequest::read(kind, body.expose()).map_err(OpError::Invalid)?;
        let refuse = |refusal| Err(OpError::OperationNotAllowed(kind, refusal));
        let Some(payment_id) = payment.payment_id.as_deref().filter(|_| payment.status == Status::Authorized)
        else {
            return refuse(OperationRefusal::NotAuthorized);
        };
        if request.payment_id.as_deref().is_some_and(|claim| claim != payment_id) {
            return refuse(OperationRefusal::OtherPayment);
        }
        let notify = self.policy.notify_url.as_deref().filter(|_| kind == OperationKind::Refund);
        let outgoing = request.body(payment_id, notify);
        let mut inserted = Inserted::KeysMoved;
        for _ in 0..TURNS {
            let epoch = self.keys.epoch();
            let mac_key = self.keys.active(Purpose::RequestMac)?;
            let meaning = meaning_of(&mac_key)?;
            let meaning_key = mac_key.id().to_string();
            let sealed = self.seal_operation(&payment, kind, &request_id, Field::Outgoing, &outgoing)?;
            let now = self.now();
            let operation = NewOperation {
                account: &payment.account,
                kind,
                request_id: &request_id,
                merchant: &payment.merchant,
                payment_request_id: &payment.payment_request_id,
                amount: &request.amount,
                asked: Some(Asked {
                    client: &allowed.caller().client().name,
                    meaning: &meaning,
                    meaning_key: &meaning_key,
                    outgoing: &sealed,
                }),
                status: OperationStatus::Unknown,
                gateway_id: None,
                // If this process dies now, another one finds it then.
                next_look: Some(now.plus(self.policy.look_lease)),
                now,
            };
            inserted = self.insert_reserved(&operation, epoch).await?;
            match inserted {
                Inserted::KeysMoved => self.keys.follow().await?,
                _ => break,
            };
        }
        match inserted {
            Inserted::Yes => {}
            Inserted::InUse => {
                let row = rows::find_operation(&self.db, &payment.account, kind, &request_id).await?;
                let row = row.ok_or(OpError::NotFound(None))?;
                return self.repeat_operation(&payment, &row, meaning_of).await;
            }
            Inserted::NotAllowed => return refuse(self.why_refused(&payment, kind, &request.amount).await?),
            Inserted::KeysMoved => return Err(OpError::keys_are_changing()),
        }
        let recorded = self.send_operation(&payment, kind, &request_id, outgoing).await;
        let row = recorded.map_err(not_recorded)?;
        self.operation_view(&row, payment.payment_id.clone(), true).await.map_err(not_recorded)
    }

    async fn repeat_operation(
        &self,
        payment: &PaymentRow,
        row: &OperationRow,
        meaning_of: impl Fn(
            &crate::crypto::keyring::DataKey,
        ) -> Result<[u8; 32], crate::crypto::keyring::WrongPurpose>,
    ) -> Result<OperationView, OpError> {
        let same = match &row.meaning {
            Some((meaning, key)) if row.merchant == payment.merchant => {
                let key = DekId::parse(key).ok_or_else(|| OpError::Internal(anyhow::anyhow!("a key id")))?;
                let key = self.keys.by_id(&key).await?;
                request_mac::same(&meaning_of(&key)?, meaning)
            }
            _ => false,
        };
        if !same {
            return Err(OpError::RequestIdReused(match row.kind {
                OperationKind::Capture => "/captureRequestId",
                OperationKind::Refund => "/refundRequestId",
            }));
        }
        self.operation_view(row, payment.payment_id.clone(), true).await
    }

    /// Records an operation that was sealed in this epoch of the keys.
    async fn insert_reserved(&self, operation: &NewOperation<'_>, epoch: i64) -> Result<Inserted, OpError> {
        let (account, payment) = (operation.account, operation.payment_request_id);
        let mut tx = self.begin().await?;
        if !rows::reserve(&mut tx, operation.kind, account, payment, operation.amount, operation.now).await? {
            tx.rollback().await?;
            let known = rows::find_operation(&self.db, account, operation.kind, operation.request_id).await?;
            return Ok(if known.is_some() { Inserted::InUse } else { Inserted::NotAllowed });
        }
        if !rows::insert_operation(&mut tx, operation).await? {
            tx.rollback().await?;
            return Ok(Inserted::InUse);
        }
        tx.note(&Entry::done(action(operation.kind), operation.request_id.as_str()).with(payment.as_str()))
            .await?;
        match tx.commit_sealed(epoch).await {
            Ok(true) => Ok(Inserted::Yes),
            Ok(false) => Ok(Inserted::KeysMoved),
            Err(error) if !error.is_unclear() => Err(error.into()),
            Err(error) => {
                // A commit whose answer was lost may have happened. Whoever inserted the row means the same
                // or gets the refusal of its own; the same bytes sent twice are one operation. A row that is
                // not there may come yet, and would be sent.
                let row = rows::find_operation(&self.db, account, operation.kind, operation.request_id).await;
                let mine = operation.asked.map(|asked| asked.meaning.to_vec());
                match row {
                    Ok(Some(row)) if row.meaning.as_ref().map(|(meaning, _)| meaning) == mine.as_ref() => {
                        Ok(Inserted::Yes)
                    }
                    Ok(Some(_)) => Ok(Inserted::InUse),
                    _ => Err(OpError::OutcomeNotKnown(error.into())),
                }
            }
        }
    }

    /// Why a payment does not allow an operation now.
    async fn why_refused(
        &self,
        payment: &PaymentRow,
        kind: OperationKind,
        amount: &Amount,
    ) -> Result<OperationRefusal, OpError> {
        let (account, id) = (&payment.account, &payment.payment_request_id);
        let row = find_payment(&self.db, account, id).await?.ok_or(OpError::NotFound(None))?;
        let is_capture = kind == OperationKind::Capture;
        let review = row.auth_review.as_deref();
        Ok(if row.status != Status::Authorized {
            OperationRefusal::NotAuthorized
        } else if is_capture && !row.manual_capture {
            OperationRefusal::AutomaticCapture
        } else if row.currency != amount.currency() {
            OperationRefusal::CurrencyMismatch
        } else if row.cancel.is_some_and(|cancel| cancel.state == CancelState::Open) {
            OperationRefusal::CancelOpen
        } else if is_capture && row.auth_expires_at.is_some_and(|end| end <= self.now()) {
            OperationRefusal::AuthorizationExpired
        } else if is_capture && review.is_some_and(|review| review != "ACCEPT") {
            OperationRefusal::UnderReview
        } else {
            OperationRefusal::AboveRemaining
        })
    }

    /// Sends an operation that is recorded, once, and records what came of it.
    async fn send_operation(
        &self,
        payment: &PaymentRow,
        kind: OperationKind,
        request_id: &PaymentRequestId,
        body: String,
    ) -> Result<OperationRow, OpError> {
        let gateway = self.gateway(&payment.account)?;
        let call = if kind == OperationKind::Capture { Call::Capture } else { Call::Refund };
        let exchange = gateway.call(call, SecretBuf::from_vec(body.into_bytes())).await;
        let row = self.operation_again(&payment.account, kind, request_id).await?;
        let answer = match exchange {
            Exchange::Answered(answer) => answer,
            Exchange::NotSent(reason) | Exchange::NoAnswer(reason) => {
                tracing::warn!(request = %request_id, kind = kind.name(), reason, "an operation has no answer");
                rows::look_by(&self.db, &row, self.now()).await?;
                return Ok(row);
            }
        };
        let amount = amount_of(&row)?;
        let expected = expected_of(payment, kind, request_id, &amount);
        match read_operation(&answer.verified(), &expected) {
            OperationReading::Says(verdict) => {
                self.settle_operation(&row, Some(&answer.verified()), verdict, OperationSource::Call, None)
                    .await
            }
            OperationReading::Disagrees => {
                tracing::error!(
                    alarm = true, request = %request_id, kind = kind.name(),
                    "a signed answer speaks of another operation or amount"
                );
                rows::look_by(&self.db, &row, self.now()).await?;
                Ok(row)
            }
        }
    }

    /// Applies what a verified word of the gateway says of an operation, with its event in the same
    /// transaction, and gives the row as it stands then.
    pub(super) async fn settle_operation(
        &self,
        row: &OperationRow,
        answer: Option<&Verified<'_>>,
        verdict: OperationVerdict,
        source: OperationSource,
        gateway_id: Option<&str>,
    ) -> Result<OperationRow, OpError> {
        let scrubbed = match answer {
            Some(answer) => Some(
                scrub(answer.text(), Own::default())
                    .ok_or_else(|| OpError::Internal(anyhow::anyhow!("a verified answer is not JSON")))?,
            ),
            None => None,
        };
        let facts = Facts::read(scrubbed.as_deref().unwrap_or("{}"), row.kind);
        for _ in 0..TURNS {
            let epoch = self.keys.epoch();
            let sealed =
                scrubbed.as_ref().map(|text| self.seal_row(row, Field::GatewayAnswer, text)).transpose()?;
            let now = self.operation_again(&row.account, row.kind, &row.request_id).await?;
            let to = match next(now.status, verdict, source) {
                Some(to) => to,
                // What settles nothing is kept for people to see, while nothing better is known.
                None if now.status == OperationStatus::Unknown && source == OperationSource::Call => {
                    now.status
                }
                None => {
                    if contradicts(now.status, verdict) {
                        tracing::error!(
                            alarm = true, request = %row.request_id, kind = row.kind.name(),
                            "the gateway contradicts a settled operation"
                        );
                    }
                    return Ok(now);
                }
            };
            let moment = self.now().max(now.updated_at.plus(std::time::Duration::from_millis(1)));
            let next_look = match to {
                // At once, unless it is being looked at: then that look sets the time of the next.
                OperationStatus::Unknown => Some(now.next_look.map_or(moment, |due| due.min(moment))),
                OperationStatus::Processing => {
                    pause(Waits::Gateway, 0, row.request_id.as_str()).map(|gap| moment.plus(gap))
                }
                OperationStatus::Succeeded | OperationStatus::Failed => None,
            };
            let change = OperationChange {
                from: now.status,
                to,
                gateway_id: facts.gateway_id.as_deref().or(gateway_id),
                result_code: facts.result_code.as_deref(),
                result_status: facts.result_status.as_deref(),
                settled_by: (to != now.status && to.is_final()).then(|| source.name()),
                answer: sealed.as_ref(),
                next_look,
                now: moment,
            };
            let mut tx = self.begin().await?;
            if !rows::change_operation(&mut tx, &now, &change).await? {
                tx.rollback().await?;
                continue;
            }
            if to != now.status {
                let view = OperationView {
                    status: to,
                    gateway_id: change.gateway_id.map(str::to_owned).or_else(|| now.gateway_id.clone()),
                    result_code: facts.result_code.clone().or_else(|| now.result_code.clone()),
                    result_status: facts.result_status.clone().or_else(|| now.result_status.clone()),
                    settled_by: change.settled_by.map(str::to_owned),
                    answer: scrubbed.clone(),
                    updated_at: moment,
                    ..bare_view(&now)
                };
                insert_operation_event(&mut tx, &row.merchant, &view).await?;
                let detail = format!("{} {} by {}", row.kind.name(), to.name(), source.name());
                tx.note(&Entry::done("operation.change", row.request_id.as_str()).with(detail)).await?;
            }
            if sealed.is_none() {
                tx.commit().await?;
            } else if !tx.commit_sealed(epoch).await? {
                self.keys.follow().await?;
                continue;
            }
            self.bell.ring_written();
            if now.status == OperationStatus::Failed {
                tracing::error!(
                    alarm = true, request = %row.request_id, kind = row.kind.name(),
                    "an operation that had failed was done after all"
                );
            } else {
                tracing::info!(
                    request = %row.request_id, kind = row.kind.name(), from = now.status.name(), to = to.name(),
                    by = source.name(), "operation changed"
                );
            }
            return self.operation_again(&row.account, row.kind, &row.request_id).await;
        }
        Err(OpError::Unavailable(anyhow::anyhow!("an operation is being changed by many at once")))
    }

    /// Learns from an inquiry into a payment what became of its captures and refunds, and of those that were
    /// done elsewhere: by the gateway itself, or in its dashboard.
    pub(super) async fn learn_transactions(
        &self,
        payment: &PaymentRow,
        answer: &Verified<'_>,
    ) -> Result<(), OpError> {
        if !matches!(payment.status, Status::Authorized | Status::Cancelled) {
            return Ok(());
        }
        for told in transactions(answer) {
            let known = rows::find_operation(&self.db, &payment.account, told.kind, &told.request_id).await?;
            match known {
                Some(row) if row.payment_request_id != payment.payment_request_id => {}
                Some(row)
                    if row.currency == told.amount.currency() && row.amount == told.amount.minor_units() =>
                {
                    let id = told.gateway_id.as_deref();
                    self.settle_operation(&row, None, told.verdict, OperationSource::Inquiry, id).await?;
                }
                Some(row) => tracing::error!(
                    alarm = true, request = %row.request_id, kind = row.kind.name(),
                    "an inquiry tells another sum of an operation"
                ),
                // Of a cancelled payment nothing more can be asked for that it would have to be counted against.
                None if payment.status == Status::Cancelled => {}
                None => self.learn_elsewhere(payment, &told).await?,
            }
        }
        Ok(())
    }

    /// Keeps an operation that was not asked for here.
    pub(super) async fn learn_elsewhere(
        &self,
        payment: &PaymentRow,
        told: &Transaction,
    ) -> Result<(), OpError> {
        let status = match told.verdict {
            OperationVerdict::Done => OperationStatus::Succeeded,
            OperationVerdict::Failed => OperationStatus::Failed,
            OperationVerdict::InProcess => OperationStatus::Processing,
            OperationVerdict::NotExist | OperationVerdict::Unclear => return Ok(()),
        };
        let now = self.now();
        let gap = pause(Waits::Gateway, 0, told.request_id.as_str());
        let operation = NewOperation {
            account: &payment.account,
            kind: told.kind,
            request_id: &told.request_id,
            merchant: &payment.merchant,
            payment_request_id: &payment.payment_request_id,
            amount: &told.amount,
            asked: None,
            status,
            gateway_id: told.gateway_id.as_deref(),
            next_look: if status.is_final() { None } else { gap.map(|gap| now.plus(gap)) },
            now,
        };
        let units = told.amount.minor_units();
        let mut tx = self.begin().await?;
        let (account, id) = (&payment.account, &payment.payment_request_id);
        rows::count_elsewhere(&mut tx, told.kind, account, id, status, units).await?;
        if !rows::insert_operation(&mut tx, &operation).await? {
            tx.rollback().await?;
            return Ok(());
        }
        let view = OperationView {
            kind: told.kind,
            request_id: told.request_id.to_string(),
            payment_request_id: id.to_string(),
            payment_id: payment.payment_id.clone(),
            status,
            gateway_id: told.gateway_id.clone(),
            currency: told.amount.currency().to_owned(),
            amount: units,
            result_code: None,
            result_status: None,
            settled_by: status.is_final().then(|| OperationSource::Inquiry.name().to_owned()),
            asked_here: false,
            answer: None,
            created_at: now,
            updated_at: now,
        };
        insert_operation_event(&mut tx, &payment.merchant, &view).await?;
        let detail = format!("{} {} elsewhere", told.kind.name(), status.name());
        tx.note(&Entry::done("operation.learn", told.request_id.as_str()).with(detail)).await?;
        tx.commit().await?;
        self.bell.ring_written();
        Ok(())
    }

    /// A payment's captures or refunds.
    pub async fn list_operations(
        &self,
        allowed: &Allowed<ModifyPayments>,
        kind: OperationKind,
        payment: &PaymentRequestId,
    ) -> Result<Vec<OperationView>, OpError> {
        let payment = self.own_payment(allowed, payment).await?;
        let mut views = Vec::new();
        for row in rows::list_operations(&self.db, &payment.account, &payment.payment_request_id).await? {
            if row.kind == kind {
                views.push(self.operation_view(&row, payment.payment_id.clone(), false).await?);
            }
        }
        Ok(views)
    }

    /// One capture or refund; with `refresh`, the gateway is asked first.
    pub async fn read_operation(
        self: &Arc<Self>,
        allowed: &Allowed<ModifyPayments>,
        kind: OperationKind,
        payment: &PaymentRequestId,
        request_id: &PaymentRequestId,
        refresh: bool,
    ) -> Result<OperationView, OpError> {
        let payment = self.own_payment(allowed, payment).await?;
        let find = || rows::find_operation(&self.db, &payment.account, kind, request_id);
        let of_payment = |row: &OperationRow| row.payment_request_id == payment.payment_request_id;
        let row = find().await?.filter(of_payment).ok_or(OpError::NotFound(None))?;
        let row = if refresh { self.ask_after(&payment, &row).await?.0 } else { row };
        self.operation_view(&row, payment.payment_id.clone(), true).await
    }

    /// One look at an operation without a final outcome.
    pub(super) async fn look_at_operation(&self, taken: &OperationRow) -> Result<(), OpError> {
        let waits = self.clear_up_operation(taken).await;
        let next = match &waits {
            Ok(waits) => *waits,
            Err(_) => Some(Waits::Outcome),
        };
        if next == Some(Waits::Outcome) && taken.looks >= ALARM_AFTER {
            tracing::error!(
                alarm = true, request = %taken.request_id, kind = taken.kind.name(),
                "an operation's outcome is still unknown"
            );
        }
        let gap = next.and_then(|waits| pause(waits, taken.looks, taken.request_id.as_str()));
        let next = gap.map(|gap| self.now().plus(gap));
        rows::release(&self.db, taken, &self.instance, next).await?;
        waits.map(|_| ())
    }

    async fn clear_up_operation(&self, taken: &OperationRow) -> Result<Option<Waits>, OpError> {
        let payment = find_payment(&self.db, &taken.account, &taken.payment_request_id).await?;
        let payment =
            payment.ok_or_else(|| OpError::Internal(anyhow::anyhow!("an operation's payment is gone")))?;
        let (row, known_there) = self.ask_after(&payment, taken).await?;
        // What was asked may have told more of the payment than of this.
        let payment = self.find_again(&payment).await?;
        match row.status {
            // A notification asked for this look, and does not come again.
            OperationStatus::Succeeded | OperationStatus::Failed if known_there == Known::NoWord => {
                return Ok(Some(Waits::Gateway));
            }
            OperationStatus::Succeeded | OperationStatus::Failed => return Ok(None),
            OperationStatus::Unknown | OperationStatus::Processing => {}
        }
        let waits = if row.status == OperationStatus::Processing { Waits::Gateway } else { Waits::Outcome };
        if known_there != Known::No {
            return Ok(Some(waits));
        }
        // The gateway does not know it: it is sent again, with the same bytes under the same id.
        let Some(outgoing) = &row.outgoing else { return Ok(Some(waits)) };
        let text = self.open_row(&row, Field::Outgoing, outgoing).await?;
        let row = self.send_operation(&payment, row.kind, &row.request_id, text).await?;
        if row.kind == OperationKind::Refund && !row.status.is_final() {
            // A refund's own inquiry does not tell that its payment was cancelled elsewhere, for which it is
            // refused: known to be cancelled, that is the last word at the next look.
            self.inquire(&payment).await?;
        }
        Ok(match row.status {
            OperationStatus::Unknown => Some(Waits::Outcome),
            OperationStatus::Processing => Some(Waits::Gateway),
            OperationStatus::Succeeded | OperationStatus::Failed => None,
        })
    }

    /// Asks the gateway what became of an operation: of a refund by its own inquiry; of a capture, and of
    /// what was done elsewhere, by an inquiry into the payment.
    async fn ask_after(
        &self,
        payment: &PaymentRow,
        row: &OperationRow,
    ) -> Result<(OperationRow, Known), OpError> {
        if row.kind == OperationKind::Capture || row.meaning.is_none() {
            let (_, verdict) = self.inquire(payment).await?;
            let row = self.operation_again(&row.account, row.kind, &row.request_id).await?;
            let known = match (row.status, verdict) {
                (OperationStatus::Unknown, Some(Verdict::Paid)) => Known::No,
                // Of a cancelled payment nothing is under way. Sent again, it is refused, and its sum given back.
                (OperationStatus::Unknown | OperationStatus::Processing, Some(Verdict::Cancelled)) => {
                    Known::No
                }
                (_, None | Some(Verdict::Unclear)) => Known::NoWord,
                _ => Known::Perhaps,
            };
            return Ok((row, known));
        }
        let gateway = self.gateway(&row.account)?;
        let body = ObjectWriter::default().string("refundRequestId", row.request_id.as_str()).finish();
        let exchange = gateway.call(Call::InquiryRefund, SecretBuf::from_vec(body.into_bytes())).await;
        let Exchange::Answered(answer) = exchange else {
            return Ok((self.operation_again(&row.account, row.kind, &row.request_id).await?, Known::NoWord));
        };
        let amount = amount_of(row)?;
        let expected = expected_of(payment, row.kind, &row.request_id, &amount);
        match read_refund_inquiry(&answer.verified(), &expected) {
            OperationReading::Says(verdict) => {
                let source = OperationSource::Inquiry;
                let row = self.settle_operation(row, Some(&answer.verified()), verdict, source, None).await?;
                let known = match verdict {
                    OperationVerdict::NotExist => Known::No,
                    OperationVerdict::Unclear => Known::NoWord,
                    _ => Known::Perhaps,
                };
                Ok((row, known))
            }
            OperationReading::Disagrees => {
                tracing::error!(
                    alarm = true, request = %row.request_id, kind = row.kind.name(),
                    "a signed inquiry answer speaks of another operation or amount"
                );
                Ok((self.operation_again(&row.account, row.kind, &row.request_id).await?, Known::NoWord))
            }
        }
    }

    async fn operation_again(
        &self,
        account: &GatewayAccount,
        kind: OperationKind,
        request_id: &PaymentRequestId,
    ) -> Result<OperationRow, OpError> {
        rows::find_operation(&self.db, account, kind, request_id)
            .await?
            .ok_or_else(|| OpError::Internal(anyhow::anyhow!("an operation's row is gone")))
    }

    /// An operation as callers see it; its answer is opened only where the whole is shown. As the row was read, it may
    /// be under a key that has been destroyed since: then it is read again.
    pub(super) async fn operation_view(
        &self,
        row: &OperationRow,
        payment_id: Option<String>,
        whole: bool,
    ) -> Result<OperationView, OpError> {
        if !whole {
            return Ok(OperationView { payment_id, ..bare_view(row) });
        }
        let (answer, again) = match self.open_answer_of(row).await {
            Err(OpError::Internal(_)) => {
                let again = self.operation_again(&row.account, row.kind, &row.request_id).await?;
                (self.open_answer_of(&again).await?, Some(again))
            }
            answer => (answer?, None),
        };
        Ok(OperationView { payment_id, answer, ..bare_view(again.as_ref().unwrap_or(row)) })
    }

    async fn open_answer_of(&self, row: &OperationRow) -> Result<Option<String>, OpError> {
        match &row.answer {
            Some(sealed) => self.open_row(row, Field::GatewayAnswer, sealed).await.map(Some),
            None => Ok(None),
        }
    }

    fn seal_operation(
        &self,
        payment: &PaymentRow,
        kind: OperationKind,
        request_id: &PaymentRequestId,
        field: Field,
        text: &str,
    ) -> Result<Sealed, OpError> {
        let dek = self.keys.active(Purpose::Card)?;
        let record = record_name(&payment.account, kind, request_id);
        let place = Place { merchant: &payment.merchant, record: &record, field };
        Ok(envelope::seal(&dek, &place, &SecretBuf::from_vec(text.as_bytes().to_vec()))?)
    }

    fn seal_row(&self, row: &OperationRow, field: Field, text: &str) -> Result<Sealed, OpError> {
        let dek = self.keys.active(Purpose::Card)?;
        let record = record_name(&row.account, row.kind, &row.request_id);
        let place = Place { merchant: &row.merchant, record: &record, field };
        Ok(envelope::seal(&dek, &place, &SecretBuf::from_vec(text.as_bytes().to_vec()))?)
    }

    async fn open_row(&self, row: &OperationRow, field: Field, sealed: &Sealed) -> Result<String, OpError> {
        let dek = self.keys.of(sealed).await?;
        let record = record_name(&row.account, row.kind, &row.request_id);
        let place = Place { merchant: &row.merchant, record: &record, field };
        let bytes = envelope::open(&dek, &place, sealed)?;
        std::str::from_utf8(bytes.expose())
            .map(str::to_owned)
            .map_err(|_| OpError::Internal(anyhow::anyhow!("what was kept of an operation is not text")))
    }
}

/// What a word of the gateway about an operation of this payment must be about.
pub(super) fn expected_of<'a>(
    payment: &'a PaymentRow,
    kind: OperationKind,
    request_id: &'a PaymentRequestId,
    amount: &'a Amount,
) -> ExpectedOperation<'a> {
    ExpectedOperation {
        kind,
        request_id: request_id.as_str(),
        payment_id: payment.payment_id.as_deref(),
        amount,
        cancelled: payment.status == Status::Cancelled,
    }
}

enum Inserted {
    Yes,
    InUse,
    NotAllowed,
    /// Its request was sealed under keys that have changed since.
    KeysMoved,
}

/// Whether the gateway knows an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    /// It has said that it does not.
    No,
    Perhaps,
    /// It has said nothing that can be trusted.
    NoWord,
}

/// The audit trail's word for what was asked.
fn action(kind: OperationKind) -> &'static str {
    match kind {
        OperationKind::Capture => "payment.capture",
        OperationKind::Refund => "payment.refund",
    }
}

fn type_fault() -> crate::base::fault::FieldFault {
    crate::base::fault::FieldFault::at("", "invalid_type")
}

fn not_recorded(error: OpError) -> OpError {
    OpError::OutcomeNotKnown(error.into())
}

/// Where an operation's sealed fields live. No part can hold the separator, and no payment's has three.
fn record_name(account: &GatewayAccount, kind: OperationKind, request_id: &PaymentRequestId) -> String {
    format!("{account}/{}/{request_id}", kind.name())
}

pub(super) fn amount_of(row: &OperationRow) -> Result<Amount, OpError> {
    Amount::from_wire(&row.currency, &row.amount.to_string())
        .map_err(|_| OpError::Internal(anyhow::anyhow!("an operation's amount cannot be read")))
}

fn bare_view(row: &OperationRow) -> OperationView {
    OperationView {
        kind: row.kind,
        request_id: row.request_id.to_string(),
        payment_request_id: row.payment_request_id.to_string(),
        payment_id: None,
        status: row.status,
        gateway_id: row.gateway_id.clone(),
        currency: row.currency.clone(),
        amount: row.amount,
        result_code: row.result_code.clone(),
        result_status: row.result_status.clone(),
        settled_by: row.settled_by.clone(),
        asked_here: row.meaning.is_some(),
        answer: None,
        created_at: row.created_at,
        updated_at: row.updated_at,
    }
}

/// What of an answer stands in columns of its own.
struct Facts {
    gateway_id: Option<String>,
    result_code: Option<String>,
    result_status: Option<String>,
}

impl Facts {
    fn read(scrubbed: &str, kind: OperationKind) -> Self {
        let short = |raw: Option<&str>| {
            raw.and_then(json::string).map(|text| text.into_owned()).filter(|text| text.len() <= 64)
        };
        let object = Object::parse(scrubbed);
        let top = |name: &str| object.as_ref().and_then(|object| object.get(name));
        // A refund inquiry's own result speaks of the inquiry.
        let of_inquiry = top("refundStatus").is_some() && top("notifyType").is_none();
        let result = top("result").filter(|_| !of_inquiry).and_then(Object::parse);
        let inner = |name: &str| result.as_ref().and_then(|result| result.get(name));
        Self {
            gateway_id: short(top(kind.gateway_id_member())),
            result_code: short(inner("resultCode")),
            result_status: short(inner("resultStatus")),
        }
    }
}
