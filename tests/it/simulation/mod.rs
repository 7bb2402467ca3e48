//! One id, one charge, shown: many seeded schedules of payments, repeats, notifications, captures, refunds,
//! cancels, crashes and reconcilers, on the real handlers and store of both engines, in front of a gateway
//! that loses, delays, refuses and lies. `CARDVAULT_SIM_SEED=7 cargo test --test it simulation` runs one
//! seed and prints its schedule.

#![allow(dead_code, reason = "schedules by hand use a part of this")]

mod check;
mod commands;
mod flows;
mod gateway;
mod ground;
mod named;
mod operator;
mod points;
mod random;
mod schedule;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Mutex, mpsc};
use std::time::Duration;

use ground::Ground;
use random::Random;
use schedule::Simulation;

use super::support::leak::unheard;
use super::support::{left_out, postgres, say, variable};

/// How many seeds the tests run; `CARDVAULT_SIM_SEEDS` says otherwise. On PostgreSQL each takes several times
/// as long, for the connections of processes that come and go.
const SQLITE_SEEDS: u64 = 2_000;
const POSTGRES_SEEDS: u64 = 100;

/// How many run at once, each on a database of its own: much of their time is waiting.
const THREADS: usize = 2;

/// How many seeds share a database, which else outgrows the memory that it is in.
const SHARING: u64 = 100;

/// A seed takes a fraction of a second; one that takes this long will never end, and says which it is.
const STUCK: Duration = Duration::from_secs(600);

/// What a seed came to.
struct Outcome {
    wrong: Vec<String>,
    log: Vec<String>,
}

/// Runs one seed.
fn run(ground: &mut Ground, seed: u64, spoil: impl FnOnce(&mut Simulation<'_>)) -> Outcome {
    unheard(|| run_heard(ground, seed, spoil))
}

fn run_heard(ground: &mut Ground, seed: u64, spoil: impl FnOnce(&mut Simulation<'_>)) -> Outcome {
    let mut choice = Random::habit(seed, "shape");
    let processes = 2 + choice.place(2);
    let grain = choice.pick(&[(25, 0), (25, 30), (25, 200), (25, 600)]);
    let failing = choice.pick(&[(60, 0), (25, 5), (15, 25)]);
    let weather = choice.pick(&[(15, 0), (35, 150), (35, 350), (15, 700)]);
    let steps = 30 + choice.below(90) * (1 + grain / 200);
    let skewed = choice.chance(300);
    let mut simulation = Simulation::new(ground, seed, processes);
    spoil(&mut simulation);
    if choice.chance(500) {
        simulation.open_agreement();
    }
    if skewed {
        let mut inner = simulation.world.lock();
        for process in 0..processes {
            inner.skew.insert(process, i64::try_from(choice.below(3_000)).expect("a time") - 1_500);
        }
    }
    simulation.storm(grain, failing);
    for _ in 0..steps {
        simulation.step(weather);
    }
    simulation.calm_down();
    let wrong = check::check(&mut simulation);
    let log = simulation.log();
    if wrong.is_empty() {
        simulation.end();
    }
    Outcome { wrong, log }
}

fn run_seeds(engine: &str, seeds: u64, ground: impl Fn() -> Option<Ground> + Sync) {
    if let Some(seed) = variable("CARDVAULT_SIM_SEED") {
        let Some(mut ground) = ground() else { return };
        let outcome = run(&mut ground, seed, |_| {});
        outcome.log.iter().for_each(|line| say(line));
        assert!(outcome.wrong.is_empty(), "{engine}, seed {seed}: {:#?}", outcome.wrong);
        return;
    }
    let first = variable("CARDVAULT_SIM_FIRST").unwrap_or(1);
    let seeds = variable("CARDVAULT_SIM_SEEDS").unwrap_or(seeds);
    let going_on = variable("CARDVAULT_SIM_ALL").is_some();
    let started = std::time::Instant::now();
    let (next, failed) = (AtomicU64::new(first), Mutex::new(Vec::new()));
    let tell = |seed: u64| {
        if seed > first && (seed - first).is_multiple_of(SHARING) {
            say(&format!("{engine}: {} of {seeds} seeds after {:?}", seed - first, started.elapsed()));
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                let Some(mut here) = ground() else { return };
                for place in 1.. {
                    if place % SHARING == 0 {
                        here = ground().expect("a database, as before");
                    }
                    let seed = next.fetch_add(1, SeqCst);
                    let over = !going_on && !failed.lock().expect("a list").is_empty();
                    if seed >= first + seeds || over {
                        return;
                    }
                    tell(seed);
                    let watch = watched(engine, seed);
                    let ended = catch_unwind(AssertUnwindSafe(|| run(&mut here, seed, |_| {})));
                    drop(watch);
                    let wrong = ended.map_or_else(|_| vec!["panicked".to_owned()], |outcome| outcome.wrong);
                    if !wrong.is_empty() {
                        say(&format!("{engine}, seed {seed}: {wrong:?}"));
                        failed.lock().expect("a list").push(seed);
                    }
                }
            });
        }
    });
    say(&format!("{engine}: seeds {first} to {} took {:?}", first + seeds - 1, started.elapsed()));
    let failed = failed.into_inner().expect("a list");
    assert!(failed.is_empty(), "{engine}: CARDVAULT_SIM_SEED=n runs one of these again: {failed:?}");
}

/// Ends the program where what is returned is not dropped in time: nothing else ends a thread that waits.
fn watched(engine: &str, seed: u64) -> mpsc::Sender<()> {
    let (over, wait) = mpsc::channel();
    let engine = engine.to_owned();
    std::thread::spawn(move || {
        if wait.recv_timeout(STUCK) == Err(mpsc::RecvTimeoutError::Timeout) {
            say(&format!("{engine}: seed {seed} is stuck; CARDVAULT_SIM_SEED={seed} runs it again"));
            std::process::exit(1);
        }
    });
    over
}

#[test]
fn every_seed_ends_well_on_sqlite() {
    run_seeds("SQLite", SQLITE_SEEDS, || Some(Ground::sqlite()));
}

#[test]
fn every_seed_ends_well_on_postgres() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let fresh = || runtime.block_on(postgres::fresh_quiet_database()).map(Ground::postgres);
    if fresh().is_none() {
        return left_out("simulation");
    }
    run_seeds("PostgreSQL", POSTGRES_SEEDS, fresh);
}

/// One seed is one schedule, however often it runs.
#[test]
fn a_seed_is_one_schedule() {
    let mut ground = Ground::sqlite();
    for seed in 1..=12 {
        let (first, second) = (run(&mut ground, seed, |_| {}), run(&mut ground, seed, |_| {}));
        let pairs = first.log.iter().zip(&second.log);
        let same = pairs.take_while(|(one, other)| one == other).count();
        let after =
            |log: &[String]| log.iter().skip(same.saturating_sub(8)).take(12).cloned().collect::<Vec<_>>();
        assert!(
            first.log == second.log,
            "seed {seed}: {:#?} and {:#?}",
            after(&first.log),
            after(&second.log)
        );
    }
}
