//! How far a partner may move a model: the clipped merge.
//!
//! He, Karimireddy and Jaggi, "Byzantine-Robust Decentralized Learning via ClippedGossip" (arXiv 2202.01545), for pairs:
//! `x += 1/2 clip_tau(y - x)`, where `clip_tau` shortens what is longer than `tau`. Their `tau` knows who is honest; here
//! it follows the distances to partners that a node has seen, so that nothing needs to be tuned for a model.
//!
//! Each of a pair has seen others and clips by a radius of its own, so that their changes are no longer opposites: where
//! one clips and the other does not, the mean of the pair moves towards the one that clipped, by half of what it cut off.
//! That is the point of it (a poisoned partner is to move nobody far, whatever it does itself) and its price: where data
//! differ so much that honest models are often twice as far apart as usual, their mean drifts towards the cautious.

use std::collections::VecDeque;

/// The distances that a node has seen, and what it makes of the next one.
///
/// Distances are root mean squares over the exchanged coordinates, so that rounds of different masks compare.
#[derive(Clone, Debug, Default)]
pub(crate) struct Clip {
    seen: VecDeque<f32>,
}

/// Distances that are kept: enough that a few poisoned partners do not move the median, few enough to follow the models
/// as they come closer.
const SEEN_MAX: usize = 32;

/// What is not clipped, in medians of the distances seen. A root mean square over many coordinates varies by less among
/// honest partners; of what a poisoned one sends, at most the length of one usual merge arrives.
const MEDIANS: f32 = 2.0;

impl Clip {
    /// What share of the way to a partner at this distance is gone: all of it, as a merge does, unless it is further
    /// than twice the median of those seen. The first partner is believed.
    pub(crate) fn share(&self, distance: f32) -> f32 {
        let mut sorted: Vec<f32> = self.seen.iter().copied().collect();
        sorted.sort_unstable_by(f32::total_cmp);
        match sorted.get(sorted.len() / 2) {
            Some(median) if distance > MEDIANS * median => MEDIANS * median / distance,
            _ => 1.0,
        }
    }

    /// Takes note of a partner's distance, clipped or not.
    pub(crate) fn note(&mut self, distance: f32) {
        self.seen.push_back(distance);
        while self.seen.len() > SEEN_MAX {
            self.seen.pop_front();
        }
        self.seen.make_contiguous();
    }

    /// The distances, the oldest first.
    pub(crate) fn seen(&self) -> &[f32] {
        // Contiguous since the last was noted.
        self.seen.as_slices().0
    }

    /// Goes on from what [`seen`](Self::seen) gave; `None` when that is not a list of distances.
    pub(crate) fn restored(seen: Vec<f32>) -> Option<Self> {
        let is_distance = |distance: &f32| distance.is_finite() && *distance >= 0.0;
        let fits = seen.len() <= SEEN_MAX && seen.iter().all(is_distance);
        fits.then(|| Self { seen: seen.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usual_distances_are_gone_whole_and_unusual_ones_to_twice_the_median() {
        let mut clip = Clip::default();
        assert_eq!(clip.share(1e6), 1.0);
        for distance in [0.9, 1.1, 1.0, 1.2, 0.8] {
            clip.note(distance);
        }
        assert_eq!(clip.share(2.0), 1.0);
        assert_eq!(clip.share(0.0), 1.0);
        assert_eq!(clip.share(8.0), 0.25);
    }

    #[test]
    fn a_minority_of_poisoned_partners_does_not_widen_the_radius_much() {
        let mut clip = Clip::default();
        for meeting in 0..60 {
            clip.note(if meeting % 3 == 0 { 1e6 } else { 1.0 });
        }
        assert_eq!(clip.share(1000.0), 0.002);
        assert_eq!(clip.seen().len(), SEEN_MAX);
    }

    #[test]
    fn the_radius_follows_models_that_come_closer() {
        let mut clip = Clip::default();
        (0..40).for_each(|_| clip.note(10.0));
        (0..40).for_each(|_| clip.note(0.1));
        assert_eq!(clip.share(0.4), 0.5);
    }

    #[test]
    fn what_was_seen_is_kept_over_a_restart_and_nonsense_is_not() {
        let mut clip = Clip::default();
        (0..5).for_each(|at| clip.note(at as f32));
        let restored = Clip::restored(clip.seen().to_vec()).unwrap();
        assert_eq!(restored.seen(), clip.seen());
        assert!(Clip::restored(vec![f32::NAN]).is_none());
        assert!(Clip::restored(vec![1.0; SEEN_MAX + 1]).is_none());
    }
}
