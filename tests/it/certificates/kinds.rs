//! Every kind of client certificate that we could think of, against the real listener: good ones of every
//! algorithm, and what must be refused by the handshake, or is good and yet nobody's.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use cardvault::config::{ClientSection, Config};
use data_encoding::{BASE64, HEXLOWER};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CustomExtension, DnType,
    ExtendedKeyUsagePurpose as Eku, GeneralSubtree, IsCa, Issuer, KeyIdMethod, KeyPair,
    KeyUsagePurpose as Ku, NameConstraints, RevokedCertParams, SanType, SerialNumber, SigningKey,
    date_time_ymd,
};
use ring::digest;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use time::{Duration as Span, OffsetDateTime};

use super::{CHECKOUT, WHOAMI};
use crate::support::Database;
use crate::support::vault::TestVault;
use crate::support::wire::{Identity, Wire};

const PINNED: &str = "spiffe://cardvault/acme/pinned";
const BY_DNS: &str = "backoffice.acme.example";
const P256: &rcgen::SignatureAlgorithm = &rcgen::PKCS_ECDSA_P256_SHA256;

/// What comes of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    /// No byte of HTTP.
    Refused,
    /// 403: good, and no client's.
    Nobody,
    /// 200, as this client.
    Client(&'static str),
}

use Outcome::{Client, Nobody, Refused};

struct Ca {
    der: Vec<u8>,
    id: Vec<u8>,
    issuer: Issuer<'static, KeyPair>,
}

fn key(algorithm: &'static rcgen::SignatureAlgorithm) -> KeyPair {
    KeyPair::generate_for(algorithm).expect("a key")
}

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = OffsetDateTime::now_utc() - Span::hours(1);
    params.not_after = OffsetDateTime::now_utc() + Span::hours(1);
    params.use_authority_key_identifier_extension = true;
    params
}

/// An authority, below another one or by itself.
fn ca(name: &str, above: Option<&Ca>, change: impl FnOnce(&mut CertificateParams)) -> Ca {
    ca_with(key(P256), name, above, change)
}

fn ca_with(key: KeyPair, name: &str, above: Option<&Ca>, change: impl FnOnce(&mut CertificateParams)) -> Ca {
    let mut params = params(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![Ku::KeyCertSign, Ku::CrlSign];
    change(&mut params);
    let made = match above {
        Some(above) => params.signed_by(&key, &above.issuer),
        None => params.self_signed(&key),
    };
    let id = params.key_identifier(&key);
    Ca { der: made.expect("a certificate").der().to_vec(), id, issuer: Issuer::new(params, key) }
}

/// A good certificate of checkout's name, but for what `change` does to it.
fn leaf(ca: &Ca, change: impl FnOnce(&mut CertificateParams)) -> Identity {
    leaf_with(ca, key(P256), change)
}

fn leaf_with(ca: &Ca, key: KeyPair, change: impl FnOnce(&mut CertificateParams)) -> Identity {
    let mut params = params("for people");
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![Ku::DigitalSignature];
    params.extended_key_usages = vec![Eku::ClientAuth];
    params.subject_alt_names = vec![uri(CHECKOUT)];
    change(&mut params);
    let made = params.signed_by(&key, &ca.issuer).expect("a certificate");
    Identity { pem: pem(made.der()), key: key.serialize_pem().into_bytes() }
}

fn uri(name: &str) -> SanType {
    SanType::URI(name.try_into().expect("ASCII"))
}

fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().expect("ASCII"))
}

fn pem(der: &[u8]) -> Vec<u8> {
    let text = BASE64.encode(der);
    let lines: Vec<&str> =
        text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n")).into_bytes()
}

fn der(identity: &Identity) -> Vec<u8> {
    CertificateDer::from_pem_slice(&identity.pem).expect("PEM").to_vec()
}

/// The same with more certificates behind it.
fn chained(mut identity: Identity, behind: &[&[u8]]) -> Identity {
    for one in behind {
        identity.pem.extend(pem(one));
    }
    identity
}

fn revocations(ca: &Ca, serials: &[&[u8]]) -> Vec<u8> {
    let now = OffsetDateTime::now_utc();
    let list = CertificateRevocationListParams {
        this_update: now - Span::hours(1),
        next_update: now + Span::hours(1),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: serials
            .iter()
            .map(|serial| RevokedCertParams {
                serial_number: SerialNumber::from_slice(serial),
                revocation_time: now - Span::minutes(30),
                reason_code: None,
                invalidity_date: None,
            })
            .collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    list.signed_by(&ca.issuer).expect("a list").der().to_vec()
}

/// Tag, length, content.
pub(super) fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len();
    let mut out = vec![tag];
    if length < 128 {
        out.push(u8::try_from(length).unwrap());
    } else {
        let bytes: Vec<u8> = length.to_be_bytes().into_iter().skip_while(|byte| *byte == 0).collect();
        out.push(0x80 | u8::try_from(bytes.len()).unwrap());
        out.extend(bytes);
    }
    out.extend(content);
    out
}

/// The elements inside of a sequence, each with its tag and length.
pub(super) fn elements(sequence: &[u8]) -> Vec<Vec<u8>> {
    let header = |bytes: &[u8]| match bytes[1] {
        short if short < 128 => (2, usize::from(short)),
        long => {
            let count = usize::from(long & 0x7f);
            (2 + count, bytes[2..2 + count].iter().fold(0, |sum, byte| (sum << 8) | usize::from(*byte)))
        }
    };
    let (start, length) = header(sequence);
    let mut rest = &sequence[start..start + length];
    let mut found = Vec::new();
    while !rest.is_empty() {
        let (start, length) = header(rest);
        found.push(rest[..start + length].to_vec());
        rest = &rest[start + length..];
    }
    found
}

/// The certificate with its signed part changed, and signed again by the authority. The elements are
/// version, serial, algorithm, issuer, validity, subject, key, extensions.
fn changed(ca: &Ca, mut identity: Identity, change: impl FnOnce(&mut Vec<Vec<u8>>)) -> Identity {
    let whole = elements(&der(&identity));
    let mut parts = elements(&whole[0]);
    change(&mut parts);
    let tbs = tlv(0x30, &parts.concat());
    let signature = ca.issuer.key().sign(&tbs).expect("a signature");
    let signature = tlv(0x03, &[&[0][..], &signature].concat());
    identity.pem = pem(&tlv(0x30, &[tbs, whole[1].clone(), signature].concat()));
    identity
}

/// The certificate with its outer elements changed: signed part, algorithm, signature.
fn tampered(mut identity: Identity, change: impl FnOnce(&mut Vec<Vec<u8>>)) -> Identity {
    let mut whole = elements(&der(&identity));
    change(&mut whole);
    identity.pem = pem(&tlv(0x30, &whole.concat()));
    identity
}

fn spki(identity: &Identity) -> String {
    let whole = elements(&der(identity));
    HEXLOWER.encode(digest::digest(&digest::SHA256, &elements(&whole[0])[6]).as_ref())
}

fn rsa_key() -> KeyPair {
    let pair = cardvault::pki::rsa_key_pair().expect("a key");
    KeyPair::from_pem(pair.private_pkcs8_pem.expose()).expect("a key")
}

fn extension(oid: &[u64], critical: bool, content: &[u8]) -> CustomExtension {
    let mut extension = CustomExtension::from_oid_content(oid, content.to_vec());
    extension.set_criticality(critical);
    extension
}

/// An authority's name constraints as DER, for forms of names that no library writes.
fn permitted_uris(host: &str) -> CustomExtension {
    let subtree = tlv(0x30, &tlv(0x86, host.as_bytes()));
    extension(&[2, 5, 29, 30], true, &tlv(0x30, &tlv(0xa0, &subtree)))
}

#[derive(Default)]
struct Table(Vec<(String, Option<Identity>, Outcome)>);

impl Table {
    fn add(&mut self, what: &str, identity: Identity, outcome: Outcome) {
        self.0.push((what.to_owned(), Some(identity), outcome));
    }
}

struct World {
    root: Ca,
    table: Table,
    pin: String,
    lists: Vec<Vec<u8>>,
}

fn world() -> World {
    let root = ca("clients", None, |_| {});
    let middle = ca("below", Some(&root), |_| {});
    let deeper = ca("further below", Some(&middle), |_| {});
    let last = ca("below, and nothing under it", Some(&root), |p| {
        p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0))
    });
    let too_deep = ca("under that which has nothing under it", Some(&last), |_| {});
    let expired = ca("expired", Some(&root), |p| p.not_after = OffsetDateTime::now_utc() - Span::minutes(1));
    let for_servers = ca("for servers", Some(&root), |p| p.extended_key_usages = vec![Eku::ServerAuth]);
    let revoked =
        ca("revoked", Some(&root), |p| p.serial_number = Some(SerialNumber::from_slice(&[0x55; 9])));
    let unlisted = ca("without a list", Some(&root), |_| {});
    let not_ca = ca("no authority", Some(&root), |p| p.is_ca = IsCa::ExplicitNoCa);
    let rsa = ca_with(rsa_key(), "RSA", Some(&root), |_| {});
    let dns_only = ca("for some names", Some(&root), |p| {
        p.name_constraints = Some(NameConstraints {
            permitted_subtrees: vec![GeneralSubtree::DnsName("acme.example".into())],
            excluded_subtrees: vec![GeneralSubtree::DnsName("x.acme.example".into())],
        });
    });
    let uris_only = ca("for some URIs", Some(&root), |p| p.custom_extensions.push(permitted_uris("globex")));
    let stranger = ca("strangers", None, |_| {});
    let namesake = ca("clients", None, |_| {});
    let listed = [
        &root,
        &middle,
        &deeper,
        &last,
        &too_deep,
        &expired,
        &for_servers,
        &revoked,
        &rsa,
        &dns_only,
        &uris_only,
    ];
    let lists = listed
        .iter()
        .enumerate()
        .map(|(place, ca)| {
            let of_root: &[&[u8]] = &[&[0x55; 9], &[0x66; 9], &[0x77; 9]];
            revocations(ca, if place == 0 { of_root } else { &[&[0x44; 9]] })
        })
        .collect();
    let pinned = leaf(&root, |p| p.subject_alt_names = vec![uri(PINNED)]);
    let pin = spki(&pinned);
    let mut w = Table::default();

    // Algorithms.
    w.add("P-256", leaf(&root, |_| {}), Client("checkout"));
    w.add("P-384", leaf_with(&root, key(&rcgen::PKCS_ECDSA_P384_SHA384), |_| {}), Client("checkout"));
    w.add("Ed25519", leaf_with(&root, key(&rcgen::PKCS_ED25519), |_| {}), Client("checkout"));
    w.add("RSA 2048", leaf_with(&root, rsa_key(), |_| {}), Client("checkout"));
    w.add("P-256 by an RSA authority", chained(leaf(&rsa, |_| {}), &[&rsa.der]), Client("checkout"));
    let sha1 = [0x30, 0x09, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x01].to_vec();
    let weak = changed(&root, leaf(&root, |_| {}), |parts| parts[2] = sha1.clone());
    w.add("ECDSA with SHA-1", tampered(weak, |whole| whole[1] = sha1), Refused);

    // Issuers.
    w.0.push(("no certificate".into(), None, Refused));
    w.add("another authority", leaf(&stranger, |_| {}), Refused);
    w.add("another authority, shown", chained(leaf(&stranger, |_| {}), &[&stranger.der]), Refused);
    w.add("another authority, ours behind it", chained(leaf(&stranger, |_| {}), &[&root.der]), Refused);
    w.add("an authority of the same name", leaf(&namesake, |_| {}), Refused);
    let same_id = ca("clients", None, |p| {
        p.key_identifier_method = KeyIdMethod::PreSpecified(root.id.clone());
    });
    w.add("an authority of the same name and key id", leaf(&same_id, |_| {}), Refused);
    let own = ca("myself", None, |p| {
        p.is_ca = IsCa::ExplicitNoCa;
        p.key_usages = vec![Ku::DigitalSignature];
        p.extended_key_usages = vec![Eku::ClientAuth];
        p.subject_alt_names = vec![uri(CHECKOUT)];
    });
    let itself = |ca: &Ca| Identity { pem: pem(&ca.der), key: ca.issuer.key().serialize_pem().into_bytes() };
    w.add("self-signed", itself(&own), Refused);
    let own_root = ca("clients", None, |p| {
        p.extended_key_usages = vec![Eku::ClientAuth];
        p.subject_alt_names = vec![uri(CHECKOUT)];
    });
    w.add("self-signed, of the authority's name", itself(&own_root), Refused);
    w.add("the authority itself", itself(&root), Refused);
    w.add("an authority below it", itself(&middle), Refused);
    let mighty = ca("an authority and a client", Some(&root), |p| {
        p.key_usages = vec![Ku::DigitalSignature, Ku::KeyCertSign];
        p.extended_key_usages = vec![Eku::ClientAuth];
        p.subject_alt_names = vec![uri(CHECKOUT)];
    });
    w.add("an authority with a client's name and usage", itself(&mighty), Refused);

    // Time.
    let now = OffsetDateTime::now_utc();
    w.add("expired", leaf(&root, |p| p.not_after = now - Span::minutes(5)), Refused);
    w.add("expired just now", leaf(&root, |p| p.not_after = now - Span::seconds(2)), Refused);
    w.add("not valid yet", leaf(&root, |p| p.not_before = now + Span::minutes(5)), Refused);
    w.add(
        "ends before it begins",
        leaf(&root, |p| {
            p.not_before = now + Span::minutes(5);
            p.not_after = now - Span::minutes(5);
        }),
        Refused,
    );
    w.add("since 1971", leaf(&root, |p| p.not_before = date_time_ymd(1971, 1, 1)), Client("checkout"));
    w.add("since before clocks count", leaf(&root, |p| p.not_before = date_time_ymd(1950, 1, 1)), Refused);
    w.add("until 9999", leaf(&root, |p| p.not_after = date_time_ymd(9999, 12, 31)), Client("checkout"));

    // What it is for.
    let ekus: &[(&str, Vec<Eku>, Outcome)] = &[
        ("nothing said", vec![], Refused),
        ("servers", vec![Eku::ServerAuth], Refused),
        ("signing code", vec![Eku::CodeSigning], Refused),
        ("anything", vec![Eku::Any], Refused),
        ("something of our own", vec![Eku::Other(vec![1, 3, 6, 1, 4, 1, 99999, 1])], Refused),
        ("clients and servers", vec![Eku::ServerAuth, Eku::ClientAuth], Client("checkout")),
        ("mail and clients", vec![Eku::EmailProtection, Eku::ClientAuth], Client("checkout")),
        ("clients and anything", vec![Eku::Any, Eku::ClientAuth], Client("checkout")),
    ];
    for (what, usages, outcome) in ekus {
        let made = leaf(&root, |p| p.extended_key_usages.clone_from(usages));
        w.add(&format!("extended usage: {what}"), made, outcome.clone());
    }
    let kus: &[(&str, Vec<Ku>, Outcome)] = &[
        ("nothing said", vec![], Client("checkout")),
        ("signatures and encipherment", vec![Ku::DigitalSignature, Ku::KeyEncipherment], Client("checkout")),
        ("encipherment", vec![Ku::KeyEncipherment], Refused),
        ("agreement", vec![Ku::KeyAgreement], Refused),
        ("certificates", vec![Ku::KeyCertSign], Refused),
        ("lists", vec![Ku::CrlSign], Refused),
    ];
    for (what, usages, outcome) in kus {
        let made = leaf(&root, |p| p.key_usages.clone_from(usages));
        w.add(&format!("key usage: {what}"), made, outcome.clone());
    }

    // Names.
    let email = |name: &str| SanType::Rfc822Name(name.try_into().expect("ASCII"));
    let common = |name: &'static str| {
        move |p: &mut CertificateParams| p.distinguished_name.push(DnType::CommonName, name)
    };
    let names: &[(&str, Vec<SanType>, Outcome)] = &[
        ("none", vec![], Nobody),
        ("a URI of nobody", vec![uri("spiffe://cardvault/acme/nobody")], Nobody),
        ("another case", vec![uri("spiffe://cardvault/acme/Checkout")], Nobody),
        ("another case of the scheme", vec![uri("SPIFFE://cardvault/acme/checkout")], Nobody),
        ("another case of the host", vec![uri("spiffe://Cardvault/acme/checkout")], Nobody),
        ("a slash at its end", vec![uri("spiffe://cardvault/acme/checkout/")], Nobody),
        ("an encoded letter", vec![uri("spiffe://cardvault/acme/%63heckout")], Nobody),
        ("a query", vec![uri("spiffe://cardvault/acme/checkout?x")], Nobody),
        ("a fragment", vec![uri("spiffe://cardvault/acme/checkout#x")], Nobody),
        ("a dotted path", vec![uri("spiffe://cardvault/acme/./checkout")], Nobody),
        ("a part of it", vec![uri("spiffe://cardvault/acme/check")], Nobody),
        ("a NUL behind it", vec![uri("spiffe://cardvault/acme/checkout\0")], Nobody),
        ("a NUL and more", vec![uri("spiffe://cardvault/acme/checkout\0.example")], Nobody),
        ("the URI as a DNS name", vec![dns(CHECKOUT)], Nobody),
        ("the URI as a mail address", vec![email(CHECKOUT)], Nobody),
        ("a DNS name", vec![dns(BY_DNS)], Client("by-dns")),
        ("a wildcard", vec![dns("*.acme.example")], Nobody),
        ("a wildcard of everything", vec![dns("*")], Nobody),
        ("a DNS name of another case", vec![dns("Backoffice.acme.example")], Nobody),
        ("a DNS name with its dot", vec![dns("backoffice.acme.example.")], Nobody),
        ("the domain above", vec![dns("acme.example")], Nobody),
        ("a domain below", vec![dns("x.backoffice.acme.example")], Nobody),
        ("the DNS name as a URI", vec![uri(BY_DNS)], Nobody),
        ("the DNS name as a URI's host", vec![uri("https://backoffice.acme.example")], Nobody),
        ("a mail address", vec![email("x@backoffice.acme.example")], Nobody),
        ("an IP address", vec![SanType::IpAddress(Ipv4Addr::LOCALHOST.into())], Nobody),
        (
            "an other name",
            vec![SanType::OtherName((vec![1, 3, 6, 1, 4, 1, 311, 20, 2, 3], CHECKOUT.into()))],
            Nobody,
        ),
        (
            "ours among others",
            vec![uri("urn:a"), email("a@b"), uri(CHECKOUT), dns("a.b")],
            Client("checkout"),
        ),
        ("ours twice", vec![uri(CHECKOUT), uri(CHECKOUT)], Client("checkout")),
        ("two clients'", vec![uri(CHECKOUT), uri("spiffe://cardvault/globex/rival")], Nobody),
        ("two clients', of two kinds", vec![uri(CHECKOUT), dns(BY_DNS)], Nobody),
    ];
    for (what, names, outcome) in names {
        let made = leaf(&root, |p| p.subject_alt_names.clone_from(names));
        w.add(&format!("name: {what}"), made, outcome.clone());
    }
    let many: Vec<SanType> = (0..100).map(|n| uri(&format!("urn:n:{n}"))).chain([uri(CHECKOUT)]).collect();
    w.add("name: ours among a hundred", leaf(&root, |p| p.subject_alt_names = many), Client("checkout"));
    let only_common = leaf(&root, |p| {
        p.subject_alt_names.clear();
        common(CHECKOUT)(p);
    });
    w.add("name: only as a common name", only_common, Nobody);
    let beside = leaf(&root, |p| {
        p.subject_alt_names = vec![uri("spiffe://cardvault/acme/nobody")];
        common(CHECKOUT)(p);
    });
    w.add("name: a common name beside another's", beside, Nobody);
    w.add(
        "name: in an empty subject",
        leaf(&root, |p| p.distinguished_name = rcgen::DistinguishedName::new()),
        Client("checkout"),
    );
    w.add("pinned key", pinned, Client("pinned"));
    w.add("another than the pinned key", leaf(&root, |p| p.subject_alt_names = vec![uri(PINNED)]), Nobody);

    // Extensions and shapes.
    let odd = |critical| extension(&[1, 3, 6, 1, 4, 1, 99999, 7], critical, &[5, 0]);
    w.add("an unknown extension", leaf(&root, |p| p.custom_extensions.push(odd(false))), Client("checkout"));
    w.add("an unknown critical extension", leaf(&root, |p| p.custom_extensions.push(odd(true))), Refused);
    let names_again = tlv(0x30, &tlv(0x86, b"spiffe://cardvault/globex/rival"));
    let twice = leaf(&root, |p| p.custom_extensions.push(extension(&[2, 5, 29, 17], false, &names_again)));
    w.add("names in two extensions", twice, Refused);
    let version_1 = changed(&root, leaf(&root, |_| {}), |parts| {
        parts.remove(7);
        parts.remove(0);
    });
    w.add("version 1", version_1, Refused);
    let version_1 = changed(&root, leaf(&root, |_| {}), |parts| drop(parts.remove(0)));
    w.add("version 1 with extensions", version_1, Refused);
    let version_2 = changed(&root, leaf(&root, |_| {}), |parts| parts[0] = vec![0xa0, 3, 2, 1, 1]);
    w.add("version 2", version_2, Refused);
    w.add("signed again without a change", changed(&root, leaf(&root, |_| {}), |_| {}), Client("checkout"));
    let flipped = tampered(leaf(&root, |_| {}), |whole| *whole[2].last_mut().unwrap() ^= 1);
    w.add("a bit of the signature flipped", flipped, Refused);
    let near = leaf(&root, |p| p.subject_alt_names = vec![uri("spiffe://cardvault/acme/checkouT")]);
    let renamed = tampered(near, |whole| {
        let at = whole[0].windows(8).position(|window| window == b"checkouT").unwrap();
        whole[0][at + 7] = b't';
    });
    w.add("a letter of the name changed after signing", renamed, Refused);
    let ed25519 = [0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70].to_vec();
    w.add("two algorithms", tampered(leaf(&root, |_| {}), |whole| whole[1] = ed25519), Refused);
    let mut longer = leaf(&root, |_| {});
    longer.pem = pem(&[der(&longer), vec![0]].concat());
    w.add("a byte more", longer, Refused);
    let mut other_key = leaf(&root, |_| {});
    other_key.key = leaf(&root, |_| {}).key;
    w.add("the key of another certificate", other_key, Refused);
    let large = leaf(&root, |p| {
        p.custom_extensions.push(extension(&[1, 3, 6, 1, 4, 1, 99999, 8], false, &[4; 20_000]))
    });
    w.add("twenty thousand bytes", large, Refused);

    // Chains.
    let below = || leaf(&middle, |_| {});
    w.add("one authority between", chained(below(), &[&middle.der]), Client("checkout"));
    w.add("one between, not shown", below(), Refused);
    let far_below = || leaf(&deeper, |_| {});
    w.add("two between", chained(far_below(), &[&deeper.der, &middle.der]), Client("checkout"));
    w.add(
        "two between, in the other order",
        chained(far_below(), &[&middle.der, &deeper.der]),
        Client("checkout"),
    );
    w.add("two between, one not shown", chained(far_below(), &[&deeper.der]), Refused);
    w.add("the authority behind it", chained(leaf(&root, |_| {}), &[&root.der]), Client("checkout"));
    w.add("a stranger behind it", chained(leaf(&root, |_| {}), &[&stranger.der]), Client("checkout"));
    w.add("under the last that may be", chained(leaf(&last, |_| {}), &[&last.der]), Client("checkout"));
    w.add("a path too long", chained(leaf(&too_deep, |_| {}), &[&too_deep.der, &last.der]), Refused);
    w.add("signed by a leaf", chained(leaf(&not_ca, |_| {}), &[&not_ca.der]), Refused);
    w.add("an expired authority between", chained(leaf(&expired, |_| {}), &[&expired.der]), Refused);
    w.add(
        "an authority for servers between",
        chained(leaf(&for_servers, |_| {}), &[&for_servers.der]),
        Refused,
    );
    let hundred: Vec<&[u8]> = (0..100).map(|_| &*stranger.der).collect();
    w.add("a hundred behind it", chained(leaf(&root, |_| {}), &hundred), Refused);
    let nine: Vec<&[u8]> = (0..9).map(|_| &*stranger.der).collect();
    w.add("nine behind it", chained(leaf(&root, |_| {}), &nine), Refused);

    // Names that an authority may give.
    let in_names =
        |names: Vec<SanType>| chained(leaf(&dns_only, |p| p.subject_alt_names = names), &[&dns_only.der]);
    w.add("constraints: a permitted name", in_names(vec![dns(BY_DNS)]), Client("by-dns"));
    w.add("constraints: an excluded name", in_names(vec![dns("y.x.acme.example")]), Refused);
    w.add("constraints: a name beside them", in_names(vec![dns("globex.example")]), Refused);
    w.add("constraints: one of two beside them", in_names(vec![dns(BY_DNS), dns("globex.example")]), Refused);
    let in_uris = chained(leaf(&uris_only, |_| {}), &[&uris_only.der]);
    w.add("constraints: a URI beside them", in_uris, Refused);

    // Revocation.
    let serial = |bytes: &[u8]| Some(SerialNumber::from_slice(bytes));
    w.add("revoked", leaf(&root, |p| p.serial_number = serial(&[0x66; 9])), Refused);
    w.add(
        "another of the revoked one's number",
        leaf(&root, |p| {
            p.serial_number = serial(&[0x77; 9]);
            p.subject_alt_names = vec![dns(BY_DNS)];
        }),
        Refused,
    );
    let same_number = leaf(&middle, |p| p.serial_number = serial(&[0x66; 9]));
    w.add(
        "the revoked one's number, by another authority",
        chained(same_number, &[&middle.der]),
        Client("checkout"),
    );
    let revoked_below = leaf(&middle, |p| p.serial_number = serial(&[0x44; 9]));
    w.add("revoked by the authority between", chained(revoked_below, &[&middle.der]), Refused);
    w.add("a revoked authority between", chained(leaf(&revoked, |_| {}), &[&revoked.der]), Refused);
    w.add("an authority between without a list", chained(leaf(&unlisted, |_| {}), &[&unlisted.der]), Refused);
    for bytes in [&[1][..], &[0x7f; 20], &[0x11; 8]] {
        let made = || leaf(&root, |p| p.serial_number = serial(bytes));
        w.add(&format!("a number of {} bytes", bytes.len()), made(), Client("checkout"));
        w.add(&format!("the same number of {} bytes again", bytes.len()), made(), Client("checkout"));
    }
    World { root, table: w, pin, lists }
}

async fn outcome(vault: &TestVault, who: Option<&Identity>) -> Outcome {
    let Ok(mut wire) = Wire::connect(vault, who).await else { return Refused };
    if wire.send(WHOAMI).await.is_err() {
        return Refused;
    }
    match wire.answer().await {
        Err(_) => Refused,
        Ok(answer) if answer.status == 200 => {
            let names = ["checkout", "by-dns", "pinned", "subscriptions", "backoffice", "rival"];
            let told = answer.text_at("/client");
            Client(names.into_iter().find(|name| *name == told).expect("a client"))
        }
        Ok(answer) => {
            answer.expect_problem(403, "client_not_known");
            Nobody
        }
    }
}

fn client(name: &str, uri: Option<&str>, dns: Option<&str>, pin: Option<String>) -> ClientSection {
    let mut section: ClientSection =
        toml::from_str("name = ''\nmerchant = 'acme'\nscopes = []").expect("a section");
    section.name = name.to_owned();
    section.uri = uri.map(str::to_owned);
    section.dns = dns.map(str::to_owned);
    section.spki_sha256 = pin;
    section
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind_of_certificate_has_its_outcome() {
    let db = Database::sqlite();
    let world = world();
    let change = |config: &mut Config| {
        let pki = config.api.client_ca.parent().expect("a folder").to_owned();
        config.api.client_ca = pki.join("clients-ca.pem");
        std::fs::write(&config.api.client_ca, pem(&world.root.der)).expect("a file");
        config.api.crl =
            world.lists.iter().enumerate().map(|(place, _)| pki.join(format!("{place}.crl"))).collect();
        for (path, list) in config.api.crl.iter().zip(&world.lists) {
            std::fs::write(path, list).expect("a file");
        }
        config.client.push(client("by-dns", None, Some(BY_DNS), None));
        config.client.push(client("pinned", Some(PINNED), None, Some(world.pin.clone())));
    };
    let vault = TestVault::start_with(&db, change).await;
    let mut wrong = Vec::new();
    let mut whats = BTreeSet::new();
    for (what, identity, expected) in &world.table.0 {
        assert!(whats.insert(what), "{what} is there twice");
        let came = outcome(&vault, identity.as_ref()).await;
        if came != *expected {
            wrong.push(format!("{what}: {came:?} instead of {expected:?}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), world.table.0.len(), wrong.join("\n"));
    assert!(world.table.0.len() >= 100, "{}", world.table.0.len());
    // The certificate of a server, and one of the authority that `init` made, which is not asked for here.
    let server = Identity {
        pem: std::fs::read(vault.dir.path().join("pki/server.pem")).expect("a file"),
        key: std::fs::read(vault.dir.path().join("pki/server.key")).expect("a file"),
    };
    assert_eq!(outcome(&vault, Some(&server)).await, Refused);
    assert_eq!(outcome(&vault, Some(&Identity::of(&vault, "checkout"))).await, Refused);
    vault.finish(&[]).await;
}
