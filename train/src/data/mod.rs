//! Samples to train and test on: where they come from, how they are split, shared out and dealt in batches.
//!
//! What is computed here is integers and copies, and the same on every machine. Only `source` (part of the
//! driver) touches a disk or unpacks anything. Nothing here knows a model.

mod batches;
mod partition;
#[cfg(feature = "driver")]
mod source;
mod spec;

pub use batches::Batches;
pub use partition::{ParsePartitionError, Partition, PartitionError, SAMPLES_MIN};
#[cfg(feature = "driver")]
pub use source::{CsvError, DataError, IdxError, TextError, load};
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

/// The samples that one node trains on, in samples that several may share.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    samples: &'a Samples,
    /// All of them when `None`.
    positions: Option<&'a [u32]>,
}

impl<'a> Part<'a> {
    /// Those at some positions, each below `samples.len()`.
    pub fn new(samples: &'a Samples, positions: &'a [u32]) -> Self {
        Self {
            samples,
            positions: Some(positions),
        }
    }

    /// How many there are.
    pub fn len(self) -> usize {
        self.positions.map_or(self.samples.len(), <[u32]>::len)
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// What they are a part of.
    pub(crate) fn samples(self) -> &'a Samples {
        self.samples
    }

    /// Where the one at `index` of the part is among all.
    pub(crate) fn position(self, index: usize) -> usize {
        self.positions
            .map_or(index, |positions| positions[index] as usize)
    }
}

impl<'a> From<&'a Samples> for Part<'a> {
    fn from(samples: &'a Samples) -> Self {
        Self {
            samples,
            positions: None,
        }
    }
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
