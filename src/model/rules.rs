//! When a card may be paid with.

use std::time::Duration;

use crate::base::clock::Millis;

/// A payment that the vault refuses before anything is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A card that no agreement covers may be paid with only soon after its number was typed: keeping
    /// it longer is storing a credential, which needs the buyer's consent.
    #[error("the card was typed too long ago to be paid without a stored-credential agreement")]
    StoredCredentialRequired,
    /// The card belongs to another buyer.
    #[error("the card belongs to another buyer")]
    BuyerMismatch,
}

/// Whether a one-time payment may use a card that no agreement covers.
pub fn one_time_allowed(typed_at: Millis, now: Millis, unattached: Duration) -> Result<(), Refusal> {
    if typed_at.plus(unattached) < now { Err(Refusal::StoredCredentialRequired) } else { Ok(()) }
}

/// Whether a payment for `paying` may use a card of `owner`. A payment that names no buyer, and a card
/// that was typed for none, are not another buyer's.
pub fn same_buyer(owner: Option<&str>, paying: Option<&str>) -> Result<(), Refusal> {
    match (owner, paying) {
        (Some(owner), Some(paying)) if owner != paying => Err(Refusal::BuyerMismatch),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_without_agreement_is_payable_for_a_while() {
        let week = Duration::from_secs(168 * 3600);
        let end = 168 * 3_600_000;
        assert_eq!(one_time_allowed(Millis(0), Millis(end), week), Ok(()));
        assert_eq!(
            one_time_allowed(Millis(0), Millis(end + 1), week),
            Err(Refusal::StoredCredentialRequired)
        );
        assert_eq!(one_time_allowed(Millis(end), Millis(0), week), Ok(()));
    }

    #[test]
    fn a_card_pays_for_its_own_buyer() {
        assert_eq!(same_buyer(Some("a"), Some("a")), Ok(()));
        assert_eq!(same_buyer(Some("a"), Some("b")), Err(Refusal::BuyerMismatch));
        assert_eq!(same_buyer(None, Some("b")), Ok(()));
        assert_eq!(same_buyer(Some("a"), None), Ok(()));
    }
}
