//! The memory of the real program, read from outside as root: after work with a thousand cards, an idle vault
//! has none of their numbers and none of the CVVs, in any form, in any page that it can write to; and its keys are
//! in pages that are locked and left out of dumps.
//!
//! What is searched for: numbers as ASCII digits, as digit values one to a byte, as packed decimals, as integers
//! of either byte order, and as UTF-16; every `"cvv": "…"` with digits, and the buyers' names, which only
//! requests with a CVV carry.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use super::support::vault::{Answer, TestVault, fresh_pan, typed};
use super::support::wire::{Identity, Wire};
use super::support::{eventually, say};

const CONNECTIONS: usize = 50;
/// Requests at once, so that a slow machine's database is not overrun.
const AT_ONCE: usize = 8;
const CARDS_EACH: usize = 20;
const PAYMENTS_EACH: usize = 2;
/// The name that stands in every request with a CVV, and in nothing else.
const MARKER: &[u8] = b"Zwetschgenkuchen";

/// A region of a process's memory.
struct Region {
    begin: u64,
    end: u64,
    name: String,
}

fn regions(pid: u32) -> Vec<Region> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("its maps");
    let region = |line: &str| {
        let mut words = line.split_whitespace();
        let (begin, end) = words.next()?.split_once('-')?;
        let writable = words.next()?.starts_with("rw");
        let name = words.nth(3).unwrap_or("anonymous").to_owned();
        let number = |text| u64::from_str_radix(text, 16).ok();
        writable.then_some(Region { begin: number(begin)?, end: number(end)?, name })
    };
    maps.lines().filter_map(region).collect()
}

/// What is looked for: many numbers at once, in the forms in which a program has them in hand.
pub struct Wanted {
    numbers: HashSet<[u8; 16]>,
    packed: HashSet<[u8; 8]>,
}

impl Wanted {
    pub fn of(pans: &[String]) -> Self {
        let mut wanted = Self { numbers: HashSet::new(), packed: HashSet::new() };
        for pan in pans {
            let digits: [u8; 16] = pan.as_bytes().try_into().expect("16 digits");
            wanted.numbers.insert(digits);
            let mut decimal = [0; 8];
            for (byte, pair) in decimal.iter_mut().zip(digits.chunks(2)) {
                *byte = (pair[0] - b'0') << 4 | (pair[1] - b'0');
            }
            let number: u64 = pan.parse().expect("a number");
            wanted.packed.extend([decimal, number.to_le_bytes(), number.to_be_bytes()]);
        }
        wanted
    }

    /// Copies of card data in some bytes, by kind.
    pub fn count(&self, bytes: &[u8], found: &mut BTreeMap<&'static str, usize>) {
        let mut add = |kind| *found.entry(kind).or_default() += 1;
        let mut run = [0_usize; 3];
        for (place, byte) in bytes.iter().enumerate() {
            let at = place + 1;
            run[0] = if byte.is_ascii_digit() { run[0] + 1 } else { 0 };
            run[1] = if *byte < 10 { run[1] + 1 } else { 0 };
            // Digits with a zero byte between.
            let wide = place >= 1 && *byte == 0 && bytes[place - 1].is_ascii_digit();
            run[2] = match (wide, byte.is_ascii_digit()) {
                (true, _) => run[2] + 1,
                (false, true) if place >= 1 && bytes[place - 1] == 0 => run[2],
                _ => 0,
            };
            let window = |step: usize, offset: u8| -> [u8; 16] {
                let first = at - 16 * step;
                std::array::from_fn(|digit| bytes[first + digit * step].wrapping_add(offset))
            };
            if run[0] >= 16 && self.numbers.contains(&window(1, 0)) {
                add("digits");
            }
            // All numbers here begin with 4; looking them up at every byte would take minutes.
            if run[1] >= 16 && bytes[at - 16] == 4 && self.numbers.contains(&window(1, b'0')) {
                add("digit values");
            }
            if wide && run[2] >= 16 && self.numbers.contains(&window(2, 0)) {
                add("UTF-16");
            }
            if at >= 8 {
                let eight: [u8; 8] = bytes[at - 8..at].try_into().expect("eight");
                // As packed decimals they begin with 4; as integers of either order with 0x000E to 0x0011.
                let [first, second, .., last_but_one, last] = eight;
                let integer = |high: u8, next: u8| high == 0 && (0x0E..=0x11).contains(&next);
                let may_be = first >> 4 == 4 || integer(first, second) || integer(last, last_but_one);
                if may_be && self.packed.contains(&eight) {
                    add("packed");
                }
            }
            if *byte == b'"' && bytes[at..].starts_with(b"cvv\"") {
                let rest = &bytes[at + 4..bytes.len().min(at + 16)];
                let mut rest = rest.iter().skip_while(|byte| matches!(**byte, b' ' | b':' | b'\\'));
                if rest.next() == Some(&b'"')
                    && rest.take(3).filter(|byte| byte.is_ascii_digit()).count() == 3
                {
                    add("cvv");
                }
            }
            if *byte == MARKER[0] && bytes[place..].starts_with(MARKER) {
                add("marker");
            }
        }
    }
}

/// Copies of card data in a process's memory, by kind and region.
fn search(pid: u32, wanted: &Wanted) -> (BTreeMap<String, usize>, u64) {
    let memory = File::open(format!("/proc/{pid}/mem")).expect("its memory");
    let (mut all, mut read) = (BTreeMap::new(), 0);
    for region in regions(pid) {
        let mut bytes = vec![0; usize::try_from(region.end - region.begin).expect("a size")];
        if memory.read_exact_at(&mut bytes, region.begin).is_err() {
            // A thread that has ended meanwhile has given its stack back.
            let is_there = regions(pid).iter().any(|it| (it.begin, it.end) == (region.begin, region.end));
            assert!(region.name.starts_with("[v") || !is_there, "{} cannot be read", region.name);
            continue;
        }
        read += region.end - region.begin;
        let mut found = BTreeMap::new();
        wanted.count(&bytes, &mut found);
        let size = (region.end - region.begin) / 1024;
        for (kind, count) in found {
            *all.entry(format!("{kind} in {size} KiB {}", region.name)).or_default() += count;
        }
    }
    (all, read)
}

/// Asks again where the database is busy, and over a new connection where a slow machine has let the old one
/// lie for so long that the vault has closed it.
async fn patiently(
    vault: &TestVault,
    wire: &mut Wire,
    method: &str,
    path: &str,
    body: Option<&str>,
) -> Answer {
    for _ in 0..10 {
        match wire.request(method, path, body.map(str::as_bytes)).await {
            Ok(answer) if answer.status != 503 => return answer,
            Ok(_) => {}
            Err(_) => *wire = Wire::client(vault, "checkout").await,
        }
    }
    panic!("the vault is never free");
}

/// The search finds what it looks for.
#[test]
fn a_planted_number_is_found() {
    for pan in (0..200).map(|_| fresh_pan()) {
        plant(&pan);
    }
}

fn plant(pan: &str) {
    let wanted = Wanted::of(&[pan.to_owned()]);
    let digits: Vec<u8> = pan.bytes().map(|byte| byte - b'0').collect();
    let number: u64 = pan.parse().expect("a number");
    let wide: Vec<u8> = pan.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let decimal: Vec<u8> = digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect();
    let (le, be) = (number.to_le_bytes().to_vec(), number.to_be_bytes().to_vec());
    for (form, kind) in [
        (pan.as_bytes().to_vec(), "digits"),
        (digits, "digit values"),
        (wide, "UTF-16"),
        (decimal, "packed"),
        (le, "packed"),
        (be, "packed"),
        (br#""cvv": "123""#.to_vec(), "cvv"),
        (br#""cvv":"1234""#.to_vec(), "cvv"),
        (MARKER.to_vec(), "marker"),
    ] {
        for before in [0, 1, 7] {
            let bytes = [vec![0xAA; before], form.clone(), vec![0xAA; 9]].concat();
            let mut found = BTreeMap::new();
            wanted.count(&bytes, &mut found);
            assert_eq!(found.get(kind), Some(&1), "{kind} {found:?}");
        }
    }
    let mut found = BTreeMap::new();
    wanted.count(&[fresh_pan().as_bytes(), br#""cvv": null, "cvv":"""#, &[0; 64]].concat(), &mut found);
    assert!(found.is_empty(), "{found:?}");
}

both_engines! {
    /// A thousand cards and a hundred payments with CVVs over fifty connections; half a minute after the last
    /// answer nothing of them is left, though no caller has closed its connection.
    async fn an_idle_vault_has_no_card_in_its_memory(db: Database) {
        if !rustix::process::geteuid().is_root() {
            return say("memory: left out: only root can read the memory of a program that is not dumpable");
        }
        let mut vault = TestVault::start(&db).await;
        vault.environment.push(("CARDVAULT_LOG".to_owned(), "info".to_owned()));
        let mut program = vault.start_program().await;
        let pid = program.id();
        let vault = Arc::new(vault);
        let mut callers = tokio::task::JoinSet::new();
        let turns = Arc::new(Semaphore::new(AT_ONCE));
        for number in 0..CONNECTIONS {
            let (vault, turns) = (vault.clone(), turns.clone());
            callers.spawn(async move {
                let mut pans = Vec::new();
                let identity = Identity::of(&vault, "checkout");
                let mut wire = Wire::connect(&vault, Some(&identity)).await.expect("a connection");
                for turn in 0..CARDS_EACH {
                    let _turn = turns.acquire().await.expect("open");
                    let pan = fresh_pan();
                    let card = format!(r#"{{"cardNo":"{pan}","expiryMonth":"12","expiryYear":"29"}}"#);
                    let stored = patiently(&vault, &mut wire, "POST", "/v1/cards", Some(&card)).await;
                    assert!(matches!(stored.status, 200 | 201), "{}", stored.text);
                    pans.push(pan);
                    if turn % (CARDS_EACH / PAYMENTS_EACH) == 0 {
                        let pan = fresh_pan();
                        let cvv = format!("{}", 100 + (number * 17 + turn) % 900);
                        let payment = typed(&format!("MEMORY_{number}_{turn}"), "100", &pan, &cvv);
                        let marker = std::str::from_utf8(MARKER).expect("text");
                        let payment = payment.replace("\"Tom\"", &format!("\"{marker}\""));
                        assert!(payment.contains(marker) && payment.contains(&cvv));
                        let mut answer = patiently(&vault, &mut wire, "POST", "/v1/payments", Some(&payment)).await.expect(200);
                        // A call to the gateway may be lost on a busy machine; the vault then asks by itself.
                        for _ in 0..100 {
                            if answer.text_at("/status") != "UNKNOWN" {
                                break;
                            }
                            tokio::time::sleep(Duration::from_millis(500)).await;
                            let path = format!("/v1/payments/MEMORY_{number}_{turn}");
                            answer = patiently(&vault, &mut wire, "GET", &path, None).await.expect(200);
                        }
                        assert_eq!(answer.text_at("/status"), "AUTHORIZED", "{}", answer.text);
                        pans.push(pan);
                    }
                }
                (wire, pans)
            });
        }
        let (open, pans): (Vec<Wire>, Vec<Vec<String>>) = callers.join_all().await.into_iter().unzip();
        let pans = pans.concat();
        assert_eq!(pans.len(), CONNECTIONS * (CARDS_EACH + PAYMENTS_EACH));
        let (wanted, pans) = (Wanted::of(&pans), pans.len());
        let (at_once, _) = tokio::task::block_in_place(|| search(pid, &wanted));
        tokio::time::sleep(Duration::from_secs(30)).await;
        let (left, read) = tokio::task::block_in_place(|| search(pid, &wanted));
        program.kill().expect("killed");
        program.wait().expect("killed");
        let total = |found: &BTreeMap<String, usize>| found.values().sum::<usize>();
        say(&format!(
            "memory, {:?}: {pans} numbers; copies right after the last answer: {}, 30 s later: {} in {} MiB",
            db.engine, total(&at_once), total(&left), read >> 20
        ));
        assert!(left.is_empty(), "{left:?}; right after the last answer: {at_once:?}");
        drop(open);
        let vault = Arc::into_inner(vault).expect("all callers are gone");
        vault.finish(&[]).await;
    }
}

/// The program's own keys are in pages that are locked, left out of dumps and empty in a child; the
/// key-encryption key is nowhere else. It may write no core.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_in_locked_memory() {
    if !rustix::process::geteuid().is_root() {
        return say("memory: left out: only root can read the memory of a program that is not dumpable");
    }
    let db = super::support::Database::sqlite();
    let mut vault = TestVault::start(&db).await;
    let mut program = vault.start_program().await;
    let pid = program.id();
    let checkout = vault.client("checkout");
    checkout.card(&fresh_pan()).await;
    let keyring = std::fs::read_to_string(vault.dir.path().join("keys/keyring.toml")).expect("a keyring");
    let keyring: toml::Table = keyring.parse().expect("TOML");
    let text = keyring["kek"].as_array().expect("keys")[0]["key"].as_str().expect("a key").to_owned();
    let key = data_encoding::BASE64
        .decode(text.as_bytes())
        .or_else(|_| data_encoding::HEXLOWER.decode(text.as_bytes()));
    let key = key.expect("a key");
    assert_eq!(key.len(), 32);
    let smaps = std::fs::read_to_string(format!("/proc/{pid}/smaps")).expect("its maps");
    let mut locked = Vec::new();
    let mut begin = 0;
    for line in smaps.lines() {
        let first = line.split_whitespace().next().unwrap_or_default();
        if let Some((address, _)) = first.split_once('-') {
            begin = u64::from_str_radix(address, 16).unwrap_or(begin);
        }
        let flags: HashSet<&str> =
            line.strip_prefix("VmFlags:").unwrap_or_default().split_whitespace().collect();
        if ["lo", "dd", "wf"].iter().all(|flag| flags.contains(flag)) {
            locked.push(begin);
        }
    }
    assert!(!locked.is_empty(), "no locked memory");
    let find = || {
        let memory = File::open(format!("/proc/{pid}/mem")).expect("its memory");
        let (mut inside, mut outside) = (0, Vec::new());
        for region in regions(pid) {
            let mut bytes = vec![0; usize::try_from(region.end - region.begin).expect("a size")];
            if memory.read_exact_at(&mut bytes, region.begin).is_err() {
                continue;
            }
            let count =
                |wanted: &[u8]| bytes.windows(wanted.len()).filter(|window| *window == wanted).count();
            let copies = count(&key) + count(text.as_bytes());
            if locked.contains(&region.begin) {
                inside += copies;
            } else if copies > 0 {
                outside.push((region.name, copies));
            }
        }
        (inside, outside)
    };
    let found = eventually("idle threads", || async {
        let (inside, outside) = tokio::task::block_in_place(find);
        (inside > 0 && outside.is_empty()).then_some(inside)
    })
    .await;
    assert_eq!(found, 1, "one copy of the key");
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).expect("its limits");
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).expect("a limit");
    assert_eq!(core.split_whitespace().filter(|word| *word == "0").count(), 2, "{core}");
    program.kill().expect("killed");
    program.wait().expect("killed");
    vault.finish(&[]).await;
}
