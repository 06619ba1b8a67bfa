//! Samples as their file has them, and how they become what a model sees.

use crate::data::{Samples, Scaling};

/// Samples as their file has them, before anybody's share is taken: bytes stay bytes, so that a node that
/// trains on an eighth of a large set never holds the whole of it as `f32`.
#[derive(Debug)]
pub(super) struct Raw {
    pub(super) values: Values,
    pub(super) labels: Vec<u8>,
    /// Not 0.
    pub(super) width: usize,
}

/// The values of [`Raw`], one sample after the other.
#[derive(Debug)]
pub(super) enum Values {
    /// Numbers from 0 to `largest`, which becomes 1.
    Bytes { bytes: Vec<u8>, largest: u8 },
    /// Numbers as they are.
    Floats(Vec<f32>),
}

impl Raw {
    /// What brings the samples at these positions to mean 0 and deviation 1.
    pub(super) fn scaling(&self, positions: &[u32]) -> Scaling {
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
    pub(super) fn gather(&self, positions: &[u32], scaling: Scaling) -> Samples {
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
    pub(super) fn classes(&self) -> usize {
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
}
