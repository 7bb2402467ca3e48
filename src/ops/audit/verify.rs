//! Tells whether the audit trail is whole: no row altered, removed or put elsewhere; and, with checkpoints
//! that were kept elsewhere, none cut off at a chain's end and no chain missing.

use std::collections::{BTreeMap, HashMap};

use crate::base::clock::Millis;
use crate::base::ids::DekId;
use crate::base::json::{Object, items, string};
use crate::crypto::audit_mac::{self, BEGINNING};
use crate::model::audit::{AuditRow, CLOSE, Head, OPEN, rest_input};
use crate::ops::error::OpError;
use crate::ops::keys::DataKeys;
use crate::store::audit as rows;
use crate::store::backend::Db;

use super::closed_before;

/// Rows that are read at once.
const PAGE: i64 = 1000;

/// What a look at the whole trail came to.
#[derive(Debug, Default)]
pub struct Report {
    /// How many rows were read.
    pub rows: u64,
    /// In how many chains.
    pub chains: u64,
    /// Chains that do not end with their closing row: their process runs, or was killed.
    pub open: Vec<String>,
    /// How many checkpoints were compared.
    pub checkpoints: u64,
    /// When the newest of them was written.
    pub newest: Option<Millis>,
    /// Rows that are newer than it: nothing would show that such a row was cut off at its chain's end.
    pub unproven: u64,
    /// What is wrong; nothing, where the trail is whole.
    pub findings: Vec<String>,
}

/// A checkpoint that was kept.
struct Checkpoint {
    at: Millis,
    audit_key: DekId,
    /// The chains that it names, by their places in [`Kept::chains`], in order.
    named: Vec<usize>,
    /// How many chains had been closed, their rows, and the digest of their heads.
    rest: (u64, u64, Vec<u8>),
}

/// Checkpoints that were kept: what each says.
#[derive(Default)]
struct Kept {
    /// In the order in which they were written, as far as their file has it.
    all: Vec<Checkpoint>,
    /// The chains that any of them names: a place for each, and the place in `all` of the first that names it.
    chains: HashMap<String, (usize, usize)>,
    /// The heads that any of them names: the MAC of a chain's row, and when it was said.
    heads: HashMap<(String, i64), (Vec<u8>, Millis)>,
    /// The newest one: when it was written, and the rows that it names, by their chains.
    newest: Option<(Millis, HashMap<String, i64>)>,
}

impl Kept {
    /// Whether the newest checkpoint vouches for a row: by naming it or one after it, or, of a chain that was
    /// closed long before, by its digest.
    fn proves(&self, row: &AuditRow) -> bool {
        let Some((at, heads)) = &self.newest else { return false };
        match heads.get(&row.chain) {
            Some(head) => row.seq <= *head,
            None => row.at < closed_before(*at),
        }
    }

    /// Adds one, and what it names.
    fn add(&mut self, read: Read) {
        let mut named = Vec::with_capacity(read.heads.len());
        for head in read.heads {
            let next = (self.chains.len(), self.all.len());
            named.push(self.chains.entry(head.chain).or_insert(next).0);
        }
        named.sort_unstable();
        self.all.push(Checkpoint { at: read.at, audit_key: read.audit_key, named, rest: read.rest });
    }

    /// Whether a checkpoint names a chain.
    fn names(&self, checkpoint: &Checkpoint, chain: &str) -> bool {
        self.chains.get(chain).is_some_and(|(place, _)| checkpoint.named.binary_search(place).is_ok())
    }

    /// Whether the first checkpoint that names a chain comes after the one at `place`.
    fn is_named_later(&self, place: usize, chain: &str) -> bool {
        self.chains.get(chain).is_some_and(|(_, first)| *first > place)
    }

    /// Whether a checkpoint after the one at `place` does not name a chain that it would name, had it been there.
    fn is_missed_later(&self, place: usize, chain: &str, closed: Millis) -> bool {
        let mut after = self.all.iter().skip(place + 1);
        after.any(|later| closed >= closed_before(later.at) && !self.names(later, chain))
    }
}

/// Reads the whole trail and compares it with `checkpoints`: lines of the log, or the checkpoints alone.
pub async fn verify(
    db: &Db,
    keys: &DataKeys,
    checkpoints: impl Iterator<Item = std::io::Result<String>>,
) -> Result<Report, OpError> {
    let mut report = Report::default();
    let mut kept = read_checkpoints(keys, checkpoints, &mut report).await?;
    let closed = walk(db, keys, &mut kept, &mut report).await?;
    for ((chain, seq), (_, at)) in &kept.heads {
        report.findings.push(format!(
            "chain {chain}: row {seq} is missing, which the checkpoint of {} names; the chain was cut off or removed",
            at.rfc3339()
        ));
    }
    for place in 0..kept.all.len() {
        compare_rest(keys, &kept, place, &closed, &mut report).await?;
    }
    report.newest = kept.newest.map(|(at, _)| at);
    report.findings.sort();
    Ok(report)
}

/// A chain on the way.
struct Walked {
    chain: String,
    next: i64,
    mac: [u8; 32],
    at: Millis,
    is_closed: bool,
}

/// Walks every chain; gives those that are closed, with the time of their closing row.
async fn walk(
    db: &Db,
    keys: &DataKeys,
    kept: &mut Kept,
    report: &mut Report,
) -> Result<BTreeMap<String, (Head, Millis)>, OpError> {
    let mut closed = BTreeMap::new();
    let mut here: Option<Walked> = None;
    let mut after = (String::new(), -1);
    loop {
        let page = rows::list_rows(db, (&after.0, after.1), PAGE).await?;
        let Some((last, _)) = page.last() else { break };
        after = (last.chain.clone(), last.seq);
        for (row, mac) in &page {
            report.rows += 1;
            report.unproven += u64::from(!kept.proves(row));
            let walked = match here.take() {
                Some(walked) if walked.chain == row.chain => walked,
                other => {
                    end(other, &mut closed, report);
                    report.chains += 1;
                    Walked { chain: row.chain.clone(), next: 0, mac: BEGINNING, at: row.at, is_closed: false }
                }
            };
            if let Some((said, at)) = kept.heads.remove(&(row.chain.clone(), row.seq))
                && said != *mac
            {
                report.findings.push(format!(
                    "chain {}: row {} is not the one that the checkpoint of {} names",
                    row.chain,
                    row.seq,
                    at.rfc3339()
                ));
            }
            here = Some(step(keys, walked, row, mac, report).await?);
        }
    }
    end(here, &mut closed, report);
    Ok(closed)
}

async fn step(
    keys: &DataKeys,
    walked: Walked,
    row: &AuditRow,
    mac: &[u8],
    report: &mut Report,
) -> Result<Walked, OpError> {
    let (chain, seq) = (&row.chain, row.seq);
    let mut before = walked.mac;
    if seq != walked.next {
        report.findings.push(format!("chain {chain}: rows {} to {} are missing", walked.next, seq - 1));
    } else {
        match DekId::parse(&row.key_id) {
            None => report.findings.push(format!("chain {chain}: row {seq} names no key")),
            Some(id) => match keys.by_id(&id).await {
                Ok(key) if audit_mac::verify_row(&key, &before, &row.canonical(), mac) == Ok(true) => {}
                Ok(_) => report
                    .findings
                    .push(format!("chain {chain}: row {seq} was altered, or is not where it was written")),
                Err(OpError::Internal(_)) => {
                    report.findings.push(format!("chain {chain}: row {seq}: its key {id} is gone"));
                }
                Err(error) => return Err(error),
            },
        }
    }
    if (seq == 0) != (row.action == OPEN) || walked.is_closed {
        report.findings.push(format!("chain {chain}: row {seq} cannot stand where it stands"));
    }
    // The next row is judged by what stands here, so that one altered row is one finding.
    before.copy_from_slice(&<[u8; 32]>::try_from(mac).unwrap_or(BEGINNING));
    Ok(Walked { chain: walked.chain, next: seq + 1, mac: before, at: row.at, is_closed: row.action == CLOSE })
}

fn end(walked: Option<Walked>, closed: &mut BTreeMap<String, (Head, Millis)>, report: &mut Report) {
    let Some(walked) = walked else { return };
    if !walked.is_closed {
        report.open.push(walked.chain);
        return;
    }
    let head = Head { chain: walked.chain.clone(), seq: walked.next - 1, mac: walked.mac.to_vec() };
    closed.insert(walked.chain, (head, walked.at));
}

async fn read_checkpoints(
    keys: &DataKeys,
    lines: impl Iterator<Item = std::io::Result<String>>,
    report: &mut Report,
) -> Result<Kept, OpError> {
    let mut kept = Kept::default();
    for (number, line) in (1..).zip(lines) {
        let line = match line {
            Ok(line) => line,
            Err(error) => {
                report.findings.push(format!("checkpoints, line {number}: {error}"));
                break;
            }
        };
        let Some(signed) = signed_checkpoint(&line) else { continue };
        let read = match Read::parse(&signed) {
            Some(read) => read,
            None => {
                report.findings.push(format!("checkpoints, line {number}: this cannot be read"));
                continue;
            }
        };
        let genuine = match keys.by_id(&read.key).await {
            Ok(key) => audit_mac::public_key(&key).is_ok_and(|public| {
                public[..] == read.public
                    && audit_mac::verify_signature(&public, read.text.as_bytes(), &read.signature)
            }),
            Err(OpError::Internal(_)) => false,
            Err(error) => return Err(error),
        };
        if !genuine {
            report.findings.push(format!("checkpoints, line {number}: its signature is not this vault's"));
            continue;
        }
        report.checkpoints += 1;
        if kept.newest.as_ref().is_none_or(|(at, _)| *at < read.at) {
            let heads = read.heads.iter().map(|head| (head.chain.clone(), head.seq));
            kept.newest = Some((read.at, heads.collect()));
        }
        for head in &read.heads {
            let place = (head.chain.clone(), head.seq);
            let said = kept.heads.entry(place).or_insert((head.mac.clone(), read.at));
            if said.0 != head.mac {
                report.findings.push(format!("checkpoints, line {number}: an earlier one says otherwise"));
            }
        }
        kept.add(read);
    }
    Ok(kept)
}

/// The signed checkpoint in a line, which may be a line of the log.
fn signed_checkpoint(line: &str) -> Option<String> {
    let object = Object::parse(line.trim())?;
    let is_signed =
        |object: &Object<'_>| object.get("signature").is_some() && object.get("checkpoint").is_some();
    if is_signed(&object) {
        return Some(line.trim().to_owned());
    }
    let fields = Object::parse(object.get("fields")?)?;
    let inner = string(fields.get("checkpoint")?)?.into_owned();
    Object::parse(&inner).is_some_and(|inner| is_signed(&inner)).then_some(inner)
}

struct Read {
    text: String,
    key: DekId,
    audit_key: DekId,
    public: Vec<u8>,
    signature: Vec<u8>,
    at: Millis,
    heads: Vec<Head>,
    rest: (u64, u64, Vec<u8>),
}

impl Read {
    fn parse(signed: &str) -> Option<Self> {
        let hex = |raw: &str| data_encoding::HEXLOWER.decode(string(raw)?.as_bytes()).ok();
        let signed = Object::parse(signed)?;
        let text = string(signed.get("checkpoint")?)?.into_owned();
        let inner = Object::parse(&text)?;
        if string(inner.get("version")?)? != "checkpoint/1" {
            return None;
        }
        let mut heads = Vec::new();
        for item in items(inner.get("heads")?)? {
            let head = Object::parse(item)?;
            heads.push(Head {
                chain: string(head.get("chain")?)?.into_owned(),
                seq: head.get("seq")?.parse().ok()?,
                mac: hex(head.get("mac")?)?,
            });
        }
        let rest = Object::parse(inner.get("rest")?)?;
        let rest =
            (rest.get("chains")?.parse().ok()?, rest.get("rows")?.parse().ok()?, hex(rest.get("mac")?)?);
        Some(Self {
            key: DekId::parse(&string(signed.get("keyId")?)?)?,
            audit_key: DekId::parse(&string(signed.get("auditKeyId")?)?)?,
            public: hex(signed.get("publicKey")?)?,
            signature: hex(signed.get("signature")?)?,
            at: Millis::parse_rfc3339(&string(inner.get("at")?)?)?,
            heads,
            rest,
            text: text.clone(),
        })
    }
}

/// Tells of a chain with this closing time whether it was closed after a checkpoint.
type Later<'a> = &'a dyn Fn(&str, Millis) -> bool;

/// Compares the chains that were closed well before a checkpoint with what it says of them.
///
/// Where a clock was set back, a chain that was closed later has an earlier time. Those that the checkpoint names
/// itself were not closed then. Others are left out if that makes it right: its digest is of exactly one set of
/// chains, so whichever is tried, none that belongs to it can be missing or altered.
async fn compare_rest(
    keys: &DataKeys,
    kept: &Kept,
    place: usize,
    closed: &BTreeMap<String, (Head, Millis)>,
    report: &mut Report,
) -> Result<(), OpError> {
    let Some(checkpoint) = kept.all.get(place) else { return Ok(()) };
    let since = closed_before(checkpoint.at);
    let old: Vec<(&Head, Millis)> = closed
        .values()
        .filter(|(head, at)| *at < since && !kept.names(checkpoint, &head.chain))
        .map(|(head, at)| (head, *at))
        .collect();
    let key = match keys.by_id(&checkpoint.audit_key).await {
        Ok(key) => key,
        Err(OpError::Internal(_)) => {
            report.findings.push(format!(
                "the checkpoint of {}: its key {} is gone",
                checkpoint.at.rfc3339(),
                checkpoint.audit_key
            ));
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let counts = |heads: &[&Head]| {
        let rows: u64 = heads.iter().map(|head| u64::try_from(head.seq + 1).unwrap_or(0)).sum();
        (u64::try_from(heads.len()).unwrap_or(u64::MAX), rows)
    };
    let without = |later: Later<'_>| -> Vec<&Head> {
        old.iter().filter(|(head, at)| !later(&head.chain, *at)).map(|(head, _)| *head).collect()
    };
    let named = |chain: &str, _: Millis| kept.is_named_later(place, chain);
    let missed = |chain: &str, at: Millis| kept.is_missed_later(place, chain, at);
    let either = |chain: &str, at: Millis| named(chain, at) || missed(chain, at);
    let tries: [Later<'_>; 4] = [&|_, _| false, &named, &missed, &either];
    for later in tries {
        let heads = without(later);
        if counts(&heads) == (checkpoint.rest.0, checkpoint.rest.1)
            && audit_mac::verify_row(&key, &BEGINNING, &rest_input(heads.into_iter()), &checkpoint.rest.2)?
        {
            return Ok(());
        }
    }
    let (chains, rows) = counts(&without(&|_, _| false));
    report.findings.push(format!(
        "the checkpoint of {} knew {} closed chains with {} rows; there are {chains} with {rows}",
        checkpoint.at.rfc3339(),
        checkpoint.rest.0,
        checkpoint.rest.1
    ));
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::base::clock::{SetClock, SharedClock};
    use crate::base::ids::InstanceId;
    use crate::crypto::kek::{Keks, file};
    use crate::metrics::AuditTally;
    use crate::model::audit::Entry;
    use crate::ops::audit::{Audit, checkpoint};
    use crate::ops::keys::KeyPolicy;
    use crate::store::backend::{Arg, Options};
    use crate::store::migrate;

    const MINUTE: i64 = 60_000;

    /// A trail whose clock is set by hand.
    struct Trail {
        db: Db,
        keys: DataKeys,
        hands: Arc<SetClock>,
        lines: Vec<String>,
        _folder: tempfile::TempDir,
    }

    impl Trail {
        async fn begin() -> Self {
            let folder = tempfile::tempdir().expect("a folder");
            let url = format!("sqlite:{}", folder.path().join("cardvault.db").display());
            let db = Db::open(&Options { url, password_file: None }).await.expect("a database");
            migrate::run(&db).await.expect("a schema");
            let path = folder.path().join("keyring.toml");
            let start = Millis(1_772_366_400_000);
            file::create_new(&path, &file::generate(start).expect("entropy")).expect("written");
            let kek = Arc::new(Keks::open(&path, None).unwrap_or_else(|error| panic!("{error}")));
            let hands = SetClock::at(start);
            let clock: SharedClock = hands.clone();
            let keys = DataKeys::start(db.clone(), kek, &clock, KeyPolicy::default()).await.expect("keys");
            Self { db, keys, hands, lines: Vec::new(), _folder: folder }
        }

        /// A process with a row.
        async fn process(&self) -> Audit {
            let instance = InstanceId::make().expect("entropy");
            let audit = Audit::new(instance, self.hands.clone(), AuditTally::default());
            audit.note_alone(&self.db, &self.keys, &Entry::done("check", "it")).await.expect("a row");
            audit
        }

        async fn close(&self, audit: &Audit) {
            audit.close(&self.db, &self.keys).await;
        }

        fn pass(&self, minutes: i64) {
            self.hands.wall.fetch_add(minutes * MINUTE, Ordering::SeqCst);
        }

        async fn checkpoint(&mut self) {
            let now = Millis(self.hands.wall.load(Ordering::SeqCst));
            self.lines.push(checkpoint(&self.db, &self.keys, now).await.expect("a checkpoint"));
        }

        async fn findings(&self) -> Vec<String> {
            let lines = self.lines.iter().cloned().map(Ok);
            let report = verify(&self.db, &self.keys, lines).await.expect("a look");
            assert_eq!(usize::try_from(report.checkpoints), Ok(self.lines.len()));
            report.findings
        }
    }

    /// A clock that is set back gives what comes later an earlier time; that is no wrong trail. What is missing is
    /// found all the same.
    #[tokio::test]
    async fn a_clock_that_was_set_back_makes_no_trail_wrong() {
        let mut trail = Trail::begin().await;
        let old = trail.process().await;
        trail.close(&old).await;
        trail.pass(30);
        let live = trail.process().await;
        trail.checkpoint().await;
        trail.pass(1);
        let seen_once = trail.process().await;
        trail.checkpoint().await;
        assert_eq!(trail.findings().await, Vec::<String>::new());
        // Back, to before what was closed last; what lives goes on, and ends before it was last seen.
        trail.pass(-20);
        trail.close(&live).await;
        trail.close(&seen_once).await;
        assert_eq!(trail.findings().await, Vec::<String>::new(), "closed, and no checkpoint since");
        // A command that nobody saw before, one that comes between two checkpoints, and one after the last.
        let short = trail.process().await;
        trail.close(&short).await;
        trail.checkpoint().await;
        assert_eq!(trail.findings().await, Vec::<String>::new(), "a short one before the next checkpoint");
        trail.pass(1);
        let short = trail.process().await;
        trail.close(&short).await;
        assert_eq!(trail.findings().await, Vec::<String>::new(), "a short one after the last checkpoint");
        for _ in 0..25 {
            trail.pass(1);
            trail.checkpoint().await;
        }
        assert_eq!(trail.findings().await, Vec::<String>::new(), "the time was caught up with");
        // The chain that was closed first is in every digest.
        let gone = format!("{}/%", old.instance);
        trail
            .db
            .execute("delete from audit where chain like $1", &[Arg::Text(&gone)])
            .await
            .expect("removed");
        assert_eq!(trail.findings().await.len(), trail.lines.len());
    }

    #[test]
    fn checkpoints_are_found_in_the_log_and_alone() {
        let signed = r#"{"checkpoint":"{}","signature":"00"}"#;
        assert_eq!(signed_checkpoint(signed).as_deref(), Some(signed));
        let line = serde_json::json!({ "level": "INFO", "fields": { "checkpoint": signed, "message": "m" } });
        assert_eq!(signed_checkpoint(&line.to_string()).as_deref(), Some(signed));
        for other in ["", "x", "{}", r#"{"fields":{"message":"m"}}"#, r#"{"fields":{"checkpoint":"x"}}"#] {
            assert_eq!(signed_checkpoint(other), None, "{other}");
        }
        assert!(Read::parse(signed).is_none());
    }
}
