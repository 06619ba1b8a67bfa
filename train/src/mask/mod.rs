//! Which coordinates of the flat parameter vector a round exchanges. Partners derive the same mask from the
//! job's seed and the round, so that only values travel, never indices.
//!
//! Pure, and integers only: a mask is bit-identical on every machine, which `tests/vectors.rs` holds fast.
//! The generator is part of the protocol (two generators, two masks), so nothing here may change without a
//! new context string. It does not hold values; see `quantise` and `merge` for those.

mod cyclic;
mod delta;
mod largest;
mod random;
mod runs;
mod words;

pub use delta::DeltaError;
pub use runs::Runs;

use lapwing_base::{Algorithm, Round, RoundKind, RoundPlan};

/// The coordinates of one round, in ascending order.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Mask {
    /// Every coordinate of a model of this many parameters.
    All(usize),
    /// These coordinates: sorted, unique.
    Indices(Vec<u32>),
    /// Neighbours in runs.
    Runs(Runs),
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
        let mut mask = Self::All(0);
        mask.renew(job_seed, algorithm, plan, parameters);
        mask
    }

    /// Makes this [`Self::of`] another round, in the memory that it has.
    ///
    /// # Panics
    ///
    /// As [`Self::of`].
    pub fn renew(&mut self, job_seed: u64, algorithm: Algorithm, plan: &RoundPlan, parameters: usize) {
        let n = u32::try_from(parameters).expect("a model of at most 2^32 - 1 parameters");
        // More blocks than coordinates would be empty masks, and a table as long as the number says.
        let compression = plan.compression.min(n);
        if plan.kind == RoundKind::Dense || compression <= 1 {
            *self = Self::All(parameters);
            return;
        }
        let mut memory = self.take();
        *self = match algorithm {
            Algorithm::Default => Self::Runs(cyclic::draw(job_seed, plan.round, compression, n, memory)),
            _ => {
                random::draw(round_seed(job_seed, plan.round), compression, n, &mut memory);
                Self::Indices(memory)
            }
        };
    }

    /// Each coordinate with probability `1 / compression`, by chance that a seed decides: what CHOCO-SGD calls
    /// random-k, where each sender draws its own.
    ///
    /// # Panics
    ///
    /// As [`Self::of`].
    pub fn random(seed: [u8; 32], compression: u32, parameters: usize) -> Self {
        let n = u32::try_from(parameters).expect("a model of at most 2^32 - 1 parameters");
        let compression = compression.min(n);
        if compression <= 1 {
            return Self::All(parameters);
        }
        let mut indices = Vec::new();
        random::draw(seed, compression, n, &mut indices);
        Self::Indices(indices)
    }

    /// The memory of the coordinates, for the next mask.
    fn take(&mut self) -> Vec<u32> {
        match std::mem::replace(self, Self::All(0)) {
            Self::All(_) => Vec::new(),
            Self::Indices(indices) => indices,
            Self::Runs(runs) => runs.into_starts(),
        }
    }

    /// How many coordinates are exchanged.
    pub fn len(&self) -> usize {
        match self {
            Self::All(parameters) => *parameters,
            Self::Indices(indices) => indices.len(),
            Self::Runs(runs) => runs.len(),
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
            Self::Runs(runs) => runs.end() <= parameters,
        }
    }

    /// The coordinates, ascending.
    pub fn coordinates(&self) -> impl Iterator<Item = u32> + '_ {
        let (all, indices, runs) = match self {
            // A `u32` counts them, or nothing was made of them.
            Self::All(parameters) => (0..*parameters as u32, &[][..], None),
            Self::Indices(indices) => (0..0, indices.as_slice(), None),
            Self::Runs(runs) => (0..0, &[][..], Some(runs)),
        };
        all.chain(indices.iter().copied())
            .chain(runs.into_iter().flat_map(Runs::coordinates))
    }

    /// Replaces the contents of `out` by the masked values of `x`, in the order of the coordinates.
    ///
    /// # Panics
    ///
    /// When the mask does not fit `x`.
    pub fn gather(&self, x: &[f32], out: &mut Vec<f32>) {
        assert!(self.fits(x.len()), "the mask is of another model");
        // What `out` already has is overwritten, not cleared first.
        out.resize(self.len(), 0.0);
        self.gather_part(x, 0, out);
    }

    /// Copies the values of coordinates number `first` and following, as many as `out` takes. The mask fits `x`.
    #[inline(always)]
    pub(crate) fn gather_part(&self, x: &[f32], first: usize, out: &mut [f32]) {
        match self {
            Self::All(_) => out.copy_from_slice(&x[first..first + out.len()]),
            Self::Indices(indices) => {
                for (out, &index) in out.iter_mut().zip(&indices[first..]) {
                    *out = x[index as usize];
                }
            }
            Self::Runs(runs) => runs.gather(x, first, out),
        }
    }

    /// Sets the values of coordinates number `first` and following. The mask fits `x`.
    #[inline(always)]
    pub(crate) fn scatter_part(&self, x: &mut [f32], first: usize, values: &[f32]) {
        match self {
            Self::All(_) => x[first..first + values.len()].copy_from_slice(values),
            Self::Indices(indices) => {
                for (value, &index) in values.iter().zip(&indices[first..]) {
                    x[index as usize] = *value;
                }
            }
            Self::Runs(runs) => runs.scatter(x, first, values),
        }
    }

    /// BLAKE3 of the coordinates as little-endian `u32`s: names this mask in test vectors and in logs.
    pub fn digest(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        // BLAKE3 is many times faster on a buffer than on four bytes at a time.
        let mut buffer = Vec::with_capacity(HASHED_BYTES);
        for coordinate in self.coordinates() {
            buffer.extend_from_slice(&coordinate.to_le_bytes());
            if buffer.len() == HASHED_BYTES {
                hasher.update(&buffer);
                buffer.clear();
            }
        }
        hasher.update(&buffer);
        *hasher.finalize().as_bytes()
    }
}

/// Enough for BLAKE3 to use its widest vectors (16 chunks of 1 KiB).
const HASHED_BYTES: usize = 16 * 1024;

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
        let plan = plan(round, RoundKind::Sparse, compression);
        Mask::of(seed, algorithm, &plan, n).coordinates().collect()
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
    fn a_mask_made_in_the_memory_of_another_is_the_same() {
        let mut renewed = Mask::All(0);
        for (round, algorithm, compression) in [
            (1, Algorithm::Saps, 10),
            (2, Algorithm::Default, 25),
            (3, Algorithm::Default, 1),
            (4, Algorithm::Saps, 7),
        ] {
            let plan = plan(round, RoundKind::Sparse, compression);
            renewed.renew(5, algorithm, &plan, 50_890);
            assert_eq!(renewed, Mask::of(5, algorithm, &plan, 50_890));
        }
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
