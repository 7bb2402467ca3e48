//! What every provider of KEKs must do, whatever it is made of. Each provider's tests run this.

use secrecy::ExposeSecret;

use super::{WrapError, WrapsKeys};
use crate::base::ids::{DekId, KekId};
use crate::crypto::keyring::{Purpose, make_data_key};

/// Fails unless `provider`, which has the KEKs `kek` and `other`, keeps the rules.
pub(super) fn conforms(provider: &dyn WrapsKeys, kek: &KekId, other: &KekId) {
    for purpose in [Purpose::Card, Purpose::Fingerprint, Purpose::RequestMac, Purpose::Canary] {
        let key = make_data_key(purpose).expect("entropy");
        let wrapped = provider.wrap_under(kek, &key).unwrap_or_else(|error| panic!("{error}"));
        assert!(
            !wrapped.windows(8).any(|part| key.key().expose_secret().windows(8).any(|bytes| bytes == part)),
            "the key shows"
        );
        let opened = provider.unwrap(key.id(), purpose, kek, &wrapped).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(opened.key().expose_secret(), key.key().expose_secret());
        assert_eq!((opened.id(), opened.purpose()), (key.id(), purpose));
        let again = provider.wrap_under(kek, &key).unwrap_or_else(|error| panic!("{error}"));
        assert_ne!(again, wrapped, "wrapped twice in the same way");

        // Its own row only: another id, purpose or KEK does not open.
        let refuses = |id: &DekId, purpose, kek: &KekId, wrapped: &[u8], what: &str| {
            let refused = provider.unwrap(id, purpose, kek, wrapped).err();
            assert_eq!(refused, Some(WrapError::CouldNotOpen), "{what}");
        };
        refuses(&DekId::make().expect("entropy"), purpose, kek, &wrapped, "another id");
        for wrong in Purpose::ALL.into_iter().filter(|wrong| *wrong != purpose) {
            refuses(key.id(), wrong, kek, &wrapped, "another purpose");
        }
        refuses(key.id(), purpose, other, &wrapped, "another KEK");
        let mut renamed = wrapped.clone();
        renamed[2..22].copy_from_slice(&crate::crypto::keyring::raw_kek_id(other).expect("an id"));
        refuses(key.id(), purpose, other, &renamed, "another KEK's name in the header");

        // Every byte counts.
        for place in 0..wrapped.len() {
            let mut bent = wrapped.clone();
            bent[place] ^= 1 << (place % 8);
            refuses(key.id(), purpose, kek, &bent, "a bent byte");
            refuses(key.id(), purpose, kek, &wrapped[..place], "cut off");
        }
        refuses(key.id(), purpose, kek, &[&wrapped[..], &[0]].concat(), "one byte more");
    }
    let nobody = KekId::make().expect("entropy");
    let key = make_data_key(Purpose::Card).expect("entropy");
    assert!(provider.wrap_under(&nobody, &key).is_err());
}
