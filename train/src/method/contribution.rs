//! What a node adds to a mean that one node makes, as it travels; and the mean.
//!
//! A message is the values in the job's encoding, and before them the weight, eight bytes, little endian.

use super::MethodError;
use crate::quantise;
use lapwing_base::Values;

/// Replaces the contents of `message` by a vector and its weight.
pub(crate) fn write(vector: &[f32], weight: u64, values: Values, message: &mut Vec<u8>) {
    quantise::encode(vector, values, message);
    message.splice(0..0, weight.to_le_bytes());
}

/// Bytes of a message with a vector of so many values.
pub(crate) const fn message_bytes(length: usize, values: Values) -> usize {
    quantise::encoded_len(length, values).saturating_add(WEIGHT_BYTES)
}

/// Replaces the contents of `vector` by the `length` values of a message, and returns their weight.
///
/// # Errors
///
/// When there are not exactly as many values, one is not finite, or the weight cannot be.
pub(crate) fn read(
    message: &[u8],
    values: Values,
    length: usize,
    vector: &mut Vec<f32>,
) -> Result<u64, MethodError> {
    let malformed = |why| MethodError::Malformed { why };
    let (weight, encoded) = message
        .split_first_chunk::<WEIGHT_BYTES>()
        .ok_or_else(|| malformed("it has no weight"))?;
    let weight = u64::from_le_bytes(*weight);
    if weight > WEIGHT_MAX {
        return Err(malformed("it weighs more than all samples there are"));
    }
    quantise::decode(encoded, values, length, vector)?;
    Ok(weight)
}

const WEIGHT_BYTES: usize = size_of::<u64>();

/// Samples that one node may have: a sum of thousands of them does not overflow.
const WEIGHT_MAX: u64 = 1 << 48;

/// A weighted mean in the making.
#[derive(Debug, Default)]
pub(crate) struct Mean {
    sum: Vec<f64>,
    weights: u64,
}

impl Mean {
    /// Adds a vector, as long as those before.
    pub(crate) fn add(&mut self, vector: &[f32], weight: u64) {
        self.sum.resize(vector.len(), 0.0);
        self.sum
            .iter_mut()
            .zip(vector)
            .for_each(|(sum, value)| *sum += f64::from(*value) * weight as f64);
        self.weights += weight;
    }

    /// The mean of what was added; `None` when nothing was, or nothing with a weight.
    pub(crate) fn into_mean(self) -> Option<Vec<f32>> {
        let weights = self.weights as f64;
        let mean = self.sum.into_iter().map(|sum| (sum / weights) as f32);
        (self.weights > 0).then(|| mean.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vector_and_its_weight_arrive_as_they_were_written() {
        let mut message = vec![1, 2, 3];
        write(&[1.0, -2.0], 7, Values::F32, &mut message);
        assert_eq!(message.len(), message_bytes(2, Values::F32));
        let mut vector = vec![9.0];
        assert_eq!(read(&message, Values::F32, 2, &mut vector).unwrap(), 7);
        assert_eq!(vector, [1.0, -2.0]);
    }

    #[test]
    fn a_message_of_another_length_with_a_nan_or_an_impossible_weight_is_refused() {
        let mut vector = Vec::new();
        for message in [&[][..], &[0; 7], &[0; 12]] {
            assert!(read(message, Values::F32, 2, &mut vector).is_err());
        }
        let mut message = Vec::new();
        write(&[1.0, f32::NAN], 1, Values::F32, &mut message);
        assert!(read(&message, Values::F32, 2, &mut vector).is_err());
        write(&[1.0, 1.0], u64::MAX, Values::F32, &mut message);
        assert!(read(&message, Values::F32, 2, &mut vector).is_err());
    }

    #[test]
    fn each_vector_counts_by_its_weight_and_there_is_no_mean_of_nothing() {
        let mut mean = Mean::default();
        mean.add(&[1.0, 0.0], 1);
        mean.add(&[4.0, 8.0], 3);
        assert_eq!(mean.into_mean().unwrap(), [3.25, 6.0]);
        assert_eq!(Mean::default().into_mean(), None);
        let mut weightless = Mean::default();
        weightless.add(&[1.0], 0);
        assert_eq!(weightless.into_mean(), None);
    }
}
