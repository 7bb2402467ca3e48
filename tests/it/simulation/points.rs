//! Every point at which state changes, of every flow: before a statement or transaction that writes, after it
//! and before its doer knows, before a call to the gateway arrives, and before its answer does. At each of them
//! the process dies, or what was to happen fails, or the task that does it is dropped, or it sleeps for so long that
//! the keys which it has sealed under are destroyed meanwhile; afterwards everything is asked for again, time passes,
//! all must be as the model has it, and every record opens.
//!
//! The list stands in docs/durability.md. A flow that passes other points than the list says fails here, so
//! that no point is left out.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use cardvault::store::backend::{Arg, Work};
use cardvault::store::reseal::SealedRow;

use super::THREADS;
use super::check::check;
use super::flows::{FLOWS, Flow};
use super::ground::Ground;
use super::operator::{look_at_records, renew_keys};
use super::schedule::Simulation;
use super::world::{Go, What};
use crate::support::leak::unheard;
use crate::support::{left_out, postgres, say};

const LIST: &str = include_str!("../../../docs/durability.md");

/// What happens at a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Dies,
    Fails(Go),
    Dropped,
    /// It waits while the keys that records are sealed under are rotated and, once all are moved, destroyed. A process
    /// that was about to write has slept; else it has followed the keys.
    Outlasts,
}

/// What can happen where this waits; a call may not leave, or be lost on its way.
fn fates(what: &What) -> Vec<Fate> {
    let failures: &[Go] = match what {
        What::Before(_) | What::After(_) => &[Go::Fail],
        What::Call(_) => &[Go::NotSent, Go::Lost],
        What::Answer(_) => &[Go::Lost],
    };
    let failures = failures.iter().map(|go| Fate::Fails(*go));
    [Fate::Dies, Fate::Dropped, Fate::Outlasts].into_iter().chain(failures).collect()
}

/// Lets a simulation go on to a point; what it passed. It waits there, or nothing waits any more.
fn walk(simulation: &mut Simulation<'_>, until: usize) -> Vec<What> {
    let mut passed = Vec::new();
    while let Some((seq, _, what)) = simulation.waiting().into_iter().next() {
        if what != What::Before(Work::Read) {
            if passed.len() == until {
                break;
            }
            passed.push(what);
        }
        simulation.release(seq, Go::On);
    }
    passed
}

/// A flow in a simulation of its own, at its beginning.
fn begin<'g>(ground: &'g mut Ground, flow: &Flow) -> (Simulation<'g>, String) {
    let mut simulation = Simulation::new(ground, 0, 1);
    let about = (flow.prepare)(&mut simulation);
    simulation.storm(1000, 0);
    simulation.release_all(|_| false);
    (flow.start)(&mut simulation, &about);
    (simulation, about)
}

/// The points of a flow, and what its callers are told.
fn points_of(ground: &mut Ground, flow: &Flow) -> (Vec<What>, Vec<u16>) {
    let (mut simulation, _) = begin(ground, flow);
    let passed = walk(&mut simulation, usize::MAX);
    simulation.calm_down();
    let told = simulation.statuses();
    // Whoever numbers events numbers all there are.
    simulation.sequence();
    simulation.end();
    (passed, told)
}

/// A flow's points as the list has them: what has both its ends is named once.
pub fn shown(points: &[What]) -> String {
    let name = |what: &What| match what {
        What::Before(work) | What::After(work) => format!("{work:?}").to_lowercase(),
        What::Call(name) | What::Answer(name) => name.split(' ').next().unwrap_or_default().to_owned(),
    };
    let mut words = Vec::new();
    let mut left = points.iter().peekable();
    while let Some(what) = left.next() {
        let end = match what {
            What::Before(work) => What::After(*work),
            What::Call(name) => What::Answer(name.clone()),
            What::After(_) | What::Answer(_) => {
                words.push(format!("({} ends)", name(what)));
                continue;
            }
        };
        if left.next_if(|next| **next == end).is_some() {
            words.push(name(what));
        } else {
            words.push(format!("({} begins)", name(what)));
        }
    }
    words.join(", ")
}

/// A list of the document, by flow, with the words in which an engine says what some of its words stand for.
fn listed(list: &str, words: &Words) -> BTreeMap<&'static str, String> {
    let lines = LIST.split(&format!("```{list}\n")).nth(1).and_then(|rest| rest.split("```").next());
    let lines = lines.expect("a list of points in docs/durability.md").lines();
    let of_engine = |points: &str| {
        let in_words = |point: &str| {
            words.iter().fold(point.to_owned(), |point, (word, stands_for)| point.replace(word, stands_for))
        };
        points.split(", ").map(in_words).filter(|point| !point.is_empty()).collect::<Vec<_>>().join(", ")
    };
    lines
        .map(|line| line.split_once(": ").expect("a flow and its points"))
        .map(|(flow, points)| (flow, of_engine(points)))
        .collect()
}

/// Words of the list, and what each stands for where an engine differs.
pub type Words = [(&'static str, &'static str)];

/// Runs a flow, has something happen at a point, and tells what is wrong in the end.
fn run(
    ground: &mut Ground,
    flow: &Flow,
    (point, fate): (usize, Fate),
    usually_told: &[u16],
) -> (Vec<String>, Vec<String>) {
    let (mut simulation, about) = begin(ground, flow);
    let merchant = simulation.merchant.clone();
    let mine = move |row: &SealedRow| row.merchant == merchant || row.merchant.as_str() == "nobody";
    let mut wrong = Vec::new();
    walk(&mut simulation, point);
    let waiting = simulation.waiting();
    let Some((seq, _, what)) = waiting.first() else {
        return (vec!["is not reached".to_owned()], Vec::new());
    };
    match fate {
        Fate::Dies => {
            simulation.crash(0);
            simulation.start(0);
        }
        Fate::Fails(go) => simulation.release(*seq, go),
        Fate::Dropped => {
            simulation.hang_up_all();
            simulation.release(*seq, Go::Dropped);
        }
        Fate::Outlasts => {
            if let Err(error) = renew_keys(&simulation) {
                return (vec![format!("the keys cannot be renewed: {error}")], simulation.log());
            }
            if !matches!(what, What::Before(_)) {
                let vault = simulation.process(0).vault.clone();
                simulation.begin(0, "follows the keys", async move {
                    vault.keys.follow().await.expect("keys");
                });
            }
            simulation.release(*seq, Go::On);
            // What was written just now, before it goes.
            wrong.extend(look_at_records(&simulation, &mine));
        }
    }
    simulation.calm_down();
    let told = simulation.statuses();
    if fate == Fate::Outlasts && told != usually_told {
        wrong.push(format!("callers are told {told:?}, and else {usually_told:?}"));
    }
    wrong.extend((flow.again)(&mut simulation, &about));
    simulation.calm_down();
    wrong.extend(check(&mut simulation));
    if fate == Fate::Outlasts {
        wrong.extend(look_at_records(&simulation, &mine));
    }
    let log = simulation.log();
    if wrong.is_empty() {
        simulation.end();
    }
    (wrong, log)
}

/// What came of a walk.
#[derive(Default)]
pub struct Outcome {
    pub failed: Vec<String>,
    pub points: usize,
    pub runs: usize,
}

/// Has everything happen at every point of a flow.
fn walk_through(ground: &mut Ground, flow: &Flow, listed: Option<&str>) -> Outcome {
    let (passed, told) = points_of(ground, flow);
    let found = shown(&passed);
    let mut outcome = Outcome { points: passed.len(), ..Outcome::default() };
    if listed != Some(found.as_str()) {
        outcome.failed.push(format!("the list should say: {}: {found}", flow.name));
    }
    for (place, what) in passed.iter().enumerate() {
        for fate in fates(what) {
            outcome.runs += 1;
            let (wrong, log) = run(ground, flow, (place, fate), &told);
            if !wrong.is_empty() {
                outcome.failed.push(format!("{}, point {place} {what:?}, {fate:?}: {wrong:?}", flow.name));
                if std::env::var_os("CARDVAULT_SIM_LOG").is_some() {
                    log.iter().for_each(|line| say(line));
                }
            }
        }
    }
    outcome
}

/// Walks through all things of a kind, each on a ground of its own: keys are renewed there again and again, and what
/// is moved to them should be little. `list` is what the document says of their points.
pub fn every_point<T: Sync>(
    engine: &str,
    (kind, things): (&str, &[T]),
    (list, words): (&str, &Words),
    ground: impl Fn() -> Option<Ground> + Sync,
    name: impl Fn(&T) -> &'static str + Sync,
    walk: impl Fn(&mut Ground, &T, Option<&str>) -> Outcome + Sync,
) {
    let (started, list) = (Instant::now(), listed(list, words));
    let (next, all) = (AtomicUsize::new(0), Mutex::new(Outcome::default()));
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                while let Some(thing) = things.get(next.fetch_add(1, SeqCst)) {
                    let Some(mut ground) = ground() else { return };
                    let points = list.get(name(thing)).map(String::as_str);
                    let outcome = unheard(|| walk(&mut ground, thing, points));
                    let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
                    all.failed.extend(outcome.failed);
                    all.points += outcome.points;
                    all.runs += outcome.runs;
                }
            });
        }
    });
    let Outcome { mut failed, points, runs } = all.into_inner().unwrap_or_else(PoisonError::into_inner);
    let unknown = list.keys().filter(|known| things.iter().all(|thing| name(thing) != **known));
    failed.extend(unknown.map(|name| format!("the list has what there is not: {name}")));
    let (many, took) = (things.len(), started.elapsed());
    say(&format!("{engine}: {runs} runs at {points} points of {many} {kind} in {took:?}"));
    assert!(failed.is_empty(), "{engine}: {} failed: {failed:#?}", failed.len());
}

fn every_flow(engine: &str, words: &Words, ground: impl Fn() -> Option<Ground> + Sync) {
    every_point(engine, ("flows", FLOWS), ("points", words), ground, |flow| flow.name, walk_through);
}

#[test]
fn every_point_ends_well_on_sqlite() {
    every_flow("SQLite", &[("alone", "transaction"), ("number", "")], || Some(Ground::sqlite()));
}

#[test]
fn every_point_ends_well_on_postgres() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let fresh = || runtime.block_on(postgres::fresh_quiet_database()).map(Ground::postgres);
    if fresh().is_none() {
        return left_out("simulation::points");
    }
    every_flow("PostgreSQL", &[("alone", "write"), ("number", "write, transaction")], fresh);
}

/// A number that a query on the merchant's rows gives.
pub fn count(simulation: &Simulation<'_>, sql: &'static str) -> i64 {
    let merchant = simulation.merchant.as_str().to_owned();
    simulation.ground.look(async |db| {
        let row = db.find(sql, &[Arg::Text(&merchant)]).await.expect("a query").expect("a row");
        row.int("many").expect("a number")
    })
}
