//! What the seeds found, each as a schedule of its own; and that the checks find what is wrong.

use std::pin::pin;
use std::sync::PoisonError;
use std::task::{Context, Waker};

use cardvault::base::secret::SecretBuf;
use cardvault::gateway::{Call, Gateway};
use cardvault::store::backend::Work;

use super::check::check;
use super::gateway::{Sabotage, State, Wire};
use super::ground::Ground;
use super::run;
use super::schedule::{Kind, Simulation};
use super::world::{Go, What};
use crate::support::{left_out, postgres};

/// Runs a schedule by hand on both engines, with two processes in which everything stops at its gate.
fn on_both(name: &str, schedule: impl Fn(&mut Simulation<'_>)) {
    let mut grounds = vec![Ground::sqlite()];
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    match runtime.block_on(postgres::fresh_quiet_database()) {
        Some(url) => grounds.push(Ground::postgres(url)),
        None => left_out(name),
    }
    for ground in &mut grounds {
        let mut simulation = Simulation::new(ground, 0, 2);
        schedule(&mut simulation);
        simulation.calm_down();
        let wrong = check(&mut simulation);
        assert!(wrong.is_empty(), "{wrong:#?}\n{:#?}", simulation.log());
        simulation.end();
    }
}

/// What the gateway comes to for the next payment.
pub fn next_is(simulation: &Simulation<'_>, state: State) {
    comes_to(simulation, &format!("{}PAY{}", simulation.prefix, simulation.next_name + 1), state);
}

/// What the gateway comes to for a payment.
pub fn comes_to(simulation: &Simulation<'_>, id: &str, state: State) {
    simulation.model.outcomes.lock().unwrap_or_else(PoisonError::into_inner).insert(id.to_owned(), state);
}

/// Pays with a card and its CVV once, so that the card is known.
pub fn know_the_card(simulation: &mut Simulation<'_>) {
    next_is(simulation, State::Paid);
    simulation.pay(0, Kind::Typed, 100, false);
}

fn is_call(what: &What) -> bool {
    matches!(what, What::Call(_))
}

/// A cancel is opened between the read and the write of a settlement, and its process dies before it is
/// sent: the settlement took the cancel's look away, so that nobody ever sent it.
#[test]
fn a_cancel_that_opens_while_its_payment_settles_is_sent() {
    on_both("a_cancel_that_opens_while_its_payment_settles_is_sent", |simulation| {
        next_is(simulation, State::Paid);
        simulation.storm(1000, 0);
        let id = simulation.pay(0, Kind::Reference, 500, false);
        assert!(simulation.go_on(0, |what| matches!(what, What::Answer(_))));
        assert!(simulation.release_first(Go::On, |what| matches!(what, What::Answer(_))));
        assert!(simulation.go_on(0, |what| matches!(what, What::Before(Work::Transaction | Work::Write))));
        simulation.cancel(1, &id);
        assert!(simulation.go_on(1, is_call));
        simulation.crash(1);
        simulation.go_on(0, |_| false);
    });
}

/// A look finds a payment unclear, and a notification tells that it is paid before the look's cancel is
/// opened: the cancel was sent all the same, with nothing on record that could learn of its effect.
#[test]
fn a_payment_that_was_paid_meanwhile_is_not_cancelled() {
    on_both("a_payment_that_was_paid_meanwhile_is_not_cancelled", |simulation| {
        next_is(simulation, State::Paid);
        simulation.storm(1000, 0);
        let id = simulation.pay(0, Kind::Reference, 500, false);
        assert!(simulation.go_on(0, |what| matches!(what, What::Answer(_))));
        simulation.crash(0);
        simulation.start(0);
        simulation.pass(70_000, false);
        simulation.reconcile(1);
        assert!(simulation.go_on(1, |what| matches!(what, What::Answer(_))));
        assert!(simulation.release_first(Go::Lost, |what| matches!(what, What::Answer(_))));
        assert!(simulation.go_on(1, |what| *what == What::Before(Work::Write)), "a cancel is to be opened");
        simulation.deliver(0, 0, false, false);
        simulation.go_on(0, |_| false);
        assert!(!simulation.go_on(1, is_call), "a cancel is sent");
        assert_eq!(simulation.model.ledger().charges[&id].state, State::Paid);
    });
}

/// A cancel that is sent again arrives late, when its payment has been found paid: for how long its effect is
/// waited for was counted from the first time.
#[test]
fn a_cancel_that_is_sent_again_may_arrive_late() {
    on_both("a_cancel_that_is_sent_again_may_arrive_late", |simulation| {
        next_is(simulation, State::Paid);
        simulation.storm(1000, 0);
        let id = simulation.pay(0, Kind::Reference, 500, false);
        assert!(simulation.go_on(0, |what| matches!(what, What::Answer(_))));
        simulation.crash(0);
        simulation.start(0);
        for (after, arrives) in [(70_000, Go::Lost), (12 * 60_000, Go::Late(13 * 60_000))] {
            simulation.pass(after, false);
            simulation.reconcile(1);
            assert!(simulation.go_on(1, is_call));
            assert!(simulation.release_first(Go::Lost, is_call), "an inquiry");
            assert!(
                simulation.go_on(1, |what| matches!(what, What::Call(name) if name.starts_with("Cancel")))
            );
            assert!(simulation.release_first(arrives, is_call));
            simulation.go_on(1, |_| false);
        }
        simulation.deliver(0, 0, false, false);
        simulation.go_on(0, |_| false);
        simulation.pass(4 * 60_000, false);
        simulation.reconcile(1);
        assert!(simulation.go_on(1, is_call));
        simulation.go_on(1, |_| false);
        assert_eq!(simulation.model.ledger().charges[&id].state, State::Paid);
    });
}

/// A late cancel has arrived when a late notification says that its payment is paid, and the next inquiry has
/// no answer: the cancel was taken for one that came to nothing.
#[test]
fn a_cancel_came_to_nothing_only_where_the_gateway_says_so() {
    on_both("a_cancel_came_to_nothing_only_where_the_gateway_says_so", |simulation| {
        next_is(simulation, State::Paid);
        simulation.storm(1000, 0);
        let id = simulation.pay(0, Kind::Reference, 500, false);
        assert!(simulation.go_on(0, |what| matches!(what, What::Answer(_))));
        simulation.crash(0);
        simulation.start(0);
        simulation.pass(70_000, false);
        simulation.reconcile(1);
        assert!(simulation.go_on(1, is_call));
        assert!(simulation.release_first(Go::Lost, is_call), "an inquiry");
        assert!(simulation.go_on(1, is_call));
        assert!(simulation.release_first(Go::Late(60_000), is_call), "a cancel");
        simulation.go_on(1, |_| false);
        simulation.pass(16 * 60_000, false);
        simulation.deliver(0, 0, false, false);
        simulation.go_on(0, |_| false);
        simulation.pass(10_000, false);
        simulation.reconcile(1);
        assert!(simulation.go_on(1, is_call));
        assert!(simulation.release_first(Go::Lost, is_call), "an inquiry");
        simulation.go_on(1, |_| false);
        assert_eq!(simulation.model.ledger().charges[&id].state, State::Cancelled);
    });
}

/// An inquiry and a cancel find nothing, and their look goes on long after: the payment arrived in between,
/// and was taken for one that does not exist.
#[test]
fn absence_counts_from_when_the_gateway_was_asked() {
    on_both("absence_counts_from_when_the_gateway_was_asked", |simulation| {
        know_the_card(simulation);
        next_is(simulation, State::Paid);
        simulation.storm(1000, 0);
        simulation.pay(0, Kind::Typed, 500, false);
        assert!(simulation.go_on(0, is_call));
        assert!(simulation.release_first(Go::Late(10 * 60_000), is_call));
        simulation.crash(0);
        simulation.start(0);
        simulation.pass(5 * 60_000, false);
        simulation.reconcile(1);
        assert!(simulation.go_on(1, |what| matches!(what, What::Call(name) if name.starts_with("Cancel"))));
        assert!(simulation.go_on(1, |what| matches!(what, What::Answer(_))));
        assert!(simulation.release_first(Go::On, |what| matches!(what, What::Answer(_))));
        assert!(simulation.go_on(1, |what| what.is_database()));
        simulation.pass(14 * 60_000, true);
        simulation.go_on(1, |_| false);
    });
}

/// A process stands still between the commit of a payment and its first byte, until others have given it up:
/// it sent the payment, with its CVV, after their cancel.
#[test]
fn a_payment_is_not_sent_after_its_time() {
    on_both("a_payment_is_not_sent_after_its_time", |simulation| {
        know_the_card(simulation);
        simulation.storm(1000, 0);
        let id = simulation.pay(0, Kind::Typed, 500, false);
        assert!(simulation.go_on(0, |what| *what == What::After(Work::Transaction)));
        simulation.pass(70_000, true);
        simulation.reconcile(1);
        simulation.go_on(1, |_| false);
        assert!(!simulation.go_on(0, is_call), "it is sent");
        assert!(!simulation.model.ledger().charges.contains_key(&id));
    });
}

/// As above, before a repeat.
#[test]
fn a_payment_is_not_repeated_after_its_time() {
    on_both("a_payment_is_not_repeated_after_its_time", |simulation| {
        know_the_card(simulation);
        simulation.storm(1000, 0);
        let id = simulation.pay(0, Kind::Typed, 500, false);
        assert!(simulation.go_on(0, is_call));
        assert!(simulation.release_first(Go::Lost, is_call));
        simulation.go_on(0, |_| false);
        simulation.pass(1_000, false);
        // The inquiry is answered: it does not exist.
        assert!(simulation.go_on(0, |what| *what == What::After(Work::Write)), "it is to be repeated");
        simulation.pass(70_000, true);
        assert!(!simulation.go_on(0, is_call), "it is sent");
        assert!(!simulation.model.ledger().charges.contains_key(&id));
    });
}

/// A process could not connect, and could not record that; another one has sent the payment since. The first
/// one then recorded that nothing was sent, and a charged payment had failed.
#[test]
fn what_was_not_sent_here_may_have_been_sent_elsewhere() {
    on_both("what_was_not_sent_here_may_have_been_sent_elsewhere", |simulation| {
        next_is(simulation, State::Paid);
        simulation.storm(1000, 0);
        let id = simulation.pay(0, Kind::Reference, 500, false);
        assert!(simulation.go_on(0, is_call));
        simulation.set_away(0, true);
        assert!(simulation.release_first(Go::NotSent, is_call));
        simulation.go_on(0, |_| false);
        simulation.pass(70_000, false);
        simulation.go_on(0, |_| false);
        simulation.reconcile(1);
        // An inquiry, and the payment from its copy, whose answer is lost.
        assert!(simulation.go_on(1, |what| matches!(what, What::Call(name) if name.starts_with("Pay "))));
        assert!(simulation.go_on(1, |what| matches!(what, What::Answer(name) if name.starts_with("Pay "))));
        assert!(simulation.release_first(Go::Lost, |what| matches!(what, What::Answer(_))));
        simulation.go_on(1, |_| false);
        simulation.set_away(0, false);
        simulation.pass(10_000, false);
        simulation.go_on(0, |_| false);
        assert_eq!(simulation.model.ledger().charges[&id].charges, 1);
    });
}

/// Somebody cancels a payment in the gateway's dashboard while the first word about a capture or a refund is
/// lost: nothing of it is under way any more, whoever asks, and its sum is given back.
#[test]
fn a_cancel_in_the_dashboard_ends_what_is_open() {
    on_both("a_cancel_in_the_dashboard_ends_what_is_open", |simulation| {
        let mut all = Vec::new();
        for (capture, lost) in [(true, true), (true, false), (false, true), (false, false)] {
            simulation.storm(0, 0);
            next_is(simulation, State::Paid);
            let id = simulation.pay(0, Kind::Reference, 500, capture);
            simulation.go_on(0, |_| false);
            simulation.operate(0, &id, capture, 200);
            let is_lost = |what: &What| is_call(what) == lost && !what.is_database();
            assert!(simulation.go_on(0, is_lost));
            assert!(simulation.release_first(Go::Lost, is_lost));
            simulation.go_on(0, |_| false);
            if simulation.model.cancellable().contains(&id) {
                simulation.model.cancel_elsewhere(&id);
                all.push((id, lost));
            }
        }
        assert!(all.iter().filter(|(_, lost)| *lost).count() == 2, "nothing has arrived of these: {all:?}");
        simulation.crash(0);
        simulation.start(0);
    });
}

/// Two processes find the same payment, or the same capture, due: one of them looks after it, and the other
/// one leaves it alone.
#[test]
fn one_process_at_a_time_looks_after_what_is_due() {
    on_both("one_process_at_a_time_looks_after_what_is_due", |simulation| {
        for operation in [false, true] {
            next_is(simulation, State::Paid);
            simulation.storm(1000, 0);
            let id = simulation.pay(0, Kind::Reference, 500, true);
            if operation {
                simulation.go_on(0, |_| false);
                simulation.operate(0, &id, true, 200);
            }
            assert!(simulation.go_on(0, |what| matches!(what, What::Answer(_))));
            simulation.crash(0);
            simulation.start(0);
            simulation.pass(130_000, false);
            // Both have read that it is due before either has taken it.
            for slot in [0, 1] {
                simulation.reconcile(slot);
                assert!(simulation.go_on(slot, |what| *what == What::Before(Work::Write)));
            }
            assert!(simulation.go_on(0, is_call), "it is taken, and asked after");
            assert!(!simulation.go_on(1, is_call), "it is taken twice");
            simulation.go_on(0, |_| false);
        }
    });
}

/// A gateway that charges for each repeat, or keeps what it says it has cancelled, is found.
#[test]
fn a_gateway_that_breaks_its_rules_is_found() {
    for (sabotage, words) in
        [(Sabotage::ChargesTwice, "charged more than once"), (Sabotage::KeepsCancelled, "is CANCELLED")]
    {
        let found = (1..=60).any(|seed| {
            // What is wrong stays due for ever, so each has a database of its own.
            let mut ground = Ground::sqlite();
            let outcome = run(&mut ground, seed, |simulation| simulation.model.set_sabotage(sabotage));
            outcome.wrong.iter().any(|line| line.contains(words))
        });
        assert!(found, "{sabotage:?} is not found");
    }
}

/// A second send that the vault must not make is found: other bytes, another process, after the cancel.
#[test]
fn a_second_send_is_found() {
    let mut ground = Ground::sqlite();
    let mut simulation = Simulation::new(&mut ground, 0, 2);
    next_is(&simulation, State::Paid);
    let id = simulation.pay(0, Kind::Typed, 500, false);
    simulation.cancel(0, &id);
    let body = simulation.asked[&id].body.replace("\"850\"", "\"851\"");
    let wire = Wire::new(simulation.model.clone(), 99);
    simulation.model.world.enter_as(99);
    let call = wire.call(Call::Pay, SecretBuf::from_vec(body.into_bytes()));
    assert!(pin!(call).poll(&mut Context::from_waker(Waker::noop())).is_ready());
    simulation.calm_down();
    let wrong = check(&mut simulation);
    for words in ["not the same bytes", "by another process", "could know of its cancel"] {
        assert!(wrong.iter().any(|line| line.contains(words)), "{words}: {wrong:?}");
    }
}
