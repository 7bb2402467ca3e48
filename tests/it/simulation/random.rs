//! Numbers that depend on a seed and on nothing else.

/// SplitMix64.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    pub fn of(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0xD1B5_4A32_D192_ED03)
    }

    /// Depends on the seed and a name, and not on what was drawn before: a habit.
    pub fn habit(seed: u64, name: &str) -> Self {
        let folded = name.bytes().fold(seed ^ 0xCBF2_9CE4_8422_2325, |sum, byte| {
            (sum ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3)
        });
        Self::of(folded)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Below `end`, which is not zero.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// A place in a list that is not empty.
    pub fn place(&mut self, length: usize) -> usize {
        usize::try_from(self.below(length as u64)).expect("a place")
    }

    /// With so many chances in a thousand.
    pub fn chance(&mut self, in_thousand: u64) -> bool {
        self.below(1000) < in_thousand
    }

    /// One of several, by weight.
    pub fn pick<T: Copy>(&mut self, among: &[(u64, T)]) -> T {
        let all: u64 = among.iter().map(|(weight, _)| weight).sum();
        let mut place = self.below(all);
        for (weight, one) in among {
            if place < *weight {
                return *one;
            }
            place -= weight;
        }
        unreachable!("a place within the weights")
    }
}
