//! Sealed records. `docs/envelope.md` specifies the bytes; this is the only code that makes or reads them.
//!
//! A record opens under the key that it names and in the place that it was sealed for, or it "could not
//! be opened": one error for every cause, so that nobody learns from it (PCI DSS 3.5.1, 3.7).

use crate::base::card::Pan;
use crate::base::entropy::NoEntropy;
use crate::base::ids::DekId;
use crate::base::sealed::Sealed;
use crate::base::secret::SecretBuf;

use super::aad::{Field, Place};
use super::committed::{Binding, Fresh, NotSealed, OVERHEAD, PAD_TO, pad, unpad};
use super::keyring::{DataKey, RAW_ID, dek_id_of, raw_dek_id};
use zeroize::Zeroizing;

/// Longest plaintext of a record, in bytes. Four times the largest answer that the gateway may give.
pub const PLAINTEXT_BYTES: usize = 1024 * 1024;

/// First byte of every record.
const FORMAT_VERSION: u8 = 1;
/// Second byte: AES-256-GCM under a key from HKDF-SHA-512, with a 32-byte commitment.
const ALGORITHM: u8 = 1;
/// Version, algorithm, data key id.
const HEADER: usize = 2 + RAW_ID;
/// Bytes of a padded PAN: one for its length, up to 19 digits, zeros.
const PAN_BLOCK: usize = 24;

/// Why nothing was sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// No random bytes, so no salt and no nonce.
    #[error("the operating system gave no random bytes")]
    NoEntropy,
    /// The data key is not for records.
    #[error("a data key was used for another purpose than its own")]
    WrongPurpose,
    /// A PAN goes through [`seal_pan`] and everything else through [`seal`]: their padding differs.
    #[error("the field is sealed in another way")]
    WrongField,
    /// The plaintext is longer than [`PLAINTEXT_BYTES`].
    #[error("the plaintext is too long")]
    TooLong,
    /// What was sealed did not open again. Nothing was returned that could have been stored; the machine
    /// (its memory, its processor) or a library is at fault.
    #[error("what was sealed did not open again; check this machine's memory")]
    NotReadBack,
}

impl From<NoEntropy> for SealError {
    fn from(NoEntropy: NoEntropy) -> Self {
        Self::NoEntropy
    }
}

impl From<NotSealed> for SealError {
    fn from(reason: NotSealed) -> Self {
        match reason {
            NotSealed::Refused => Self::TooLong,
            NotSealed::NotReadBack => Self::NotReadBack,
        }
    }
}

/// Something could not be opened: another key, another place, another format, or altered bytes. There is
/// one error for all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("could not be opened")]
pub struct OpenError;

/// Why a record was not moved to another key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ResealError {
    /// The record does not open under the old key.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Nothing could be sealed under the new key.
    #[error(transparent)]
    Seal(#[from] SealError),
}

/// Seals any field but the PAN; its length shows only in steps of 64 bytes.
pub fn seal(dek: &DataKey, place: &Place<'_>, plaintext: &SecretBuf) -> Result<Sealed, SealError> {
    seal_fresh(dek, place, plaintext, &Fresh::make()?)
}

/// Opens what [`seal`] made.
pub fn open(dek: &DataKey, place: &Place<'_>, sealed: &Sealed) -> Result<SecretBuf, OpenError> {
    if place.field == Field::Pan {
        return Err(OpenError);
    }
    let block = open_block(dek, place, sealed)?;
    copy(unpad(&block).ok_or(OpenError)?)
}

/// Seals a PAN; every sealed PAN has the same length.
pub fn seal_pan(dek: &DataKey, place: &Place<'_>, pan: &Pan) -> Result<Sealed, SealError> {
    seal_pan_fresh(dek, place, pan, &Fresh::make()?)
}

/// Opens what [`seal_pan`] made.
pub fn open_pan(dek: &DataKey, place: &Place<'_>, sealed: &Sealed) -> Result<Pan, OpenError> {
    if place.field != Field::Pan {
        return Err(OpenError);
    }
    let block = open_block(dek, place, sealed)?;
    unpad_pan(&block).and_then(Pan::from_stored).ok_or(OpenError)
}

/// The id of the data key that a record names, for finding that key. It is unproven until the record
/// has been opened.
pub fn dek_id(sealed: &Sealed) -> Result<DekId, OpenError> {
    Ok(parse(sealed)?.dek)
}

/// Opens a record of any field under `old` and seals the same plaintext under `new`, in the same place.
/// The plaintext is not looked at, so rotation works for whatever was once sealed.
pub fn reseal(
    old: &DataKey,
    new: &DataKey,
    place: &Place<'_>,
    sealed: &Sealed,
) -> Result<Sealed, ResealError> {
    let block = open_block(old, place, sealed)?;
    Ok(seal_block(new, place, &block, &Fresh::make().map_err(SealError::from)?)?)
}

/// Whether a record of any field opens, and is padded as it must be. Nothing of it is kept.
pub fn opens(dek: &DataKey, place: &Place<'_>, sealed: &Sealed) -> Result<(), OpenError> {
    let block = open_block(dek, place, sealed)?;
    let sound = match place.field {
        Field::Pan => unpad_pan(&block).is_some(),
        _ => unpad(&block).is_some(),
    };
    if sound { Ok(()) } else { Err(OpenError) }
}

/// How the header of a record names its data key: bytes 3 to 22 of a record, counted from 1.
pub fn raw_key_id(id: &DekId) -> Option<[u8; RAW_ID]> {
    raw_dek_id(id)
}

/// The data key that such bytes name.
pub fn key_id_of_raw(raw: &[u8]) -> Option<DekId> {
    dek_id_of(raw.try_into().ok()?)
}

pub(super) fn seal_fresh(
    dek: &DataKey,
    place: &Place<'_>,
    plaintext: &SecretBuf,
    fresh: &Fresh,
) -> Result<Sealed, SealError> {
    if place.field == Field::Pan {
        return Err(SealError::WrongField);
    }
    if plaintext.len() > PLAINTEXT_BYTES {
        return Err(SealError::TooLong);
    }
    seal_block(dek, place, &pad(plaintext.expose()).ok_or(SealError::TooLong)?, fresh)
}

pub(super) fn seal_pan_fresh(
    dek: &DataKey,
    place: &Place<'_>,
    pan: &Pan,
    fresh: &Fresh,
) -> Result<Sealed, SealError> {
    if place.field != Field::Pan {
        return Err(SealError::WrongField);
    }
    let block = pad_pan(pan.expose()).ok_or(SealError::TooLong)?;
    seal_block(dek, place, block.as_slice(), fresh)
}

fn seal_block(dek: &DataKey, place: &Place<'_>, block: &[u8], fresh: &Fresh) -> Result<Sealed, SealError> {
    let key = dek.key_for(place.field.purpose()).map_err(|_| SealError::WrongPurpose)?;
    let mut header = [FORMAT_VERSION; HEADER];
    header[1] = ALGORITHM;
    // An id has one spelling, checked where it was parsed; its raw form always exists.
    header[2..].copy_from_slice(&raw_dek_id(dek.id()).ok_or(SealError::WrongPurpose)?);
    let (info, aad) = (place.info(dek.purpose()), place.aad(dek.id()));
    let binding = Binding { key, info: &info, aad: &aad };
    dek.count_use();
    Ok(Sealed::from_bytes(binding.seal(&header, block, fresh)?))
}

fn open_block(dek: &DataKey, place: &Place<'_>, sealed: &Sealed) -> Result<Zeroizing<Vec<u8>>, OpenError> {
    let record = parse(sealed)?;
    let key = dek.key_for(place.field.purpose()).map_err(|_| OpenError)?;
    if record.dek != *dek.id() || !length_fits(place.field, record.block_length) {
        return Err(OpenError);
    }
    let (info, aad) = (place.info(dek.purpose()), place.aad(dek.id()));
    Binding { key, info: &info, aad: &aad }.open(record.body).ok_or(OpenError)
}

/// A record taken apart; nothing of it is proven yet.
struct Record<'a> {
    dek: DekId,
    body: &'a [u8],
    block_length: usize,
}

fn parse(sealed: &Sealed) -> Result<Record<'_>, OpenError> {
    let (header, body) = sealed.as_bytes().split_first_chunk::<HEADER>().ok_or(OpenError)?;
    let [FORMAT_VERSION, ALGORITHM, raw @ ..] = header else { return Err(OpenError) };
    let block_length = body.len().checked_sub(OVERHEAD).ok_or(OpenError)?;
    if !Field::ALL.into_iter().any(|field| length_fits(field, block_length)) {
        return Err(OpenError);
    }
    Ok(Record { dek: dek_id_of(raw).ok_or(OpenError)?, body, block_length })
}

fn length_fits(field: Field, block_length: usize) -> bool {
    match field {
        Field::Pan => block_length == PAN_BLOCK,
        // The longest plaintext and its length, rounded up, is one step past the limit.
        _ => {
            block_length > 0
                && block_length.is_multiple_of(PAD_TO)
                && block_length <= PLAINTEXT_BYTES + PAD_TO
        }
    }
}

fn pad_pan(digits: &str) -> Option<Zeroizing<[u8; PAN_BLOCK]>> {
    let mut block = Zeroizing::new([0; PAN_BLOCK]);
    block[0] = u8::try_from(digits.len()).ok()?;
    block.get_mut(1..1 + digits.len())?.copy_from_slice(digits.as_bytes());
    Some(block)
}

fn unpad_pan(block: &[u8]) -> Option<&str> {
    let (length, rest) = block.split_first()?;
    let (digits, padding) = rest.split_at_checked(usize::from(*length))?;
    let exact = block.len() == PAN_BLOCK
        && digits.iter().all(u8::is_ascii_digit)
        && padding.iter().all(|byte| *byte == 0);
    exact.then(|| std::str::from_utf8(digits).ok()).flatten()
}

fn copy(plaintext: &[u8]) -> Result<SecretBuf, OpenError> {
    let mut buffer = SecretBuf::with_capacity(plaintext.len());
    buffer.push(plaintext).map_err(|_| OpenError)?;
    Ok(buffer)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;
    use crate::base::ids::Merchant;
    use crate::base::secret::key256;
    use crate::crypto::keyring::{Purpose, make_data_key};

    fn merchant(name: &str) -> Merchant {
        Merchant::parse(name).expect("a name")
    }

    fn buffer(bytes: &[u8]) -> SecretBuf {
        SecretBuf::from_vec(bytes.to_vec())
    }

    fn card_key() -> DataKey {
        make_data_key(Purpose::Card).expect("entropy")
    }

    fn pan() -> Pan {
        Pan::parse("4111111111111111").expect("a PAN")
    }

    const RECORD: &str = "card_0123456789ABCDEFGHJKMNPQRSTVWXYZ";

    /// Opening in whichever way the field asks for; the plaintext is dropped.
    fn opens(dek: &DataKey, place: &Place<'_>, bytes: &[u8]) -> Result<(), OpenError> {
        let sealed = Sealed::from_bytes(bytes.to_vec());
        match place.field {
            Field::Pan => open_pan(dek, place, &sealed).map(|_| ()),
            _ => open(dek, place, &sealed).map(|_| ()),
        }
    }

    /// One sealed record of each field that the key is for, with its place.
    fn one_of_each(dek: &DataKey, check: impl Fn(&Place<'_>, &[u8])) {
        let acme = merchant("acme");
        for field in Field::ALL.into_iter().filter(|field| field.purpose() == dek.purpose()) {
            let place = Place { merchant: &acme, record: RECORD, field };
            let sealed = match field {
                Field::Pan => seal_pan(dek, &place, &pan()),
                _ => seal(dek, &place, &buffer(b"{\"expiry\":\"12/29\"}")),
            }
            .expect("sealed");
            assert_eq!(opens(dek, &place, sealed.as_bytes()), Ok(()));
            check(&place, sealed.as_bytes());
        }
    }

    #[test]
    fn a_pan_comes_back_and_its_length_does_not_show() {
        let (dek, acme) = (card_key(), merchant("acme"));
        let place = Place { merchant: &acme, record: RECORD, field: Field::Pan };
        for digits in ["4111111111111111", "378282246310005", "6200000000000000000", "500000000009"] {
            let Ok(pan) = Pan::parse(digits) else { panic!("{digits}") };
            let sealed = seal_pan(&dek, &place, &pan).expect("sealed");
            assert_eq!(sealed.as_bytes().len(), HEADER + OVERHEAD + PAN_BLOCK);
            assert_eq!(dek_id(&sealed), Ok(dek.id().clone()));
            let opened = open_pan(&dek, &place, &sealed).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(opened.expose(), digits);
        }
    }

    proptest! {
        #[test]
        fn whatever_is_sealed_opens(plaintext in proptest::collection::vec(any::<u8>(), 0..400), record in ".{0,40}") {
            let (dek, acme) = (card_key(), merchant("acme"));
            let place = Place { merchant: &acme, record: &record, field: Field::GatewayAnswer };
            let sealed = seal(&dek, &place, &buffer(&plaintext)).expect("sealed");
            let opened = open(&dek, &place, &sealed).unwrap_or_else(|error| panic!("{error}"));
            prop_assert_eq!(opened.expose(), &plaintext[..]);
        }

        #[test]
        fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), lead in any::<bool>()) {
            let (dek, acme) = (card_key(), merchant("acme"));
            let mut bytes = bytes;
            if lead && bytes.len() > 2 {
                bytes[..2].copy_from_slice(&[FORMAT_VERSION, ALGORITHM]);
            }
            for field in Field::ALL {
                let place = Place { merchant: &acme, record: RECORD, field };
                prop_assert_eq!(opens(&dek, &place, &bytes), Err(OpenError));
            }
            let _either = dek_id(&Sealed::from_bytes(bytes));
        }
    }

    #[test]
    fn no_single_bit_may_change() {
        let dek = card_key();
        one_of_each(&dek, |place, sealed| {
            for bit in 0..sealed.len() * 8 {
                let mut bent = sealed.to_vec();
                bent[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(opens(&dek, place, &bent), Err(OpenError), "{:?}, bit {bit}", place.field);
            }
        });
    }

    #[test]
    fn no_other_length_opens() {
        let dek = card_key();
        one_of_each(&dek, |place, sealed| {
            for length in 0..sealed.len() {
                assert_eq!(opens(&dek, place, &sealed[..length]), Err(OpenError), "cut to {length}");
                // A length that some field has (a sealed PAN's 138, one block's 178) still names its key.
                let named = dek_id(&Sealed::from_bytes(sealed[..length].to_vec()));
                assert_eq!(named.is_ok(), [138, 178].contains(&length), "cut to {length}");
                assert_eq!(opens(&dek, place, &sealed[sealed.len() - length..]), Err(OpenError));
            }
            for more in [1, 16, 24, 40, PAD_TO, 3 * PAD_TO] {
                let longer = [sealed, &vec![0; more]].concat();
                assert_eq!(opens(&dek, place, &longer), Err(OpenError), "{more} bytes more");
                let before = [&vec![FORMAT_VERSION; more][..], sealed].concat();
                assert_eq!(opens(&dek, place, &before), Err(OpenError));
            }
            assert_eq!(opens(&dek, place, &[sealed, sealed].concat()), Err(OpenError), "twice");
            // Each part of the header once more, and each part left out.
            for (from, to) in [(0, 1), (1, 2), (2, 22), (22, 54), (54, 86), (86, 98), (98, sealed.len())] {
                let twice = [&sealed[..to], &sealed[from..]].concat();
                assert_eq!(opens(&dek, place, &twice), Err(OpenError), "part {from}..{to} twice");
                let without = [&sealed[..from], &sealed[to..]].concat();
                assert_eq!(opens(&dek, place, &without), Err(OpenError), "no part {from}..{to}");
            }
        });
    }

    #[test]
    fn no_other_version_or_algorithm_is_known() {
        let dek = card_key();
        one_of_each(&dek, |place, sealed| {
            for other in (0..=u8::MAX).filter(|byte| *byte != FORMAT_VERSION) {
                for position in [0, 1] {
                    let mut bent = sealed.to_vec();
                    bent[position] = other;
                    assert_eq!(opens(&dek, place, &bent), Err(OpenError));
                    assert_eq!(dek_id(&Sealed::from_bytes(bent)), Err(OpenError));
                }
            }
        });
    }

    #[test]
    fn a_record_opens_in_its_place_only() {
        let (dek, globex) = (card_key(), merchant("globex"));
        one_of_each(&dek, |place, sealed| {
            assert_eq!(opens(&dek, &Place { merchant: &globex, ..*place }, sealed), Err(OpenError));
            let other_record = "card_0123456789ABCDEFGHJKMNPQRSTVWXY0";
            assert_eq!(opens(&dek, &Place { record: other_record, ..*place }, sealed), Err(OpenError));
            assert_eq!(opens(&dek, &Place { record: "", ..*place }, sealed), Err(OpenError));
            for field in Field::ALL.into_iter().filter(|field| *field != place.field) {
                assert_eq!(opens(&dek, &Place { field, ..*place }, sealed), Err(OpenError));
            }
        });
    }

    #[test]
    fn a_record_opens_under_its_key_only() {
        let (dek, other) = (card_key(), card_key());
        one_of_each(&dek, |place, sealed| {
            assert_eq!(opens(&other, place, sealed), Err(OpenError), "another key");
            let mut moved = sealed.to_vec();
            moved[2..HEADER].copy_from_slice(&raw_dek_id(other.id()).expect("20 bytes"));
            assert_eq!(opens(&other, place, &moved), Err(OpenError), "another key named");
            assert_eq!(opens(&dek, place, &moved), Err(OpenError), "another key named, the right one used");
        });
    }

    /// Even where the key bytes are the same: the id is bound into the additional data, the purpose into
    /// the derivation.
    #[test]
    fn the_same_bytes_under_another_id_or_purpose_do_not_open() {
        let same = |id: &DekId, purpose| DataKey::new(id.clone(), purpose, key256(|bytes| bytes.fill(6)));
        let (one, two) = (DekId::make().expect("entropy"), DekId::make().expect("entropy"));
        let dek = same(&one, Purpose::Card);
        one_of_each(&dek, |place, sealed| {
            let mut moved = sealed.to_vec();
            moved[2..HEADER].copy_from_slice(&raw_dek_id(&two).expect("20 bytes"));
            assert_eq!(opens(&same(&two, Purpose::Card), place, &moved), Err(OpenError));
            for purpose in [Purpose::Fingerprint, Purpose::RequestMac] {
                assert_eq!(opens(&same(&one, purpose), place, sealed), Err(OpenError));
                assert_ne!(place.info(Purpose::Card), place.info(purpose));
            }
        });
    }

    #[test]
    fn keys_and_fields_are_used_as_they_are_meant() {
        let (dek, acme) = (card_key(), merchant("acme"));
        let mac = make_data_key(Purpose::RequestMac).expect("entropy");
        let details = Place { merchant: &acme, record: RECORD, field: Field::Details };
        let number = Place { field: Field::Pan, ..details };
        let token = Place { field: Field::Token, ..details };
        let tokens = make_data_key(Purpose::GatewayToken).expect("entropy");
        assert_eq!(seal(&dek, &token, &buffer(b"x")), Err(SealError::WrongPurpose));
        assert_eq!(seal(&tokens, &details, &buffer(b"x")), Err(SealError::WrongPurpose));
        let sealed = seal(&tokens, &token, &buffer(b"x")).expect("sealed");
        assert!(open(&tokens, &token, &sealed).is_ok_and(|opened| opened.expose() == b"x"));
        assert_eq!(open(&dek, &token, &sealed).err(), Some(OpenError));
        assert_eq!(seal(&mac, &details, &buffer(b"x")), Err(SealError::WrongPurpose));
        assert_eq!(seal_pan(&mac, &number, &pan()), Err(SealError::WrongPurpose));
        assert_eq!(seal(&dek, &number, &buffer(b"4111111111111111")), Err(SealError::WrongField));
        assert_eq!(seal_pan(&dek, &details, &pan()), Err(SealError::WrongField));
        let long = buffer(&vec![0; PLAINTEXT_BYTES + 1]);
        assert_eq!(seal(&dek, &details, &long), Err(SealError::TooLong));
        let longest = buffer(&vec![1; PLAINTEXT_BYTES]);
        let sealed = seal(&dek, &details, &longest).expect("sealed");
        assert!(open(&dek, &details, &sealed).is_ok_and(|opened| opened.expose() == longest.expose()));
    }

    #[test]
    fn a_padded_pan_has_one_form() {
        let good = *pad_pan("4111111111111111").expect("short");
        assert_eq!(unpad_pan(&good), Some("4111111111111111"));
        let bent = |place: usize, byte: u8| {
            let mut block = good;
            block[place] = byte;
            unpad_pan(&block).is_none()
        };
        assert!(bent(0, 24) && bent(0, 15) && bent(0, 17) && bent(1, b'x') && bent(23, 1) && bent(17, b'1'));
        assert_eq!(unpad_pan(&good[..23]), None);
        assert_eq!(unpad_pan(&[]), None);
        assert!(pad_pan("123456789012345678901234").is_none());
    }

    #[test]
    fn resealing_moves_a_record_to_another_key_and_nowhere_else() {
        let (old, new) = (card_key(), card_key());
        let mac = make_data_key(Purpose::RequestMac).expect("entropy");
        one_of_each(&old, |place, sealed| {
            let sealed = Sealed::from_bytes(sealed.to_vec());
            let moved = reseal(&old, &new, place, &sealed).expect("resealed");
            assert_eq!(opens(&new, place, moved.as_bytes()), Ok(()));
            assert_eq!(opens(&old, place, moved.as_bytes()), Err(OpenError));
            assert_eq!(dek_id(&moved), Ok(new.id().clone()));
            assert_eq!(reseal(&new, &old, place, &sealed).err(), Some(ResealError::Open(OpenError)));
            let refused = reseal(&old, &mac, place, &sealed).err();
            assert_eq!(refused, Some(ResealError::Seal(SealError::WrongPurpose)));
        });
    }

    #[test]
    fn ten_thousand_records_share_no_salt_nonce_or_commitment() {
        let (dek, acme) = (card_key(), merchant("acme"));
        let place = Place { merchant: &acme, record: RECORD, field: Field::Pan };
        let (mut salts, mut commitments, mut nonces) = (HashSet::new(), HashSet::new(), HashSet::new());
        for _ in 0..10_000 {
            let sealed = seal_pan(&dek, &place, &pan()).expect("sealed");
            let bytes = sealed.as_bytes();
            assert!(salts.insert(bytes[22..54].to_vec()));
            assert!(commitments.insert(bytes[54..86].to_vec()));
            assert!(nonces.insert(bytes[86..98].to_vec()));
        }
    }

    #[test]
    fn the_errors_say_nothing_of_the_cause_or_the_content() {
        assert_eq!(OpenError.to_string(), "could not be opened");
        assert_eq!(format!("{:?}", Sealed::from_bytes(vec![1; 138])), "Sealed(138 bytes)");
    }
}
