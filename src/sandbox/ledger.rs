//! The sandbox's books: every payment that it has acted on, on disk, surviving restarts.
//!
//! JSON lines, append-only; the last line of a payment counts. An answer is given only after its lines
//! are on disk. No card number and no CVV is written: the last four digits are, and a salted digest that
//! tells whether a repeat means the same thing. (The salt stands in the same file: enough for a test
//! emulator with test cards, not for a vault.)

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use data_encoding::HEXLOWER;
use ring::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use super::Error;
use super::cards::CardFacts;
use super::notices::{self, Notice};
use crate::base::clock::Millis;
use crate::base::entropy;
use crate::base::mutex::held;
use crate::gateway::antom::wire::{Amount, CallResult};

/// Where a payment stands, in the words of inquiryPayment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Status {
    /// Paid.
    Success,
    /// Refused for good.
    Fail,
    /// Waits for the buyer or the acquirer.
    Processing,
    /// Ended by cancel.
    Cancelled,
}

/// A capture or a refund, as the sandbox remembers it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Operation {
    /// `captureRequestId` or `refundRequestId`: one operation each.
    pub request_id: String,
    /// `captureId` or `refundId`.
    pub id: String,
    /// What is moved.
    pub amount: Amount,
    /// Where it stands; never `CANCELLED`.
    pub status: Status,
    /// Whether the money was moved.
    pub charged: bool,
    /// How it ended, or will end when nothing else happens.
    pub verdict: CallResult,
    /// RFC 3339, once done.
    pub time: Option<String>,
    /// The acquirer's number for it.
    pub acquirer_reference: String,
    /// Whether the merchant wants no capture after this one.
    pub last: bool,
    /// Where a refund is notified; a capture is where its payment is.
    pub notify_url: Option<String>,
    /// Whether the gateway made it by itself, as it does under AUTOMATIC capture.
    pub automatic: bool,
    /// Inquiries while it was in process.
    pub inquiries: u32,
}

/// Which of the two an operation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    /// Takes authorised money.
    Capture,
    /// Gives captured money back.
    Refund,
}

/// One payment, as the sandbox remembers it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LedgerEntry {
    /// The merchant's id: one payment each.
    pub payment_request_id: String,
    /// The gateway's id.
    pub payment_id: String,
    /// What is paid.
    pub amount: Amount,
    /// Where it stands.
    pub status: Status,
    /// Whether money was taken, or reserved for a capture; stays true after a cancel, which gives it back.
    pub charged: bool,
    /// How it ended, or will end when nothing else happens.
    pub verdict: CallResult,
    /// The issuer's code for a decline.
    pub refusal_code_raw: Option<String>,
    /// The scheme's advice for a decline.
    pub merchant_advice_code: Option<String>,
    /// What may be shown of the card; none before the buyer typed it on the hosted page.
    pub card: Option<CardFacts>,
    /// Salted digest of amount, card number and `paymentMethodId`.
    pub digest: String,
    /// RFC 3339.
    pub created: String,
    /// RFC 3339, once paid.
    pub paid: Option<String>,
    /// RFC 3339, once paid: capture before this.
    pub auth_expiry: Option<String>,
    /// RFC 3339, once cancelled.
    pub cancelled: Option<String>,
    /// The scheme's id, once paid.
    pub network_transaction_id: Option<String>,
    /// `avsResultRaw`.
    pub avs: String,
    /// `cvvResultRaw`.
    pub cvv_result: String,
    /// Whether `cardToken` was asked for; the hosted page always makes one.
    pub tokenize: bool,
    /// The gateway's token for the card.
    pub card_token: Option<String>,
    /// Whether a 3DS challenge stands between the buyer and the payment.
    pub challenge: bool,
    /// Invented results of 3DS.
    pub three_ds: Option<ThreeDs>,
    /// Names the page on which the buyer must act.
    pub page: Option<String>,
    /// Where the buyer goes afterwards.
    pub redirect_url: String,
    /// Inquiries so far; counted only where they matter.
    pub inquiries: u32,
    /// Salted digest of the card number alone: tells which payments are of one card.
    #[serde(default)]
    pub card_digest: Option<String>,
    /// Mastercard's Transaction Link ID, where a trigger asks for one.
    #[serde(default)]
    pub transaction_link_id: Option<String>,
    /// Whether the merchant captures, or the gateway does.
    #[serde(default)]
    pub manual_capture: bool,
    /// Captures, oldest first.
    #[serde(default)]
    pub captures: Vec<Operation>,
    /// Refunds, oldest first.
    #[serde(default)]
    pub refunds: Vec<Operation>,
    /// Where the payment and its captures are notified; only an https address is kept.
    #[serde(default)]
    pub notify_url: Option<String>,
}

impl LedgerEntry {
    /// Smallest units that were captured.
    pub fn captured(&self) -> u64 {
        sum(self.captures.iter().filter(|operation| operation.charged))
    }

    /// Smallest units that were refunded.
    pub fn refunded(&self) -> u64 {
        sum(self.refunds.iter().filter(|operation| operation.charged))
    }

    /// What the buyer has paid in the end, in smallest units: captured, less refunded; nothing after a
    /// cancel, which gives all of it back.
    pub fn net_charged(&self) -> u64 {
        match self.status {
            Status::Cancelled => 0,
            _ => self.captured().saturating_sub(self.refunded()),
        }
    }

    /// What operations of a kind have taken of their ceiling: all but the failed ones count.
    pub(super) fn reserved(&self, kind: Kind) -> u64 {
        sum(self.operations(kind).iter().filter(|operation| operation.status != Status::Fail))
    }

    pub(super) fn operations(&self, kind: Kind) -> &[Operation] {
        match kind {
            Kind::Capture => &self.captures,
            Kind::Refund => &self.refunds,
        }
    }

    pub(super) fn operations_mut(&mut self, kind: Kind) -> &mut Vec<Operation> {
        match kind {
            Kind::Capture => &mut self.captures,
            Kind::Refund => &mut self.refunds,
        }
    }
}

/// An amount as a number. What is in the books was checked to be digits, at most 16.
pub(super) fn units(amount: &Amount) -> u64 {
    amount.value.parse().unwrap_or(0)
}

fn sum<'a>(operations: impl Iterator<Item = &'a Operation>) -> u64 {
    operations.fold(0, |sum, operation| sum.saturating_add(units(&operation.amount)))
}

/// What 3DS is said to have brought. Invented, so it may be kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThreeDs {
    /// Electronic commerce indicator.
    pub eci: String,
    /// Authentication value.
    pub cavv: String,
    /// Directory server's id.
    #[serde(rename = "dsTransactionId")]
    pub ds_transaction_id: String,
    /// Version of the protocol.
    #[serde(rename = "threeDSVersion")]
    pub version: String,
    /// Whether the buyer saw a page.
    pub challenged: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Line {
    /// First line: the salt of the digests.
    Salt(String),
    /// A trigger that did nothing has struck for this `paymentRequestId`.
    Struck(String),
    Payment(Box<LedgerEntry>),
    /// A payment and the notifications that its change calls for: one line, so that neither is on disk
    /// without the other.
    Notified {
        payment: Box<LedgerEntry>,
        notices: Vec<Notice>,
    },
    /// A notification was sent; due again, or done with.
    Sent {
        notice: u64,
        due: Option<i64>,
    },
}

/// The file and what is in it.
pub(super) struct Ledger {
    books: Mutex<Books>,
    /// How many lines are known to be on disk; held while syncing, so that waiting callers share a sync.
    synced: Mutex<u64>,
    disk: File,
    /// Told whenever a notification has been queued and is on disk.
    pub queued: Notify,
}

/// A name, other than `paymentRequestId`, by which a payment is found.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Name {
    /// `paymentId`.
    Payment(String),
    /// `networkTransactionId`.
    Network(String),
    /// `captureRequestId` or `refundRequestId` of one of its operations.
    Operation(Kind, String),
}

/// The payments, for one caller at a time.
pub(super) struct Books {
    file: File,
    length: u64,
    lines: u64,
    salt: String,
    order: Vec<String>,
    payments: HashMap<String, LedgerEntry>,
    /// Which payment has another name: its `paymentId`, its network's id, those of its operations.
    names: HashMap<Name, String>,
    struck: HashSet<String>,
    /// The time of a slow answer, if notifications are sent at all.
    notify: Option<Duration>,
    /// Notifications that are still to be sent, in the order in which they were queued.
    notices: BTreeMap<u64, Notice>,
    last_notice: u64,
}

impl Ledger {
    /// Opens the file or makes it. A torn last line is cut off: its answer was never given. Without
    /// `notify` no notification is ever queued; with it, it is how long a delayed one waits.
    pub fn open(path: &Path, notify: Option<Duration>) -> Result<Self, Error> {
        let mut file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)?;
        lock(&file)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        bytes.truncate(whole);
        file.set_len(whole as u64)?;
        let mut books = Books::read(file.try_clone()?, &bytes)?;
        books.notify = notify;
        if books.salt.is_empty() {
            books.begin()?;
            sync_directory(path)?;
        }
        Ok(Self { books: Mutex::new(books), synced: Mutex::new(0), disk: file, queued: Notify::new() })
    }

    /// Runs `change` alone on the books and returns when all that it wrote, or saw, is on disk.
    pub fn with<T>(&self, change: impl FnOnce(&mut Books) -> io::Result<T>) -> io::Result<T> {
        let (outcome, lines, queued) = {
            let mut books = held(&self.books);
            let before = books.last_notice;
            let outcome = change(&mut books)?;
            (outcome, books.lines, books.last_notice != before)
        };
        let mut synced = held(&self.synced);
        if *synced < lines {
            let written = held(&self.books).lines;
            self.disk.sync_data()?;
            *synced = written;
        }
        drop(synced);
        if queued {
            self.queued.notify_one();
        }
        Ok(outcome)
    }

    /// Every payment, in the order of first sight.
    pub fn entries(&self) -> Vec<LedgerEntry> {
        let books = held(&self.books);
        books.order.iter().filter_map(|id| books.payments.get(id)).cloned().collect()
    }
}

impl Books {
    fn read(file: File, bytes: &[u8]) -> Result<Self, Error> {
        let mut books = Self {
            file,
            length: bytes.len() as u64,
            lines: 0,
            salt: String::new(),
            order: Vec::new(),
            payments: HashMap::new(),
            names: HashMap::new(),
            struck: HashSet::new(),
            notify: None,
            notices: BTreeMap::new(),
            last_notice: 0,
        };
        for (number, line) in (1..).zip(bytes.split(|byte| *byte == b'\n')) {
            if line.is_empty() {
                continue;
            }
            let line = serde_json::from_slice(line).map_err(|_| Error::LedgerLine(number))?;
            books.learn(line);
        }
        Ok(books)
    }

    fn begin(&mut self) -> Result<(), Error> {
        let salt = entropy::array::<32>().map_err(|_| Error::NoEntropy)?;
        Ok(self.append(Line::Salt(HEXLOWER.encode(&salt)))?)
    }

    /// The payment of a `paymentRequestId`.
    pub fn find(&self, payment_request_id: &str) -> Option<&LedgerEntry> {
        self.payments.get(payment_request_id)
    }

    /// The payment that has another name.
    pub fn find_named(&self, name: &Name) -> Option<&LedgerEntry> {
        self.names.get(name).and_then(|id| self.payments.get(id))
    }

    /// The first payment that `is` it, for the rarer ways of naming one.
    pub fn find_where(&self, is: impl Fn(&LedgerEntry) -> bool) -> Option<&LedgerEntry> {
        self.payments.values().find(|entry| is(entry))
    }

    /// Writes a payment as it now stands, and queues the notifications that the change calls for.
    pub fn put(&mut self, entry: LedgerEntry, now: Millis) -> io::Result<()> {
        let payment = Box::new(entry);
        let mut notices = match self.notify {
            Some(slow) => notices::of(self.find(&payment.payment_request_id), &payment, slow, now)?,
            None => Vec::new(),
        };
        if notices.is_empty() {
            return self.append(Line::Payment(payment));
        }
        for (notice, number) in notices.iter_mut().zip(self.last_notice + 1..) {
            notice.number = number;
        }
        self.append(Line::Notified { payment, notices })
    }

    /// The notifications that are still to be sent, in the order in which they were queued.
    pub fn notices(&self) -> impl Iterator<Item = &Notice> {
        self.notices.values()
    }

    /// Writes that a notification was sent once more, and when it is due again, if ever.
    pub fn sent(&mut self, notice: u64, due: Option<Millis>) -> io::Result<()> {
        self.append(Line::Sent { notice, due: due.map(|due| due.0) })
    }

    /// The digest by which a card is known again.
    pub fn card_digest(&self, digits: &str) -> String {
        self.digest(&["card", digits])
    }

    /// Remembers that a trigger has struck; false if it had before.
    pub fn strike(&mut self, payment_request_id: &str) -> io::Result<bool> {
        if self.struck.contains(payment_request_id) {
            return Ok(false);
        }
        self.append(Line::Struck(payment_request_id.to_owned()))?;
        Ok(true)
    }

    /// The salted digest of what a repeat must not change. Every part is preceded by its length, so that
    /// no two lists of parts look alike.
    pub fn digest(&self, parts: &[&str]) -> String {
        let mut context = Context::new(&SHA256);
        context.update(self.salt.as_bytes());
        for part in parts {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part.as_bytes());
        }
        HEXLOWER.encode(context.finish().as_ref())
    }

    /// Disk first, memory second: what is not written has not happened.
    fn append(&mut self, line: Line) -> io::Result<()> {
        let mut bytes = serde_json::to_vec(&line)?;
        bytes.push(b'\n');
        if let Err(error) = self.file.write_all(&bytes) {
            // Half a line must not be continued by the next one.
            self.file.set_len(self.length)?;
            return Err(error);
        }
        self.length += bytes.len() as u64;
        self.learn(line);
        Ok(())
    }

    fn learn(&mut self, line: Line) {
        self.lines += 1;
        match line {
            Line::Salt(salt) => self.salt = salt,
            Line::Struck(id) => drop(self.struck.insert(id)),
            Line::Payment(entry) => self.learn_payment(*entry),
            Line::Notified { payment, notices } => {
                self.learn_payment(*payment);
                for notice in notices {
                    self.last_notice = self.last_notice.max(notice.number);
                    self.notices.insert(notice.number, notice);
                }
            }
            Line::Sent { notice, due: None } => drop(self.notices.remove(&notice)),
            Line::Sent { notice, due: Some(due) } => {
                if let Some(notice) = self.notices.get_mut(&notice) {
                    notice.sent = notice.sent.saturating_add(1);
                    notice.due = due;
                }
            }
        }
    }

    fn learn_payment(&mut self, entry: LedgerEntry) {
        let id = entry.payment_request_id.clone();
        for name in names_of(&entry) {
            self.names.insert(name, id.clone());
        }
        if self.payments.insert(id.clone(), entry).is_none() {
            self.order.push(id);
        }
    }
}

fn names_of(entry: &LedgerEntry) -> Vec<Name> {
    let mut names = vec![Name::Payment(entry.payment_id.clone())];
    names.extend(entry.network_transaction_id.clone().map(Name::Network));
    for kind in [Kind::Capture, Kind::Refund] {
        names
            .extend(entry.operations(kind).iter().map(|done| Name::Operation(kind, done.request_id.clone())));
    }
    names
}

/// Two sandboxes on one file would each charge the same id. A stopped one may need a moment to let go.
fn lock(file: &File) -> Result<(), Error> {
    for _ in 0..LOCK_TRIES {
        if file.try_lock().is_ok() {
            return Ok(());
        }
        std::thread::sleep(LOCK_PAUSE);
    }
    Err(Error::LedgerInUse)
}

const LOCK_TRIES: u32 = 40;
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// A new file is durable only when its directory is.
fn sync_directory(path: &Path) -> io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
}
