//! The event feed: everything that is committed is told, in order, at least once, to its merchant alone;
//! whichever transaction commits first, whoever numbers, and whoever dies in between.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant};

use cardvault::base::clock::{Clock, Millis};
use cardvault::base::ids::{EventId, InstanceId, Merchant};
use cardvault::jobs::sequence::{LEASE_TIME, Sequencer, Turn};
use cardvault::model::event::{Cursor, Event, EventKind};
use cardvault::store::backend::{Arg, Db, Options, Tx};
use cardvault::store::events::{NewEvent, insert_event, list_events, list_waiting, sequence_batch};
use cardvault::store::{leases, migrate};

use super::support::vault::{Answer, Caller, HOSTED, TestVault, by_reference, fresh_pan};
use super::support::{Database, Engine};

/// A bound on what must come at all, not a claim about how soon.
const PATIENCE: Duration = Duration::from_secs(20);

async fn open(db: &Database) -> Db {
    let db = Db::open(&Options { url: db.url.clone(), password_file: None }).await.expect("a database");
    migrate::run(&db).await.expect("a schema");
    db
}

fn merchant(name: &str) -> Merchant {
    Merchant::parse(name).expect("a merchant")
}

/// Writes an event that names its object.
async fn write(tx: &mut Tx, merchant: &Merchant, object_id: &str, at: i64) {
    let event_id = EventId::make().expect("entropy");
    let event = NewEvent {
        event_id: &event_id,
        merchant,
        kind: EventKind::PaymentAuthorized,
        object_type: "payment",
        object_id,
        body: "{}",
        created_at: Millis(at),
    };
    insert_event(tx, &event).await.expect("an event");
}

async fn write_one(db: &Db, merchant: &Merchant, object_id: &str, at: i64) {
    let mut tx = db.begin_write().await.expect("a transaction");
    write(&mut tx, merchant, object_id, at).await;
    tx.commit().await.expect("a commit");
}

async fn number(db: &Db, limit: i64) -> u64 {
    let waiting = list_waiting(db).await.expect("merchants");
    sequence_batch(db, &waiting, limit).await.expect("numbers")
}

async fn read(db: &Db, merchant: &Merchant, after: Cursor) -> Vec<Event> {
    list_events(db, merchant, after, 100).await.expect("events")
}

fn objects(events: &[Event]) -> Vec<&str> {
    events.iter().map(|event| event.object_id.as_str()).collect()
}

/// A clock that stands until it is moved.
struct Hand(AtomicI64);

impl Hand {
    fn turn(&self, by: Duration) {
        self.0.fetch_add(i64::try_from(by.as_millis()).expect("a short time"), Ordering::SeqCst);
    }
}

impl Clock for Hand {
    fn now(&self) -> Millis {
        Millis(self.0.load(Ordering::SeqCst))
    }

    fn instant(&self) -> Instant {
        Instant::now()
    }
}

/// `WRITERS` tasks write at once, two sequencers number at once without any lease, and a reader follows
/// from cursor to cursor. It must have seen every event once, without a gap, each writer's in order.
async fn write_number_and_follow(db: &Db) {
    const WRITERS: usize = 8;
    const EACH: usize = 25;
    let acme = merchant("acme");
    let done = Arc::new(AtomicBool::new(false));
    let mut sequencers = Vec::new();
    for limit in [3, 7] {
        let (db, done) = (db.clone(), done.clone());
        sequencers.push(tokio::spawn(async move {
            let mut numbered = 0;
            loop {
                let last = done.load(Ordering::SeqCst);
                let turn = number(&db, limit).await;
                numbered += turn;
                if last && turn == 0 {
                    return numbered;
                }
            }
        }));
    }
    let mut writers = Vec::new();
    for writer in 0..WRITERS {
        let (db, acme) = (db.clone(), acme.clone());
        writers.push(tokio::spawn(async move {
            for turn in 0..EACH {
                let mut tx = db.begin_write().await.expect("a transaction");
                // The clocks of writers differ; each one's own rises.
                let at = 1_000 * i64::try_from(writer).expect("small") + i64::try_from(turn).expect("small");
                write(&mut tx, &acme, &format!("{writer}-{turn:02}"), at).await;
                if turn % 3 == 0 {
                    // Others commit in between.
                    tokio::time::sleep(Duration::from_millis(3)).await;
                }
                if turn % 5 == 4 {
                    tx.rollback().await.expect("a rollback");
                    continue;
                }
                tx.commit().await.expect("a commit");
            }
        }));
    }
    let follow = async {
        let mut seen = Vec::new();
        let mut after = Cursor::default();
        while seen.len() < WRITERS * EACH * 4 / 5 {
            let page = list_events(db, &acme, after, 10).await.expect("events");
            after = page.last().map_or(after, |event| event.cursor);
            seen.extend(page);
        }
        seen
    };
    let seen = tokio::time::timeout(3 * PATIENCE, follow).await.expect("every event");
    for writer in writers {
        writer.await.expect("a writer");
    }
    done.store(true, Ordering::SeqCst);
    let mut numbered = 0;
    for sequencer in sequencers {
        numbered += sequencer.await.expect("a sequencer");
    }
    // SQLite's events are numbered where they are written.
    let left = if db.is_sqlite() { 0 } else { seen.len() };
    assert_eq!(numbered, u64::try_from(left).expect("small"));
    let places: Vec<i64> = seen.iter().map(|event| event.cursor.position()).collect();
    assert_eq!(places, (1..=i64::try_from(seen.len()).expect("small")).collect::<Vec<_>>());
    let ids: BTreeSet<_> = seen.iter().map(|event| event.event_id.clone()).collect();
    assert_eq!(ids.len(), seen.len());
    for writer in 0..WRITERS {
        let prefix = format!("{writer}-");
        let own: Vec<_> = objects(&seen).into_iter().filter(|id| id.starts_with(&prefix)).collect();
        assert_eq!(own.len(), EACH * 4 / 5);
        assert!(own.is_sorted(), "{own:?}");
    }
    assert!(read(db, &acme, Cursor::at(places.len().try_into().expect("small"))).await.is_empty());
}

/// A page of the feed.
struct Page {
    events: Vec<serde_json::Value>,
    next: String,
}

impl Page {
    fn of(answer: Answer) -> Self {
        let answer = answer.expect(200);
        let events = answer.json()["data"].as_array().expect("a list").clone();
        Self { events, next: answer.text_at("/next") }
    }

    fn told(&self) -> Vec<(&str, &str)> {
        let text = |event: &'_ serde_json::Value, pointer| event.pointer(pointer).cloned();
        self.events
            .iter()
            .filter(|event| text(event, "/object/type") == Some("payment".into()))
            .map(|event| {
                assert_eq!(event["data"]["paymentRequestId"], event["object"]["id"]);
                (event["type"].as_str().expect("a type"), event["object"]["id"].as_str().expect("an id"))
            })
            .collect()
    }
}

async fn feed(caller: &Caller, query: &str) -> Page {
    Page::of(caller.get(&format!("/v1/events?{query}")).await)
}

/// Stories of PostgreSQL alone: SQLite's events are numbered where they are written.
macro_rules! on_postgres {
    ($($(#[$attribute:meta])* async fn $name:ident($db:ident: Database) $story:block)+) => {$(
        $(#[$attribute])*
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            let name = concat!(module_path!(), "::", stringify!($name));
            if let Some($db) = Database::postgres(name).await $story
        }
    )+};
}

on_postgres! {
    /// Rows that are not committed, or not numbered, are not shown; a batch is bounded and in order; each
    /// merchant has positions of its own.
    async fn only_numbered_events_are_shown(db: Database) {
        let store = open(&db).await;
        let (acme, globex) = (merchant("acme"), merchant("globex"));
        for at in [3, 1, 2] {
            write_one(&store, &acme, &format!("acme-{at}"), at).await;
        }
        write_one(&store, &globex, "globex-1", 9).await;
        let mut tx = store.begin_write().await.expect("a transaction");
        write(&mut tx, &acme, "taken back", 0).await;
        tx.rollback().await.expect("a rollback");
        assert!(read(&store, &acme, Cursor::default()).await.is_empty());
        assert_eq!(list_waiting(&store).await.expect("merchants"), [acme.clone(), globex.clone()]);
        assert_eq!(number(&store, 2).await, 3);
        assert_eq!(objects(&read(&store, &acme, Cursor::default()).await), ["acme-1", "acme-2"]);
        let other = read(&store, &globex, Cursor::default()).await;
        assert_eq!((objects(&other), other[0].cursor), (vec!["globex-1"], Cursor::at(1)));
        assert_eq!(number(&store, 2).await, 1);
        assert_eq!(objects(&read(&store, &acme, Cursor::at(2)).await), ["acme-3"]);
        assert_eq!(number(&store, 2).await, 0);
        assert!(read(&store, &acme, Cursor::at(i64::MAX)).await.is_empty());
    }

    /// The sequencer dies with its lease between an insert and its numbering: the next one goes on where
    /// the table stands, once the lease is over.
    async fn a_dead_sequencer_loses_nothing(db: Database) {
        let store = open(&db).await;
        let acme = merchant("acme");
        let clock = Arc::new(Hand(AtomicI64::new(1_000)));
        let sequencer =
            || Sequencer::new(store.clone(), InstanceId::make().expect("entropy"), clock.clone());
        let mut first = sequencer();
        assert_eq!(first.run_once().await.expect("a turn"), Turn::Idle);
        write_one(&store, &acme, "1", 1).await;
        assert_eq!(first.run_once().await.expect("a turn"), Turn::Numbered(1));
        write_one(&store, &acme, "2", 2).await;
        drop(first);
        let mut second = sequencer();
        assert_eq!(second.run_once().await.expect("a turn"), Turn::Elsewhere);
        assert_eq!(objects(&read(&store, &acme, Cursor::default()).await), ["1"]);
        clock.turn(LEASE_TIME);
        assert_eq!(second.run_once().await.expect("a turn"), Turn::Numbered(1));
        assert_eq!(objects(&read(&store, &acme, Cursor::default()).await), ["1", "2"]);
        // Who gives the lease back spares the next one the wait.
        second.release().await.expect("a release");
        write_one(&store, &acme, "3", 3).await;
        assert_eq!(sequencer().run_once().await.expect("a turn"), Turn::Numbered(1));
        assert_eq!(objects(&read(&store, &acme, Cursor::at(2)).await), ["3"]);
    }

    /// A sequencer that works renews its lease; one that stalled past its end finds it taken.
    async fn a_lease_is_renewed_and_taken_over(db: Database) {
        let store = open(&db).await;
        let acme = merchant("acme");
        let clock = Arc::new(Hand(AtomicI64::new(1_000)));
        let sequencer =
            || Sequencer::new(store.clone(), InstanceId::make().expect("entropy"), clock.clone());
        let (mut one, mut other) = (sequencer(), sequencer());
        for at in 1..=5 {
            write_one(&store, &acme, &at.to_string(), at).await;
            assert_eq!(one.run_once().await.expect("a turn"), Turn::Numbered(1));
            write_one(&store, &acme, "late", at).await;
            assert_eq!(other.run_once().await.expect("a turn"), Turn::Elsewhere);
            assert_eq!(one.run_once().await.expect("a turn"), Turn::Numbered(1));
            clock.turn(LEASE_TIME * 2 / 3);
        }
        clock.turn(LEASE_TIME);
        write_one(&store, &acme, "taken over", 6).await;
        assert_eq!(other.run_once().await.expect("a turn"), Turn::Numbered(1));
        write_one(&store, &acme, "and kept", 7).await;
        assert_eq!(one.run_once().await.expect("a turn"), Turn::Elsewhere);
        assert_eq!(other.run_once().await.expect("a turn"), Turn::Numbered(1));
        assert_eq!(read(&store, &acme, Cursor::default()).await.len(), 12);
    }

    /// Two servers store cards in groups and make payments at once, whose events are numbered in two ways; a
    /// reader who follows misses none, and sees a card before what is paid with it.
    async fn a_reader_follows_two_servers(db: Database) {
        const CALLERS: usize = 12;
        const EACH: usize = 12;
        let vault = TestVault::start(&db).await;
        let other = vault.another().await;
        let reader = vault.client("checkout");
        let callers = [reader.clone(), reader.at(other.address)];
        let mut storing = Vec::new();
        for caller in 0..CALLERS {
            let checkout = callers[caller % 2].clone();
            storing.push(tokio::spawn(async move {
                let mut told = Vec::new();
                for turn in 0..EACH {
                    let card = checkout.card(&fresh_pan()).await;
                    told.push(card.clone());
                    if turn % 4 == 0 {
                        let id = format!("EV_{caller}_{turn}");
                        checkout.post("/v1/payments", &by_reference(&id, "100", &card)).await.expect(200);
                        told.push(id);
                    }
                }
                told
            }));
        }
        let many = CALLERS * (EACH + EACH.div_ceil(4));
        let (mut seen, mut after) = (Vec::new(), "0".to_owned());
        while seen.len() < many {
            let page = feed(&reader, &format!("after={after}&wait=30&limit=7")).await;
            assert!(!page.events.is_empty(), "only {} of {many} events came", seen.len());
            for event in &page.events {
                assert_eq!(event["cursor"], (seen.len() + 1).to_string());
                seen.push(event["object"]["id"].as_str().expect("an id").to_owned());
            }
            after = page.next;
        }
        for caller in storing {
            let told = caller.await.expect("a caller");
            let mut places = told.iter().map(|id| {
                let mut at = seen.iter().enumerate().filter(|(_, seen)| *seen == id).map(|(place, _)| place);
                let place = at.next().unwrap_or_else(|| panic!("{id} was not told"));
                assert_eq!(at.next(), None, "{id} was told twice");
                (id.starts_with("EV_"), place)
            });
            let mut before = 0;
            assert!(places.all(|(paid, place)| {
                let in_order = !paid || before < place;
                before = place;
                in_order
            }));
        }
        other.stop().await;
        vault.finish(&[]).await;
    }
}

both_engines! {
    /// Nothing is lost, doubled or out of its writer's order under many writers and two sequencers.
    async fn many_writers_and_two_sequencers(db: Database) {
        write_number_and_follow(&open(&db).await).await;
    }

    /// A begins, B begins and commits, a reader reads, A commits: the reader gets A's event too, although
    /// A's is the older one.
    async fn a_later_commit_does_not_hide_an_earlier_event(db: Database) {
        let store = open(&db).await;
        let acme = merchant("acme");
        match db.engine {
            Engine::Postgres => {
                let mut a = store.begin_write().await.expect("a transaction");
                let mut b = store.begin_write().await.expect("a transaction");
                write(&mut a, &acme, "A", 1).await;
                write(&mut b, &acme, "B", 2).await;
                b.commit().await.expect("a commit");
                assert_eq!(number(&store, 10).await, 1);
                let first = read(&store, &acme, Cursor::default()).await;
                assert_eq!(objects(&first), ["B"]);
                a.commit().await.expect("a commit");
                assert_eq!(number(&store, 10).await, 1);
                assert_eq!(objects(&read(&store, &acme, first[0].cursor).await), ["A"]);
            }
            // Writers stand in a queue here: what is committed first was written first.
            Engine::Sqlite => {
                write_one(&store, &acme, "B", 2).await;
                let first = read(&store, &acme, Cursor::default()).await;
                write_one(&store, &acme, "A", 1).await;
                assert_eq!(objects(&read(&store, &acme, first[0].cursor).await), ["A"]);
            }
        }
        assert_eq!(objects(&read(&store, &acme, Cursor::default()).await), ["B", "A"]);
    }

    /// What is not committed is not shown, and leaves no gap; each merchant has positions of its own.
    async fn only_committed_events_are_shown(db: Database) {
        let store = open(&db).await;
        let (acme, globex) = (merchant("acme"), merchant("globex"));
        write_one(&store, &acme, "acme-1", 1).await;
        let mut tx = store.begin_write().await.expect("a transaction");
        write(&mut tx, &acme, "taken back", 2).await;
        tx.rollback().await.expect("a rollback");
        write_one(&store, &globex, "globex-1", 3).await;
        // One transaction tells of several merchants, and several times of one.
        let mut tx = store.begin_write().await.expect("a transaction");
        for (whose, id, at) in [(&acme, "acme-2", 4), (&globex, "globex-2", 5), (&acme, "acme-3", 6)] {
            write(&mut tx, whose, id, at).await;
        }
        assert!(!objects(&read(&store, &acme, Cursor::default()).await).contains(&"acme-2"));
        tx.commit().await.expect("a commit");
        number(&store, 10).await;
        for (whose, name, many) in [(&acme, "acme", 3), (&globex, "globex", 2)] {
            let events = read(&store, whose, Cursor::default()).await;
            let ids: Vec<String> = (1..=many).map(|n| format!("{name}-{n}")).collect();
            assert_eq!(objects(&events), ids);
            let places: Vec<_> = events.iter().map(|event| event.cursor.position()).collect();
            assert_eq!(places, (1..=many).collect::<Vec<_>>());
        }
    }

    /// A lease has one owner until its end.
    async fn a_lease_has_one_owner(db: Database) {
        let store = open(&db).await;
        let (one, other) = (InstanceId::make().expect("entropy"), InstanceId::make().expect("entropy"));
        let acquire = async |owner, now, until| {
            leases::acquire(&store, "job", owner, Millis(now), Millis(until)).await.expect("an answer")
        };
        assert!(acquire(&one, 0, 10).await);
        assert!(!acquire(&other, 9, 19).await);
        assert!(acquire(&one, 5, 15).await);
        assert!(!acquire(&other, 14, 24).await);
        assert!(leases::renew(&store, "job", &one, Millis(20)).await.expect("an answer"));
        assert!(!acquire(&other, 19, 29).await);
        assert!(acquire(&other, 20, 30).await);
        assert!(!leases::renew(&store, "job", &one, Millis(40)).await.expect("an answer"));
        assert!(!leases::release(&store, "job", &one).await.expect("an answer"));
        assert!(!acquire(&one, 21, 31).await);
        assert!(leases::release(&store, "job", &other).await.expect("an answer"));
        assert!(acquire(&one, 21, 31).await);
    }

    /// Each of a payment's outcomes is told once, to its merchant, as the payment is shown, without what
    /// only the payment's own answer may hold.
    async fn a_payments_outcome_is_told(db: Database) {
        let vault = TestVault::start(&db).await;
        let (checkout, rival) = (vault.client("checkout"), vault.client("rival"));
        let pan = fresh_pan();
        let card = checkout.card(&pan).await;
        checkout.post("/v1/payments", &by_reference("EV_PAID", "100", &card)).await.expect(200);
        checkout.post("/v1/payments", &by_reference("EV_FAILED", "11", &card)).await.expect(200);
        let hosted = checkout.post("/v1/payments", HOSTED).await.expect(200).text_at("/paymentRequestId");
        let stored = feed(&checkout, "wait=30&limit=1").await;
        assert_eq!(stored.events[0]["type"], "card.stored");
        assert_eq!(stored.events[0]["data"], serde_json::json!({ "cardId": card, "source": "PAN" }));
        let first = feed(&checkout, &format!("after={}&wait=30&limit=1", stored.next)).await;
        assert_eq!(first.told(), [("payment.authorized", "EV_PAID")]);
        assert_eq!(first.events[0]["cursor"], first.next.as_str());
        let mut told = Vec::new();
        let mut after = first.next.clone();
        while told.len() < 2 {
            let page = feed(&checkout, &format!("after={after}&wait=30")).await;
            told.extend(page.told().into_iter().map(|(kind, id)| (kind.to_owned(), id.to_owned())));
            after = page.next;
        }
        let expected = [("payment.failed", "EV_FAILED"), ("payment.processing", hosted.as_str())];
        assert_eq!(told, expected.map(|(kind, id)| (kind.to_owned(), id.to_owned())));
        // A repeat is no news, and a look tells of the gateway's own capture, once.
        checkout.post("/v1/payments", &by_reference("EV_PAID", "100", &card)).await.expect(200);
        for _ in 0..2 {
            checkout.get("/v1/payments/EV_PAID?refresh=true").await.expect(200);
        }
        let page = feed(&checkout, &format!("after={after}&wait=30")).await;
        assert_eq!((page.told(), page.events.len()), (vec![], 1));
        assert_eq!(page.events[0]["type"], "capture.succeeded");
        let page = feed(&checkout, &format!("after={}&wait=1", page.next)).await;
        assert!(page.events.is_empty());
        let shown = checkout.get("/v1/payments/EV_PAID").await.expect(200).json();
        let data = &first.events[0]["data"];
        for name in ["status", "cardId", "paymentId", "paymentAmount", "result", "settledBy", "createdAt"] {
            assert_eq!(data[name], shown[name], "{name}");
        }
        for name in ["gatewayResponse", "paymentResultInfo", "redirect"] {
            assert!(data.get(name).is_none() && shown.get(name).is_some(), "{name}");
        }
        let page = feed(&rival, "").await;
        assert_eq!((page.told(), page.next.as_str()), (vec![], "0"));
        vault.finish(&[&pan]).await;
    }

    /// Two changes of one payment are told in their order, the second one by an inquiry's word.
    async fn a_payments_changes_are_told_in_order(db: Database) {
        let vault = TestVault::start(&db).await;
        let checkout = vault.client("checkout");
        let paid = checkout.post("/v1/payments", HOSTED).await.expect(200);
        let id = paid.text_at("/paymentRequestId");
        checkout.visit(&format!("{}/approve", paid.text_at("/redirect/normalUrl"))).await;
        let refreshed = checkout.get(&format!("/v1/payments/{id}?refresh=true")).await.expect(200);
        assert_eq!(refreshed.text_at("/status"), "AUTHORIZED");
        let first = feed(&checkout, "wait=30&limit=1").await;
        let second = feed(&checkout, &format!("after={}&wait=30", first.next)).await;
        assert_eq!(first.told(), [("payment.processing", id.as_str())]);
        assert_eq!(second.told(), [("payment.authorized", id.as_str())]);
        assert_eq!(second.events[0]["data"]["settledBy"], "inquiry");
        vault.finish(&[]).await;
    }

    /// A payment that never left has failed, and that is told.
    async fn a_payment_that_was_not_sent_is_told(db: Database) {
        let nobody = |config: &mut cardvault::config::Config| {
            config.gateway[0].base_url = "https://127.0.0.1:1".to_owned();
        };
        let vault = TestVault::start_with(&db, nobody).await;
        let checkout = vault.client("checkout");
        let paid = checkout.post("/v1/payments", HOSTED).await.expect(200);
        assert_eq!(paid.text_at("/status"), "FAILED");
        let page = feed(&checkout, "wait=30").await;
        assert_eq!(page.told(), [("payment.failed", paid.text_at("/paymentRequestId").as_str())]);
        assert_eq!(page.events[0]["data"]["settledBy"], "not_sent");
        vault.finish(&[]).await;
    }

    /// Eight payers and one reader who follows: he sees every payment once, without a gap.
    async fn a_reader_follows_many_payers(db: Database) {
        const PAYERS: usize = 8;
        const EACH: usize = 4;
        let vault = TestVault::start(&db).await;
        let checkout = vault.client("checkout");
        let pan = fresh_pan();
        let card = checkout.card(&pan).await;
        let payers: Vec<_> = (0..PAYERS)
            .map(|payer| {
                let (checkout, card) = (checkout.clone(), card.clone());
                tokio::spawn(async move {
                    for turn in 0..EACH {
                        let body = by_reference(&format!("EV_{payer}_{turn}"), "100", &card);
                        checkout.post("/v1/payments", &body).await.expect(200);
                    }
                })
            })
            .collect();
        let (mut ids, mut places, mut after) = (BTreeSet::new(), Vec::new(), "0".to_owned());
        while ids.len() < PAYERS * EACH + 1 {
            let page = feed(&checkout, &format!("after={after}&wait=30&limit=5")).await;
            assert!(!page.events.is_empty(), "only {} events came", ids.len());
            for event in &page.events {
                assert!(ids.insert(event["object"]["id"].as_str().expect("an id").to_owned()), "{event}");
                places.push(event["cursor"].as_str().expect("a cursor").parse::<usize>().expect("a place"));
            }
            after = page.next;
        }
        for payer in payers {
            payer.await.expect("a payer");
        }
        // The card's own event is the first of all.
        assert_eq!(places, (1..=PAYERS * EACH + 1).collect::<Vec<_>>());
        vault.finish(&[&pan]).await;
    }

    /// A request waits for news: for this process's, for another's, and not for ever; and it does not
    /// hold up the end.
    async fn a_long_poll_waits_for_news(db: Database) {
        let mut vault = TestVault::start(&db).await;
        let checkout = vault.client("checkout");
        let page = feed(&checkout, "wait=1").await;
        assert_eq!((page.told(), page.next.as_str()), (vec![], "0"));
        let wait = |after: &str| {
            let (checkout, query) = (checkout.clone(), format!("after={after}&wait=30"));
            tokio::spawn(async move { feed(&checkout, &query).await })
        };
        let begin = || tokio::time::sleep(Duration::from_millis(300));
        let news = wait("0");
        begin().await;
        let paid = checkout.post("/v1/payments", HOSTED).await.expect(200).text_at("/paymentRequestId");
        let page = news.await.expect("an answer");
        assert_eq!(page.told(), [("payment.processing", paid.as_str())]);
        // Another process writes and numbers; no bell rings here.
        let elsewhere = open(&db).await;
        let news = wait(&page.next);
        begin().await;
        let body = format!(r#"{{"paymentRequestId":"{paid}"}}"#);
        let event_id = EventId::make().expect("entropy");
        let event = NewEvent {
            event_id: &event_id,
            merchant: &merchant("acme"),
            kind: EventKind::PaymentCancelled,
            object_type: "payment",
            object_id: &paid,
            body: &body,
            created_at: Millis(i64::MAX / 2),
        };
        let mut tx = elsewhere.begin_write().await.expect("a transaction");
        insert_event(&mut tx, &event).await.expect("an event");
        tx.commit().await.expect("a commit");
        number(&elsewhere, 10).await;
        let page = news.await.expect("an answer");
        assert_eq!(page.told(), [("payment.cancelled", paid.as_str())]);
        // The vault is told to stop: the wait ends with an answer.
        let last = wait(&page.next);
        begin().await;
        tokio::time::timeout(PATIENCE, vault.stop()).await.expect("a stop that waits for nobody");
        let end = last.await.expect("an answer");
        assert_eq!((end.told(), &end.next), (vec![], &page.next));
        elsewhere.close().await;
        vault.finish(&[]).await;
    }

    /// What a stop left without a number is told after the next start, and old events still are.
    async fn the_feed_goes_on_after_a_restart(db: Database) {
        let mut vault = TestVault::start(&db).await;
        let paid = vault.client("checkout").post("/v1/payments", HOSTED).await.expect(200);
        let paid = paid.text_at("/paymentRequestId");
        vault.stop().await;
        let store = open(&db).await;
        write_one(&store, &merchant("acme"), "left", i64::MAX / 2).await;
        store.close().await;
        vault.restart().await;
        let checkout = vault.client("checkout");
        let mut told: Vec<String> = Vec::new();
        let mut after = "0".to_owned();
        while told.len() < 2 {
            let page = feed(&checkout, &format!("after={after}&wait=30")).await;
            told.extend(page.events.iter().map(|event| event["object"]["id"].as_str().expect("an id").to_owned()));
            after = page.next;
        }
        assert_eq!(told, [paid, "left".to_owned()]);
        vault.finish(&[]).await;
    }

    /// Parameters are strict, and the scope is needed.
    async fn the_feed_is_guarded(db: Database) {
        let vault = TestVault::start_with(&db, |config| {
            for client in config.client.iter_mut().filter(|client| client.name == "backoffice") {
                client.scopes.remove("events:read");
            }
        })
        .await;
        let checkout = vault.client("checkout");
        let bad = [
            "after=-1", "after=01", "after=+1", "after=1.0", "after=x", "after=", "after=9223372036854775808",
            "limit=0", "limit=101", "limit=x", "wait=31", "wait=-1", "wait=1.5", "wait=x", "wait=", "wait=030",
            "after=1&after=2", "since=1",
        ];
        for query in bad {
            checkout.get(&format!("/v1/events?{query}")).await.expect_problem(400, "invalid_query");
        }
        assert_eq!(feed(&checkout, "after=9223372036854775807&limit=100&wait=0").await.next, i64::MAX.to_string());
        vault.client("backoffice").get("/v1/events").await.expect_problem(403, "missing_scope");
        checkout.post("/v1/events", "{}").await.expect_problem(405, "method_not_allowed");
        vault.finish(&[]).await;
    }
}

/// An older version left SQLite's events without a number: the migration gives them theirs, in their order.
#[tokio::test]
async fn what_an_older_version_left_is_numbered() {
    let db = Database::sqlite();
    let store = open(&db).await;
    let (acme, globex) = (merchant("acme"), merchant("globex"));
    write_one(&store, &acme, "told", 1).await;
    for (whose, id, at) in [("acme", "later", 9), ("acme", "sooner", 8), ("globex", "first", 7)] {
        const SQL: &str = "INSERT INTO events \
             (event_id, merchant, position, kind, object_type, object_id, body, created_at) \
             VALUES ($1, $2, NULL, 'payment.authorized', 'payment', $3, '{}', $4)";
        let event_id = EventId::make().expect("entropy");
        let args = [Arg::Text(event_id.as_str()), Arg::Text(whose), Arg::Text(id), Arg::Int(at)];
        store.execute(SQL, &args).await.expect("a row");
    }
    store.execute("DELETE FROM _sqlx_migrations WHERE version = 51", &[]).await.expect("as it was before");
    migrate::run(&store).await.expect("a migration");
    write_one(&store, &acme, "new", 2).await;
    assert_eq!(objects(&read(&store, &acme, Cursor::default()).await), ["told", "sooner", "later", "new"]);
    assert_eq!(objects(&read(&store, &globex, Cursor::default()).await), ["first"]);
    assert_eq!(list_waiting(&store).await.expect("merchants"), []);
}
