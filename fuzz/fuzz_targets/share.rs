//! Custodians' shares: only what was dealt fits, and what parses is written as it was read.
#![no_main]

use std::sync::LazyLock;

use cardvault::base::secret::SecretText;
use cardvault::crypto::kek::SoftKek;
use cardvault::crypto::kek::file::Split;
use cardvault::crypto::kek::shares::{self, Share};
use libfuzzer_sys::fuzz_target;

static GROUND: LazyLock<(SoftKek, Split, Vec<Share>)> = LazyLock::new(|| {
    let kek = SoftKek::make().expect("entropy");
    let (split, dealt) = shares::split(&kek, 3, 2).expect("shares");
    (kek, split, dealt)
});

fuzz_target!(|bytes: &[u8]| {
    let (kek, split, dealt) = &*GROUND;
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(share) = Share::parse(&SecretText::new(text.to_owned()))
    {
        let again = Share::parse(&share.text()).expect("its own text");
        assert!(again.index() == share.index() && again.split_id() == share.split_id());
        assert!(share.fits(split).is_err(), "a share fits that nobody dealt");
        assert!(shares::combine(kek.id(), split, &[&dealt[0], &share]).is_err());
    }
    // A dealt share with characters changed: a slip is told.
    let text = dealt[0].text();
    let mut letters: Vec<char> = text.expose().chars().collect();
    for change in bytes.chunks_exact(2) {
        let place = usize::from(change[0]) % letters.len();
        letters[place] = char::from(change[1] & 0x7f);
    }
    let altered: String = letters.into_iter().collect();
    if let Ok(share) = Share::parse(&SecretText::new(altered)) {
        let fits = share.fits(split).is_ok();
        let same = *share.text().expose() == *text.expose();
        assert!(fits == same, "an altered share fits, or the same one does not");
    }
});
