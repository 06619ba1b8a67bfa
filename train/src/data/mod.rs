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

    /// The values, one sample after the other, about 0 to 1 each.
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
    /// Numbers that are used as they are.
    Floats(Vec<f32>),
}

impl Raw {
    /// Copies out the samples at these positions, which must exist.
    fn gather(&self, positions: &[u32]) -> Samples {
        let width = self.width;
        let mut features = Vec::with_capacity(positions.len() * width);
        let mut labels = Vec::with_capacity(positions.len());
        for position in positions {
            let position = *position as usize;
            let range = position * width..(position + 1) * width;
            match &self.values {
                Values::Bytes { bytes, largest } => {
                    let largest = f32::from(*largest);
                    features.extend(bytes[range].iter().map(|byte| f32::from(*byte) / largest));
                }
                Values::Floats(floats) => features.extend_from_slice(&floats[range]),
            }
            labels.push(self.labels[position]);
        }
        Samples {
            features,
            labels,
            width,
        }
    }

    /// One more than the largest label; 0 when there is none.
    fn classes(&self) -> usize {
        self.labels.iter().max().map_or(0, |label| usize::from(*label) + 1)
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
    fn chunks_cover_all_samples_in_order() {
        let samples = Samples::new((0..10).map(|i| i as f32).collect(), vec![0, 1, 2, 3, 4], 2).unwrap();
        let chunks: Vec<_> = samples.chunks(2).collect();
        assert_eq!(chunks.len(), 3);
        assert_eq!(chunks[1].features, [4.0, 5.0, 6.0, 7.0]);
        assert_eq!(chunks[2].labels, [4]);
    }
}
