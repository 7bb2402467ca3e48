//! Peers that mean harm: slow, silent, many, ambiguous, gone at any byte, guessing. An honest client beside
//! them sees no error, and nothing is left behind.

use std::net::SocketAddr;
use std::process::Child;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use cardvault::base::clock::{Clock, SystemClock};
use cardvault::base::secret::SecretText;
use cardvault::pki::Authority;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;

use super::support::vault::{Answer, Caller, TestVault, fresh_pan};
use super::support::wire::{Identity, Wire};
use super::support::{Database, Engine, eventually, say, sql};

/// What SECURITY.md states for the default limits.
const MEMORY_CEILING_KIB: u64 = 256 * 1024;

/// A client that works all the time, on a connection that it keeps and on new ones, and counts what fails.
struct Honest {
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<(usize, Duration, Vec<String>)>,
}

impl Honest {
    fn start(vault: &TestVault) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (kept, told) = (vault.client("checkout"), stop.clone());
        let identity = Identity::of(vault, "checkout");
        let (address, ca) = (vault.address, vault.dir.path().join("pki/ca.pem"));
        let task = tokio::spawn(async move {
            let (mut calls, mut slowest, mut failed) = (0, Duration::ZERO, Vec::new());
            while !told.load(Ordering::Relaxed) {
                let started = Instant::now();
                let body =
                    json!({ "cardNo": fresh_pan(), "expiryMonth": "12", "expiryYear": "29" }).to_string();
                let headers = [("content-type", "application/json")];
                match kept.try_call("POST", "/v1/cards", &headers, Some(body.into_bytes())).await {
                    Ok(answer) if answer.status == 201 => {}
                    Ok(answer) => failed.push(answer.text),
                    Err(error) => failed.push(format!("kept: {error:?}")),
                }
                match fresh(address, &ca, &identity).await {
                    Ok(answer) if answer.status == 200 => {}
                    Ok(answer) => failed.push(answer.text),
                    Err(error) => failed.push(format!("fresh: {error:?}")),
                }
                calls += 2;
                slowest = slowest.max(started.elapsed());
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            (calls, slowest, failed)
        });
        Self { stop, task }
    }

    /// Stops, and fails if one call failed.
    async fn finish(self, what: &str) {
        self.stop.store(true, Ordering::Relaxed);
        let (calls, slowest, failed) = self.task.await.expect("an honest client");
        say(&format!("{what}: {calls} honest calls, the slowest two took {} ms", slowest.as_millis()));
        assert!(
            failed.is_empty() && calls > 0,
            "{what}: {} of {calls} failed: {:?}",
            failed.len(),
            failed.first()
        );
    }
}

/// One request on a connection of its own.
async fn fresh(address: SocketAddr, ca: &std::path::Path, identity: &Identity) -> std::io::Result<Answer> {
    let mut wire = Wire::connect_at(address, ca, Some(identity)).await?;
    wire.request("GET", "/v1/whoami", None).await
}

/// Shapes whose end two readers could see in two places, each with a request hidden where one of them would
/// see the next one. The first line is a good request's.
fn ambiguous() -> Vec<(&'static str, Vec<u8>)> {
    const HIDDEN: &str = "GET /v1/whoami HTTP/1.1\r\nhost: vault\r\n\r\n";
    let length = HIDDEN.len();
    let post = |headers: &str, body: &str| {
        format!(
            "POST /v1/cards HTTP/1.1\r\nhost: vault\r\ncontent-type: application/json\r\n{headers}\r\n{body}"
        )
        .into_bytes()
    };
    let ended = format!("0\r\n\r\n{HIDDEN}");
    vec![
        ("length, then chunks", post(&format!("content-length: {}\r\ntransfer-encoding: chunked\r\n", ended.len()), &ended)),
        ("chunks, then length", post(&format!("transfer-encoding: chunked\r\ncontent-length: {}\r\n", ended.len()), &ended)),
        ("chunks, then a short length", post("transfer-encoding: chunked\r\ncontent-length: 3\r\n", &ended)),
        ("chunks alone", post("transfer-encoding: chunked\r\n", &ended)),
        ("chunks twice", post("transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n", &ended)),
        ("chunks, then identity", post("transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n", &ended)),
        ("identity", post(&format!("transfer-encoding: identity\r\ncontent-length: {length}\r\n"), HIDDEN)),
        ("an odd encoding", post("transfer-encoding: xchunked\r\n", &ended)),
        ("an encoding in two lines", post("transfer-encoding:\r\n chunked\r\n", &ended)),
        ("a blank before the colon", post("transfer-encoding : chunked\r\n", &ended)),
        ("a tab in the encoding", post("transfer-encoding: \x0bchunked\r\n", &ended)),
        ("two lengths", post(&format!("content-length: 0\r\ncontent-length: {length}\r\n"), HIDDEN)),
        ("two lengths in one", post(&format!("content-length: 0, {length}\r\n"), HIDDEN)),
        ("a length with a sign", post("content-length: +0\r\n", HIDDEN)),
        ("a negative length", post("content-length: -1\r\n", HIDDEN)),
        ("a length in hexadecimal", post("content-length: 0x0\r\n", HIDDEN)),
        ("a length too great for any number", post("content-length: 18446744073709551616\r\n", HIDDEN)),
        ("a length with a blank", post("content-length: 0 0\r\n", HIDDEN)),
        ("an empty length", post("content-length: \r\n", HIDDEN)),
        ("a folded line", post(&format!("x: y\r\n content-length: {length}\r\ncontent-length: 0\r\n"), "")),
        ("a length in a folded line", post(&format!("content-length:\r\n {length}\r\n"), HIDDEN)),
        ("a NUL in a header", post("x: a\0b\r\ncontent-length: 0\r\n", HIDDEN)),
        ("a carriage return alone", post("x: a\rcontent-length: 0\r\ntransfer-encoding: chunked\r\n", &ended)),
        ("a chunk with an extension", post("transfer-encoding: chunked\r\n", &format!("0;a=b\r\n\r\n{HIDDEN}"))),
        ("a chunk with an endless extension", post("transfer-encoding: chunked\r\n", &format!("2;{}\r\n{{}}\r\n{ended}", "a".repeat(40_000)))),
        ("a chunk's length with a sign", post("transfer-encoding: chunked\r\n", &format!("+0\r\n\r\n{HIDDEN}"))),
        ("a chunk's length as 0x0", post("transfer-encoding: chunked\r\n", &format!("0x0\r\n\r\n{HIDDEN}"))),
        ("a chunk too great for any number", post("transfer-encoding: chunked\r\n", &format!("fffffffffffffffff\r\n{HIDDEN}"))),
        ("a chunk longer than it says", post("transfer-encoding: chunked\r\n", &format!("1\r\n{{}}\r\n{ended}"))),
        ("chunks that end in a bare line feed", post("transfer-encoding: chunked\r\n", &format!("0\n\n{HIDDEN}"))),
        ("trailers", post("transfer-encoding: chunked\r\n", &format!("0\r\ncontent-length: 5\r\n\r\n{HIDDEN}"))),
        ("chunks in HTTP/1.0", format!("POST /v1/cards HTTP/1.0\r\nhost: vault\r\ntransfer-encoding: chunked\r\n\r\n{ended}").into_bytes()),
        ("an upgrade", format!("GET /v1/whoami HTTP/1.1\r\nhost: vault\r\nconnection: upgrade, close\r\nupgrade: h2c\r\n\r\n{HIDDEN}").into_bytes()),
        ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec()),
        ("HTTP/0.9", format!("GET /v1/whoami\r\n\r\n{HIDDEN}").into_bytes()),
        ("a header before the first line", format!("x: y\r\n{HIDDEN}").into_bytes()),
        ("a blank in a header's name", format!("GET /v1/whoami HTTP/1.1\r\nho st: vault\r\n\r\n{HIDDEN}").into_bytes()),
        ("two blanks in the first line", format!("GET  /v1/whoami HTTP/1.1\r\nhost: vault\r\nconnection: close\r\n\r\n{HIDDEN}").into_bytes()),
    ]
}

fn answers(text: &str) -> usize {
    text.matches("HTTP/1.1 ").count()
}

/// No shape makes the vault see a request where another reader would see a body: what is hidden behind an
/// ambiguous request is never answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_hides_behind_an_ambiguous_request() {
    let db = Database::sqlite();
    let vault = TestVault::start(&db).await;
    let honest = Honest::start(&vault);
    let shapes = ambiguous();
    assert!(shapes.len() >= 35);
    for (what, bytes) in shapes {
        let mut wire = Wire::client(&vault, "rival").await;
        let _ = wire.send(&bytes).await;
        let came = String::from_utf8_lossy(&wire.rest().await).into_owned();
        assert!(answers(&came) <= 1, "{what}: {came}");
        assert!(
            what == "an upgrade" || !came.contains("globex"),
            "{what}: the hidden request was answered: {came}"
        );
        assert!(!came.contains("HTTP/1.1 5"), "{what}: {came}");
    }
    // Two good requests at once are two.
    let mut wire = Wire::client(&vault, "rival").await;
    wire.send(&b"GET /v1/whoami HTTP/1.1\r\nhost: vault\r\n\r\n".repeat(2)).await.expect("sent");
    for _ in 0..2 {
        wire.answer().await.expect("an answer").expect(200);
    }
    honest.finish("ambiguous shapes").await;
    vault.finish(&[]).await;
}

/// Writes one byte at a time until the other side has had enough.
async fn trickle(mut wire: Wire, bytes: Vec<u8>) {
    for byte in bytes {
        if wire.send(&[byte]).await.is_err() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let _ = wire.rest().await;
}

both_engines! {
    /// Slow handshakes, slow headers, slow bodies, idle connections and floods of headers, all at once and
    /// for longer than every timeout.
    async fn slow_and_silent_peers_harm_nobody(db: Database) {
        let vault = TestVault::start(&db).await;
        let honest = Honest::start(&vault);
        let mut peers = JoinSet::new();
        let address = vault.address;
        for n in 0..150_usize {
            peers.spawn(async move {
                let Ok(mut tcp) = TcpStream::connect(address).await else { return };
                // A hello that never ends, or none.
                for byte in [0x16, 3, 1, 2, 0, 1, 0, 1].into_iter().cycle().take(100) {
                    if n % 2 == 0 && tcp.write_all(&[byte]).await.is_err() {
                        return;
                    }
                    tokio::time::sleep(Duration::from_millis(150)).await;
                }
            });
        }
        for n in 0..90_usize {
            let mut wire = Wire::client(&vault, "rival").await;
            peers.spawn(async move {
                match n % 3 {
                    0 => trickle(wire, format!("GET /v1/whoami HTTP/1.1\r\nx: {}", "a".repeat(500)).into_bytes()).await,
                    1 => {
                        let head = b"POST /v1/cards HTTP/1.1\r\nhost: vault\r\ncontent-type: application/json\r\ncontent-length: 500\r\n\r\n{";
                        let _ = wire.send(head).await;
                        trickle(wire, vec![b' '; 499]).await;
                    }
                    _ => drop(wire.rest().await),
                }
            });
        }
        for n in 0..40 {
            let mut wire = Wire::client(&vault, "rival").await;
            peers.spawn(async move {
                let line = if n % 2 == 0 { "a: b\r\n".to_owned() } else { format!("a: {}\r\n", "b".repeat(8_000)) };
                let _ = wire.send(b"GET /v1/whoami HTTP/1.1\r\nhost: vault\r\n").await;
                for _ in 0..500 {
                    if wire.send(line.as_bytes()).await.is_err() {
                        break;
                    }
                }
                let came = String::from_utf8_lossy(&wire.rest().await).into_owned();
                assert!(came.is_empty() || came.starts_with("HTTP/1.1 431"), "{came}");
            });
        }
        while let Some(ended) = peers.join_next().await {
            ended.expect("a peer");
        }
        honest.finish("slow and silent peers").await;
        vault.finish(&[]).await;
    }

    /// A caller that hangs up after every byte of a request, and at every moment after it: no transaction
    /// stays open, no file descriptor is left, and the next request works.
    async fn hanging_up_at_every_byte_leaves_nothing_behind(db: Database) {
        let mut vault = TestVault::start(&db).await;
        let mut program = vault.start_program().await;
        let checkout = vault.client("checkout");
        let pan = fresh_pan();
        checkout.card(&pan).await;
        // Pools grow to their size before anything is counted.
        let mut warm = JoinSet::new();
        for _ in 0..40 {
            let checkout = checkout.clone();
            warm.spawn(async move { checkout.card(&fresh_pan()).await });
        }
        warm.join_all().await;
        let before = descriptors(&program);
        let body = json!({
            "cardNo": pan, "expiryMonth": "12", "expiryYear": "30",
            "cardholderName": { "firstName": "Tom", "lastName": "Jay" }, "cvv": "123"
        }).to_string();
        let request = format!(
            "POST /v1/cards HTTP/1.1\r\nhost: vault\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        ).into_bytes();
        for end in 1..=request.len() {
            let mut wire = Wire::client(&vault, "checkout").await;
            wire.send(&request[..end]).await.expect("sent");
        }
        for ms in 0..40 {
            let mut wire = Wire::client(&vault, "checkout").await;
            wire.send(&request).await.expect("sent");
            tokio::time::sleep(Duration::from_millis(ms)).await;
        }
        // A payment, which is sent to the gateway meanwhile.
        let card = checkout.card(&pan).await;
        for ms in 0..20 {
            let pay = crate::support::vault::by_reference(&format!("GONE_{ms}"), "100", &card);
            let head = format!(
                "POST /v1/payments HTTP/1.1\r\nhost: vault\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
                pay.len()
            );
            let mut wire = Wire::client(&vault, "checkout").await;
            wire.send(format!("{head}{pay}").as_bytes()).await.expect("sent");
            tokio::time::sleep(Duration::from_millis(ms * 3)).await;
        }
        checkout.post("/v1/cards", &body).await.expect(200);
        // What was begun is finished: every payment that arrived has its outcome, once.
        for ms in 0..20 {
            let id = format!("GONE_{ms}");
            let settled = async || {
                let shown = checkout.get(&format!("/v1/payments/{id}")).await;
                (shown.status == 404 || shown.text_at("/status") == "AUTHORIZED").then_some(shown.status)
            };
            let status = eventually("the payment to be settled", settled).await;
            assert_eq!(vault.charges(&id), usize::from(status == 200), "{id}");
        }
        if db.engine == Engine::Postgres {
            let open = async || {
                let rows = sql::rows(&db, "SELECT CAST(count(*) AS TEXT) FROM pg_stat_activity \
                    WHERE datname = current_database() AND state LIKE 'idle in transaction%'").await;
                (rows[0][0].as_deref() == Some("0")).then_some(())
            };
            eventually("no transaction to be left open", open).await;
        }
        let gone = async || {
            // The pools of the database and of connections to the gateway may still have grown a little.
            (descriptors(&program) <= before + 12).then_some(())
        };
        eventually("file descriptors to be given back", gone).await;
        say(&format!("{} hang-ups: {before} descriptors before, {} after", request.len() + 60, descriptors(&program)));
        program.kill().expect("kill");
        program.wait().expect("wait");
        vault.finish(&[&pan]).await;
    }

    /// A client that asks too fast, or has too much under way, is told to wait; others are not concerned,
    /// and the trail tells it once.
    async fn haste_is_answered_429(db: Database) {
        let vault = TestVault::start_with(&db, |config| {
            let rival = config.client.iter_mut().find(|client| client.name == "rival").expect("a client");
            rival.requests_per_second = Some(20);
            rival.requests_at_once = Some(4);
        }).await;
        let honest = Honest::start(&vault);
        let rival = vault.client("rival");
        let card = json!({ "cardNo": fresh_pan(), "expiryMonth": "12", "expiryYear": "29" }).to_string();
        let mut refused = 0;
        for _ in 0..100 {
            let answer = rival.post("/v1/cards", &card).await;
            if answer.status == 429 {
                assert_eq!(answer.headers["retry-after"], "1");
                // The connection goes on: the body was taken.
                assert!(!answer.headers.contains_key("connection"), "{:?}", answer.headers);
                answer.expect_problem(429, "too_many_requests");
                refused += 1;
            } else {
                assert!(matches!(answer.status, 200 | 201), "{}", answer.text);
            }
        }
        assert!(refused > 0, "a hundred at once were all let on");
        // Four long waits are all that it may have under way.
        eventually("a request to be let on again", async || (rival.get("/v1/whoami").await.status == 200).then_some(())).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let mut waits = JoinSet::new();
        for _ in 0..8 {
            let rival = rival.clone();
            waits.spawn(async move { rival.get("/v1/events?after=999&wait=2").await });
        }
        let ended = waits.join_all().await;
        let told = |code: &str| ended.iter().filter(|answer| answer.text.contains(code)).count();
        assert_eq!(told("too_many_at_once"), 4, "{ended:?}");
        honest.finish("haste").await;
        let told = excesses(&db, "client:rival").await;
        assert!((1..=2).contains(&told.len()), "{told:?}");
        vault.finish(&[]).await;
    }

    /// Who guesses and does not wait for the answer that is held back is held and refused like one who does, and
    /// told once. What waits for events is over when its caller has gone, and takes up none of its places.
    async fn a_guesser_that_hangs_up_is_held_all_the_same(db: Database) {
        let vault = TestVault::start_with(&db, |config| {
            let rival = config.client.iter_mut().find(|client| client.name == "rival").expect("a client");
            rival.unknown_ids_per_minute = Some(1);
            rival.requests_at_once = Some(40);
        }).await;
        let rival = vault.client("rival");
        let card = rival.card(&fresh_pan()).await;
        let what_exists = format!("/v1/cards/{card}");
        let mut waiting = Vec::new();
        for _ in 0..40 {
            let mut wire = Wire::client(&vault, "rival").await;
            wire.send(b"GET /v1/events?after=999&wait=30 HTTP/1.1\r\nhost: vault\r\n\r\n").await.expect("sent");
            waiting.push(wire);
        }
        let started = Instant::now();
        drop(waiting);
        let free = async || (rival.get(&what_exists).await.status == 200).then_some(());
        eventually("the places of those who waited to be free", free).await;
        assert!(started.elapsed() < Duration::from_secs(20), "they waited on");

        let mut refused = None;
        for round in 0..20 {
            let mut wires = Vec::new();
            for _ in 0..16 {
                wires.push(Wire::client(&vault, "rival").await);
            }
            for (n, wire) in wires.iter_mut().enumerate() {
                let guess = format!("GET /v1/payments/GUESS_{round}_{n} HTTP/1.1\r\nhost: vault\r\n\r\n");
                wire.send(guess.as_bytes()).await.expect("sent");
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
            drop(wires);
            tokio::time::sleep(Duration::from_millis(20)).await;
            let answer = rival.get(&what_exists).await;
            if answer.status == 429 {
                refused = Some(answer);
                break;
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        refused.expect("a refusal").expect_problem(429, "too_many_unknown_ids");
        let told = async || (excesses(&db, "client:rival").await.len() == 1).then_some(());
        eventually("the episode's row", told).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        rival.get(&what_exists).await.expect(200);
        vault.finish(&[]).await;
    }

    /// A client that guesses ids is slowed, then refused; the trail tells it once, and what exists is still
    /// there for it.
    async fn guessing_is_slowed_and_told_once(db: Database) {
        let vault = TestVault::start_with(&db, |config| {
            for client in &mut config.client {
                client.unknown_ids_per_minute = Some(10);
            }
        }).await;
        let honest = Honest::start(&vault);
        let rival = vault.client("rival");
        let card = rival.card(&fresh_pan()).await;
        let started = Instant::now();
        for n in 0..30 {
            rival.get(&format!("/v1/payments/GUESS_{n}")).await.expect_problem(404, "not_found");
        }
        let slowly = started.elapsed();
        say(&format!("thirty guesses took {} ms", slowly.as_millis()));
        assert!(slowly > Duration::from_secs(4), "nineteen of them are held back");
        rival.get(&format!("/v1/cards/{card}")).await.expect(200);
        // More are held back at once than may be, as soon as the machine answers so many at once.
        let mut refused: Vec<Answer> = Vec::new();
        for _ in 0..20 {
            let mut guesses = JoinSet::new();
            for n in 0..60 {
                let rival = rival.clone();
                guesses.spawn(async move { rival.get(&format!("/v1/cards/card_0123456789ABCDEFGHJKMNPQR{n:02}ABCDE")).await });
            }
            let ended = guesses.join_all().await;
            let statuses: Vec<_> = ended.iter().map(|answer| answer.status).collect();
            assert!(statuses.iter().all(|status| matches!(status, 404 | 429)), "{statuses:?}");
            refused.extend(ended.into_iter().filter(|answer| answer.status == 429));
            if !refused.is_empty() {
                break;
            }
        }
        assert!(!refused.is_empty());
        assert!(refused.iter().all(|answer| answer.text_at("/code") == "too_many_unknown_ids"
            && answer.headers["retry-after"] == "5"));
        rival.get(&format!("/v1/cards/{card}")).await.expect(200);
        honest.finish("guessing").await;
        let told = excesses(&db, "client:rival").await;
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(excesses(&db, "client:checkout").await.is_empty());
        // The first ten are told like any other refusal.
        let usual = sql::rows(&db, "SELECT CAST(count(*) AS TEXT) FROM audit WHERE actor = 'client:rival' AND detail = 'not_found' \
            AND action = 'request'").await;
        let usual: u64 = usual[0][0].as_deref().expect("a number").parse().expect("a number");
        // Every six seconds one more is allowed.
        let most = 11 + started.elapsed().as_secs() / 6;
        assert!((10..=most).contains(&usual), "{usual} of {most}");
        vault.finish(&[]).await;
    }
}

/// The rows of the trail that tell of an episode.
async fn excesses(db: &Database, actor: &str) -> Vec<Vec<Option<String>>> {
    let query = format!("SELECT detail FROM audit WHERE action = 'request.excess' AND actor = '{actor}'");
    sql::rows(db, &query).await
}

fn descriptors(program: &Child) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", program.id())).expect("a process").count()
}

/// A line of the process's status, in KiB.
fn status(program: &Child, name: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/status", program.id())).expect("a process");
    let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("a line");
    line.trim_start_matches(':').trim().trim_end_matches(" kB").parse().expect("a number")
}

/// Five thousand connections against the real program, with its own limits: silent ones, half a hello, a
/// client's idle ones, slow headers and large bodies that never end, and certificates that are nobody's. All of them from the
/// honest client's own address.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_thousand_connections_keep_nobody_out() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let most = limit.maximum.unwrap_or(20_000).min(20_000);
    if most < 12_000 {
        say(&format!("five thousand connections: left out: only {most} file descriptors"));
        return;
    }
    setrlimit(Resource::Nofile, Rlimit { current: Some(most), ..limit }).expect("descriptors");
    let db = Database::sqlite();
    let mut vault = TestVault::start(&db).await;
    vault.environment.push(("CARDVAULT_LOG".to_owned(), "info".to_owned()));
    let mut program = vault.start_program().await;
    let read = |name: &str| std::fs::read_to_string(vault.dir.path().join(name)).expect("a file of init");
    let authority =
        Authority::load(&read("pki/ca.pem"), &SecretText::new(read("pki/ca.key"))).expect("an authority");
    let nobody = authority.client("spiffe://cardvault/nobody", SystemClock.now(), 1).expect("a certificate");
    let nobody = Identity {
        pem: nobody.certificate_pem.into_bytes(),
        key: nobody.private_key_pem.expose().as_bytes().to_vec(),
    };
    let rival = Identity::of(&vault, "rival");
    eventually("the program to be warm", async || {
        (vault.client("checkout").get("/v1/whoami").await.status == 200).then_some(())
    })
    .await;
    let (before, quiet) = (descriptors(&program), status(&program, "VmHWM"));
    let honest = Honest::start(&vault);
    let opened = Arc::new(AtomicUsize::new(0));
    let (address, ca) = (vault.address, vault.dir.path().join("pki/ca.pem"));
    let large = "POST /v1/cards HTTP/1.1\r\nhost: vault\r\ncontent-type: application/json\r\ncontent-length: 65536\r\n\r\n";
    let large: Arc<[u8]> = format!("{large}{}", " ".repeat(65_000)).into_bytes().into();
    let mut peers = JoinSet::new();
    for worker in 0..50_usize {
        let (opened, ca) = (opened.clone(), ca.clone());
        let (rival, nobody, large) = (rival.clone(), nobody.clone(), large.clone());
        peers.spawn(async move {
            let (mut silent, mut talking) = (Vec::new(), Vec::new());
            for n in 0..100_usize {
                match (worker + n) % 10 {
                    kind @ 0..8 => {
                        let socket = TcpSocket::new_v4().expect("a socket");
                        let Ok(mut tcp) = socket.connect(address).await else { continue };
                        if kind % 2 == 0 {
                            let _ = tcp.write_all(b"\x16\x03\x01\x02\x00\x01").await;
                        }
                        silent.push(tcp);
                    }
                    kind => {
                        let who = if kind == 8 { &rival } else { &nobody };
                        let Ok(mut wire) = Wire::connect_at(address, &ca, Some(who)).await else { continue };
                        // The beginning of a request, or nearly all of the largest one.
                        let begun = match n % 3 {
                            0 => b"GET /v1/whoami HTTP/1.1\r\nx: ".to_vec(),
                            1 => large.to_vec(),
                            _ => Vec::new(),
                        };
                        let _ = wire.send(&begun).await;
                        talking.push(wire);
                    }
                }
                opened.fetch_add(1, Ordering::Relaxed);
            }
            tokio::time::sleep(Duration::from_secs(5)).await;
            drop((silent, talking));
        });
    }
    while let Some(ended) = peers.join_next().await {
        ended.expect("a peer");
    }
    let opened = opened.load(Ordering::Relaxed);
    honest.finish("five thousand connections").await;
    let (peak, during) = (status(&program, "VmHWM"), descriptors(&program));
    say(&format!(
        "{opened} connections: peak memory {peak} KiB ({quiet} before), descriptors {before} before, {during} at the end"
    ));
    assert!(opened >= 4_000, "{opened}");
    assert!(peak < MEMORY_CEILING_KIB, "{peak}");
    let gone = async || (descriptors(&program) <= before + 12).then_some(());
    eventually("file descriptors to be given back", gone).await;
    program.kill().expect("kill");
    program.wait().expect("wait");
    vault.finish(&[]).await;
}

/// Certificates of the authority that are no client's are refused each time, and fill neither the trail
/// nor the places.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_do_not_fill_the_trail() {
    let db = Database::sqlite();
    let vault = TestVault::start(&db).await;
    let read = |name: &str| std::fs::read_to_string(vault.dir.path().join(name)).expect("a file of init");
    let authority =
        Authority::load(&read("pki/ca.pem"), &SecretText::new(read("pki/ca.key"))).expect("an authority");
    let nobody = authority.client("spiffe://cardvault/nobody", SystemClock.now(), 1).expect("a certificate");
    let stranger = Caller::new(
        &vault,
        Some((nobody.certificate_pem.as_bytes(), nobody.private_key_pem.expose().as_bytes())),
    );
    for _ in 0..300 {
        stranger.get("/v1/whoami").await.expect_problem(403, "client_not_known");
    }
    let rows = sql::rows(&db, "SELECT CAST(count(*) AS TEXT) FROM audit WHERE actor = 'peer:unknown'").await;
    let rows: u64 = rows[0][0].as_deref().expect("a number").parse().expect("a number");
    assert!((60..200).contains(&rows), "{rows}");
    let whoami: Value = vault.client("checkout").get("/v1/whoami").await.expect(200).json();
    assert_eq!(whoami["client"], "checkout");
    vault.finish(&[]).await;
}
