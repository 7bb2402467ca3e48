//! Captures and refunds. An operation is inserted together with the reservation of its sum on the payment,
//! which is one conditional statement: the sums never exceed what is left, however many ask at once.

use super::backend::{Arg, Db, Row, StoreError, Tx};
use crate::base::clock::Millis;
use crate::base::ids::{ClientName, GatewayAccount, InstanceId, Merchant, PaymentRequestId};
use crate::base::money::Amount;
use crate::base::sealed::Sealed;
use crate::model::operation::{OperationKind, OperationStatus};

/// An operation to insert.
pub struct NewOperation<'a> {
    /// Antom's client id.
    pub account: &'a GatewayAccount,
    /// Capture or refund.
    pub kind: OperationKind,
    /// The idempotency key, unique within account and kind.
    pub request_id: &'a PaymentRequestId,
    /// Whose it is.
    pub merchant: &'a Merchant,
    /// Of which payment.
    pub payment_request_id: &'a PaymentRequestId,
    /// How much.
    pub amount: &'a Amount,
    /// What asked for it here; none where the gateway told of it.
    pub asked: Option<Asked<'a>>,
    /// Where it stands.
    pub status: OperationStatus,
    /// Antom's id of it, where it is known.
    pub gateway_id: Option<&'a str>,
    /// When the gateway is asked after it.
    pub next_look: Option<Millis>,
    /// Now.
    pub now: Millis,
}

/// Who asked, and for what.
#[derive(Clone, Copy)]
pub struct Asked<'a> {
    /// Who.
    pub client: &'a ClientName,
    /// Keyed digest of what the request means.
    pub meaning: &'a [u8],
    /// The key of that digest.
    pub meaning_key: &'a str,
    /// The request as it will leave, sealed.
    pub outgoing: &'a Sealed,
}

/// An operation.
pub struct OperationRow {
    /// Antom's client id.
    pub account: GatewayAccount,
    /// Capture or refund.
    pub kind: OperationKind,
    /// The idempotency key.
    pub request_id: PaymentRequestId,
    /// Whose it is.
    pub merchant: Merchant,
    /// Of which payment.
    pub payment_request_id: PaymentRequestId,
    /// Where it stands.
    pub status: OperationStatus,
    /// Keyed digest of what the request means, and its key; none where it was not asked for here.
    pub meaning: Option<(Vec<u8>, String)>,
    /// ISO 4217.
    pub currency: String,
    /// In the smallest unit.
    pub amount: i64,
    /// Antom's id of it.
    pub gateway_id: Option<String>,
    /// `result.resultCode` of the newest answer.
    pub result_code: Option<String>,
    /// `result.resultStatus` of it.
    pub result_status: Option<String>,
    /// What settled it.
    pub settled_by: Option<String>,
    /// The request as it left, sealed; none once it is final.
    pub outgoing: Option<Sealed>,
    /// The newest answer, sealed.
    pub answer: Option<Sealed>,
    /// When the gateway is asked again.
    pub next_look: Option<Millis>,
    /// How often it was asked in vain.
    pub looks: i64,
    /// When it was asked for.
    pub created_at: Millis,
    /// When it last changed.
    pub updated_at: Millis,
}

macro_rules! columns {
    () => {
        "account, kind, request_id, merchant, payment_request_id, status, meaning, meaning_key, currency, \
         amount, gateway_id, result_code, result_status, settled_by, outgoing, answer, next_look, looks, \
         created_at, updated_at"
    };
}

fn operation_row(row: &Row) -> Result<OperationRow, StoreError> {
    fn parsed<T>(value: Option<T>) -> Result<T, StoreError> {
        value.ok_or(StoreError::Damaged)
    }
    let meaning = match (row.bytes_or_null("meaning")?, row.text_or_null("meaning_key")?) {
        (Some(meaning), Some(key)) => Some((meaning, key)),
        _ => None,
    };
    Ok(OperationRow {
        account: parsed(GatewayAccount::parse(&row.text("account")?))?,
        kind: parsed(OperationKind::parse(&row.text("kind")?))?,
        request_id: parsed(PaymentRequestId::parse(&row.text("request_id")?))?,
        merchant: parsed(Merchant::parse(&row.text("merchant")?))?,
        payment_request_id: parsed(PaymentRequestId::parse(&row.text("payment_request_id")?))?,
        status: parsed(OperationStatus::parse(&row.text("status")?))?,
        meaning,
        currency: row.text("currency")?,
        amount: row.int("amount")?,
        gateway_id: row.text_or_null("gateway_id")?,
        result_code: row.text_or_null("result_code")?,
        result_status: row.text_or_null("result_status")?,
        settled_by: row.text_or_null("settled_by")?,
        outgoing: row.bytes_or_null("outgoing")?.map(Sealed::from_bytes),
        answer: row.bytes_or_null("answer")?.map(Sealed::from_bytes),
        next_look: row.int_or_null("next_look")?.map(Millis),
        looks: row.int("looks")?,
        created_at: Millis(row.int("created_at")?),
        updated_at: Millis(row.int("updated_at")?),
    })
}

/// Reserves a sum on an authorised payment; `false` where the payment does not allow it now. A capture
/// needs MANUAL capture, an authorisation that is not over, and a review that accepted; a refund needs
/// money that was taken. An open cancel excludes both.
pub async fn reserve(
    tx: &mut Tx,
    kind: OperationKind,
    account: &GatewayAccount,
    payment: &PaymentRequestId,
    amount: &Amount,
    now: Millis,
) -> Result<bool, StoreError> {
    const CAPTURE: &str = "UPDATE payments SET capture_reserved = capture_reserved + $4, \
         open_operations = open_operations + 1, operation_count = operation_count + 1, version = version + 1 \
         WHERE account = $1 AND payment_request_id = $2 AND currency = $3 AND status = 'AUTHORIZED' \
         AND manual_capture = 1 AND (cancel_state IS NULL OR cancel_state = 'REFUSED') \
         AND (auth_expires_at IS NULL OR auth_expires_at > $5) \
         AND (auth_review IS NULL OR auth_review = 'ACCEPT') \
         AND capture_reserved + $4 <= CAST(amount AS BIGINT)";
    const REFUND: &str = "UPDATE payments SET refund_reserved = refund_reserved + $4, \
         open_operations = open_operations + 1, operation_count = operation_count + 1, version = version + 1 \
         WHERE account = $1 AND payment_request_id = $2 AND currency = $3 AND status = 'AUTHORIZED' \
         AND (cancel_state IS NULL OR cancel_state = 'REFUSED') AND $5 >= 0 \
         AND refund_reserved + $4 <= CASE WHEN manual_capture = 1 THEN captured \
             ELSE CAST(amount AS BIGINT) END";
    let sql = match kind {
        OperationKind::Capture => CAPTURE,
        OperationKind::Refund => REFUND,
    };
    let args = [
        Arg::Text(account.as_str()),
        Arg::Text(payment.as_str()),
        Arg::Text(amount.currency()),
        Arg::Int(amount.minor_units()),
        Arg::Int(now.0),
    ];
    Ok(tx.execute(sql, &args).await? == 1)
}

/// What decides whether a payment allows an operation: for the reason of a refusal.
pub struct Allowance {
    /// In the smallest unit.
    pub amount: i64,
    /// Captures that have not failed.
    pub capture_reserved: i64,
    /// Captures that are verified.
    pub captured: i64,
    /// Refunds that have not failed.
    pub refund_reserved: i64,
    /// Captures and refunds without a final outcome.
    pub open_operations: i64,
}

/// Reads a payment's sums.
pub async fn allowance(
    db: &Db,
    account: &GatewayAccount,
    payment: &PaymentRequestId,
) -> Result<Option<Allowance>, StoreError> {
    const SQL: &str = "SELECT CAST(amount AS BIGINT) AS units, capture_reserved, captured, refund_reserved, \
         open_operations FROM payments WHERE account = $1 AND payment_request_id = $2";
    let row = db.find(SQL, &[Arg::Text(account.as_str()), Arg::Text(payment.as_str())]).await?;
    row.map(|row| {
        Ok(Allowance {
            amount: row.int("units")?,
            capture_reserved: row.int("capture_reserved")?,
            captured: row.int("captured")?,
            refund_reserved: row.int("refund_reserved")?,
            open_operations: row.int("open_operations")?,
        })
    })
    .transpose()
}

/// Counts an operation that was done elsewhere: its sum is taken from what is left, whether or not it fits.
pub async fn count_elsewhere(
    tx: &mut Tx,
    kind: OperationKind,
    account: &GatewayAccount,
    payment: &PaymentRequestId,
    status: OperationStatus,
    amount: i64,
) -> Result<(), StoreError> {
    const CAPTURE: &str = "UPDATE payments SET capture_reserved = capture_reserved + $3, \
         captured = captured + $4, open_operations = open_operations + $5, \
         operation_count = operation_count + 1, version = version + 1 \
         WHERE account = $1 AND payment_request_id = $2";
    const REFUND: &str = "UPDATE payments SET refund_reserved = refund_reserved + $3 + 0 * $4, \
         open_operations = open_operations + $5, operation_count = operation_count + 1, \
         version = version + 1 WHERE account = $1 AND payment_request_id = $2";
    let sql = match kind {
        OperationKind::Capture => CAPTURE,
        OperationKind::Refund => REFUND,
    };
    let reserved = if status == OperationStatus::Failed { 0 } else { amount };
    let done = if status == OperationStatus::Succeeded { amount } else { 0 };
    let args = [
        Arg::Text(account.as_str()),
        Arg::Text(payment.as_str()),
        Arg::Int(reserved),
        Arg::Int(done),
        Arg::Int(i64::from(!status.is_final())),
    ];
    tx.execute(sql, &args).await.map(|_| ())
}

/// Inserts an operation; `false` where its id is in use.
pub async fn insert_operation(tx: &mut Tx, operation: &NewOperation<'_>) -> Result<bool, StoreError> {
    const SQL: &str = "INSERT INTO operations (account, kind, request_id, merchant, client, \
         payment_request_id, status, meaning, meaning_key, currency, amount, gateway_id, outgoing, sent_at, \
         next_look, version, created_at, updated_at, settled_by) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, 1, $14, $14, $16) \
         ON CONFLICT (account, kind, request_id) DO NOTHING";
    let asked = operation.asked.as_ref();
    let learned = asked.is_none() && operation.status.is_final();
    let args = [
        Arg::Text(operation.account.as_str()),
        Arg::Text(operation.kind.name()),
        Arg::Text(operation.request_id.as_str()),
        Arg::Text(operation.merchant.as_str()),
        Arg::TextOrNull(asked.map(|asked| asked.client.as_str())),
        Arg::Text(operation.payment_request_id.as_str()),
        Arg::Text(operation.status.name()),
        Arg::BytesOrNull(asked.map(|asked| asked.meaning)),
        Arg::TextOrNull(asked.map(|asked| asked.meaning_key)),
        Arg::Text(operation.amount.currency()),
        Arg::Int(operation.amount.minor_units()),
        Arg::TextOrNull(operation.gateway_id),
        Arg::BytesOrNull(asked.map(|asked| asked.outgoing.as_bytes())),
        Arg::Int(operation.now.0),
        Arg::IntOrNull(operation.next_look.map(|at| at.0)),
        Arg::TextOrNull(learned.then_some("inquiry")),
    ];
    Ok(tx.execute(SQL, &args).await? == 1)
}

/// The operation with this id in this account, whosever it is: the caller compares the merchant.
pub async fn find_operation(
    db: &Db,
    account: &GatewayAccount,
    kind: OperationKind,
    request_id: &PaymentRequestId,
) -> Result<Option<OperationRow>, StoreError> {
    const SQL: &str = concat!(
        "SELECT ",
        columns!(),
        " FROM operations WHERE account = $1 AND kind = $2 AND request_id = $3"
    );
    let args = [Arg::Text(account.as_str()), Arg::Text(kind.name()), Arg::Text(request_id.as_str())];
    db.find(SQL, &args).await?.as_ref().map(operation_row).transpose()
}

/// A payment's captures and refunds, oldest first.
pub async fn list_operations(
    db: &Db,
    account: &GatewayAccount,
    payment: &PaymentRequestId,
) -> Result<Vec<OperationRow>, StoreError> {
    // A gateway takes few of either for one payment; what is beyond this is shown one by one.
    const SQL: &str = concat!(
        "SELECT ",
        columns!(),
        " FROM operations WHERE account = $1 AND payment_request_id = $2 \
         ORDER BY created_at, kind, request_id LIMIT 1000"
    );
    let args = [Arg::Text(account.as_str()), Arg::Text(payment.as_str())];
    db.list(SQL, &args).await?.iter().map(operation_row).collect()
}

/// What a verified answer changes.
pub struct OperationChange<'a> {
    /// The status that it was decided upon.
    pub from: OperationStatus,
    /// The status that follows; the same where only the answer is kept.
    pub to: OperationStatus,
    /// Antom's id of it, where the answer tells it.
    pub gateway_id: Option<&'a str>,
    /// `result.resultCode`.
    pub result_code: Option<&'a str>,
    /// `result.resultStatus`.
    pub result_status: Option<&'a str>,
    /// What settled it, where `to` is another and final status.
    pub settled_by: Option<&'a str>,
    /// The answer, scrubbed and sealed.
    pub answer: Option<&'a Sealed>,
    /// When the gateway is asked again.
    pub next_look: Option<Millis>,
    /// Now.
    pub now: Millis,
}

/// Applies a change to an operation that still has the status it was decided upon, and moves the sums of
/// its payment with it; `false` where it has another status by now, and all must be rolled back.
pub async fn change_operation(
    tx: &mut Tx,
    row: &OperationRow,
    change: &OperationChange<'_>,
) -> Result<bool, StoreError> {
    const SQL: &str = "UPDATE operations SET status = $5, gateway_id = COALESCE($6, gateway_id), \
         result_code = COALESCE($7, result_code), result_status = COALESCE($8, result_status), \
         settled_by = COALESCE($9, settled_by), answer = COALESCE($10, answer), \
         outgoing = CASE WHEN $11 = 1 THEN NULL ELSE outgoing END, next_look = $12, \
         looks = CASE WHEN $4 <> $5 THEN 0 ELSE looks END, version = version + 1, updated_at = $13 \
         WHERE account = $1 AND kind = $2 AND request_id = $3 AND status = $4";
    let args = [
        Arg::Text(row.account.as_str()),
        Arg::Text(row.kind.name()),
        Arg::Text(row.request_id.as_str()),
        Arg::Text(change.from.name()),
        Arg::Text(change.to.name()),
        Arg::TextOrNull(change.gateway_id),
        Arg::TextOrNull(change.result_code),
        Arg::TextOrNull(change.result_status),
        Arg::TextOrNull(change.settled_by),
        Arg::BytesOrNull(change.answer.map(Sealed::as_bytes)),
        Arg::Int(i64::from(change.to.is_final())),
        Arg::IntOrNull(change.next_look.map(|at| at.0)),
        Arg::Int(change.now.0),
    ];
    // The payment first, as where an operation is inserted: the other way round, the two wait for one another.
    move_sums(tx, row, change.from, change.to).await?;
    Ok(tx.execute(SQL, &args).await? == 1)
}

/// Takes the sums of a payment along with a change of one of its operations.
async fn move_sums(
    tx: &mut Tx,
    row: &OperationRow,
    from: OperationStatus,
    to: OperationStatus,
) -> Result<(), StoreError> {
    const CAPTURE: &str = "UPDATE payments SET capture_reserved = capture_reserved + $3, \
         captured = captured + $4, open_operations = open_operations + $5, version = version + 1 \
         WHERE account = $1 AND payment_request_id = $2";
    const REFUND: &str = "UPDATE payments SET refund_reserved = refund_reserved + $3 + 0 * $4, \
         open_operations = open_operations + $5, version = version + 1 \
         WHERE account = $1 AND payment_request_id = $2";
    let is = |status: OperationStatus, wanted: OperationStatus| i64::from(status == wanted);
    let reserved = is(from, OperationStatus::Failed) - is(to, OperationStatus::Failed);
    let done = is(to, OperationStatus::Succeeded) - is(from, OperationStatus::Succeeded);
    let open = i64::from(!to.is_final()) - i64::from(!from.is_final());
    if reserved == 0 && done == 0 && open == 0 {
        return Ok(());
    }
    let sql = match row.kind {
        OperationKind::Capture => CAPTURE,
        OperationKind::Refund => REFUND,
    };
    let args = [
        Arg::Text(row.account.as_str()),
        Arg::Text(row.payment_request_id.as_str()),
        Arg::Int(reserved.saturating_mul(row.amount)),
        Arg::Int(done.saturating_mul(row.amount)),
        Arg::Int(open),
    ];
    tx.execute(sql, &args).await.map(|_| ())
}

/// Operations that somebody must look after now, the longest due first.
pub async fn list_due(db: &Db, now: Millis, limit: i64) -> Result<Vec<OperationRow>, StoreError> {
    const SQL: &str = concat!(
        "SELECT ",
        columns!(),
        " FROM operations WHERE next_look <= $1 AND (lease_until IS NULL OR lease_until <= $1) \
         ORDER BY next_look LIMIT $2"
    );
    db.list(SQL, &[Arg::Int(now.0), Arg::Int(limit)]).await?.iter().map(operation_row).collect()
}

/// Takes an operation to look after until `until`; `false` where another process was faster.
pub async fn claim(
    db: &Db,
    row: &OperationRow,
    owner: &InstanceId,
    now: Millis,
    until: Millis,
) -> Result<bool, StoreError> {
    const SQL: &str = "UPDATE operations SET lease_owner = $4, lease_until = $6 \
         WHERE account = $1 AND kind = $2 AND request_id = $3 AND next_look <= $5 \
         AND (lease_until IS NULL OR lease_until <= $5)";
    let args = [
        Arg::Text(row.account.as_str()),
        Arg::Text(row.kind.name()),
        Arg::Text(row.request_id.as_str()),
        Arg::Text(owner.as_str()),
        Arg::Int(now.0),
        Arg::Int(until.0),
    ];
    Ok(db.execute(SQL, &args).await? == 1)
}

/// Gives an operation back after a look; what changed in it has set its own time.
pub async fn release(
    db: &Db,
    before: &OperationRow,
    owner: &InstanceId,
    next_look: Option<Millis>,
) -> Result<(), StoreError> {
    const SQL: &str = "UPDATE operations SET lease_owner = NULL, lease_until = NULL, \
         looks = CASE WHEN status = $5 THEN looks + 1 ELSE looks END, \
         next_look = CASE WHEN status = $5 AND next_look = $7 THEN $6 ELSE next_look END \
         WHERE account = $1 AND kind = $2 AND request_id = $3 AND lease_owner = $4";
    let args = [
        Arg::Text(before.account.as_str()),
        Arg::Text(before.kind.name()),
        Arg::Text(before.request_id.as_str()),
        Arg::Text(owner.as_str()),
        Arg::Text(before.status.name()),
        Arg::IntOrNull(next_look.map(|at| at.0)),
        Arg::IntOrNull(before.next_look.map(|at| at.0)),
    ];
    db.execute(SQL, &args).await.map(|_| ())
}

/// Asks for a look at `at`, or sooner where one is due sooner.
pub async fn look_by(db: &Db, row: &OperationRow, at: Millis) -> Result<(), StoreError> {
    const SQL: &str = "UPDATE operations SET next_look = $4 \
         WHERE account = $1 AND kind = $2 AND request_id = $3 AND (next_look IS NULL OR next_look > $4)";
    ask(db, SQL, row, at).await
}

/// As [`look_by`], after one that is under way too: it may have asked before there was something to learn.
pub async fn look_anew(db: &Db, row: &OperationRow, at: Millis) -> Result<(), StoreError> {
    const SQL: &str = "UPDATE operations SET next_look = $4 \
         WHERE account = $1 AND kind = $2 AND request_id = $3 \
         AND (next_look IS NULL OR next_look > $4 OR lease_until > $4)";
    ask(db, SQL, row, at).await
}

async fn ask(db: &Db, sql: &'static str, row: &OperationRow, at: Millis) -> Result<(), StoreError> {
    let args = [
        Arg::Text(row.account.as_str()),
        Arg::Text(row.kind.name()),
        Arg::Text(row.request_id.as_str()),
        Arg::Int(at.0),
    ];
    db.execute(sql, &args).await.map(|_| ())
}
