//! Two builds of the program, in turns of a second: whether a change made it faster is a smaller question
//! than what a machine does within minutes can answer. The ratio is of each pair of neighbouring turns.

use std::path::Path;
use std::time::Duration;

use super::load::{self, Figures, Shape, middle};
use super::vault::{Numbers, paying, reading, tokenising};
use super::{Ground, Options, say};

/// How long a turn is, and how long it is warmed up.
pub const TURN: Duration = Duration::from_secs(1);
const WARM: Duration = Duration::from_millis(200);

/// Compares the build `other` with the one chosen, on an engine.
pub async fn measure(options: &Options, engine: &str, other: &Path) {
    let (Some(one), Some(two)) =
        (Ground::of(engine, &options.program).await, Ground::of(engine, other).await)
    else {
        return;
    };
    say(&format!(
        "\n{}: {} against {}\n{:<10} {:>5} {:>10} {:>10} {:>7} {:>7} {:>9} {:>9} {:>7}",
        one.engine(),
        options.program.display(),
        other.display(),
        "work",
        "conns",
        "one/s",
        "other/s",
        "rate x",
        "p50 x",
        "CPU ms",
        "other ms",
        "CPU x",
    ));
    for work in &options.work {
        let mut works = [Work::prepare(work, &one).await, Work::prepare(work, &two).await];
        for &connections in &options.connections {
            let mut pairs = Vec::new();
            for _ in 0..options.rounds {
                let first = works[0].turn(&one, connections).await;
                pairs.push((first, works[1].turn(&two, connections).await));
            }
            line(work, connections, &pairs);
        }
    }
}

fn line(work: &str, connections: usize, pairs: &[(Figures, Figures)]) {
    let of = |figure: &dyn Fn(&(Figures, Figures)) -> f64| middle(pairs.iter().map(figure).collect());
    let cpu = |figures: &Figures| figures.cpu.iter().sum::<f64>();
    say(&format!(
        "{work:<10} {connections:>5} {:>10.0} {:>10.0} {:>7.3} {:>7.3} {:>9.3} {:>9.3} {:>7.3}",
        of(&|pair| pair.0.rate),
        of(&|pair| pair.1.rate),
        of(&|pair| pair.0.rate / pair.1.rate),
        of(&|pair| pair.0.p50 / pair.1.p50),
        of(&|pair| cpu(&pair.0)),
        of(&|pair| cpu(&pair.1)),
        of(&|pair| cpu(&pair.0) / cpu(&pair.1)),
    ));
}

/// What one vault is asked for, turn after turn.
enum Work {
    Tokenise,
    Read { cards: Vec<String> },
    Pay { card: String, next: u64 },
}

impl Work {
    async fn prepare(work: &str, ground: &Ground) -> Self {
        let card = ground.card(&Numbers::new().next().expect("a number")).await;
        match work {
            "tokenise" => Self::Tokenise,
            "read" => Self::Read { cards: vec![card] },
            "pay" => Self::Pay { card, next: 0 },
            other => panic!("{other}: neither tokenise, read nor pay"),
        }
    }

    async fn turn(&mut self, ground: &Ground, connections: usize) -> Figures {
        let shape = Shape { connections, warm: WARM, measured: TURN, pause: Duration::ZERO };
        let (target, watched) = (&ground.vault.target, ground.watched());
        match self {
            Self::Tokenise => load::run(target, shape, &watched, "card_", tokenising()).await,
            Self::Read { cards } => load::run(target, shape, &watched, "card_", reading(cards)).await,
            Self::Pay { card, next } => {
                let requests = paying(card, *next);
                *next += 1_000_000;
                load::run(target, shape, &watched, "AUTHORIZED", requests).await
            }
        }
    }
}
