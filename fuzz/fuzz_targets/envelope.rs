//! Sealed records: bytes that nobody sealed do not open, and neither does a record with anything changed.
#![no_main]

use std::sync::LazyLock;

use cardvault::base::ids::Merchant;
use cardvault::base::sealed::Sealed;
use cardvault::base::secret::SecretBuf;
use cardvault::crypto::aad::{Field, Place};
use cardvault::crypto::envelope;
use cardvault::crypto::keyring::{DataKey, Purpose, make_data_key};
use libfuzzer_sys::fuzz_target;

struct Ground {
    key: DataKey,
    merchant: Merchant,
    sealed: Sealed,
}

const RECORD: &str = "card_FUZZ";

fn place(merchant: &Merchant, field: Field) -> Place<'_> {
    Place { merchant, record: RECORD, field }
}

static GROUND: LazyLock<Ground> = LazyLock::new(|| {
    let key = make_data_key(Purpose::Card).expect("entropy");
    let merchant = Merchant::parse("acme").expect("a merchant");
    let mut plain = SecretBuf::with_capacity(64);
    plain.push(b"{\"expiryMonth\":\"12\"}").expect("room");
    let sealed = envelope::seal(&key, &place(&merchant, Field::Details), &plain).expect("sealed");
    Ground { key, merchant, sealed }
});

fuzz_target!(|bytes: &[u8]| {
    let Ground { key, merchant, sealed } = &*GROUND;
    let foreign = Sealed::from_bytes(bytes.to_vec());
    // The id that it claims is read before anything is proven.
    let _claim = envelope::dek_id(&foreign);
    for field in Field::ALL {
        assert!(envelope::opens(key, &place(merchant, field), &foreign).is_err(), "opened what nobody sealed");
    }
    // The input as a list of changes: a place and what is laid over it there, then a length to cut at.
    let mut altered = sealed.as_bytes().to_vec();
    for change in bytes.chunks_exact(3) {
        let place = usize::from(u16::from_le_bytes([change[0], change[1]])) % altered.len();
        altered[place] ^= change[2];
    }
    if let Some(cut) = bytes.first().filter(|_| bytes.len() % 3 == 1) {
        altered.truncate(usize::from(*cut));
    }
    let same = altered == sealed.as_bytes();
    let opened = envelope::open(key, &place(merchant, Field::Details), &Sealed::from_bytes(altered));
    assert!(opened.is_ok() == same, "a changed record opened, or an unchanged one did not");
});
