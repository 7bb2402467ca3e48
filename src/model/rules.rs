//! When a card may be charged, and as what. Pure: every refusal is decided here, before anything is sent.

use std::time::Duration;

use crate::base::clock::Millis;
use crate::base::money::Amount;

use super::agreement::{AgreementState, AgreementType, Initiator};
use super::decline::Decline;

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
    /// A rule of stored credentials forbids it.
    #[error("a rule of stored credentials forbids the payment")]
    StoredCredential(Reason),
}

/// Which rule of stored credentials forbids a payment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The agreement is another card's.
    OtherCard,
    /// The card was erased.
    CardErased,
    /// Its first payment has not succeeded yet.
    AgreementPending,
    /// It is over.
    AgreementEnded,
    /// Its time is over.
    AgreementExpired,
    /// The buyer agreed to his own payments only.
    AgreementType,
    /// The scheme's id of the first payment is not known (yet).
    NoNetworkTransactionId,
    /// Without the buyer there is no CVV (nor a card password).
    CvvPresent,
    /// Without the buyer nobody can authenticate.
    ThreeDsRequested,
    /// Without the buyer there is no cryptogram.
    MpiDataPresent,
    /// More than the buyer agreed to.
    AmountAboveMax,
    /// Another currency than the buyer agreed to.
    CurrencyMismatch,
    /// The issuer said not to try again.
    DoNotRetry,
    /// The issuer said that the buyer stopped such payments.
    ConsentRevoked,
    /// Too many declined attempts in 30 days.
    RetryLimit,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 15] = [
        Self::OtherCard,
        Self::CardErased,
        Self::AgreementPending,
        Self::AgreementEnded,
        Self::AgreementExpired,
        Self::AgreementType,
        Self::NoNetworkTransactionId,
        Self::CvvPresent,
        Self::ThreeDsRequested,
        Self::MpiDataPresent,
        Self::AmountAboveMax,
        Self::CurrencyMismatch,
        Self::DoNotRetry,
        Self::ConsentRevoked,
        Self::RetryLimit,
    ];

    /// The stable code that callers see.
    pub fn code(self) -> &'static str {
        match self {
            Self::OtherCard => "agreement_of_other_card",
            Self::CardErased => "card_erased",
            Self::AgreementPending => "agreement_pending",
            Self::AgreementEnded => "agreement_ended",
            Self::AgreementExpired => "agreement_expired",
            Self::AgreementType => "agreement_type",
            Self::NoNetworkTransactionId => "no_network_transaction_id",
            Self::CvvPresent => "cvv_present",
            Self::ThreeDsRequested => "three_ds_requested",
            Self::MpiDataPresent => "mpi_data_present",
            Self::AmountAboveMax => "amount_above_max",
            Self::CurrencyMismatch => "currency_mismatch",
            Self::DoNotRetry => "do_not_retry",
            Self::ConsentRevoked => "consent_revoked",
            Self::RetryLimit => "retry_limit",
        }
    }
}

/// What a payment asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// Which agreement it opens or uses, if any.
    pub agreement: Asks,
    /// A CVV or a card password comes along.
    pub cvv: bool,
    /// 3D Secure, or its upgrade, is asked for.
    pub three_ds: bool,
    /// The result of a 3D Secure elsewhere comes along.
    pub mpi_data: bool,
    /// What is charged.
    pub amount: Amount,
}

/// A payment's relation to agreements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asks {
    /// None.
    OneTime,
    /// It opens one, the buyer being there.
    Opens,
    /// It uses one.
    Uses(Initiator, AgreementFacts),
}

/// What the rules need to know of an agreement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgreementFacts {
    /// Whether it is this card's.
    pub same_card: bool,
    /// What the buyer agreed to.
    pub kind: AgreementType,
    /// Where it stands.
    pub state: AgreementState,
    /// Whether it ended because the buyer stopped such payments at his issuer.
    pub revoked: bool,
    /// When it ends by itself.
    pub expires_at: Option<Millis>,
    /// The most that the merchant may charge at once.
    pub max_amount: Option<Amount>,
    /// Whether the scheme's id of its first payment is known.
    pub has_network_transaction_id: bool,
}

/// What the rules need to know of a card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CardFacts {
    /// Whether it was erased.
    pub erased: bool,
    /// Whether an agreement that is in force covers it.
    pub has_active_agreement: bool,
    /// When its number was last typed.
    pub typed_at: Millis,
    /// The gravest decline of the last 30 days.
    pub decline: Option<Decline>,
    /// Declined merchant-initiated attempts of the last 30 days.
    pub declined_attempts: u32,
}

/// What a deployment chooses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How long after it was typed a card without an agreement can be paid with.
    pub unattached: Duration,
    /// Declined merchant-initiated attempts in 30 days after which none is made (Visa allows 20 in its
    /// retry categories since May 2025, Mastercard fewer; 15 keeps clear of both).
    pub declined_attempts: u32,
}

/// As what a payment leaves: the columns of the truth table (reference, section 8.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Column {
    /// A: one-time.
    OneTime,
    /// B: the first payment with a card that will be kept.
    First,
    /// C and D: the buyer pays again with a kept card, with or without its CVV.
    LaterCustomer,
    /// E and F: the merchant charges; `SCHEDULED` or `UNSCHEDULED`.
    Merchant(AgreementType),
}

/// Decides as what a payment leaves, or why it does not.
pub fn decide(asked: &Asked, card: &CardFacts, limits: Limits, now: Millis) -> Result<Column, Refusal> {
    match &asked.agreement {
        Asks::OneTime if card.has_active_agreement => Ok(Column::OneTime),
        Asks::OneTime => one_time_allowed(card.typed_at, now, limits.unattached).map(|()| Column::OneTime),
        Asks::Opens if card.has_active_agreement => Ok(Column::LaterCustomer),
        Asks::Opens => one_time_allowed(card.typed_at, now, limits.unattached).map(|()| Column::First),
        Asks::Uses(initiator, agreement) => {
            in_force(agreement, card, now)?;
            match initiator {
                Initiator::Customer => Ok(Column::LaterCustomer),
                Initiator::Merchant => by_merchant(asked, agreement, card, limits),
            }
        }
    }
}

fn refuse<T>(reason: Reason) -> Result<T, Refusal> {
    Err(Refusal::StoredCredential(reason))
}

fn in_force(agreement: &AgreementFacts, card: &CardFacts, now: Millis) -> Result<(), Refusal> {
    if !agreement.same_card {
        return refuse(Reason::OtherCard);
    }
    if card.erased {
        return refuse(Reason::CardErased);
    }
    match agreement.state {
        AgreementState::Pending => refuse(Reason::AgreementPending),
        AgreementState::Ended if agreement.revoked => refuse(Reason::ConsentRevoked),
        AgreementState::Ended => refuse(Reason::AgreementEnded),
        AgreementState::Active if agreement.expires_at.is_some_and(|end| end <= now) => {
            refuse(Reason::AgreementExpired)
        }
        AgreementState::Active => Ok(()),
    }
}

fn by_merchant(
    asked: &Asked,
    agreement: &AgreementFacts,
    card: &CardFacts,
    limits: Limits,
) -> Result<Column, Refusal> {
    if agreement.kind == AgreementType::CardOnFile {
        return refuse(Reason::AgreementType);
    }
    if asked.cvv {
        return refuse(Reason::CvvPresent);
    }
    if asked.three_ds {
        return refuse(Reason::ThreeDsRequested);
    }
    if asked.mpi_data {
        return refuse(Reason::MpiDataPresent);
    }
    if let Some(max) = &agreement.max_amount {
        if max.currency() != asked.amount.currency() {
            return refuse(Reason::CurrencyMismatch);
        }
        if asked.amount.minor_units() > max.minor_units() {
            return refuse(Reason::AmountAboveMax);
        }
    }
    match card.decline {
        Some(Decline::Revoked) => return refuse(Reason::ConsentRevoked),
        Some(Decline::Never) => return refuse(Reason::DoNotRetry),
        Some(Decline::Soft) | None => {}
    }
    if card.declined_attempts >= limits.declined_attempts {
        return refuse(Reason::RetryLimit);
    }
    if !agreement.has_network_transaction_id {
        return refuse(Reason::NoNetworkTransactionId);
    }
    Ok(Column::Merchant(agreement.kind))
}

/// Whether a payment may use a card that no agreement covers.
fn one_time_allowed(typed_at: Millis, now: Millis, unattached: Duration) -> Result<(), Refusal> {
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

    const LIMITS: Limits = Limits { unattached: Duration::from_secs(168 * 3600), declined_attempts: 15 };
    const NOW: Millis = Millis(1_772_366_400_000);

    fn eur(value: &str) -> Amount {
        Amount::from_wire("EUR", value).expect("an amount")
    }

    fn fresh_card() -> CardFacts {
        CardFacts {
            erased: false,
            has_active_agreement: false,
            typed_at: NOW,
            decline: None,
            declined_attempts: 0,
        }
    }

    #[test]
    fn a_card_without_agreement_is_payable_for_a_while() {
        let asked =
            |agreement| Asked { agreement, cvv: true, three_ds: true, mpi_data: true, amount: eur("1") };
        let end = NOW.plus(LIMITS.unattached);
        for (asks, column) in [(Asks::OneTime, Column::OneTime), (Asks::Opens, Column::First)] {
            let asked = asked(asks);
            assert_eq!(decide(&asked, &fresh_card(), LIMITS, end), Ok(column));
            let late = decide(&asked, &fresh_card(), LIMITS, Millis(end.0 + 1));
            assert_eq!(late, Err(Refusal::StoredCredentialRequired));
            let covered = CardFacts { has_active_agreement: true, ..fresh_card() };
            let expected = if column == Column::First { Column::LaterCustomer } else { column };
            assert_eq!(decide(&asked, &covered, LIMITS, Millis(end.0 + 1)), Ok(expected));
        }
    }

    #[test]
    fn a_card_pays_for_its_own_buyer() {
        assert_eq!(same_buyer(Some("a"), Some("a")), Ok(()));
        assert_eq!(same_buyer(Some("a"), Some("b")), Err(Refusal::BuyerMismatch));
        assert_eq!(same_buyer(None, Some("b")), Ok(()));
        assert_eq!(same_buyer(Some("a"), None), Ok(()));
    }

    /// The full cross of initiator, type, state, revocation, card and its erasure, CVV, 3D Secure, MPI, amount, end,
    /// network transaction id, declines and attempts: 103,680 cases. The right answer is told by a list of rules in
    /// the order in which they are looked at, each with the cases that it forbids.
    #[test]
    fn every_combination_is_decided() {
        let mut cases = 0;
        let mut seen = std::collections::HashSet::new();
        let flags = [false, true];
        let amounts = [eur("100"), eur("101"), Amount::from_wire("USD", "1").expect("an amount")];
        let ends = [None, Some(Millis(NOW.0 + 1)), Some(NOW)];
        for initiator in [Initiator::Customer, Initiator::Merchant] {
            for kind in AgreementType::ALL {
                for state in AgreementState::ALL {
                    for bits in 0..128_u32 {
                        let bit = |n: u32| flags[usize::from(bits & (1 << n) != 0)];
                        for amount in &amounts {
                            for expires_at in ends {
                                for (decline, declined_attempts) in [
                                    (None, 0),
                                    (Some(Decline::Soft), 15),
                                    (Some(Decline::Never), 1),
                                    (Some(Decline::Revoked), 1),
                                    (Some(Decline::Soft), 14),
                                ] {
                                    let agreement = AgreementFacts {
                                        same_card: bit(0),
                                        kind,
                                        state,
                                        revoked: bit(5),
                                        expires_at,
                                        max_amount: Some(eur("100")),
                                        has_network_transaction_id: bit(1),
                                    };
                                    let asked = Asked {
                                        agreement: Asks::Uses(initiator, agreement.clone()),
                                        cvv: bit(2),
                                        three_ds: bit(3),
                                        mpi_data: bit(4),
                                        amount: amount.clone(),
                                    };
                                    let card = CardFacts {
                                        erased: bit(6),
                                        decline,
                                        declined_attempts,
                                        ..fresh_card()
                                    };
                                    let merchant = initiator == Initiator::Merchant;
                                    let rules = [
                                        (!bit(0), Reason::OtherCard),
                                        (bit(6), Reason::CardErased),
                                        (state == AgreementState::Pending, Reason::AgreementPending),
                                        (state == AgreementState::Ended && bit(5), Reason::ConsentRevoked),
                                        (state == AgreementState::Ended, Reason::AgreementEnded),
                                        (expires_at == Some(NOW), Reason::AgreementExpired),
                                        (
                                            merchant && kind == AgreementType::CardOnFile,
                                            Reason::AgreementType,
                                        ),
                                        (merchant && bit(2), Reason::CvvPresent),
                                        (merchant && bit(3), Reason::ThreeDsRequested),
                                        (merchant && bit(4), Reason::MpiDataPresent),
                                        (merchant && amount.currency() == "USD", Reason::CurrencyMismatch),
                                        (merchant && amount.value() == "101", Reason::AmountAboveMax),
                                        (
                                            merchant && decline == Some(Decline::Revoked),
                                            Reason::ConsentRevoked,
                                        ),
                                        (merchant && decline == Some(Decline::Never), Reason::DoNotRetry),
                                        (merchant && declined_attempts == 15, Reason::RetryLimit),
                                        (merchant && !bit(1), Reason::NoNetworkTransactionId),
                                    ];
                                    let forbidden =
                                        rules.iter().find(|(holds, _)| *holds).map(|(_, reason)| *reason);
                                    let expected = match forbidden {
                                        Some(reason) => Err(Refusal::StoredCredential(reason)),
                                        None if merchant => Ok(Column::Merchant(kind)),
                                        None => Ok(Column::LaterCustomer),
                                    };
                                    assert_eq!(
                                        decide(&asked, &card, LIMITS, NOW),
                                        expected,
                                        "{asked:?} {card:?}"
                                    );
                                    seen.extend(forbidden.map(Reason::code));
                                    cases += 1;
                                }
                            }
                        }
                    }
                }
            }
        }
        assert_eq!((cases, seen.len()), (103_680, Reason::ALL.len()));
    }
}
