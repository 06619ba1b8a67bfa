//! Averages a model with a partner's values on the coordinates of a mask.
//!
//! Pure. It decides neither whether a pair merges (the log does) nor what is exchanged (the mask does). Always
//! half and half, never weighted by samples, so that the mean of all models is what the local steps made it.

use crate::lanes::{Kernel, widest};
use crate::mask::Mask;
use crate::quantise::{BLOCK, Encoded, first_not_finite, sum_of_squares};

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
    check_lengths(mask, sent.len(), received.len())?;
    check_finite(received)?;
    let [sent, received] = [sent, received].map(root_mean_square);
    check_magnitudes(sent, received)
}

/// Whether another whole model is so much larger than the own one that [`check`] would refuse it.
pub fn is_too_large(own: &[f32], other: &[f32]) -> bool {
    let [own, other] = [own, other].map(root_mean_square);
    check_magnitudes(own, other).is_err()
}

fn root_mean_square(values: &[f32]) -> f64 {
    (widest(Squares(values)) / values.len().max(1) as f64).sqrt()
}

/// [`check`] of encoded values, which are finite.
///
/// # Errors
///
/// When the numbers of values differ from the mask's, or the received values are more than a hundred times as large
/// as the sent ones.
pub fn check_encoded(mask: &Mask, sent: &Encoded, received: &Encoded) -> Result<(), MergeError> {
    check_lengths(mask, sent.len(), received.len())?;
    check_magnitudes(sent.root_mean_square(), received.root_mean_square())
}

fn check_magnitudes(sent: f64, received: f64) -> Result<(), MergeError> {
    if received > RATIO_MAX * sent.max(MAGNITUDE_MIN) {
        return Err(MergeError::TooLarge { sent, received });
    }
    Ok(())
}

fn check_finite(received: &[f32]) -> Result<(), MergeError> {
    first_not_finite(received).map_or(Ok(()), |index| Err(MergeError::NotFinite { index }))
}

fn check_lengths(mask: &Mask, sent: usize, received: usize) -> Result<(), MergeError> {
    let mask = mask.len();
    if sent != mask || received != mask {
        return Err(MergeError::Length { mask, sent, received });
    }
    Ok(())
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
    check_lengths(mask, sent.len(), received.len())?;
    check_finite(received)?;
    move_by(x, mask, Plain(sent), Plain(received), 1.0)
}

/// [`merge`] of encoded values, which are finite, without decoding them elsewhere first: what an exchange keeps is a
/// quarter (`int8`) of the values themselves, and is read once.
///
/// # Errors
///
/// When the mask does not fit `x`, or the numbers of values differ from the mask's; then `x` is untouched.
pub fn merge_encoded(
    x: &mut [f32],
    mask: &Mask,
    sent: &Encoded,
    received: &Encoded,
) -> Result<(), MergeError> {
    check_lengths(mask, sent.len(), received.len())?;
    move_by(x, mask, sent, received, 1.0)
}

/// As [`merge_encoded`], but moves by no more than `distance_max`, half of which each of the pair goes: what one partner can
/// do to a model is bounded, whatever it sends.
///
/// Both see the same distance, to the last bit, so that both are held back equally and their mean stays.
///
/// # Errors
///
/// As [`merge_encoded`].
pub fn merge_clipped(
    x: &mut [f32],
    mask: &Mask,
    sent: &Encoded,
    received: &Encoded,
    distance_max: f64,
) -> Result<(), MergeError> {
    check_lengths(mask, sent.len(), received.len())?;
    let distance = distance(sent, received);
    let share = if distance > distance_max {
        distance_max / distance
    } else {
        1.0
    };
    // Rounded the same for both.
    move_by(x, mask, sent, received, share as f32)
}

/// The Euclidean distance between equally many values; the same, to the last bit, whichever is named first.
pub fn distance(one: &Encoded, other: &Encoded) -> f64 {
    widest(SquaredDistance(one, other)).sqrt()
}

/// Adds `weight` times the values to `x`, on the mask's coordinates: how a difference that a peer sent is applied.
///
/// # Errors
///
/// As [`merge_encoded`].
pub fn add(x: &mut [f32], mask: &Mask, values: &Encoded, weight: f32) -> Result<(), MergeError> {
    if !mask.fits(x.len()) {
        return Err(MergeError::Model { parameters: x.len() });
    }
    check_lengths(mask, values.len(), values.len())?;
    let added = [0.0; BLOCK];
    let change = Addition {
        values,
        weight,
        added,
    };
    widest(Update { x, mask, change });
    Ok(())
}

fn move_by<V: Blocks>(
    x: &mut [f32],
    mask: &Mask,
    sent: V,
    received: V,
    share: f32,
) -> Result<(), MergeError> {
    if !mask.fits(x.len()) {
        return Err(MergeError::Model { parameters: x.len() });
    }
    let (from, to) = ([0.0; BLOCK], [0.0; BLOCK]);
    let change = Step {
        sent,
        received,
        share,
        from,
        to,
    };
    widest(Update { x, mask, change });
    Ok(())
}

/// Values that are read block by block.
trait Blocks {
    /// Reads block number `index`, which has as many values as `out`.
    fn read(&self, index: usize, out: &mut [f32]);
}

struct Plain<'a>(&'a [f32]);

impl Blocks for Plain<'_> {
    #[inline(always)]
    fn read(&self, index: usize, out: &mut [f32]) {
        out.copy_from_slice(&self.0[index * BLOCK..][..out.len()]);
    }
}

impl Blocks for &Encoded {
    #[inline(always)]
    fn read(&self, index: usize, out: &mut [f32]) {
        self.decode_block(index, out);
    }
}

/// The sum of all squares.
struct Squares<'a>(&'a [f32]);

impl Kernel for Squares<'_> {
    type Output = f64;

    #[inline(always)]
    fn run(self) -> f64 {
        let mut sum = 0.0;
        for block in self.0.chunks(BLOCK) {
            sum += sum_of_squares(block);
        }
        sum
    }
}

struct SquaredDistance<'a>(&'a Encoded, &'a Encoded);

impl Kernel for SquaredDistance<'_> {
    type Output = f64;

    #[inline(always)]
    fn run(self) -> f64 {
        let Self(one, other) = self;
        let (mut left, mut right) = ([0.0; BLOCK], [0.0; BLOCK]);
        let mut sum = 0.0;
        let count = one.len().min(other.len());
        for (index, first) in (0..count).step_by(BLOCK).enumerate() {
            let length = BLOCK.min(count - first);
            let (left, right) = (&mut left[..length], &mut right[..length]);
            one.decode_block(index, left);
            other.decode_block(index, right);
            for (left, right) in left.iter_mut().zip(&*right) {
                *left -= right;
            }
            sum += sum_of_squares(left);
        }
        sum
    }
}

/// Changes the masked values of `x`, a block at a time.
struct Update<'a, C> {
    x: &'a mut [f32],
    mask: &'a Mask,
    change: C,
}

impl<C: Change> Kernel for Update<'_, C> {
    type Output = ();

    #[inline(always)]
    fn run(mut self) {
        let mut gathered = [0.0; BLOCK];
        let is_dense = matches!(self.mask, Mask::All(_));
        let count = self.mask.len();
        for (index, first) in (0..count).step_by(BLOCK).enumerate() {
            let length = BLOCK.min(count - first);
            if is_dense {
                self.change.apply(index, &mut self.x[first..first + length]);
                continue;
            }
            // First all are fetched, so that the processor waits for many lines of memory at once, then changed, then
            // put back where they still are in the cache.
            let gathered = &mut gathered[..length];
            self.mask.gather_part(self.x, first, gathered);
            self.change.apply(index, gathered);
            self.mask.scatter_part(self.x, first, gathered);
        }
    }
}

/// What is done to one block after the other.
trait Change {
    /// Changes the values of block number `index`.
    fn apply(&mut self, index: usize, x: &mut [f32]);
}

/// A step from what was sent to what was received.
struct Step<V> {
    sent: V,
    received: V,
    /// Of half of the way.
    share: f32,
    from: [f32; BLOCK],
    to: [f32; BLOCK],
}

impl<V: Blocks> Change for Step<V> {
    #[inline(always)]
    fn apply(&mut self, index: usize, x: &mut [f32]) {
        let (from, to) = (&mut self.from[..x.len()], &mut self.to[..x.len()]);
        self.sent.read(index, from);
        self.received.read(index, to);
        if self.share == 1.0 {
            for ((x, from), to) in x.iter_mut().zip(&*from).zip(&*to) {
                *x = halfway(*x, *from, *to);
            }
        } else {
            for ((x, from), to) in x.iter_mut().zip(&*from).zip(&*to) {
                *x = moved(*x, *from, *to, self.share);
            }
        }
    }
}

/// Values that are added.
struct Addition<'a> {
    values: &'a Encoded,
    weight: f32,
    added: [f32; BLOCK],
}

impl Change for Addition<'_> {
    #[inline(always)]
    fn apply(&mut self, index: usize, x: &mut [f32]) {
        let added = &mut self.added[..x.len()];
        self.values.decode_block(index, added);
        for (x, added) in x.iter_mut().zip(&*added) {
            *x += self.weight * added;
        }
    }
}

/// Of finite values a finite one, whatever they are.
#[inline(always)]
fn moved(x: f32, sent: f32, received: f32, share: f32) -> f32 {
    (x + share * (0.5 * received - 0.5 * sent)).clamp(f32::MIN, f32::MAX)
}

#[inline(always)]
fn halfway(x: f32, sent: f32, received: f32) -> f32 {
    // Halved before they are added: the sum of two finite values may not be finite. An addition is the same in
    // either order, which `x + (received - x) / 2` is not; the last bit would differ between partners.
    let mean = 0.5 * x + 0.5 * received;
    let moved = moved(x, sent, received, 1.0);
    if x == sent { mean } else { moved }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lapwing_base::Values;
    use proptest::prelude::*;

    fn encoded(x: &[f32], mask: &Mask, kind: Values) -> Encoded {
        Encoded::of(x, mask, kind, Vec::new()).unwrap()
    }

    fn exact(values: &[f32]) -> Encoded {
        Encoded::exact(values).unwrap()
    }

    proptest! {
        #[test]
        fn a_merge_keeps_the_mean_of_a_pair_in_every_format(
            pairs in prop::collection::vec((-10.0_f32..10.0, -10.0_f32..10.0, -0.1_f32..0.1), 1..600),
            kind in 0_usize..3, skip in 1_usize..5, clipped: bool,
        ) {
            let kind = [Values::F32, Values::F16, Values::Int8][kind];
            let mut a: Vec<f32> = pairs.iter().map(|pair| pair.0).collect();
            let mut b: Vec<f32> = pairs.iter().map(|pair| pair.1).collect();
            let mask = Mask::Indices((0..pairs.len() as u32).step_by(skip).collect());
            let (from_a, from_b) = (encoded(&a, &mask, kind), encoded(&b, &mask, kind));
            // One of the two trained on while the exchange went on.
            for (a, pair) in a.iter_mut().zip(&pairs) {
                *a += pair.2;
            }
            let before: Vec<f64> = a.iter().zip(&b).map(|(a, b)| f64::from(*a) + f64::from(*b)).collect();
            // Held back or not, both are equally.
            let distance_max = if clipped { 0.3 } else { f64::INFINITY };
            merge_clipped(&mut a, &mask, &from_a, &from_b, distance_max).unwrap();
            merge_clipped(&mut b, &mask, &from_b, &from_a, distance_max).unwrap();
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

    proptest! {
        #[test]
        fn a_merge_in_blocks_is_the_one_coordinate_by_coordinate(
            values in prop::collection::vec((-9.0_f32..9.0, -9.0_f32..9.0, -1.0_f32..1.0), 1..1200),
            compression in 1_u32..6, kind in 0_usize..3, trained: bool,
        ) {
            let kind = [Values::F32, Values::F16, Values::Int8][kind];
            let mask = Mask::random([5; 32], compression, values.len());
            let mut x: Vec<f32> = values.iter().map(|value| value.0).collect();
            let theirs: Vec<f32> = values.iter().map(|value| value.1).collect();
            let (sent, received) = (encoded(&x, &mask, kind), encoded(&theirs, &mask, kind));
            if trained {
                x.iter_mut().zip(&values).for_each(|(x, value)| *x += value.2);
            }
            let (mut from, mut to) = (Vec::new(), Vec::new());
            sent.decode(&mut from);
            received.decode(&mut to);
            let (mut plain, mut added) = (x.clone(), x.clone());
            for ((index, from), to) in mask.coordinates().zip(&from).zip(&to) {
                plain[index as usize] = halfway(x[index as usize], *from, *to);
                added[index as usize] += 0.25 * to;
            }
            let mut merged = x.clone();
            merge(&mut merged, &mask, &from, &to).unwrap();
            prop_assert_eq!(&merged, &plain);
            merged.clone_from(&x);
            merge_encoded(&mut merged, &mask, &sent, &received).unwrap();
            prop_assert_eq!(merged, plain);
            add(&mut x, &mask, &received, 0.25).unwrap();
            prop_assert_eq!(x, added);
            let apart: f64 = from.iter().zip(&to).map(|(from, to)| f64::from(from - to).powi(2)).sum();
            prop_assert!((distance(&sent, &received) - apart.sqrt()).abs() <= 1e-5 * apart.sqrt());
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
    fn a_merge_of_finite_values_is_finite() {
        let mut x = vec![f32::MAX; 2];
        merge(&mut x, &Mask::All(2), &[f32::MIN; 2], &[f32::MAX; 2]).unwrap();
        assert_eq!(x, [f32::MAX; 2]);
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
        let large = [1.0, 1e6, 1.0, 1.0];
        let refused = check(&mask, &sent, &large);
        assert!(matches!(refused, Err(MergeError::TooLarge { .. })));
        assert_eq!(check_encoded(&mask, &exact(&sent), &exact(&large)), refused);
        let refused = merge(&mut x, &mask, &sent, &[1.0; 3]);
        assert!(matches!(refused, Err(MergeError::Length { received: 3, .. })));
        let refused = merge_encoded(&mut x, &mask, &exact(&sent), &exact(&[1.0; 3]));
        assert!(matches!(refused, Err(MergeError::Length { received: 3, .. })));
        let refused = merge(&mut x, &Mask::All(5), &[1.0; 5], &[1.0; 5]);
        assert_eq!(refused, Err(MergeError::Model { parameters: 4 }));
        assert_eq!(x, [1.0; 4]);
    }

    #[test]
    fn a_clipped_merge_moves_no_further_than_half_of_what_is_allowed() {
        let mut x = vec![0.0; 1000];
        let sent = exact(&x);
        let received = exact(&vec![50.0; 1000]);
        merge_clipped(&mut x, &Mask::All(1000), &sent, &received, 2.0).unwrap();
        let moved = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        assert!((moved - 1.0).abs() < 1e-6, "{moved}");
        assert_eq!(distance(&sent, &received), distance(&received, &sent));
        assert_eq!(distance(&sent, &sent), 0.0);
    }
}
