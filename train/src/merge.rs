//! Averages a model with a partner's values on the coordinates of a mask.
//!
//! Pure. It decides neither whether a pair merges (the log does) nor what is exchanged (the mask does). Always
//! half and half, never weighted by samples, so that the mean of all models is what the local steps made it.

use crate::mask::Mask;
use crate::quantise::first_not_finite;

/// How many times larger the received values may be than the sent ones, by root mean square.
///
/// A guard against a diverged partner, not against a clever one. Partners start equal and differ by the local
/// steps of a few rounds; a hundred times is far from that, and a diverging model passes it within few steps.
const RATIO_MAX: f64 = 100.0;

/// Own values count as at least this large in the guard: biases start at zero and grow to about one.
const MAGNITUDE_MIN: f64 = 1.0;

/// The values cannot be merged into the model.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum MergeError {
    /// The number of values is not the mask's, or the mask is of another model: two plans were mixed up.
    #[error("the mask has {mask} coordinates, but {sent} values were sent and {received} received")]
    Length {
        /// Coordinates of the mask.
        mask: usize,
        /// Values that were sent.
        sent: usize,
        /// Values that were received.
        received: usize,
    },
    /// The mask is of a larger or smaller model.
    #[error("the mask does not fit a model of {parameters} parameters")]
    Model {
        /// Parameters of the model.
        parameters: usize,
    },
    /// A received value is infinite or not a number: the partner's model has diverged.
    #[error("received value {index} is not finite")]
    NotFinite {
        /// The first such value, in the order of the mask.
        index: usize,
    },
    /// The received values are of another magnitude: the partner's model is diverging.
    #[error("received values have a root mean square of {received:.3e} against {sent:.3e} sent")]
    TooLarge {
        /// Root mean square of what was sent.
        sent: f64,
        /// Root mean square of what was received.
        received: f64,
    },
}

/// Whether received values may be merged at all.
///
/// A node asks this when values arrive, before it reports their receipt: once the log says that the pair merges,
/// both do, and a refusal by one would shift the mean of all.
///
/// # Errors
///
/// When the numbers of values differ from the mask's, a received value is not finite, or the received values
/// are more than a hundred times as large as the sent ones.
pub fn check(mask: &Mask, sent: &[f32], received: &[f32]) -> Result<(), MergeError> {
    check_shape(mask, sent, received)?;
    let (sent, received) = (root_mean_square(sent), root_mean_square(received));
    if received > RATIO_MAX * sent.max(MAGNITUDE_MIN) {
        return Err(MergeError::TooLarge { sent, received });
    }
    Ok(())
}

fn check_shape(mask: &Mask, sent: &[f32], received: &[f32]) -> Result<(), MergeError> {
    if sent.len() != mask.len() || received.len() != mask.len() {
        return Err(MergeError::Length {
            mask: mask.len(),
            sent: sent.len(),
            received: received.len(),
        });
    }
    first_not_finite(received).map_or(Ok(()), |index| Err(MergeError::NotFinite { index }))
}

fn root_mean_square(values: &[f32]) -> f64 {
    let (chunks, rest) = values.as_chunks::<8>();
    let mut sums = [0.0_f64; 8];
    for chunk in chunks {
        for (sum, value) in sums.iter_mut().zip(chunk) {
            *sum += f64::from(*value) * f64::from(*value);
        }
    }
    let rest: f64 = rest.iter().map(|value| f64::from(*value).powi(2)).sum();
    let mean = (sums.iter().sum::<f64>() + rest) / values.len().max(1) as f64;
    mean.sqrt()
}

/// Moves `x` half-way from what was sent to what was received, on the mask's coordinates.
///
/// `sent` is what the partner decoded, not what `x` was before it was encoded: then the two changes of a pair are
/// exact opposites and its mean stays, however coarse the encoding, and also when training went on meanwhile.
/// Where `x` still is what was sent, both partners compute the same sum and end bit-identical.
///
/// # Errors
///
/// When the mask does not fit `x`, the numbers of values differ from the mask's, or a received value is not finite;
/// then `x` is untouched. Magnitudes are [`check`]ed on receipt and not again: the pair has agreed to merge by now.
pub fn merge(x: &mut [f32], mask: &Mask, sent: &[f32], received: &[f32]) -> Result<(), MergeError> {
    if !mask.fits(x.len()) {
        return Err(MergeError::Model { parameters: x.len() });
    }
    check_shape(mask, sent, received)?;
    match mask {
        Mask::All(_) => {
            for ((x, sent), received) in x.iter_mut().zip(sent).zip(received) {
                *x = halfway(*x, *sent, *received);
            }
        }
        Mask::Indices(indices) => {
            for ((index, sent), received) in indices.iter().zip(sent).zip(received) {
                let x = &mut x[*index as usize];
                *x = halfway(*x, *sent, *received);
            }
        }
    }
    Ok(())
}

fn halfway(x: f32, sent: f32, received: f32) -> f32 {
    // Halved before they are added: the sum of two finite values may not be finite. An addition is the same in
    // either order, which `x + (received - x) / 2` is not; the last bit would differ between partners.
    let mean = 0.5 * x + 0.5 * received;
    let moved = x + 0.5 * (received - sent);
    if x == sent { mean } else { moved }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quantise::{decode, encode};
    use lapwing_base::Values;
    use proptest::prelude::*;

    fn decoded(values: &[f32], kind: Values) -> Vec<f32> {
        let (mut bytes, mut out) = (Vec::new(), Vec::new());
        encode(values, kind, &mut bytes);
        decode(&bytes, kind, values.len(), &mut out).unwrap();
        out
    }

    proptest! {
        #[test]
        fn a_merge_keeps_the_mean_of_a_pair_in_every_format(
            pairs in prop::collection::vec((-10.0_f32..10.0, -10.0_f32..10.0, -0.1_f32..0.1), 1..600),
            kind in 0_usize..3, skip in 1_usize..5,
        ) {
            let kind = [Values::F32, Values::F16, Values::Int8][kind];
            let mut a: Vec<f32> = pairs.iter().map(|pair| pair.0).collect();
            let mut b: Vec<f32> = pairs.iter().map(|pair| pair.1).collect();
            let mask = Mask::Indices((0..pairs.len() as u32).step_by(skip).collect());
            let (mut from_a, mut from_b) = (Vec::new(), Vec::new());
            mask.gather(&a, &mut from_a);
            mask.gather(&b, &mut from_b);
            let (from_a, from_b) = (decoded(&from_a, kind), decoded(&from_b, kind));
            // One of the two trained on while the exchange went on.
            for (a, pair) in a.iter_mut().zip(&pairs) {
                *a += pair.2;
            }
            let before: Vec<f64> = a.iter().zip(&b).map(|(a, b)| f64::from(*a) + f64::from(*b)).collect();
            merge(&mut a, &mask, &from_a, &from_b).unwrap();
            merge(&mut b, &mask, &from_b, &from_a).unwrap();
            for ((a, b), before) in a.iter().zip(&b).zip(&before) {
                prop_assert!((f64::from(*a) + f64::from(*b) - before).abs() < 1e-5);
            }
        }

        #[test]
        fn partners_end_bit_identical_when_they_exchange_everything_exactly(
            values in prop::collection::vec((-1e30_f32..1e30, -1e30_f32..1e30), 1..100),
        ) {
            let a: Vec<f32> = values.iter().map(|pair| pair.0).collect();
            let b: Vec<f32> = values.iter().map(|pair| pair.1).collect();
            let (mut at_a, mut at_b) = (a.clone(), b.clone());
            let mask = Mask::All(values.len());
            merge(&mut at_a, &mask, &a, &b).unwrap();
            merge(&mut at_b, &mask, &b, &a).unwrap();
            prop_assert_eq!(at_a, at_b);
        }
    }

    #[test]
    fn the_difference_of_nearby_values_does_not_cost_the_last_bit() {
        // Here `x + (y - x) / 2` rounds differently from each side.
        let (mut a, mut b) = (vec![1.0e-8_f32, 0.3], vec![1.0_f32, -7.1e-4]);
        let (sent_a, sent_b) = (a.clone(), b.clone());
        merge(&mut a, &Mask::All(2), &sent_a, &sent_b).unwrap();
        merge(&mut b, &Mask::All(2), &sent_b, &sent_a).unwrap();
        assert_eq!(a, b);
    }

    #[test]
    fn coordinates_outside_the_mask_stay_as_they_are() {
        let mut x = vec![1.0, 2.0, 3.0];
        merge(&mut x, &Mask::Indices(vec![1]), &[2.0], &[4.0]).unwrap();
        assert_eq!(x, [1.0, 3.0, 3.0]);
    }

    #[test]
    fn a_diverged_partner_is_refused_and_the_model_untouched() {
        let mut x = vec![1.0; 4];
        let sent = x.clone();
        let mask = Mask::All(4);
        let refused = merge(&mut x, &mask, &sent, &[1.0, f32::NAN, 1.0, 1.0]);
        assert_eq!(refused, Err(MergeError::NotFinite { index: 1 }));
        let refused = check(&mask, &sent, &[1.0, 1e6, 1.0, 1.0]);
        assert!(matches!(refused, Err(MergeError::TooLarge { .. })));
        let refused = merge(&mut x, &mask, &sent, &[1.0; 3]);
        assert!(matches!(refused, Err(MergeError::Length { received: 3, .. })));
        let refused = merge(&mut x, &Mask::All(5), &[1.0; 5], &[1.0; 5]);
        assert_eq!(refused, Err(MergeError::Model { parameters: 4 }));
        assert_eq!(x, [1.0; 4]);
    }
}
