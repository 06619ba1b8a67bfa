//! Averaging by halves that keeps some of its direction: the default.
//!
//! Wang et al., "SlowMo: Improving Communication-Efficient Distributed SGD with Slow Momentum" (ICLR 2020, arXiv
//! 1910.00643), Algorithm 1 with a slow learning rate of one, over pairs that average a part of the coordinates instead
//! of a group that averages all of them, and so without a byte more than the average takes. A coordinate's slow step ends
//! with the exchange that has it in its mask.

use super::values::{check_length, restored};
use super::{Averaging, Gossip, MethodError};
use half::f16;
use lapwing_base::{JobSpec, NodeId, RoundPlan};

/// What one node offers and takes is what [`Averaging`] does. Where a pair has merged, each of the two then goes on in
/// the direction of its last slow step: `x += b d`, `d' = x - p`, `p' = x`, with `p` the value at which the last slow step
/// ended, `d` how long that step was, and `b` the job's `outer_momentum`.
///
/// Kept over a restart: `p` and `d` as halves, together one vector. The model itself is never rounded: what `p` has too
/// little of one step has the next too much, a two-thousandth of the value at most. During a round, what averaging keeps.
#[derive(Debug)]
pub(crate) struct SlowMomentum {
    averaging: Averaging,
    share: f32,
    /// `p` in the lower half of each number's bits and `d` in the upper one; as numbers they mean nothing.
    last: Vec<f32>,
}

impl SlowMomentum {
    /// For a node whose model is now `model`, which all nodes of the job have.
    pub(crate) fn new(spec: &JobSpec, model: &[f32]) -> Self {
        Self {
            averaging: Averaging::new(spec, model.len()),
            share: spec.tuning.outer_momentum_micro as f32 / 1e6,
            last: model.iter().map(|x| packed(*x, 0.0)).collect(),
        }
    }
}

/// Where a slow step ended and how long it was, as two halves.
fn packed(ended: f32, step: f32) -> f32 {
    // What is too large for a half would come back as no number.
    let bits = |x: f32| u32::from(f16::from_f32(x.clamp(-HALF_MAX, HALF_MAX)).to_bits());
    f32::from_bits(bits(ended) | bits(step) << 16)
}

/// What [`packed`] was given, rounded.
fn unpacked(both: f32) -> (f32, f32) {
    let both = both.to_bits();
    let half = |bits: u32| f16::from_bits(bits as u16).to_f32();
    (half(both & 0xffff), half(both >> 16))
}

const HALF_MAX: f32 = 65_504.0;

impl Gossip for SlowMomentum {
    fn offer(
        &mut self,
        plan: &RoundPlan,
        partner: NodeId,
        model: &[f32],
        message: &mut Vec<u8>,
    ) -> Result<(), MethodError> {
        self.averaging.offer(plan, partner, model, message)
    }

    fn message_bytes_max(&self, plan: &RoundPlan) -> usize {
        self.averaging.message_bytes_max(plan)
    }

    fn accept(&mut self, plan: &RoundPlan, partner: NodeId, message: &[u8]) -> Result<(), MethodError> {
        self.averaging.accept(plan, partner, message)
    }

    fn settle(&mut self, plan: &RoundPlan, merged: &[NodeId], model: &mut [f32]) -> Result<(), MethodError> {
        check_length(model, self.last.len())?;
        let Some(mask) = self.averaging.merge_on_mask(plan, merged, model)? else {
            return Ok(());
        };
        for index in mask.coordinates() {
            let index = index as usize;
            let (x, last) = (&mut model[index], &mut self.last[index]);
            let (ended, step) = unpacked(*last);
            *x += self.share * step;
            *last = packed(*x, *x - ended);
        }
        Ok(())
    }

    fn state(&self) -> Vec<(String, &[f32])> {
        vec![(LAST.to_owned(), self.last.as_slice())]
    }

    fn restore(&mut self, mut state: Vec<(String, Vec<f32>)>) -> Result<(), MethodError> {
        let last = restored(&mut state, LAST, self.last.len())?;
        self.averaging.restore(Vec::new())?;
        self.last = last;
        Ok(())
    }
}

/// The name of both in a checkpoint.
const LAST: &str = "last steps";

#[cfg(test)]
mod tests {
    use super::super::fixture::*;
    use super::{packed, unpacked};
    use crate::mask::Mask;
    use lapwing_base::{Algorithm, RoundPlan, Values};

    /// The published update in plain `f64`, for each coordinate when its turn comes.
    struct Reference {
        models: Vec<Vec<f64>>,
        slow: Vec<Vec<f64>>,
        step: Vec<Vec<f64>>,
    }

    impl Reference {
        fn round(&mut self, plan: &RoundPlan, pairs: &[[usize; 2]]) {
            let mask = Mask::of(1, Algorithm::Default, plan, self.models[0].len());
            for &[a, b] in pairs {
                for d in mask.coordinates().map(|index| index as usize) {
                    let mean = (self.models[a][d] + self.models[b][d]) / 2.0;
                    for node in [a, b] {
                        let (slow, step) = (&mut self.slow[node][d], &mut self.step[node][d]);
                        *step = 0.5 * *step + (mean - *slow);
                        *slow += *step;
                        self.models[node][d] = *slow;
                    }
                }
            }
        }
    }

    #[test]
    fn rounds_are_those_of_the_paper_on_the_masks_coordinates_whatever_was_lost() {
        let mut world = World::new(Algorithm::Default, Values::F32, 5, 60);
        let start = world.start();
        let mut reference = Reference {
            models: vec![start.clone(); 5],
            slow: vec![start.clone(); 5],
            step: vec![vec![0.0; 60]; 5],
        };
        for round in 1..=30 {
            let plan = pairs_plan(round, 5, 4);
            world.train(round);
            train_f64(&mut reference.models, round);
            let merged = world.exchange(&plan, &lossy(round, 5));
            reference.round(&plan, &merged);
            // Numbers of about one, in halves.
            assert_close(&world.models, &reference.models, 2e-3);
        }
    }

    #[test]
    fn the_spread_of_models_shrinks_when_nobody_trains() {
        for kind in Values::ALL {
            let mut world = World::new(Algorithm::Default, kind, 8, 300);
            for round in 1..=8 {
                world.train(round);
                world.exchange(&pairs_plan(round, 8, 4), &[]);
            }
            let before = world.disagreement();
            for round in 9..=120 {
                world.exchange(&pairs_plan(round, 8, 4), &[]);
            }
            assert!(
                world.disagreement() < 0.1 * before,
                "{kind}: {} of {before}",
                world.disagreement()
            );
        }
    }

    #[test]
    fn without_momentum_it_is_averaging() {
        let mut world = World::of(without_momentum(Algorithm::Default, Values::Int8), 2, 30);
        assert!(world.nodes[0].state().is_empty());
        world.train(1);
        world.exchange(&pairs_plan(1, 2, 1), &[]);
        assert_eq!(world.models[0], world.models[1]);
    }

    #[test]
    fn a_restart_goes_on_bit_identically() {
        restart_goes_on(Algorithm::Default, |round| pairs_plan(round, 5, 2), lossy);
    }

    #[test]
    fn what_cannot_be_trusted_is_refused_and_changes_nothing() {
        refuses_what_it_should(Algorithm::Default, pairs_plan(1, 5, 4));
    }

    #[test]
    fn training_that_goes_on_during_the_exchange_is_kept() {
        training_meanwhile_is_kept(Algorithm::Default, pairs_plan(1, 5, 4));
    }

    #[test]
    fn two_halves_come_back_from_one_number_whatever_they_are() {
        for (ended, step) in [
            (0.5, -0.25),
            (-0.0, 0.0),
            (1e-6, -1e-6),
            (1e9, -1e9),
            (60_000.0, -60_000.0),
        ] {
            let (ended_again, step_again) = unpacked(packed(ended, step));
            for (x, again) in [(ended, ended_again), (step, step_again)] {
                let x = f32::clamp(x, -65_504.0, 65_504.0);
                assert!((x - again).abs() <= x.abs() / 2048.0 + 6e-8, "{x}, not {again}");
            }
        }
    }
}
