//! Cards: sealed PAN and details, and what may be shown without opening them.

use std::collections::HashSet;

use super::agreements::{CardPast, past, past_of};
use super::backend::{Arg, Db, Row, StoreError, Tx};
use super::many::{Columns, Kind, Many};
use crate::base::clock::Millis;
use crate::base::ids::{CardId, GatewayAccount, InstanceId, Merchant, PaymentRequestId};
use crate::base::sealed::Sealed;

/// A card to insert.
pub struct NewCard {
    /// Its fresh reference.
    pub card_id: CardId,
    /// Whose it is.
    pub merchant: Merchant,
    /// The buyer's id, if the card is some buyer's.
    pub buyer: Option<String>,
    /// Keyed digests of the PAN, by column: one for each fingerprint key that is in use.
    pub fingerprints: [Option<[u8; 32]>; 2],
    /// The epoch of the keys that all this was made with.
    pub epoch: i64,
    /// Antom's name of the brand.
    pub brand: &'static str,
    /// What is shown of the BIN.
    pub bin: String,
    /// The last four digits.
    pub last4: String,
    /// The sealed PAN.
    pub pan: Sealed,
    /// The sealed expiry, name and address.
    pub details: Sealed,
    /// The CVV that is held for it.
    pub cvv: Option<CvvSlot>,
    /// Now.
    pub now: Millis,
}

/// What the vault holds of a card.
pub enum Held {
    /// Its number.
    Pan(HeldPan),
    /// Antom's token of a card whose number only Antom holds, sealed.
    Token {
        /// The sealed token.
        token: Sealed,
        /// Keyed digest of the token.
        digest: Vec<u8>,
    },
}

/// A card's number and what goes with it.
pub struct HeldPan {
    /// Keyed digests of the PAN, by column.
    pub fingerprints: [Option<Vec<u8>>; 2],
    /// Antom's name of the brand.
    pub brand: String,
    /// What is shown of the BIN.
    pub bin: String,
    /// The last four digits.
    pub last4: String,
    /// The sealed PAN.
    pub pan: Sealed,
    /// The sealed expiry, name and address.
    pub details: Sealed,
}

/// A live card.
pub struct CardRow {
    /// Its reference.
    pub card_id: CardId,
    /// The buyer's id, if the card is some buyer's.
    pub buyer: Option<String>,
    /// What it is paid with.
    pub held: Held,
    /// When its number was last typed.
    pub typed_at: Millis,
    /// The CVV that some process holds for it.
    pub cvv: Option<CvvSlot>,
    /// Rises with every change of the details.
    pub version: i64,
    /// When it was first tokenised.
    pub created_at: Millis,
    /// When its details last changed.
    pub updated_at: Millis,
}

/// That a CVV is held, where and until when. The CVV itself is never in the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CvvSlot {
    /// The process.
    pub holder: String,
    /// Until when.
    pub until: Millis,
    /// The one payment that it is for, if it is for one only.
    pub for_request: Option<String>,
}

macro_rules! columns {
    () => {
        "card_id, buyer, source, fingerprint, fingerprint_b, brand, bin, last4, pan, details, token, token_digest, \
         typed_at, \
         cvv_holder, cvv_until, cvv_for, version, created_at, updated_at"
    };
}

fn card_row(row: &Row) -> Result<CardRow, StoreError> {
    let buyer = row.text("buyer")?;
    let cvv = match (row.text_or_null("cvv_holder")?, row.int_or_null("cvv_until")?) {
        (Some(holder), Some(until)) => {
            Some(CvvSlot { holder, until: Millis(until), for_request: row.text_or_null("cvv_for")? })
        }
        _ => None,
    };
    let held = match row.text("source")?.as_str() {
        "PAN" => Held::Pan(HeldPan {
            fingerprints: [row.bytes_or_null("fingerprint")?, row.bytes_or_null("fingerprint_b")?],
            brand: row.text("brand")?,
            bin: row.text("bin")?,
            last4: row.text("last4")?,
            pan: Sealed::from_bytes(row.bytes("pan")?),
            details: Sealed::from_bytes(row.bytes("details")?),
        }),
        "GATEWAY_TOKEN" => {
            Held::Token { token: Sealed::from_bytes(row.bytes("token")?), digest: row.bytes("token_digest")? }
        }
        _ => return Err(StoreError::Damaged),
    };
    Ok(CardRow {
        card_id: CardId::parse(&row.text("card_id")?).ok_or(StoreError::Damaged)?,
        buyer: (!buyer.is_empty()).then_some(buyer),
        held,
        typed_at: Millis(row.int("typed_at")?),
        cvv,
        version: row.int("version")?,
        created_at: Millis(row.int("created_at")?),
        updated_at: Millis(row.int("updated_at")?),
    })
}

/// The statement that inserts cards from what has [`COLUMNS`].
macro_rules! insert_from {
    ($given:literal) => {
        concat!(
            "INSERT INTO cards (card_id, merchant, buyer, fingerprint, fingerprint_b, brand, bin, last4, pan, \
             details, cvv_holder, cvv_until, cvv_for, typed_at, version, created_at, updated_at) \
             SELECT card_id, merchant, buyer, fingerprint, fingerprint_b, brand, bin, last4, pan, details, \
             cvv_holder, cvv_until, cvv_for, at, 1, at, at FROM ",
            $given
        )
    };
}
pub(super) use insert_from;

/// The columns of a card to insert.
pub(super) const COLUMNS: Columns = &[
    ("card_id", Kind::Text),
    ("merchant", Kind::Text),
    ("buyer", Kind::Text),
    ("fingerprint", Kind::Bytes),
    ("fingerprint_b", Kind::Bytes),
    ("brand", Kind::Text),
    ("bin", Kind::Text),
    ("last4", Kind::Text),
    ("pan", Kind::Bytes),
    ("details", Kind::Bytes),
    ("cvv_holder", Kind::Text),
    ("cvv_until", Kind::Int),
    ("cvv_for", Kind::Text),
    ("at", Kind::Int),
    ("epoch", Kind::Int),
];

pub(super) fn args(card: &NewCard) -> [Arg<'_>; 15] {
    let [a, b] = &card.fingerprints;
    let cvv = card.cvv.as_ref();
    [
        Arg::Text(card.card_id.as_str()),
        Arg::Text(card.merchant.as_str()),
        Arg::Text(card.buyer.as_deref().unwrap_or_default()),
        Arg::BytesOrNull(a.as_ref().map(<[u8; 32]>::as_slice)),
        Arg::BytesOrNull(b.as_ref().map(<[u8; 32]>::as_slice)),
        Arg::Text(card.brand),
        Arg::Text(&card.bin),
        Arg::Text(&card.last4),
        Arg::Bytes(card.pan.as_bytes()),
        Arg::Bytes(card.details.as_bytes()),
        Arg::TextOrNull(cvv.map(|slot| slot.holder.as_str())),
        Arg::IntOrNull(cvv.map(|slot| slot.until.0)),
        Arg::TextOrNull(cvv.and_then(|slot| slot.for_request.as_deref())),
        Arg::Int(card.now.0),
        Arg::Int(card.epoch),
    ]
}

/// Two transactions that store the same cards take them in this order, so that neither waits for what the other
/// has while the other waits for it.
pub(super) fn in_order(cards: &mut [&NewCard]) {
    cards.sort_unstable_by_key(|card| (&card.merchant, &card.buyer, card.fingerprints));
}

/// Inserts cards, and tells which: not one that the merchant's buyer has with this PAN, by either
/// fingerprint, and not where the epoch of the keys is over.
pub async fn insert_cards(tx: &mut Tx, cards: &[&NewCard]) -> Result<Vec<bool>, StoreError> {
    static SQL: Many = Many::new(
        COLUMNS,
        concat!(
            insert_from!("given"),
            " WHERE EXISTS (SELECT 1 FROM key_epoch WHERE one = 1 AND key_epoch.epoch = given.epoch) \
             ON CONFLICT DO NOTHING RETURNING card_id"
        ),
    );
    let mut ordered: Vec<&NewCard> = cards.to_vec();
    in_order(&mut ordered);
    let rows: Vec<_> = ordered.into_iter().map(args).collect();
    let returned = tx.run_many(&SQL, &rows).await?;
    let stored: HashSet<String> =
        returned.iter().map(|row| row.text("card_id")).collect::<Result<_, StoreError>>()?;
    Ok(cards.iter().map(|card| stored.contains(card.card_id.as_str())).collect())
}

/// A card to insert of which only Antom holds the number.
pub struct NewTokenCard<'a> {
    /// Its fresh reference.
    pub card_id: &'a CardId,
    /// Whose it is.
    pub merchant: &'a Merchant,
    /// The buyer's id, if the card is some buyer's.
    pub buyer: Option<&'a str>,
    /// Antom's token, sealed.
    pub token: &'a Sealed,
    /// Keyed digest of the token.
    pub digest: &'a [u8],
    /// The key of that digest.
    pub digest_key: &'a str,
    /// Now.
    pub now: Millis,
}

/// Inserts a card that Antom holds; `false` where the merchant's buyer has one with this token.
pub async fn insert_token_card(tx: &mut Tx, card: &NewTokenCard<'_>) -> Result<bool, StoreError> {
    const SQL: &str = "INSERT INTO cards (card_id, merchant, buyer, source, brand, bin, last4, token, \
         token_digest, typed_at, version, created_at, updated_at, token_digest_key) \
         VALUES ($1, $2, $3, 'GATEWAY_TOKEN', '', '', '', $4, $5, $6, 1, $6, $6, $7) \
         ON CONFLICT (merchant, buyer, token_digest) WHERE token_digest IS NOT NULL DO NOTHING";
    let args = [
        Arg::Text(card.card_id.as_str()),
        Arg::Text(card.merchant.as_str()),
        Arg::Text(card.buyer.unwrap_or_default()),
        Arg::Bytes(card.token.as_bytes()),
        Arg::Bytes(card.digest),
        Arg::Int(card.now.0),
        Arg::Text(card.digest_key),
    ];
    Ok(tx.execute(SQL, &args).await? == 1)
}

/// A merchant's live card with this token of Antom's, of this buyer or of none.
pub async fn find_card_by_token(
    db: &Db,
    merchant: &Merchant,
    buyer: Option<&str>,
    digest: &[u8],
) -> Result<Option<CardRow>, StoreError> {
    const SQL: &str = concat!(
        "SELECT ",
        columns!(),
        " FROM cards WHERE merchant = $1 AND buyer = $2 AND token_digest = $3"
    );
    let args = [Arg::Text(merchant.as_str()), Arg::Text(buyer.unwrap_or_default()), Arg::Bytes(digest)];
    db.find(SQL, &args).await?.as_ref().map(card_row).transpose()
}

/// Live cards that an agreement in force uses, in the order of their ids, after `after`, with their
/// merchants.
pub async fn list_agreed(
    db: &Db,
    after: &str,
    limit: i64,
) -> Result<Vec<(Merchant, CardRow, Option<String>)>, StoreError> {
    const SQL: &str = concat!(
        "SELECT merchant, expiry_told, ",
        columns!(),
        " FROM cards WHERE card_id > $1 AND erased_at IS NULL AND source = 'PAN' AND EXISTS \
         (SELECT 1 FROM agreements WHERE agreements.merchant = cards.merchant \
             AND agreements.card_id = cards.card_id AND agreements.state = 'ACTIVE') \
         ORDER BY card_id LIMIT $2"
    );
    let rows = db.list(SQL, &[Arg::Text(after), Arg::Int(limit)]).await?;
    rows.iter()
        .map(|row| {
            let merchant = Merchant::parse(&row.text("merchant")?).ok_or(StoreError::Damaged)?;
            Ok((merchant, card_row(row)?, row.text_or_null("expiry_told")?))
        })
        .collect()
}

/// Notes that a card's expiry in `month` was told of; `false` where it was before.
pub async fn note_expiry_told(
    tx: &mut Tx,
    merchant: &Merchant,
    id: &CardId,
    month: &str,
) -> Result<bool, StoreError> {
    const SQL: &str = "UPDATE cards SET expiry_told = $3 WHERE merchant = $1 AND card_id = $2 \
         AND erased_at IS NULL AND (expiry_told IS NULL OR expiry_told <> $3)";
    let args = [Arg::Text(merchant.as_str()), Arg::Text(id.as_str()), Arg::Text(month)];
    Ok(tx.execute(SQL, &args).await? == 1)
}

/// A merchant's live card, with what a payment by it has to know.
pub struct CardToPay {
    /// The card.
    pub card: Box<CardRow>,
    /// Its past.
    pub past: CardPast,
    /// Whether the account has a payment with this id.
    pub id_is_used: bool,
}

/// As [`find_card`], with the card's past since `since`, for a payment with this id.
pub async fn find_card_to_pay(
    db: &Db,
    (merchant, id): (&Merchant, &CardId),
    (account, payment): (&GatewayAccount, &PaymentRequestId),
    since: Millis,
    now: Millis,
) -> Result<Option<CardToPay>, StoreError> {
    const SQL: &str = concat!(
        "SELECT ",
        columns!(),
        ", past.*, (SELECT COUNT(*) FROM payments WHERE account = $5 AND payment_request_id = $6) AS of_id \
         FROM cards CROSS JOIN ",
        past!(),
        " WHERE merchant = $1 AND card_id = $2 AND erased_at IS NULL"
    );
    let args = [
        Arg::Text(merchant.as_str()),
        Arg::Text(id.as_str()),
        Arg::Int(since.0),
        Arg::Int(now.0),
        Arg::Text(account.as_str()),
        Arg::Text(payment.as_str()),
    ];
    let to_pay = |row: Row| {
        Ok(CardToPay {
            card: Box::new(card_row(&row)?),
            past: past_of(&row)?,
            id_is_used: row.int("of_id")? > 0,
        })
    };
    db.find(SQL, &args).await?.map(to_pay).transpose()
}

/// As [`find_card`], for many: what each is, in their order.
pub async fn find_cards(
    db: &Db,
    given: &[(Merchant, CardId)],
) -> Result<Vec<Result<Option<CardRow>, StoreError>>, StoreError> {
    // PostgreSQL would read all cards for a join where it knows too little of the table.
    static SQL: Many = Many::of_each(
        &[("place", Kind::Int), ("owner", Kind::Text), ("id", Kind::Text)],
        concat!(
            "SELECT place, ",
            columns!(),
            " FROM given CROSS JOIN cards WHERE card_id = id AND merchant = owner AND erased_at IS NULL"
        ),
        concat!(
            "SELECT place, found.* FROM given CROSS JOIN LATERAL (SELECT ",
            columns!(),
            " FROM cards WHERE card_id = id AND merchant = owner AND erased_at IS NULL LIMIT 1) AS found"
        ),
    );
    let mut rows = Vec::with_capacity(given.len());
    for (place, (merchant, id)) in given.iter().enumerate() {
        let place = i64::try_from(place).unwrap_or(i64::MAX);
        rows.push([Arg::Int(place), Arg::Text(merchant.as_str()), Arg::Text(id.as_str())]);
    }
    let mut found: Vec<_> = given.iter().map(|_| Ok(None)).collect();
    for row in db.list_many(&SQL, &rows).await? {
        let place = usize::try_from(row.int("place")?).ok();
        *place.and_then(|place| found.get_mut(place)).ok_or(StoreError::Damaged)? = card_row(&row).map(Some);
    }
    Ok(found)
}

/// A merchant's live card.
pub async fn find_card(db: &Db, merchant: &Merchant, id: &CardId) -> Result<Option<CardRow>, StoreError> {
    const SQL: &str = concat!(
        "SELECT ",
        columns!(),
        " FROM cards WHERE merchant = $1 AND card_id = $2 AND erased_at IS NULL"
    );
    let row = db.find(SQL, &[Arg::Text(merchant.as_str()), Arg::Text(id.as_str())]).await?;
    row.as_ref().map(card_row).transpose()
}

/// A merchant's live card with this PAN, of this buyer or of none. `slot` is the column of the key that
/// made the fingerprint.
pub async fn find_card_by_pan(
    db: &Db,
    merchant: &Merchant,
    buyer: Option<&str>,
    slot: usize,
    fingerprint: &[u8],
) -> Result<Option<CardRow>, StoreError> {
    // The merchant is asked for in a way that no index answers: in a table that is new to it PostgreSQL may
    // take one that begins with the merchant, and read all of its cards.
    const BY_A: &str = concat!(
        "SELECT ",
        columns!(),
        " FROM cards WHERE merchant || '' = $1 AND buyer = $2 AND fingerprint = $3"
    );
    const BY_B: &str = concat!(
        "SELECT ",
        columns!(),
        " FROM cards WHERE merchant || '' = $1 AND buyer = $2 AND fingerprint_b = $3"
    );
    let args = [Arg::Text(merchant.as_str()), Arg::Text(buyer.unwrap_or_default()), Arg::Bytes(fingerprint)];
    let sql = if slot == 0 { BY_A } else { BY_B };
    db.find(sql, &args).await?.as_ref().map(card_row).transpose()
}

/// Which of a merchant's cards to list.
#[derive(Default)]
pub struct CardFilter<'a> {
    /// Of one buyer.
    pub buyer: Option<&'a str>,
    /// Of one PAN.
    pub fingerprint: Option<&'a [u8]>,
    /// After this card in the order of creation.
    pub after: Option<&'a CardId>,
}

/// A page of live cards, oldest first.
pub async fn list_cards(
    db: &Db,
    merchant: &Merchant,
    filter: &CardFilter<'_>,
    limit: i64,
) -> Result<Vec<CardRow>, StoreError> {
    // A cursor that is not one of the merchant's cards is before every card: created_at falls to 0.
    const SQL: &str = concat!(
        "SELECT ",
        columns!(),
        " FROM cards WHERE merchant = $1 AND erased_at IS NULL \
         AND (buyer = $2 OR $2 IS NULL) AND (fingerprint = $3 OR fingerprint_b = $3 OR $3 IS NULL) \
         AND (created_at, card_id) > \
             (COALESCE((SELECT created_at FROM cards WHERE merchant = $1 AND card_id = $4), 0), $4) \
         ORDER BY created_at, card_id LIMIT $5"
    );
    let args = [
        Arg::Text(merchant.as_str()),
        Arg::TextOrNull(filter.buyer),
        Arg::BytesOrNull(filter.fingerprint),
        Arg::Text(filter.after.map_or("", CardId::as_str)),
        Arg::Int(limit),
    ];
    db.list(SQL, &args).await?.iter().map(card_row).collect()
}

/// Details of a card to replace.
pub struct NewDetails {
    /// The card.
    pub card_id: CardId,
    /// Whose it is.
    pub merchant: Merchant,
    /// The card's version that they were made from.
    pub version: i64,
    /// The epoch of the keys that they were sealed with.
    pub epoch: i64,
    /// The sealed details.
    pub details: Sealed,
    /// Whether the card's number was typed again.
    pub typed: bool,
    /// Now.
    pub now: Millis,
}

/// Replaces the details of cards that are still at their versions, while their epoch lasts; tells which.
pub async fn update_details(tx: &mut Tx, all: &[&NewDetails]) -> Result<Vec<bool>, StoreError> {
    // In one order for all, as where cards are inserted.
    let mut places: Vec<usize> = (0..all.len()).collect();
    places.sort_unstable_by_key(|place| all.get(*place).map(|new| new.card_id.as_str()));
    if tx.is_sqlite() { update_each(tx, all, &places).await } else { update_at_once(tx, all, &places).await }
}

/// SQLite has nothing faster than one statement for each row.
async fn update_each(tx: &mut Tx, all: &[&NewDetails], places: &[usize]) -> Result<Vec<bool>, StoreError> {
    const SQL: &str = "UPDATE cards SET details = $4, version = version + 1, updated_at = $5, \
         typed_at = CASE WHEN $6 = 1 THEN $5 ELSE typed_at END \
         WHERE merchant = $1 AND card_id = $2 AND version = $3 AND erased_at IS NULL \
         AND EXISTS (SELECT 1 FROM key_epoch WHERE one = 1 AND epoch = $7)";
    let mut done = vec![false; all.len()];
    for place in places {
        let (Some(new), Some(done)) = (all.get(*place), done.get_mut(*place)) else { continue };
        let args = [
            Arg::Text(new.merchant.as_str()),
            Arg::Text(new.card_id.as_str()),
            Arg::Int(new.version),
            Arg::Bytes(new.details.as_bytes()),
            Arg::Int(new.now.0),
            Arg::Int(i64::from(new.typed)),
            Arg::Int(new.epoch),
        ];
        *done = tx.execute(SQL, &args).await? == 1;
    }
    Ok(done)
}

async fn update_at_once(tx: &mut Tx, all: &[&NewDetails], places: &[usize]) -> Result<Vec<bool>, StoreError> {
    static SQL: Many = Many::new(
        &[
            ("place", Kind::Int),
            ("merchant", Kind::Text),
            ("card_id", Kind::Text),
            ("version", Kind::Int),
            ("details", Kind::Bytes),
            ("at", Kind::Int),
            ("typed", Kind::Int),
            ("epoch", Kind::Int),
        ],
        "UPDATE cards SET details = given.details, version = cards.version + 1, updated_at = given.at, \
         typed_at = CASE WHEN given.typed = 1 THEN given.at ELSE cards.typed_at END FROM given \
         WHERE cards.merchant = given.merchant AND cards.card_id = given.card_id \
         AND cards.version = given.version AND cards.erased_at IS NULL \
         AND EXISTS (SELECT 1 FROM key_epoch WHERE one = 1 AND key_epoch.epoch = given.epoch) \
         RETURNING given.place",
    );
    let args: Vec<[Arg<'_>; 8]> = places
        .iter()
        .filter_map(|place| {
            let new = all.get(*place)?;
            Some([
                Arg::Int(i64::try_from(*place).ok()?),
                Arg::Text(new.merchant.as_str()),
                Arg::Text(new.card_id.as_str()),
                Arg::Int(new.version),
                Arg::Bytes(new.details.as_bytes()),
                Arg::Int(new.now.0),
                Arg::Int(i64::from(new.typed)),
                Arg::Int(new.epoch),
            ])
        })
        .collect();
    let mut done = vec![false; all.len()];
    for row in tx.run_many(&SQL, &args).await? {
        let place = usize::try_from(row.int("place")?).map_err(|_| StoreError::Damaged)?;
        *done.get_mut(place).ok_or(StoreError::Damaged)? = true;
    }
    Ok(done)
}

/// Notes that `holder` holds a CVV for the card.
pub async fn hold_cvv(
    tx: &mut Tx,
    merchant: &Merchant,
    id: &CardId,
    slot: &CvvSlot,
) -> Result<bool, StoreError> {
    const SQL: &str = "UPDATE cards SET cvv_holder = $3, cvv_until = $4, cvv_for = $5 \
         WHERE merchant = $1 AND card_id = $2 AND erased_at IS NULL";
    let args = [
        Arg::Text(merchant.as_str()),
        Arg::Text(id.as_str()),
        Arg::Text(&slot.holder),
        Arg::Int(slot.until.0),
        Arg::TextOrNull(slot.for_request.as_deref()),
    ];
    Ok(tx.execute(SQL, &args).await? == 1)
}

/// Takes the slot that `holder` holds; `false` where it is gone, or another's.
pub async fn take_cvv(
    tx: &mut Tx,
    merchant: &Merchant,
    id: &CardId,
    holder: &InstanceId,
    until: Millis,
) -> Result<bool, StoreError> {
    const SQL: &str = "UPDATE cards SET cvv_holder = NULL, cvv_until = NULL, cvv_for = NULL \
         WHERE merchant = $1 AND card_id = $2 AND cvv_holder = $3 AND cvv_until = $4";
    let args =
        [Arg::Text(merchant.as_str()), Arg::Text(id.as_str()), Arg::Text(holder.as_str()), Arg::Int(until.0)];
    Ok(tx.execute(SQL, &args).await? == 1)
}

/// What is left of an erased card: id, brand, last4 and times. Ciphertext, fingerprints, BIN, buyer and the
/// month of its expiry go.
macro_rules! erased {
    () => {
        "fingerprint = NULL, fingerprint_b = NULL, pan = NULL, details = NULL, token = NULL, \
         token_digest = NULL, token_digest_key = NULL, buyer = '', bin = '', expiry_told = NULL, \
         cvv_holder = NULL, cvv_until = NULL, cvv_for = NULL, version = version + 1, \
         used_at = NULL, updated_at = $3"
    };
}
pub(super) use erased;

/// Notes that a payment or an agreement takes the card, and keeps the card until the transaction ends;
/// `false` where it was erased. The value rises with each use.
pub async fn use_card(
    tx: &mut Tx,
    merchant: &Merchant,
    id: &CardId,
    now: Millis,
) -> Result<bool, StoreError> {
    const SQL: &str = "UPDATE cards SET used_at = CASE WHEN used_at >= $3 THEN used_at + 1 ELSE $3 END \
         WHERE merchant = $1 AND card_id = $2 AND erased_at IS NULL";
    let args = [Arg::Text(merchant.as_str()), Arg::Text(id.as_str()), Arg::Int(now.0)];
    Ok(tx.execute(SQL, &args).await? == 1)
}

/// Erases a card: ciphertext, fingerprint, BIN and buyer go; id, brand, last4 and times stay. `false`
/// where the merchant never had it; erasing twice is erasing once.
pub async fn erase_card(
    tx: &mut Tx,
    merchant: &Merchant,
    id: &CardId,
    now: Millis,
) -> Result<bool, StoreError> {
    const SQL: &str = concat!(
        "UPDATE cards SET ",
        erased!(),
        ", erased_at = COALESCE(erased_at, $3) WHERE merchant = $1 AND card_id = $2"
    );
    let args = [Arg::Text(merchant.as_str()), Arg::Text(id.as_str()), Arg::Int(now.0)];
    Ok(tx.execute(SQL, &args).await? == 1)
}
