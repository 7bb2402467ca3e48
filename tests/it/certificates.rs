//! No HTTP byte is served without a certificate of the configured authority that is in time, made for
//! clients, and whose key the client holds; and a good certificate that is no configured client's gets
//! 403 and nothing else.

mod kinds;
mod reload;

use std::time::Duration;

use cardvault::base::clock::{Clock, Millis, SystemClock};
use cardvault::base::secret::SecretText;
use cardvault::config::ClientSection;
use cardvault::http::peer::Peer;
use cardvault::pki::{Authority, CertifiedPem, LeafOptions, Usage};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::support::Database;
use super::support::vault::{Answer, TestVault};
use super::support::wire::{Identity, Wire};

const CHECKOUT: &str = "spiffe://cardvault/acme/checkout";
const WHOAMI: &[u8] = b"GET /v1/whoami HTTP/1.1\r\nhost: vault\r\n\r\n";

/// The authority that `init` made.
fn authority(vault: &TestVault) -> Authority {
    let read = |name: &str| std::fs::read_to_string(vault.dir.path().join(name)).expect("a file of init");
    Authority::load(&read("pki/ca.pem"), &SecretText::new(read("pki/ca.key"))).expect("an authority")
}

/// A good certificate of this name; change what is to be wrong with it.
fn options(uri: &str) -> LeafOptions {
    LeafOptions {
        uri_sans: vec![uri.to_owned()],
        usages: vec![Usage::Client],
        ..LeafOptions::valid_for(SystemClock.now(), 1)
    }
}

fn identity(made: CertifiedPem) -> Identity {
    Identity {
        pem: made.certificate_pem.into_bytes(),
        key: made.private_key_pem.expose().as_bytes().to_vec(),
    }
}

fn leaf(authority: &Authority, options: &LeafOptions) -> Identity {
    identity(authority.leaf(options).expect("a certificate"))
}

/// Fails if one byte of HTTP comes back.
async fn is_not_served(vault: &TestVault, who: Option<&Identity>, what: &str) {
    if let Ok(mut wire) = Wire::connect(vault, who).await {
        let _ = wire.send(WHOAMI).await;
        let came = wire.rest().await;
        assert!(came.is_empty(), "{what}: {}", String::from_utf8_lossy(&came));
    }
}

async fn whoami(vault: &TestVault, who: &Identity) -> Answer {
    let mut wire = Wire::connect(vault, Some(who)).await.expect("a connection");
    wire.request("GET", "/v1/whoami", None).await.expect("an answer")
}

fn after_now(seconds: i64) -> Millis {
    Millis(SystemClock.now().0 + seconds * 1000)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_that_is_not_good_is_served_nothing() {
    let db = Database::sqlite();
    let vault = TestVault::start(&db).await;
    let ours = authority(&vault);
    let good = leaf(&ours, &options(CHECKOUT));
    assert_eq!(whoami(&vault, &good).await.expect(200).text_at("/client"), "checkout");

    is_not_served(&vault, None, "no certificate").await;
    let other = Authority::make("cardvault", SystemClock.now()).expect("an authority");
    is_not_served(&vault, Some(&leaf(&other, &options(CHECKOUT))), "an authority of the same name").await;
    let other = Authority::make("somebody else", SystemClock.now()).expect("an authority");
    let foreign = leaf(&other, &options(CHECKOUT));
    is_not_served(&vault, Some(&foreign), "another authority").await;
    let mut chained = foreign.clone();
    chained.pem.extend_from_slice(other.certificate_pem().as_bytes());
    is_not_served(&vault, Some(&chained), "another authority that is shown too").await;
    let mut chained = foreign.clone();
    chained.pem.extend_from_slice(ours.certificate_pem().as_bytes());
    is_not_served(&vault, Some(&chained), "another authority behind which ours is shown").await;
    let itself = Identity {
        pem: other.certificate_pem().as_bytes().to_vec(),
        key: other.private_key_pem().expose().as_bytes().to_vec(),
    };
    is_not_served(&vault, Some(&itself), "a self-signed certificate").await;
    let ca = Identity {
        pem: ours.certificate_pem().as_bytes().to_vec(),
        key: ours.private_key_pem().expose().as_bytes().to_vec(),
    };
    is_not_served(&vault, Some(&ca), "the authority's own certificate").await;

    // A leaf that signs another leaf.
    let signer = Authority::load(
        &String::from_utf8(good.pem.clone()).unwrap(),
        &SecretText::new(String::from_utf8(good.key.clone()).unwrap()),
    );
    assert!(signer.is_err());

    let at = |before: i64, after: i64| LeafOptions {
        not_before: after_now(before),
        not_after: after_now(after),
        ..options(CHECKOUT)
    };
    is_not_served(&vault, Some(&leaf(&ours, &at(-86_400, -60))), "expired").await;
    is_not_served(&vault, Some(&leaf(&ours, &at(-86_400, -2))), "expired just now").await;
    is_not_served(&vault, Some(&leaf(&ours, &at(60, 86_400))), "not valid yet").await;
    for usages in [vec![], vec![Usage::Server]] {
        let what = format!("made for {usages:?}");
        let wrong = LeafOptions { usages, ..options(CHECKOUT) };
        is_not_served(&vault, Some(&leaf(&ours, &wrong)), &what).await;
    }
    let both = LeafOptions { usages: vec![Usage::Server, Usage::Client], ..options(CHECKOUT) };
    whoami(&vault, &leaf(&ours, &both)).await.expect(200);

    let mut wrong_key = good.clone();
    wrong_key.key = leaf(&ours, &options(CHECKOUT)).key;
    is_not_served(&vault, Some(&wrong_key), "the key of another certificate").await;
    let server = Identity {
        pem: std::fs::read(vault.dir.path().join("pki/server.pem")).unwrap(),
        key: std::fs::read(vault.dir.path().join("pki/server.key")).unwrap(),
    };
    is_not_served(&vault, Some(&server), "the server's own").await;

    // Other protocols on the port.
    assert!(Wire::connect_with(&vault, Some(&good), &rustls::version::TLS12).await.is_err(), "TLS 1.2");
    for hello in [WHOAMI, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x00", &[0x16; 600], b"SSH-2.0-x\r\n"] {
        let mut plain = tokio::net::TcpStream::connect(vault.address).await.unwrap();
        let _ = plain.write_all(hello).await;
        let _ = plain.shutdown().await;
        let mut came = Vec::new();
        let _ = plain.read_to_end(&mut came).await;
        assert!(!String::from_utf8_lossy(&came).contains("HTTP"), "plain HTTP");
    }
    whoami(&vault, &good).await.expect(200);
    vault.finish(&[]).await;
}

/// A name counts exactly as it stands in a URI or DNS name, and nowhere else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_is_the_configured_one_or_nobodys() {
    let db = Database::sqlite();
    let mut vault = TestVault::start(&db).await;
    let ours = authority(&vault);
    let pinned = leaf(&ours, &options("spiffe://cardvault/acme/pinned"));
    let der = CertificateDer::from_pem_slice(&pinned.pem).unwrap();
    let spki = Peer::from_certificate(&der, vault.address).unwrap().spki_sha256;
    let client = |name: &str, uri: Option<&str>, dns: Option<&str>, pin: Option<String>| ClientSection {
        name: name.to_owned(),
        uri: uri.map(str::to_owned),
        dns: dns.map(str::to_owned),
        spki_sha256: pin,
        merchant: "acme".to_owned(),
        scopes: ["cards:read".to_owned()].into(),
        requests_per_second: None,
        requests_at_once: None,
        unknown_ids_per_minute: None,
    };
    vault.config.client.extend([
        client("by-dns", None, Some("backoffice.acme.example"), None),
        client(
            "pinned",
            Some("spiffe://cardvault/acme/pinned"),
            None,
            Some(data_encoding::HEXLOWER.encode(&spki)),
        ),
    ]);
    vault.restart().await;

    let unknown = async |options: LeafOptions, what: &str| {
        let answer = whoami(&vault, &leaf(&ours, &options)).await;
        assert_eq!((answer.status, answer.text_at("/code").as_str()), (403, "client_not_known"), "{what}");
        answer.expect_problem(403, "client_not_known");
    };
    for name in [
        "spiffe://cardvault/acme/nobody",
        "spiffe://cardvault/acme/Checkout",
        "SPIFFE://cardvault/acme/checkout",
        "spiffe://CARDVAULT/acme/checkout",
        "spiffe://cardvault/acme/checkout/",
        "spiffe://cardvault/acme//checkout",
        "spiffe://cardvault/acme/./checkout",
        "spiffe://cardvault/acme/%63heckout",
        "spiffe://cardvault/acme/checkout?",
        "spiffe://cardvault/acme/checkout#",
        "spiffe://cardvault/acme/checkout ",
        " spiffe://cardvault/acme/checkout",
        "spiffe://cardvault/acme/checkou",
        "spiffe://cardvault/acme/checkoutx",
        "spiffe://cardvault/globex/checkout",
        "checkout",
        "backoffice.acme.example",
        "*",
        "",
    ] {
        unknown(options(name), &format!("URI {name}")).await;
    }
    let dns =
        |name: &str| LeafOptions { uri_sans: Vec::new(), dns_sans: vec![name.to_owned()], ..options("") };
    assert_eq!(
        whoami(&vault, &leaf(&ours, &dns("backoffice.acme.example"))).await.expect(200).text_at("/client"),
        "by-dns"
    );
    for name in [
        "Backoffice.acme.example",
        "backoffice.acme.example.",
        "*.acme.example",
        "x.backoffice.acme.example",
        "acme.example",
        CHECKOUT,
        "checkout",
    ] {
        unknown(dns(name), &format!("DNS {name}")).await;
    }
    // The common name says nothing, whatever it says.
    for name in [CHECKOUT, "checkout", "backoffice.acme.example"] {
        let only = LeafOptions { common_name: name.to_owned(), uri_sans: Vec::new(), ..options("") };
        unknown(only, &format!("common name {name}")).await;
        let beside = LeafOptions { common_name: name.to_owned(), ..options("spiffe://cardvault/nobody") };
        unknown(beside, &format!("common name {name} beside another name")).await;
    }
    // One more name does no harm, unless it is another client's.
    let two =
        |other: &str| LeafOptions { uri_sans: vec![CHECKOUT.to_owned(), other.to_owned()], ..options("") };
    assert_eq!(whoami(&vault, &leaf(&ours, &two("urn:x"))).await.expect(200).text_at("/client"), "checkout");
    unknown(two("spiffe://cardvault/globex/rival"), "two clients' names").await;
    let mixed = LeafOptions { dns_sans: vec!["backoffice.acme.example".to_owned()], ..options(CHECKOUT) };
    unknown(mixed, "two clients' names of two kinds").await;
    // A pinned name needs its key.
    assert_eq!(whoami(&vault, &pinned).await.expect(200).text_at("/client"), "pinned");
    unknown(options("spiffe://cardvault/acme/pinned"), "another key than the pinned one").await;

    // 403 comes before everything else: no path, method or body tells anything.
    let nobody = leaf(&ours, &options("spiffe://cardvault/acme/nobody"));
    for (method, path, body) in [
        ("GET", "/v1/nothing", None),
        ("GET", "/v1//cards", None),
        ("TRACE", "/v1/cards", None),
        ("POST", "/v1/cards", Some(&b"{"[..])),
        ("DELETE", "/v1/cards/card_0123456789ABCDEFGHJKMNPQRSTVWXYZ", None),
    ] {
        let mut wire = Wire::connect(&vault, Some(&nobody)).await.expect("a connection");
        let answer = wire.request(method, path, body).await.expect("an answer");
        answer.expect_problem(403, "client_not_known");
    }
    vault.finish(&[]).await;
}

/// A certificate that ends while its connection is open: the next request on it is refused, and so is
/// the next connection. A client that is taken out of the configuration is out with the restart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_ends_on_an_open_connection_too() {
    let db = Database::sqlite();
    let mut vault = TestVault::start(&db).await;
    let ours = authority(&vault);
    let short = LeafOptions { not_after: after_now(3), ..options(CHECKOUT) };
    let end = Millis(short.not_after.0 / 1000 * 1000);
    let short = leaf(&ours, &short);
    let mut wire = Wire::connect(&vault, Some(&short)).await.expect("a connection");
    let told = wire.request("GET", "/v1/whoami", None).await.expect("an answer").expect(200);
    assert_eq!(told.text_at("/certificateExpiresAt"), end.rfc3339());
    while SystemClock.now().0 <= end.0 + 1000 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let answer = wire.request("GET", "/v1/cards", None).await.expect("an answer");
    answer.expect_problem(403, "certificate_expired");
    is_not_served(&vault, Some(&short), "expired").await;

    let rival = Identity::of(&vault, "rival");
    whoami(&vault, &rival).await.expect(200);
    vault.config.client.retain(|client| client.name != "rival");
    vault.restart().await;
    whoami(&vault, &rival).await.expect_problem(403, "client_not_known");
    vault.finish(&[]).await;
}
