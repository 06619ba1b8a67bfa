//! Many local steps, then one step of all with momentum: DiLoCo.
//!
//! Douillard et al., "DiLoCo: Distributed Low-Communication Training of Language Models" (arXiv 2311.08105),
//! Algorithm 1, with Nesterov's momentum as PyTorch's `SGD(nesterov=True)` has it.

use super::values::{check_length, check_mean, restored};
use super::{Collective, Done, Learnt, MethodError, Work};
use lapwing_base::{JobSpec, RoundPlan};

/// One node's side, with `theta` the model of all when the local steps began and `theta_i` this node's after them:
///
/// ```text
/// contributes   g_i = theta - theta_i           with weight 1
/// g      = mean of all g_i
/// v      = mu v + g
/// theta -= eta (g + mu v)                       and every node goes on from there
/// ```
///
/// `mu` is the job's outer momentum and `eta` its outer learning rate. Inner optimisers keep their state, as published.
/// When a round's mean is not to be had, all go on training from where they are, and the next mean has both rounds.
///
/// Kept over a restart: `theta` and `v`, two vectors. A node that joins later needs both beside its model.
#[derive(Debug)]
pub(crate) struct DiLoCo {
    eta: f32,
    mu: f32,
    common: Vec<f32>,
    velocity: Vec<f32>,
}

impl DiLoCo {
    /// For a node whose model is now `model`, which all nodes of the job have.
    pub(crate) fn new(spec: &JobSpec, model: &[f32]) -> Self {
        Self {
            eta: spec.tuning.outer_lr_micro as f32 / 1e6,
            mu: spec.tuning.outer_momentum_micro as f32 / 1e6,
            common: model.to_vec(),
            velocity: vec![0.0; model.len()],
        }
    }
}

impl Collective for DiLoCo {
    fn work(&self) -> Work {
        Work::Steps
    }

    fn begin(&mut self, _plan: &RoundPlan, _model: &[f32]) {
        // What all agreed on last is known, and is not what a node has after a round that failed.
    }

    fn contribute(
        &mut self,
        _plan: &RoundPlan,
        done: Done<'_>,
        vector: &mut Vec<f32>,
    ) -> Result<u64, MethodError> {
        check_length(done.model, self.common.len())?;
        vector.clear();
        vector.extend(
            self.common
                .iter()
                .zip(done.model)
                .map(|(common, own)| common - own),
        );
        Ok(1)
    }

    fn length(&self, _plan: &RoundPlan) -> usize {
        self.common.len()
    }

    fn settle(&mut self, _plan: &RoundPlan, mean: &[f32], model: &mut [f32]) -> Result<Learnt, MethodError> {
        check_mean(mean, self.common.len())?;
        check_length(model, self.common.len())?;
        for ((common, velocity), mean) in self.common.iter_mut().zip(&mut self.velocity).zip(mean) {
            *velocity = self.mu * *velocity + mean;
            *common -= self.eta * (mean + self.mu * *velocity);
        }
        model.copy_from_slice(&self.common);
        Ok(Learnt::Model)
    }

    fn state(&self) -> Vec<(String, &[f32])> {
        vec![
            (COMMON.to_owned(), self.common.as_slice()),
            (VELOCITY.to_owned(), self.velocity.as_slice()),
        ]
    }

    fn restore(&mut self, mut state: Vec<(String, Vec<f32>)>) -> Result<(), MethodError> {
        let common = restored(&mut state, COMMON, self.common.len())?;
        let velocity = restored(&mut state, VELOCITY, self.common.len())?;
        (self.common, self.velocity) = (common, velocity);
        Ok(())
    }
}

/// The names of `theta` and `v` in a checkpoint.
const COMMON: &str = "common";
const VELOCITY: &str = "velocity";

#[cfg(test)]
mod tests {
    use super::super::fixture::*;
    use lapwing_base::{Algorithm, RoundKind, RoundPlan};

    fn reduced(round: u64) -> RoundPlan {
        plan(round, RoundKind::Reduced, &ring_edges(4), 1)
    }

    /// PyTorch's `SGD(lr=0.7, momentum=0.9, nesterov=True)` in plain `f64`, on what the local steps changed.
    fn outer_step(common: &mut [f64], velocity: &mut [f64], models: &[Vec<f64>]) {
        for d in 0..common.len() {
            let mean = models.iter().map(|model| model[d]).sum::<f64>() / models.len() as f64;
            let gradient = common[d] - mean;
            velocity[d] = 0.9 * velocity[d] + gradient;
            common[d] -= 0.7 * (gradient + 0.9 * velocity[d]);
        }
    }

    #[test]
    fn rounds_are_those_of_the_paper_and_a_lost_one_is_made_up_for_by_the_next() {
        let mut world = Collectives::new(Algorithm::DiLoCo, 4, 7);
        let mut common = world.start();
        let mut velocity = vec![0.0; 7];
        let mut models = vec![common.clone(); 4];
        for round in 1..=15 {
            let plan = reduced(round);
            let before = world.models.clone();
            world
                .nodes
                .iter_mut()
                .zip(&before)
                .for_each(|(node, model)| node.begin(&plan, model));
            world.train(round);
            train_f64(&mut models, round);
            let mean = world.mean(&plan, &[0, 1, 2, 3]);
            if round % 4 > 0 {
                for at in 0..4 {
                    world.nodes[at]
                        .settle(&plan, &mean, &mut world.models[at])
                        .unwrap();
                }
                outer_step(&mut common, &mut velocity, &models);
                models = vec![common.clone(); 4];
            }
            assert_close(&world.models, &models, 1e-4);
            world.restart(round as usize % 4);
        }
        assert_eq!(world.models[0], world.models[3]);
    }

    #[test]
    fn two_vectors_are_kept_and_a_checkpoint_without_them_is_refused() {
        let mut world = Collectives::new(Algorithm::DiLoCo, 1, 7);
        let state = world.nodes[0].state();
        assert!(state.len() == 2 && state.iter().all(|(_, vector)| vector.len() == 7));
        assert!(
            world.nodes[0]
                .restore(vec![("common".to_owned(), vec![0.0; 7])])
                .is_err()
        );
        let short = ["common", "velocity"].map(|name| (name.to_owned(), vec![0.0; 6]));
        assert!(world.nodes[0].restore(short.to_vec()).is_err());
    }

    #[test]
    fn a_mean_that_cannot_be_trusted_changes_nothing() {
        refuses_bad_means(Algorithm::DiLoCo, &reduced(1));
    }
}
