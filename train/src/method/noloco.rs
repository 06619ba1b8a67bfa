//! An outer momentum between two at a time: NoLoCo.
//!
//! Kolehmainen et al., "NoLoCo: No-all-reduce Low Communication Training Method for Large Models" (arXiv 2506.10911),
//! Section 3.2, equations 1 to 3, for groups of two.

use super::values::{check_length, hear, restored, tell, told_len};
use super::{Gossip, MethodError};
use lapwing_base::{JobSpec, NodeId, Round, RoundPlan, Values};

/// What one node offers and takes, with `theta` its model after the local steps, `phi` its slow weights, from which
/// these steps began, and `j` the partner, or nobody in a group of one:
///
/// ```text
/// Delta_i = theta_i - phi_i
/// delta_i = alpha delta_i + beta mean(Delta_i, Delta_j) - gamma (phi_i - mean(phi_i, phi_j))
/// phi_i  += delta_i
/// theta_i = phi_i
/// ```
///
/// `alpha` is the job's outer momentum, `beta` its outer learning rate and `gamma` its gossip step: at 1, the slow
/// weights of both meet half-way. Without momentum the spread of slow weights shrinks for `0 < gamma < 2`.
///
/// A message is `Delta` and `phi`: twice the model in the job's encoding, each way, once in many local steps. An
/// exchange that does not count leaves each of the two a group of one.
///
/// Kept over a restart: slow weights and momentum, two vectors. During a round three more: the model as it was offered,
/// and the sums of what both told.
#[derive(Debug)]
pub(crate) struct NoLoCo {
    values: Values,
    alpha: f32,
    beta: f32,
    gamma: f32,
    /// `phi`.
    slow: Vec<f32>,
    /// `delta`.
    momentum: Vec<f32>,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    round: Round,
    partner: NodeId,
    /// `theta`.
    offered: Vec<f32>,
    /// As the partner decodes it, and once it is here the mean of both.
    change: Vec<f32>,
    /// The slow weights as the partner decodes them, and once its own are here, how far they are from the mean of both.
    slow: Vec<f32>,
    has_heard: bool,
}

impl NoLoCo {
    /// For a node whose model is now `model`, which all nodes of the job have.
    pub(crate) fn new(spec: &JobSpec, model: &[f32]) -> Self {
        let tuning = &spec.tuning;
        Self {
            values: spec.values,
            alpha: tuning.outer_momentum_micro as f32 / 1e6,
            beta: tuning.outer_lr_micro as f32 / 1e6,
            gamma: tuning.gossip_step_micro as f32 / 1e6,
            slow: model.to_vec(),
            momentum: vec![0.0; model.len()],
            open: None,
        }
    }
}

impl Gossip for NoLoCo {
    fn offer(
        &mut self,
        plan: &RoundPlan,
        partner: NodeId,
        model: &[f32],
        message: &mut Vec<u8>,
    ) -> Result<(), MethodError> {
        check_length(model, self.slow.len())?;
        let (mut change, mut slow) = (Vec::new(), Vec::new());
        let mut second = Vec::new();
        let own: Vec<f32> = model
            .iter()
            .zip(&self.slow)
            .map(|(theta, phi)| theta - phi)
            .collect();
        tell(&own, self.values, message, &mut change)?;
        tell(&self.slow, self.values, &mut second, &mut slow)?;
        message.append(&mut second);
        self.open = Some(Open {
            round: plan.round,
            partner,
            offered: model.to_vec(),
            change,
            slow,
            has_heard: false,
        });
        Ok(())
    }

    fn message_bytes_max(&self, _plan: &RoundPlan) -> usize {
        told_len(self.slow.len(), self.values).saturating_mul(2)
    }

    fn accept(&mut self, plan: &RoundPlan, partner: NodeId, message: &[u8]) -> Result<(), MethodError> {
        let round = plan.round;
        let open = self.open.as_mut();
        let open = open
            .filter(|open| (open.round, open.partner, open.has_heard) == (round, partner, false))
            .ok_or(MethodError::NotOffered { round, partner })?;
        let (change, slow) = message
            .split_at_checked(told_len(self.slow.len(), self.values))
            .ok_or(MethodError::Malformed {
                why: "it ends within the change",
            })?;
        let change = hear(change, self.values, &open.change)?;
        let slow = hear(slow, self.values, &open.slow)?;
        for (own, heard) in open.change.iter_mut().zip(change) {
            *own = 0.5 * *own + 0.5 * heard;
        }
        for (own, heard) in open.slow.iter_mut().zip(slow) {
            *own = 0.5 * *own - 0.5 * heard;
        }
        open.has_heard = true;
        Ok(())
    }

    fn settle(&mut self, plan: &RoundPlan, merged: &[NodeId], model: &mut [f32]) -> Result<(), MethodError> {
        let round = plan.round;
        check_length(model, self.slow.len())?;
        let open = self.open.as_ref().filter(|open| open.round == round);
        for &partner in merged {
            let is_here = open.is_some_and(|open| open.partner == partner && open.has_heard);
            if !is_here {
                return Err(MethodError::NotAccepted { round, partner });
            }
        }
        let open = self.open.take().filter(|open| open.round == round);
        let shared = open.as_ref().filter(|_| !merged.is_empty());
        for (index, x) in model.iter_mut().enumerate() {
            let (phi, delta) = (&mut self.slow[index], &mut self.momentum[index]);
            let theta = open.as_ref().map_or(*x, |open| open.offered[index]);
            let (change, apart) = match shared {
                Some(shared) => (shared.change[index], shared.slow[index]),
                None => (theta - *phi, 0.0),
            };
            *delta = self.alpha * *delta + self.beta * change - self.gamma * apart;
            *phi += *delta;
            // What was trained since, which is exactly nothing where nothing was.
            *x = *phi + (*x - theta);
        }
        Ok(())
    }

    fn state(&self) -> Vec<(String, &[f32])> {
        vec![
            (SLOW.to_owned(), self.slow.as_slice()),
            (MOMENTUM.to_owned(), self.momentum.as_slice()),
        ]
    }

    fn restore(&mut self, mut state: Vec<(String, Vec<f32>)>) -> Result<(), MethodError> {
        let slow = restored(&mut state, SLOW, self.slow.len())?;
        let momentum = restored(&mut state, MOMENTUM, self.slow.len())?;
        (self.slow, self.momentum, self.open) = (slow, momentum, None);
        Ok(())
    }
}

/// The names of `phi` and `delta` in a checkpoint.
const SLOW: &str = "slow";
const MOMENTUM: &str = "momentum";

#[cfg(test)]
mod tests {
    use super::super::fixture::*;
    use lapwing_base::{Algorithm, Values};

    /// The published update in plain `f64`.
    struct Reference {
        models: Vec<Vec<f64>>,
        slow: Vec<Vec<f64>>,
        momentum: Vec<Vec<f64>>,
    }

    impl Reference {
        fn round(&mut self, pairs: &[[usize; 2]]) {
            let (alpha, beta, gamma) = (0.5, 0.7, 1.0);
            let n = self.models.len();
            let before = self.slow.clone();
            for i in 0..n {
                let pair = pairs.iter().find(|pair| pair.contains(&i));
                let group: Vec<usize> = pair.map_or_else(|| vec![i], |pair| pair.to_vec());
                let size = group.len() as f64;
                for (d, start) in before[i].iter().enumerate() {
                    let change = group
                        .iter()
                        .map(|&j| self.models[j][d] - before[j][d])
                        .sum::<f64>()
                        / size;
                    let mean = group.iter().map(|&j| before[j][d]).sum::<f64>() / size;
                    let delta = &mut self.momentum[i][d];
                    *delta = alpha * *delta + beta * change - gamma * (start - mean);
                    self.slow[i][d] += *delta;
                }
            }
            self.models = self.slow.clone();
        }
    }

    #[test]
    fn rounds_are_those_of_the_paper_and_a_lost_exchange_leaves_groups_of_one() {
        let mut world = World::new(Algorithm::NoLoCo, Values::F32, 5, 8);
        let start = world.start();
        let mut reference = Reference {
            models: vec![start.clone(); 5],
            slow: vec![start.clone(); 5],
            momentum: vec![vec![0.0; 8]; 5],
        };
        for round in 1..=20 {
            world.train(round);
            train_f64(&mut reference.models, round);
            let merged = world.exchange(&pairs_plan(round, 5, 1), &lossy(round, 5));
            reference.round(&merged);
            assert_close(&world.models, &reference.models, 1e-5);
        }
    }

    #[test]
    fn the_spread_of_slow_weights_shrinks_when_nobody_trains() {
        for kind in Values::ALL {
            let mut world = World::new(Algorithm::NoLoCo, kind, 8, 100);
            for round in 1..=5 {
                world.train(round);
                world.exchange(&pairs_plan(round, 8, 1), &[]);
            }
            let before = world.disagreement();
            for round in 6..=60 {
                world.exchange(&pairs_plan(round, 8, 1), &[]);
            }
            assert!(
                world.disagreement() < 0.1 * before,
                "{kind}: {} of {before}",
                world.disagreement()
            );
        }
    }

    #[test]
    fn a_restart_goes_on_bit_identically() {
        restart_goes_on(Algorithm::NoLoCo, |round| pairs_plan(round, 5, 1), lossy);
    }

    #[test]
    fn what_cannot_be_trusted_is_refused_and_changes_nothing() {
        refuses_what_it_should(Algorithm::NoLoCo, pairs_plan(1, 5, 1));
    }

    #[test]
    fn training_that_goes_on_during_the_exchange_is_kept() {
        training_meanwhile_is_kept(Algorithm::NoLoCo, pairs_plan(1, 5, 1));
    }

    #[test]
    fn two_vectors_are_kept_and_two_are_told() {
        let mut world = World::new(Algorithm::NoLoCo, Values::F32, 2, 30);
        let messages = offers(&mut world.nodes, &world.models, &pairs_plan(1, 2, 1));
        assert!(messages.iter().all(|(.., message)| message.len() == 2 * 4 * 30));
        let state = world.nodes[0].state();
        assert!(state.len() == 2 && state.iter().all(|(_, vector)| vector.len() == 30));
    }
}
