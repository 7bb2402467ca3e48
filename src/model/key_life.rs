//! How long a key may seal: a cryptoperiod and a number of uses, whichever ends first (NIST SP 800-57 part 1
//! r5, section 5.3; PCI DSS 3.7.4). What a key has sealed can be opened for as long as the key is kept.

use std::time::Duration;

use crate::base::clock::Millis;

/// From this share of a cryptoperiod or a budget on, in percent, a key should be rotated.
pub const WARN_PERCENT: u128 = 80;

/// What is known of a key's use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Life {
    /// When it was made.
    pub created: Millis,
    /// When it stops sealing.
    pub expires: Millis,
    /// How often it was used.
    pub uses: u64,
    /// How often it may be used.
    pub budget: u64,
}

/// Whether a key may still seal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It may, and nothing is due.
    Good,
    /// It may; its time is nearly over, and it should be rotated.
    NearlyExpired,
    /// It may; its uses are nearly spent, and it should be rotated.
    NearlySpent,
    /// It may not: its cryptoperiod is over.
    Expired,
    /// It may not: it was used as often as it may be.
    Spent,
}

impl Standing {
    /// Whether the key may seal.
    pub fn may_seal(self) -> bool {
        !matches!(self, Self::Expired | Self::Spent)
    }

    /// Whether somebody should rotate it.
    pub fn is_due(self) -> bool {
        self != Self::Good
    }

    /// For people.
    pub fn words(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::NearlyExpired => "80 % of its cryptoperiod is over",
            Self::NearlySpent => "80 % of its uses are spent",
            Self::Expired => "its cryptoperiod is over: it seals nothing more",
            Self::Spent => "its uses are spent: it seals nothing more",
        }
    }
}

impl Life {
    /// Where the key stands at `now`. A clock that goes back makes no key older.
    pub fn standing(&self, now: Millis) -> Standing {
        if now >= self.expires {
            return Standing::Expired;
        }
        if self.uses >= self.budget {
            return Standing::Spent;
        }
        let (age, period) = (since(self.created, now), since(self.created, self.expires));
        if age * 100 >= period * WARN_PERCENT {
            return Standing::NearlyExpired;
        }
        if u128::from(self.uses) * 100 >= u128::from(self.budget) * WARN_PERCENT {
            return Standing::NearlySpent;
        }
        Standing::Good
    }

    /// How long ago it was made.
    pub fn age(&self, now: Millis) -> Duration {
        Duration::from_millis(u64::try_from(since(self.created, now)).unwrap_or(u64::MAX))
    }
}

fn since(begin: Millis, end: Millis) -> u128 {
    u128::try_from(i128::from(end.0) - i128::from(begin.0)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFE: Life = Life { created: Millis(1_000), expires: Millis(2_000), uses: 0, budget: 100 };

    #[test]
    fn time_ends_a_key_and_warns_before() {
        for (now, standing) in [
            (0, Standing::Good),
            (1_000, Standing::Good),
            (1_799, Standing::Good),
            (1_800, Standing::NearlyExpired),
            (1_999, Standing::NearlyExpired),
            (2_000, Standing::Expired),
            (i64::MAX, Standing::Expired),
            (i64::MIN, Standing::Good),
        ] {
            assert_eq!(LIFE.standing(Millis(now)), standing, "{now}");
        }
    }

    #[test]
    fn uses_end_a_key_and_warn_before() {
        for (uses, standing) in [
            (0, Standing::Good),
            (79, Standing::Good),
            (80, Standing::NearlySpent),
            (99, Standing::NearlySpent),
            (100, Standing::Spent),
            (u64::MAX, Standing::Spent),
        ] {
            assert_eq!(Life { uses, ..LIFE }.standing(Millis(1_000)), standing, "{uses}");
        }
        let whole = Life { uses: u64::MAX - 1, budget: u64::MAX, ..LIFE };
        assert_eq!(whole.standing(Millis(1_000)), Standing::NearlySpent);
    }

    #[test]
    fn only_what_is_over_stops_sealing() {
        let all = [
            Standing::Good,
            Standing::NearlyExpired,
            Standing::NearlySpent,
            Standing::Expired,
            Standing::Spent,
        ];
        assert_eq!(all.map(Standing::may_seal), [true, true, true, false, false]);
        assert_eq!(all.map(Standing::is_due), [false, true, true, true, true]);
    }
}
