//! Samples to train and test on: where they come from, how they are split, shared out and dealt in batches.
//!
//! What is computed here is integers and copies, and the same on every machine. Only `source` and `digits`
//! (part of the driver) touch a disk or unpack anything. Nothing here knows a model.

mod batches;
mod csv;
mod idx;
mod partition;
mod spec;
mod split;

#[cfg(feature = "driver")]
mod digits;
#[cfg(feature = "driver")]
mod source;

pub use batches::Batches;
pub use csv::CsvError;
pub use idx::IdxError;
pub use partition::{ParsePartitionError, Partition, PartitionError, SAMPLES_MIN};
#[cfg(feature = "driver")]
pub use source::{DataError, load};
pub use spec::{DataSpec, ParseDataSpecError, Share, Source};

use crate::model::InputShape;

/// What a node trains on and what it is measured by.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// This node's part of the training samples.
    pub train: Samples,
    /// The test samples: whole, the same for every node.
    pub test: Samples,
    /// How many classes the labels of the whole data set name.
    pub classes: usize,
    /// What one sample looks like.
    pub shape: InputShape,
    /// How the source's values became the samples'.
    pub scaling: Scaling,
}

/// Brings values to mean 0 and deviation 1: `(value - mean) / deviation`.
///
/// On the digits the averaged model gains nearly a per cent over values from 0 to 1. Whoever uses the trained
/// model must scale alike.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scaling {
    /// Mean of all values of all training samples, whoever has them.
    pub mean: f32,
    /// Their standard deviation; 1 when they are all the same.
    pub deviation: f32,
}

/// Labelled samples of equal width.
///
/// `features.len() == labels.len() * width`, and `width` is not 0.
#[derive(Clone, Debug, PartialEq)]
pub struct Samples {
    features: Vec<f32>,
    labels: Vec<u8>,
    width: usize,
}

/// Some samples to compute with at once.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// The samples' values, one sample after the other.
    pub features: &'a [f32],
    /// The samples' classes.
    pub labels: &'a [u8],
    /// Values a sample.
    pub width: usize,
    /// How often each label occurs in the samples that this batch was dealt from, by label; labels beyond the
    /// end do not occur. Training makes up for a class being rare there. Empty to not do that.
    pub counts: &'a [u32],
}

impl Samples {
    /// Samples of `width` values each; `None` when the lengths do not agree or the width is zero.
    pub fn new(features: Vec<f32>, labels: Vec<u8>, width: usize) -> Option<Self> {
        let agrees = width > 0 && labels.len().checked_mul(width) == Some(features.len());
        agrees.then_some(Self {
            features,
            labels,
            width,
        })
    }

    /// The values, one sample after the other; about 0 in the mean and 1 in deviation.
    pub fn features(&self) -> &[f32] {
        &self.features
    }

    /// The classes.
    pub fn labels(&self) -> &[u8] {
        &self.labels
    }

    /// Values a sample.
    pub fn width(&self) -> usize {
        self.width
    }

    /// How many samples.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// All of them at once.
    pub fn as_batch(&self) -> Batch<'_> {
        Batch {
            features: &self.features,
            labels: &self.labels,
            width: self.width,
            counts: &[],
        }
    }

    /// All of them in order, at most `size` at once.
    ///
    /// # Panics
    ///
    /// When `size` is zero.
    pub fn chunks(&self, size: usize) -> impl Iterator<Item = Batch<'_>> + '_ {
        self.features
            .chunks(size * self.width)
            .zip(self.labels.chunks(size))
            .map(|(features, labels)| Batch {
                features,
                labels,
                width: self.width,
                counts: &[],
            })
    }
}

/// Samples as their file has them, before anybody's share is taken: bytes stay bytes, so that a node that
/// trains on an eighth of a large set never holds the whole of it as `f32`.
#[derive(Debug)]
struct Raw {
    values: Values,
    labels: Vec<u8>,
    /// Not 0.
    width: usize,
}

/// The values of [`Raw`], one sample after the other.
#[derive(Debug)]
enum Values {
    /// Numbers from 0 to `largest`, which becomes 1.
    Bytes { bytes: Vec<u8>, largest: u8 },
    /// Numbers as they are.
    Floats(Vec<f32>),
}

impl Raw {
    /// What brings the samples at these positions to mean 0 and deviation 1.
    fn scaling(&self, positions: &[u32]) -> Scaling {
        let (mut sum, mut squares) = (0.0, 0.0);
        self.for_each(positions, |value| {
            sum += f64::from(value);
            squares += f64::from(value) * f64::from(value);
        });
        let count = (positions.len() * self.width).max(1) as f64;
        let mean = sum / count;
        let deviation = (squares / count - mean * mean).max(0.0).sqrt() as f32;
        Scaling {
            mean: mean as f32,
            // Below this, differences are the rounding of an `f32` at 1.
            deviation: if deviation > 1e-6 { deviation } else { 1.0 },
        }
    }

    /// Copies out the samples at these positions, which must exist.
    fn gather(&self, positions: &[u32], scaling: Scaling) -> Samples {
        let mut features = Vec::with_capacity(positions.len() * self.width);
        self.for_each(positions, |value| {
            features.push((value - scaling.mean) / scaling.deviation);
        });
        Samples {
            features,
            labels: positions
                .iter()
                .map(|position| self.labels[*position as usize])
                .collect(),
            width: self.width,
        }
    }

    /// Visits the values of the samples at these positions, one sample after the other.
    fn for_each(&self, positions: &[u32], mut visit: impl FnMut(f32)) {
        for position in positions {
            let first = *position as usize * self.width;
            let range = first..first + self.width;
            match &self.values {
                Values::Bytes { bytes, largest } => {
                    let largest = f32::from(*largest);
                    bytes[range]
                        .iter()
                        .for_each(|byte| visit(f32::from(*byte) / largest));
                }
                Values::Floats(floats) => floats[range].iter().copied().for_each(&mut visit),
            }
        }
    }

    /// One more than the largest label; 0 when there is none.
    fn classes(&self) -> usize {
        self.labels
            .iter()
            .max()
            .map_or(0, |label| usize::from(*label) + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_whose_lengths_disagree_are_refused() {
        assert!(Samples::new(vec![0.0; 6], vec![0, 1], 3).is_some());
        assert!(Samples::new(vec![0.0; 5], vec![0, 1], 3).is_none());
        assert!(Samples::new(vec![], vec![], 0).is_none());
    }

    #[test]
    fn scaled_samples_have_mean_zero_and_deviation_one() {
        let raw = Raw {
            values: Values::Bytes {
                bytes: vec![0, 255, 51, 204, 7, 7],
                largest: 255,
            },
            labels: vec![0, 1, 0],
            width: 2,
        };
        let scaling = raw.scaling(&[0, 1]);
        let samples = raw.gather(&[1, 0], scaling);
        assert_eq!(samples.labels(), [1, 0]);
        let mean = samples.features().iter().sum::<f32>() / 4.0;
        let square = samples.features().iter().map(|value| value * value).sum::<f32>() / 4.0;
        assert!(
            mean.abs() < 1e-6 && (square - 1.0).abs() < 1e-5,
            "{mean} {square}"
        );
        // Where all values are the same, nothing is blown up.
        assert_eq!(raw.scaling(&[2]).deviation, 1.0);
    }

    #[test]
    fn chunks_cover_all_samples_in_order() {
        let samples = Samples::new((0..10).map(|i| i as f32).collect(), vec![0, 1, 2, 3, 4], 2).unwrap();
        let chunks: Vec<_> = samples.chunks(2).collect();
        assert_eq!(chunks.len(), 3);
        assert_eq!(chunks[1].features, [4.0, 5.0, 6.0, 7.0]);
        assert_eq!(chunks[2].labels, [4]);
    }
}
