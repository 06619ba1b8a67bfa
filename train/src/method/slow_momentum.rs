//! Averaging by halves that keeps some of its direction: the default.
//!
//! Wang et al., "SlowMo: Improving Communication-Efficient Distributed SGD with Slow Momentum" (ICLR 2020, arXiv
//! 1910.00643), Algorithm 1 with a slow learning rate of one, over pairs that average a part of the coordinates instead
//! of a group that averages all of them, and so without a byte more than the average takes. A coordinate's slow step ends
//! with the exchange that has it in its mask.

use super::values::{check_length, restored};
use super::{Averaging, Gossip, MethodError};
use crate::lanes::{Kernel, widest};
use crate::mask::Mask;
use half::f16;
use half::slice::HalfFloatSliceExt as _;
use lapwing_base::{JobSpec, NodeId, RoundPlan};

/// What one node offers and takes is what [`Averaging`] does. Where a pair has merged, each of the two then goes on in
/// the direction of its last slow step: `x += b d`, `d' = x - p`, `p' = x`, with `p` the value at which the last slow step
/// ended, `d` how long that step was, and `b` the job's `slow_momentum`.
///
/// Kept over a restart: `p` and `d` as halves, together one vector. The model itself is never rounded: what `p` has too
/// little of one step has the next too much, a two-thousandth of the value at most; values beyond 65,504 have no momentum. During a round, what averaging keeps.
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
        let mut last = vec![0.0; model.len()];
        for (model, last) in model.chunks(BLOCK).zip(last.chunks_mut(BLOCK)) {
            let mut ended = [0.0; BLOCK];
            ended[..model.len()].copy_from_slice(model);
            pack(&mut ended[..model.len()], &mut [0.0; BLOCK][..model.len()], last);
        }
        Self {
            averaging: Averaging::new(spec, model.len()),
            share: spec.tuning.slow_momentum_micro as f32 / 1e6,
            last,
        }
    }
}

/// Where slow steps ended and how long they were, as two halves of each number of `last`; as many of all.
#[inline(always)]
fn pack(ended: &mut [f32], steps: &mut [f32], last: &mut [f32]) {
    let mut halves = [[f16::ZERO; BLOCK]; 2];
    for (wide, halves) in [ended, steps].into_iter().zip(&mut halves) {
        // What is too large for a half would come back as no number.
        wide.iter_mut().for_each(|x| *x = x.clamp(-HALF_MAX, HALF_MAX));
        halves[..wide.len()].convert_from_f32_slice(wide);
    }
    let [ended, steps] = halves;
    for ((both, ended), step) in last.iter_mut().zip(ended).zip(steps) {
        *both = f32::from_bits(u32::from(ended.to_bits()) | u32::from(step.to_bits()) << 16);
    }
}

/// What [`pack`] was given, rounded.
#[inline(always)]
fn unpack(last: &[f32], ended: &mut [f32], steps: &mut [f32]) {
    let mut halves = [[f16::ZERO; BLOCK]; 2];
    let [first, second] = &mut halves;
    for ((both, ended), step) in last.iter().zip(first).zip(second) {
        let both = both.to_bits();
        (*ended, *step) = (f16::from_bits(both as u16), f16::from_bits((both >> 16) as u16));
    }
    for (wide, halves) in [ended, steps].into_iter().zip(halves) {
        halves[..wide.len()].convert_to_f32_slice(wide);
    }
}

const HALF_MAX: f32 = 65_504.0;

/// Coordinates at a time, at most: what is computed of them stays near the processor.
const BLOCK: usize = 256;

/// Goes on with each coordinate of a mask that fits both.
struct GoingOn<'a> {
    model: &'a mut [f32],
    last: &'a mut [f32],
    mask: &'a Mask,
    share: f32,
}

impl Kernel for GoingOn<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let [mut values, mut last, mut ended, mut steps] = [[0.0; BLOCK]; 4];
        for first in (0..self.mask.len()).step_by(BLOCK) {
            let length = BLOCK.min(self.mask.len() - first);
            let (values, last) = (&mut values[..length], &mut last[..length]);
            let (ended, steps) = (&mut ended[..length], &mut steps[..length]);
            self.mask.gather_part(self.model, first, values);
            self.mask.gather_part(self.last, first, last);
            unpack(last, ended, steps);
            for ((x, ended), step) in values.iter_mut().zip(&mut *ended).zip(&mut *steps) {
                *x += self.share * *step;
                // What does not fit a half was not kept, so that how far it went is not known; and no number begins anew.
                let is_known = x.abs() < HALF_MAX && ended.abs() < HALF_MAX;
                *step = if is_known { *x - *ended } else { 0.0 };
                *ended = *x;
            }
            pack(ended, steps, last);
            self.mask.scatter_part(self.model, first, values);
            self.mask.scatter_part(self.last, first, last);
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
        check_length(model, self.last.len())?;
        let Some(mask) = self.averaging.merge_on_mask(plan, merged, model)? else {
            return Ok(());
        };
        widest(GoingOn {
            model,
            last: &mut self.last,
            mask: &mask,
            share: self.share,
        });
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
    use super::{GoingOn, pack, unpack};
    use crate::lanes::widest;
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
        let mut world = World::of(without_momentum(Algorithm::Default, Values::F32), 2, 30);
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
    fn values_that_do_not_fit_a_half_are_averaged_and_nothing_else() {
        let mut model = vec![1e5, -7e4, 6.6e4, f32::NAN, 1.0];
        let mut last = vec![0.0; 5];
        let mask = Mask::All(5);
        let mut again = |model: &mut [f32]| {
            widest(GoingOn {
                model,
                last: &mut last,
                mask: &mask,
                share: 0.5,
            });
        };
        again(&mut model);
        model[3] = 2.0;
        for _ in 0..20 {
            again(&mut model);
        }
        assert_eq!(model[..3], [1e5, -7e4, 6.6e4]);
        // What came to the last two before they were still has come to rest.
        assert!(model[3..].iter().all(|x| (x - 2.0).abs() < 0.1), "{model:?}");
    }

    #[test]
    fn two_halves_come_back_from_one_number_whatever_they_are() {
        let ended = [0.5, -0.0, 1e-6, 1e9, 60_000.0, f32::MIN];
        let steps = [-0.25, 0.0, -1e-6, -1e9, -60_000.0, f32::MAX];
        let (mut last, mut again) = ([0.0; 6], [[0.0; 6]; 2]);
        pack(&mut ended.clone(), &mut steps.clone(), &mut last);
        let [ended_again, steps_again] = &mut again;
        unpack(&last, ended_again, steps_again);
        for (given, again) in [ended, steps].into_iter().zip(again) {
            for (x, again) in given.into_iter().zip(again) {
                let x = x.clamp(-65_504.0, 65_504.0);
                assert!((x - again).abs() <= x.abs() / 2048.0 + 6e-8, "{x}, not {again}");
            }
        }
    }
}
