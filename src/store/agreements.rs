//! Stored-credential agreements and what they need to know of a card's past.

use super::backend::{Arg, Db, Row, StoreError, Tx};
use crate::base::clock::Millis;
use crate::base::ids::{AgreementId, CardId, GatewayAccount, Merchant, PaymentRequestId};
use crate::base::money::Amount;
use crate::model::agreement::{AgreementState, AgreementType, Terms};

/// An agreement.
pub struct AgreementRow {
    /// Its id.
    pub agreement_id: AgreementId,
    /// Whose it is.
    pub merchant: Merchant,
    /// Its card; none while a hosted page's card is not known yet.
    pub card_id: Option<CardId>,
    /// What the buyer agreed to.
    pub terms: Terms,
    /// Where it stands.
    pub state: AgreementState,
    /// Why it ended.
    pub ended_reason: Option<String>,
    /// The payment that opened it; empty where it came from another vault.
    pub payment_request_id: String,
    /// The scheme's id of the first payment: value, source and time.
    pub network_transaction_id: Option<Learned>,
    /// The newest one.
    pub latest_network_transaction_id: Option<Learned>,
    /// Mastercard's Transaction Link ID.
    pub transaction_link_id: Option<Learned>,
    /// When it was opened.
    pub created_at: Millis,
    /// When its first payment succeeded.
    pub activated_at: Option<Millis>,
    /// When it ended.
    pub ended_at: Option<Millis>,
}

/// Something that the gateway told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Learned {
    /// As received.
    pub value: String,
    /// Which answer told it.
    pub source: String,
    /// When.
    pub at: Millis,
}

macro_rules! columns {
    () => {
        "agreement_id, merchant, card_id, type, state, ended_reason, payment_request_id, consent, \
         max_currency, max_amount, interval, expires_at, nti, nti_source, nti_at, latest_nti, \
         latest_nti_source, latest_nti_at, tlid, tlid_source, tlid_at, created_at, activated_at, ended_at"
    };
}

fn learned(row: &Row, value: &str, source: &str, at: &str) -> Result<Option<Learned>, StoreError> {
    Ok(match (row.text_or_null(value)?, row.text_or_null(source)?, row.int_or_null(at)?) {
        (Some(value), Some(source), Some(at)) => Some(Learned { value, source, at: Millis(at) }),
        _ => None,
    })
}

fn agreement_row(row: &Row) -> Result<AgreementRow, StoreError> {
    fn parsed<T>(value: Option<T>) -> Result<T, StoreError> {
        value.ok_or(StoreError::Damaged)
    }
    let max_amount = match (row.text_or_null("max_currency")?, row.int_or_null("max_amount")?) {
        (Some(currency), Some(value)) => Some(parsed(Amount::from_wire(&currency, &value.to_string()).ok())?),
        _ => None,
    };
    Ok(AgreementRow {
        agreement_id: parsed(AgreementId::parse(&row.text("agreement_id")?))?,
        merchant: parsed(Merchant::parse(&row.text("merchant")?))?,
        card_id: row.text_or_null("card_id")?.map(|text| parsed(CardId::parse(&text))).transpose()?,
        terms: Terms {
            kind: parsed(AgreementType::parse(&row.text("type")?))?,
            consent: row.text("consent")?,
            max_amount,
            interval: row.text_or_null("interval")?,
            expires_at: row.int_or_null("expires_at")?.map(Millis),
        },
        state: parsed(AgreementState::parse(&row.text("state")?))?,
        ended_reason: row.text_or_null("ended_reason")?,
        payment_request_id: row.text("payment_request_id")?,
        network_transaction_id: learned(row, "nti", "nti_source", "nti_at")?,
        latest_network_transaction_id: learned(row, "latest_nti", "latest_nti_source", "latest_nti_at")?,
        transaction_link_id: learned(row, "tlid", "tlid_source", "tlid_at")?,
        created_at: Millis(row.int("created_at")?),
        activated_at: row.int_or_null("activated_at")?.map(Millis),
        ended_at: row.int_or_null("ended_at")?.map(Millis),
    })
}

/// Inserts an agreement as PENDING, with the payment that opens it.
pub async fn insert_agreement(
    tx: &mut Tx,
    id: &AgreementId,
    merchant: &Merchant,
    card_id: Option<&CardId>,
    terms: &Terms,
    opened_by: (&GatewayAccount, &PaymentRequestId),
    now: Millis,
) -> Result<(), StoreError> {
    const SQL: &str = "INSERT INTO agreements (agreement_id, merchant, card_id, type, state, account, \
         payment_request_id, consent, max_currency, max_amount, interval, expires_at, version, \
         created_at, updated_at) \
         VALUES ($1, $2, $3, $4, 'PENDING', $5, $6, $7, $8, $9, $10, $11, 1, $12, $12)";
    let max = terms.max_amount.as_ref();
    let args = [
        Arg::Text(id.as_str()),
        Arg::Text(merchant.as_str()),
        Arg::TextOrNull(card_id.map(CardId::as_str)),
        Arg::Text(terms.kind.name()),
        Arg::Text(opened_by.0.as_str()),
        Arg::Text(opened_by.1.as_str()),
        Arg::Text(&terms.consent),
        Arg::TextOrNull(max.map(Amount::currency)),
        Arg::IntOrNull(max.map(Amount::minor_units)),
        Arg::TextOrNull(terms.interval.as_deref()),
        Arg::IntOrNull(terms.expires_at.map(|at| at.0)),
        Arg::Int(now.0),
    ];
    tx.execute(SQL, &args).await.map(|_| ())
}

/// An agreement that comes from another vault.
pub struct Brought<'a> {
    /// Its fresh id.
    pub id: &'a AgreementId,
    /// Whose it is.
    pub merchant: &'a Merchant,
    /// The account that its payments go through.
    pub account: &'a GatewayAccount,
    /// Its card.
    pub card_id: &'a CardId,
    /// What the buyer agreed to.
    pub terms: &'a Terms,
    /// The scheme's id of the payment that began the chain.
    pub network_transaction_id: Option<&'a str>,
    /// Mastercard's Transaction Link ID.
    pub transaction_link_id: Option<&'a str>,
}

fn import_key(kind: AgreementType, network_transaction_id: Option<&str>) -> String {
    format!("{}/{}", kind.name(), network_transaction_id.unwrap_or_default())
}

/// Inserts an agreement that was in force elsewhere as ACTIVE; `false` where its card has it already, or is
/// erased.
pub async fn insert_brought(tx: &mut Tx, new: &Brought<'_>, now: Millis) -> Result<bool, StoreError> {
    const SQL: &str = "INSERT INTO agreements (agreement_id, merchant, card_id, type, state, account, \
         payment_request_id, consent, max_currency, max_amount, interval, expires_at, \
         nti, nti_source, nti_at, latest_nti, latest_nti_source, latest_nti_at, tlid, tlid_source, tlid_at, \
         import_key, version, created_at, updated_at, activated_at) \
         SELECT $1, $2, $3, $4, 'ACTIVE', $5, '', $6, $7, $8, $9, $10, \
             $11, $12, $13, $11, $12, $13, $14, $15, $16, $17, 1, $18, $18, $18 \
         WHERE EXISTS (SELECT 1 FROM cards WHERE merchant = $2 AND card_id = $3 AND erased_at IS NULL) \
         ON CONFLICT DO NOTHING";
    const SOURCE: &str = "import";
    let (max, terms) = (new.terms.max_amount.as_ref(), new.terms);
    let (chain, link) = (new.network_transaction_id, new.transaction_link_id);
    let key = import_key(terms.kind, chain);
    let args = [
        Arg::Text(new.id.as_str()),
        Arg::Text(new.merchant.as_str()),
        Arg::Text(new.card_id.as_str()),
        Arg::Text(terms.kind.name()),
        Arg::Text(new.account.as_str()),
        Arg::Text(&terms.consent),
        Arg::TextOrNull(max.map(Amount::currency)),
        Arg::IntOrNull(max.map(Amount::minor_units)),
        Arg::TextOrNull(terms.interval.as_deref()),
        Arg::IntOrNull(terms.expires_at.map(|at| at.0)),
        Arg::TextOrNull(chain),
        Arg::TextOrNull(chain.map(|_| SOURCE)),
        Arg::IntOrNull(chain.map(|_| now.0)),
        Arg::TextOrNull(link),
        Arg::TextOrNull(link.map(|_| SOURCE)),
        Arg::IntOrNull(link.map(|_| now.0)),
        Arg::Text(&key),
        Arg::Int(now.0),
    ];
    Ok(tx.execute(SQL, &args).await? == 1)
}

/// The card's agreement of this type and chain, wherever it came from and whatever became of it.
pub async fn find_same_agreement(
    db: &Db,
    merchant: &Merchant,
    card_id: &CardId,
    kind: AgreementType,
    network_transaction_id: Option<&str>,
) -> Result<Option<AgreementId>, StoreError> {
    const SQL: &str = "SELECT agreement_id FROM agreements WHERE merchant = $1 AND card_id = $2 \
         AND (import_key = $3 OR (type = $4 AND nti = $5)) ORDER BY created_at, agreement_id LIMIT 1";
    let key = import_key(kind, network_transaction_id);
    let args = [
        Arg::Text(merchant.as_str()),
        Arg::Text(card_id.as_str()),
        Arg::Text(&key),
        Arg::Text(kind.name()),
        Arg::TextOrNull(network_transaction_id),
    ];
    let row = db.find(SQL, &args).await?;
    row.map(|row| AgreementId::parse(&row.text("agreement_id")?).ok_or(StoreError::Damaged)).transpose()
}

/// A merchant's agreement.
pub async fn find_agreement(
    db: &Db,
    merchant: &Merchant,
    id: &AgreementId,
) -> Result<Option<AgreementRow>, StoreError> {
    const SQL: &str =
        concat!("SELECT ", columns!(), " FROM agreements WHERE merchant = $1 AND agreement_id = $2");
    let row = db.find(SQL, &[Arg::Text(merchant.as_str()), Arg::Text(id.as_str())]).await?;
    row.as_ref().map(agreement_row).transpose()
}

/// A card's agreements, oldest first.
pub async fn list_agreements(
    db: &Db,
    merchant: &Merchant,
    card_id: &CardId,
    limit: i64,
) -> Result<Vec<AgreementRow>, StoreError> {
    const SQL: &str = concat!(
        "SELECT ",
        columns!(),
        " FROM agreements WHERE merchant = $1 AND card_id = $2 ORDER BY created_at, agreement_id LIMIT $3"
    );
    let args = [Arg::Text(merchant.as_str()), Arg::Text(card_id.as_str()), Arg::Int(limit)];
    db.list(SQL, &args).await?.iter().map(agreement_row).collect()
}

/// Gives an agreement that a hosted page opened its card, once the gateway has told it.
pub async fn attach_card(
    tx: &mut Tx,
    merchant: &Merchant,
    id: &AgreementId,
    card_id: &CardId,
    now: Millis,
) -> Result<(), StoreError> {
    const SQL: &str = "UPDATE agreements SET card_id = $3, updated_at = $4, version = version + 1 \
         WHERE merchant = $1 AND agreement_id = $2 AND card_id IS NULL";
    let args =
        [Arg::Text(merchant.as_str()), Arg::Text(id.as_str()), Arg::Text(card_id.as_str()), Arg::Int(now.0)];
    tx.execute(SQL, &args).await.map(|_| ())
}

/// Whether an agreement in force covers the card.
pub async fn has_active(db: &Db, merchant: &Merchant, card_id: &CardId) -> Result<bool, StoreError> {
    const SQL: &str = "SELECT COUNT(*) AS active FROM agreements \
         WHERE merchant = $1 AND card_id = $2 AND state = 'ACTIVE'";
    let args = [Arg::Text(merchant.as_str()), Arg::Text(card_id.as_str())];
    Ok(db.find(SQL, &args).await?.ok_or(StoreError::Damaged)?.int("active")? > 0)
}

/// Agreements whose time is over and that have not ended yet.
pub async fn list_expired(db: &Db, now: Millis, limit: i64) -> Result<Vec<AgreementRow>, StoreError> {
    const SQL: &str = concat!(
        "SELECT ",
        columns!(),
        " FROM agreements WHERE state <> 'ENDED' AND expires_at IS NOT NULL AND expires_at <= $1 \
         ORDER BY expires_at LIMIT $2"
    );
    db.list(SQL, &[Arg::Int(now.0), Arg::Int(limit)]).await?.iter().map(agreement_row).collect()
}

/// Ends an agreement, and tells when: later than it began, so that the feed tells the two in their order also
/// where clocks differ. Nothing is returned where it is none of the merchant's, or over already.
pub async fn end_agreement(
    tx: &mut Tx,
    merchant: &Merchant,
    id: &AgreementId,
    reason: &str,
    now: Millis,
) -> Result<Option<Millis>, StoreError> {
    const SQL: &str = "UPDATE agreements SET state = 'ENDED', ended_reason = $3, \
         ended_at = CASE WHEN activated_at >= $4 THEN activated_at + 1 ELSE $4 END, \
         updated_at = $4, version = version + 1 \
         WHERE merchant = $1 AND agreement_id = $2 AND state <> 'ENDED' RETURNING ended_at";
    let args = [Arg::Text(merchant.as_str()), Arg::Text(id.as_str()), Arg::Text(reason), Arg::Int(now.0)];
    let row = tx.find(SQL, &args).await?;
    row.map(|row| Ok(Millis(row.int("ended_at")?))).transpose()
}

/// Ends every agreement of a card.
pub async fn end_agreements_of_card(
    tx: &mut Tx,
    merchant: &Merchant,
    card_id: &CardId,
    reason: &str,
    now: Millis,
) -> Result<u64, StoreError> {
    const SQL: &str = "UPDATE agreements SET state = 'ENDED', ended_reason = $3, ended_at = $4, \
         updated_at = $4, version = version + 1 \
         WHERE merchant = $1 AND card_id = $2 AND state <> 'ENDED'";
    let args =
        [Arg::Text(merchant.as_str()), Arg::Text(card_id.as_str()), Arg::Text(reason), Arg::Int(now.0)];
    tx.execute(SQL, &args).await
}

/// The payment that opened an agreement has succeeded; `false` where it was not PENDING.
pub async fn activate_agreement(
    tx: &mut Tx,
    merchant: &Merchant,
    id: &AgreementId,
    now: Millis,
) -> Result<bool, StoreError> {
    const SQL: &str = "UPDATE agreements SET state = 'ACTIVE', activated_at = $3, updated_at = $3, \
         version = version + 1 WHERE merchant = $1 AND agreement_id = $2 AND state = 'PENDING'";
    let args = [Arg::Text(merchant.as_str()), Arg::Text(id.as_str()), Arg::Int(now.0)];
    Ok(tx.execute(SQL, &args).await? == 1)
}

/// Ends an agreement whose first payment came to nothing; `false` where it was not PENDING.
pub async fn fail_agreement(
    tx: &mut Tx,
    merchant: &Merchant,
    id: &AgreementId,
    reason: &str,
    now: Millis,
) -> Result<bool, StoreError> {
    const SQL: &str = "UPDATE agreements SET state = 'ENDED', ended_reason = $3, ended_at = $4, \
         updated_at = $4, version = version + 1 \
         WHERE merchant = $1 AND agreement_id = $2 AND state = 'PENDING'";
    let args = [Arg::Text(merchant.as_str()), Arg::Text(id.as_str()), Arg::Text(reason), Arg::Int(now.0)];
    Ok(tx.execute(SQL, &args).await? == 1)
}

/// Keeps what the gateway told of a payment of the agreement. The first network transaction id stays for
/// ever; the newest is kept beside it.
pub async fn learn_ids(
    tx: &mut Tx,
    merchant: &Merchant,
    id: &AgreementId,
    told: &Told<'_>,
    now: Millis,
) -> Result<(), StoreError> {
    const SQL: &str = "UPDATE agreements SET \
         nti_source = CASE WHEN nti IS NULL AND $3 IS NOT NULL THEN $5 ELSE nti_source END, \
         nti_at = CASE WHEN nti IS NULL AND $3 IS NOT NULL THEN $6 ELSE nti_at END, \
         nti = COALESCE(nti, $3), \
         latest_nti_source = CASE WHEN $3 IS NOT NULL THEN $5 ELSE latest_nti_source END, \
         latest_nti_at = CASE WHEN $3 IS NOT NULL THEN $6 ELSE latest_nti_at END, \
         latest_nti = COALESCE($3, latest_nti), \
         tlid_source = CASE WHEN tlid IS NULL AND $4 IS NOT NULL THEN $5 ELSE tlid_source END, \
         tlid_at = CASE WHEN tlid IS NULL AND $4 IS NOT NULL THEN $6 ELSE tlid_at END, \
         tlid = COALESCE(tlid, $4), updated_at = $6 \
         WHERE merchant = $1 AND agreement_id = $2";
    let args = [
        Arg::Text(merchant.as_str()),
        Arg::Text(id.as_str()),
        Arg::TextOrNull(told.network_transaction_id),
        Arg::TextOrNull(told.transaction_link_id),
        Arg::Text(told.source),
        Arg::Int(now.0),
    ];
    tx.execute(SQL, &args).await.map(|_| ())
}

/// Ids in an answer.
pub struct Told<'a> {
    /// The scheme's id of the payment.
    pub network_transaction_id: Option<&'a str>,
    /// Mastercard's Transaction Link ID.
    pub transaction_link_id: Option<&'a str>,
    /// Which answer.
    pub source: &'a str,
}

/// What a card's past says about charging it.
pub struct CardPast {
    /// Whether an agreement that is in force covers it.
    pub has_active_agreement: bool,
    /// Declines of class `revoked` since the given time.
    pub revoked: i64,
    /// Declines of class `never`.
    pub never: i64,
    /// Declined attempts of the merchant.
    pub declined_attempts: i64,
}

/// A card's past since `$3`, at `$4`, as a table of one row. What was not declined is not looked at, however much
/// it is.
macro_rules! past {
    () => {
        "(SELECT \
         (SELECT COUNT(*) FROM agreements WHERE merchant = $1 AND card_id = $2 AND state = 'ACTIVE' \
             AND (expires_at IS NULL OR expires_at > $4)) AS active, \
         COUNT(CASE WHEN decline = 'revoked' THEN 1 END) AS revoked, \
         COUNT(CASE WHEN decline = 'never' THEN 1 END) AS never, \
         COUNT(CASE WHEN initiator = 'MERCHANT' THEN 1 END) AS attempts \
         FROM payments WHERE merchant = $1 AND card_id = $2 AND decline IS NOT NULL AND created_at > $3) AS past"
    };
}
pub(super) use past;

/// Reads a row of [`past`].
pub(super) fn past_of(row: &Row) -> Result<CardPast, StoreError> {
    Ok(CardPast {
        has_active_agreement: row.int("active")? > 0,
        revoked: row.int("revoked")?,
        never: row.int("never")?,
        declined_attempts: row.int("attempts")?,
    })
}

/// Reads a card's past since `since`.
pub async fn card_past(
    db: &Db,
    merchant: &Merchant,
    card_id: &CardId,
    since: Millis,
    now: Millis,
) -> Result<CardPast, StoreError> {
    const SQL: &str = concat!("SELECT * FROM ", past!());
    let args =
        [Arg::Text(merchant.as_str()), Arg::Text(card_id.as_str()), Arg::Int(since.0), Arg::Int(now.0)];
    past_of(&db.find(SQL, &args).await?.ok_or(StoreError::Damaged)?)
}
