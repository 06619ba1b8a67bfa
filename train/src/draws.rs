//! Seeded draws for everything here that needs chance but must be the same on every machine: initial
//! parameters, splits, partitions, the order of batches. Integers only, so no rounding differs anywhere.
//!
//! Not for the masks of a round: those are part of the protocol and have their own fixed generator use.

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

/// A stream of draws, named by what it is for and by numbers such as a seed and an epoch.
#[derive(Clone, Debug)]
pub(crate) struct Draws(ChaCha8Rng);

impl Draws {
    /// The stream for a purpose. Two purposes, or two lists of numbers, give unrelated streams.
    pub(crate) fn new(purpose: &str, numbers: &[u64]) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key(purpose);
        for number in numbers {
            hasher.update(&number.to_le_bytes());
        }
        Self(ChaCha8Rng::from_seed(*hasher.finalize().as_bytes()))
    }

    /// A number from 0 to `bound - 1`, each equally likely; 0 when `bound` is 0.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        // Lemire's multiplication (ACM TOMACS 29(1), 2019, arXiv 1805.10941) with its rejection of the
        // short remainder, so that nothing is favoured.
        let threshold = bound.wrapping_neg().checked_rem(bound).unwrap_or(0);
        loop {
            let product = u128::from(self.0.next_u64()) * u128::from(bound);
            // The low half decides on rejection, the high half is the draw.
            if product as u64 >= threshold {
                return (product >> 64) as u64;
            }
        }
    }

    /// A number in [-1, 1), a multiple of 2^-23, which an `f32` holds exactly.
    pub(crate) fn symmetric(&mut self) -> f32 {
        let bits = self.0.next_u32() >> 8;
        bits as f32 / 8_388_608.0 - 1.0
    }

    /// Whether something comes to pass that does so with this probability, to 2^-53.
    pub(crate) fn chance(&mut self, probability: f64) -> bool {
        self.uniform() < probability
    }

    /// A number in [0, 1), a multiple of 2^-53.
    fn uniform(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// A number from the standard normal distribution (Box and Muller, Ann. Math. Statist. 29(2), 1958).
    ///
    /// Its logarithm and cosine are the platform's: for what need not be the same on every machine.
    pub(crate) fn normal(&mut self) -> f64 {
        // In (0, 1], so that there is a logarithm.
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// Fisher and Yates' shuffle.
    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let other = self.below(last as u64 + 1) as usize;
            items.swap(last, other);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_name_gives_the_same_draws_and_another_gives_others() {
        let draw = |purpose: &str, numbers: &[u64]| Draws::new(purpose, numbers).below(u64::MAX);
        assert_eq!(draw("a", &[1, 2]), draw("a", &[1, 2]));
        assert_ne!(draw("a", &[1, 2]), draw("a", &[2, 1]));
        assert_ne!(draw("a", &[1, 2]), draw("b", &[1, 2]));
    }

    #[test]
    fn draws_below_a_bound_are_even_and_stay_below_it() {
        let mut draws = Draws::new("test", &[7]);
        let mut seen = [0_u32; 7];
        for _ in 0..7000 {
            seen[draws.below(7) as usize] += 1;
        }
        assert!(seen.iter().all(|count| (850..1150).contains(count)), "{seen:?}");
        assert_eq!(draws.below(1), 0);
        assert_eq!(draws.below(0), 0);
    }

    #[test]
    fn a_shuffle_keeps_every_item() {
        let mut items: Vec<u32> = (0..100).collect();
        Draws::new("test", &[1]).shuffle(&mut items);
        assert!(!items.is_sorted());
        items.sort_unstable();
        assert_eq!(items, (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn symmetric_draws_stay_in_their_range_and_centre_on_zero() {
        let mut draws = Draws::new("test", &[2]);
        let numbers: Vec<f32> = (0..10_000).map(|_| draws.symmetric()).collect();
        assert!(numbers.iter().all(|number| (-1.0..1.0).contains(number)));
        assert!((numbers.iter().sum::<f32>() / 10_000.0).abs() < 0.03);
    }
}
