//! What the gateway sends: headers and bodies that nobody signed are refused; signed ones of any content are
//! read and scrubbed without a panic, and what is scrubbed holds neither the card number nor the CVV.
#![no_main]

use std::sync::LazyLock;

use cardvault::base::card::Pan;
use cardvault::gateway::antom::notification;
use cardvault::gateway::antom::scrub::{self, Own};
use cardvault::gateway::antom::sign::SigningKey;
use cardvault::gateway::antom::verify::{SignatureHeaders, Verifier};
use libfuzzer_sys::fuzz_target;

const CLIENT: &str = "SANDBOX_5YBX5A2ZZZZZ00000";
const PATH: &str = "/notify";
const TIME: &str = "2026-01-02T03:04:05Z";
/// A well-known test number.
const PAN: &str = "4111111111111111";

struct Ground {
    signing: SigningKey,
    verifier: Verifier,
    pan: Pan,
}

static GROUND: LazyLock<Ground> = LazyLock::new(|| {
    let pair = cardvault::pki::rsa_key_pair().expect("a key pair");
    let signing = SigningKey::read(&pair.private_pkcs8_pem, 1).expect("a private key");
    let mut verifier = Verifier::new(CLIENT);
    verifier.add_key(1, &pair.public_spki_pem).expect("a public key");
    Ground { signing, verifier, pan: Pan::from_stored(PAN).expect("a number") }
});

fuzz_target!(|bytes: &[u8]| {
    let Ground { signing, verifier, pan } = &*GROUND;
    let (forged, body) = bytes.split_at(bytes.len().min(bytes.first().copied().unwrap_or(0).into()));
    if let Ok(header) = std::str::from_utf8(forged) {
        let _time = notification::request_time(header);
        let headers =
            SignatureHeaders { client_id: Some(CLIENT), time: Some(TIME), signature: Some(header) };
        assert!(verifier.verify(PATH, &headers, body).is_err(), "verified what nobody signed");
    }
    let Ok(signature) = signing.sign(PATH, CLIENT, TIME, body) else { return };
    let headers =
        SignatureHeaders { client_id: Some(CLIENT), time: Some(TIME), signature: Some(&signature) };
    let verified = verifier.verify(PATH, &headers, body);
    let Ok(text) = std::str::from_utf8(body) else {
        assert!(verified.is_err(), "verified what is no text");
        return;
    };
    let Ok(verified) = verified else { panic!("a signed notification is refused") };
    let _notice = notification::read(&verified);
    let own = Own { pan: Some(pan), cvv: None, token: None, token_card: None };
    if let Some(clean) = scrub::scrub(text, own) {
        assert!(!clean.contains(PAN), "a card number came through");
        let own = Own { pan: Some(pan), cvv: None, token: None, token_card: None };
        assert!(scrub::scrub(&clean, own).is_some(), "what is scrubbed is no JSON any more");
    }
});
