//! A simulation of some processes of the vault in front of the model of the gateway, and what a seed makes
//! them do.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock, OnceLock, PoisonError};
use std::time::Duration;

use cardvault::base::ids::Merchant;
use cardvault::jobs::sequence::{Sequencer, Turn};
use cardvault::store::backend::Arg;
use serde_json::{Value, json};
use tokio::task::AbortHandle;

use super::gateway::{Model, NOTIFY_PATH, State};
use super::ground::{Answers, Ground, Process, Told};
use super::random::Random;
use super::world::{BEGIN, Go, What, World};
use crate::support::vault::{METADATA, SAMPLE, with, without};

/// How long a call to the gateway may take (`timeout_ms`).
const CALL: i64 = 30_000;
/// How long after it left a call may arrive: less than the vault's 15 minutes, with room for its way out.
const ARRIVAL: i64 = 13 * 60_000;

/// A payment request as it is asked for again and again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A card with its CVV.
    Typed,
    /// A card without a CVV.
    Bare,
    /// By reference; with a CVV where one is held.
    Reference,
    /// By the merchant, on an agreement.
    Merchant,
}

/// What a call was for.
#[derive(Debug, Clone)]
pub enum Ask {
    Pay(String, Kind),
    /// The same id, and something else.
    WrongPay,
    Other,
    /// One that is not signed by the gateway.
    Forgery,
    Notice,
}

/// A payment that was asked for.
#[derive(Debug, Clone)]
pub struct Asked {
    pub kind: Kind,
    pub body: String,
    pub amount: i64,
    pub operations: Vec<(String, String, String)>,
    /// Whether a caller was told of it, so that its id has a meaning.
    pub known: bool,
    /// What callers were told.
    pub told: Vec<String>,
}

pub struct Simulation<'g> {
    pub ground: &'g mut Ground,
    pub world: Arc<World>,
    pub model: Arc<Model>,
    pub merchant: Merchant,
    pub prefix: String,
    pub slots: Vec<Option<Process>>,
    pub asked: BTreeMap<String, Asked>,
    pub wrong: Vec<String>,
    pub card: String,
    pub agreement: Option<(String, String)>,
    answers: Answers,
    calls: BTreeMap<u64, (Ask, AbortHandle)>,
    last: BTreeMap<u64, Told>,
    next_process: usize,
    next_call: u64,
    pub next_name: u64,
}

/// The sample without what makes it long, and with places for what differs.
static INLINE: LazyLock<String> = LazyLock::new(|| {
    let text = ["/order/goods", "/order/shipping", &format!("{METADATA}/isCardOnFile")]
        .iter()
        .fold(SAMPLE.to_owned(), |text, at| without(&text, at));
    let text = with(&text, "/paymentRequestId", json!("@ID@"));
    let text = with(&text, "/paymentAmount/value", json!("@VALUE@"));
    with(&text, "/order/orderAmount/value", json!("@VALUE@"))
});
static BARE: LazyLock<String> = LazyLock::new(|| without(&INLINE, &format!("{METADATA}/cvv")));
static REFERENCE: LazyLock<String> = LazyLock::new(|| {
    let text = with(&BARE, "/paymentMethod/paymentMethodId", json!("@CARD@"));
    let text = ["cardNo", "expiryMonth", "expiryYear", "cardholderName"]
        .iter()
        .fold(text, |text, name| without(&text, &format!("{METADATA}/{name}")));
    without(&text, "/order/buyer")
});
static BY_MERCHANT: LazyLock<String> = LazyLock::new(|| {
    let text = without(&without(&REFERENCE, "/env/browserInfo"), METADATA);
    with(&text, "/storedCredential", json!({ "initiator": "MERCHANT", "agreementId": "@AGREEMENT@" }))
});
static ON_PAGE: LazyLock<String> = LazyLock::new(|| {
    let text = without(&without(&REFERENCE, METADATA), "/paymentMethod/paymentMethodId");
    with(&text, METADATA, json!({ "tokenize": true }))
});
static OPENS: LazyLock<String> = LazyLock::new(|| {
    let consent = json!({ "acceptedAt": "2026-01-01T00:00:00Z", "textVersion": "v1" });
    let agreement = json!({ "type": "UNSCHEDULED", "consent": consent });
    with(&REFERENCE, "/storedCredential", json!({ "initiator": "CUSTOMER", "agreement": agreement }))
});

fn filled(text: &str, id: &str, amount: i64, manual: bool) -> String {
    let text = text.replace("@ID@", id).replace("@VALUE@", &amount.to_string());
    if manual {
        text.replace("\"isAuthorization\":true", "\"captureMode\":\"MANUAL\",\"isAuthorization\":true")
    } else {
        text
    }
}

impl<'g> Simulation<'g> {
    /// Starts so many processes; nothing fails until [`Self::storm`].
    pub fn new(ground: &'g mut Ground, seed: u64, processes: usize) -> Self {
        static RUN: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        // Seeds share a database, and one may run twice in it: each has a merchant and an account of its own.
        let run = RUN.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        let prefix = format!("S{seed}-");
        let world = World::new(seed);
        let model = Arc::new(Model::new(world.clone(), seed, format!("SANDBOX_{run}"), &prefix));
        let merchant = Merchant::parse(&format!("m{seed}r{run}")).expect("a merchant");
        let mut simulation = Self {
            ground,
            world,
            model,
            merchant,
            prefix,
            slots: Vec::new(),
            asked: BTreeMap::new(),
            wrong: Vec::new(),
            card: String::new(),
            agreement: None,
            answers: Answers::default(),
            calls: BTreeMap::new(),
            last: BTreeMap::new(),
            next_process: 0,
            next_call: 0,
            next_name: 0,
        };
        for _ in 0..processes {
            simulation.slots.push(None);
        }
        for slot in 0..processes {
            simulation.start(slot);
        }
        let card = r#"{"cardNo":"4111111111111111","expiryMonth":"12","expiryYear":"29"}"#;
        let made = simulation.ask(0, "POST", "/v1/cards", card, Ask::Other);
        simulation.card = text_at(&simulation.told(made), "/cardId");
        assert!(simulation.card.starts_with("card_"));
        simulation
    }

    /// Opens an agreement, in calm.
    pub fn open_agreement(&mut self) {
        let card = r#"{"cardNo":"5555555555554444","expiryMonth":"12","expiryYear":"29"}"#;
        let made = self.ask(0, "POST", "/v1/cards", card, Ask::Other);
        let card = text_at(&self.told(made), "/cardId");
        let id = self.pay_opening(&card);
        let shown = self.ask(0, "GET", &format!("/v1/payments/{id}"), "", Ask::Other);
        let agreement = text_at(&self.told(shown), "/agreementId");
        assert!(agreement.starts_with("agr_"), "{:?}", self.told(shown));
        self.agreement = Some((agreement, card));
    }

    /// Asks for the payment that opens an agreement on a card.
    pub fn pay_opening(&mut self, card: &str) -> String {
        let id = format!("{}OPEN", self.prefix);
        self.model.outcomes.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone(), State::Paid);
        let body = filled(&OPENS, &id, 4000, false).replace("@CARD@", card);
        self.pay_as(0, &id, Kind::Reference, body, 4000);
        id
    }

    /// Starts a process in a place that has none.
    pub fn start(&mut self, slot: usize) {
        let id = self.next_process;
        self.next_process += 1;
        let process = self.ground.start(id, &self.world, &self.model, &self.merchant);
        self.world.note(format!("p{id} starts"));
        self.slots[slot] = Some(process);
    }

    /// Kills what is in a place.
    pub fn crash(&mut self, slot: usize) {
        if let Some(process) = self.slots[slot].take() {
            self.world.note(format!("p{} is killed", process.id));
            process.crash();
            self.collect();
        }
    }

    pub fn process(&self, slot: usize) -> &Process {
        self.slots[slot].as_ref().expect("a process")
    }

    fn run_process(&mut self, id: usize) {
        if let Some(process) = self.slots.iter().flatten().find(|process| process.id == id) {
            process.run();
        }
        self.collect();
    }

    /// Calls the API of a process and runs until everything waits.
    pub fn ask(&mut self, slot: usize, method: &str, path: &str, body: &str, ask: Ask) -> u64 {
        self.next_call += 1;
        let number = self.next_call;
        let process = self.process(slot);
        let id = process.id;
        let mut shown = path.replace(&self.prefix, "");
        if !self.card.is_empty() {
            shown = shown.replace(&self.card, "CARD");
        }
        self.world.note(format!("p{id} is asked: #{number} {method} {shown}"));
        let handle = process.call(number, method, path, body, &self.answers);
        self.calls.insert(number, (ask, handle));
        self.run_process(id);
        self.in_calm(id, |s| s.last.contains_key(&number));
        number
    }

    /// Where nothing stops, gives a process time for what no gate knows of, such as a thread that opens a connection.
    fn in_calm(&mut self, process: usize, is_done: impl Fn(&Self) -> bool) {
        for _ in 0..3_000 {
            if is_done(self) || !self.world.lock().calm || !self.waiting().is_empty() {
                return;
            }
            std::thread::sleep(Duration::from_micros(50));
            self.run_process(process);
        }
    }

    /// Asks for a payment under a fresh name.
    pub fn pay(&mut self, slot: usize, kind: Kind, amount: i64, manual: bool) -> String {
        self.next_name += 1;
        let id = format!("{}PAY{}", self.prefix, self.next_name);
        let text = match kind {
            Kind::Typed => &INLINE,
            Kind::Bare => &BARE,
            Kind::Reference => &REFERENCE,
            Kind::Merchant => &BY_MERCHANT,
        };
        let (agreement, card) = match (&self.agreement, kind) {
            (Some((agreement, card)), Kind::Merchant) => (agreement.clone(), card.clone()),
            _ => (String::new(), self.card.clone()),
        };
        let body =
            filled(text, &id, amount, manual).replace("@CARD@", &card).replace("@AGREEMENT@", &agreement);
        self.pay_as(slot, &id, kind, body, amount);
        id
    }

    /// Pays with a token of the gateway's own.
    pub fn pay_with_token(&mut self, token: &str, amount: i64) -> String {
        self.pay_named(&REFERENCE.replace("@CARD@", token), Kind::Reference, amount)
    }

    /// Pays with a card that is typed, and asks the gateway for a token of it.
    pub fn pay_for_token(&mut self, amount: i64) -> String {
        let text = with(&BARE, &format!("{METADATA}/tokenize"), json!(true));
        self.pay_named(&text, Kind::Bare, amount)
    }

    /// Pays on the gateway's own page, and asks it for a token of the card.
    pub fn pay_on_page(&mut self, amount: i64) -> String {
        self.pay_named(&ON_PAGE, Kind::Reference, amount)
    }

    fn pay_named(&mut self, text: &str, kind: Kind, amount: i64) -> String {
        self.next_name += 1;
        let id = format!("{}PAY{}", self.prefix, self.next_name);
        self.pay_as(0, &id, kind, filled(text, &id, amount, false), amount);
        id
    }

    fn pay_as(&mut self, slot: usize, id: &str, kind: Kind, body: String, amount: i64) {
        let asked = Asked {
            kind,
            body: body.clone(),
            amount,
            operations: Vec::new(),
            known: false,
            told: Vec::new(),
        };
        self.asked.insert(id.to_owned(), asked);
        self.ask(slot, "POST", "/v1/payments", &body, Ask::Pay(id.to_owned(), kind));
    }

    /// Asks for a known payment again.
    pub fn repeat(&mut self, slot: usize, id: &str) {
        let asked = &self.asked[id];
        let (body, kind) = (asked.body.clone(), asked.kind);
        self.ask(slot, "POST", "/v1/payments", &body, Ask::Pay(id.to_owned(), kind));
    }

    /// Captures or refunds under a fresh name.
    pub fn operate(&mut self, slot: usize, id: &str, capture: bool, amount: i64) -> String {
        self.next_name += 1;
        let (word, member, sum) = if capture {
            ("captures", "captureRequestId", "captureAmount")
        } else {
            ("refunds", "refundRequestId", "refundAmount")
        };
        let name = format!("{}{}{}", self.prefix, if capture { "CAP" } else { "REF" }, self.next_name);
        let body =
            json!({ member: name, sum: { "currency": "EUR", "value": amount.to_string() } }).to_string();
        let path = format!("/v1/payments/{id}/{word}");
        if let Some(asked) = self.asked.get_mut(id) {
            asked.operations.push((path.clone(), name.clone(), body.clone()));
        }
        self.ask(slot, "POST", &path, &body, Ask::Other);
        name
    }

    pub fn cancel(&mut self, slot: usize, id: &str) {
        self.ask(slot, "POST", &format!("/v1/payments/{id}/cancel"), "", Ask::Other);
    }

    pub fn hold_cvv(&mut self, slot: usize) {
        let path = format!("/v1/cards/{}/cvv", self.card);
        self.ask(slot, "PUT", &path, r#"{"cvv":"850"}"#, Ask::Other);
    }

    /// A turn of a process's reconciler.
    pub fn reconcile(&mut self, slot: usize) {
        let vault = self.process(slot).vault.clone();
        self.begin(slot, "looks for what is due", async move {
            // A database that is away fails a turn, and the next one comes.
            let _ = vault.reconcile_once(20).await;
        });
    }

    /// As [`Self::reconcile`], to its end, in the calm; tells how much there was.
    fn reconcile_now(&mut self, slot: usize) -> usize {
        let vault = self.process(slot).vault.clone();
        let ended = Arc::new(OnceLock::new());
        let end = ended.clone();
        self.begin(slot, "looks for what is due", async move {
            let _ = end.set(vault.reconcile_once(50).await.expect("a turn"));
        });
        // Nothing is stopped any more, but what finds another of its process in the database waits its turn.
        self.release_all(|_| false);
        let id = self.process(slot).id;
        let over = ended.clone();
        self.in_calm(id, |_| over.get().is_some());
        *ended.get().expect("a turn that ends where nothing stops")
    }

    /// Begins something in a process that nobody waits for, and runs until everything waits.
    pub fn begin(&mut self, slot: usize, what: &str, work: impl Future<Output = ()> + Send + 'static) {
        let process = self.process(slot);
        let id = process.id;
        self.world.note(format!("p{id} {what}"));
        process.begin(work);
        self.run_process(id);
    }

    /// Every caller hangs up.
    pub fn hang_up_all(&mut self) {
        let calls: Vec<u64> = self.calls.keys().copied().collect();
        calls.into_iter().for_each(|call| self.hang_up(call));
    }

    /// Delivers one of the gateway's notifications, perhaps not for the first time.
    pub fn deliver(&mut self, slot: usize, place: usize, stale: bool, forged: bool) {
        let body = {
            let mut ledger = self.model.ledger();
            let notice = &mut ledger.notices[place];
            notice.deliveries += u32::from(!forged);
            notice.body.clone()
        };
        self.world.note(format!("notice {place}, stale {stale}, forged {forged}"));
        self.deliver_text(slot, &body, stale, forged);
    }

    /// Delivers any text as a notification.
    pub fn deliver_text(&mut self, slot: usize, body: &str, stale: bool, forged: bool) {
        self.next_call += 1;
        let number = self.next_call;
        let time = self.world.wall() - if stale { 10 * 60_000 } else { 0 };
        let signature = self.model.sign(NOTIFY_PATH, &time.to_string(), body, forged);
        let process = self.process(slot);
        let id = process.id;
        self.world.note(format!("p{id} is notified: #{number}"));
        process.notify(number, body, &time.to_string(), &signature, &self.answers);
        let ask = if forged { Ask::Forgery } else { Ask::Notice };
        // There is nothing to hang up: the gateway waits.
        let handle = process.now(async { tokio::spawn(async {}).abort_handle() });
        self.calls.insert(number, (ask, handle));
        self.run_process(id);
    }

    /// A caller hangs up.
    pub fn hang_up(&mut self, number: u64) {
        if let Some((_, handle)) = self.calls.remove(&number) {
            self.world.note(format!("#{number} hangs up"));
            handle.abort();
        }
    }

    /// The answer to a call, if there is one.
    pub fn told(&self, number: u64) -> Option<Told> {
        self.last.get(&number).cloned()
    }

    /// A text member of every answer that has it.
    pub fn told_texts(&self, pointer: &str) -> Vec<String> {
        let texts = self.last.values().map(|told| text_at(&Some(told.clone()), pointer));
        texts.filter(|text| !text.is_empty()).collect()
    }

    /// What callers were told so far, in the order in which they asked.
    pub fn statuses(&self) -> Vec<u16> {
        self.last.values().map(|told| told.status).collect()
    }

    /// Looks at the answers that have come.
    fn collect(&mut self) {
        let told: Vec<Told> =
            std::mem::take(&mut *self.answers.lock().unwrap_or_else(PoisonError::into_inner));
        for told in told {
            self.world.note(format!("#{} is told {}", told.call, told.status));
            if let Some((ask, _)) = self.calls.remove(&told.call) {
                self.judge(&ask, &told);
            }
            self.last.insert(told.call, told);
        }
    }

    fn judge(&mut self, ask: &Ask, told: &Told) {
        let code = text_at(&Some(told.clone()), "/code");
        let fine = match (ask, told.status) {
            (_, 503) => true,
            (Ask::Pay(id, _), 200) => {
                let status = text_at(&Some(told.clone()), "/status");
                self.world.note(format!("#{}: {status}", told.call));
                if let Some(asked) = self.asked.get_mut(id) {
                    asked.known = true;
                    asked.told.push(status);
                }
                true
            }
            (Ask::Pay(_, Kind::Reference), 409) => code == "cvv_not_available",
            (Ask::Pay(_, kind), 422) => *kind == Kind::Merchant && code == "stored_credential_refused",
            (Ask::WrongPay, 409) => code == "request_id_reused",
            (Ask::Other, status) => status < 500,
            (Ask::Forgery, status) => status == 401,
            (Ask::Notice, status) => status == 200,
            _ => false,
        };
        if !fine {
            self.wrong.push(format!("#{} {ask:?} is told {} {}", told.call, told.status, told.text));
        }
    }

    /// What waits, in its order.
    pub fn waiting(&self) -> Vec<(u64, usize, What)> {
        let inner = self.world.lock();
        inner.parked.iter().map(|parked| (parked.seq, parked.process, parked.what.clone())).collect()
    }

    /// Lets something go on.
    pub fn release(&mut self, seq: u64, go: Go) {
        if let Some(process) = self.world.release(seq, go) {
            self.run_process(process);
        }
    }

    /// Lets the first thing that is so go on; tells whether there was one.
    pub fn release_first(&mut self, go: Go, is: impl Fn(&What) -> bool) -> bool {
        let found = self.waiting().into_iter().find(|(_, _, what)| is(what));
        if let Some((seq, ..)) = found {
            self.release(seq, go);
        }
        found.is_some()
    }

    /// Lets a process go on until something in it waits that is so, or nothing waits; tells which.
    pub fn go_on(&mut self, slot: usize, until: impl Fn(&What) -> bool) -> bool {
        loop {
            let id = self.process(slot).id;
            let mine: Vec<_> = self.waiting().into_iter().filter(|(_, process, _)| *process == id).collect();
            if mine.iter().any(|(_, _, what)| until(what)) {
                return true;
            }
            let Some((seq, ..)) = mine.first() else { return false };
            self.release(*seq, Go::On);
        }
    }

    /// Whether a process can reach the database.
    pub fn set_away(&mut self, slot: usize, away: bool) {
        let id = self.process(slot).id;
        let mut inner = self.world.lock();
        if away {
            inner.away.insert(id)
        } else {
            inner.away.remove(&id)
        };
        drop(inner);
        self.world.note(format!("p{id}'s database is {}", if away { "away" } else { "back" }));
    }

    /// Lets everything go on until nothing waits but what `holds`.
    pub fn release_all(&mut self, holds: impl Fn(&What) -> bool) {
        while self.release_first(Go::On, |what| !holds(what)) {}
    }

    /// Time passes. Where it does not jump, sleepers wake in their time.
    pub fn pass(&mut self, milliseconds: i64, jumps: bool) {
        let end = self.world.lock().now + milliseconds;
        self.world.note(format!("{milliseconds} ms pass{}", if jumps { " at once" } else { "" }));
        loop {
            let next = if jumps { None } else { self.world.next_waking().filter(|at| *at < end) };
            let now = self.world.lock().now;
            self.world.lock().now = next.unwrap_or(end).max(now);
            self.model.land(false);
            self.time_out();
            // What sleeps again at once would wake for ever.
            let mut turns = 0;
            while let Some(process) = self.world.wake_one() {
                self.run_process(process);
                turns += 1;
                assert!(turns < 10_000, "nothing sleeps");
            }
            if next.is_none() {
                return;
            }
        }
    }

    /// Calls to the gateway end in their time.
    fn time_out(&mut self) {
        loop {
            let found = {
                let mut inner = self.world.lock();
                let now = inner.now;
                let old = inner
                    .parked
                    .iter()
                    .find(|parked| !parked.what.is_database() && now - parked.since > CALL);
                let old = old.map(|parked| (parked.seq, parked.since, parked.what.clone()));
                old.map(|(seq, since, what)| {
                    let late = matches!(what, What::Call(_)) && inner.random.chance(500);
                    let at = since + i64::try_from(inner.random.below(13 * 60_000)).expect("a time");
                    (seq, if late && at > now { Go::Late(at - now) } else { Go::Lost })
                })
            };
            let Some((seq, go)) = found else { return };
            self.release(seq, go);
        }
    }

    /// From now on things stop and fail as the seed says.
    pub fn storm(&mut self, grain: u64, failing: u64) {
        let mut inner = self.world.lock();
        (inner.grain, inner.failing, inner.calm) = (grain, failing, false);
    }

    /// One thing happens.
    pub fn step(&mut self, weather: u64) {
        #[derive(Clone, Copy)]
        enum Do {
            Release,
            Ask,
            Time,
            Decide,
            Dashboard,
            Deliver,
            Crash,
            Away,
            HangUp,
        }
        let waiting = self.waiting();
        let mut random = self.world.lock().random.clone();
        let busy = !waiting.is_empty();
        let (undecided, operations) = self.model.undecided();
        let cancellable = self.model.cancellable();
        let notices = self.model.ledger().notices.len();
        let what = random.pick(&[
            (if busy { 500 + 40 * waiting.len().min(12) as u64 } else { 0 }, Do::Release),
            (160, Do::Ask),
            (90, Do::Time),
            (if undecided.len() + operations.len() > 0 { 40 } else { 0 }, Do::Decide),
            (if cancellable.is_empty() { 0 } else { 4 }, Do::Dashboard),
            (if notices > 0 { 60 } else { 0 }, Do::Deliver),
            (6, Do::Crash),
            (6, Do::Away),
            (if self.calls.is_empty() { 0 } else { 10 }, Do::HangUp),
        ]);
        let slot = random.place(self.slots.len());
        // What follows draws from the same numbers.
        self.world.lock().random = random.clone();
        match what {
            Do::Release => {
                let (seq, _, what) = &waiting[random.place(waiting.len())];
                let go = self.fate(what, weather, &mut random);
                self.world.lock().random = random;
                self.release(*seq, go);
            }
            Do::Time => {
                let milliseconds = random.pick(&[(50, 2_000), (30, 15_000), (14, 120_000), (6, 20 * 60_000)]);
                let milliseconds = 1 + i64::try_from(random.below(milliseconds)).expect("a time");
                let jumps = random.chance(300);
                self.world.lock().random = random;
                self.pass(milliseconds, jumps);
            }
            Do::Decide => {
                let place = random.place(undecided.len() + operations.len());
                self.world.lock().random = random;
                match undecided.get(place) {
                    Some(id) => {
                        self.model.decide(id);
                    }
                    None => {
                        let (id, capture, name) = &operations[place - undecided.len()];
                        self.model.decide_operation(id, *capture, name);
                    }
                }
            }
            Do::Dashboard => {
                let place = random.place(cancellable.len());
                self.world.lock().random = random;
                self.model.cancel_elsewhere(&cancellable[place]);
            }
            Do::Crash => {
                self.crash(slot);
                self.start(slot);
            }
            Do::Away => {
                let away = self.world.lock().away.contains(&self.process(slot).id);
                self.set_away(slot, !away);
            }
            Do::HangUp => {
                let calls: Vec<u64> = self.calls.keys().copied().collect();
                let call = calls[random.place(calls.len())];
                self.world.lock().random = random;
                self.hang_up(call);
                let id = self.process(slot).id;
                self.run_process(id);
            }
            Do::Deliver => {
                let place = random.place(notices);
                let (stale, forged) = (random.chance(100), random.chance(50));
                self.world.lock().random = random;
                self.deliver(slot, place, stale, forged);
            }
            Do::Ask => self.random_ask(slot, random),
        }
    }

    fn fate(&self, what: &What, weather: u64, random: &mut Random) -> Go {
        let late = i64::try_from(random.below(u64::try_from(ARRIVAL).expect("a time"))).expect("a time");
        match what {
            What::Before(_) | What::After(_) => Go::On,
            What::Call(_) if !random.chance(weather) => Go::On,
            What::Answer(_) if !random.chance(weather) => Go::On,
            What::Call(_) => random.pick(&[
                (30, Go::Lost),
                (30, Go::Late(late)),
                (12, Go::NotSent),
                (10, Go::Busy),
                (6, Go::Fault),
                (12, Go::FaultAfter),
            ]),
            What::Answer(_) => {
                random.pick(&[(60, Go::Lost), (14, Go::Forged), (14, Go::OtherOne), (12, Go::Garbage)])
            }
        }
    }

    fn random_ask(&mut self, slot: usize, mut random: Random) {
        #[derive(Clone, Copy)]
        enum Do {
            Pay,
            Repeat,
            Wrong,
            Capture,
            Refund,
            RepeatOperation,
            Cancel,
            Read,
            Hold,
            Reconcile,
        }
        let ids: Vec<String> = self.asked.keys().cloned().collect();
        let some = if ids.is_empty() { 0 } else { 1 };
        let room = if ids.len() < 7 { 28 } else { 0 };
        let what = random.pick(&[
            (room, Do::Pay),
            (14 * some, Do::Repeat),
            (4 * some, Do::Wrong),
            (9 * some, Do::Capture),
            (8 * some, Do::Refund),
            (5 * some, Do::RepeatOperation),
            (6 * some, Do::Cancel),
            (5 * some, Do::Read),
            (5, Do::Hold),
            (30, Do::Reconcile),
        ]);
        let id = if ids.is_empty() { String::new() } else { ids[random.place(ids.len())].clone() };
        let asked = self.asked.get(&id).cloned();
        let amount = asked.as_ref().map_or(1000, |asked| asked.amount);
        let part = match random.below(4) {
            0 => amount,
            1 => amount / 2,
            _ => 1 + i64::try_from(random.below(u64::try_from(amount).expect("a sum"))).expect("a sum"),
        };
        let kind = random.pick(&[
            (35, Kind::Typed),
            (25, Kind::Bare),
            (25, Kind::Reference),
            (if self.agreement.is_some() { 20 } else { 0 }, Kind::Merchant),
        ]);
        let (sum, manual, refresh) =
            (100 + i64::try_from(random.below(3000)).expect("a sum"), random.chance(450), random.chance(500));
        let place = random.below(64);
        self.world.lock().random = random;
        match what {
            Do::Pay => drop(self.pay(slot, kind, sum, manual)),
            Do::Repeat => self.repeat(slot, &id),
            Do::Wrong => {
                let known = asked.filter(|asked| asked.known);
                let Some(asked) = known else { return };
                let body = asked
                    .body
                    .replace(&format!("\"{}\"", asked.amount), &format!("\"{}\"", asked.amount + 1));
                self.ask(slot, "POST", "/v1/payments", &body, Ask::WrongPay);
            }
            Do::Capture => drop(self.operate(slot, &id, true, part)),
            Do::Refund => drop(self.operate(slot, &id, false, part)),
            Do::RepeatOperation => {
                let Some(asked) = asked.filter(|asked| !asked.operations.is_empty()) else { return };
                let place = usize::try_from(place).expect("a place") % asked.operations.len();
                let (path, _, body) = asked.operations[place].clone();
                self.ask(slot, "POST", &path, &body, Ask::Other);
            }
            Do::Cancel => self.cancel(slot, &id),
            Do::Read => {
                let query = if refresh { "?refresh=true" } else { "" };
                self.ask(slot, "GET", &format!("/v1/payments/{id}{query}"), "", Ask::Other);
            }
            Do::Hold => self.hold_cvv(slot),
            Do::Reconcile => self.reconcile(slot),
        }
    }

    /// The faults stop, what is late lands, and time passes until nothing is due.
    pub fn calm_down(&mut self) {
        self.world.note("calm");
        {
            let mut inner = self.world.lock();
            inner.calm = true;
            inner.away.clear();
        }
        for slot in 0..self.slots.len() {
            if self.slots[slot].is_none() {
                self.start(slot);
            }
        }
        self.release_all(|_| false);
        let end = self.world.lock().now + 40 * 60_000;
        for turn in 0.. {
            let (undecided, operations) = self.model.undecided();
            for id in &undecided {
                self.model.decide(id);
            }
            operations.iter().for_each(|(id, capture, name)| self.model.decide_operation(id, *capture, name));
            let mut done = 0;
            for slot in 0..self.slots.len() {
                done += self.reconcile_now(slot);
            }
            let due = self.next_due().map(|at| at - BEGIN);
            let sleeping = self.world.next_waking();
            let now = self.world.lock().now;
            if due.is_none() && sleeping.is_none() && now >= end && !self.model.is_late() {
                return;
            }
            if turn > 600 {
                self.wrong.push("something is due for ever".to_owned());
                return;
            }
            let next = due.into_iter().chain(sleeping).chain((now < end).then_some(end)).min().unwrap_or(now);
            let least = if done == 0 { 20_000 } else { 1 };
            self.pass((next - now).max(least).min(20 * 60_000), false);
        }
    }

    fn next_due(&self) -> Option<i64> {
        const PAYMENTS: &str = "SELECT MIN(next_look) AS due FROM payments WHERE merchant = $1";
        const OPERATIONS: &str = "SELECT MIN(next_look) AS due FROM operations WHERE merchant = $1";
        let merchant = self.merchant.as_str().to_owned();
        self.ground.look(async |db| {
            let mut due = None;
            for sql in [PAYMENTS, OPERATIONS] {
                let row = db.find(sql, &[Arg::Text(&merchant)]).await.expect("a query").expect("a row");
                let at = row.int_or_null("due").expect("a time");
                due = [due, at].into_iter().flatten().min();
            }
            due
        })
    }

    /// Numbers all events.
    pub fn sequence(&mut self) {
        let process = self.process(0);
        let vault = process.vault.clone();
        let world = self.world.clone();
        process.now(async move {
            for _ in 0..20 {
                let mut sequencer =
                    Sequencer::new(vault.db.clone(), vault.instance.clone(), vault.clock.clone());
                let mut turn = sequencer.run_once().await.expect("a turn");
                while let Turn::Numbered(_) = turn {
                    turn = sequencer.run_once().await.expect("a turn");
                }
                sequencer.release().await.expect("a release");
                if turn == Turn::Idle {
                    return;
                }
                world.lock().now += 10_000;
            }
            panic!("the sequencer's lease is never free");
        });
    }

    /// What happened, without what differs from run to run.
    pub fn log(&self) -> Vec<String> {
        let inner = self.world.lock();
        inner.log.iter().map(|line| line.replace(&self.prefix, "")).collect()
    }

    /// Gives the processes back.
    pub fn end(mut self) {
        for process in self.slots.drain(..).flatten() {
            self.ground.keep(process);
        }
    }
}

/// A text member of an answer.
pub fn text_at(told: &Option<Told>, pointer: &str) -> String {
    let value: Value =
        told.as_ref().and_then(|told| serde_json::from_str(&told.text).ok()).unwrap_or_default();
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
}
