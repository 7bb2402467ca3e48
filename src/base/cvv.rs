//! Sensitive authentication data: never stored after authorization, not even encrypted (PCI DSS 3.3.1).

use zeroize::{Zeroize, ZeroizeOnDrop};

/// A card verification value: 3 or 4 ASCII digits. No `Debug`, `Clone` or `Serialize`; wiped on drop.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct Cvv {
    digits: [u8; 4],
    len: usize,
}

impl Cvv {
    /// 3 or 4 ASCII digits (American Express prints four), else `None`.
    pub fn parse(text: &str) -> Option<Self> {
        let mut cvv = Self { digits: [0; 4], len: text.len() };
        let good = matches!(text.len(), 3 | 4) && text.bytes().all(|b| b.is_ascii_digit());
        if good {
            for (place, byte) in cvv.digits.iter_mut().zip(text.bytes()) {
                *place = byte;
            }
        }
        good.then_some(cvv)
    }

    /// The digits. Named so that each use can be found.
    pub fn expose(&self) -> &str {
        std::str::from_utf8(&self.digits[..self.len]).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_or_four_digits_and_nothing_else() {
        assert_eq!(Cvv::parse("850").expect("a CVV").expose(), "850");
        assert_eq!(Cvv::parse("0007").expect("a CVV").expose(), "0007");
        for bad in ["", "85", "85000", "85a", "٨٥٠", " 85", "8.5", "-85"] {
            assert!(Cvv::parse(bad).is_none(), "{bad:?}");
        }
    }
}
