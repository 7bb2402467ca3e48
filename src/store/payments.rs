//! Payments: what was asked, how far it got, and what the gateway last said. A row is durable before
//! the first byte of its request leaves; its status changes only by compare-and-swap.

use super::alone::{Alone, alone};
use super::backend::{Arg, Db, Row, StoreError, Tx};
use super::many::{Columns, Kind};
use crate::base::clock::Millis;
use crate::base::ids::{
    AgreementId, CardId, ClientName, GatewayAccount, InstanceId, Merchant, PaymentRequestId,
};
use crate::base::sealed::Sealed;
use crate::metrics::Waiting;
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
    /// The epoch of the keys in which that was sealed.
    pub epoch: i64,
    /// The process and attempt that will send it.
    pub attempt: &'a str,
    /// Whether money is taken by captures only.
    pub manual_capture: bool,
    /// The buyer's id at the merchant.
    pub buyer: Option<&'a str>,
    /// Whether Antom's token is kept when it comes.
    pub wants_token: bool,
    /// When the payment ends by itself, where the caller says so.
    pub expires_at: Option<Millis>,
    /// When others may look after it: the sender's own time is over then.
    pub next_look: Millis,
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
    /// The card that the gateway holds for it, once it has told.
    pub token_card_id: Option<CardId>,
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
    /// Whether it left with a CVV or its like, and so can never be sent again by another process.
    pub had_sensitive: bool,
    /// The process and attempt that sent it.
    pub attempt: String,
    /// When it was last sent.
    pub sent_at: Millis,
    /// Whether money is taken by captures only.
    pub manual_capture: bool,
    /// The buyer's id at the merchant.
    pub buyer: Option<String>,
    /// Whether Antom's token is kept when it comes.
    pub wants_token: bool,
    /// When it ends by itself, where the caller said so.
    pub expires_at: Option<Millis>,
    /// The cancel, if there is one.
    pub cancel: Option<CancelRow>,
    /// How many captures and refunds there are, failed ones included.
    pub operation_count: i64,
    /// Until when the authorisation can be captured.
    pub auth_expires_at: Option<Millis>,
    /// The gateway's review of the authorisation: `PROCESSING`, `ACCEPT`, `REJECT`.
    pub auth_review: Option<String>,
    /// When the gateway is asked again.
    pub next_look: Option<Millis>,
    /// How often it was asked in vain.
    pub looks: i64,
    /// Rises with every change of it.
    pub version: i64,
    /// When it was asked for.
    pub created_at: Millis,
    /// When it last changed.
    pub updated_at: Millis,
}

/// A payment's cancel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CancelRow {
    /// Where it stands.
    pub state: CancelState,
    /// Whether the caller asked for it; otherwise the vault ends what it cannot clear up.
    pub by_caller: bool,
    /// The gateway's code, where it refused.
    pub code: Option<String>,
    /// When it was opened, or last sent since.
    pub at: Millis,
}

/// Where a cancel stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CancelState {
    /// It was or may have been sent.
    Open,
    /// The gateway refused it.
    Refused,
    /// The payment is cancelled.
    Done,
}

impl CancelState {
    /// The state as the API and the database spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Open => "OPEN",
            Self::Refused => "REFUSED",
            Self::Done => "DONE",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Open, Self::Refused, Self::Done].into_iter().find(|state| state.name() == text)
    }
}

macro_rules! columns {
    () => {
        "account, payment_request_id, merchant, card_id, token_card_id, agreement_id, status, meaning, meaning_key, currency, amount, \
         payment_id, settled_by, answer, outgoing, retyped, had_sensitive, attempt, sent_at, manual_capture, \
         buyer, wants_token, expires_at, cancel_state, cancel_by, cancel_at, cancel_code, operation_count, \
         auth_expires_at, auth_review, next_look, looks, version, created_at, updated_at"
    };
}

/// A row of `payments`.
pub fn payment_row(row: &Row) -> Result<PaymentRow, StoreError> {
    fn parsed<T>(value: Option<T>) -> Result<T, StoreError> {
        value.ok_or(StoreError::Damaged)
    }
    let agreement_id =
        row.text_or_null("agreement_id")?.map(|text| parsed(AgreementId::parse(&text))).transpose()?;
    let card = |name: &str| row.text_or_null(name)?.map(|text| parsed(CardId::parse(&text))).transpose();
    let (card_id, token_card_id) = (card("card_id")?, card("token_card_id")?);
    let created_at = Millis(row.int("created_at")?);
    let cancel = match row.text_or_null("cancel_state")? {
        None => None,
        Some(state) => Some(CancelRow {
            state: parsed(CancelState::parse(&state))?,
            by_caller: row.text_or_null("cancel_by")?.as_deref() == Some("caller"),
            code: row.text_or_null("cancel_code")?,
            at: Millis(row.int_or_null("cancel_at")?.unwrap_or(created_at.0)),
        }),
    };
    Ok(PaymentRow {
        account: parsed(GatewayAccount::parse(&row.text("account")?))?,
        payment_request_id: parsed(PaymentRequestId::parse(&row.text("payment_request_id")?))?,
        merchant: parsed(Merchant::parse(&row.text("merchant")?))?,
        card_id,
        token_card_id,
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
        had_sensitive: row.int("had_sensitive")? == 1,
        attempt: row.text("attempt")?,
        sent_at: Millis(row.int_or_null("sent_at")?.unwrap_or(created_at.0)),
        manual_capture: row.int("manual_capture")? == 1,
        buyer: row.text_or_null("buyer")?,
        wants_token: row.int("wants_token")? == 1,
        expires_at: row.int_or_null("expires_at")?.map(Millis),
        cancel,
        operation_count: row.int("operation_count")?,
        auth_expires_at: row.int_or_null("auth_expires_at")?.map(Millis),
        auth_review: row.text_or_null("auth_review")?,
        next_look: row.int_or_null("next_look")?.map(Millis),
        looks: row.int("looks")?,
        version: row.int("version")?,
        created_at,
        updated_at: Millis(row.int("updated_at")?),
    })
}

/// What a payment to insert is given by.
const NEW: Columns = &[
    ("account", Kind::Text),
    ("payment_request_id", Kind::Text),
    ("merchant", Kind::Text),
    ("client", Kind::Text),
    ("card_id", Kind::Text),
    ("meaning", Kind::Bytes),
    ("meaning_key", Kind::Text),
    ("currency", Kind::Text),
    ("amount", Kind::Text),
    ("had_sensitive", Kind::Int),
    ("retyped", Kind::Int),
    ("outgoing", Kind::Bytes),
    ("attempt", Kind::Text),
    ("begun", Kind::Int),
    ("agreement_id", Kind::Text),
    ("initiator", Kind::Text),
    ("uses_agreement", Kind::Int),
    ("sum", Kind::Int),
    ("manual_capture", Kind::Int),
    ("wants_token", Kind::Int),
    ("expires_at", Kind::Int),
    ("next_look", Kind::Int),
    ("buyer", Kind::Text),
    ("sealed_in", Kind::Int),
];

/// Inserts payments as UNKNOWN; nothing is returned where an id is in use, and where the keys have changed since the
/// request was sealed, so that no payment is stored whose key has been destroyed. The card must be alive in this very
/// statement, so that no payment overtakes an erasure. The bounds keep PostgreSQL from reading all cards for it.
macro_rules! insert_text {
    () => {
        concat!(
            "INSERT INTO payments (account, payment_request_id, merchant, client, card_id, \
             status, meaning, meaning_key, currency, amount, had_sensitive, retyped, outgoing, attempt, \
             sent_at, version, created_at, updated_at, agreement_id, initiator, manual_capture, wants_token, \
             expires_at, next_look, buyer) \
             SELECT account, payment_request_id, merchant, client, card_id, \
             'UNKNOWN', meaning, meaning_key, currency, amount, had_sensitive, retyped, outgoing, attempt, \
             begun, 1, begun, begun, agreement_id, initiator, manual_capture, wants_token, \
             expires_at, next_look, buyer FROM given \
             WHERE EXISTS (SELECT 1 FROM key_epoch WHERE one = 1 AND key_epoch.epoch = given.sealed_in) \
             AND (given.card_id IS NULL OR EXISTS (SELECT 1 FROM cards WHERE cards.merchant = given.merchant \
                 AND cards.card_id = given.card_id AND cards.erased_at IS NULL LIMIT 1 OFFSET 0)) \
             AND (given.uses_agreement = 0 OR EXISTS (SELECT 1 FROM agreements AS used \
                 WHERE used.merchant = given.merchant AND used.agreement_id = given.agreement_id \
                 AND used.card_id = given.card_id AND used.state = 'ACTIVE' \
                 AND (used.expires_at IS NULL OR used.expires_at > given.begun) \
                 AND (given.initiator = 'CUSTOMER' OR (used.type <> 'CARD_ON_FILE' AND used.nti IS NOT NULL \
                     AND (used.max_amount IS NULL \
                         OR (used.max_currency = given.currency AND used.max_amount >= given.sum)))) \
                 LIMIT 1 OFFSET 0)) \
             ON CONFLICT (account, payment_request_id) DO NOTHING",
            " RETURNING ",
            columns!()
        )
    };
}

/// [`insert_payment`], where nothing else is to be done with it.
pub static INSERT: Alone = alone!(NEW, insert_text);

/// The values of [`INSERT`].
pub fn insert_values<'a>(payment: &NewPayment<'a>) -> [Arg<'a>; 24] {
    [
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
        Arg::Int(i64::from(payment.manual_capture)),
        Arg::Int(i64::from(payment.wants_token)),
        Arg::IntOrNull(payment.expires_at.map(|at| at.0)),
        Arg::Int(payment.next_look.0),
        Arg::TextOrNull(payment.buyer),
        Arg::Int(payment.epoch),
    ]
}

/// Inserts a payment as UNKNOWN, if its id is free, its card alive and its agreement in force.
pub async fn insert_payment(tx: &mut Tx, payment: &NewPayment<'_>) -> Result<Option<PaymentRow>, StoreError> {
    let row = INSERT.run_in(tx, &insert_values(payment)).await?;
    row.as_ref().map(payment_row).transpose()
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

/// The payment that Antom knows by this id, in this account.
pub async fn find_payment_by_gateway_id(
    db: &Db,
    account: &GatewayAccount,
    payment_id: &str,
) -> Result<Option<PaymentRow>, StoreError> {
    const SQL: &str =
        concat!("SELECT ", columns!(), " FROM payments WHERE account = $1 AND payment_id = $2 LIMIT 1");
    let row = db.find(SQL, &[Arg::Text(account.as_str()), Arg::Text(payment_id)]).await?;
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
         AND (card_id = $2 OR token_card_id = $2 OR $2 IS NULL) AND (status = $3 OR $3 IS NULL) \
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
    /// The answer, scrubbed and sealed, and the epoch of the keys in which it was.
    pub answer: Option<(&'a Sealed, i64)>,
    /// How the issuer declined, where it did.
    pub decline: Option<Decline>,
    /// The card that the gateway holds for it, where that is news.
    pub token_card_id: Option<&'a CardId>,
    /// Until when the authorisation can be captured, where the answer tells it.
    pub auth_expires_at: Option<Millis>,
    /// The review of the authorisation, where the answer tells it.
    pub auth_review: Option<&'a str>,
    /// When the gateway is asked again.
    pub next_look: NextLook,
    /// The attempt that must still have the right to send the payment, where the change is its alone.
    pub attempt: Option<&'a str>,
    /// The version that it was decided upon, where nothing may have changed since.
    pub version: Option<i64>,
    /// Now.
    pub now: Millis,
}

/// What a change does to the next look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NextLook {
    /// It stays.
    Keep,
    /// At this time; none where nothing is to be learned.
    At(Option<Millis>),
    /// The same, unless one is due now.
    AtUnlessDue(Option<Millis>),
}

/// What a change is given by.
const CHANGED: Columns = &[
    ("of_account", Kind::Text),
    ("of_id", Kind::Text),
    ("from_status", Kind::Text),
    ("to_status", Kind::Text),
    ("its_payment_id", Kind::Text),
    ("its_result_code", Kind::Text),
    ("its_result_status", Kind::Text),
    ("its_source", Kind::Text),
    ("its_answer", Kind::Bytes),
    ("ends", Kind::Int),
    ("at", Kind::Int),
    ("its_decline", Kind::Text),
    ("its_token_card", Kind::Text),
    ("its_auth_end", Kind::Int),
    ("its_auth_review", Kind::Text),
    ("moves_look", Kind::Int),
    ("look", Kind::Int),
    ("by_attempt", Kind::Text),
    ("of_version", Kind::Int),
    ("unless_due", Kind::Int),
    ("sealed_in", Kind::Int),
];

/// Applies changes to payments that still have the status they were decided upon; nothing is returned where one has
/// another by now, and where the keys have changed since the answer was sealed. What a change does not know stays: so
/// does the look that a cancel has asked for which was opened since the payment was read. The sealed request goes at a
/// final status.
macro_rules! change_text {
    () => {
        concat!(
            "UPDATE payments SET status = to_status, payment_id = COALESCE(its_payment_id, payment_id), \
             result_code = COALESCE(its_result_code, result_code), \
             result_status = COALESCE(its_result_status, result_status), \
             settled_by = COALESCE(its_source, settled_by), answer = COALESCE(its_answer, answer), \
             outgoing = CASE WHEN ends = 1 THEN NULL ELSE outgoing END, \
             decline = COALESCE(its_decline, decline), \
             token_card_id = COALESCE(token_card_id, its_token_card), \
             auth_expires_at = COALESCE(its_auth_end, auth_expires_at), \
             auth_review = COALESCE(its_auth_review, auth_review), \
             next_look = CASE WHEN moves_look = 0 OR (unless_due = 1 AND next_look <= at) \
                 OR (look IS NULL AND to_status = 'AUTHORIZED' AND cancel_state = 'OPEN') \
                 THEN next_look ELSE look END, \
             looks = CASE WHEN from_status <> to_status THEN 0 ELSE looks END, \
             cancel_state = CASE WHEN to_status = 'CANCELLED' AND cancel_state IS NOT NULL THEN 'DONE' \
                 WHEN to_status = 'FAILED' THEN NULL ELSE cancel_state END, \
             version = version + 1, updated_at = at FROM given \
             WHERE account = of_account AND payment_request_id = of_id AND status = from_status \
             AND (by_attempt IS NULL OR attempt = by_attempt) AND (of_version IS NULL OR version = of_version) \
             AND (sealed_in IS NULL \
                 OR EXISTS (SELECT 1 FROM key_epoch WHERE one = 1 AND key_epoch.epoch = sealed_in))",
            " RETURNING ",
            columns!()
        )
    };
}

/// [`change_payment`], where nothing else is to be done with it than to tell of it.
pub static CHANGE: Alone = alone!(CHANGED, change_text);

/// The values of [`CHANGE`].
pub fn change_values<'a>(
    account: &'a GatewayAccount,
    id: &'a PaymentRequestId,
    change: &Change<'a>,
) -> [Arg<'a>; 21] {
    let (moves, look, keeps_due) = match change.next_look {
        NextLook::Keep => (0, None, false),
        NextLook::At(at) => (1, at.map(|at| at.0), false),
        NextLook::AtUnlessDue(at) => (1, at.map(|at| at.0), true),
    };
    [
        Arg::Text(account.as_str()),
        Arg::Text(id.as_str()),
        Arg::Text(change.from.name()),
        Arg::Text(change.to.name()),
        Arg::TextOrNull(change.payment_id),
        Arg::TextOrNull(change.result_code),
        Arg::TextOrNull(change.result_status),
        Arg::TextOrNull(change.settled_by),
        Arg::BytesOrNull(change.answer.map(|(answer, _)| answer.as_bytes())),
        Arg::Int(i64::from(change.to.is_final())),
        Arg::Int(change.now.0),
        Arg::TextOrNull(change.decline.map(Decline::name)),
        Arg::TextOrNull(change.token_card_id.map(CardId::as_str)),
        Arg::IntOrNull(change.auth_expires_at.map(|at| at.0)),
        Arg::TextOrNull(change.auth_review),
        Arg::Int(moves),
        Arg::IntOrNull(look),
        Arg::TextOrNull(change.attempt),
        Arg::IntOrNull(change.version),
        Arg::Int(i64::from(keeps_due)),
        Arg::IntOrNull(change.answer.map(|(_, epoch)| epoch)),
    ]
}

/// Applies a change, if the payment still is as the change says. The caller writes the event of a new status in
/// the same transaction.
pub async fn change_payment(
    tx: &mut Tx,
    account: &GatewayAccount,
    id: &PaymentRequestId,
    change: &Change<'_>,
) -> Result<Option<PaymentRow>, StoreError> {
    let row = CHANGE.run_in(tx, &change_values(account, id, change)).await?;
    row.as_ref().map(payment_row).transpose()
}

/// What an answer tells of a payment whose status it does not change.
pub struct LateFacts<'a> {
    /// Until when the authorisation can be captured.
    pub auth_expires_at: Option<Millis>,
    /// Its review.
    pub auth_review: Option<&'a str>,
    /// The card that the gateway holds for it.
    pub token_card_id: Option<&'a CardId>,
    /// By when the gateway is to be asked for more, often at first.
    pub look: Option<Millis>,
}

/// Keeps what an answer tells of a payment; what it does not tell stays.
pub async fn keep_facts(
    tx: &mut Tx,
    payment: &PaymentRow,
    facts: &LateFacts<'_>,
) -> Result<bool, StoreError> {
    const SQL: &str = "UPDATE payments SET auth_expires_at = COALESCE($3, auth_expires_at), \
         auth_review = COALESCE($4, auth_review), token_card_id = COALESCE(token_card_id, $5), \
         looks = CASE WHEN $6 IS NULL THEN looks ELSE 0 END, \
         next_look = CASE WHEN $6 IS NULL OR next_look <= $6 THEN next_look ELSE $6 END \
         WHERE account = $1 AND payment_request_id = $2 \
         AND (COALESCE($3, auth_expires_at, 0) <> COALESCE(auth_expires_at, 0) \
             OR COALESCE($4, auth_review, '') <> COALESCE(auth_review, '') \
             OR (token_card_id IS NULL AND $5 IS NOT NULL))";
    let args = [
        Arg::Text(payment.account.as_str()),
        Arg::Text(payment.payment_request_id.as_str()),
        Arg::IntOrNull(facts.auth_expires_at.map(|at| at.0)),
        Arg::TextOrNull(facts.auth_review),
        Arg::TextOrNull(facts.token_card_id.map(CardId::as_str)),
        Arg::IntOrNull(facts.look.map(|at| at.0)),
    ];
    Ok(tx.execute(SQL, &args).await? == 1)
}

/// Notes that the request is about to be sent once more by `attempt`, which sent it last; `false` where
/// another has taken over, or the payment is being cancelled: what was once cancelled is not sent again.
pub async fn note_resend(
    db: &Db,
    account: &GatewayAccount,
    id: &PaymentRequestId,
    attempt: &str,
    now: Millis,
) -> Result<bool, StoreError> {
    const SQL: &str = "UPDATE payments SET sent_at = $4, updated_at = $4, version = version + 1 \
         WHERE account = $1 AND payment_request_id = $2 AND attempt = $3 AND status = 'UNKNOWN' \
         AND cancel_state IS NULL";
    let args = [Arg::Text(account.as_str()), Arg::Text(id.as_str()), Arg::Text(attempt), Arg::Int(now.0)];
    Ok(db.execute(SQL, &args).await? == 1)
}

/// Takes the right to send a payment over from the attempt that had it.
pub async fn take_over(
    db: &Db,
    account: &GatewayAccount,
    id: &PaymentRequestId,
    from: &str,
    to: &str,
) -> Result<bool, StoreError> {
    const SQL: &str = "UPDATE payments SET attempt = $4, version = version + 1 \
         WHERE account = $1 AND payment_request_id = $2 AND attempt = $3 AND status = 'UNKNOWN' \
         AND cancel_state IS NULL";
    let args = [Arg::Text(account.as_str()), Arg::Text(id.as_str()), Arg::Text(from), Arg::Text(to)];
    Ok(db.execute(SQL, &args).await? == 1)
}

/// Payments that somebody must look after now, the longest due first.
pub async fn list_due(db: &Db, now: Millis, limit: i64) -> Result<Vec<PaymentRow>, StoreError> {
    const SQL: &str = concat!(
        "SELECT ",
        columns!(),
        " FROM payments WHERE next_look <= $1 AND (lease_until IS NULL OR lease_until <= $1) \
         ORDER BY next_look LIMIT $2"
    );
    db.list(SQL, &[Arg::Int(now.0), Arg::Int(limit)]).await?.iter().map(payment_row).collect()
}

/// Takes a payment to look after until `until`; `false` where another process was faster, or it is not
/// due any more.
pub async fn claim(
    db: &Db,
    row: &PaymentRow,
    owner: &InstanceId,
    now: Millis,
    until: Millis,
) -> Result<bool, StoreError> {
    const SQL: &str = "UPDATE payments SET lease_owner = $3, lease_until = $5 \
         WHERE account = $1 AND payment_request_id = $2 AND next_look <= $4 \
         AND (lease_until IS NULL OR lease_until <= $4)";
    let args = [
        Arg::Text(row.account.as_str()),
        Arg::Text(row.payment_request_id.as_str()),
        Arg::Text(owner.as_str()),
        Arg::Int(now.0),
        Arg::Int(until.0),
    ];
    Ok(db.execute(SQL, &args).await? == 1)
}

/// Gives a payment back after a look, and says when the next one is. What changed since `before` was read
/// has set its own time, which stays.
pub async fn release(
    db: &Db,
    before: &PaymentRow,
    owner: &InstanceId,
    next_look: Option<Millis>,
) -> Result<(), StoreError> {
    const SQL: &str = "UPDATE payments SET lease_owner = NULL, lease_until = NULL, \
         looks = CASE WHEN status = $4 THEN looks + 1 ELSE looks END, \
         next_look = CASE WHEN status = $4 AND next_look = $6 THEN $5 ELSE next_look END \
         WHERE account = $1 AND payment_request_id = $2 AND lease_owner = $3";
    let args = [
        Arg::Text(before.account.as_str()),
        Arg::Text(before.payment_request_id.as_str()),
        Arg::Text(owner.as_str()),
        Arg::Text(before.status.name()),
        Arg::IntOrNull(next_look.map(|at| at.0)),
        Arg::IntOrNull(before.next_look.map(|at| at.0)),
    ];
    db.execute(SQL, &args).await.map(|_| ())
}

/// Asks for a look at `at`, or sooner where one is due sooner. One that is under way does not count: it may have asked
/// before there was something to learn.
pub async fn look_by(
    db: &Db,
    account: &GatewayAccount,
    id: &PaymentRequestId,
    at: Millis,
) -> Result<(), StoreError> {
    const SQL: &str = "UPDATE payments SET next_look = $3 \
         WHERE account = $1 AND payment_request_id = $2 AND (next_look IS NULL OR next_look > $3 OR lease_until > $3)";
    let args = [Arg::Text(account.as_str()), Arg::Text(id.as_str()), Arg::Int(at.0)];
    db.execute(SQL, &args).await.map(|_| ())
}

/// Opens a cancel, so that it is known before its first byte leaves; `false` where the payment does not
/// allow it: it is over, it has captures or refunds under way or money given back, or a cancel is open. One of the
/// vault's own that is open becomes the caller's who wants one, and keeps its look where that is due sooner.
pub async fn open_cancel(
    tx: &mut Tx,
    account: &GatewayAccount,
    id: &PaymentRequestId,
    by_caller: bool,
    now: Millis,
    next_look: Millis,
) -> Result<bool, StoreError> {
    const SQL: &str = "UPDATE payments SET cancel_state = 'OPEN', cancel_by = $3, cancel_at = $4, \
         cancel_code = NULL, version = version + 1, \
         next_look = CASE WHEN cancel_state = 'OPEN' AND next_look <= $5 THEN next_look ELSE $5 END \
         WHERE account = $1 AND payment_request_id = $2 AND (cancel_state IS NULL OR cancel_state = 'REFUSED' \
             OR (cancel_state = 'OPEN' AND cancel_by = 'vault' AND $3 = 'caller')) \
         AND (status IN ('UNKNOWN', 'PROCESSING') OR (status = 'AUTHORIZED' AND $3 = 'caller')) \
         AND (cancel_state = 'OPEN' OR (open_operations = 0 AND refund_reserved = 0))";
    let args = [
        Arg::Text(account.as_str()),
        Arg::Text(id.as_str()),
        Arg::Text(if by_caller { "caller" } else { "vault" }),
        Arg::Int(now.0),
        Arg::Int(next_look.0),
    ];
    Ok(tx.execute(SQL, &args).await? == 1)
}

/// Notes that an open cancel is about to be sent; `false` where it must not: it is over, or the vault's own
/// and its payment is paid, of which the caller may know.
pub async fn note_cancel_sent(
    db: &Db,
    account: &GatewayAccount,
    id: &PaymentRequestId,
    now: Millis,
) -> Result<bool, StoreError> {
    const SQL: &str = "UPDATE payments SET cancel_at = $3 \
         WHERE account = $1 AND payment_request_id = $2 AND cancel_state = 'OPEN' \
         AND (status IN ('UNKNOWN', 'PROCESSING') OR (status = 'AUTHORIZED' AND cancel_by = 'caller'))";
    let args = [Arg::Text(account.as_str()), Arg::Text(id.as_str()), Arg::Int(now.0)];
    Ok(db.execute(SQL, &args).await? == 1)
}

/// Ends an open cancel that the gateway refused, with its code; or, with none, one of the vault's own that
/// was sent in vain and has had time to take effect.
pub async fn close_cancel(
    tx: &mut Tx,
    account: &GatewayAccount,
    id: &PaymentRequestId,
    code: Option<&str>,
) -> Result<bool, StoreError> {
    const SQL: &str = "UPDATE payments SET cancel_state = CASE WHEN $3 IS NULL THEN NULL ELSE 'REFUSED' END, \
         cancel_code = $3, version = version + 1 \
         WHERE account = $1 AND payment_request_id = $2 AND cancel_state = 'OPEN' \
         AND ($3 IS NOT NULL OR cancel_by = 'vault')";
    let args = [Arg::Text(account.as_str()), Arg::Text(id.as_str()), Arg::TextOrNull(code)];
    Ok(tx.execute(SQL, &args).await? == 1)
}

/// How many payments have no final status, and when the oldest was asked for.
pub async fn count_open(db: &Db) -> Result<Vec<(Status, Waiting)>, StoreError> {
    const SQL: &str = "SELECT status, COUNT(*) AS count, MIN(created_at) AS oldest FROM payments \
         WHERE status IN ('UNKNOWN', 'PROCESSING') GROUP BY status";
    let rows = db.list(SQL, &[]).await?;
    let mut open = vec![(Status::Unknown, Waiting::default()), (Status::Processing, Waiting::default())];
    for row in rows {
        let status = Status::parse(&row.text("status")?).ok_or(StoreError::Damaged)?;
        for (known, waiting) in &mut open {
            if *known == status {
                let oldest = row.int_or_null("oldest")?.map(Millis);
                *waiting = Waiting { count: row.int("count")?, oldest };
            }
        }
    }
    Ok(open)
}
