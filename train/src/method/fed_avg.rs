//! One node averages what those it asked have learnt: FedAvg, and with masked answers S-FedAvg.
//!
//! McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data" (AISTATS 2017, arXiv
//! 1602.05629), Algorithm 1. Masked: Konečný et al., "Federated Learning: Strategies for Improving Communication
//! Efficiency" (arXiv 1610.05492), subsampled updates with a mask from a seed, without the factor that would make them
//! unbiased: with it, one coordinate in `c` is moved `c` times as far as anybody went, and training diverges.

use super::values::{check_length, check_mean};
use super::{Collective, Done, Learnt, MethodError, Work};
use crate::mask::Mask;
use lapwing_base::{Algorithm, JobSpec, Round, RoundPlan};

/// One node's side, with `theta` the server's model when the round began, which all who are asked start from, and
/// `theta_k` after the local steps of one with `n_k` samples:
///
/// ```text
/// contributes   d_k = theta_k - theta           with weight n_k, on the round's mask
/// theta += mean of all d_k                      by the server, on the round's mask
/// ```
///
/// The server itself may be one of those asked; its own steps then count like all others', and are otherwise undone.
///
/// Kept over a restart: `theta`, one vector. With a mask, during a round also its coordinates.
#[derive(Debug)]
pub(crate) struct FedAvg {
    seed: u64,
    algorithm: Algorithm,
    start: Vec<f32>,
    begun: Option<Round>,
}

impl FedAvg {
    /// For a node whose model is now `model`, which all nodes of the job have.
    pub(crate) fn new(spec: &JobSpec, model: &[f32]) -> Self {
        Self {
            seed: spec.seed,
            algorithm: spec.algorithm,
            start: model.to_vec(),
            begun: None,
        }
    }

    /// Everything, unless the job's algorithm compresses.
    fn mask(&self, plan: &RoundPlan) -> Mask {
        match self.algorithm {
            Algorithm::SFedAvg => Mask::of(self.seed, self.algorithm, plan, self.start.len()),
            _ => Mask::All(self.start.len()),
        }
    }
}

impl Collective for FedAvg {
    fn work(&self) -> Work {
        Work::Steps
    }

    fn begin(&mut self, plan: &RoundPlan, model: &[f32]) {
        self.begun = Some(plan.round);
        self.start.clear();
        self.start.extend_from_slice(model);
    }

    fn contribute(
        &mut self,
        plan: &RoundPlan,
        done: Done<'_>,
        vector: &mut Vec<f32>,
    ) -> Result<u64, MethodError> {
        check_length(done.model, self.start.len())?;
        if self.begun != Some(plan.round) {
            return Err(MethodError::NotBegun { round: plan.round });
        }
        let mask = self.mask(plan);
        let mut start = Vec::new();
        mask.gather(&self.start, &mut start);
        mask.gather(done.model, vector);
        vector
            .iter_mut()
            .zip(start)
            .for_each(|(own, start)| *own -= start);
        Ok(done.samples)
    }

    fn length(&self, plan: &RoundPlan) -> usize {
        self.mask(plan).len()
    }

    fn settle(&mut self, plan: &RoundPlan, mean: &[f32], model: &mut [f32]) -> Result<Learnt, MethodError> {
        if self.begun != Some(plan.round) {
            return Err(MethodError::NotBegun { round: plan.round });
        }
        let mask = self.mask(plan);
        check_mean(mean, mask.len())?;
        check_length(model, self.start.len())?;
        model.copy_from_slice(&self.start);
        for (index, mean) in mask.coordinates().zip(mean) {
            if let Some(x) = model.get_mut(index as usize) {
                *x += mean;
            }
        }
        Ok(Learnt::Model)
    }

    fn state(&self) -> Vec<(String, &[f32])> {
        let round = self.begun.unwrap_or_default();
        vec![(format!("{START} {round}"), self.start.as_slice())]
    }

    fn restore(&mut self, state: Vec<(String, Vec<f32>)>) -> Result<(), MethodError> {
        let no_state = MethodError::NoState { name: START };
        let begun = |name: &str| name.strip_prefix(START)?.trim_start().parse().ok();
        let found = state
            .into_iter()
            .find_map(|(name, start)| Some((begun(&name)?, start)));
        let (round, start) = found.ok_or(no_state)?;
        check_length(&start, self.start.len())?;
        self.start = start;
        self.begun = Some(Round(round)).filter(|round| *round > Round(0));
        Ok(())
    }
}

/// The name of `theta` in a checkpoint, before the round that began with it.
const START: &str = "start";

#[cfg(test)]
mod tests {
    use super::super::fixture::*;
    use crate::mask::Mask;
    use lapwing_base::{Algorithm, NodeId, RoundKind, RoundPlan};

    fn served(round: u64, compression: u32) -> RoundPlan {
        let server = NodeId(1);
        plan(
            round,
            RoundKind::Served { server },
            &[[0, 1], [0, 2]],
            compression,
        )
    }

    /// Rounds in which some are asked by node 0, against the published update in plain `f64`.
    fn follows_the_paper(algorithm: Algorithm, compression: u32) {
        const N: usize = 60;
        let mut world = Collectives::new(algorithm, 4, N);
        let mut server = world.start();
        for round in 1..=15 {
            let plan = served(round, compression);
            let asked: &[usize] = if round % 2 == 0 { &[1, 2] } else { &[0, 3] };
            // They take the server's model, which also begins the server's round.
            for at in [0, 1, 2, 3] {
                world.models[at] = world.models[0].clone();
                let model = world.models[at].clone();
                world.nodes[at].begin(&plan, &model);
            }
            let mut models = vec![server.clone(); 4];
            world.train(round);
            train_f64(&mut models, round);
            world.restart(round as usize % 4);
            let mean = world.mean(&plan, asked);
            world.restart(0);
            world.nodes[0].settle(&plan, &mean, &mut world.models[0]).unwrap();
            let mask = Mask::of(1, algorithm, &plan, N);
            let kept: Vec<usize> = mask.coordinates().map(|index| index as usize).collect();
            assert_eq!(mean.len(), kept.len());
            let samples: usize = asked.iter().map(|at| at + 1).sum();
            for d in kept {
                let change = |&at: &usize| (at + 1) as f64 * (models[at][d] - server[d]);
                server[d] += asked.iter().map(change).sum::<f64>() / samples as f64;
            }
            assert_close(&world.models[..1], &[server.clone()], 1e-5);
        }
    }

    #[test]
    fn rounds_are_those_of_the_papers() {
        follows_the_paper(Algorithm::FedAvg, 1);
        follows_the_paper(Algorithm::SFedAvg, 1);
        follows_the_paper(Algorithm::SFedAvg, 4);
    }

    #[test]
    fn a_mean_that_cannot_be_trusted_changes_nothing() {
        refuses_bad_means(Algorithm::FedAvg, &served(1, 1));
        refuses_bad_means(Algorithm::SFedAvg, &served(1, 1));
    }

    #[test]
    fn nothing_comes_of_a_round_that_was_not_begun() {
        let mut world = Collectives::new(Algorithm::FedAvg, 1, 3);
        let plan = served(1, 1);
        let settled = world.nodes[0].settle(&plan, &[0.0; 3], &mut world.models[0]);
        assert_eq!(settled.unwrap_err().to_string(), "round 1 was not begun");
        world.restart(0);
        assert_eq!(world.nodes[0].state().len(), 1);
        assert!(world.nodes[0].restore(Vec::new()).is_err());
        assert!(
            world.nodes[0]
                .restore(vec![("start 1".to_owned(), vec![0.0; 4])])
                .is_err()
        );
    }
}
