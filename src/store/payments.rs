//! Payments: what was asked, how far it got, and what the gateway last said. A row is durable before
//! the first byte of its request leaves; its status changes only by compare-and-swap.

use super::backend::{Arg, Db, Row, StoreError, Tx};
use crate::base::clock::Millis;
use crate::base::ids::{AgreementId, CardId, ClientName, GatewayAccount, Merchant, PaymentRequestId};
use crate::base::sealed::Sealed;
use crate::model::agreement::Initiator;
use crate::model::decline::Decline;
use crate::model::payment::Status;

/// A payment to insert.
pub struct NewPayment<'a> {
    /// Antom's client id.
    pub account: &'a GatewayAccount,
    /// The idempotency key.
    pub payment_request_id: &'a PaymentRequestId,
    /// Whose it is.
    pub merchant: &'a Merchant,
    /// Who asked.
    pub client: &'a ClientName,
    /// The card, if it is one of the vault's.
    pub card_id: Option<&'a CardId>,
    /// Keyed digest of what the request means.
    pub meaning: &'a [u8],
    /// The key of that digest.
    pub meaning_key: &'a str,
    /// ISO 4217.
    pub currency: &'a str,
    /// In the smallest unit.
    pub amount: &'a str,
    /// Whether it leaves with a CVV or its like.
    pub had_sensitive: bool,
    /// Who begins it.
    pub initiator: Initiator,
    /// The agreement that it opens or uses.
    pub agreement_id: Option<&'a AgreementId>,
    /// Whether it uses the agreement, which must then allow it in the very statement that inserts the
    /// payment, so that no payment overtakes a withdrawal.
    pub uses_agreement: bool,
    /// Whether the number was typed for a card that was known already.
    pub retyped: bool,
    /// The request as it will leave, sealed, without PAN and CVV.
    pub outgoing: &'a Sealed,
    /// The process and attempt that will send it.
    pub attempt: &'a str,
    /// Now.
    pub now: Millis,
}

/// A payment.
pub struct PaymentRow {
    /// Antom's client id.
    pub account: GatewayAccount,
    /// The idempotency key.
    pub payment_request_id: PaymentRequestId,
    /// Whose it is.
    pub merchant: Merchant,
    /// The card, if it is one of the vault's.
    pub card_id: Option<CardId>,
    /// The agreement that it opened or used.
    pub agreement_id: Option<AgreementId>,
    /// Where it stands.
    pub status: Status,
    /// Keyed digest of what the request means.
    pub meaning: Vec<u8>,
    /// The key of that digest.
    pub meaning_key: String,
    /// ISO 4217.
    pub currency: String,
    /// In the smallest unit.
    pub amount: String,
    /// Antom's id.
    pub payment_id: Option<String>,
    /// What settled it: `pay`, `inquiry`, `not_sent`.
    pub settled_by: Option<String>,
    /// The newest answer, sealed.
    pub answer: Option<Sealed>,
    /// The request as it left, sealed; none once the payment is final.
    pub outgoing: Option<Sealed>,
    /// Whether the number was typed for a card that was known already.
    pub retyped: bool,
    /// The process and attempt that sent it.
    pub attempt: String,
    /// When it was asked for.
    pub created_at: Millis,
    /// When it last changed.
    pub updated_at: Millis,
}

macro_rules! columns {
    () => {
        "account, payment_request_id, merchant, card_id, agreement_id, status, meaning, meaning_key, currency, amount, \
         payment_id, settled_by, answer, outgoing, retyped, attempt, created_at, updated_at"
    };
}

fn payment_row(row: &Row) -> Result<PaymentRow, StoreError> {
    fn parsed<T>(value: Option<T>) -> Result<T, StoreError> {
        value.ok_or(StoreError::Damaged)
    }
    let agreement_id =
        row.text_or_null("agreement_id")?.map(|text| parsed(AgreementId::parse(&text))).transpose()?;
    let card_id = row.text_or_null("card_id")?.map(|text| parsed(CardId::parse(&text))).transpose()?;
    Ok(PaymentRow {
        account: parsed(GatewayAccount::parse(&row.text("account")?))?,
        payment_request_id: parsed(PaymentRequestId::parse(&row.text("payment_request_id")?))?,
        merchant: parsed(Merchant::parse(&row.text("merchant")?))?,
        card_id,
        agreement_id,
        status: parsed(Status::parse(&row.text("status")?))?,
        meaning: row.bytes("meaning")?,
        meaning_key: row.text("meaning_key")?,
        currency: row.text("currency")?,
        amount: row.text("amount")?,
        payment_id: row.text_or_null("payment_id")?,
        settled_by: row.text_or_null("settled_by")?,
        answer: row.bytes_or_null("answer")?.map(Sealed::from_bytes),
        outgoing: row.bytes_or_null("outgoing")?.map(Sealed::from_bytes),
        retyped: row.int("retyped")? == 1,
        attempt: row.text("attempt")?,
        created_at: Millis(row.int("created_at")?),
        updated_at: Millis(row.int("updated_at")?),
    })
}

/// Inserts a payment as UNKNOWN; `false` where its id is in use. The card must be alive in this very
/// statement, so that no payment overtakes an erasure.
pub async fn insert_payment(tx: &mut Tx, payment: &NewPayment<'_>) -> Result<bool, StoreError> {
    const SQL: &str = "INSERT INTO payments (account, payment_request_id, merchant, client, card_id, \
         status, meaning, meaning_key, currency, amount, had_sensitive, retyped, outgoing, attempt, \
         sent_at, version, created_at, updated_at, agreement_id, initiator) \
         SELECT $1, $2, $3, $4, $5, 'UNKNOWN', $6, $7, $8, $9, $10, $11, $12, $13, $14, 1, $14, $14, \
             $15, $16 \
         WHERE ($5 IS NULL OR EXISTS (SELECT 1 FROM cards \
             WHERE merchant = $3 AND card_id = $5 AND erased_at IS NULL)) \
         AND ($17 = 0 OR EXISTS (SELECT 1 FROM agreements \
             WHERE merchant = $3 AND agreement_id = $15 AND card_id = $5 AND state = 'ACTIVE' \
             AND (expires_at IS NULL OR expires_at > $14) \
             AND ($16 = 'CUSTOMER' OR (type <> 'CARD_ON_FILE' AND nti IS NOT NULL \
                 AND (max_amount IS NULL OR (max_currency = $8 AND max_amount >= $18)))))) \
         ON CONFLICT (account, payment_request_id) DO NOTHING";
    let args = [
        Arg::Text(payment.account.as_str()),
        Arg::Text(payment.payment_request_id.as_str()),
        Arg::Text(payment.merchant.as_str()),
        Arg::Text(payment.client.as_str()),
        Arg::TextOrNull(payment.card_id.map(CardId::as_str)),
        Arg::Bytes(payment.meaning),
        Arg::Text(payment.meaning_key),
        Arg::Text(payment.currency),
        Arg::Text(payment.amount),
        Arg::Int(i64::from(payment.had_sensitive)),
        Arg::Int(i64::from(payment.retyped)),
        Arg::Bytes(payment.outgoing.as_bytes()),
        Arg::Text(payment.attempt),
        Arg::Int(payment.now.0),
        Arg::TextOrNull(payment.agreement_id.map(AgreementId::as_str)),
        Arg::Text(payment.initiator.name()),
        Arg::Int(i64::from(payment.uses_agreement)),
        Arg::Int(payment.amount.parse().unwrap_or(i64::MAX)),
    ];
    Ok(tx.execute(SQL, &args).await? == 1)
}

/// The payment with this id in this account, whosever it is: the caller compares the merchant.
pub async fn find_payment(
    db: &Db,
    account: &GatewayAccount,
    id: &PaymentRequestId,
) -> Result<Option<PaymentRow>, StoreError> {
    const SQL: &str =
        concat!("SELECT ", columns!(), " FROM payments WHERE account = $1 AND payment_request_id = $2");
    let row = db.find(SQL, &[Arg::Text(account.as_str()), Arg::Text(id.as_str())]).await?;
    row.as_ref().map(payment_row).transpose()
}

/// A page of a merchant's payments, oldest first, optionally of one card or status.
pub async fn list_payments(
    db: &Db,
    merchant: &Merchant,
    card_id: Option<&CardId>,
    status: Option<Status>,
    after: Option<&PaymentRequestId>,
    limit: i64,
) -> Result<Vec<PaymentRow>, StoreError> {
    const SQL: &str = concat!(
        "SELECT ",
        columns!(),
        " FROM payments WHERE merchant = $1 \
         AND (card_id = $2 OR $2 IS NULL) AND (status = $3 OR $3 IS NULL) \
         AND (created_at, payment_request_id) > (COALESCE((SELECT MIN(created_at) FROM payments \
             WHERE merchant = $1 AND payment_request_id = $4), 0), $4) \
         ORDER BY created_at, payment_request_id LIMIT $5"
    );
    let args = [
        Arg::Text(merchant.as_str()),
        Arg::TextOrNull(card_id.map(CardId::as_str)),
        Arg::TextOrNull(status.map(Status::name)),
        Arg::Text(after.map_or("", PaymentRequestId::as_str)),
        Arg::Int(limit),
    ];
    db.list(SQL, &args).await?.iter().map(payment_row).collect()
}

/// What a verified answer, or the knowledge that nothing was sent, changes.
pub struct Change<'a> {
    /// The status that it was decided upon.
    pub from: Status,
    /// The status that follows; the same where only the answer is kept.
    pub to: Status,
    /// Antom's id, where the answer tells it.
    pub payment_id: Option<&'a str>,
    /// `result.resultCode`.
    pub result_code: Option<&'a str>,
    /// `result.resultStatus`.
    pub result_status: Option<&'a str>,
    /// What settled it, where `to` is another and final status.
    pub settled_by: Option<&'a str>,
    /// The answer, scrubbed and sealed.
    pub answer: Option<&'a Sealed>,
    /// How the issuer declined, where it did.
    pub decline: Option<Decline>,
    /// Now.
    pub now: Millis,
}

/// Applies a change to a payment that still has the status it was decided upon; `false` where it has
/// another by now. What a change does not know stays; the sealed request goes at a final status. The
/// caller writes the event of a new status in the same transaction.
pub async fn change_payment(
    tx: &mut Tx,
    account: &GatewayAccount,
    id: &PaymentRequestId,
    change: &Change<'_>,
) -> Result<bool, StoreError> {
    const SQL: &str = "UPDATE payments SET status = $4, payment_id = COALESCE($5, payment_id), \
         result_code = COALESCE($6, result_code), result_status = COALESCE($7, result_status), \
         settled_by = COALESCE($8, settled_by), answer = COALESCE($9, answer), \
         outgoing = CASE WHEN $10 = 1 THEN NULL ELSE outgoing END, \
         decline = COALESCE($12, decline), version = version + 1, updated_at = $11 \
         WHERE account = $1 AND payment_request_id = $2 AND status = $3";
    let args = [
        Arg::Text(account.as_str()),
        Arg::Text(id.as_str()),
        Arg::Text(change.from.name()),
        Arg::Text(change.to.name()),
        Arg::TextOrNull(change.payment_id),
        Arg::TextOrNull(change.result_code),
        Arg::TextOrNull(change.result_status),
        Arg::TextOrNull(change.settled_by),
        Arg::BytesOrNull(change.answer.map(Sealed::as_bytes)),
        Arg::Int(i64::from(change.to.is_final())),
        Arg::Int(change.now.0),
        Arg::TextOrNull(change.decline.map(Decline::name)),
    ];
    Ok(tx.execute(SQL, &args).await? == 1)
}

/// Notes that the request is about to be sent once more.
pub async fn note_resend(
    db: &Db,
    account: &GatewayAccount,
    id: &PaymentRequestId,
    attempt: &str,
    now: Millis,
) -> Result<bool, StoreError> {
    const SQL: &str = "UPDATE payments SET sent_at = $4, updated_at = $4, version = version + 1 \
         WHERE account = $1 AND payment_request_id = $2 AND attempt = $3 AND status = 'UNKNOWN'";
    let args = [Arg::Text(account.as_str()), Arg::Text(id.as_str()), Arg::Text(attempt), Arg::Int(now.0)];
    Ok(db.execute(SQL, &args).await? == 1)
}
