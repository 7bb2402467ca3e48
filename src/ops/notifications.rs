//! What the gateway tells by itself. A notification is verified over its raw bytes before anything of it is
//! read, its effect is durable before it is acknowledged, and it is never the last word against what is
//! settled: where it disagrees, or its time is off, the gateway is asked.
//!
//! Antom's signature has no nonce, and notifications come up to eight times and in any order: each effect
//! is one that happens once however often it is told.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::base::bytes::length_prefixed;
use crate::base::ids::{GatewayAccount, Merchant, PaymentRequestId};
use crate::base::json::{self, Object, ObjectWriter};
use crate::base::money::Amount;
use crate::base::sealed::Sealed;
use crate::base::secret::SecretBuf;
use crate::crypto::aad::{Field, Place};
use crate::crypto::keyring::{DataKey, Purpose, WrongPurpose};
use crate::crypto::{envelope, request_mac};
use crate::gateway::antom::answer::{
    Expected, ExpectedOperation, OperationReading, Reading, Transaction, read_notice, read_operation_notice,
};
use crate::gateway::antom::notification::{Notice, read, request_time};
use crate::gateway::antom::scrub::{Own, scrub};
use crate::gateway::antom::verify::{SignatureHeaders, Verified};
use crate::model::audit::{Actor, Entry};
use crate::model::event::EventKind;
use crate::model::operation::{self, OperationKind, OperationSource, OperationVerdict};
use crate::model::payment::{Source, Status, Verdict, contradicts};
use crate::store::backend::Tx;
use crate::store::notices::{NewNotice, has_notice, insert_notice};
use crate::store::operations as operation_rows;
use crate::store::operations::OperationRow;
use crate::store::payments as rows;
use crate::store::payments::PaymentRow;

use super::Vault;
use super::audit::acting;
use super::error::OpError;
use super::events::ReadyEvent;
use super::operations::{amount_of, expected_of};

/// How far a notification's time may be off before it is not trusted alone.
const CLOCK_SKEW: Duration = Duration::from_secs(5 * 60);

/// Why a notification was not taken.
#[derive(Debug, thiserror::Error)]
pub enum NotTaken {
    /// It is not the gateway's, or not for us.
    #[error("the notification does not verify")]
    Forged,
    /// Its effect could not be recorded: it must come again.
    #[error("the notification could not be recorded")]
    NotRecorded(#[source] OpError),
}

impl Vault {
    /// Takes a notification that came for `path`, and returns once its effect is durable.
    pub async fn take_notification(
        self: &Arc<Self>,
        path: &str,
        headers: &SignatureHeaders<'_>,
        body: &[u8],
        from: Option<IpAddr>,
    ) -> Result<(), NotTaken> {
        let account = headers.client_id.and_then(GatewayAccount::parse).ok_or(NotTaken::Forged)?;
        let gateway = self.accounts.get(&account).ok_or(NotTaken::Forged)?;
        let verified = gateway.verify_notification(path, headers, body).map_err(|reason| {
            tracing::warn!(%reason, "a notification does not verify");
            self.metrics.notification("unread", "forged");
            NotTaken::Forged
        })?;
        let now = self.now();
        let age = headers.time.and_then(request_time).map(|at| at.0.abs_diff(now.0));
        let timely = age.is_some_and(|age| u128::from(age) <= CLOCK_SKEW.as_millis());
        let told = Told { account, timely };
        let gateway = Actor::gateway(&told.account, from);
        let verified = verified.verified();
        let notice = read(&verified);
        let kind = match &notice {
            None => "not_json",
            Some(Notice::Payment { .. }) => "payment",
            Some(Notice::Capture { .. }) => "capture",
            Some(Notice::Refund { .. }) => "refund",
            Some(Notice::Dispute { .. }) => "dispute",
            Some(Notice::Other) => "other",
        };
        let applied = acting(gateway, self.apply(&told, notice, &verified)).await;
        self.metrics.notification(kind, if applied.is_ok() { "taken" } else { "not_recorded" });
        applied.map_err(NotTaken::NotRecorded)
    }

    async fn apply(
        self: &Arc<Self>,
        told: &Told,
        read: Option<Notice>,
        notice: &Verified<'_>,
    ) -> Result<(), OpError> {
        match read {
            None => {
                // It cannot be cleaned, so it cannot be kept; the payment's own inquiry tells the same.
                tracing::error!(alarm = true, "a signed notification is not JSON");
                Ok(())
            }
            Some(Notice::Payment { payment_request_id, .. }) => {
                match self.payment_named(told, &payment_request_id).await? {
                    Some(row) => self.apply_to_payment(told, row, notice).await,
                    None => self.keep_aside(told, notice, "payment", None).await,
                }
            }
            Some(Notice::Capture { capture_request_id, payment_id }) => {
                let id = capture_request_id.as_deref();
                self.apply_to_operation(told, OperationKind::Capture, id, Some(&payment_id), notice).await
            }
            Some(Notice::Refund { refund_request_id, payment_id }) => {
                let (id, payment) = (refund_request_id.as_deref(), payment_id.as_deref());
                self.apply_to_operation(told, OperationKind::Refund, id, payment, notice).await
            }
            Some(Notice::Dispute { payment_request_id, dispute_id, kind }) => {
                match (self.payment_named(told, &payment_request_id).await?, EventKind::of_dispute(&kind)) {
                    (Some(row), Some(event)) => self.tell_dispute(&row, &dispute_id, event, notice).await,
                    _ => self.keep_aside(told, notice, "dispute", None).await,
                }
            }
            Some(Notice::Other) => {
                let payment = match member(notice.text(), "paymentRequestId") {
                    Some(id) => self.payment_named(told, &id).await?,
                    None => None,
                };
                self.keep_aside(told, notice, "other", payment.as_ref()).await
            }
        }
    }

    async fn payment_named(&self, told: &Told, id: &str) -> Result<Option<PaymentRow>, OpError> {
        match PaymentRequestId::parse(id) {
            Some(id) => Ok(rows::find_payment(&self.db, &told.account, &id).await?),
            None => Ok(None),
        }
    }

    async fn apply_to_payment(
        &self,
        told: &Told,
        row: PaymentRow,
        notice: &Verified<'_>,
    ) -> Result<(), OpError> {
        let amount = Amount::from_wire(&row.currency, &row.amount)
            .map_err(|_| OpError::Internal(anyhow::anyhow!("a payment's amount cannot be read")))?;
        let expected = Expected { payment_request_id: &row.payment_request_id, amount: &amount };
        let Reading::Says(verdict) = read_notice(notice, &expected) else {
            tracing::error!(
                alarm = true, payment = %row.payment_request_id,
                "a signed notification disagrees with its payment; the gateway is asked"
            );
            return self.ask_about(&row).await;
        };
        let other_id = member(notice.text(), "paymentId")
            .zip(row.payment_id.as_ref())
            .is_some_and(|(told, known)| told != *known);
        if contradicts(row.status, verdict) || other_id {
            tracing::error!(
                alarm = true, payment = %row.payment_request_id, status = row.status.name(),
                "a signed notification contradicts a payment; the gateway is asked"
            );
            return self.ask_about(&row).await;
        }
        if !told.timely || verdict == Verdict::Unclear {
            // What is settled needs no confirmation.
            return if row.status.is_final() { Ok(()) } else { self.ask_about(&row).await };
        }
        self.settle(row, notice, verdict, Source::Notification, Own::default()).await.map(|_| ())
    }

    /// Has the gateway asked about a payment, soon and durably.
    async fn ask_about(&self, row: &PaymentRow) -> Result<(), OpError> {
        Ok(rows::look_by(&self.db, &row.account, &row.payment_request_id, self.now()).await?)
    }

    async fn apply_to_operation(
        self: &Arc<Self>,
        told: &Told,
        kind: OperationKind,
        request_id: Option<&str>,
        payment_id: Option<&str>,
        notice: &Verified<'_>,
    ) -> Result<(), OpError> {
        let known = match request_id.and_then(PaymentRequestId::parse) {
            Some(id) => operation_rows::find_operation(&self.db, &told.account, kind, &id).await?,
            None => None,
        };
        if let Some(row) = known {
            return self.apply_to_known(told, &row, notice).await;
        }
        let payment = match payment_id {
            Some(id) => rows::find_payment_by_gateway_id(&self.db, &told.account, id).await?,
            None => None,
        };
        let Some(payment) = payment else { return self.keep_aside(told, notice, kind.name(), None).await };
        // Antom captures by itself under AUTOMATIC capture, and its dashboard can do both.
        match automatic_capture(kind, &payment, request_id, notice).filter(|_| told.timely) {
            Some(capture) => self.learn_elsewhere(&payment, &capture).await,
            None => self.ask_about(&payment).await,
        }
    }

    async fn apply_to_known(
        &self,
        told: &Told,
        row: &OperationRow,
        notice: &Verified<'_>,
    ) -> Result<(), OpError> {
        let payment = rows::find_payment(&self.db, &row.account, &row.payment_request_id).await?;
        let amount = amount_of(row)?;
        let expected = ExpectedOperation {
            kind: row.kind,
            request_id: row.request_id.as_str(),
            payment_id: payment.as_ref().and_then(|payment| payment.payment_id.as_deref()),
            amount: &amount,
            cancelled: payment.as_ref().is_some_and(|payment| payment.status == Status::Cancelled),
        };
        let ask = || operation_rows::look_anew(&self.db, row, self.now());
        match read_operation_notice(notice, &expected) {
            OperationReading::Says(verdict) if operation::contradicts(row.status, verdict) => {
                tracing::error!(
                    alarm = true, request = %row.request_id, kind = row.kind.name(),
                    "a signed notification contradicts a settled operation; the gateway is asked"
                );
                Ok(ask().await?)
            }
            OperationReading::Says(verdict) if told.timely && verdict != OperationVerdict::Unclear => {
                let source = OperationSource::Notification;
                self.settle_operation(row, Some(notice), verdict, source, None).await.map(|_| ())
            }
            OperationReading::Says(_) if row.status.is_final() => Ok(()),
            OperationReading::Says(_) => Ok(ask().await?),
            OperationReading::Disagrees => {
                tracing::error!(
                    alarm = true, request = %row.request_id, kind = row.kind.name(),
                    "a signed notification disagrees with its operation; the gateway is asked"
                );
                Ok(ask().await?)
            }
        }
    }

    /// Tells a dispute's turn in the feed, once.
    async fn tell_dispute(
        &self,
        payment: &PaymentRow,
        dispute_id: &str,
        kind: EventKind,
        notice: &Verified<'_>,
    ) -> Result<(), OpError> {
        let scrubbed = cleaned(notice)?;
        let mut data = ObjectWriter::default();
        data.string("paymentRequestId", payment.payment_request_id.as_str())
            .string_or_null("paymentId", payment.payment_id.as_deref())
            .raw("notification", &scrubbed);
        let data = data.finish();
        let what = length_prefixed(&[b"dispute", dispute_id.as_bytes(), kind.name().as_bytes()]);
        let now = self.now();
        let merchant = &payment.merchant;
        let event = ReadyEvent::new(merchant, kind, ("dispute", &short_id(dispute_id)), data, now)?;
        let keep = Keep {
            account: &payment.account,
            kind: kind.name(),
            merchant,
            payment_request_id: Some(payment.payment_request_id.as_str()),
            what: &what,
            scrubbed: &scrubbed,
        };
        let told =
            |_: &str| Entry::done("dispute.told", payment.payment_request_id.as_str()).with(kind.name());
        if self.keep(&keep, Some(&event), told).await? {
            self.bell.ring_written();
            tracing::warn!(payment = %payment.payment_request_id, kind = kind.name(), "a dispute");
        }
        Ok(())
    }

    /// Keeps a notification that changes nothing here, for 30 days. One of a payment that is not known is an
    /// alarm: something charges in our name, or the database is an old one.
    async fn keep_aside(
        &self,
        told: &Told,
        notice: &Verified<'_>,
        kind: &'static str,
        payment: Option<&PaymentRow>,
    ) -> Result<(), OpError> {
        let nobody = Merchant::parse("nobody").ok_or_else(|| OpError::Internal(anyhow::anyhow!("a name")))?;
        let merchant = payment.map_or(&nobody, |payment| &payment.merchant);
        let scrubbed = cleaned(notice)?;
        let keep = Keep {
            account: &told.account,
            kind,
            merchant,
            payment_request_id: payment.map(|payment| payment.payment_request_id.as_str()),
            what: notice.text().as_bytes(),
            scrubbed: &scrubbed,
        };
        let kept = |digest: &str| Entry::done("notice.keep", digest).with(kind);
        match (self.keep(&keep, None, kept).await?, payment, kind) {
            (true, None, "other") => {
                tracing::warn!("a notification of a kind that is not known was kept aside")
            }
            (true, None, _) => tracing::error!(
                alarm = true,
                kind,
                "a signed notification speaks of something that is not known here; it was kept aside"
            ),
            (true, Some(_), _) => tracing::info!(kind, "a notification that changes nothing was kept aside"),
            (false, ..) => {}
        }
        Ok(())
    }

    /// Keeps a notification with what tells of it, once: `false` where it was kept before.
    async fn keep(
        &self,
        keep: &Keep<'_>,
        event: Option<&ReadyEvent>,
        note: impl Fn(&str) -> Entry,
    ) -> Result<bool, OpError> {
        for _ in 0..TURNS {
            let epoch = self.keys.epoch();
            let digest_key = self.keys.active(Purpose::RequestMac)?;
            let digest = notice_digest(&digest_key, keep.what)?;
            let body = self.sealed_notice(keep.merchant, &digest, keep.scrubbed)?;
            let notice = NewNotice {
                account: keep.account,
                digest: &digest,
                digest_key: digest_key.id(),
                kind: keep.kind,
                merchant: keep.merchant,
                payment_request_id: keep.payment_request_id,
                body: &body,
                now: self.now(),
            };
            let mut tx = self.begin().await?;
            if self.was_kept(&mut tx, keep).await? || !insert_notice(&mut tx, &notice).await? {
                tx.rollback().await?;
                return Ok(false);
            }
            if let Some(event) = event {
                event.insert(&mut tx).await?;
            }
            tx.note(&note(&digest)).await?;
            if tx.commit_sealed_once(epoch).await? {
                return Ok(true);
            }
            self.keys.follow().await?;
        }
        Err(OpError::keys_are_changing())
    }

    /// Whether a notification was kept while another key made its digest.
    async fn was_kept(&self, tx: &mut Tx, keep: &Keep<'_>) -> Result<bool, OpError> {
        let active = self.keys.active(Purpose::RequestMac)?;
        for key in self.keys.of_purpose(Purpose::RequestMac) {
            if key.id() != active.id()
                && has_notice(tx, keep.account, &notice_digest(&key, keep.what)?).await?
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn sealed_notice(&self, merchant: &Merchant, digest: &str, scrubbed: &str) -> Result<Sealed, OpError> {
        let record = format!("notice/{digest}");
        let place = Place { merchant, record: &record, field: Field::GatewayAnswer };
        let dek = self.keys.active(Purpose::Card)?;
        let text = SecretBuf::from_vec(scrubbed.as_bytes().to_vec());
        Ok(envelope::seal(&dek, &place, &text)?)
    }
}

/// The digest by which a notification is known again.
fn notice_digest(key: &DataKey, what: &[u8]) -> Result<String, WrongPurpose> {
    Ok(data_encoding::HEXLOWER.encode(&request_mac::notice_digest(key, what)?))
}

/// A notification to keep.
struct Keep<'a> {
    account: &'a GatewayAccount,
    kind: &'static str,
    merchant: &'a Merchant,
    payment_request_id: Option<&'a str>,
    /// What makes it this one.
    what: &'a [u8],
    scrubbed: &'a str,
}

/// How often what was sealed under keys that have changed is sealed again.
const TURNS: usize = 8;

/// What is known of a notification besides its text.
struct Told {
    account: GatewayAccount,
    /// Whether its time is near ours.
    timely: bool,
}

fn cleaned(notice: &Verified<'_>) -> Result<String, OpError> {
    scrub(notice.text(), Own::default())
        .ok_or_else(|| OpError::Internal(anyhow::anyhow!("a verified notification is not JSON")))
}

fn member(text: &str, name: &str) -> Option<String> {
    Object::parse(text)?.get(name).and_then(json::string).map(|text| text.into_owned())
}

/// An id as it may stand in a column and in an event.
fn short_id(text: &str) -> String {
    text.chars().filter(|c| c.is_ascii_graphic()).take(64).collect()
}

/// A capture that the gateway made by itself, of a payment that it captures by itself.
fn automatic_capture(
    kind: OperationKind,
    payment: &PaymentRow,
    request_id: Option<&str>,
    notice: &Verified<'_>,
) -> Option<Transaction> {
    if kind != OperationKind::Capture || payment.manual_capture || payment.status != Status::Authorized {
        return None;
    }
    let object = Object::parse(notice.text())?;
    let sum = Object::parse(object.get("captureAmount")?)?;
    let text = |name: &str| sum.get(name).and_then(json::string);
    let amount = Amount::from_wire(&text("currency")?, &text("value")?).ok()?;
    let whole = amount.currency() == payment.currency && amount.value() == payment.amount;
    let gateway_id = member(notice.text(), "captureId").filter(|id| id.len() <= 64);
    let id = request_id.or(gateway_id.as_deref()).and_then(PaymentRequestId::parse)?;
    let expected = expected_of(payment, kind, &id, &amount);
    match read_operation_notice(notice, &expected) {
        OperationReading::Says(verdict @ (OperationVerdict::Done | OperationVerdict::Failed)) if whole => {
            Some(Transaction { kind, request_id: id.clone(), gateway_id, amount, verdict })
        }
        _ => None,
    }
}
