//! The words that masks are drawn from: a ChaCha8 key stream. Part of the protocol, unlike `draws`.

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

/// Words drawn at once: a multiple of what the generator makes at a time (four blocks of sixteen).
pub(super) const BATCH: usize = 64;

/// The words of a ChaCha8 key stream, in order.
pub(super) struct Words {
    generator: ChaCha8Rng,
    batch: [u32; BATCH],
    /// Words of the batch that are used up.
    used: usize,
}

impl Words {
    pub(super) fn new(key: [u8; 32]) -> Self {
        Self {
            generator: ChaCha8Rng::from_seed(key),
            batch: [0; BATCH],
            used: BATCH,
        }
    }

    pub(super) fn next(&mut self) -> u32 {
        if self.used == BATCH {
            self.refill();
        }
        let word = self.batch[self.used];
        self.used += 1;
        word
    }

    /// The next words, as many as are made at a time; what is left of a batch that was begun is not skipped.
    pub(super) fn batch(&mut self) -> [u32; BATCH] {
        if self.used == BATCH {
            self.refill();
            self.used = BATCH;
            return self.batch;
        }
        std::array::from_fn(|_| self.next())
    }

    /// A number below `bound` by multiplication alone: one word for each, at a bias below `bound / 2^32`.
    pub(super) fn below(&mut self, bound: u32) -> u32 {
        // The product of two `u32`s, shifted by 32, is a `u32`.
        ((u64::from(self.next()) * u64::from(bound)) >> 32) as u32
    }

    fn refill(&mut self) {
        let mut bytes = [0; BATCH * size_of::<u32>()];
        self.generator.fill_bytes(&mut bytes);
        for (word, bytes) in self.batch.iter_mut().zip(bytes.as_chunks().0) {
            *word = u32::from_le_bytes(*bytes);
        }
        self.used = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_the_key_stream_however_they_are_taken() {
        let key = [7; 32];
        let mut plain = ChaCha8Rng::from_seed(key);
        let expected: Vec<u32> = (0..5 * BATCH).map(|_| plain.next_u32()).collect();
        let mut words = Words::new(key);
        let mut taken = words.batch().to_vec();
        taken.extend((0..10).map(|_| words.next()));
        taken.extend(words.batch());
        taken.extend((0..BATCH - 10).map(|_| words.next()));
        taken.extend(words.batch());
        assert_eq!(taken.len(), 4 * BATCH);
        assert_eq!(taken, expected[..taken.len()]);
    }
}
