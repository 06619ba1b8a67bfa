//! Which coordinates of the flat parameter vector a round exchanges. Partners derive the same mask from the
//! job's seed and the round, so that only values travel, never indices.
//!
//! Pure, and integers only: a mask is bit-identical on every machine, which `tests/vectors.rs` holds fast.
//! The generator is part of the protocol (two generators, two masks), so nothing here may change without a
//! new context string. It does not hold values; see `quantise` and `merge` for those.

use lapwing_base::{Algorithm, Round, RoundKind, RoundPlan};
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

/// The coordinates of one round, in ascending order.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Mask {
    /// Every coordinate of a model of this many parameters.
    All(usize),
    /// These coordinates: sorted, unique.
    Indices(Vec<u32>),
}

/// The key of a round: its mask and its plan are drawn from it (`RoundPlan::seed`).
pub fn round_seed(job_seed: u64, round: Round) -> [u8; 32] {
    key("lapwing 2026-11 round seed", job_seed, round.0)
}

impl Mask {
    /// The mask of a planned round for a model of `parameters` coordinates.
    ///
    /// Dense rounds, and a compression of 1, take every coordinate. Otherwise one in `plan.compression`:
    /// [`Algorithm::Default`] keeps every coordinate exactly once in `compression` rounds; every other one keeps each
    /// coordinate by chance, independently in each round (mask version 1, arXiv 2002.09692).
    ///
    /// # Panics
    ///
    /// When the model has more coordinates than a `u32` counts: 16 GiB of parameters, more than this format
    /// is made for.
    pub fn of(job_seed: u64, algorithm: Algorithm, plan: &RoundPlan, parameters: usize) -> Self {
        let n = u32::try_from(parameters).expect("a model of at most 2^32 - 1 parameters");
        // More blocks than coordinates would be empty masks, and a table as long as the number says.
        let compression = plan.compression.min(n);
        if plan.kind == RoundKind::Dense || compression <= 1 {
            return Self::All(parameters);
        }
        Self::Indices(match algorithm {
            Algorithm::Default => cyclic(job_seed, plan.round, compression, n),
            _ => random(round_seed(job_seed, plan.round), compression, n),
        })
    }

    /// How many coordinates are exchanged.
    pub fn len(&self) -> usize {
        match self {
            Self::All(parameters) => *parameters,
            Self::Indices(indices) => indices.len(),
        }
    }

    /// Whether nothing is exchanged; happens when a model has hardly more coordinates than the compression.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether every coordinate of this mask exists in a model of `parameters` coordinates.
    pub fn fits(&self, parameters: usize) -> bool {
        match self {
            Self::All(all) => *all == parameters,
            Self::Indices(indices) => indices.last().is_none_or(|&last| (last as usize) < parameters),
        }
    }

    /// Replaces the contents of `out` by the masked values of `x`, in the order of the coordinates.
    ///
    /// # Panics
    ///
    /// When the mask does not fit `x`.
    pub fn gather(&self, x: &[f32], out: &mut Vec<f32>) {
        assert!(self.fits(x.len()), "the mask is of another model");
        out.clear();
        match self {
            Self::All(_) => out.extend_from_slice(x),
            Self::Indices(indices) => out.extend(indices.iter().map(|&index| x[index as usize])),
        }
    }

    /// BLAKE3 of the coordinates as little-endian `u32`s: names this mask in test vectors and in logs.
    pub fn digest(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        match self {
            Self::All(parameters) => hash_indices(&mut hasher, 0..*parameters as u32),
            Self::Indices(indices) => hash_indices(&mut hasher, indices.iter().copied()),
        }
        *hasher.finalize().as_bytes()
    }
}

fn hash_indices(hasher: &mut blake3::Hasher, indices: impl Iterator<Item = u32>) {
    // BLAKE3 is many times faster on a buffer than on four bytes at a time.
    let mut buffer = Vec::with_capacity(HASHED_BYTES);
    for index in indices {
        buffer.extend_from_slice(&index.to_le_bytes());
        if buffer.len() == HASHED_BYTES {
            hasher.update(&buffer);
            buffer.clear();
        }
    }
    hasher.update(&buffer);
}

/// Enough for BLAKE3 to use its widest vectors (16 chunks of 1 KiB).
const HASHED_BYTES: usize = 16 * 1024;

/// Mask version 1: each coordinate with probability `1 / compression`, drawn as the gaps between kept ones.
fn random(seed: [u8; 32], compression: u32, n: u32) -> Vec<u32> {
    let gaps = Gaps::new(compression);
    let mut words = Words::new(seed);
    let expected = n / compression;
    // Five standard deviations more than expected, so that the list practically never moves.
    let mut indices = Vec::with_capacity((expected + 5 * expected.isqrt() + 16) as usize);
    let n = u64::from(n);
    let mut at = 0_u64;
    while at < n {
        match gaps.draw(words.next()) {
            Some(gap) if at + gap < n => {
                // Below `n`, which came as a `u32`.
                indices.push((at + gap) as u32);
                at += gap + 1;
            }
            Some(_) => break,
            // A geometric gap has no memory: none so far, so draw again from there.
            None => at += gaps.reach(),
        }
    }
    indices
}

/// Turns uniform words into geometric gaps by inverting a table of integers.
struct Gaps {
    /// `survival[k]` is the chance, in 2^-32, that the next `k + 1` coordinates are all left out; descending.
    survival: Vec<u32>,
    /// For each value of a word's top bits, a gap that is not above the one of any such word.
    guide: Vec<u16>,
}

impl Gaps {
    /// Top bits of a word that index the guide: with a table of four times the compression, the search from
    /// the guide's entry takes less than one step on average up to a compression of 500.
    const GUIDE_BITS: u32 = 10;
    /// Longest table: fits the first-level cache. A sparser mask draws more often, which costs one draw for
    /// each 4,096 coordinates.
    const REACH_MAX: u32 = 4096;

    fn new(compression: u32) -> Self {
        let reach = compression.saturating_mul(4).min(Self::REACH_MAX);
        let mut left = 1_u64 << 63;
        let survival: Vec<u32> = (0..reach)
            .map(|_| {
                left -= left / u64::from(compression);
                // Below 2^63 before the shift, so below 2^32 after it.
                (left >> 31) as u32
            })
            .collect();
        let mut guide = vec![0; 1 << Self::GUIDE_BITS];
        let mut gap = survival.len();
        for (top, entry) in guide.iter_mut().enumerate() {
            // The largest word with these top bits has the smallest gap.
            let largest = ((top as u32) << (32 - Self::GUIDE_BITS)) | (u32::MAX >> Self::GUIDE_BITS);
            while gap > 0 && survival[gap - 1] <= largest {
                gap -= 1;
            }
            // At most REACH_MAX.
            *entry = gap as u16;
        }
        Self { survival, guide }
    }

    /// How many coordinates a draw without a gap passes over.
    fn reach(&self) -> u64 {
        self.survival.len() as u64
    }

    /// The number of coordinates left out before the next kept one; `None` when all within reach are.
    fn draw(&self, word: u32) -> Option<u64> {
        let mut gap = usize::from(self.guide[(word >> (32 - Self::GUIDE_BITS)) as usize]);
        while word < *self.survival.get(gap)? {
            gap += 1;
        }
        Some(gap as u64)
    }
}

/// Block `(round - 1) mod c` of a permutation that is cut into `c` blocks, fresh in each cycle of `c` rounds.
///
/// The permutation is never written out. The vector is cut into strata of `c` runs of neighbouring coordinates;
/// one order of the `c` runs serves all strata, and each stratum starts at a place of its own in it. So a block
/// takes one run of each stratum: sorted as it comes, spread evenly over the layers, in a time proportional to
/// what is exchanged. A fresh order each cycle keeps a coordinate from meeting the same kind of round again and
/// again when the matchings have a rhythm too (each few rounds joins the slow members).
fn cyclic(job_seed: u64, round: Round, compression: u32, n: u32) -> Vec<u32> {
    let step = round.0.saturating_sub(1);
    let cycle = step / u64::from(compression);
    let slot = step % u64::from(compression);
    let mut words = Words::new(key("lapwing 2026-11 cyclic mask", job_seed, cycle));
    let mut order: Vec<u32> = (0..compression).collect();
    for last in (1..compression).rev() {
        order.swap(last as usize, words.below(last + 1) as usize);
    }
    let (n, c) = (u64::from(n), u64::from(compression));
    let run = (n / (c * STRATA_MIN)).clamp(1, RUN_MAX);
    let mut indices = Vec::with_capacity((n / c + run) as usize);
    for stratum in (0..n).step_by((c * run) as usize) {
        let place = (slot + u64::from(words.below(compression))) % c;
        let first = stratum + u64::from(order[place as usize]) * run;
        // The last stratum may be cut short, and its last run too. Below `n`, which came as a `u32`.
        indices.extend(
            (first..first + run)
                .take_while(|&index| index < n)
                .map(|index| index as u32),
        );
    }
    indices
}

/// Coordinates in a run: one cache line of `f32`s, so that gathering reads no line for a single value.
const RUN_MAX: u64 = 16;

/// A block of a small model is at least this many runs, so that no layer is exchanged in one piece.
const STRATA_MIN: u64 = 64;

/// The words of a ChaCha8 key stream, in order.
struct Words(ChaCha8Rng);

impl Words {
    fn new(key: [u8; 32]) -> Self {
        Self(ChaCha8Rng::from_seed(key))
    }

    fn next(&mut self) -> u32 {
        self.0.next_u32()
    }

    /// A number below `bound` by multiplication alone: one word for each, at a bias below `bound / 2^32`.
    fn below(&mut self, bound: u32) -> u32 {
        // The product of two `u32`s, shifted by 32, is a `u32`.
        ((u64::from(self.next()) * u64::from(bound)) >> 32) as u32
    }
}

fn key(context: &str, job_seed: u64, number: u64) -> [u8; 32] {
    let mut material = [0; 16];
    material[..8].copy_from_slice(&job_seed.to_le_bytes());
    material[8..].copy_from_slice(&number.to_le_bytes());
    blake3::derive_key(context, &material)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lapwing_base::JobId;
    use proptest::prelude::*;

    fn plan(round: u64, kind: RoundKind, compression: u32) -> RoundPlan {
        RoundPlan {
            job: JobId(1),
            round: Round(round),
            kind,
            seed: [0; 32],
            pairs: Vec::new(),
            alone: Vec::new(),
            compression,
            local_steps: 1,
            lr_micro: 1,
            deadline_ms: 1,
        }
    }

    fn indices(algorithm: Algorithm, seed: u64, round: u64, compression: u32, n: usize) -> Vec<u32> {
        match Mask::of(seed, algorithm, &plan(round, RoundKind::Sparse, compression), n) {
            Mask::All(n) => (0..n as u32).collect(),
            Mask::Indices(indices) => indices,
        }
    }

    proptest! {
        #[test]
        fn a_mask_is_sorted_unique_and_within_the_model(
            seed: u64, round in 1_u64..1_000_000, compression in 0_u32..3000, n in 0_usize..20_000, saps: bool,
        ) {
            let algorithm = if saps { Algorithm::Saps } else { Algorithm::Default };
            let indices = indices(algorithm, seed, round, compression, n);
            prop_assert!(indices.is_sorted_by(|a, b| a < b));
            prop_assert!(indices.last().is_none_or(|&last| (last as usize) < n));
        }

        #[test]
        fn a_cycle_exchanges_every_coordinate_exactly_once(
            seed: u64, cycle in 0_u64..5, compression in 1_u32..40, n in 0_usize..30_000,
        ) {
            let mut seen = vec![0_u8; n];
            // With fewer coordinates than blocks there are as many blocks as coordinates.
            let blocks = u64::from(compression.min(n as u32).max(1));
            for round in cycle * blocks + 1..=(cycle + 1) * blocks {
                for index in indices(Algorithm::Default, seed, round, compression, n) {
                    seen[index as usize] += 1;
                }
            }
            prop_assert!(seen.iter().all(|&times| times == 1));
        }

        #[test]
        fn a_random_mask_has_the_density_that_was_asked_for(
            seed: u64, round in 1_u64..1000, compression in 2_u32..2000,
        ) {
            let n = 200_000;
            let kept = indices(Algorithm::Saps, seed, round, compression, n).len() as f64;
            let p = 1.0 / f64::from(compression);
            let sigma = (n as f64 * p * (1.0 - p)).sqrt();
            prop_assert!((kept - n as f64 * p).abs() <= 5.0 * sigma + 1.0, "{kept} of {n} at {compression}");
        }

        #[test]
        fn a_guided_draw_is_the_plain_search_of_the_table(word: u32, compression in 2_u32..5000) {
            let gaps = Gaps::new(compression);
            let plain = gaps.survival.iter().position(|&survival| word >= survival);
            prop_assert_eq!(gaps.draw(word), plain.map(|gap| gap as u64));
        }
    }

    #[test]
    fn a_higher_compression_keeps_fewer_coordinates() {
        // An earlier implementation inverted the meaning of the ratio between two files.
        for algorithm in [Algorithm::Saps, Algorithm::Default] {
            let coarse = indices(algorithm, 1, 1, 100, 100_000).len();
            let fine = indices(algorithm, 1, 1, 10, 100_000).len();
            assert!((900..1100).contains(&coarse), "{coarse}");
            assert!((9500..10_500).contains(&fine), "{fine}");
        }
    }

    #[test]
    fn every_coordinate_is_as_likely_as_any_other() {
        let mut times = [0_u32; 64];
        for round in 1..=4000 {
            for index in indices(Algorithm::Saps, 3, round, 8, 64) {
                times[index as usize] += 1;
            }
        }
        // 500 expected, standard deviation 21.
        assert!(times.iter().all(|times| (400..600).contains(times)), "{times:?}");
    }

    #[test]
    fn each_round_and_each_seed_has_a_mask_of_its_own() {
        for algorithm in [Algorithm::Saps, Algorithm::Default] {
            let first = indices(algorithm, 1, 1, 10, 10_000);
            assert_eq!(first, indices(algorithm, 1, 1, 10, 10_000));
            assert_ne!(first, indices(algorithm, 1, 2, 10, 10_000));
            assert_ne!(first, indices(algorithm, 2, 1, 10, 10_000));
            // Ten blocks a cycle: the same block of the next cycle is another one.
            assert_ne!(first, indices(algorithm, 1, 11, 10, 10_000));
        }
    }

    #[test]
    fn a_dense_round_takes_everything_whatever_its_compression() {
        let mask = Mask::of(1, Algorithm::Saps, &plan(1, RoundKind::Dense, 100), 10);
        assert_eq!(mask, Mask::All(10));
        let mut out = vec![9.0];
        mask.gather(&[1.0; 10], &mut out);
        assert_eq!(out, [1.0; 10]);
        assert_eq!(mask.digest(), Mask::Indices((0..10).collect()).digest());
    }

    #[test]
    fn gathering_takes_the_values_of_the_coordinates_in_order() {
        let mut out = Vec::new();
        Mask::Indices(vec![0, 2, 3]).gather(&[1.0, 2.0, 3.0, 4.0], &mut out);
        assert_eq!(out, [1.0, 3.0, 4.0]);
        assert!(!Mask::Indices(vec![4]).fits(4));
        assert!(!Mask::All(3).fits(4));
        assert!(Mask::Indices(Vec::new()).fits(0));
    }
}
