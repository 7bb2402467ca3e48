//! The segmented network, built out of network namespaces on this machine, with the rules and files of
//! `deploy/`: merchant services, DMZ, vault, database, gateway, operators, and all else, each behind a router.
//! Every pair of them is tried both ways, with and without the rules; the real program, PostgreSQL and HAProxy
//! do their work across it; and counters show that the vault tried nothing else.
//!
//! It needs root, iproute2, nftables, HAProxy, curl and PostgreSQL. Where one is missing it says so and is left
//! out, unless `CARDVAULT_REQUIRE_SEGMENTATION=1`. A program of its own, because it runs itself again inside
//! the namespaces.

mod parts;
mod picture;
mod services;

use std::collections::BTreeMap;
use std::fmt::Write as _;

use picture::{Picture, Rules, SEGMENTS, Segment};
use services::Services;

const NAME: &str = "the_segments_are_apart_and_what_is_allowed_works";

fn main() {
    if parts::play() {
        return;
    }
    // What `cargo test` hands to every test program: a filter, or the wish for a list.
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|it| it == "--list") {
        println!("{NAME}: test");
        return;
    }
    if !is_wanted(&arguments) {
        return;
    }
    if let Err(missing) = picture::possible() {
        let required = std::env::var_os("CARDVAULT_REQUIRE_SEGMENTATION").is_some_and(|it| it != "0");
        assert!(!required, "CARDVAULT_REQUIRE_SEGMENTATION is set, and {missing}");
        eprintln!("segmentation: left out: {missing}");
        return;
    }
    story();
    println!("test {NAME} ... ok");
}

/// Whether the filters, if there are any, name this test.
fn is_wanted(arguments: &[String]) -> bool {
    const WITH_A_VALUE: [&str; 7] =
        ["--test-threads", "--skip", "--format", "--color", "--logfile", "--shuffle-seed", "-Z"];
    let value = |at: usize| at > 0 && WITH_A_VALUE.contains(&arguments[at - 1].as_str());
    let filters = arguments.iter().enumerate().filter(|(at, it)| !it.starts_with('-') && !value(*at));
    let mut filters = filters.map(|(_, filter)| filter.as_str()).peekable();
    filters.peek().is_none() || filters.any(|filter| NAME.contains(filter))
}

fn story() {
    let picture = Picture::build();
    let services = Services::make(&picture);
    // The rules are there before what they guard, as at a host's start.
    picture.load(Rules::Both);
    let running = services.start();
    services.walk();
    // What the vault sent, and what it would have liked to send.
    let sent = |name: &str| picture.counter(Segment::Vault, name);
    assert!(sent("to_database") > 0 && sent("to_gateway") > 0, "it spoke to the database and to the gateway");
    for segment in [Segment::Vault, Segment::Data, Segment::Dmz] {
        assert_eq!(picture.counter(segment, "refused_out"), 0, "{segment:?} tried to reach something else");
    }
    assert!(picture.counter(Segment::Dmz, "notifications") > 0, "a notification came through the DMZ");

    let listening = picture.listen_everywhere();
    let mut figures = String::new();
    for rules in [Rules::Both, Rules::Hosts, Rules::Router, Rules::None] {
        picture.load(rules);
        let (open, shut) = try_every_pair(&picture, rules);
        let _ = write!(figures, "; {rules:?}: {open} open, {shut} shut");
        if matches!(rules, Rules::Both) {
            // The counter counts: what was just tried from there was refused.
            assert!(picture.counter(Segment::Vault, "refused_out") > 0, "the counter does not count");
        }
    }
    // With the rules back, what is allowed still works.
    picture.load(Rules::Both);
    services.pays("SEG_AFTER");
    services.assert_clean();
    drop(listening);
    drop(running);
    println!("segmentation{figures}");
}

/// Tries everything from everywhere, and compares with what the rules say.
fn try_every_pair(picture: &Picture, rules: Rules) -> (usize, usize) {
    let targets: Vec<picture::Target> = SEGMENTS.iter().flat_map(|to| picture::targets(*to)).collect();
    let mut probes = Vec::new();
    for from in SEGMENTS {
        // On the vault's host two users: the vault's, and root.
        for user in if from == Segment::Vault { &[0, picture::VAULT_USER][..] } else { &[0] } {
            let there: Vec<_> = targets.iter().filter(|target| target.segment != from).cloned().collect();
            probes.push((from, *user, there.clone(), picture.probe(from, *user, &there)));
        }
    }
    let (mut open, mut shut, mut wrong) = (0, 0, Vec::new());
    for (from, user, there, probe) in probes {
        let found: BTreeMap<String, bool> = probe.finish();
        for target in there {
            let answered = found[&target.to_string()];
            let count = if answered { &mut open } else { &mut shut };
            *count += 1;
            if answered != picture::expected(rules, from, user, &target) {
                let state = if answered { "open" } else { "shut" };
                wrong.push(format!("{from:?} (user {user}) to {:?} {target} is {state}", target.segment));
            }
        }
    }
    assert!(wrong.is_empty(), "with the rules of {rules:?}:\n{}", wrong.join("\n"));
    assert!(open > 0);
    (open, shut)
}
