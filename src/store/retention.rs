//! Cards whose time is over, and the signed reports of those that went.

use super::backend::{Arg, Db, Row, StoreError, Tx};
use super::cards::erased;
use crate::base::clock::Millis;
use crate::base::ids::{CardId, DekId, Merchant, ReportId, RunId};
use crate::model::retention::{Facts, Reason};

/// A place in the order of age.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// When the card's number was last typed.
    pub typed_at: Millis,
    /// The card.
    pub card_id: String,
}

impl Place {
    /// Before every card.
    pub fn beginning() -> Self {
        Self { typed_at: Millis(i64::MIN), card_id: String::new() }
    }
}

/// A card as the sweep looks at it.
#[derive(Debug, Clone)]
pub struct Aged {
    /// Its reference.
    pub card_id: CardId,
    /// Whose it is.
    pub merchant: Merchant,
    /// Its brand; empty where only Antom holds the number.
    pub brand: String,
    /// The last four digits.
    pub last4: String,
    /// What decides.
    pub facts: Facts,
    /// Its version, and when it was last taken: what it was judged by.
    pub judged: (i64, i64),
}

fn aged(row: &Row) -> Result<Aged, StoreError> {
    let typed_at = Millis(row.int("typed_at")?);
    let used_at = row.int_or_null("used_at")?;
    let times =
        [used_at, row.int_or_null("paid_at")?, Some(row.int("updated_at")?), Some(row.int("created_at")?)];
    let active_at = times.into_iter().flatten().map(Millis).fold(typed_at, Millis::max);
    Ok(Aged {
        card_id: CardId::parse(&row.text("card_id")?).ok_or(StoreError::Damaged)?,
        merchant: Merchant::parse(&row.text("merchant")?).ok_or(StoreError::Damaged)?,
        brand: row.text("brand")?,
        last4: row.text("last4")?,
        facts: Facts {
            typed_at,
            active_at,
            cvv_until: row.int_or_null("cvv_until")?.map(Millis),
            has_agreement: row.int("agreed")? > 0,
        },
        judged: (row.int("version")?, used_at.unwrap_or(0)),
    })
}

/// Live cards whose number was typed at `newest` or before, oldest first, after a place.
pub async fn list_aged(
    db: &Db,
    newest: Millis,
    merchant: Option<&Merchant>,
    after: &Place,
    limit: i64,
) -> Result<Vec<Aged>, StoreError> {
    const SQL: &str = "SELECT card_id, merchant, brand, last4, version, typed_at, created_at, updated_at, \
         used_at, cvv_until, \
         (SELECT COUNT(*) FROM agreements WHERE agreements.merchant = cards.merchant \
             AND agreements.card_id = cards.card_id AND agreements.state <> 'ENDED') AS agreed, \
         (SELECT MAX(payments.created_at) FROM payments WHERE payments.merchant = cards.merchant \
             AND payments.card_id = cards.card_id) AS paid_at \
         FROM cards WHERE erased_at IS NULL AND typed_at <= $1 AND (typed_at, card_id) > ($2, $3) \
         AND (merchant = $4 OR $4 IS NULL) ORDER BY typed_at, card_id LIMIT $5";
    let args = [
        Arg::Int(newest.0),
        Arg::Int(after.typed_at.0),
        Arg::Text(&after.card_id),
        Arg::TextOrNull(merchant.map(Merchant::as_str)),
        Arg::Int(limit),
    ];
    db.list(SQL, &args).await?.iter().map(aged).collect()
}

/// How many live cards were typed at `newest` or before.
pub async fn count_aged(db: &Db, newest: Millis, merchant: Option<&Merchant>) -> Result<u64, StoreError> {
    const SQL: &str = "SELECT COUNT(*) AS count FROM cards WHERE erased_at IS NULL AND typed_at <= $1 \
         AND (merchant = $2 OR $2 IS NULL)";
    let row = db.find(SQL, &[Arg::Int(newest.0), Arg::TextOrNull(merchant.map(Merchant::as_str))]).await?;
    Ok(u64::try_from(row.ok_or(StoreError::Damaged)?.int("count")?).unwrap_or_default())
}

/// Erases a card whose time was over at `end`, if everything that was judged is so in this very statement:
/// nobody has typed, changed or taken it since. A payment that has just begun holds the card until it is
/// recorded, and has then changed what is compared here.
pub async fn erase_aged(
    tx: &mut Tx,
    card: &Aged,
    reason: Reason,
    end: Millis,
    now: Millis,
) -> Result<bool, StoreError> {
    const SQL: &str = concat!(
        "UPDATE cards SET ",
        erased!(),
        ", erased_at = $3 WHERE merchant = $1 AND card_id = $2 AND erased_at IS NULL \
         AND version = $4 AND COALESCE(used_at, 0) = $5 AND typed_at <= $6 \
         AND (cvv_until IS NULL OR cvv_until <= $3) \
         AND (($7 = 'unattached' AND NOT EXISTS (SELECT 1 FROM agreements \
                 WHERE agreements.merchant = $1 AND agreements.card_id = $2 AND agreements.state <> 'ENDED')) \
             OR ($7 = 'inactive' AND updated_at <= $6 AND COALESCE(used_at, 0) <= $6 \
                 AND NOT EXISTS (SELECT 1 FROM payments WHERE payments.merchant = $1 \
                     AND payments.card_id = $2 AND payments.created_at > $6)))"
    );
    let args = [
        Arg::Text(card.merchant.as_str()),
        Arg::Text(card.card_id.as_str()),
        Arg::Int(now.0),
        Arg::Int(card.judged.0),
        Arg::Int(card.judged.1),
        Arg::Int(end.0),
        Arg::Text(reason.name()),
    ];
    Ok(tx.execute(SQL, &args).await? == 1)
}

/// A signed report.
#[derive(Debug, Clone)]
pub struct ReportRow {
    /// Its name.
    pub id: ReportId,
    /// The sweep or command that it belongs to.
    pub run: RunId,
    /// Whose cards.
    pub merchant: Merchant,
    /// When they went.
    pub at: Millis,
    /// How many.
    pub cards: i64,
    /// The text that was signed.
    pub body: String,
    /// The key that signed it.
    pub key: DekId,
    /// Its signature, hexadecimal.
    pub signature: String,
}

/// Writes a report in the transaction of its erasures.
pub async fn insert_report(tx: &mut Tx, report: &ReportRow) -> Result<(), StoreError> {
    const SQL: &str = "INSERT INTO retention_reports (report_id, run, merchant, at, cards, body, key_id, signature) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)";
    let args = [
        Arg::Text(report.id.as_str()),
        Arg::Text(report.run.as_str()),
        Arg::Text(report.merchant.as_str()),
        Arg::Int(report.at.0),
        Arg::Int(report.cards),
        Arg::Text(&report.body),
        Arg::Text(report.key.as_str()),
        Arg::Text(&report.signature),
    ];
    tx.execute(SQL, &args).await.map(|_| ())
}

macro_rules! columns {
    () => {
        "report_id, run, merchant, at, cards, body, key_id, signature"
    };
}

fn report_row(row: &Row) -> Result<ReportRow, StoreError> {
    Ok(ReportRow {
        id: ReportId::parse(&row.text("report_id")?).ok_or(StoreError::Damaged)?,
        run: RunId::parse(&row.text("run")?).ok_or(StoreError::Damaged)?,
        merchant: Merchant::parse(&row.text("merchant")?).ok_or(StoreError::Damaged)?,
        at: Millis(row.int("at")?),
        cards: row.int("cards")?,
        body: row.text("body")?,
        key: DekId::parse(&row.text("key_id")?).ok_or(StoreError::Damaged)?,
        signature: row.text("signature")?,
    })
}

/// Which reports to list.
#[derive(Debug, Clone, Default)]
pub struct ReportFilter {
    /// From this time on.
    pub from: Option<Millis>,
    /// Before this time.
    pub until: Option<Millis>,
    /// Of one merchant.
    pub merchant: Option<Merchant>,
    /// Of one run.
    pub run: Option<RunId>,
}

/// Reports, oldest first, after one of them.
pub async fn list_reports(
    db: &Db,
    filter: &ReportFilter,
    after: (Millis, &str),
    limit: i64,
) -> Result<Vec<ReportRow>, StoreError> {
    const SQL: &str = concat!(
        "SELECT ",
        columns!(),
        " FROM retention_reports WHERE at >= $1 AND at < $2 AND (at, report_id) > ($3, $4) \
         AND (merchant = $5 OR $5 IS NULL) AND (run = $6 OR $6 IS NULL) \
         ORDER BY at, report_id LIMIT $7"
    );
    let args = [
        Arg::Int(filter.from.map_or(i64::MIN, |at| at.0)),
        Arg::Int(filter.until.map_or(i64::MAX, |at| at.0)),
        Arg::Int(after.0.0),
        Arg::Text(after.1),
        Arg::TextOrNull(filter.merchant.as_ref().map(Merchant::as_str)),
        Arg::TextOrNull(filter.run.as_ref().map(RunId::as_str)),
        Arg::Int(limit),
    ];
    db.list(SQL, &args).await?.iter().map(report_row).collect()
}

/// A report by its name.
pub async fn find_report(db: &Db, id: &ReportId) -> Result<Option<ReportRow>, StoreError> {
    const SQL: &str = concat!("SELECT ", columns!(), " FROM retention_reports WHERE report_id = $1");
    db.find(SQL, &[Arg::Text(id.as_str())]).await?.as_ref().map(report_row).transpose()
}

/// Whether a card's number, details and fingerprints are really gone; `None` where there is no such card.
pub async fn is_gone(db: &Db, merchant: &str, id: &CardId) -> Result<Option<bool>, StoreError> {
    const SQL: &str = "SELECT COUNT(*) AS cards, COUNT(CASE WHEN erased_at IS NOT NULL AND pan IS NULL \
         AND details IS NULL AND token IS NULL AND fingerprint IS NULL AND fingerprint_b IS NULL THEN 1 END) \
         AS gone FROM cards WHERE merchant = $1 AND card_id = $2";
    let row =
        db.find(SQL, &[Arg::Text(merchant), Arg::Text(id.as_str())]).await?.ok_or(StoreError::Damaged)?;
    Ok((row.int("cards")? > 0).then_some(row.int("gone")? > 0))
}
