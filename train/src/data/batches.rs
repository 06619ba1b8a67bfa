//! Deals samples in batches, shuffled anew for each epoch.
//!
//! Which samples a step sees follows from the seed and the step's number alone, so that a node that comes
//! back from a checkpoint goes on with the batch that it would have had.

use super::{Batch, Part};
use crate::draws::Draws;

/// An endless sequence of batches.
///
/// Think of the shuffled epochs written one after the other and cut into pieces of equal length: every sample
/// is used exactly once an epoch, all batches are full, and a batch may begin in one epoch and end in the next.
#[derive(Clone, Debug)]
pub struct Batches {
    seed: u64,
    size: usize,
    /// The epoch that `order` belongs to, and how many samples it orders.
    ordered: Option<(u64, usize)>,
    order: Vec<u32>,
    features: Vec<f32>,
    labels: Vec<u8>,
    counts: Vec<u32>,
}

impl Batches {
    /// Batches of `size` samples; at least one.
    pub fn new(seed: u64, size: u32) -> Self {
        Self {
            seed,
            size: size.max(1) as usize,
            ordered: None,
            order: vec![],
            features: vec![],
            labels: vec![],
            counts: vec![],
        }
    }

    /// The batches of a node that holds a part of a job's data, counted from 1; 0 where it has data of its own.
    ///
    /// Another order on each part, and the same one whichever node holds the part.
    pub fn of_part(seed: u64, part: u32, size: u32) -> Self {
        Self::new(seed ^ (u64::from(part) << 32), size)
    }

    /// The batch of a step; the first step is 0. Empty when there are no samples.
    ///
    /// It is the same for the same seed, size, samples and step, whatever was asked for before.
    pub fn at<'a>(&mut self, samples: impl Into<Part<'a>>, step: u64) -> Batch<'_> {
        let part = samples.into();
        let samples = part.samples();
        self.features.clear();
        self.labels.clear();
        let width = samples.width();
        let first = u128::from(step) * self.size as u128;
        if !part.is_empty() {
            for position in first..first + self.size as u128 {
                let count = part.len() as u128;
                // An epoch beyond 2^64 is beyond any run; wrapping then is as good as any order.
                self.shuffle((position / count) as u64, part);
                let sample = part.position(self.order[(position % count) as usize] as usize);
                self.features
                    .extend_from_slice(&samples.features()[sample * width..(sample + 1) * width]);
                self.labels.push(samples.labels()[sample]);
            }
        }
        Batch {
            features: &self.features,
            labels: &self.labels,
            width,
            counts: &self.counts,
        }
    }

    /// Makes `order` that of an epoch, unless it is already.
    fn shuffle(&mut self, epoch: u64, part: Part<'_>) {
        let count = part.len();
        if self.ordered == Some((epoch, count)) {
            return;
        }
        self.counts.clear();
        self.counts.resize(usize::from(u8::MAX) + 1, 0);
        for index in 0..count {
            let label = part.samples().labels()[part.position(index)];
            self.counts[usize::from(label)] += 1;
        }
        self.order.clear();
        self.order.extend((0_u32..).take(count));
        Draws::new("lapwing train batches 1", &[self.seed, epoch]).shuffle(&mut self.order);
        self.ordered = Some((epoch, count));
    }
}

#[cfg(test)]
mod tests {
    use super::super::Samples;
    use super::*;

    fn samples(count: u8) -> Samples {
        Samples::new((0..count).map(f32::from).collect(), (0..count).collect(), 1).unwrap()
    }

    #[test]
    fn every_sample_comes_once_an_epoch_also_when_batches_straddle_epochs() {
        let samples = samples(10);
        let mut batches = Batches::new(1, 4);
        let seen: Vec<u8> = (0..5)
            .flat_map(|step| batches.at(&samples, step).labels.to_vec())
            .collect();
        for epoch in seen.chunks(10) {
            let mut labels = epoch.to_vec();
            labels.sort_unstable();
            assert_eq!(labels, (0..10).collect::<Vec<u8>>());
        }
        assert_ne!(seen[..10], seen[10..]);
    }

    #[test]
    fn a_batch_depends_on_its_step_and_not_on_what_came_before() {
        let samples = samples(50);
        let mut all = Batches::new(9, 8);
        for step in 0..40 {
            let _ = all.at(&samples, step);
        }
        let here = all.at(&samples, 17).labels.to_vec();
        assert_eq!(Batches::new(9, 8).at(&samples, 17).labels, here);
        assert_ne!(Batches::new(10, 8).at(&samples, 17).labels, here);
    }

    #[test]
    fn a_batch_knows_how_often_each_label_occurs_in_all_samples() {
        let samples = Samples::new(vec![0.0; 4], vec![2, 0, 2, 2], 1).unwrap();
        let mut batches = Batches::new(1, 2);
        assert_eq!(batches.at(&samples, 5).counts[..4], [1, 0, 3, 0]);
    }

    #[test]
    fn few_samples_fill_a_large_batch_again_and_again() {
        let samples = samples(3);
        let mut batches = Batches::new(1, 7);
        let batch = batches.at(&samples, 2);
        assert_eq!((batch.labels.len(), batch.features.len()), (7, 7));
    }

    #[test]
    fn a_part_by_positions_is_dealt_as_a_copy_of_it_would_be() {
        let all = samples(50);
        let positions = [3, 7, 8, 20, 41];
        let copy = Samples::new(
            positions.map(|p| p as f32).to_vec(),
            positions.map(|p| p as u8).to_vec(),
            1,
        )
        .unwrap();
        let (mut here, mut there) = (Batches::of_part(4, 2, 3), Batches::of_part(4, 2, 3));
        for step in 0..9 {
            let one = here.at(Part::new(&all, &positions), step);
            let other = there.at(&copy, step);
            assert_eq!(
                (one.features, one.labels, one.counts),
                (other.features, other.labels, other.counts)
            );
        }
    }

    #[test]
    fn no_samples_give_an_empty_batch() {
        let none = Samples::new(vec![], vec![], 1).unwrap();
        assert!(Batches::new(1, 7).at(&none, u64::MAX).labels.is_empty());
    }
}
