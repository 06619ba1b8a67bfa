//! Chooses the coordinates with the largest values: what CHOCO-SGD (arXiv 1902.00340) and DCD-PSGD (arXiv 1803.06443)
//! call top-k.
//!
//! Exact, and the same on every machine: a threshold is guessed from a sample, one pass at the speed of memory keeps
//! what is above it, and only among those is the k-th searched. A bad guess costs another pass, never another result.

use super::Mask;
use crate::lanes::{Kernel, widest};

/// Values in the sample: its k-th is then within a few percent of the true one, at a compression of 100.
const SAMPLE: usize = 1 << 16;

/// Values that are skipped together when all are below the threshold.
const SKIPPED: usize = 16;

impl Mask {
    /// The `k` coordinates whose values are largest in magnitude, or all when there are no more; of equals the first
    /// ones. What is not a number counts as larger than any, so that a diverged model is seen.
    ///
    /// # Panics
    ///
    /// When there are more values than a `u32` counts.
    pub fn largest(x: &[f32], k: usize) -> Self {
        assert!(u32::try_from(x.len()).is_ok(), "at most 2^32 - 1 values");
        if k >= x.len() {
            return Self::All(x.len());
        }
        if k == 0 {
            return Self::Indices(Vec::new());
        }
        let mut sample: Vec<u32> = x
            .iter()
            .step_by((x.len() / SAMPLE).max(1))
            .map(|value| magnitude(*value))
            .collect();
        // So many of the sample are expected above the k-th, and five standard deviations more practically never.
        let expected = (k as f64 * sample.len() as f64 / x.len() as f64).ceil() as usize;
        let mut rank = expected + 5 * expected.isqrt() + 5;
        let mut indices = Vec::new();
        loop {
            let threshold = match sample.len().checked_sub(rank) {
                Some(place) => *sample.select_nth_unstable(place).1,
                None => 0,
            };
            let indices = &mut indices;
            widest(Above {
                x,
                threshold,
                indices,
            });
            if indices.len() >= k {
                break;
            }
            rank = rank.saturating_mul(2);
        }
        if indices.len() > k {
            drop_smallest(x, k, &mut indices);
        }
        Self::Indices(indices)
    }
}

/// Without its sign a float orders as the integer of its bits, with what is not a number above infinity.
#[inline(always)]
fn magnitude(value: f32) -> u32 {
    value.abs().to_bits()
}

/// The coordinates of values that are at least as large as `threshold`.
struct Above<'a> {
    x: &'a [f32],
    threshold: u32,
    indices: &'a mut Vec<u32>,
}

impl Kernel for Above<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self {
            x,
            threshold,
            indices,
        } = self;
        indices.clear();
        // Magnitudes have no sign bit, and processors compare signed integers.
        let threshold = threshold.cast_signed();
        let is_above = |value: &f32| magnitude(*value).cast_signed() >= threshold;
        let mut first = 0_u32;
        let (chunks, rest) = x.as_chunks::<SKIPPED>();
        for chunk in chunks {
            if chunk.iter().fold(false, |any, value| any | is_above(value)) {
                let mut kept = [0; SKIPPED];
                let mut count = 0;
                for (offset, value) in (0..).zip(chunk) {
                    // Overwritten when it is not kept. Fewer were kept before than there are.
                    kept[count % SKIPPED] = first + offset;
                    count += usize::from(is_above(value));
                }
                indices.extend_from_slice(&kept[..count]);
            }
            first += SKIPPED as u32;
        }
        indices.extend(
            (first..)
                .zip(rest)
                .filter(|(_, value)| is_above(value))
                .map(|(index, _)| index),
        );
    }
}

/// Leaves the `k` largest of more than `k` candidates.
fn drop_smallest(x: &[f32], k: usize, indices: &mut Vec<u32>) {
    let magnitude_of = |index: u32| magnitude(x[index as usize]);
    let mut magnitudes: Vec<u32> = indices.iter().map(|&index| magnitude_of(index)).collect();
    let place = magnitudes.len() - k;
    let (_, &mut least, above) = magnitudes.select_nth_unstable(place);
    // Of those that equal the k-th, as many as there is room for.
    let mut equals = k - above.iter().filter(|&&magnitude| magnitude > least).count();
    indices.retain(|&index| {
        let magnitude = magnitude_of(index);
        let is_equal = magnitude == least && equals > 0;
        equals -= usize::from(is_equal);
        is_equal || magnitude > least
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::draws::Draws;
    use proptest::prelude::*;

    fn plainly(x: &[f32], k: usize) -> Vec<u32> {
        let mut order: Vec<u32> = (0..x.len() as u32).collect();
        // Stable, so that of equals the first ones come first.
        order.sort_by_key(|&index| std::cmp::Reverse(magnitude(x[index as usize])));
        order.truncate(k);
        order.sort_unstable();
        order
    }

    proptest! {
        #[test]
        fn they_are_the_first_of_all_values_in_order_of_magnitude(
            x in prop::collection::vec(
                prop_oneof![any::<f32>(), Just(0.0), Just(-1.0), Just(1.0), Just(f32::NAN), Just(1e-40)], 0..300,
            ),
            k in 0_usize..320,
        ) {
            let chosen: Vec<u32> = Mask::largest(&x, k).coordinates().collect();
            prop_assert_eq!(chosen, plainly(&x, k));
        }
    }

    #[test]
    fn a_sample_that_misleads_costs_time_and_not_the_result() {
        let mut draws = Draws::new("largest", &[1]);
        let n = 3 * SAMPLE;
        // The sample sees every third value: all of the large ones, or none.
        for large in 0..3 {
            let x: Vec<f32> = (0..n)
                .map(|index| draws.symmetric() * if index % 3 == large { 100.0 } else { 1.0 })
                .collect();
            for k in [1, 1000, SAMPLE, 2 * SAMPLE, n - 1] {
                let chosen: Vec<u32> = Mask::largest(&x, k).coordinates().collect();
                assert_eq!(chosen, plainly(&x, k), "{large} {k}");
            }
        }
    }
}
