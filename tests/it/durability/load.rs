//! Callers that store, pay, capture and refund while the vault dies under them, and the book of what they were
//! told.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::json;
use tokio::task::JoinSet;

use crate::operations::manual;
use crate::support::vault::{Answer, Caller, by_reference, fresh_pan, typed};

/// What was asked for. What was told is an acknowledgement, and must stay true.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    pub body: String,
    /// The states that were told, in their order.
    pub told: Vec<String>,
}

#[derive(Default)]
pub struct Notes {
    /// Each number that was stored, with its reference where that was told.
    pub cards: BTreeMap<String, Option<String>>,
    /// Numbers that were typed in a payment.
    pub typed: Vec<String>,
    /// By payment request id.
    pub payments: BTreeMap<String, Asked>,
    /// By path.
    pub operations: BTreeMap<String, Asked>,
    /// What nobody may be told.
    pub wrong: Vec<String>,
}

/// What callers asked for, and what they were told.
#[derive(Default)]
pub struct Book {
    notes: Mutex<Notes>,
    next: AtomicU64,
    answers: AtomicU64,
}

impl Book {
    pub fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many calls were acknowledged.
    pub fn answers(&self) -> u64 {
        self.answers.load(Ordering::Relaxed)
    }

    pub fn name(&self, kind: &str) -> String {
        format!("{kind}_{}", self.next.fetch_add(1, Ordering::Relaxed))
    }

    fn told(&self, answer: Option<Answer>, good: &[u16]) -> Option<Answer> {
        let answer = answer?;
        if good.contains(&answer.status) {
            self.answers.fetch_add(1, Ordering::Relaxed);
            return Some(answer);
        }
        if answer.status != 503 {
            self.notes().wrong.push(format!("{} {}", answer.status, answer.text));
        }
        None
    }

    /// Stores a card; its reference, where that was told.
    pub async fn store(&self, caller: &Caller, pan: &str) -> Option<String> {
        self.notes().cards.entry(pan.to_owned()).or_default();
        let body = json!({ "cardNo": pan, "expiryMonth": "12", "expiryYear": "29",
            "cardholderName": { "firstName": "Tom", "lastName": "Jay" } });
        let answer = self.told(call(caller, "/v1/cards", &body.to_string()).await, &[200, 201])?;
        let card = answer.text_at("/cardId");
        let mut notes = self.notes();
        let known = notes.cards.entry(pan.to_owned()).or_default();
        let before = known.replace(card.clone());
        if before.is_some_and(|before| before != card) {
            notes.wrong.push(format!("{card}: a known number got another reference"));
        }
        Some(card)
    }

    /// Pays; the state, where one was told.
    pub async fn pay(&self, caller: &Caller, id: &str, body: String) -> Option<String> {
        self.notes().payments.entry(id.to_owned()).or_default().body.clone_from(&body);
        let status = self.told(call(caller, "/v1/payments", &body).await, &[200])?.text_at("/status");
        let mut notes = self.notes();
        notes.payments.entry(id.to_owned()).or_default().told.push(status.clone());
        Some(status)
    }

    /// Captures or refunds; the state, where one was told.
    pub async fn operate(&self, caller: &Caller, payment: &str, word: &str, value: &str) -> Option<String> {
        let id = self.name("OP");
        let amount = json!({ "currency": "EUR", "value": value });
        let body = match word {
            "captures" => {
                json!({ "captureRequestId": id, "captureAmount": amount, "isLastCapture": false })
            }
            _ => json!({ "refundRequestId": id, "refundAmount": amount }),
        };
        let path = format!("/v1/payments/{payment}/{word}");
        self.operate_again(caller, &format!("{path}/{id}"), &body.to_string()).await
    }

    /// Asks for the operation that is shown at a path.
    pub async fn operate_again(&self, caller: &Caller, shown: &str, body: &str) -> Option<String> {
        self.notes().operations.entry(shown.to_owned()).or_default().body = body.to_owned();
        let path = shown.rsplit_once('/').expect("a path").0;
        let status = self.told(call(caller, path, body).await, &[200])?.text_at("/status");
        self.notes().operations.entry(shown.to_owned()).or_default().told.push(status.clone());
        Some(status)
    }
}

/// An answer, if one came.
async fn call(caller: &Caller, path: &str, body: &str) -> Option<Answer> {
    let headers = [("content-type", "application/json")];
    caller.try_call("POST", path, &headers, Some(body.as_bytes().to_vec())).await.ok()
}

/// Running callers.
pub struct Load {
    stop: Arc<AtomicBool>,
    callers: JoinSet<()>,
}

impl Load {
    /// Starts so many callers. All of them pay under one id too, with a card that is known.
    pub fn start(book: &Arc<Book>, caller: &Caller, many: usize, known: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let shared = book.name("SHARED");
        let mut callers = JoinSet::new();
        for number in 0..many {
            let (book, caller, stop) = (Arc::clone(book), caller.clone(), Arc::clone(&stop));
            let (shared, known) = (shared.clone(), known.to_owned());
            callers.spawn(async move {
                let body = by_reference(&shared, "100", &known);
                book.pay(&caller, &shared, body).await;
                for turn in number.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    if turn_of(&book, &caller, turn).await.is_none() {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                }
            });
        }
        Self { stop, callers }
    }

    /// Lets every caller finish what it is at.
    pub async fn stop(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.callers.join_next().await {
            ended.expect("a caller");
        }
    }
}

fn paid(status: Option<String>) -> Option<()> {
    (status? == "AUTHORIZED").then_some(())
}

/// One thing after another; nothing where something was not acknowledged.
async fn turn_of(book: &Book, caller: &Caller, turn: usize) -> Option<()> {
    match turn % 3 {
        0 => {
            let card = book.store(caller, &fresh_pan()).await?;
            let id = book.name("PAY");
            paid(book.pay(caller, &id, by_reference(&id, "100", &card)).await)?;
            book.operate(caller, &id, "refunds", "30").await?;
        }
        1 => {
            let (id, pan) = (book.name("TYPED"), fresh_pan());
            book.notes().typed.push(pan.clone());
            book.pay(caller, &id, typed(&id, "100", &pan, "850")).await?;
        }
        _ => {
            let pan = fresh_pan();
            let card = book.store(caller, &pan).await?;
            let id = book.name("MANUAL");
            paid(book.pay(caller, &id, manual(&id, "100", &card)).await)?;
            book.operate(caller, &id, "captures", "60").await?;
            book.store(caller, &pan).await?;
            book.operate(caller, &id, "captures", "40").await?;
        }
    }
    Some(())
}
