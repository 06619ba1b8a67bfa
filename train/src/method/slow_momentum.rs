//! Averaging by halves that keeps some of its direction: the default.
//!
//! Wang et al., "SlowMo: Improving Communication-Efficient Distributed SGD with Slow Momentum" (ICLR 2020, arXiv
//! 1910.00643), Algorithm 1 with a slow learning rate of one, over pairs that average a part of the coordinates instead
//! of a group that averages all of them, and so without a byte more than the average takes. A coordinate's slow step ends
//! with the exchange that has it in its mask.

use super::values::{check_length, restored};
use super::{Averaging, Gossip, MethodError};
use lapwing_base::{JobSpec, NodeId, RoundPlan};

/// What one node offers and takes is what [`Averaging`] does. Where a pair has merged, each of the two then goes on in
/// the direction of its last slow step: `x += b d`, `d' = x - p`, `p' = x`, with `p` the value at which the last slow step
/// ended, `d` how long that step was, and `b` the job's `outer_momentum`.
///
/// Kept over a restart: `p` and `d`, two vectors. During a round, what averaging keeps.
#[derive(Debug)]
pub(crate) struct SlowMomentum {
    averaging: Averaging,
    share: f32,
    /// `p`.
    slow: Vec<f32>,
    /// `d`.
    step: Vec<f32>,
}

impl SlowMomentum {
    /// For a node whose model is now `model`, which all nodes of the job have.
    pub(crate) fn new(spec: &JobSpec, model: &[f32]) -> Self {
        Self {
            averaging: Averaging::new(spec, model.len()),
            share: spec.tuning.outer_momentum_micro as f32 / 1e6,
            slow: model.to_vec(),
            step: vec![0.0; model.len()],
        }
    }
}

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
        check_length(model, self.slow.len())?;
        let Some(mask) = self.averaging.merge_on_mask(plan, merged, model)? else {
            return Ok(());
        };
        for index in mask.coordinates() {
            let index = index as usize;
            let (x, p, d) = (&mut model[index], &mut self.slow[index], &mut self.step[index]);
            *x += self.share * *d;
            *d = *x - *p;
            *p = *x;
        }
        Ok(())
    }

    fn state(&self) -> Vec<(String, &[f32])> {
        vec![
            (SLOW.to_owned(), self.slow.as_slice()),
            (STEP.to_owned(), self.step.as_slice()),
        ]
    }

    fn restore(&mut self, mut state: Vec<(String, Vec<f32>)>) -> Result<(), MethodError> {
        let slow = restored(&mut state, SLOW, self.slow.len())?;
        let step = restored(&mut state, STEP, self.slow.len())?;
        self.averaging.restore(Vec::new())?;
        (self.slow, self.step) = (slow, step);
        Ok(())
    }
}

/// The names of `p` and `d` in a checkpoint.
const SLOW: &str = "slow";
const STEP: &str = "step";

#[cfg(test)]
mod tests {
    use super::super::fixture::*;
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
            assert_close(&world.models, &reference.models, 1e-5);
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
}
