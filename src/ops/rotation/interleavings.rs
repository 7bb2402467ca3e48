//! Every interleaving of servers that store cards with a rotation, in a small model: two servers that store
//! the same number, each statement and each commit a step of its own, and servers that may sleep for as long
//! as they like before any of them. What the real code relies on (the epoch in the statement, the wait for
//! writers) is a switch here, so that the model is shown to find what goes wrong without it.

use std::collections::HashSet;
use std::hash::Hash;

/// What protects the rotation.
#[derive(Clone, Copy)]
struct Rules {
    /// A statement stores nothing where its epoch is over.
    epoch: bool,
    /// The rotation waits for those who have stored and not committed.
    wait: bool,
}

const AS_BUILT: Rules = Rules { epoch: true, wait: true };

/// Walks through every state that can be reached; the first wrong one, if there is one, and how many there are.
fn explore<W: Clone + Eq + Hash>(
    start: W,
    next: impl Fn(&W) -> Vec<W>,
    wrong: impl Fn(&W) -> Option<&'static str>,
) -> Result<usize, &'static str> {
    let mut seen = HashSet::from([start.clone()]);
    let mut open = vec![start];
    while let Some(world) = open.pop() {
        if let Some(what) = wrong(&world) {
            return Err(what);
        }
        for world in next(&world) {
            if seen.insert(world.clone()) {
                open.push(world);
            }
        }
    }
    Ok(seen.len())
}

mod fingerprints {
    use super::*;

    #[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
    struct Keys {
        epoch: u8,
        old: bool,
        new: bool,
        new_is_active: bool,
    }

    #[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
    struct Row {
        old: bool,
        new: bool,
        committed: bool,
    }

    #[derive(Clone, Copy, PartialEq, Eq, Hash)]
    enum Server {
        /// Will look for the card, with what it knows of the keys.
        Looks(Keys),
        /// Has not found it, and will store it.
        Stores(Keys),
        /// Has stored this row and will commit.
        Commits(usize),
        Done,
    }

    #[derive(Clone, PartialEq, Eq, Hash)]
    struct World {
        keys: Keys,
        rows: Vec<Row>,
        servers: [Server; 2],
        step: u8,
        broken: bool,
    }

    fn next(world: &World, rules: Rules) -> Vec<World> {
        let mut all = Vec::new();
        for (n, server) in world.servers.iter().enumerate() {
            let mut with = |server: Server, rows: Vec<Row>| {
                let mut next = World { rows, ..world.clone() };
                next.servers[n] = server;
                all.push(next);
            };
            let rows = || world.rows.clone();
            match *server {
                Server::Looks(known) => {
                    let found =
                        |row: &&Row| row.committed && if known.new_is_active { row.new } else { row.old };
                    let there = world.rows.iter().any(|row| found(&row));
                    with(if there { Server::Done } else { Server::Stores(known) }, rows());
                    with(Server::Looks(world.keys), rows());
                }
                Server::Stores(known) => {
                    let row = Row { old: known.old, new: known.new, committed: false };
                    let meets = |other: &&Row| (row.old && other.old) || (row.new && other.new);
                    let over = rules.epoch && known.epoch != world.keys.epoch;
                    if over || world.rows.iter().filter(meets).any(|other| other.committed) {
                        with(Server::Looks(world.keys), rows());
                    } else if !world.rows.iter().any(|other| meets(&other)) {
                        let mut rows = rows();
                        rows.push(row);
                        with(Server::Commits(world.rows.len()), rows);
                    }
                    // Else it waits for the other's commit, as a unique index makes it.
                }
                Server::Commits(place) => {
                    let mut rows = rows();
                    rows[place].committed = true;
                    with(Server::Done, rows);
                }
                Server::Done => {}
            }
        }
        all.extend(rotation(world, rules));
        all
    }

    /// The next step of the rotation, where it can be made.
    fn rotation(world: &World, rules: Rules) -> Option<World> {
        let mut next = world.clone();
        next.step += 1;
        let quiet = !rules.wait || world.rows.iter().all(|row| row.committed);
        match world.step {
            0 => (next.keys.new, next.keys.epoch) = (true, world.keys.epoch + 1),
            1 | 5 if !quiet => return None,
            1 | 5 => {}
            2 => {
                // A card whose new fingerprint another has already cannot get it.
                let mut visible = next.rows.iter_mut().filter(|row| row.committed && !row.new);
                if let Some(row) = visible.next() {
                    row.new = true;
                }
                let twice = next.rows.iter().filter(|row| row.new).count() > 1;
                next.broken |= twice;
            }
            3 => {
                if world.rows.iter().any(|row| row.committed && !row.new) {
                    return None;
                }
                (next.keys.new_is_active, next.keys.epoch) = (true, world.keys.epoch + 1);
            }
            4 => (next.keys.old, next.keys.epoch) = (false, world.keys.epoch + 1),
            6 => next.rows.iter_mut().filter(|row| row.committed).for_each(|row| row.old = false),
            _ => return None,
        }
        Some(next)
    }

    fn run(rules: Rules) -> Result<usize, &'static str> {
        let keys = Keys { epoch: 1, old: true, ..Keys::default() };
        let start =
            World { keys, rows: Vec::new(), servers: [Server::Looks(keys); 2], step: 0, broken: false };
        explore(
            start,
            |world| next(world, rules),
            |world| {
                let committed: Vec<&Row> = world.rows.iter().filter(|row| row.committed).collect();
                if world.broken || committed.len() > 1 {
                    return Some("a number has two references");
                }
                let lost = |row: &&&Row| if world.keys.new_is_active { !row.new } else { !row.old };
                committed.iter().any(|row| lost(&row)).then_some("a card is not found by its number")
            },
        )
    }

    #[test]
    fn no_number_gets_two_references_and_every_card_is_found() {
        let states = run(AS_BUILT).unwrap_or_else(|what| panic!("{what}"));
        assert!(states > 200, "{states} states: the model stands still");
    }

    #[test]
    fn without_the_epoch_or_the_wait_it_goes_wrong() {
        assert!(run(Rules { epoch: false, ..AS_BUILT }).is_err());
        assert!(run(Rules { wait: false, ..AS_BUILT }).is_err());
    }
}

mod destruction {
    use super::*;

    #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
    enum Key {
        Old,
        New,
    }

    #[derive(Clone, Copy, PartialEq, Eq, Hash)]
    struct Known {
        epoch: u8,
        seals: Key,
    }

    #[derive(Clone, Copy, PartialEq, Eq, Hash)]
    enum Actor {
        Seals(Known),
        /// Has sealed under this key, and will store.
        Stores(Known),
        Commits(usize),
        Done,
    }

    #[derive(Clone, PartialEq, Eq, Hash)]
    struct World {
        keys: Known,
        destroyed: bool,
        /// The key of each row, and whether it is committed.
        rows: Vec<(Key, bool)>,
        servers: [Actor; 2],
        /// What a re-encryption has read and sealed again, under a key and in an epoch: row and epoch.
        moving: Option<(usize, Known)>,
        step: u8,
    }

    fn next(world: &World, rules: Rules) -> Vec<World> {
        let mut all = Vec::new();
        let over = |known: Known| rules.epoch && known.epoch != world.keys.epoch;
        for (n, server) in world.servers.iter().enumerate() {
            let mut next = world.clone();
            next.servers[n] = match *server {
                Actor::Seals(known) => Actor::Stores(known),
                Actor::Stores(known) if over(known) => Actor::Seals(world.keys),
                Actor::Stores(known) => {
                    next.rows.push((known.seals, false));
                    Actor::Commits(world.rows.len())
                }
                Actor::Commits(place) => {
                    next.rows[place].1 = true;
                    Actor::Done
                }
                Actor::Done => continue,
            };
            all.push(next);
        }
        // A re-encryption that somebody runs at any time: it reads, sleeps, and stores by comparing.
        match world.moving {
            None => {
                let stale = |(_, row): &(usize, &(Key, bool))| row.1 && row.0 != world.keys.seals;
                for (place, _) in world.rows.iter().enumerate().filter(stale) {
                    all.push(World { moving: Some((place, world.keys)), ..world.clone() });
                }
            }
            Some((place, known)) => {
                let mut next = World { moving: None, ..world.clone() };
                if !over(known) {
                    next.rows[place].0 = known.seals;
                }
                all.push(next);
            }
        }
        all.extend(rotation(world, rules));
        all
    }

    fn rotation(world: &World, rules: Rules) -> Option<World> {
        let mut next = world.clone();
        next.step += 1;
        match world.step {
            0 => next.keys = Known { epoch: world.keys.epoch + 1, seals: Key::New },
            1 => next.keys.epoch += 1,
            2 if rules.wait && world.rows.iter().any(|row| !row.1) => return None,
            2 => {}
            // Counted and destroyed; where a row needs it, it is refused and tried again later.
            3 if world.rows.contains(&(Key::Old, true)) => return None,
            3 => next.destroyed = true,
            _ => return None,
        }
        Some(next)
    }

    fn run(rules: Rules) -> Result<usize, &'static str> {
        let keys = Known { epoch: 1, seals: Key::Old };
        let servers = [Actor::Seals(keys); 2];
        let start = World { keys, destroyed: false, rows: Vec::new(), servers, moving: None, step: 0 };
        explore(
            start,
            |world| next(world, rules),
            |world| {
                let lost = world.destroyed && world.rows.contains(&(Key::Old, true));
                lost.then_some("a stored card needs a key that is destroyed")
            },
        )
    }

    #[test]
    fn no_stored_card_needs_a_destroyed_key() {
        let states = run(AS_BUILT).unwrap_or_else(|what| panic!("{what}"));
        assert!(states > 100, "{states} states: the model stands still");
    }

    #[test]
    fn without_the_epoch_or_the_wait_cards_are_lost() {
        assert!(run(Rules { epoch: false, ..AS_BUILT }).is_err());
        assert!(run(Rules { wait: false, ..AS_BUILT }).is_err());
    }
}
