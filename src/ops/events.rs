//! The event feed: what changed for a merchant, in order, at least once. A caller goes on from the last
//! cursor that it has dealt with; nothing is acknowledged and nothing is pushed.

use std::time::Duration;

use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::{Instant, timeout_at};

use crate::base::clock::Millis;
use crate::base::entropy::NoEntropy;
use crate::base::ids::{CardId, EventId, Merchant};
use crate::base::json::ObjectWriter;
use crate::base::limits::{EVENT_WAIT, EVENT_WAITERS, PAGE};
use crate::model::access::{Allowed, ReadEvents};
use crate::model::event::{Cursor, Event, EventKind};
use crate::model::operation_view::OperationView;
use crate::model::payment_view::PaymentView;
use crate::store::backend::Tx;
use crate::store::events as rows;
use crate::store::events::NewEvent;

use super::Vault;
use super::error::OpError;

/// How often a waiting request looks for events that another process has numbered.
const LOOK: Duration = Duration::from_secs(1);

/// What this process knows at once of events, so that nobody need wait for a timer: that some were
/// committed, that some were numbered, and that the process is told to stop. A lost ring costs a timer's
/// time and nothing else.
pub struct EventBell {
    written: Notify,
    numbered: Notify,
    stopped: watch::Sender<bool>,
    waiters: Semaphore,
    /// Whether all events are numbered where they are written.
    at_once: bool,
}

impl EventBell {
    /// A bell; `at_once` where all events are numbered where they are written.
    pub fn new(at_once: bool) -> Self {
        Self {
            written: Notify::new(),
            numbered: Notify::new(),
            stopped: watch::Sender::new(false),
            waiters: Semaphore::new(EVENT_WAITERS),
            at_once,
        }
    }

    /// A transaction with events was committed here.
    pub fn ring_written(&self) {
        match self.at_once {
            true => self.ring_numbered(),
            false => self.written.notify_one(),
        }
    }

    /// Waits for [`Self::ring_written`]; a ring that nobody waited for is not lost.
    pub async fn written(&self) {
        self.written.notified().await;
    }

    /// Events were numbered here.
    pub fn ring_numbered(&self) {
        self.numbered.notify_waiters();
    }

    /// Ends every wait, those to come included: requests in flight are to finish.
    pub fn stop(&self) {
        self.stopped.send_replace(true);
    }
}

impl Vault {
    /// The events that follow a place in the caller's feed. Where there is none, waits until there is, or
    /// until `wait` is over, or the process is told to stop.
    pub async fn events(
        &self,
        allowed: &Allowed<ReadEvents>,
        after: Cursor,
        limit: i64,
        wait: Duration,
    ) -> Result<Vec<Event>, OpError> {
        let (merchant, limit) = (allowed.merchant(), limit.clamp(1, PAGE));
        let end = Instant::now() + wait.min(EVENT_WAIT);
        let mut place = None;
        let mut stopped = self.bell.stopped.subscribe();
        loop {
            // Listens before it looks: what is numbered in between rings.
            let mut numbered = std::pin::pin!(self.bell.numbered.notified());
            numbered.as_mut().enable();
            let events = rows::list_events(&self.db, merchant, after, limit).await?;
            let now = Instant::now();
            if !events.is_empty() || now >= end || *stopped.borrow() {
                return Ok(events);
            }
            if place.is_none() {
                place = self.bell.waiters.try_acquire().ok();
            }
            if place.is_none() {
                return Ok(events);
            }
            let news = async {
                tokio::select! {
                    () = numbered => {}
                    _ = stopped.wait_for(|stopped| *stopped) => {}
                }
            };
            // Both ends of the wait lead to the same look.
            let _ = timeout_at(end.min(now + LOOK), news).await;
        }
    }
}

/// An event that is ready to be written in the transaction of its effect.
pub(super) struct ReadyEvent {
    event_id: EventId,
    merchant: Merchant,
    kind: EventKind,
    object_type: &'static str,
    object_id: String,
    body: String,
    at: Millis,
}

impl ReadyEvent {
    /// An event of an object, with a fresh id. `body` is JSON without card data.
    pub(super) fn new(
        merchant: &Merchant,
        kind: EventKind,
        (object_type, object_id): (&'static str, &str),
        body: String,
        at: Millis,
    ) -> Result<Self, NoEntropy> {
        let (event_id, merchant, object_id) = (EventId::at(at)?, merchant.clone(), object_id.to_owned());
        Ok(Self { event_id, merchant, kind, object_type, object_id, body, at })
    }

    /// The event of a card, which is named and not shown: who needs it reads it.
    pub(super) fn of_card(
        merchant: &Merchant,
        card: &CardId,
        source: &str,
        kind: EventKind,
        expires: Option<&str>,
        at: Millis,
    ) -> Result<Self, NoEntropy> {
        let mut body = ObjectWriter::default();
        body.string("cardId", card.as_str()).string("source", source);
        body.string_if("expiresAfter", expires);
        Self::new(merchant, kind, ("card", card.as_str()), body.finish(), at)
    }

    /// The event of a payment as it will be; none where its status is no news.
    pub(super) fn of_payment(merchant: &Merchant, view: &PaymentView) -> Result<Option<Self>, NoEntropy> {
        let Some(kind) = EventKind::of_payment(view.status) else { return Ok(None) };
        let object = ("payment", view.payment_request_id.as_str());
        Self::new(merchant, kind, object, view.event_json(), view.updated_at).map(Some)
    }

    /// Writes it in the transaction of its effect.
    pub(super) async fn insert(&self, tx: &mut Tx) -> Result<(), OpError> {
        Ok(rows::insert_event(tx, &self.row()).await?)
    }

    /// As it is inserted.
    pub(super) fn row(&self) -> NewEvent<'_> {
        NewEvent {
            event_id: &self.event_id,
            merchant: &self.merchant,
            kind: self.kind,
            object_type: self.object_type,
            object_id: &self.object_id,
            body: &self.body,
            created_at: self.at,
        }
    }
}

/// Writes the event of a capture's or refund's new status, if that is news.
pub(super) async fn insert_operation_event(
    tx: &mut Tx,
    merchant: &Merchant,
    view: &OperationView,
) -> Result<bool, OpError> {
    let Some(kind) = EventKind::of_operation(view.kind, view.status) else { return Ok(false) };
    let object = (view.kind.name(), view.request_id.as_str());
    ReadyEvent::new(merchant, kind, object, view.brief_json(), view.updated_at)?.insert(tx).await?;
    Ok(true)
}
