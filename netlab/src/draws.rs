//! Numbers drawn from a seed.
//!
//! SplitMix64 (Steele, Lea and Flood 2014): short, fast, and good enough to lose frames by. Not for keys.

/// A sequence of numbers that its seed determines.
#[derive(Clone, Debug)]
pub(crate) struct Draws(u64);

impl Draws {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The seed of a part, so that parts draw independently of one another and of the order they are made in.
    pub(crate) fn seed_of(seed: u64, part: u64) -> u64 {
        Self(seed ^ part.wrapping_mul(0xD6E8_FEB8_6659_FD93)).number()
    }

    pub(crate) fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A share, 0 <= share < 1, in steps of 2^-53.
    pub(crate) fn share(&mut self) -> f64 {
        (self.number() >> 11) as f64 / (1_u64 << 53) as f64
    }
}
