//! Merchants that go on working while keys change: they store new cards and known ones, read and pay. Every
//! answer must be a good one, and every card must stay the card that it was.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::task::JoinSet;

use crate::support::vault::{Caller, by_reference, fresh_pan};

/// Running merchants.
pub struct Traffic {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    workers: JoinSet<Vec<(String, String)>>,
}

static PAYMENT: AtomicU64 = AtomicU64::new(0);

impl Traffic {
    /// Starts some workers for each caller.
    pub fn start(callers: &[Caller], workers_each: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let done = Arc::new(AtomicU64::new(0));
        let mut workers = JoinSet::new();
        for caller in callers {
            for _ in 0..workers_each {
                workers.spawn(work(caller.clone(), Arc::clone(&stop), Arc::clone(&done)));
            }
        }
        Self { stop, done, workers }
    }

    /// How many calls were answered well so far.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Returns when so many more calls were answered.
    pub async fn more(&self, calls: u64) {
        let goal = self.done() + calls;
        let end = tokio::time::Instant::now() + std::time::Duration::from_secs(60);
        while self.done() < goal {
            assert!(tokio::time::Instant::now() < end, "the traffic stands still");
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }

    /// Stops them; every card that they made, number and reference. Fails if one of them saw an error.
    pub async fn stop(mut self) -> Vec<(String, String)> {
        self.stop.store(true, Ordering::Relaxed);
        let mut cards = Vec::new();
        while let Some(worker) = self.workers.join_next().await {
            cards.extend(worker.expect("a worker saw an error"));
        }
        cards
    }
}

async fn work(caller: Caller, stop: Arc<AtomicBool>, done: Arc<AtomicU64>) -> Vec<(String, String)> {
    let mut cards: Vec<(String, String)> = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let pan = fresh_pan();
        let card = caller.card(&pan).await;
        cards.push((pan, card));
        let (known_pan, known) = cards[cards.len() / 2].clone();
        assert_eq!(caller.card(&known_pan).await, known, "a known card got another reference");
        caller.get(&format!("/v1/cards/{known}")).await.expect(200);
        let id = format!("TRAFFIC_{}", PAYMENT.fetch_add(1, Ordering::Relaxed));
        let paid = caller.post("/v1/payments", &by_reference(&id, "100", &known)).await.expect(200);
        assert_eq!(paid.text_at("/status"), "AUTHORIZED");
        caller.get(&format!("/v1/payments/{id}")).await.expect(200);
        done.fetch_add(5, Ordering::Relaxed);
    }
    cards
}

/// Every card is found by its number, reads, and (some of them) pays.
pub async fn assert_whole(caller: &Caller, cards: &[(String, String)]) {
    for (n, (pan, card)) in cards.iter().enumerate() {
        assert_eq!(caller.card(pan).await, *card, "a card got another reference");
        if n % 5 == 0 {
            let id = format!("WHOLE_{}", PAYMENT.fetch_add(1, Ordering::Relaxed));
            let paid = caller.post("/v1/payments", &by_reference(&id, "100", card)).await.expect(200);
            assert_eq!(paid.text_at("/status"), "AUTHORIZED");
        }
    }
}
