//! Mask version 1: each coordinate with probability `1 / compression`, drawn as the gaps between kept ones.
//!
//! Integers only. Which words there are, and what each means, is part of the protocol; how fast a word is looked up
//! is not.

use super::words::{BATCH, Words};

/// Replaces the contents of `indices` by the coordinates that are kept of `n`; `compression` is at least 2.
pub(super) fn draw(seed: [u8; 32], compression: u32, n: u32, indices: &mut Vec<u32>) {
    let gaps = Gaps::new(compression);
    let mut words = Words::new(seed);
    let expected = n / compression;
    indices.clear();
    // Five standard deviations more than expected, so that the list practically never moves.
    indices.reserve((expected + 5 * expected.isqrt() + 16) as usize);
    let n = u64::from(n);
    let reach = gaps.reach();
    let mut at = 0_u64;
    // As long as no batch can pass the end, nothing is decided between two draws: what cannot be foretold is only
    // how many of a batch are kept, and a processor that guesses wrong loses the time of several draws.
    while at + (u64::from(reach) + 1) * BATCH as u64 <= n {
        let mut kept = [0; BATCH];
        let mut count = 0;
        // The batch ends below `n`, which came as a `u32`.
        let mut next = at as u32;
        for word in words.batch() {
            let gap = gaps.draw(word);
            let is_kept = u32::from(gap < reach);
            // Overwritten when it is not kept. Fewer are kept than drawn.
            kept[count % BATCH] = next + gap;
            count += is_kept as usize;
            next += gap + is_kept;
        }
        at = u64::from(next);
        indices.extend_from_slice(&kept[..count]);
    }
    while at < n {
        let gap = gaps.draw(words.next());
        at += u64::from(gap);
        // A geometric gap has no memory: where none is within reach, the next draw goes on from there.
        if gap < reach && at < n {
            indices.push(at as u32);
            at += 1;
        }
    }
}

/// Turns uniform words into geometric gaps by inverting a table of integers.
struct Gaps {
    /// `survival[k]` is the chance, in 2^-32, that the next `k + 1` coordinates are all left out; descending, and a
    /// zero at the end.
    survival: Vec<u32>,
    /// For each value of a word's top bits, the gap of all such words, or with [`Self::SEARCH`] the least one.
    guide: Box<[u16; 1 << Self::GUIDE_BITS]>,
}

impl Gaps {
    /// Top bits of a word that index the guide: with these, one word in ten has to be searched for at a compression of
    /// 100, and one in a hundred at 10; the guide fits the first-level cache.
    const GUIDE_BITS: u32 = 12;
    /// Words with these top bits have several gaps.
    const SEARCH: u16 = 1 << 15;
    /// Longest table. A sparser mask draws more often, which costs one draw for each 4,096 coordinates.
    const REACH_MAX: u32 = 4096;

    fn new(compression: u32) -> Self {
        let reach = compression.saturating_mul(4).min(Self::REACH_MAX);
        let mut left = 1_u64 << 63;
        let chances = (0..reach).map(|_| {
            left -= left / u64::from(compression);
            // Below 2^63 before the shift, so below 2^32 after it.
            (left >> 31) as u32
        });
        let survival: Vec<u32> = chances.chain([0]).collect();
        let mut guide = Box::new([0; 1 << Self::GUIDE_BITS]);
        let mut gap = reach as usize;
        for (top, entry) in guide.iter_mut().enumerate() {
            // The largest word with these top bits has the smallest gap.
            let smallest = (top as u32) << (32 - Self::GUIDE_BITS);
            let largest = smallest | (u32::MAX >> Self::GUIDE_BITS);
            while gap > 0 && survival[gap - 1] <= largest {
                gap -= 1;
            }
            // At most REACH_MAX.
            *entry = gap as u16;
            if smallest < survival[gap] {
                *entry |= Self::SEARCH;
            }
        }
        Self { survival, guide }
    }

    /// How many coordinates a draw without a gap passes over.
    fn reach(&self) -> u32 {
        // At most REACH_MAX.
        self.survival.len() as u32 - 1
    }

    /// The number of coordinates left out before the next kept one; the reach when all within it are.
    #[inline(always)]
    fn draw(&self, word: u32) -> u32 {
        let entry = self.guide[(word >> (32 - Self::GUIDE_BITS)) as usize];
        if entry < Self::SEARCH {
            u32::from(entry)
        } else {
            self.search(word, entry - Self::SEARCH)
        }
    }

    /// The gap of a word, which is not below `least`.
    fn search(&self, word: u32, least: u16) -> u32 {
        let mut gap = usize::from(least);
        // Ends at the zero.
        while word < self.survival[gap] {
            gap += 1;
        }
        gap as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// One word after the other, each looked up in the whole table.
    fn plainly(seed: [u8; 32], compression: u32, n: u32) -> Vec<u32> {
        let gaps = Gaps::new(compression);
        let mut words = Words::new(seed);
        let (mut at, mut indices) = (0, Vec::new());
        loop {
            let word = words.next();
            let Some(gap) = gaps.survival.iter().position(|&chance| word >= chance) else {
                unreachable!("no word is below zero");
            };
            at += gap as u64;
            if at >= u64::from(n) {
                return indices;
            }
            if gap + 1 < gaps.survival.len() {
                indices.push(at as u32);
                at += 1;
            }
        }
    }

    proptest! {
        #[test]
        fn a_mask_drawn_in_batches_is_the_one_drawn_word_by_word(
            seed: [u8; 32], compression in 2_u32..6000, n in 0_u32..500_000,
        ) {
            let mut indices = vec![1, 2, 3];
            draw(seed, compression, n, &mut indices);
            prop_assert_eq!(indices, plainly(seed, compression, n));
        }

        #[test]
        fn a_guided_draw_is_the_plain_search_of_the_table(word: u32, compression in 2_u32..5000) {
            let gaps = Gaps::new(compression);
            let plain = gaps.survival.iter().position(|&chance| word >= chance);
            prop_assert_eq!(gaps.draw(word), plain.unwrap() as u32);
        }
    }
}
