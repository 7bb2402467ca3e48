//! Retention: cards go when their time is over, in small batches, each one audited transaction that also
//! writes a signed report of what went and why. Safe to be cut off at any instant, to be done by several
//! processes at once, and beside servers: what erases a card repeats all that was judged.

use std::collections::BTreeMap;

use crate::base::clock::Millis;
use crate::base::ids::{DekId, Merchant, ReportId, RunId};
use crate::base::json::{self, Object, ObjectWriter};
use crate::crypto::audit_mac;
use crate::crypto::keyring::Purpose;
use crate::model::agreement::AgreementEvent;
use crate::model::audit::Entry;
use crate::model::retention::{self as model, Gone, Limits, Reason, Report};
use crate::store::backend::Db;
use crate::store::retention as rows;
use crate::store::retention::{Aged, Place, ReportFilter, ReportRow};

use super::Vault;
use super::audit::actor;
use super::error::OpError;
use super::keys::DataKeys;

/// Most cards that are erased in one transaction, and named in one report.
pub const BATCH: usize = 50;
/// Reports that are read at once.
const REPORTS: i64 = 100;

/// What a look at a page of cards found.
pub struct Page {
    /// How many cards were looked at.
    pub looked: u64,
    /// Those whose time is over, each merchant's by itself, in the order of their names.
    pub due: Vec<(Merchant, Vec<(Aged, Reason)>)>,
    /// Where to go on; none at the end.
    pub next: Option<Place>,
}

impl Vault {
    /// Looks at a page of cards, oldest first. Changes nothing.
    pub async fn look_at_cards(
        &self,
        limits: Limits,
        merchant: Option<&Merchant>,
        after: &Place,
        limit: i64,
    ) -> Result<Page, OpError> {
        let now = self.now();
        let Some(newest) = limits.newest(now) else {
            return Ok(Page { looked: 0, due: Vec::new(), next: None });
        };
        let page = rows::list_aged(&self.db, newest, merchant, after, limit).await?;
        let looked = page.len();
        let is_full = i64::try_from(looked).unwrap_or(i64::MAX) >= limit;
        let last = page
            .last()
            .map(|card| Place { typed_at: card.facts.typed_at, card_id: card.card_id.to_string() });
        let mut due: BTreeMap<String, (Merchant, Vec<(Aged, Reason)>)> = BTreeMap::new();
        for card in page {
            if let Some(reason) = limits.reason(&card.facts, now) {
                let of = due.entry(card.merchant.to_string());
                of.or_insert_with(|| (card.merchant.clone(), Vec::new())).1.push((card, reason));
            }
        }
        let mut due: Vec<_> = due.into_values().collect();
        for (_, cards) in &mut due {
            // Two that erase at once then never wait for one another in a circle.
            cards.sort_by(|a, b| a.0.card_id.cmp(&b.0.card_id));
        }
        Ok(Page { looked: u64::try_from(looked).unwrap_or(u64::MAX), due, next: last.filter(|_| is_full) })
    }

    /// How many cards a sweep has to look at.
    pub async fn count_old_cards(&self, limits: Limits, merchant: Option<&Merchant>) -> Result<u64, OpError> {
        match limits.newest(self.now()) {
            None => Ok(0),
            Some(newest) => Ok(rows::count_aged(&self.db, newest, merchant).await?),
        }
    }

    /// Erases those cards of a merchant whose time is still over, at most [`BATCH`] of them in one
    /// transaction, with their agreements, their audit rows and a signed report. Which went.
    pub async fn erase_old_cards(
        &self,
        run: &RunId,
        limits: Limits,
        merchant: &Merchant,
        cards: &[(Aged, Reason)],
    ) -> Result<Vec<Gone>, OpError> {
        let (id, now) = (ReportId::make()?, self.now());
        let mut gone = Vec::new();
        let mut tx = self.begin().await?;
        for (card, reason) in cards.iter().take(BATCH) {
            let Some(end) = limits.end(*reason, now) else { continue };
            if !rows::erase_aged(&mut tx, card, *reason, end, now).await? {
                // Somebody has used it since it was looked at, or erased it.
                continue;
            }
            self.end_agreements(&mut tx, merchant, &card.card_id, AgreementEvent::CardErased).await?;
            let why = format!("retention: {}", reason.name());
            tx.note(&Entry::done("card.erase", card.card_id.as_str()).with(why)).await?;
            gone.push(Gone {
                card_id: card.card_id.clone(),
                brand: card.brand.clone(),
                last4: card.last4.clone(),
                reason: *reason,
                typed_at: card.facts.typed_at,
                active_at: card.facts.active_at,
            });
        }
        if gone.is_empty() {
            tx.rollback().await?;
            return Ok(gone);
        }
        let by = actor().name;
        let report =
            Report { id: &id, run, at: now, by: &by, merchant: merchant.as_str(), limits, cards: &gone };
        let (body, key) = (report.text(), self.keys.active(Purpose::Checkpoint)?);
        let signature =
            audit_mac::sign(&key, body.as_bytes()).map_err(|error| OpError::Internal(error.into()))?;
        let row = ReportRow {
            id: id.clone(),
            run: run.clone(),
            merchant: merchant.clone(),
            at: now,
            cards: i64::try_from(gone.len()).unwrap_or(i64::MAX),
            body,
            key: key.id().clone(),
            signature: hex(&signature),
        };
        rows::insert_report(&mut tx, &row).await?;
        let said = format!("{} cards; signature {}", gone.len(), row.signature);
        tx.note(&Entry::done("cards.purge", id.as_str()).with(said)).await?;
        tx.commit().await?;
        self.bell.ring_written();
        for card in &gone {
            self.slots.forget(merchant, &card.card_id);
        }
        Ok(gone)
    }
}

fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}

/// A report as a file holds it: one line of JSON.
async fn signed_line(keys: &DataKeys, row: &ReportRow) -> Result<String, OpError> {
    let key = keys.by_id(&row.key).await?;
    let public = audit_mac::public_key(&key).map_err(|error| OpError::Internal(error.into()))?;
    Ok(ObjectWriter::default()
        .string("report", &row.body)
        .string("keyId", row.key.as_str())
        .string("publicKey", &hex(&public))
        .string("signature", &row.signature)
        .finish())
}

/// Hands over every report that fits, a line each, and at the end a signed line that tells how many there
/// were, so that a file that was cut off is noticed. How many reports, and how many cards.
pub async fn write_reports(
    db: &Db,
    keys: &DataKeys,
    filter: &ReportFilter,
    now: Millis,
    mut write: impl FnMut(&str) -> std::io::Result<()>,
) -> Result<(u64, u64), WriteError> {
    let (mut reports, mut cards) = (0_u64, 0_u64);
    let mut all = ring::digest::Context::new(&ring::digest::SHA256);
    let mut after = (Millis(i64::MIN), String::new());
    loop {
        let page =
            rows::list_reports(db, filter, (after.0, &after.1), REPORTS).await.map_err(OpError::from)?;
        let Some(last) = page.last() else { break };
        after = (last.at, last.id.to_string());
        for row in &page {
            write(&signed_line(keys, row).await?)?;
            all.update(row.signature.as_bytes());
            reports += 1;
            cards += u64::try_from(row.cards).unwrap_or_default();
        }
    }
    let time = |at: Option<Millis>| at.map(Millis::rfc3339);
    let text = ObjectWriter::default()
        .string("version", END_VERSION)
        .string("writtenAt", &now.rfc3339())
        .string_or_null("from", time(filter.from).as_deref())
        .string_or_null("until", time(filter.until).as_deref())
        .string_or_null("merchant", filter.merchant.as_ref().map(Merchant::as_str))
        .string_or_null("run", filter.run.as_ref().map(RunId::as_str))
        .raw("reports", &reports.to_string())
        .raw("cards", &cards.to_string())
        .string("signatures", &hex(all.finish().as_ref()))
        .finish();
    let key = keys.active(Purpose::Checkpoint)?;
    let cannot = |error: audit_mac::CannotSign| WriteError::Op(OpError::Internal(error.into()));
    let line = ObjectWriter::default()
        .string("end", &text)
        .string("keyId", key.id().as_str())
        .string("publicKey", &hex(&audit_mac::public_key(&key).map_err(cannot)?))
        .string("signature", &hex(&audit_mac::sign(&key, text.as_bytes()).map_err(cannot)?))
        .finish();
    write(&line)?;
    Ok((reports, cards))
}

/// How the last line of a file of reports begins.
const END_VERSION: &str = "retention-end/1";

/// Why reports were not written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// They could not be read or signed.
    #[error(transparent)]
    Op(#[from] OpError),
    /// They could not be written.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// What a look at a file of reports came to.
#[derive(Debug, Default)]
pub struct Verified {
    /// Reports whose signature is this vault's.
    pub reports: u64,
    /// Cards that they name.
    pub cards: u64,
    /// What is wrong; nothing, where all is well.
    pub findings: Vec<String>,
}

/// Proves a file of reports: every signature is this vault's, the file is whole, the vault's own copy says the
/// same, and the cards that it names hold nothing any more.
pub async fn verify_reports(
    db: &Db,
    keys: &DataKeys,
    lines: impl Iterator<Item = std::io::Result<String>>,
) -> Result<Verified, OpError> {
    let mut done = Verified::default();
    let mut all = ring::digest::Context::new(&ring::digest::SHA256);
    let mut end: Option<String> = None;
    for (number, line) in (1..).zip(lines) {
        let mut wrong = |what: &str| done.findings.push(format!("line {number}: {what}"));
        let line = match line {
            Ok(line) => line,
            Err(error) => {
                wrong(&error.to_string());
                break;
            }
        };
        if end.is_some() {
            wrong("it comes after the end");
            break;
        }
        let Some(signed) = Signed::parse(&line) else {
            wrong("this cannot be read");
            continue;
        };
        if !signed.is_genuine(keys).await? {
            wrong("its signature is not this vault's");
            continue;
        }
        if signed.is_end {
            end = Some(signed.text);
            continue;
        }
        let Some(told) = model::read(&signed.text) else {
            wrong("this is no report");
            continue;
        };
        match rows::find_report(db, &told.id).await? {
            Some(row) if row.body == signed.text && row.signature == signed.signature => {}
            Some(_) => wrong("the vault's own copy says otherwise"),
            None => wrong("the vault has no such report any more"),
        }
        for card in &told.cards {
            match rows::is_gone(db, &told.merchant, card).await? {
                Some(true) => {}
                Some(false) => done.findings.push(format!("line {number}: {card} is not erased")),
                None => done.findings.push(format!("line {number}: the vault has no row of {card} any more")),
            }
        }
        all.update(signed.signature.as_bytes());
        done.reports += 1;
        done.cards += u64::try_from(told.cards.len()).unwrap_or(u64::MAX);
    }
    let digest = hex(all.finish().as_ref());
    match end.as_deref().map(|text| fits_end(text, &done, &digest)) {
        Some(Some(())) => {}
        Some(None) => done.findings.push("reports are missing, or not in their order".to_owned()),
        None => done.findings.push("the file has no end: it was cut off".to_owned()),
    }
    Ok(done)
}

fn fits_end(text: &str, done: &Verified, digest: &str) -> Option<()> {
    let object = Object::parse(text)?;
    let string = |name: &str| object.get(name).and_then(json::string);
    let number = |name: &str| object.get(name).and_then(|raw| raw.parse::<u64>().ok());
    let fits = string("version")? == END_VERSION
        && number("reports")? == done.reports
        && number("cards")? == done.cards
        && string("signatures")? == digest;
    fits.then_some(())
}

/// A signed line.
struct Signed {
    text: String,
    is_end: bool,
    key: DekId,
    public: String,
    signature: String,
}

impl Signed {
    fn parse(line: &str) -> Option<Self> {
        let object = Object::parse(line)?;
        let string = |name: &str| object.get(name).and_then(json::string).map(|text| text.into_owned());
        let (text, is_end) = match (string("report"), string("end")) {
            (Some(text), None) => (text, false),
            (None, Some(text)) => (text, true),
            _ => return None,
        };
        let key = DekId::parse(&string("keyId")?)?;
        Some(Self { text, is_end, key, public: string("publicKey")?, signature: string("signature")? })
    }

    /// Whether a checkpoint key of this vault has signed it.
    async fn is_genuine(&self, keys: &DataKeys) -> Result<bool, OpError> {
        let key = match keys.by_id(&self.key).await {
            Ok(key) => key,
            Err(OpError::Internal(_)) => return Ok(false),
            Err(error) => return Err(error),
        };
        let Ok(public) = audit_mac::public_key(&key) else { return Ok(false) };
        let Ok(signature) = data_encoding::HEXLOWER.decode(self.signature.as_bytes()) else {
            return Ok(false);
        };
        Ok(hex(&public) == self.public
            && audit_mac::verify_signature(&public, self.text.as_bytes(), &signature))
    }
}
