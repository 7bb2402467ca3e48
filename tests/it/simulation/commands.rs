//! Every point at which an operator's command changes the keys: before each statement or transaction that
//! writes, after it and before the command knows. At each of them the command dies, or what it did fails; then
//! it is run again, and all must be as if it had been run once or twice from end to end: every record opens,
//! every card is found by its number, every key has the row of the audit trail that tells of it, and the trail
//! is whole.
//!
//! What a command does to the keyring file lies between two of its points: whoever dies at the next one has
//! died just after the file was written. The list stands in docs/durability.md.

use std::future::pending;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cardvault::base::ids::{DekId, InstanceId, KekId};
use cardvault::base::secret::SecretText;
use cardvault::crypto::kek::shares::Share;
use cardvault::crypto::keyring::{KeyState, Purpose};
use cardvault::ops::audit::acting;
use cardvault::ops::audit::verify::verify;
use cardvault::ops::custody::Who;
use cardvault::ops::rotation::kek::Target;
use cardvault::ops::rotation::reencrypt::Pace;
use cardvault::ops::rotation::{Admin, RotationError};
use cardvault::store::backend::{Arg, Db, Passage, StoreError, Turn, Turnstile, Work};
use cardvault::store::keys::list_keys;
use tokio::sync::Notify;

use super::ground::Ground;
use super::operator::{self, records_wrong};
use super::points::{Outcome, Words, every_point, shown};
use super::schedule::{Ask, Simulation, text_at};
use super::world::What;
use crate::support::{left_out, postgres};

/// What happens at a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Dies,
    Fails,
}

/// Counts the points that a command passes, and has one of them go wrong.
#[derive(Default)]
struct Points {
    passed: Mutex<Vec<What>>,
    wrong: Option<(usize, Fate)>,
    dead: Notify,
}

impl Points {
    async fn pass(&self, what: What) -> Result<(), StoreError> {
        let place = {
            let mut passed = self.passed.lock().unwrap_or_else(PoisonError::into_inner);
            passed.push(what);
            passed.len() - 1
        };
        match self.wrong {
            Some((at, Fate::Dies)) if at == place => {
                self.dead.notify_one();
                pending().await
            }
            Some((at, Fate::Fails)) if at == place => Err(StoreError::Unavailable(sqlx::Error::PoolTimedOut)),
            _ => Ok(()),
        }
    }
}

struct Gate(Arc<Points>);

struct Passed(Arc<Points>, Work);

impl Turnstile for Gate {
    fn enter(&self, work: Work) -> Turn<'_, Box<dyn Passage>> {
        Box::pin(async move {
            if work != Work::Read {
                self.0.pass(What::Before(work)).await?;
            }
            Ok(Box::new(Passed(self.0.clone(), work)) as Box<dyn Passage>)
        })
    }
}

impl Passage for Passed {
    fn leave(self: Box<Self>) -> Turn<'static, ()> {
        Box::pin(async move {
            match self.1 {
                Work::Read => Ok(()),
                work => self.0.pass(What::After(work)).await,
            }
        })
    }
}

/// What custodians have been given, in the order of the splits.
type Shares = Mutex<Vec<SecretText>>;

type Done<'a> = Pin<Box<dyn Future<Output = Result<(), RotationError>> + 'a>>;

/// A command that changes keys.
struct Command {
    /// As the list in docs/durability.md has it.
    name: &'static str,
    /// What must have been done first.
    needs: &'static [Act],
    does: Act,
    /// Whether its vault holds no card.
    is_empty: bool,
}

/// What a command does, between its opening of the keys and its end.
type Act = for<'a> fn(&'a Admin, &'a Shares) -> Done<'a>;

const COMMANDS: &[Command] = &[
    Command {
        name: "make the first keys",
        needs: &[forget_everything],
        is_empty: true,
        does: |admin, _| Box::pin(async { Ok(admin.keys.open().await?) }),
    },
    command("be alive, and leave", &[], be_alive),
    command("rotate the card key", &[], rotate_card_key),
    command("rotate the audit key", &[], rotate_audit_key),
    command("re-encrypt", &[rotate_card_key], reencrypt),
    command("destroy a card key", &[rotate_card_key, reencrypt], |admin, _| {
        Box::pin(destroy_retired(admin, Purpose::Card))
    }),
    command("rotate the fingerprint key", &[destroy_fingerprint], rotate_fingerprint),
    command("destroy a fingerprint key", &[destroy_fingerprint, rotate_fingerprint], destroy_fingerprint),
    command("rotate the KEK", &[destroy_kek], rotate_kek),
    command("destroy a KEK", &[rotate_kek], destroy_kek),
    command("split the KEK", &[combine], split),
    command("combine the KEK", &[split], combine),
    command("rotate the KEK to custodians", &[combine, destroy_kek], |admin, shares| {
        Box::pin(rotate_kek_to(admin, shares, Target::Split { shares: 3, threshold: 2 }))
    }),
    command("rotate a split KEK to the file", &[split, destroy_kek], |admin, shares| {
        Box::pin(rotate_kek_to(admin, shares, Target::File))
    }),
];

const fn command(name: &'static str, needs: &'static [Act], does: Act) -> Command {
    Command { name, needs, does, is_empty: false }
}

/// As it is where nothing was ever stored.
fn forget_everything<'a>(admin: &'a Admin, _: &'a Shares) -> Done<'a> {
    Box::pin(async {
        let everything =
            ["DELETE FROM events", "DELETE FROM cards", "DELETE FROM audit", "DELETE FROM data_keys"];
        for forgotten in everything {
            admin.db.execute(forgotten, &[]).await?;
        }
        Ok(())
    })
}

/// What a server tells of itself between its start and its end.
fn be_alive<'a>(admin: &'a Admin, _: &'a Shares) -> Done<'a> {
    Box::pin(async {
        let (instance, now) = (InstanceId::make().expect("entropy"), admin.clock.now());
        admin.keys.beat(&instance, now, None).await?;
        let alive = admin.live().await?;
        assert!(alive.iter().any(|replica| replica.instance == instance));
        admin.keys.leave(&instance).await?;
        Ok(())
    })
}

fn rotate_card_key<'a>(admin: &'a Admin, _: &'a Shares) -> Done<'a> {
    Box::pin(async { admin.rotate_data_key(Purpose::Card).await.map(drop) })
}

fn rotate_audit_key<'a>(admin: &'a Admin, _: &'a Shares) -> Done<'a> {
    Box::pin(async { admin.rotate_data_key(Purpose::Audit).await.map(drop) })
}

fn reencrypt<'a>(admin: &'a Admin, _: &'a Shares) -> Done<'a> {
    let pace = Pace { batch: 2, pause: Duration::ZERO };
    Box::pin(async move { admin.reencrypt(pace, &mut |_| ()).await.map(drop) })
}

fn rotate_fingerprint<'a>(admin: &'a Admin, _: &'a Shares) -> Done<'a> {
    let pace = Pace { batch: 2, pause: Duration::ZERO };
    Box::pin(async move {
        match admin.rotate_fingerprint(pace, &mut |_| ()).await {
            // It was rotated before, by the run that could not know it.
            Err(RotationError::Refused(why)) if why.contains("is still kept") => Ok(()),
            done => done.map(drop),
        }
    })
}

fn destroy_fingerprint<'a>(admin: &'a Admin, _: &'a Shares) -> Done<'a> {
    Box::pin(destroy_retired(admin, Purpose::Fingerprint))
}

/// Destroys the keys of a purpose that were rotated away; those that are destroyed have their end finished.
async fn destroy_retired(admin: &Admin, purpose: Purpose) -> Result<(), RotationError> {
    let rows = list_keys(&admin.db).await?;
    let newest = rows
        .iter()
        .filter(|row| row.purpose == purpose.as_str() && row.state != KeyState::Active.as_str())
        .max_by_key(|row| row.retired_at);
    match newest {
        Some(row) => admin.destroy_data_key(&row.id, false).await.map(drop),
        None => Ok(()),
    }
}

fn rotate_kek<'a>(admin: &'a Admin, shares: &'a Shares) -> Done<'a> {
    Box::pin(rotate_kek_to(admin, shares, Target::File))
}

async fn rotate_kek_to(admin: &Admin, shares: &Shares, to: Target) -> Result<(), RotationError> {
    let begun = admin.begin_kek(to, &mut |_, made| Ok(kept(shares, made))).await?;
    admin.finish_kek(begun).await.map(drop)
}

fn destroy_kek<'a>(admin: &'a Admin, _: &'a Shares) -> Done<'a> {
    Box::pin(async {
        let keyring = admin.keks.keyring();
        let retired: Vec<&KekId> =
            keyring.keks().iter().map(|kek| &kek.id).filter(|id| *id != keyring.active()).collect();
        for id in retired {
            admin.destroy_kek(id, false).await?;
        }
        Ok(())
    })
}

fn split<'a>(admin: &'a Admin, shares: &'a Shares) -> Done<'a> {
    Box::pin(async { admin.split_kek(3, 2, &mut |_, made| Ok(kept(shares, made))).await.map(drop) })
}

fn combine<'a>(admin: &'a Admin, _: &'a Shares) -> Done<'a> {
    Box::pin(async { admin.combine_kek().await.map(drop) })
}

/// Custodians keep their shares; as they have kept them.
fn kept(shares: &Shares, made: &[Share]) -> Vec<Share> {
    let texts: Vec<SecretText> = made.iter().map(Share::text).collect();
    let read = texts.iter().map(|text| Share::parse(text).expect("a share")).collect();
    shares.lock().unwrap_or_else(PoisonError::into_inner).extend(texts);
    read
}

/// A vault with some cards, on which commands are run.
struct Stand<'g> {
    simulation: Simulation<'g>,
    shares: Shares,
    /// Each card's number and reference.
    cards: Vec<(String, String)>,
}

const PANS: [&str; 3] = ["4242424242424242", "4012888888881881", "5555555555554444"];

fn typed(pan: &str) -> String {
    format!(r#"{{"cardNo":"{pan}","expiryMonth":"11","expiryYear":"30"}}"#)
}

impl<'g> Stand<'g> {
    fn new(ground: &'g mut Ground) -> Self {
        let mut simulation = Simulation::new(ground, 0, 1);
        let cards = PANS
            .map(|pan| {
                let number = simulation.ask(0, "POST", "/v1/cards", &typed(pan), Ask::Other);
                (pan.to_owned(), text_at(&simulation.told(number), "/cardId"))
            })
            .to_vec();
        assert!(cards.iter().all(|(_, card)| card.starts_with("card_")), "{cards:?}");
        Self { simulation, shares: Shares::default(), cards }
    }

    /// Runs a command in a process of its own, to its end or to the point at which it dies; what it came to,
    /// where it lived, and what it passed.
    fn run(&self, act: Act, wrong: Option<(usize, Fate)>) -> (Option<Result<(), String>>, Vec<What>) {
        let points = Arc::new(Points { wrong, ..Points::default() });
        // Longer than a key must rest before it can be destroyed.
        self.simulation.world.lock().now += 10_000;
        // A process whose end takes all of its tasks along.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let came_to = runtime.block_on(async {
            tokio::select! {
                done = acting(operator::console(), self.process(act, &points)) => Some(done.map_err(|error| error.to_string())),
                () = points.dead.notified() => None,
            }
        });
        drop(runtime);
        let passed = points.passed.lock().unwrap_or_else(PoisonError::into_inner).clone();
        (came_to, passed)
    }

    async fn process(&self, act: Act, points: &Arc<Points>) -> anyhow::Result<()> {
        let admin = self.admin(Some(points)).await?;
        admin.record_shares().await?;
        let done = act(&admin, &self.shares).await;
        admin.end().await;
        Ok(done?)
    }

    /// Opens the keys as a command does; custodians bring what they have.
    async fn admin(&self, points: Option<&Arc<Points>>) -> anyhow::Result<Admin> {
        let gate = points.map(|points| Arc::new(Gate(points.clone())) as Arc<dyn Turnstile>);
        let admin = operator::admin(&self.simulation, gate).await?;
        let shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner).split_off(0);
        for share in &shares {
            // Those of an earlier split are refused.
            let _ = admin.custody.submit(share, Who { uid: 0, pid: None });
        }
        self.shares.lock().unwrap_or_else(PoisonError::into_inner).extend(shares);
        admin.keys.open_only().await?;
        Ok(admin)
    }

    /// What is wrong with the keys, the records and the trail.
    fn wrong(&mut self) -> Vec<String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let mut wrong = runtime.block_on(async {
            let admin = match self.admin(None).await {
                Ok(admin) => admin,
                Err(error) => return vec![format!("the keys do not open: {error:#}")],
            };
            let mut wrong = keys_wrong(&admin).await;
            wrong.extend(records_wrong(&admin.db, &admin.keys, |_| true).await);
            let report = verify(&admin.db, &admin.keys, std::iter::empty()).await.expect("a trail");
            wrong.extend(report.findings);
            admin.db.close().await;
            wrong
        });
        wrong.extend(self.cards_wrong());
        wrong
    }

    /// A server that starts now finds every card by its number. (It has no custodians.)
    fn cards_wrong(&mut self) -> Vec<String> {
        let text = std::fs::read_to_string(self.simulation.ground.keyring()).expect("the keyring");
        if text.contains("threshold") {
            return Vec::new();
        }
        self.simulation.crash(0);
        self.simulation.start(0);
        let mut wrong = Vec::new();
        for (pan, card) in &self.cards {
            let number = self.simulation.ask(0, "POST", "/v1/cards", &typed(pan), Ask::Other);
            let found = text_at(&self.simulation.told(number), "/cardId");
            if found != *card {
                wrong.push(format!("a card is found as {found:?}, and is {card}"));
            }
        }
        wrong
    }
}

/// One key of each purpose is in use, and each key's coming and going has its row.
async fn keys_wrong(admin: &Admin) -> Vec<String> {
    let mut wrong = Vec::new();
    let rows = list_keys(&admin.db).await.expect("keys");
    for purpose in Purpose::ALL {
        let of = |state: KeyState| {
            rows.iter().filter(|row| row.purpose == purpose.as_str() && row.state == state.as_str()).count()
        };
        if (of(KeyState::Active), of(KeyState::Next)) != (1, 0) {
            wrong.push(format!(
                "{} {} keys are in use, {} announced",
                of(KeyState::Active),
                purpose.as_str(),
                of(KeyState::Next)
            ));
        }
    }
    for row in &rows {
        let told = |action: &'static str| told_of(&admin.db, action, &row.id);
        let (made, rotated, destroyed) =
            (told("keys.make").await, told("keys.rotate").await, told("keys.destroy").await);
        // A fingerprint key is announced before it is in use.
        let comes = if row.purpose == Purpose::Fingerprint.as_str() { 2 } else { 1 };
        if (made, rotated) != (1, 0) && (made, rotated) != (0, comes) {
            wrong.push(format!("the coming of the {} key is told {made} and {rotated} times", row.purpose));
        }
        if destroyed != i64::from(row.state == KeyState::Destroyed.as_str()) {
            wrong.push(format!("the end of a {} {} key is told {destroyed} times", row.state, row.purpose));
        }
        if row.wrapped.is_some() && row.kek_id != *admin.keks.keyring().active() {
            wrong.push(format!("a {} key is wrapped under a KEK that is not in use", row.purpose));
        }
    }
    wrong
}

async fn told_of(db: &Db, action: &'static str, id: &DekId) -> i64 {
    const SQL: &str =
        "SELECT count(*) AS many FROM audit WHERE action = $1 AND object = $2 AND outcome = 'done'";
    let row = db.find(SQL, &[Arg::Text(action), Arg::Text(id.as_str())]).await.expect("a query");
    row.expect("a row").int("many").expect("a number")
}

/// Has everything happen at every point of a command.
fn walk_through(stand: &mut Stand<'_>, command: &Command, listed: Option<&str>) -> Outcome {
    let mut outcome = Outcome::default();
    let name = command.name;
    if command.is_empty {
        stand.cards.clear();
    }
    let prepare = |stand: &Stand<'_>| {
        command.needs.iter().filter_map(|need| stand.run(*need, None).0?.err()).collect::<Vec<_>>()
    };
    outcome.failed.extend(prepare(stand));
    let (came_to, passed) = stand.run(command.does, None);
    outcome.points = passed.len();
    if came_to != Some(Ok(())) {
        outcome.failed.push(format!("{name}: {came_to:?}"));
    }
    let found = shown(&passed);
    if listed != Some(found.as_str()) {
        outcome.failed.push(format!("the list should say: {name}: {found}"));
    }
    outcome.failed.extend(stand.wrong().into_iter().map(|what| format!("{name}: {what}")));
    for (place, what) in passed.iter().enumerate() {
        for fate in [Fate::Dies, Fate::Fails] {
            outcome.runs += 1;
            let mut wrong = prepare(stand);
            let (came_to, reached) = stand.run(command.does, Some((place, fate)));
            if came_to.is_none() != (fate == Fate::Dies) || reached.len() <= place {
                wrong.push(format!("it came to {came_to:?} at point {}", reached.len()));
            }
            match stand.run(command.does, None).0 {
                Some(Ok(())) => {}
                again => wrong.push(format!("run again, it came to {again:?}")),
            }
            wrong.extend(stand.wrong());
            if !wrong.is_empty() {
                outcome.failed.push(format!("{name}, point {place} {what:?}, {fate:?}: {wrong:?}"));
            }
        }
    }
    outcome
}

fn every_command(engine: &str, words: &Words, ground: impl Fn() -> Option<Ground> + Sync) {
    let walk = |ground: &mut Ground, command: &Command, listed: Option<&str>| {
        let mut stand = Stand::new(ground);
        let outcome = walk_through(&mut stand, command, listed);
        stand.simulation.end();
        outcome
    };
    every_point(engine, ("commands", COMMANDS), ("commands", words), ground, |command| command.name, walk);
}

#[test]
fn every_point_of_a_command_ends_well_on_sqlite() {
    every_command("SQLite", &[("batch", "transaction"), ("sweep", "write")], || Some(Ground::sqlite()));
}

#[test]
fn every_point_of_a_command_ends_well_on_postgres() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let fresh = || runtime.block_on(postgres::fresh_quiet_database()).map(Ground::postgres);
    if fresh().is_none() {
        return left_out("simulation::commands");
    }
    every_command("PostgreSQL", &[("batch", "write"), ("sweep", "write, (write begins)")], fresh);
}
