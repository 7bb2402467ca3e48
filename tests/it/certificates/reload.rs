//! Who is let in changes while the vault runs: certificates, authorities, revocation lists and clients are
//! taken up when their files change, on new connections and on those that are open.

use std::path::{Path, PathBuf};

use cardvault::base::clock::{Clock, Millis, SystemClock};
use cardvault::pki::{Authority, serial_of};
use rcgen::{KeyPair, SigningKey};
use rustls_pki_types::CertificateRevocationListDer;
use rustls_pki_types::pem::PemObject;
use serde_json::Value;

use super::kinds::{elements, tlv};
use super::{CHECKOUT, authority, is_not_served, leaf, options, whoami};
use crate::support::vault::TestVault;
use crate::support::wire::{Identity, Wire};
use crate::support::{Database, eventually, say, sql};

const DAY: i64 = 86_400_000;

/// The configuration's text, changed; it must have the text that is replaced.
fn edit(vault: &TestVault, from: &str, to: &str) {
    let file = vault.dir.path().join("cardvault.toml");
    let text = std::fs::read_to_string(&file).expect("text");
    assert!(text.contains(from), "{from}: {text}");
    std::fs::write(&file, text.replace(from, to)).expect("a file");
}

fn list_file(vault: &TestVault) -> PathBuf {
    vault.dir.path().join("pki/clients.crl")
}

/// A whole file at once, as a careful operator puts it there.
fn put(path: &Path, bytes: &[u8]) {
    let beside = path.with_extension("new");
    std::fs::write(&beside, bytes).expect("a file");
    std::fs::rename(&beside, path).expect("a file");
}

/// A list from `at` on, for a day.
fn list(authority: &Authority, revoked: &[&Identity], at: Millis) -> Vec<u8> {
    let serial = |who: &&Identity| serial_of(std::str::from_utf8(&who.pem).expect("PEM")).expect("a serial");
    let serials: Vec<Vec<u8>> = revoked.iter().map(serial).collect();
    authority.revocation_list(&serials, at, 1).expect("a list").into_bytes()
}

async fn is_let_in(vault: &TestVault, who: &Identity) -> bool {
    let Ok(mut wire) = Wire::connect(vault, Some(who)).await else { return false };
    matches!(wire.request("GET", "/v1/whoami", None).await, Ok(answer) if answer.status == 200)
}

/// What an open connection gets: a status, or nothing.
async fn on(wire: &mut Wire) -> Option<u16> {
    wire.request("GET", "/v1/whoami", None).await.ok().map(|answer| answer.status)
}

async fn becomes(vault: &TestVault, who: &Identity, let_in: bool, what: &str) {
    let started = std::time::Instant::now();
    eventually(what, async || (is_let_in(vault, who).await == let_in).then_some(())).await;
    say(&format!("{what}: after {} ms", started.elapsed().as_millis()));
}

async fn readiness_becomes(vault: &TestVault, ready: bool) {
    let what = if ready { "readiness" } else { "no readiness" };
    eventually(what, async || (vault.readiness().await.contains("200 OK") == ready).then_some(())).await;
}

/// A revoked client is out: on new connections, on the one that it has open, and in the answer that it
/// waits for. Another client's open connection does not notice. Lists are taken as PEM and as DER.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_client_is_out_everywhere() {
    let db = Database::sqlite();
    let vault = TestVault::start(&db).await;
    let ours = authority(&vault);
    let (revoked, good) = (leaf(&ours, &options(CHECKOUT)), leaf(&ours, &options(CHECKOUT)));
    let mut open = Wire::connect(&vault, Some(&revoked)).await.expect("a connection");
    let mut waiting = Wire::connect(&vault, Some(&revoked)).await.expect("a connection");
    let mut other = Wire::connect(&vault, Some(&good)).await.expect("a connection");
    assert_eq!((on(&mut open).await, on(&mut other).await), (Some(200), Some(200)));
    waiting.send(b"GET /v1/events?wait=30 HTTP/1.1\r\nhost: vault\r\n\r\n").await.expect("sent");
    std::fs::write(list_file(&vault), list(&ours, &[&revoked], SystemClock.now())).expect("a file");
    edit(&vault, "[api]\n", "[api]\ncrl = \"pki/clients.crl\"\n");
    // The one that waits is told before its 30 seconds are over.
    waiting.answer().await.expect("an answer").expect_problem(403, "certificate_refused");
    assert!(waiting.rest().await.is_empty());
    assert_ne!(on(&mut open).await, Some(200));
    is_not_served(&vault, Some(&revoked), "revoked").await;
    assert_eq!(on(&mut other).await, Some(200));
    whoami(&vault, &good).await.expect(200);
    // The other one too, by a list in DER; the first one stays out, because the new list names it too.
    let both = list(&ours, &[&revoked, &good], SystemClock.now());
    put(&list_file(&vault), &CertificateRevocationListDer::from_pem_slice(&both).expect("PEM"));
    becomes(&vault, &good, false, "a client to be revoked by a changed list").await;
    assert_ne!(on(&mut other).await, Some(200));
    is_not_served(&vault, Some(&revoked), "revoked").await;
    vault.finish(&[]).await;
}

/// Where lists are configured and cannot be had, nobody new gets in, readiness tells, and what is open goes
/// on; once they can be had again, all is as before. So at the start too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_good_list_nobody_new_gets_in() {
    let db = Database::sqlite();
    let mut vault = TestVault::start(&db).await;
    let ours = authority(&vault);
    let who = leaf(&ours, &options(CHECKOUT));
    let fresh = list(&ours, &[], SystemClock.now());
    let put = |bytes: &[u8]| put(&list_file(&vault), bytes);
    put(&fresh);
    edit(&vault, "[api]\n", "[api]\ncrl = [\"pki/clients.crl\"]\n");
    // Nothing shows from outside that an empty list was taken up: one that cannot be read shows it.
    put(b"nothing");
    becomes(&vault, &who, false, "nobody to be let in by a list that is none").await;
    put(&fresh);
    becomes(&vault, &who, true, "a good list to be taken up").await;
    readiness_becomes(&vault, true).await;
    let mut open = Wire::connect(&vault, Some(&who)).await.expect("a connection");
    assert_eq!(on(&mut open).await, Some(200));

    let stale = list(&ours, &[], Millis(SystemClock.now().0 - 2 * DAY));
    let foreign =
        list(&Authority::make("x", SystemClock.now()).expect("an authority"), &[], SystemClock.now());
    let forged =
        list(&Authority::make("cardvault", SystemClock.now()).expect("an authority"), &[], SystemClock.now());
    let half = fresh[..fresh.len() / 2].to_vec();
    for (what, bytes) in
        [("stale", stale), ("foreign", foreign), ("forged", forged), ("half", half), ("empty", vec![])]
    {
        put(&bytes);
        becomes(&vault, &who, false, what).await;
        if !matches!(what, "foreign" | "forged") {
            readiness_becomes(&vault, false).await;
        }
        let stays = on(&mut open).await;
        assert!(stays == Some(200) || matches!(what, "foreign" | "forged"), "{what}: {stays:?}");
        put(&fresh);
        becomes(&vault, &who, true, "the good list to be taken up again").await;
        readiness_becomes(&vault, true).await;
        if stays.is_none() {
            open = Wire::connect(&vault, Some(&who)).await.expect("a connection");
        }
        assert_eq!(on(&mut open).await, Some(200));
    }
    std::fs::remove_file(list_file(&vault)).expect("a file");
    becomes(&vault, &who, false, "missing").await;
    assert_eq!(on(&mut open).await, Some(200));
    drop(open);

    // A start without them.
    vault.config.api.crl = vec![list_file(&vault)];
    vault.restart().await;
    is_not_served(&vault, Some(&who), "a start without the list").await;
    assert!(vault.readiness().await.contains("503"));
    let put_back = list(&ours, &[], SystemClock.now());
    std::fs::write(list_file(&vault), put_back).expect("a file");
    becomes(&vault, &who, true, "the list to come").await;
    readiness_becomes(&vault, true).await;
    vault.finish(&[]).await;
}

/// A list of version 1, signed as it should be. Programs read it, but no handshake can use it.
fn version_1(authority: &Authority) -> Vec<u8> {
    let two = list(authority, &[], SystemClock.now());
    let whole = elements(&CertificateRevocationListDer::from_pem_slice(&two).expect("PEM"));
    // Version, algorithm, issuer, this update, next update, extensions.
    let signed = tlv(0x30, &elements(&whole[0])[1..5].concat());
    let key = KeyPair::from_pem(authority.private_key_pem().expose()).expect("a key");
    let signature = tlv(0x03, &[&[0][..], &key.sign(&signed).expect("a signature")].concat());
    tlv(0x30, &[signed, whole[1].clone(), signature].concat())
}

/// A list that can be read but not used is as one that is missing, where there was none before and where
/// there was a good one: nobody is let in by rules that it was to replace.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_that_no_handshake_can_use_lets_nobody_in() {
    let db = Database::sqlite();
    let vault = TestVault::start(&db).await;
    let ours = authority(&vault);
    let who = leaf(&ours, &options(CHECKOUT));
    let mut open = Wire::connect(&vault, Some(&who)).await.expect("a connection");
    assert_eq!(on(&mut open).await, Some(200));
    for before in ["no list", "a good list"] {
        put(&list_file(&vault), &version_1(&ours));
        if before == "no list" {
            edit(&vault, "[api]\n", "[api]\ncrl = \"pki/clients.crl\"\n");
        }
        becomes(&vault, &who, false, before).await;
        readiness_becomes(&vault, false).await;
        assert_eq!(on(&mut open).await, Some(200), "what is open stays");
        put(&list_file(&vault), &list(&ours, &[], SystemClock.now()));
        becomes(&vault, &who, true, "a good list to be taken up").await;
        assert_eq!(on(&mut open).await, Some(200), "nor was it idle for long");
        readiness_becomes(&vault, true).await;
    }
    vault.finish(&[]).await;
}

/// A client that is taken out, put back, or given other scopes, by the configuration alone; each change is
/// in the audit trail, and a configuration with a mistake changes nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_list_of_clients_changes_without_a_restart() {
    let db = Database::sqlite();
    let mut vault = TestVault::start(&db).await;
    let who = Identity::of(&vault, "rival");
    let mut open = Wire::connect(&vault, Some(&who)).await.expect("a connection");
    let mut waiting = Wire::connect(&vault, Some(&who)).await.expect("a connection");
    assert_eq!(on(&mut open).await, Some(200));
    waiting.send(b"GET /v1/events?wait=30 HTTP/1.1\r\nhost: vault\r\n\r\n").await.expect("sent");
    edit(&vault, "spiffe://cardvault/globex/rival", "spiffe://cardvault/globex/gone");
    waiting.answer().await.expect("an answer").expect_problem(403, "client_not_known");
    assert_ne!(on(&mut open).await, Some(200));
    whoami(&vault, &who).await.expect_problem(403, "client_not_known");
    // A mistake leaves things as they are.
    edit(&vault, "spiffe://cardvault/globex/gone", "spiffe://cardvault/globex/rival\"\ncolour = \"blue");
    let mut checkout = Wire::client(&vault, "checkout").await;
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    whoami(&vault, &who).await.expect_problem(403, "client_not_known");
    assert_eq!(on(&mut checkout).await, Some(200));
    edit(&vault, "\"\ncolour = \"blue", "");
    becomes(&vault, &who, true, "a client to be put back").await;
    // Other scopes.
    edit(&vault, "\"cards:delete\", ", "");
    let scopes = async || {
        let told = whoami(&vault, &Identity::of(&vault, "checkout")).await.expect(200).text;
        (!told.contains("cards:delete")).then_some(())
    };
    eventually("fewer scopes", scopes).await;
    assert_eq!(on(&mut checkout).await, Some(200));
    vault.stop().await;
    let exported = vault.run(&["audit", "export"]).await;
    let text = String::from_utf8(exported.stdout).expect("UTF-8");
    let rows: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let changes: Vec<(&str, &str)> = rows
        .iter()
        .filter(|row| row["action"] == "access.client")
        .map(|row| (row["object"].as_str().unwrap(), row["detail"].as_str().unwrap()))
        .collect();
    for one in [("rival", "changed"), ("checkout", "changed")] {
        assert!(changes.contains(&one), "{changes:?}");
    }
    vault.finish(&[]).await;
}

/// The server's own certificate and the clients' authority are changed; a file that does not fit leaves the
/// old one in place.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_and_the_authority_change_without_a_restart() {
    let db = Database::sqlite();
    let vault = TestVault::start(&db).await;
    let ours = authority(&vault);
    let who = leaf(&ours, &options(CHECKOUT));
    let pki = vault.dir.path().join("pki");
    let mut open = Wire::connect(&vault, Some(&who)).await.expect("a connection");
    let before = open.server_certificate();
    let expires = async || {
        let series = "cardvault_certificate_expiry_timestamp_seconds{certificate=\"api\"} ";
        let (_, text) = vault.operators("/metrics").await;
        text.lines().find_map(|line| line.strip_prefix(series).map(str::to_owned)).expect("a series")
    };
    let expired_before = expires().await;
    let renewed = ours.server(&["localhost", "127.0.0.1"], SystemClock.now(), 1).expect("a certificate");
    // A certificate without its key does not fit.
    put(&pki.join("server.pem"), renewed.certificate_pem.as_bytes());
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    let served = Wire::connect(&vault, Some(&who)).await.expect("a connection").server_certificate();
    assert_eq!(served, before);
    assert_eq!(expires().await, expired_before, "what is told is what is shown, not what is in the file");
    let key = pki.join("server.new.key");
    cardvault::pki::write_private(&key, renewed.private_key_pem.expose().as_bytes()).expect("a file");
    std::fs::rename(&key, pki.join("server.key")).expect("a file");
    let other = async || {
        let served = Wire::connect(&vault, Some(&who)).await.expect("a connection").server_certificate();
        (served != before).then_some(())
    };
    eventually("the renewed certificate", other).await;
    eventually("its expiry", async || (expires().await != expired_before).then_some(())).await;
    assert_eq!(on(&mut open).await, Some(200), "what is open does not notice");

    let next = Authority::make("next", SystemClock.now()).expect("an authority");
    let new_client = leaf(&next, &options(CHECKOUT));
    put(&pki.join("clients-ca.pem"), b"nothing");
    edit(&vault, "client_ca = \"pki/ca.pem\"", "client_ca = \"pki/clients-ca.pem\"");
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    whoami(&vault, &who).await.expect(200);
    // Both for a while, then the next one alone.
    put(
        &pki.join("clients-ca.pem"),
        format!("{}{}", ours.certificate_pem(), next.certificate_pem()).as_bytes(),
    );
    becomes(&vault, &new_client, true, "the next authority to be trusted").await;
    assert_eq!(on(&mut open).await, Some(200));
    put(&pki.join("clients-ca.pem"), next.certificate_pem().as_bytes());
    becomes(&vault, &who, false, "the first authority to be trusted no longer").await;
    assert_ne!(on(&mut open).await, Some(200));
    assert!(is_let_in(&vault, &new_client).await);
    vault.finish(&[]).await;
}

/// Every change of what decides who gets in is in the trail, by a digest that the files' owner can make too; at each
/// start it is said what is in force, so that what changed meanwhile shows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_decides_who_gets_in_is_in_the_trail() {
    let db = Database::sqlite();
    let mut vault = TestVault::start(&db).await;
    let ours = authority(&vault);
    let said = async |vault: &TestVault| -> Vec<String> {
        let done = vault.run(&["audit", "export"]).await;
        let text = String::from_utf8(done.stdout).expect("UTF-8");
        let rows = text.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
        let rows = rows.filter(|row| row["action"] == "access.config");
        rows.map(|row| {
            assert_eq!((&row["actor"], &row["object"]), (&"vault".into(), &"api".into()));
            row["detail"].as_str().expect("a detail").to_owned()
        })
        .collect()
    };
    let become_so_many = async |vault: &TestVault, count: usize| {
        let there = async || {
            let all = said(vault).await;
            (all.len() >= count).then_some(all)
        };
        let all = eventually("its row", there).await;
        assert_eq!(all.len(), count, "{all:#?}");
        all.last().cloned().expect("a row")
    };
    let dir = vault.dir.path().to_owned();
    let sha256 = |name: &str| {
        let bytes = std::fs::read(dir.join(name)).expect("a file");
        let digest = ring::digest::digest(&ring::digest::SHA256, &bytes);
        format!("sha256:{}", data_encoding::HEXLOWER.encode(digest.as_ref()))
    };
    let first = become_so_many(&vault, 1).await;
    assert!(
        first.starts_with(&format!("client_ca {}, crl none, clients sha256:", sha256("pki/ca.pem"))),
        "{first}"
    );
    put(&list_file(&vault), &list(&ours, &[], SystemClock.now()));
    edit(&vault, "[api]\n", "[api]\ncrl = \"pki/clients.crl\"\n");
    let with_list = become_so_many(&vault, 2).await;
    assert_eq!(with_list, first.replace("crl none", &format!("crl {}", sha256("pki/clients.crl"))));
    put(&list_file(&vault), b"nothing");
    assert_eq!(become_so_many(&vault, 3).await, first.replace("crl none", "crl missing"));
    put(&list_file(&vault), &list(&ours, &[], SystemClock.now()));
    let renewed = become_so_many(&vault, 4).await;
    assert!(renewed != with_list && renewed.contains(&sha256("pki/clients.crl")), "{renewed}");
    // A client: its own row, and another digest.
    edit(&vault, "\"cards:delete\", ", "");
    let fewer = become_so_many(&vault, 5).await;
    assert!(
        fewer != renewed && fewer.split(", clients").next() == renewed.split(", clients").next(),
        "{fewer}"
    );
    // While it is stopped.
    vault.stop().await;
    let next = Authority::make("next", SystemClock.now()).expect("an authority");
    put(&dir.join("pki/next.pem"), next.certificate_pem().as_bytes());
    vault.config.api.client_ca = dir.join("pki/next.pem");
    // Away for a moment as it starts: the row comes all the same.
    sql::execute(&db, "ALTER TABLE audit RENAME TO audit_away").await;
    vault.restart().await;
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    sql::execute(&db, "ALTER TABLE audit_away RENAME TO audit").await;
    let after = become_so_many(&vault, 6).await;
    assert!(after.contains(&sha256("pki/next.pem")), "{after}");
    vault.finish(&[]).await;
}

/// SIGHUP makes the program read everything again, and does not end it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hangup_reads_everything_again() {
    let db = Database::sqlite();
    let mut vault = TestVault::start(&db).await;
    let mut program = vault.start_program().await;
    let who = Identity::of(&vault, "checkout");
    let mut open = Wire::connect(&vault, Some(&who)).await.expect("a connection");
    assert_eq!(on(&mut open).await, Some(200));
    let pid = rustix::process::Pid::from_child(&program);
    rustix::process::kill_process(pid, rustix::process::Signal::HUP).expect("kill");
    let told = async || {
        let log = std::fs::read_to_string(vault.program_log()).expect("a log");
        log.contains("took up certificates, revocation lists and clients again").then_some(())
    };
    eventually("everything to be read again", told).await;
    assert_eq!(on(&mut open).await, Some(200));
    program.kill().expect("kill");
    program.wait().expect("wait");
    vault.finish(&[]).await;
}
