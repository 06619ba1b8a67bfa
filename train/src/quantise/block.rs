//! How one block of values is written: [`BLOCK`] of them, or fewer at the end. In 1 KiB on the stack, so that what is
//! gathered, written, read and merged stays in the first-level cache between those steps.

use half::f16;
use half::slice::HalfFloatSliceExt;
use lapwing_base::Values;

/// Values that share one scale. Neighbours in the mask's order mostly belong to one layer and are of one
/// magnitude; four bytes of scale for 256 of values are 1.6 %.
pub(crate) const BLOCK: usize = 256;

/// Bytes of a block's scale: an `f32`, little endian.
pub(super) const SCALE: usize = 4;

/// What a byte counts to on either side of zero.
const STEPS: f32 = 127.0;

/// Blocks whose largest value is below this are written as zeros: the inverse of their scale would overflow.
const TINY: f32 = 1e-30;

/// Bytes of a whole block.
pub(super) const fn stride(kind: Values) -> usize {
    match kind {
        Values::F32 => BLOCK * 4,
        Values::F16 => BLOCK * 2,
        Values::Int8 => SCALE + BLOCK,
    }
}

/// Writes a block; `out` is as long as its values take.
#[inline(always)]
pub(super) fn encode(values: &[f32], kind: Values, out: &mut [u8]) {
    match kind {
        Values::F32 => {
            for (bytes, value) in out.as_chunks_mut().0.iter_mut().zip(values) {
                *bytes = value.to_le_bytes();
            }
        }
        Values::F16 => {
            let mut halves = [f16::ZERO; BLOCK];
            let halves = &mut halves[..values.len()];
            halves.convert_from_f32_slice(values);
            for (bytes, half) in out.as_chunks_mut().0.iter_mut().zip(halves) {
                *bytes = half.to_le_bytes();
            }
        }
        Values::Int8 => {
            // Without its sign a float orders as the integer of its bits, with what is not a number above infinity.
            let largest = values.iter().fold(0, |largest, value| {
                value.abs().to_bits().cast_signed().max(largest)
            });
            let largest = f32::from_bits(largest.cast_unsigned());
            let scale = if largest.is_finite() {
                largest / STEPS
            } else {
                f32::NAN
            };
            let per_step = if largest < TINY { 0.0 } else { STEPS / largest };
            let (head, steps) = out.split_at_mut(SCALE);
            head.copy_from_slice(&scale.to_le_bytes());
            for (step, value) in steps.iter_mut().zip(values) {
                // The low byte of a number from -127 to 127 is the number as an `i8`.
                *step = nearest_step(value * per_step) as u8;
            }
        }
    }
}

/// The nearest whole number of a value from -127 to 127, ties to even.
///
/// Adding 1.5 * 2^23 leaves no room for a fraction in an `f32`, so that the addition itself rounds and the
/// whole number stands in the low bits; the compiler turns this into vector code, which `round` is not.
#[inline(always)]
fn nearest_step(value: f32) -> i32 {
    const SHIFT: f32 = 12_582_912.0;
    ((value + SHIFT).to_bits() as i32).wrapping_sub(SHIFT.to_bits() as i32)
}

/// Reads a block that [`is_finite`]; `out` is as long as its values are many.
#[inline(always)]
pub(crate) fn decode(bytes: &[u8], kind: Values, out: &mut [f32]) {
    match kind {
        Values::F32 => {
            for (out, bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
                *out = f32::from_le_bytes(*bytes);
            }
        }
        Values::F16 => {
            for (out, bytes) in out.iter_mut().zip(bytes.as_chunks().0) {
                *out = widened(u16::from_le_bytes(*bytes));
            }
        }
        Values::Int8 => {
            let (scale, steps) = split(bytes);
            for (out, &step) in out.iter_mut().zip(steps) {
                *out = f32::from(step.cast_signed()) * scale;
            }
        }
    }
}

/// A finite half as an `f32`: its bits moved and its exponent rebased, which the compiler turns into vector code.
#[inline(always)]
fn widened(half: u16) -> f32 {
    /// Ten bits of fraction become 23.
    const SHIFT: u32 = 13;
    /// The exponents count from 15 and from 127.
    const REBASE: u32 = (127 - 15) << 23;
    /// The least normal half, 2^-14.
    const LEAST: f32 = f32::from_bits(REBASE + (1 << 23));
    let bits = (u32::from(half & 0x7fff) << SHIFT) + REBASE;
    // Below the least normal half there is no hidden one: put there, and taken away as a number.
    let small = f32::from_bits(bits + (1 << 23)) - LEAST;
    let normal = f32::from_bits(bits);
    let magnitude = if half & 0x7c00 == 0 { small } else { normal };
    f32::from_bits(magnitude.to_bits() | u32::from(half & 0x8000) << 16)
}

/// Whether a block decodes to finite values only.
#[inline(always)]
pub(super) fn is_finite(bytes: &[u8], kind: Values) -> bool {
    /// All ones in the exponent are what neither is a number nor finite.
    const EXPONENT_32: u32 = 0x7f80_0000;
    const EXPONENT_16: u16 = 0x7c00;
    match kind {
        Values::F32 => bytes.as_chunks().0.iter().fold(true, |finite, bytes| {
            finite & (u32::from_le_bytes(*bytes) & EXPONENT_32 != EXPONENT_32)
        }),
        Values::F16 => bytes.as_chunks().0.iter().fold(true, |finite, bytes| {
            finite & (u16::from_le_bytes(*bytes) & EXPONENT_16 != EXPONENT_16)
        }),
        Values::Int8 => {
            let (scale, steps) = split(bytes);
            // No byte counts further than -128; scales this large are rare enough to look at each step.
            (scale * -128.0).is_finite()
                || steps
                    .iter()
                    .all(|step| (f32::from(step.cast_signed()) * scale).is_finite())
        }
    }
}

/// The first value of a block that is not finite.
pub(super) fn first_not_finite(bytes: &[u8], kind: Values) -> Option<usize> {
    match kind {
        Values::F32 => (bytes.as_chunks().0.iter()).position(|bytes| !f32::from_le_bytes(*bytes).is_finite()),
        Values::F16 => (bytes.as_chunks().0.iter()).position(|bytes| !f16::from_le_bytes(*bytes).is_finite()),
        Values::Int8 => {
            let (scale, steps) = split(bytes);
            (steps.iter()).position(|step| !(f32::from(step.cast_signed()) * scale).is_finite())
        }
    }
}

/// The sum of the squares of a block's values.
#[inline(always)]
pub(super) fn squares(bytes: &[u8], kind: Values) -> f64 {
    let count = match kind {
        Values::F32 => bytes.len() / 4,
        Values::F16 => bytes.len() / 2,
        Values::Int8 => {
            let (scale, steps) = split(bytes);
            // 256 squares of at most 2^14 are far from the end of an `i32`.
            let sum: i32 = steps
                .iter()
                .map(|step| i32::from(step.cast_signed()).pow(2))
                .sum();
            return f64::from(sum) * f64::from(scale) * f64::from(scale);
        }
    };
    let mut values = [0.0; BLOCK];
    let values = &mut values[..count];
    decode(bytes, kind, values);
    sum_of_squares(values)
}

/// The sum of the squares of the finite values of a block, to six digits; squares below 1e-45 are zero. In lanes of a
/// fixed number, so that the sum does not depend on the processor.
#[inline(always)]
pub(crate) fn sum_of_squares(values: &[f32]) -> f64 {
    const LANES: usize = 16;
    let (chunks, rest) = values.as_chunks::<LANES>();
    // Sixteen values a lane: `f32`s are exact enough, and twice as many fit a vector.
    let mut sums = [0.0_f32; LANES];
    for chunk in chunks {
        for (sum, value) in sums.iter_mut().zip(chunk) {
            *sum += value * value;
        }
    }
    for (sum, value) in sums.iter_mut().zip(rest) {
        *sum += value * value;
    }
    let sum: f64 = sums.iter().map(|sum| f64::from(*sum)).sum();
    if sum.is_finite() {
        return sum;
    }
    // Values beyond 1e19, whose squares no `f32` holds.
    values.iter().map(|value| f64::from(*value).powi(2)).sum()
}

#[inline(always)]
fn split(bytes: &[u8]) -> (f32, &[u8]) {
    match bytes.split_first_chunk::<SCALE>() {
        Some((scale, steps)) => (f32::from_le_bytes(*scale), steps),
        // Nothing of nothing; blocks are cut to their lengths before they come here.
        None => (0.0, &[]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_step_is_rounded_to_the_nearest_and_ties_to_even() {
        for (value, step) in [
            (0.5, 0),
            (1.5, 2),
            (-0.5, 0),
            (-1.5, -2),
            (126.6, 127),
            (-127.0, -127),
        ] {
            assert_eq!(nearest_step(value), step, "{value}");
        }
    }

    /// Any bits, with many of the values that arithmetic treats as special.
    fn any_value() -> impl Strategy<Value = f32> {
        const SPECIAL: &[f32] = &[0.0, -0.0, 1e-40, -1e-45, 65504.0, 65520.0, 1e-30, f32::MAX];
        const BROKEN: &[f32] = &[f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
        prop_oneof![
            8 => -2.0_f32..2.0,
            1 => any::<f32>(),
            1 => prop::sample::select(SPECIAL),
            1 => prop::sample::select(BROKEN),
        ]
    }

    #[test]
    fn every_finite_half_is_widened_exactly() {
        for bits in 0..=u16::MAX {
            let half = f16::from_bits(bits);
            if half.is_finite() {
                assert_eq!(widened(bits).to_bits(), half.to_f32().to_bits(), "{bits:#x}");
            }
        }
    }

    proptest! {
        #[test]
        fn a_block_is_written_as_value_by_value(values in prop::collection::vec(any_value(), 1..=BLOCK)) {
            let count = values.len();
            let mut out = vec![0; SCALE + 4 * BLOCK];
            let out16 = &mut out[..count * 2];
            encode(&values, Values::F16, out16);
            for (bytes, value) in out16.as_chunks().0.iter().zip(&values) {
                let (got, plain) = (f16::from_le_bytes(*bytes), f16::from_f32(*value));
                prop_assert!(got == plain || got.is_nan() && plain.is_nan());
            }
            let out8 = &mut out[..SCALE + count];
            encode(&values, Values::Int8, out8);
            let largest = values.iter().map(|value| value.abs()).fold(0.0, f32::max);
            // The largest of all is rounded to infinity when it is scaled back.
            let has_finite_values = values.iter().all(|value| value.is_finite() && value.abs() < f32::MAX / 2.0);
            prop_assert_eq!(is_finite(out8, Values::Int8), has_finite_values);
            if has_finite_values {
                for (step, value) in out8[SCALE..].iter().zip(&values) {
                    let per_step = if largest < TINY { 0.0 } else { STEPS / largest };
                    prop_assert_eq!(f32::from(step.cast_signed()), (value * per_step).round_ties_even());
                }
            }
        }

        #[test]
        fn a_block_is_finite_when_all_its_values_are(
            bytes in prop::collection::vec(any::<u8>(), 260), broken in any_value(), place in 0_usize..64,
        ) {
            for (kind, count) in [(Values::F32, 65), (Values::F16, 130), (Values::Int8, 256)] {
                let mut bytes = bytes.clone();
                if kind == Values::F32 {
                    // Mostly finite, so that one that is not is seen wherever it stands.
                    bytes.iter_mut().skip(3).step_by(4).for_each(|byte| *byte &= 0x3f);
                    bytes[4 * place..4 * place + 4].copy_from_slice(&broken.to_le_bytes());
                }
                let plainly: Vec<f32> = match kind {
                    Values::F32 => bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
                    Values::F16 => {
                        bytes.as_chunks().0.iter().map(|bytes| f16::from_le_bytes(*bytes).to_f32()).collect()
                    }
                    Values::Int8 => {
                        let scale = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
                        bytes[SCALE..].iter().map(|step| f32::from(*step as i8) * scale).collect()
                    }
                };
                let broken = plainly.iter().position(|value| !value.is_finite());
                prop_assert_eq!(first_not_finite(&bytes, kind), broken);
                prop_assert_eq!(is_finite(&bytes, kind), broken.is_none());
                if broken.is_some() {
                    continue;
                }
                let mut values = vec![0.0; count];
                decode(&bytes, kind, &mut values);
                prop_assert_eq!(&values, &plainly);
                let plain: f64 = values.iter().map(|value| f64::from(*value).powi(2)).sum();
                prop_assert!((squares(&bytes, kind) - plain).abs() <= plain * 1e-6 + 1e-42);
            }
        }
    }
}
