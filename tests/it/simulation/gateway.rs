//! A gateway with Antom's rules and a ledger: one id is one charge, a repeat gets the first result, what is
//! unclear is told by inquiry. It notes what the vault must never do. Calls and answers pass the world's
//! gates, where the schedule loses, delays and spoils them. Answers are signed and verified as real ones.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cardvault::base::clock::Millis;
use cardvault::base::secret::{SecretBuf, SecretText};
use cardvault::gateway::antom::sign::SigningKey;
use cardvault::gateway::antom::verify::{NotVerified, SignatureHeaders, VerifiedText, Verifier};
use cardvault::gateway::antom::wire;
use cardvault::gateway::{Call, Exchange, Gateway, Signed};
use serde_json::{Value, json};

use super::random::Random;
use super::world::{BEGIN, Go, ProcessId, What, World};

/// Where notifications go, as the gateway calls and signs it.
pub const NOTIFY_PATH: &str = "/antom/notify";
/// How long a buyer may take.
const BUYER: i64 = 14 * 60_000;
/// How long after a payment it can be cancelled.
const CANCEL_WINDOW: i64 = 3 * 3_600_000;
/// The sender's time (`Policy::attempt_deadline`), and how long anybody may repeat.
const DEADLINE: i64 = 60_000;
const REPEATS: i64 = 15 * 60_000;

const GATEWAY_KEY: &str = include_str!("../../vectors/antom/keys/gateway_private_pkcs8.pem");
const GATEWAY_PUBLIC: &str = include_str!("../../vectors/antom/keys/gateway_public_spki.pem");
const FORGER_KEY: &str = include_str!("../../vectors/antom/keys/unrelated_private_pkcs8.pem");

/// Where a payment stands at the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// An issuer works on it, or (`true`) a buyer must act.
    Open(bool),
    Paid,
    Declined,
    Cancelled,
}

/// Where a capture or a refund stands there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OperationState {
    Open,
    Done,
    Failed,
}

#[derive(Debug, Clone)]
pub struct Operation {
    pub amount: i64,
    pub state: OperationState,
    gateway_id: String,
}

#[derive(Debug, Clone)]
pub struct Charge {
    pub payment_id: String,
    pub amount: i64,
    pub manual: bool,
    pub state: State,
    /// How often money was reserved.
    pub charges: u32,
    pub captures: BTreeMap<String, Operation>,
    pub refunds: BTreeMap<String, Operation>,
    /// Whether somebody cancelled it on the gateway's side, who tells nobody.
    pub cancelled_elsewhere: bool,
    /// The card's token, where the request asked for one.
    token: Option<String>,
    since: i64,
}

impl Charge {
    pub fn sum(of: &BTreeMap<String, Operation>, wanted: OperationState) -> i64 {
        of.values().filter(|one| one.state == wanted).map(|one| one.amount).sum()
    }

    fn reserved(of: &BTreeMap<String, Operation>) -> i64 {
        of.values().filter(|one| one.state != OperationState::Failed).map(|one| one.amount).sum()
    }
}

/// What left the vault for an id.
#[derive(Debug, Clone, Default)]
pub struct Sent {
    first: Vec<u8>,
    first_by: ProcessId,
    with_cvv: bool,
    /// Wall times.
    pub pays: Vec<i64>,
    /// When the first cancel left.
    cancelled: Option<u64>,
}

struct LateCall {
    at: i64,
    call: Call,
    body: Vec<u8>,
}

#[derive(Debug, Clone)]
pub struct Notice {
    pub body: String,
    pub deliveries: u32,
}

#[derive(Default)]
pub struct Ledger {
    pub charges: BTreeMap<String, Charge>,
    pub sent: BTreeMap<String, Sent>,
    pub notices: Vec<Notice>,
    pub wrong: Vec<String>,
    late: Vec<LateCall>,
    next_id: u64,
    signatures: BTreeMap<String, String>,
}

/// Faults of the model itself, which the checks must find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sabotage {
    None,
    /// A repeat charges again.
    ChargesTwice,
    /// A cancel is confirmed and not carried out.
    KeepsCancelled,
}

pub struct Model {
    pub world: Arc<World>,
    /// Antom's client id.
    pub account: String,
    seed: u64,
    prefix: String,
    sabotage: Mutex<Sabotage>,
    /// Outcomes that a named schedule has set.
    pub outcomes: Mutex<BTreeMap<String, State>>,
    ledger: Mutex<Ledger>,
    key: SigningKey,
    forger: SigningKey,
}

impl Model {
    pub fn new(world: Arc<World>, seed: u64, account: String, prefix: &str) -> Self {
        let read = |text: &str| SigningKey::read(&SecretText::from(text), 1).expect("a key");
        Self {
            world,
            account,
            seed,
            prefix: prefix.to_owned(),
            sabotage: Mutex::new(Sabotage::None),
            outcomes: Mutex::default(),
            ledger: Mutex::default(),
            key: read(GATEWAY_KEY),
            forger: read(FORGER_KEY),
        }
    }

    pub fn set_sabotage(&self, sabotage: Sabotage) {
        *self.sabotage.lock().unwrap_or_else(PoisonError::into_inner) = sabotage;
    }

    fn does(&self, sabotage: Sabotage) -> bool {
        *self.sabotage.lock().unwrap_or_else(PoisonError::into_inner) == sabotage
    }

    pub fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn habit(&self, what: &str, id: &str) -> Random {
        let id = id.strip_prefix(&self.prefix).unwrap_or(id);
        Random::habit(self.seed, &format!("{what}/{id}"))
    }

    fn now(&self) -> i64 {
        self.world.lock().now
    }

    /// The value of the `Signature` header.
    pub fn sign(&self, path: &str, time: &str, body: &str, forged: bool) -> String {
        let key = if forged { &self.forger } else { &self.key };
        let name = format!("{path} {time} {forged} {body}");
        if let Some(known) = self.ledger().signatures.get(&name) {
            return known.clone();
        }
        let signature = key.sign(path, &self.account, time, body.as_bytes()).expect("a signature");
        self.ledger().signatures.insert(name, signature.clone());
        signature
    }

    /// Notes what leaves the vault, and what must not have.
    fn note_sent(&self, process: ProcessId, call: Call, body: &[u8]) {
        let (entered, tick) = (self.world.last_entry(process), self.world.tick());
        let wall = BEGIN + self.now();
        let text: Value = serde_json::from_slice(body).expect("JSON leaves the vault");
        let Some(id) = text["paymentRequestId"].as_str().map(str::to_owned) else { return };
        let mut ledger = self.ledger();
        let Ledger { sent, wrong, .. } = &mut *ledger;
        let sent = sent.entry(id.clone()).or_default();
        match call {
            Call::Pay => {
                let with_cvv = text["paymentMethod"]["paymentMethodMetaData"]["cvv"].is_string();
                if sent.pays.is_empty() {
                    (sent.first, sent.first_by, sent.with_cvv) = (body.to_vec(), process, with_cvv);
                } else if sent.first != body {
                    wrong.push(format!("{id}: a repeat is not the same bytes"));
                }
                if sent.with_cvv && sent.first_by != process {
                    wrong.push(format!("{id}: with a CVV, and sent by another process"));
                }
                if sent.cancelled.is_some_and(|cancelled| entered > cancelled) {
                    wrong.push(format!("{id}: sent by somebody who could know of its cancel"));
                }
                sent.pays.push(wall);
            }
            Call::Cancel => drop(sent.cancelled.get_or_insert(tick)),
            _ => {}
        }
    }

    /// Whether each payment left in its time: `created` is the row's.
    pub fn check_times(&self, id: &str, created: i64, wrong: &mut Vec<String>) {
        let ledger = self.ledger();
        let Some(sent) = ledger.sent.get(id) else { return };
        let limit = if sent.with_cvv { DEADLINE } else { REPEATS };
        for at in &sent.pays {
            if at - created > limit {
                wrong.push(format!("{id}: sent {} ms after it was asked for", at - created));
            }
        }
    }

    fn act(&self, call: Call, body: &[u8]) -> Value {
        let text: Value = serde_json::from_slice(body).expect("JSON");
        match call {
            Call::Pay => self.pay(&text),
            Call::InquiryPayment => self.inquire(&text),
            Call::Cancel => self.cancel(&text),
            Call::Capture => self.operate(&text, true),
            Call::Refund => self.operate(&text, false),
            Call::InquiryRefund => self.inquire_refund(&text),
        }
    }

    fn pay(&self, request: &Value) -> Value {
        let id = request["paymentRequestId"].as_str().expect("an id").to_owned();
        let amount = sum(&request["paymentAmount"]);
        let mut ledger = self.ledger();
        if let Some(known) = ledger.charges.get_mut(&id) {
            if known.amount != amount {
                ledger.wrong.push(format!("{id}: repeated with another sum"));
                return result("F", "REPEAT_REQ_INCONSISTENT");
            }
            if self.does(Sabotage::ChargesTwice) {
                known.charges += 1;
            }
            return pay_answer(&id, known);
        }
        let manual = request["paymentFactor"]["captureMode"] == "MANUAL";
        let by_merchant = request["paymentMethod"]["paymentMethodMetaData"]["recurringType"].is_string();
        let state = self.outcome(&id, by_merchant);
        ledger.next_id += 1;
        let charge = Charge {
            payment_id: format!("2026{:012}", ledger.next_id),
            amount,
            manual,
            state,
            charges: u32::from(state == State::Paid),
            captures: BTreeMap::new(),
            refunds: BTreeMap::new(),
            cancelled_elsewhere: false,
            token: (request["paymentMethod"]["paymentMethodMetaData"]["tokenize"] == true)
                .then(|| format!("ALIPAYtokenOf{id}0123456789==")),
            since: self.now(),
        };
        let answer = pay_answer(&id, &charge);
        ledger.charges.insert(id.clone(), charge);
        self.announce(&mut ledger, &id);
        answer
    }

    fn outcome(&self, id: &str, by_merchant: bool) -> State {
        let set = self.outcomes.lock().unwrap_or_else(PoisonError::into_inner).get(id).copied();
        set.unwrap_or_else(|| {
            let buyer = if by_merchant { 0 } else { 14 };
            self.habit("pay", id).pick(&[
                (60, State::Paid),
                (14, State::Declined),
                (12, State::Open(false)),
                (buyer, State::Open(true)),
            ])
        })
    }

    /// Writes what a payment's new state has Antom tell.
    fn announce(&self, ledger: &mut Ledger, id: &str) {
        let Some(charge) = ledger.charges.get(id) else { return };
        let mut body = pay_answer(id, charge);
        match charge.state {
            State::Paid => {}
            State::Declined => {
                body["paymentRequestId"] = json!(id);
                body["paymentId"] = json!(charge.payment_id);
                body["paymentAmount"] = money(charge.amount);
            }
            State::Open(_) | State::Cancelled => return,
        }
        body["notifyType"] = json!("PAYMENT_RESULT");
        let paid_by_itself = charge.state == State::Paid && !charge.manual;
        let capture = json!({
            "notifyType": "CAPTURE_RESULT", "captureId": format!("AUTO{}", charge.payment_id),
            "paymentId": charge.payment_id, "captureAmount": money(charge.amount),
            "result": { "resultCode": "SUCCESS", "resultStatus": "S", "resultMessage": "success" },
        });
        ledger.notices.push(Notice { body: body.to_string(), deliveries: 0 });
        if paid_by_itself && self.habit("auto", id).chance(300) {
            ledger.notices.push(Notice { body: capture.to_string(), deliveries: 0 });
        }
    }

    /// An issuer decides, or a buyer acts; `decide` has them do so now.
    pub fn decide(&self, id: &str) -> bool {
        let mut ledger = self.ledger();
        let now = self.now();
        let Some(charge) = ledger.charges.get_mut(id) else { return false };
        let State::Open(buyer) = charge.state else { return false };
        let mut habit = self.habit("decide", id);
        if buyer && habit.chance(250) && now - charge.since < BUYER {
            // This one never comes.
            return false;
        }
        charge.state = if habit.chance(650) && !(buyer && now - charge.since >= BUYER) {
            State::Paid
        } else {
            State::Declined
        };
        charge.charges += u32::from(charge.state == State::Paid);
        let line = format!("gateway: {id} is {:?}", charge.state);
        self.announce(&mut ledger, id);
        drop(ledger);
        self.world.note(line);
        true
    }

    /// A buyer pays what waits for him.
    pub fn paid_by_buyer(&self, id: &str) {
        let mut ledger = self.ledger();
        let charge = ledger.charges.get_mut(id).expect("a payment");
        assert!(matches!(charge.state, State::Open(_)), "{id} is {:?}", charge.state);
        (charge.state, charge.charges) = (State::Paid, charge.charges + 1);
        self.announce(&mut ledger, id);
        drop(ledger);
        self.world.note(format!("gateway: the buyer of {id} has paid"));
    }

    /// What waits for an issuer, a buyer or an acquirer.
    pub fn undecided(&self) -> (Vec<String>, Vec<(String, bool, String)>) {
        let ledger = self.ledger();
        let open = |charge: &Charge| matches!(charge.state, State::Open(_));
        let payments =
            ledger.charges.iter().filter(|(_, charge)| open(charge)).map(|(id, _)| id.clone()).collect();
        let mut operations = Vec::new();
        for (id, charge) in &ledger.charges {
            for (capture, list) in [(true, &charge.captures), (false, &charge.refunds)] {
                let open = list.iter().filter(|(_, one)| one.state == OperationState::Open);
                operations.extend(open.map(|(name, _)| (id.clone(), capture, name.clone())));
            }
        }
        (payments, operations)
    }

    /// An acquirer decides a capture or a refund.
    pub fn decide_operation(&self, id: &str, capture: bool, name: &str) {
        let mut ledger = self.ledger();
        let Some(charge) = ledger.charges.get_mut(id) else { return };
        let payment_id = charge.payment_id.clone();
        let list = if capture { &mut charge.captures } else { &mut charge.refunds };
        let Some(one) = list.get_mut(name) else { return };
        if one.state != OperationState::Open {
            return;
        }
        let done = self.habit("finish", name).chance(700);
        one.state = if done { OperationState::Done } else { OperationState::Failed };
        let mut body = operation_answer(&payment_id, capture, name, one);
        body["notifyType"] = json!(if capture { "CAPTURE_RESULT" } else { "REFUND_RESULT" });
        let line = format!("gateway: {name} is {:?}", one.state);
        ledger.notices.push(Notice { body: body.to_string(), deliveries: 0 });
        drop(ledger);
        self.world.note(line);
    }

    /// What somebody could cancel in the gateway's dashboard.
    pub fn cancellable(&self) -> Vec<String> {
        let now = self.now();
        let may = |charge: &Charge| {
            matches!(charge.state, State::Paid | State::Open(_))
                && now - charge.since <= CANCEL_WINDOW
                && Charge::sum(&charge.refunds, OperationState::Done) == 0
        };
        let ledger = self.ledger();
        ledger.charges.iter().filter(|(_, charge)| may(charge)).map(|(id, _)| id.clone()).collect()
    }

    /// Somebody cancels a payment in the gateway's dashboard. What is open on it has failed, or the gateway
    /// does not know it any more.
    pub fn cancel_elsewhere(&self, id: &str) {
        let mut ledger = self.ledger();
        let Ledger { charges, notices, .. } = &mut *ledger;
        let Some(charge) = charges.get_mut(id) else { return };
        (charge.state, charge.cancelled_elsewhere) = (State::Cancelled, true);
        let payment_id = charge.payment_id.clone();
        for (capture, list) in [(true, &mut charge.captures), (false, &mut charge.refunds)] {
            let open = |one: &Operation| one.state == OperationState::Open;
            list.retain(|name, one| !open(one) || !self.habit("forgets", name).chance(500));
            for (name, one) in list.iter_mut().filter(|(_, one)| open(one)) {
                one.state = OperationState::Failed;
                let mut body = operation_answer(&payment_id, capture, name, one);
                body["notifyType"] = json!(if capture { "CAPTURE_RESULT" } else { "REFUND_RESULT" });
                notices.push(Notice { body: body.to_string(), deliveries: 0 });
            }
        }
        drop(ledger);
        self.world.note(format!("gateway: {id} is cancelled in the dashboard"));
    }

    fn inquire(&self, request: &Value) -> Value {
        let id = request["paymentRequestId"].as_str().expect("an id");
        let ledger = self.ledger();
        let Some(charge) = ledger.charges.get(id) else { return result("F", "ORDER_NOT_EXIST") };
        let status = match charge.state {
            State::Open(_) => "PROCESSING",
            State::Paid => "SUCCESS",
            State::Declined => "FAIL",
            State::Cancelled => "CANCELLED",
        };
        let mut transactions = Vec::new();
        for (kind, list) in [("CAPTURE", &charge.captures), ("REFUND", &charge.refunds)] {
            for (name, one) in list {
                let status = match one.state {
                    OperationState::Open => "PROCESSING",
                    OperationState::Done => "SUCCESS",
                    OperationState::Failed => "FAIL",
                };
                transactions.push(json!({
                    "transactionType": kind, "transactionStatus": status, "transactionId": one.gateway_id,
                    "transactionRequestId": name, "transactionAmount": money(one.amount),
                }));
            }
        }
        json!({
            "paymentRequestId": id, "paymentId": charge.payment_id, "paymentAmount": money(charge.amount),
            "paymentStatus": status, "transactions": transactions,
            "paymentResultInfo": result_info(charge),
            "result": { "resultCode": "SUCCESS", "resultStatus": "S", "resultMessage": "success." },
        })
    }

    fn cancel(&self, request: &Value) -> Value {
        let id = request["paymentRequestId"].as_str().expect("an id");
        let now = self.now();
        let mut ledger = self.ledger();
        let Some(charge) = ledger.charges.get_mut(id) else { return result("F", "ORDER_NOT_EXIST") };
        match charge.state {
            State::Cancelled => {}
            State::Declined => return result("F", "ORDER_STATUS_INVALID"),
            State::Paid if now - charge.since > CANCEL_WINDOW => return result("F", "CANCEL_WINDOW_EXCEED"),
            // The bank of this one takes nothing back.
            State::Paid if self.habit("window", id).chance(150) => {
                return result("F", "CANCEL_WINDOW_EXCEED");
            }
            State::Paid if Charge::reserved(&charge.refunds) > 0 => {
                return result("F", "ORDER_STATUS_INVALID");
            }
            State::Paid if Charge::sum(&charge.captures, OperationState::Open) > 0 => {
                return result("F", "ORDER_STATUS_INVALID");
            }
            State::Paid if self.does(Sabotage::KeepsCancelled) => {}
            State::Paid | State::Open(_) => charge.state = State::Cancelled,
        }
        json!({
            "paymentRequestId": id, "paymentId": charge.payment_id, "cancelTime": "2026-03-01T12:00:00Z",
            "result": { "resultCode": "SUCCESS", "resultStatus": "S", "resultMessage": "success." },
        })
    }

    fn operate(&self, request: &Value, capture: bool) -> Value {
        let (id_member, sum_member) =
            if capture { ("captureRequestId", "captureAmount") } else { ("refundRequestId", "refundAmount") };
        let name = request[id_member].as_str().expect("an id").to_owned();
        let amount = sum(&request[sum_member]);
        let payment_id = request["paymentId"].as_str().expect("a payment").to_owned();
        let mut ledger = self.ledger();
        ledger.next_id += 1;
        let gateway_id = format!("G{:08}", ledger.next_id);
        let Ledger { charges, wrong, notices, .. } = &mut *ledger;
        let Some(charge) = charges.values_mut().find(|charge| charge.payment_id == payment_id) else {
            wrong.push(format!("{name}: of a payment that does not exist"));
            return result("F", "ORDER_NOT_EXIST");
        };
        let list = if capture { &charge.captures } else { &charge.refunds };
        if let Some(known) = list.get(&name) {
            if known.amount != amount {
                wrong.push(format!("{name}: repeated with another sum"));
                return result("F", "REPEAT_REQ_INCONSISTENT");
            }
            return operation_answer(&payment_id, capture, &name, known);
        }
        // What is refused for that is not kept.
        if charge.state == State::Cancelled {
            return result("F", "ORDER_IS_CANCELED");
        }
        let ceiling = match (capture, charge.manual) {
            (true, _) | (false, false) => charge.amount,
            (false, true) => Charge::sum(&charge.captures, OperationState::Done),
        };
        let fits = Charge::reserved(list) + amount <= ceiling;
        let allowed = charge.state == State::Paid && (!capture || charge.manual);
        if allowed && !fits {
            wrong.push(format!("{name}: more than there is"));
        }
        let state = if allowed && fits {
            self.habit("operation", &name).pick(&[
                (65, OperationState::Done),
                (15, OperationState::Failed),
                (20, OperationState::Open),
            ])
        } else {
            OperationState::Failed
        };
        let one = Operation { amount, state, gateway_id };
        let answer = operation_answer(&payment_id, capture, &name, &one);
        if state != OperationState::Open {
            let mut body = answer.clone();
            body["notifyType"] = json!(if capture { "CAPTURE_RESULT" } else { "REFUND_RESULT" });
            notices.push(Notice { body: body.to_string(), deliveries: 0 });
        }
        let list = if capture { &mut charge.captures } else { &mut charge.refunds };
        list.insert(name, one);
        answer
    }

    fn inquire_refund(&self, request: &Value) -> Value {
        let name = request["refundRequestId"].as_str().expect("an id");
        let ledger = self.ledger();
        let found = ledger.charges.values().find_map(|charge| charge.refunds.get(name));
        let Some(one) = found else { return result("F", "REFUND_NOT_EXIST") };
        let status = match one.state {
            OperationState::Open => "PROCESSING",
            OperationState::Done => "SUCCESS",
            OperationState::Failed => "FAIL",
        };
        json!({
            "refundRequestId": name, "refundId": one.gateway_id, "refundAmount": money(one.amount),
            "refundStatus": status,
            "result": { "resultCode": "SUCCESS", "resultStatus": "S", "resultMessage": "success." },
        })
    }

    /// Lets calls land whose time has come; all of them where `all` is set.
    pub fn land(&self, all: bool) {
        let now = self.now();
        loop {
            let landed = {
                let mut ledger = self.ledger();
                let due = ledger.late.iter().position(|late| all || late.at <= now);
                due.map(|place| ledger.late.remove(place))
            };
            let Some(late) = landed else { return };
            self.world.note(format!("gateway: a late {:?} {} lands", late.call, named(&late.body)));
            self.act(late.call, &late.body);
        }
    }

    pub fn is_late(&self) -> bool {
        !self.ledger().late.is_empty()
    }
}

/// A process's way to the gateway.
pub struct Wire {
    pub model: Arc<Model>,
    pub process: ProcessId,
    verifier: Verifier,
}

impl Wire {
    pub fn new(model: Arc<Model>, process: ProcessId) -> Self {
        let mut verifier = Verifier::new(&model.account);
        verifier.add_key(1, GATEWAY_PUBLIC).expect("a key");
        Self { model, process, verifier }
    }

    async fn exchange(&self, call: Call, body: SecretBuf) -> Exchange {
        let model = &self.model;
        let name = format!("{call:?} {}", named(body.expose()));
        let sent = model.world.call(self.process, What::Call(name.clone())).await;
        if sent == Go::NotSent {
            return Exchange::NotSent("no connection to the gateway");
        }
        let answer = match sent {
            Go::Lost => return Exchange::NoAnswer("lost"),
            Go::Late(after) => {
                let at = model.now() + after;
                model.ledger().late.push(LateCall { at, call, body: body.expose().to_vec() });
                return Exchange::NoAnswer("lost");
            }
            Go::Busy => result("U", "REQUEST_TRAFFIC_EXCEED_LIMIT"),
            Go::Fault => result("U", "UNKNOWN_EXCEPTION"),
            Go::FaultAfter => {
                model.act(call, body.expose());
                result("U", "UNKNOWN_EXCEPTION")
            }
            _ => model.act(call, body.expose()),
        };
        let came = model.world.call(self.process, What::Answer(name)).await;
        let (text, forged) = match came {
            Go::Lost => return Exchange::NoAnswer("lost"),
            Go::Forged => (result("F", "DO_NOT_HONOR").to_string(), true),
            Go::OtherOne => (other_one(call).to_string(), false),
            Go::Garbage => ("<html>busy</html>".to_owned(), false),
            _ => (answer.to_string(), false),
        };
        let path = wire::path_for(&model.account, path_of(call));
        let time = "2026-03-01T12:00:00Z";
        let signature = model.sign(&path, time, &text, forged);
        let headers = SignatureHeaders {
            client_id: Some(&model.account),
            time: Some(time),
            signature: Some(&signature),
        };
        match self.verifier.verify(&path, &headers, text.as_bytes()) {
            Ok(verified) => Exchange::Answered(verified.into()),
            Err(_) => Exchange::NoAnswer("the gateway's answer does not verify"),
        }
    }
}

impl Gateway for Wire {
    fn sign(&self, call: Call, body: SecretBuf) -> Signed {
        // The model trusts whoever reaches it.
        Signed { call, body, time: Millis(0), signature: None }
    }

    fn send(&self, signed: Signed) -> Pin<Box<dyn Future<Output = Exchange> + Send + '_>> {
        let Signed { call, body, .. } = signed;
        // It leaves here: what the vault knew then is what it is judged by.
        self.model.note_sent(self.process, call, body.expose());
        Box::pin(self.exchange(call, body))
    }

    fn verify_notification(
        &self,
        path: &str,
        headers: &SignatureHeaders<'_>,
        body: &[u8],
    ) -> Result<VerifiedText, NotVerified> {
        self.verifier.verify(path, headers, body).map(Into::into)
    }
}

fn named(body: &[u8]) -> String {
    let text: Value = serde_json::from_slice(body).expect("JSON");
    ["captureRequestId", "refundRequestId", "paymentRequestId"]
        .iter()
        .find_map(|name| text[*name].as_str())
        .unwrap_or_default()
        .to_owned()
}

fn path_of(call: Call) -> &'static str {
    match call {
        Call::Pay => wire::PAY,
        Call::InquiryPayment => wire::INQUIRY_PAYMENT,
        Call::Cancel => wire::CANCEL,
        Call::Capture => wire::CAPTURE,
        Call::Refund => wire::REFUND,
        Call::InquiryRefund => wire::INQUIRY_REFUND,
    }
}

fn money(amount: i64) -> Value {
    json!({ "currency": "EUR", "value": amount.to_string() })
}

fn sum(value: &Value) -> i64 {
    value["value"].as_str().and_then(|text| text.parse().ok()).expect("a sum")
}

fn result(status: &str, code: &str) -> Value {
    json!({ "result": { "resultCode": code, "resultStatus": status, "resultMessage": "words" } })
}

fn pay_answer(id: &str, charge: &Charge) -> Value {
    let mut answer = match charge.state {
        State::Paid => result("S", "SUCCESS"),
        State::Open(_) => result("U", "PAYMENT_IN_PROCESS"),
        State::Declined => return result("F", "DO_NOT_HONOR"),
        State::Cancelled => return result("F", "ORDER_IS_CANCELED"),
    };
    answer["paymentRequestId"] = json!(id);
    answer["paymentId"] = json!(charge.payment_id);
    answer["paymentAmount"] = money(charge.amount);
    match charge.state {
        State::Paid => answer["paymentResultInfo"] = result_info(charge),
        State::Open(true) => answer["normalUrl"] = json!("https://acs.example/challenge"),
        _ => {}
    }
    answer
}

fn result_info(charge: &Charge) -> Value {
    let mut info = json!({ "networkTransactionId": "NTI000000000001" });
    if let Some(token) = charge.token.as_ref().filter(|_| charge.state == State::Paid) {
        info["cardToken"] = json!(token);
    }
    info
}

fn operation_answer(payment_id: &str, capture: bool, name: &str, one: &Operation) -> Value {
    let mut answer = match one.state {
        OperationState::Done => result("S", "SUCCESS"),
        OperationState::Open => result("U", "PAYMENT_IN_PROCESS"),
        OperationState::Failed => result("F", "PROCESS_FAIL"),
    };
    let (id, own, sum) = if capture {
        ("captureRequestId", "captureId", "captureAmount")
    } else {
        ("refundRequestId", "refundId", "refundAmount")
    };
    answer[id] = json!(name);
    answer[own] = json!(one.gateway_id);
    answer[sum] = money(one.amount);
    answer["paymentId"] = json!(payment_id);
    answer
}

/// Signed, right in form, and about something else.
fn other_one(call: Call) -> Value {
    let mut answer = result("S", "SUCCESS");
    let id = match call {
        Call::Capture => "captureRequestId",
        Call::Refund | Call::InquiryRefund => "refundRequestId",
        Call::Pay | Call::InquiryPayment | Call::Cancel => "paymentRequestId",
    };
    answer[id] = json!("ANOTHER_ONE");
    answer["paymentId"] = json!("20260000");
    answer["paymentAmount"] = money(1);
    answer["paymentStatus"] = json!("SUCCESS");
    answer["refundStatus"] = json!("SUCCESS");
    answer
}
