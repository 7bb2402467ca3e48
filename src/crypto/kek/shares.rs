//! A KEK among custodians: Shamir's sharing over GF(2^8), t of n (PCI DSS 3.6.1.2, 3.7.6: each share is as
//! long as the key, and t-1 of them say nothing of it). `docs/envelope.md` specifies a share's bytes.
//!
//! A share carries a sum, so that a slip of the pen is told at once, and the keyring has a check value of
//! each, so that a wrong share is named before it spoils the key.

use blahaj::Sharks;
use secrecy::ExposeSecret;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::base::bytes::length_prefixed;
use crate::base::entropy::{self, NoEntropy};
use crate::base::ids::{KekId, base32, from_base32};
use crate::base::secret::{Key256, SecretText, key256};
use crate::crypto::mac::hmac_of;

use super::file::Split;
use super::soft::{SoftKek, check_value};

/// First byte of a share.
const VERSION: u8 = 1;
/// Version, split id, index, threshold, 32 bytes, sum.
const BYTES: usize = 1 + 8 + 1 + 1 + 32 + 4;
/// What a share's text begins with.
const PREFIX: &str = "cvshare";
/// Most characters of a text that is looked at.
const TEXT: usize = 256;

/// One custodian's share. No `Debug`, `Clone` or `Serialize`; wiped on drop.
pub struct Share {
    split: [u8; 8],
    index: u8,
    threshold: u8,
    y: Key256,
}

/// Why a share, or a set of them, is not taken. Each names the share.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ShareError {
    /// Not a share, or one with a slip in it.
    #[error("this is not a share, or it has a slip in it; look at it again, character by character")]
    Malformed,
    /// Of another split than the keyring's.
    #[error("share {0} is of another split, perhaps an older one; look for the newest")]
    OtherSplit(u8),
    /// It is not the share that was made.
    #[error("share {0} is wrong: it does not fit its check value in the keyring")]
    Wrong(u8),
    /// The same share again.
    #[error("share {0} is here already; another custodian's is needed")]
    Again(u8),
    /// Fewer than the threshold.
    #[error("{have} of {need} shares are here")]
    TooFew {
        /// Different shares.
        have: usize,
        /// The threshold.
        need: u8,
    },
    /// The shares fit and give another key: the keyring was changed.
    #[error("the shares do not give the key of {0}; restore the keyring from its backup")]
    OtherKey(KekId),
    /// Between 2 and 255 shares, of which at least 2 are needed.
    #[error("2 to 255 shares, of which at least 2 and at most all are needed")]
    Numbers,
}

/// Splits a KEK into `count` shares of which `threshold` rebuild it, and proves that they do: every share
/// takes part in one rebuilding.
pub fn split(kek: &SoftKek, count: u8, threshold: u8) -> Result<(Split, Vec<Share>), SplitError> {
    if threshold < 2 || count < threshold {
        return Err(ShareError::Numbers.into());
    }
    let id: [u8; 8] = entropy::array()?;
    let dealer = Sharks(threshold);
    let shares: Vec<Share> = dealer
        .dealer(kek.key.expose_secret())
        .take(usize::from(count))
        .filter_map(|dealt| Share::of(id, threshold, &Zeroizing::new(Vec::from(&dealt))))
        .collect();
    let checks = shares.iter().map(Share::check).collect();
    let split = Split { check: kek.check(), id, threshold, shares: checks };
    prove(&kek.id, &split, &shares)?;
    Ok((split, shares))
}

/// Shows that shares rebuild the key: each of them takes part in one rebuilding of exactly the threshold.
pub fn prove(kek: &KekId, split: &Split, shares: &[Share]) -> Result<(), ShareError> {
    let need = usize::from(split.threshold);
    if shares.len() != split.shares.len() || shares.len() < need {
        return Err(ShareError::TooFew { have: shares.len(), need: split.threshold });
    }
    // Two of one kind would hide that another was not kept.
    for (place, share) in shares.iter().enumerate() {
        if shares.iter().take(place).any(|other| other.index == share.index) {
            return Err(ShareError::Again(share.index));
        }
    }
    let around = || shares.iter().chain(shares.iter());
    for first in 0..shares.len() {
        let some: Vec<&Share> = around().skip(first).take(need).collect();
        combine(kek, split, &some)?;
    }
    Ok(())
}

/// Rebuilds a KEK.
pub fn combine(kek: &KekId, split: &Split, shares: &[&Share]) -> Result<SoftKek, ShareError> {
    let mut indices = Vec::with_capacity(shares.len());
    let mut parts = Vec::with_capacity(shares.len());
    for share in shares {
        share.fits(split)?;
        if indices.contains(&share.index) {
            return Err(ShareError::Again(share.index));
        }
        indices.push(share.index);
        let mut bytes = Zeroizing::new([0; 33]);
        let (x, y) = bytes.split_at_mut(1);
        x.copy_from_slice(&[share.index]);
        y.copy_from_slice(share.y.expose_secret());
        parts.push(blahaj::Share::try_from(bytes.as_slice()).map_err(|_| ShareError::Malformed)?);
    }
    let too_few = || ShareError::TooFew { have: indices.len(), need: split.threshold };
    if indices.len() < usize::from(split.threshold) {
        return Err(too_few());
    }
    let bytes = Zeroizing::new(Sharks(split.threshold).recover(&parts).map_err(|_| too_few())?);
    let bytes: &[u8; 32] = bytes.as_slice().try_into().map_err(|_| ShareError::OtherKey(kek.clone()))?;
    let key = key256(|key| key.copy_from_slice(bytes));
    if !bool::from(check_value(&key).ct_eq(&split.check)) {
        return Err(ShareError::OtherKey(kek.clone()));
    }
    Ok(SoftKek { id: kek.clone(), key })
}

/// Why a KEK was not split.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SplitError {
    /// The numbers, or the proof.
    #[error(transparent)]
    Share(#[from] ShareError),
    /// No random bytes.
    #[error(transparent)]
    NoEntropy(#[from] NoEntropy),
}

impl Share {
    fn of(split: [u8; 8], threshold: u8, dealt: &[u8]) -> Option<Self> {
        let (index, y) = dealt.split_first()?;
        let y: &[u8; 32] = y.try_into().ok()?;
        Some(Self { split, index: *index, threshold, y: key256(|key| key.copy_from_slice(y)) })
    }

    /// Reads a share's text, however it is spaced: hyphens and blanks are for the eye, small letters are
    /// taken, and so are `O` for zero and `I` or `L` for one.
    pub fn parse(text: &SecretText) -> Result<Self, ShareError> {
        let text = text.expose();
        if text.len() > TEXT {
            return Err(ShareError::Malformed);
        }
        let mut plain = Zeroizing::new(String::with_capacity(text.len()));
        plain
            .extend(text.chars().filter(|c| !c.is_whitespace() && *c != '-').map(|c| c.to_ascii_lowercase()));
        let mut name = Zeroizing::new(String::with_capacity(plain.len()));
        let body = plain.strip_prefix(PREFIX).ok_or(ShareError::Malformed)?;
        name.extend(body.chars().map(|c| match c {
            'o' => '0',
            'i' | 'l' => '1',
            other => other.to_ascii_uppercase(),
        }));
        let bytes = Zeroizing::new(from_base32(&name).ok_or(ShareError::Malformed)?);
        Self::from_bytes(&bytes).ok_or(ShareError::Malformed)
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; BYTES] = bytes.try_into().ok()?;
        let (body, sum) = bytes.split_last_chunk::<4>()?;
        if sum_of(body) != *sum {
            return None;
        }
        let ([VERSION], rest) = body.split_first_chunk::<1>()? else { return None };
        let (split, rest) = rest.split_first_chunk::<8>()?;
        let ([index, threshold], y) = rest.split_first_chunk::<2>()?;
        let y: &[u8; 32] = y.try_into().ok()?;
        let y = key256(|key| key.copy_from_slice(y));
        (*index > 0).then_some(Self { split: *split, index: *index, threshold: *threshold, y })
    }

    /// The share as its custodian keeps it: `cvshare` and 19 groups of four characters.
    pub fn text(&self) -> SecretText {
        let mut bytes = Zeroizing::new(Vec::with_capacity(BYTES));
        bytes.push(VERSION);
        bytes.extend_from_slice(&self.split);
        bytes.extend_from_slice(&[self.index, self.threshold]);
        bytes.extend_from_slice(self.y.expose_secret());
        let sum = sum_of(&bytes);
        bytes.extend_from_slice(&sum);
        let name = Zeroizing::new(base32(&bytes));
        let mut text = String::with_capacity(PREFIX.len() + name.len() * 5 / 4 + 1);
        text.push_str(PREFIX);
        for group in name.as_bytes().chunks(4) {
            text.push('-');
            text.push_str(std::str::from_utf8(group).unwrap_or_default());
        }
        SecretText::new(text)
    }

    /// Which of the shares it is, from 1.
    pub fn index(&self) -> u8 {
        self.index
    }

    /// Of which split it is.
    pub fn split_id(&self) -> [u8; 8] {
        self.split
    }

    /// Whether it is one of this split's shares, as it was made.
    pub fn fits(&self, split: &Split) -> Result<(), ShareError> {
        if self.split != split.id || self.threshold != split.threshold {
            return Err(ShareError::OtherSplit(self.index));
        }
        let known = usize::from(self.index).checked_sub(1).and_then(|place| split.shares.get(place));
        match known {
            Some(check) if bool::from(check.ct_eq(&self.check())) => Ok(()),
            _ => Err(ShareError::Wrong(self.index)),
        }
    }

    /// The first 8 bytes of HMAC-SHA-256(share, LP("cardvault/share-check/v1", split id, index)).
    fn check(&self) -> [u8; 8] {
        let input = length_prefixed(&[b"cardvault/share-check/v1", &self.split, &[self.index]]);
        hmac_of(&self.y, &input).first_chunk::<8>().copied().unwrap_or_default()
    }
}

/// The first 4 bytes of SHA-256: tells a slip of the pen, and nothing else.
fn sum_of(bytes: &[u8]) -> [u8; 4] {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    digest.as_ref().first_chunk::<4>().copied().unwrap_or_default()
}

#[cfg(test)]
pub(in crate::crypto) mod tests {
    use super::*;

    fn kek() -> SoftKek {
        SoftKek::make().expect("entropy")
    }

    #[test]
    fn any_threshold_of_shares_rebuilds_and_fewer_do_not() {
        let kek = kek();
        let (description, shares) = split(&kek, 5, 3).expect("split");
        for a in 0..5 {
            for b in 0..5 {
                for c in 0..5 {
                    let some = [&shares[a], &shares[b], &shares[c]];
                    let rebuilt = combine(kek.id(), &description, &some);
                    if a == b || a == c || b == c {
                        assert!(matches!(rebuilt.err(), Some(ShareError::Again(_))));
                    } else {
                        let rebuilt = rebuilt.unwrap_or_else(|error| panic!("{error}"));
                        assert_eq!(rebuilt.key.expose_secret(), kek.key.expose_secret());
                    }
                }
            }
        }
        let two = combine(kek.id(), &description, &[&shares[0], &shares[1]]);
        assert_eq!(two.err(), Some(ShareError::TooFew { have: 2, need: 3 }));
    }

    #[test]
    fn a_share_survives_being_written_and_typed() {
        let (description, shares) = split(&kek(), 2, 2).expect("split");
        for share in &shares {
            let text = share.text();
            assert_eq!(text.expose().len(), 7 + 19 * 5);
            let sloppy = text.expose().to_lowercase().replace('-', " ").replace('0', "o").replace('1', "l");
            for text in [text, SecretText::new(sloppy)] {
                let again = Share::parse(&text).unwrap_or_else(|error| panic!("{error}"));
                assert_eq!((again.index, again.fits(&description)), (share.index, Ok(())));
                assert_eq!(again.y.expose_secret(), share.y.expose_secret());
            }
        }
    }

    #[test]
    fn a_slip_is_told_and_a_wrong_share_is_named() {
        let one = kek();
        let (description, shares) = split(&one, 3, 2).expect("split");
        let text = shares[1].text().expose().to_owned();
        for place in 8..text.len() {
            let mut slip = text.clone().into_bytes();
            if slip[place] == b'-' {
                continue;
            }
            slip[place] = if slip[place] == b'7' { b'8' } else { b'7' };
            let slip = SecretText::new(String::from_utf8(slip).expect("ASCII"));
            assert_eq!(Share::parse(&slip).err(), Some(ShareError::Malformed), "{place}");
        }
        for bad in ["", "cvshare", "cvshare-", "hello", &"x".repeat(1000), &text[..text.len() - 1]] {
            assert_eq!(Share::parse(&SecretText::from(bad)).err(), Some(ShareError::Malformed));
        }
        let (_, others) = split(&one, 3, 2).expect("split");
        assert_eq!(others[2].fits(&description), Err(ShareError::OtherSplit(3)));
        let forged = Share { split: description.id, index: 2, threshold: 2, y: key256(|key| key.fill(7)) };
        assert_eq!(forged.fits(&description), Err(ShareError::Wrong(2)));
        let beyond = Share { split: description.id, index: 4, threshold: 2, y: key256(|key| key.fill(7)) };
        assert_eq!(beyond.fits(&description), Err(ShareError::Wrong(4)));
        let mixed = combine(one.id(), &description, &[&shares[0], &forged]);
        assert_eq!(mixed.err(), Some(ShareError::Wrong(2)));
        let changed = Split { check: [0; 8], ..description };
        let other = combine(one.id(), &changed, &[&shares[0], &shares[1]]);
        assert_eq!(other.err(), Some(ShareError::OtherKey(one.id().clone())));
    }

    #[test]
    fn silly_numbers_are_refused() {
        for (count, threshold) in [(0, 0), (1, 1), (2, 1), (2, 3), (255, 0)] {
            let done = split(&kek(), count, threshold);
            assert_eq!(done.err(), Some(SplitError::Share(ShareError::Numbers)), "{count} {threshold}");
        }
        assert!(split(&kek(), 255, 2).is_ok());
    }
}
