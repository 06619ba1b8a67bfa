//! How exchanged values are written on the wire: as they are, as halves, or as one byte each with a scale for
//! each block. Values alone; which coordinates they are both partners know from the mask.
//!
//! Pure and deterministic: rounding is to the nearest, ties to even. A sender keeps what the receiver will
//! decode, since a pair's mean is preserved only when each merges against what the other really got (see
//! `merge`). Exchanges of values feed no error back: the next
//! exchange of a coordinate sends what was lost anyway, and a carried residual only adds to the disagreement
//! (measured in the test `carrying_the_rounding_error_over_does_not_help`: after 20 rounds 2.4 times as much).
//! What sends differences does ([`Encoded::with_feedback`]).

mod block;
mod encoded;
mod kernels;

pub(crate) use block::{BLOCK, sum_of_squares};
pub use encoded::Encoded;

use crate::lanes::widest;
use crate::mask::Mask;
use block::SCALE;
use kernels::{Decoding, Encoding, FirstNotFinite};
use lapwing_base::Values;

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
    // What `out` already has is overwritten, not cleared first.
    out.resize(encoded_len(values.len(), kind), 0);
    let mask = &Mask::All(values.len());
    widest(Encoding {
        x: values,
        mask,
        kind,
        out,
    });
}

/// Replaces the contents of `out` by `count` decoded values. On an error `out` is empty.
///
/// # Errors
///
/// When the bytes are not exactly as many as `count` values take, or a value is not finite.
pub fn decode(bytes: &[u8], kind: Values, count: usize, out: &mut Vec<f32>) -> Result<(), DecodeError> {
    check_bytes(bytes, kind, count).inspect_err(|_| out.clear())?;
    decode_checked(bytes, kind, count, out);
    Ok(())
}

/// Whether bytes are so many finite values.
fn check_bytes(bytes: &[u8], kind: Values, count: usize) -> Result<(), DecodeError> {
    let expected = encoded_len(count, kind);
    if bytes.len() != expected {
        return Err(DecodeError::Length {
            kind,
            count,
            expected,
            got: bytes.len(),
        });
    }
    match widest(FirstNotFinite { bytes, kind }) {
        None => Ok(()),
        Some(index) => Err(DecodeError::NotFinite { index }),
    }
}

/// As many values as the bytes were found to be.
fn decode_checked(bytes: &[u8], kind: Values, count: usize, out: &mut Vec<f32>) {
    out.resize(count, 0.0);
    widest(Decoding { bytes, kind, out });
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
    use bytes::Bytes;
    use lapwing_base::{Algorithm, JobId, Round, RoundKind, RoundPlan};
    use proptest::prelude::*;

    const KINDS: [Values; 3] = [Values::F32, Values::F16, Values::Int8];

    fn round_trip(values: &[f32], kind: Values) -> Vec<f32> {
        let encoded = encoded(values, kind).unwrap();
        assert_eq!(encoded.bytes().len(), encoded_len(values.len(), kind));
        let mut decoded = vec![9.0; 3];
        encoded.decode(&mut decoded);
        let (mut bytes, mut again) = (vec![7; 9], Vec::new());
        encode(values, kind, &mut bytes);
        assert_eq!(encoded.bytes(), bytes);
        decode(&bytes, kind, values.len(), &mut again).unwrap();
        assert_eq!(decoded, again);
        decoded
    }

    fn encoded(values: &[f32], kind: Values) -> Result<Encoded, DecodeError> {
        // Whatever a buffer had before is overwritten.
        Encoded::of(values, &Mask::All(values.len()), kind, vec![7; 9])
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
            let kind = KINDS[kind];
            // Of the right length as often as not.
            let count = match kind {
                Values::F32 if count % 2 == 0 => bytes.len() / 4,
                Values::F16 if count % 2 == 0 => bytes.len() / 2,
                Values::Int8 if count % 2 == 0 => bytes.len().saturating_sub(bytes.len().div_ceil(260) * 4),
                _ => count,
            };
            let mut out = vec![1.0];
            let plain = decode(&bytes, kind, count, &mut out);
            let parsed = Encoded::parse(Bytes::from(bytes), kind, count);
            prop_assert_eq!(plain.as_ref().err(), parsed.as_ref().err());
            prop_assert_eq!(out.len(), if plain.is_ok() { count } else { 0 });
            if let Ok(encoded) = parsed {
                encoded.decode(&mut out);
                prop_assert_eq!(out.len(), count);
                prop_assert!(out.iter().all(|value| value.is_finite()));
                prop_assert!(encoded.root_mean_square().is_finite());
            }
        }

        #[test]
        fn masked_values_are_written_as_gathered_ones(
            x in prop::collection::vec(-9.0_f32..9.0, 1..1500), runs: bool, compression in 1_u32..5, kind in 0_usize..3,
        ) {
            let kind = KINDS[kind];
            let mask = mask(runs, compression, x.len());
            let mut gathered = Vec::new();
            mask.gather(&x, &mut gathered);
            prop_assert_eq!(Encoded::of(&x, &mask, kind, Vec::new()), encoded(&gathered, kind));
        }

        #[test]
        fn what_rounding_loses_is_carried_to_the_next_exchange_of_a_coordinate(
            x in prop::collection::vec((-9.0_f32..9.0, -0.1_f32..0.1), 1..1500), runs: bool, compression in 1_u32..5,
            kind in 0_usize..3,
        ) {
            let kind = KINDS[kind];
            let (x, before): (Vec<f32>, Vec<f32>) = x.into_iter().unzip();
            let mask = mask(runs, compression, x.len());
            let mut residual = before.clone();
            let encoded = Encoded::with_feedback(&x, &mask, kind, &mut residual, Vec::new()).unwrap();
            let meant: Vec<f32> = x.iter().zip(&before).map(|(x, residual)| x + residual).collect();
            prop_assert_eq!(&encoded, &Encoded::of(&meant, &mask, kind, Vec::new()).unwrap());
            let mut sent = Vec::new();
            encoded.decode(&mut sent);
            let mut expected = before;
            for (index, sent) in mask.coordinates().zip(sent) {
                expected[index as usize] = meant[index as usize] - sent;
            }
            prop_assert_eq!(residual, expected);
        }
    }

    fn mask(runs: bool, compression: u32, n: usize) -> Mask {
        if !runs {
            return Mask::random([3; 32], compression, n);
        }
        let plan = RoundPlan {
            job: JobId(1),
            round: Round(2),
            kind: RoundKind::Sparse,
            seed: [0; 32],
            pairs: Vec::new(),
            alone: Vec::new(),
            compression,
            local_steps: 1,
            lr_micro: 1,
            deadline_ms: 1,
        };
        Mask::of(1, Algorithm::Default, &plan, n)
    }

    #[test]
    fn a_value_that_is_not_finite_clears_the_residuals_of_its_block() {
        let mut x = vec![0.3; 600];
        x[300] = f32::NAN;
        let mut residual = vec![0.25; 600];
        let mask = Mask::All(600);
        let error = Encoded::with_feedback(&x, &mask, Values::Int8, &mut residual, Vec::new()).unwrap_err();
        assert_eq!(error, DecodeError::NotFinite { index: 256 });
        assert_eq!(residual[BLOCK..2 * BLOCK], [0.0; BLOCK]);
        assert!(residual.iter().all(|residual| residual.is_finite()));
    }

    #[test]
    fn with_feedback_differences_too_small_for_a_step_arrive_after_some_rounds() {
        // A hundredth of the largest value's step.
        let mut x = vec![1e-4; 64];
        x[0] = 1.0;
        let mask = Mask::All(64);
        let (mut residual, mut arrived, mut decoded) = (vec![0.0; 64], 0.0, Vec::new());
        for _ in 0..200 {
            let sent = Encoded::with_feedback(&x, &mask, Values::Int8, &mut residual, Vec::new()).unwrap();
            sent.decode(&mut decoded);
            arrived += decoded[1];
        }
        assert!((arrived - 200.0 * x[1]).abs() < 1.0 / 127.0, "{arrived}");
        encoded(&x, Values::Int8).unwrap().decode(&mut decoded);
        assert_eq!(decoded[1], 0.0);
    }

    #[test]
    fn the_memory_of_an_exchange_is_there_for_the_next_unless_it_is_still_being_sent() {
        let encoded = encoded(&[1.0; 1000], Values::F32).unwrap();
        let address = encoded.bytes().as_ptr();
        let again = Encoded::of(&[2.0; 900], &Mask::All(900), Values::F32, encoded.into_buffer()).unwrap();
        assert_eq!(again.bytes().as_ptr(), address);
        let sending = again.bytes();
        assert!(again.into_buffer().is_empty());
        assert_eq!(sending.len(), 3600);
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
        let bytes = encoded(&[1.0; 10], Values::Int8).unwrap().bytes();
        let error = Encoded::parse(bytes, Values::Int8, 11).unwrap_err();
        assert_eq!(error.to_string(), "11 values as int8 are 15 bytes, not 14");
    }

    #[test]
    fn a_diverged_model_is_seen_in_every_format() {
        for kind in KINDS {
            for poison in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut values = vec![1.0; 600];
                values[300] = poison;
                // A sender sees it first, and a receiver whose partner did not look sees the same bytes.
                let error = encoded(&values, kind).unwrap_err();
                let first = if kind == Values::Int8 { BLOCK } else { 300 };
                assert_eq!(error, DecodeError::NotFinite { index: first }, "{kind} {poison}");
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
