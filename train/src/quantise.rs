//! How exchanged values are written on the wire: as they are, as halves, or as one byte each with a scale for
//! each block. Values alone; which coordinates they are both partners know from the mask.
//!
//! Pure and deterministic: rounding is to the nearest, ties to even. A sender keeps what the receiver will
//! decode, since a pair's mean is preserved only when each merges against what the other really got (see
//! `merge`). No error is fed back into the next exchange: values are sent, not differences, so the next
//! exchange of a coordinate sends what was lost anyway, and a carried residual only adds to the disagreement
//! (measured in the test `carrying_the_rounding_error_over_does_not_help`: after 20 rounds 2.4 times as much).

use half::f16;
use half::slice::HalfFloatSliceExt;
use lapwing_base::Values;

/// Values that share one scale. Neighbours in the mask's order mostly belong to one layer and are of one
/// magnitude; four bytes of scale for 256 of values are 1.6 %.
const BLOCK: usize = 256;

/// Bytes of a block's scale: an `f32`, little endian.
const SCALE: usize = 4;

/// What a byte counts to on either side of zero.
const STEPS: f32 = 127.0;

/// Blocks whose largest value is below this are written as zeros: the inverse of their scale would overflow.
const TINY: f32 = 1e-30;

/// The received bytes are not the values that they should be.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum DecodeError {
    /// The partner sent another number of values, or another format.
    #[error("{count} values as {kind} are {expected} bytes, not {got}")]
    Length {
        /// The format that was expected.
        kind: Values,
        /// How many values were expected.
        count: usize,
        /// Bytes that these take.
        expected: usize,
        /// Bytes that came.
        got: usize,
    },
    /// A value is not a number or infinite: the partner's model has diverged.
    #[error("value {index} is not finite")]
    NotFinite {
        /// The first such value, counted in the order of the mask.
        index: usize,
    },
}

/// How many bytes `count` values take.
pub const fn encoded_len(count: usize, kind: Values) -> usize {
    match kind {
        Values::F32 => count.saturating_mul(4),
        Values::F16 => count.saturating_mul(2),
        Values::Int8 => count.saturating_add(count.div_ceil(BLOCK).saturating_mul(SCALE)),
    }
}

/// Replaces the contents of `out` by the encoded values.
///
/// A value that is not finite, or that a half cannot hold, makes what is written undecodable: a diverged model
/// must be seen by the receiver, not averaged.
pub fn encode(values: &[f32], kind: Values, out: &mut Vec<u8>) {
    out.clear();
    out.resize(encoded_len(values.len(), kind), 0);
    match kind {
        Values::F32 => {
            for (bytes, value) in out.as_chunks_mut().0.iter_mut().zip(values) {
                *bytes = value.to_le_bytes();
            }
        }
        Values::F16 => {
            let mut halves = [f16::ZERO; BLOCK];
            for (bytes, block) in out.chunks_mut(BLOCK * 2).zip(values.chunks(BLOCK)) {
                let halves = &mut halves[..block.len()];
                halves.convert_from_f32_slice(block);
                for (bytes, half) in bytes.as_chunks_mut().0.iter_mut().zip(halves) {
                    *bytes = half.to_le_bytes();
                }
            }
        }
        Values::Int8 => {
            for (bytes, block) in out.chunks_mut(SCALE + BLOCK).zip(values.chunks(BLOCK)) {
                encode_block(block, bytes);
            }
        }
    }
}

fn encode_block(block: &[f32], out: &mut [u8]) {
    // Without its sign a float orders as the integer of its bits, with what is not a number above infinity.
    let largest = block.iter().fold(0, |largest, value| {
        largest.max(value.abs().to_bits().cast_signed())
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
    for (step, value) in steps.iter_mut().zip(block) {
        // The low byte of a number from -127 to 127 is the number as an `i8`.
        *step = nearest_step(value * per_step) as u8;
    }
}

/// The nearest whole number of a value from -127 to 127, ties to even.
///
/// Adding 1.5 * 2^23 leaves no room for a fraction in an `f32`, so that the addition itself rounds and the
/// whole number stands in the low bits; the compiler turns this into vector code, which `round` is not.
fn nearest_step(value: f32) -> i32 {
    const SHIFT: f32 = 12_582_912.0;
    ((value + SHIFT).to_bits() as i32).wrapping_sub(SHIFT.to_bits() as i32)
}

/// Replaces the contents of `out` by `count` decoded values. On an error `out` is empty.
///
/// # Errors
///
/// When the bytes are not exactly as many as `count` values take, or a value is not finite.
pub fn decode(bytes: &[u8], kind: Values, count: usize, out: &mut Vec<f32>) -> Result<(), DecodeError> {
    out.clear();
    let expected = encoded_len(count, kind);
    if bytes.len() != expected {
        return Err(DecodeError::Length {
            kind,
            count,
            expected,
            got: bytes.len(),
        });
    }
    // Not more than the bytes that are here already, whatever the partner says.
    out.reserve(count);
    match kind {
        Values::F32 => out.extend(
            bytes
                .as_chunks::<4>()
                .0
                .iter()
                .map(|value| f32::from_le_bytes(*value)),
        ),
        Values::F16 => {
            let mut halves = [f16::ZERO; BLOCK];
            for block in bytes.chunks(BLOCK * 2) {
                let block = block.as_chunks::<2>().0;
                let halves = &mut halves[..block.len()];
                for (half, bytes) in halves.iter_mut().zip(block) {
                    *half = f16::from_le_bytes(*bytes);
                }
                let start = out.len();
                out.resize(start + block.len(), 0.0);
                halves.convert_to_f32_slice(&mut out[start..]);
            }
        }
        Values::Int8 => {
            for block in bytes.chunks(SCALE + BLOCK) {
                let Some((scale, steps)) = block.split_first_chunk::<SCALE>() else {
                    break;
                };
                let scale = f32::from_le_bytes(*scale);
                out.extend(steps.iter().map(|&step| f32::from(step.cast_signed()) * scale));
            }
        }
    }
    if let Some(index) = first_not_finite(out) {
        out.clear();
        return Err(DecodeError::NotFinite { index });
    }
    Ok(())
}

/// Whether no value is infinite or not a number. Zero times a finite value is zero, times anything else it is
/// not a number, and a sum keeps that; in lanes this runs at the speed of memory.
pub(crate) fn are_finite(values: &[f32]) -> bool {
    let (chunks, rest) = values.as_chunks::<16>();
    let mut sums = [0.0_f32; 16];
    for chunk in chunks {
        for (sum, value) in sums.iter_mut().zip(chunk) {
            *sum += value * 0.0;
        }
    }
    sums.iter().all(|sum| *sum == 0.0) && rest.iter().all(|value| value.is_finite())
}

/// The first value that is infinite or not a number.
pub(crate) fn first_not_finite(values: &[f32]) -> Option<usize> {
    if are_finite(values) {
        return None;
    }
    values.iter().position(|value| !value.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::draws::Draws;
    use proptest::prelude::*;

    const KINDS: [Values; 3] = [Values::F32, Values::F16, Values::Int8];

    fn round_trip(values: &[f32], kind: Values) -> Vec<f32> {
        let (mut bytes, mut decoded) = (Vec::new(), Vec::new());
        encode(values, kind, &mut bytes);
        assert_eq!(bytes.len(), encoded_len(values.len(), kind));
        decode(&bytes, kind, values.len(), &mut decoded).unwrap();
        decoded
    }

    proptest! {
        #[test]
        fn a_decoded_value_is_within_half_a_step_of_the_sent_one(
            values in prop::collection::vec(-1e4_f32..1e4, 0..700),
        ) {
            prop_assert_eq!(&round_trip(&values, Values::F32), &values);
            for (sent, got) in values.iter().zip(round_trip(&values, Values::F16)) {
                prop_assert!((sent - got).abs() <= sent.abs() / 2048.0 + 3.0e-8);
            }
            let decoded = round_trip(&values, Values::Int8);
            for (sent, got) in values.chunks(BLOCK).zip(decoded.chunks(BLOCK)) {
                let largest = sent.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
                for (sent, got) in sent.iter().zip(got) {
                    prop_assert!((sent - got).abs() <= largest / 127.0 * 0.5001);
                }
            }
        }

        #[test]
        fn garbage_is_refused_or_decoded_to_finite_values_but_never_panics(
            bytes in prop::collection::vec(any::<u8>(), 0..1200), kind in 0_usize..3, count in 0_usize..1200,
        ) {
            let mut out = vec![1.0];
            match decode(&bytes, KINDS[kind], count, &mut out) {
                Ok(()) => {
                    prop_assert_eq!(out.len(), count);
                    prop_assert!(out.iter().all(|value| value.is_finite()));
                }
                Err(_) => prop_assert!(out.is_empty()),
            }
        }

        #[test]
        fn any_bytes_of_the_right_length_are_read_without_a_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            let count = bytes.len().saturating_sub(SCALE);
            if encoded_len(count, Values::Int8) == bytes.len() {
                let _ = decode(&bytes, Values::Int8, count, &mut Vec::new());
            }
            let _ = decode(&bytes[..bytes.len() / 4 * 4], Values::F32, bytes.len() / 4, &mut Vec::new());
            let _ = decode(&bytes[..bytes.len() / 2 * 2], Values::F16, bytes.len() / 2, &mut Vec::new());
        }
    }

    #[test]
    fn what_is_sent_is_smaller_than_the_dense_values() {
        // An earlier implementation sent indices beside the values.
        assert_eq!(encoded_len(10_000, Values::F32), 40_000);
        assert_eq!(encoded_len(10_000, Values::F16), 20_000);
        assert_eq!(encoded_len(10_000, Values::Int8), 10_000 + 40 * 4);
        assert_eq!(encoded_len(0, Values::Int8), 0);
        assert_eq!(encoded_len(usize::MAX, Values::Int8), usize::MAX);
    }

    #[test]
    fn another_number_of_values_is_an_error_that_names_both() {
        let mut bytes = Vec::new();
        encode(&[1.0; 10], Values::Int8, &mut bytes);
        let error = decode(&bytes, Values::Int8, 11, &mut Vec::new()).unwrap_err();
        assert_eq!(error.to_string(), "11 values as int8 are 15 bytes, not 14");
    }

    #[test]
    fn a_diverged_model_is_seen_by_the_receiver_in_every_format() {
        for kind in KINDS {
            for poison in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut values = vec![1.0; 600];
                values[300] = poison;
                let mut bytes = Vec::new();
                encode(&values, kind, &mut bytes);
                let error = decode(&bytes, kind, 600, &mut Vec::new()).unwrap_err();
                assert!(matches!(error, DecodeError::NotFinite { .. }), "{kind} {poison}");
            }
        }
    }

    #[test]
    fn zeros_and_the_smallest_values_stay_what_they_are_or_become_zero() {
        for kind in KINDS {
            assert_eq!(round_trip(&[0.0; 3], kind), [0.0; 3]);
            assert!(round_trip(&[f32::MIN_POSITIVE; 3], kind)[0] <= f32::MIN_POSITIVE);
        }
        // Extremes of a block are exact steps.
        assert_eq!(
            round_trip(&[127.0, -127.0, 64.0], Values::Int8),
            [127.0, -127.0, 64.0]
        );
    }

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

    /// Eight models that start apart exchange everything as int8 for `rounds` rounds; the mean square distance
    /// from their mean that is left, with the rounding error carried over to the next exchange or not.
    fn disagreement(carry: bool, rounds: usize) -> f64 {
        const NODES: usize = 8;
        const N: usize = 1024;
        let mut draws = Draws::new("quantise test", &[1]);
        let common: Vec<f32> = (0..N).map(|_| draws.symmetric()).collect();
        let mut models: Vec<Vec<f32>> = (0..NODES)
            .map(|_| {
                common
                    .iter()
                    .map(|value| value + 0.1 * draws.symmetric())
                    .collect()
            })
            .collect();
        let mut residuals = vec![vec![0.0_f32; N]; NODES];
        for _ in 0..rounds {
            let mut order: Vec<usize> = (0..NODES).collect();
            draws.shuffle(&mut order);
            let sent: Vec<Vec<f32>> = (0..NODES)
                .map(|node| {
                    let meant: Vec<f32> = models[node]
                        .iter()
                        .zip(&residuals[node])
                        .map(|(x, e)| x + e)
                        .collect();
                    let sent = round_trip(&meant, Values::Int8);
                    if carry {
                        residuals[node] = meant.iter().zip(&sent).map(|(m, s)| m - s).collect();
                    }
                    sent
                })
                .collect();
            for pair in order.chunks_exact(2) {
                for (me, partner) in [(pair[0], pair[1]), (pair[1], pair[0])] {
                    for i in 0..N {
                        models[me][i] += 0.5 * (sent[partner][i] - sent[me][i]);
                    }
                }
            }
        }
        let mut sum = 0.0;
        for i in 0..N {
            let mean = models.iter().map(|model| f64::from(model[i])).sum::<f64>() / NODES as f64;
            sum += models
                .iter()
                .map(|model| (f64::from(model[i]) - mean).powi(2))
                .sum::<f64>();
        }
        sum / (N * NODES) as f64
    }

    #[test]
    fn carrying_the_rounding_error_over_does_not_help() {
        for rounds in [5, 20, 100] {
            let (plain, carried) = (disagreement(false, rounds), disagreement(true, rounds));
            assert!(plain <= carried, "{rounds} rounds: {plain:e} against {carried:e}");
        }
    }
}
