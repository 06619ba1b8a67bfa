//! The largest values of a change, with their coordinates: what CHOCO-SGD and DCD-PSGD tell of it.
//!
//! Top-k, and not the round's random mask: the receiver must be told the coordinates, a byte each at a density of one
//! in 25, but the values that it gets are those that matter. How much more of a change arrives per byte, the test
//! `the_largest_values_carry_more_of_a_change_per_byte_than_random_ones` measures.

use super::MethodError;
use super::values::{hear, tell, told_len};
use lapwing_base::Values;

/// Some coordinates of a vector, ascending, and their values.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sparse {
    indices: Vec<u32>,
    values: Vec<f32>,
}

/// How many coordinates of a model are told at a compression: one at least.
pub(super) fn kept(parameters: usize, compression: u32) -> usize {
    parameters.div_ceil(usize::try_from(compression.max(1)).unwrap_or(usize::MAX))
}

/// The most bytes that `count` coordinates of a model take.
pub(super) fn sparse_len(count: usize, parameters: usize, kind: Values) -> usize {
    let coordinates = if count == parameters {
        0
    } else {
        count.saturating_mul(GAP_BYTES_MAX)
    };
    told_len(count, kind).saturating_add(coordinates)
}

/// Bytes of the longest gap between coordinates: 32 bits at seven a byte.
const GAP_BYTES_MAX: usize = 5;

impl Sparse {
    /// The `count` largest values of a change by magnitude, the first ones among equals, as a receiver decodes them;
    /// `message` gets what it is sent: values, then the gaps between coordinates, seven bits a byte with the lowest
    /// first. All values have no gaps.
    ///
    /// # Errors
    ///
    /// When one of them is not finite, or too large for the encoding.
    pub(super) fn largest(
        change: &[f32],
        count: usize,
        kind: Values,
        message: &mut Vec<u8>,
    ) -> Result<Self, MethodError> {
        // Models have at most 2^32 - 1 parameters, as masks know.
        let mut indices: Vec<u32> = (0..change.len() as u32).collect();
        if count < indices.len() {
            // Without its sign a float orders as the integer of its bits, with what is not a number above infinity.
            let magnitude = |index: u32| change[index as usize].abs().to_bits();
            indices.select_nth_unstable_by(count, |&a, &b| magnitude(b).cmp(&magnitude(a)).then(a.cmp(&b)));
            indices.truncate(count);
            indices.sort_unstable();
        }
        let chosen: Vec<f32> = indices.iter().map(|&index| change[index as usize]).collect();
        let mut values = Vec::new();
        tell(&chosen, kind, message, &mut values)?;
        if count < change.len() {
            let mut next = 0;
            for &index in &indices {
                write_gap(index - next, message);
                next = index.saturating_add(1);
            }
        }
        Ok(Self { indices, values })
    }

    /// Reads as many coordinates and values of a model as `sent` has.
    ///
    /// # Errors
    ///
    /// When there are not exactly as many, one is beyond the model, or a value is not finite or of another magnitude.
    pub(super) fn read(
        bytes: &[u8],
        kind: Values,
        sent: &Self,
        parameters: usize,
    ) -> Result<Self, MethodError> {
        let count = sent.values.len();
        let malformed = |why| MethodError::Malformed { why };
        let (values, mut gaps) = bytes
            .split_at_checked(told_len(count, kind))
            .ok_or_else(|| malformed("it ends within the values"))?;
        let values = hear(values, kind, &sent.values)?;
        let mut indices = Vec::with_capacity(count);
        if count == parameters {
            indices.extend(0..count as u32);
        } else {
            let mut next = 0_u64;
            for _ in 0..count {
                let (gap, rest) = read_gap(gaps).ok_or_else(|| malformed("a coordinate is cut short"))?;
                gaps = rest;
                let index = next + u64::from(gap);
                if index >= parameters as u64 {
                    return Err(malformed("a coordinate is beyond the model"));
                }
                // Below the number of parameters, which a `u32` counts.
                indices.push(index as u32);
                next = index + 1;
            }
        }
        if gaps.is_empty() {
            Ok(Self { indices, values })
        } else {
            Err(malformed("bytes follow the last coordinate"))
        }
    }

    /// Adds the change to a vector.
    pub(super) fn add_to(&self, vector: &mut [f32]) {
        for (index, value) in self.indices.iter().zip(&self.values) {
            if let Some(x) = vector.get_mut(*index as usize) {
                *x += value;
            }
        }
    }
}

fn write_gap(mut gap: u32, message: &mut Vec<u8>) {
    while gap >= 0x80 {
        // The low seven bits, marked as not the last.
        message.push(gap as u8 | 0x80);
        gap >>= 7;
    }
    message.push(gap as u8);
}

/// A gap and the bytes after it; `None` when it has no end, or is more than 32 bits.
fn read_gap(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let mut gap = 0_u64;
    for (place, &byte) in bytes.iter().take(GAP_BYTES_MAX).enumerate() {
        gap |= u64::from(byte & 0x7f) << (7 * place);
        if byte < 0x80 {
            return Some((u32::try_from(gap).ok()?, &bytes[place + 1..]));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::draws::Draws;
    use proptest::prelude::*;

    fn energy(values: &[f32]) -> f64 {
        values.iter().map(|value| f64::from(*value).powi(2)).sum()
    }

    #[test]
    fn the_largest_values_carry_more_of_a_change_per_byte_than_random_ones() {
        const N: usize = 20_000;
        let mut draws = Draws::new("sparse test", &[1]);
        // The sum of twelve even draws is close to normal: no heavier tails than real changes have.
        let change: Vec<f32> = (0..N).map(|_| (0..12).map(|_| draws.symmetric()).sum()).collect();
        for (compression, gain) in [(25, 3.4), (100, 4.4)] {
            for (kind, cost) in [(Values::F32, 1.25 + 0.07), (Values::Int8, 2.0 + 0.3)] {
                let count = kept(N, compression);
                let mut message = Vec::new();
                let largest = Sparse::largest(&change, count, kind, &mut message).unwrap();
                let random_bytes = told_len(count, kind) as f64;
                assert!(
                    message.len() as f64 / random_bytes < cost,
                    "{} of {random_bytes}",
                    message.len()
                );
                let share = energy(&largest.values) / energy(&change) * f64::from(compression);
                assert!(
                    share > gain && share / cost > 1.4,
                    "{compression} {kind}: {share}"
                );
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_read_is_what_was_written_and_the_largest(
            change in prop::collection::vec(-10.0_f32..10.0, 1..400), compression in 1_u32..50, kind in 0_usize..3,
        ) {
            let kind = Values::ALL[kind];
            let count = kept(change.len(), compression);
            let mut message = Vec::new();
            let written = Sparse::largest(&change, count, kind, &mut message).unwrap();
            prop_assert!(message.len() <= sparse_len(count, change.len(), kind));
            let read = Sparse::read(&message, kind, &written, change.len()).unwrap();
            prop_assert_eq!(&read, &written);
            prop_assert!(read.indices.is_sorted_by(|a, b| a < b));
            let least = read.indices.iter().map(|&index| change[index as usize].abs()).fold(f32::MAX, f32::min);
            let above = change.iter().filter(|value| value.abs() > least).count();
            prop_assert!(above < count);
        }

        #[test]
        fn garbage_is_refused_or_read_within_the_model(
            bytes in prop::collection::vec(any::<u8>(), 0..60), count in 1_usize..10, kind in 0_usize..3,
        ) {
            let sent = Sparse { indices: Vec::new(), values: vec![1.0; count] };
            if let Ok(read) = Sparse::read(&bytes, Values::ALL[kind], &sent, 100) {
                prop_assert!(read.indices.iter().all(|&index| index < 100));
                prop_assert_eq!(read.values.len(), count);
            }
        }
    }

    #[test]
    fn a_coordinate_beyond_the_model_or_a_byte_too_many_is_refused() {
        let mut message = Vec::new();
        let change = [0.0, 3.0, 0.0, -2.0, 1.0];
        let sent = Sparse::largest(&change, 2, Values::F32, &mut message).unwrap();
        assert!(Sparse::read(&message, Values::F32, &sent, 4).is_ok());
        assert!(Sparse::read(&message, Values::F32, &sent, 3).is_err());
        message.push(0);
        assert!(Sparse::read(&message, Values::F32, &sent, 5).is_err());
        assert!(Sparse::read(&message[..9], Values::F32, &sent, 5).is_err());
        assert_eq!(read_gap(&[0xff; 8]), None);
    }
}
