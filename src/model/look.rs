//! When the gateway is asked again (reference, section 11.2): often at first, then ever more rarely, a
//! little off the round second so that many payments do not ask together.

use std::time::Duration;

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waits {
    /// Whether it was charged at all.
    Outcome,
    /// The gateway or an issuer, who works on it.
    Gateway,
    /// The buyer, on a page.
    Buyer,
    /// Something that a paid payment has not told yet: a network transaction id, a token, its review.
    Detail,
}

/// After the first minute: the cancel's gaps of the official client, then growing.
const OUTCOME: &[u64] = &[2, 3, 3, 5, 5, 10, 20, 40, 60, 120, 300];
const GATEWAY: &[u64] = &[3, 3, 5, 5, 10, 30, 60, 60, 120, 300, 300, 600, 1800, 3600];
/// An open page lives for about 14 minutes.
const BUYER: &[u64] =
    &[30, 30, 30, 30, 30, 30, 30, 60, 60, 60, 60, 60, 60, 60, 60, 60, 60, 60, 300, 300, 600, 1800, 3600];
const DETAIL: &[u64] = &[5, 30, 60, 300, 900, 1800, 3600, 3600, 7200, 14400, 28800, 28800];

/// How long after the `looks`-th look in vain the next one is; `None` where nothing more is expected.
pub fn pause(waits: Waits, looks: i64, seed: &str) -> Option<Duration> {
    let gaps = match waits {
        Waits::Outcome => OUTCOME,
        Waits::Gateway => GATEWAY,
        Waits::Buyer => BUYER,
        Waits::Detail => DETAIL,
    };
    let place = usize::try_from(looks.max(0)).unwrap_or(usize::MAX);
    let seconds = match gaps.get(place) {
        Some(seconds) => *seconds,
        // An agreement without its id is not usable by the merchant; somebody must look.
        None if waits == Waits::Detail => return None,
        None => *gaps.last()?,
    };
    let spread =
        seed.bytes().fold(place, |sum, byte| sum.wrapping_mul(31).wrapping_add(usize::from(byte))) % 100;
    let spread = u64::try_from(spread).unwrap_or_default();
    Some(Duration::from_millis(seconds * 1000 + seconds * spread))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_grow_and_only_details_end() {
        for waits in [Waits::Outcome, Waits::Gateway, Waits::Buyer, Waits::Detail] {
            let gaps: Vec<Option<Duration>> = (0..200).map(|looks| pause(waits, looks, "PAY_1")).collect();
            assert_eq!(gaps.iter().any(Option::is_none), waits == Waits::Detail);
            let whole: Vec<u64> = gaps.iter().flatten().map(Duration::as_secs).collect();
            assert!(whole.first() < whole.last(), "{waits:?}");
            assert!(whole.iter().all(|seconds| *seconds <= 28_800 * 11 / 10));
        }
        assert!(pause(Waits::Outcome, -1, "").is_some_and(|gap| gap.as_secs() == 2));
        assert_ne!(pause(Waits::Buyer, 3, "PAY_1"), pause(Waits::Buyer, 3, "PAY_2"));
    }
}
