//! New cards with their events and audit rows in one statement of PostgreSQL's, which is its own transaction:
//! one round trip, where a transaction of three statements takes five. To SQLite the transaction is sent whole. All
//! of a group is stored, or nothing.

use std::collections::HashSet;

use super::audit::{self, NewRow};
use super::backend::{Arg, Db, StoreError};
use super::cards::{self, NewCard};
use super::events::{self, NewEvent};
use super::many::{Batch, Kind, Many, Together};

/// Which of these cards the merchant's buyer has already, by either fingerprint, or has earlier in this list.
pub async fn find_known(db: &Db, given: &[&NewCard]) -> Result<Vec<bool>, StoreError> {
    // A join would read all cards where PostgreSQL knows too little of the table, and so would an index that
    // begins with the merchant.
    static SQL: Many = Many::of_each(
        &[
            ("place", Kind::Int),
            ("merchant", Kind::Text),
            ("buyer", Kind::Text),
            ("a", Kind::Bytes),
            ("b", Kind::Bytes),
        ],
        "SELECT place FROM given WHERE EXISTS (SELECT 1 FROM cards WHERE cards.fingerprint = given.a \
             AND cards.buyer = given.buyer AND cards.merchant || '' = given.merchant) \
         OR EXISTS (SELECT 1 FROM cards WHERE cards.fingerprint_b = given.b \
             AND cards.buyer = given.buyer AND cards.merchant || '' = given.merchant)",
        "SELECT place FROM given CROSS JOIN LATERAL (SELECT 1 FROM cards WHERE cards.fingerprint = given.a \
             AND cards.buyer = given.buyer AND cards.merchant || '' = given.merchant LIMIT 1) AS known \
         UNION ALL \
         SELECT place FROM given CROSS JOIN LATERAL (SELECT 1 FROM cards WHERE cards.fingerprint_b = given.b \
             AND cards.buyer = given.buyer AND cards.merchant || '' = given.merchant LIMIT 1) AS known_b",
    );
    let mut rows = Vec::with_capacity(given.len());
    for (place, card) in given.iter().enumerate() {
        let [a, b] = &card.fingerprints;
        rows.push([
            Arg::Int(i64::try_from(place).unwrap_or(i64::MAX)),
            Arg::Text(card.merchant.as_str()),
            Arg::Text(card.buyer.as_deref().unwrap_or_default()),
            Arg::BytesOrNull(a.as_ref().map(<[u8; 32]>::as_slice)),
            Arg::BytesOrNull(b.as_ref().map(<[u8; 32]>::as_slice)),
        ]);
    }
    let mut known = vec![false; given.len()];
    let found = match db.groups() {
        Some(groups) => groups.list(&SQL, &rows).await?,
        None => db.list_many(&SQL, &rows).await?,
    };
    for row in found {
        let place = usize::try_from(row.int("place")?).ok();
        *place.and_then(|place| known.get_mut(place)).ok_or(StoreError::Damaged)? = true;
    }
    let mut seen = HashSet::new();
    for (card, known) in given.iter().zip(&mut known) {
        for (slot, digest) in card.fingerprints.iter().enumerate() {
            if let Some(digest) = digest {
                *known |= !seen.insert((&card.merchant, &card.buyer, slot, digest));
            }
        }
    }
    Ok(known)
}

/// Stores cards with their events, which are numbered at once, and their audit rows; `false` where nothing was:
/// the epoch of the keys is over, or a card that came alone is known. Where one of several is known after all,
/// the statement is refused.
///
/// All cards are inserted before a feed's head is changed: another process that waits for the head has none of
/// its cards to insert any more, so that the two cannot wait for one another.
pub async fn store(
    db: &Db,
    given: &[&NewCard],
    told: &[NewEvent<'_>],
    noted: &[NewRow],
) -> Result<bool, StoreError> {
    macro_rules! statement {
        ($conflict:literal) => {
            Together::new(
                &[
                    ("given_cards", cards::COLUMNS),
                    ("given_events", events::COLUMNS),
                    ("given_rows", audit::COLUMNS),
                ],
                concat!(
                    "stored AS (",
                    cards::insert_from!("given_cards"),
                    " WHERE NOT EXISTS (SELECT 1 FROM given_cards AS other WHERE other.epoch IS DISTINCT FROM \
                     (SELECT key_epoch.epoch FROM key_epoch WHERE one = 1))",
                    $conflict,
                    " RETURNING 1), counted AS ( \
                         SELECT merchant, COUNT(*) AS many FROM given_events \
                         WHERE (SELECT COUNT(*) FROM stored) > 0 GROUP BY merchant), \
                     heads AS (",
                    events::move_heads!("counted"),
                    "), told AS (",
                    events::insert_from!(
                        "heads.newest - given_events.position",
                        "given_events JOIN heads ON heads.owner = given_events.merchant"
                    ),
                    "), noted AS (",
                    audit::insert_from!("given_rows"),
                    " WHERE EXISTS (SELECT 1 FROM stored)) \
                     SELECT COUNT(*) AS stored FROM stored"
                ),
            )
        };
    }
    static ALONE: Together = statement!(" ON CONFLICT DO NOTHING");
    static SEVERAL: Together = statement!("");
    static EACH: Many = Many::new(
        cards::COLUMNS,
        concat!(
            cards::insert_from!("given"),
            " WHERE EXISTS (SELECT 1 FROM key_epoch WHERE one = 1 AND key_epoch.epoch = given.epoch)"
        ),
    );
    let mut ordered = given.to_vec();
    cards::in_order(&mut ordered);
    if let Some(writer) = db.sqlite() {
        let mut batch = Batch::new();
        batch.add(&EACH, &ordered.into_iter().map(cards::args).collect::<Vec<_>>());
        events::add(&mut batch, told);
        audit::add(&mut batch, noted);
        return match db.run_batch(writer, batch).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_missed() || error.is_known_card() => Ok(false),
            Err(error) => Err(error),
        };
    }
    let given_cards: Vec<_> = ordered.into_iter().map(cards::args).collect();
    let given_events: Vec<_> = told
        .iter()
        .zip(events::followers(told))
        .map(|(event, followers)| events::args(event, Some(followers)))
        .collect();
    let given_rows: Vec<_> = noted.iter().map(audit::args).collect();
    let tables = [
        given_cards.iter().map(<[Arg<'_>; 15]>::as_slice).collect(),
        given_events.iter().map(<[Arg<'_>; 8]>::as_slice).collect(),
        given_rows.iter().map(<[Arg<'_>; 13]>::as_slice).collect::<Vec<_>>(),
    ];
    let statement = if given.len() == 1 { &ALONE } else { &SEVERAL };
    let groups = db.groups().ok_or(StoreError::Damaged)?;
    let row = groups.write(statement, &tables).await?.ok_or(StoreError::Damaged)?;
    Ok(row.int("stored")? > 0)
}
