//! Compressed changes towards copies of the neighbours: CHOCO-SGD.
//!
//! Koloskova, Stich and Jaggi, "Decentralized Stochastic Optimization and Gossip Algorithms with Compressed
//! Communication" (ICML 2019, arXiv 1902.00340), Algorithm 2, with the compression of `sparse`.

use super::copies::Copies;
use super::values::check_length;
use super::{Gossip, MethodError, mixing_weight};
use lapwing_base::{JobSpec, NodeId, RoundPlan};
use std::sync::Arc;

/// What one node offers and takes, with `x` its model after the local steps and `c` the copies, of which `c_i` is what
/// its neighbours have of it:
///
/// ```text
/// q_i  = C(x_i - c_i)                        told to the neighbours
/// c_i += q_i,   c_j += q_j                   by both ends of an edge
/// x_i += gamma * sum_j w (c_j - c_i)         w = 1/3 on a ring, gamma the job's gossip step
/// ```
///
/// Copies begin with the model that all start from, and not with zeros: the first changes are smaller. On an edge whose
/// exchange does not count, neither the copies nor the models move: the mean of all models stays what it was.
///
/// Kept over a restart: the copies, three vectors on a ring.
#[derive(Debug)]
pub(crate) struct ChocoSgd {
    copies: Copies,
    step: f32,
    /// What was offered in this round: what a whole model of a neighbour is measured by.
    offered: Vec<f32>,
}

impl ChocoSgd {
    /// For a node whose model is now `model`, which all nodes of the job have.
    pub(crate) fn new(spec: &JobSpec, model: &[f32]) -> Self {
        Self {
            copies: Copies::new(spec, &Arc::new(model.to_vec())),
            step: spec.tuning.gossip_step_micro as f32 / 1e6,
            offered: Vec::new(),
        }
    }
}

impl Gossip for ChocoSgd {
    fn offer(
        &mut self,
        plan: &RoundPlan,
        partner: NodeId,
        model: &[f32],
        message: &mut Vec<u8>,
    ) -> Result<(), MethodError> {
        self.copies.offer(plan, partner, model, message)?;
        self.offered.clear();
        self.offered.extend_from_slice(model);
        Ok(())
    }

    fn message_bytes_max(&self, plan: &RoundPlan) -> usize {
        self.copies.message_bytes_max(plan)
    }

    fn accept(&mut self, plan: &RoundPlan, partner: NodeId, message: &[u8]) -> Result<(), MethodError> {
        self.copies.accept(plan, partner, &self.offered, message)
    }

    fn settle(&mut self, plan: &RoundPlan, merged: &[NodeId], model: &mut [f32]) -> Result<(), MethodError> {
        check_length(model, self.copies.parameters())?;
        self.copies.settle(plan, merged)?;
        let weight = self.step * mixing_weight(plan);
        for &partner in merged {
            if let Some((mine, theirs)) = self.copies.edge(partner) {
                for ((x, mine), theirs) in model.iter_mut().zip(mine).zip(theirs) {
                    *x += weight * (theirs - mine);
                }
            }
        }
        self.offered = Vec::new();
        Ok(())
    }

    fn state(&self) -> Vec<(String, &[f32])> {
        self.copies.state()
    }

    fn restore(&mut self, state: Vec<(String, Vec<f32>)>) -> Result<(), MethodError> {
        self.offered = Vec::new();
        self.copies.restore(state)
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::*;
    use super::*;
    use lapwing_base::{Algorithm, Values};

    /// The published update in plain `f64`, with one copy of each node: nothing is lost.
    #[derive(Debug)]
    struct Reference {
        models: Vec<Vec<f64>>,
        copies: Vec<Vec<f64>>,
    }

    impl Reference {
        fn round(&mut self, count: usize, step: f64) {
            for (model, copy) in self.models.iter().zip(&mut self.copies) {
                let change: Vec<f64> = model.iter().zip(copy.iter()).map(|(x, c)| x - c).collect();
                for index in largest_f64(&change, count) {
                    copy[index] += change[index];
                }
            }
            for [a, b] in ring_edges(self.models.len()) {
                for index in 0..self.models[a].len() {
                    let apart = self.copies[b][index] - self.copies[a][index];
                    self.models[a][index] += step / 3.0 * apart;
                    self.models[b][index] -= step / 3.0 * apart;
                }
            }
        }
    }

    #[test]
    fn rounds_without_losses_are_those_of_the_paper() {
        let mut world = World::new(Algorithm::ChocoSgd, Values::F32, 5, 12);
        let start = world.start();
        let mut reference = Reference {
            models: vec![start.clone(); 5],
            copies: vec![start; 5],
        };
        let step = f64::from(Algorithm::ChocoSgd.tuning().gossip_step_micro) / 1e6;
        for round in 1..=30 {
            world.train(round);
            train_f64(&mut reference.models, round);
            world.exchange(&ring_plan(round, 5, 4), &[]);
            reference.round(3, step);
            assert_close(&world.models, &reference.models, 1e-4);
        }
    }

    #[test]
    fn both_ends_of_an_edge_have_the_same_copies_whatever_was_lost() {
        for kind in Values::ALL {
            let mut world = World::new(Algorithm::ChocoSgd, kind, 5, 40);
            for round in 1..=40 {
                world.train(round);
                let before = world.mean();
                world.exchange(&ring_plan(round, 5, 8), &lossy(round, 5));
                assert_close(&[to_f32(&world.mean())], &[before], 1e-5);
                world.copies_agree();
            }
        }
    }

    #[test]
    fn models_agree_in_the_end_although_messages_were_lost() {
        let mut world = World::new(Algorithm::ChocoSgd, Values::F32, 5, 40);
        world.train(1);
        let before = world.disagreement();
        for round in 1..=600 {
            world.exchange(&ring_plan(round, 5, 8), &lossy(round, 5));
        }
        assert!(
            world.disagreement() < 0.01 * before,
            "{} of {before}",
            world.disagreement()
        );
    }

    #[test]
    fn a_restart_goes_on_bit_identically() {
        restart_goes_on(Algorithm::ChocoSgd, |round| ring_plan(round, 5, 4), lossy);
    }

    #[test]
    fn a_node_that_lost_its_copies_is_told_the_whole_model_and_goes_on() {
        lost_copies_heal(Algorithm::ChocoSgd);
    }

    #[test]
    fn what_cannot_be_trusted_is_refused_and_changes_nothing() {
        refuses_what_it_should(Algorithm::ChocoSgd, ring_plan(1, 5, 4));
    }

    #[test]
    fn training_that_goes_on_during_the_exchange_is_kept() {
        training_meanwhile_is_kept(Algorithm::ChocoSgd, ring_plan(1, 5, 4));
    }

    #[test]
    fn three_vectors_are_kept_on_a_ring_on_which_nothing_fails() {
        let spec = spec(Algorithm::ChocoSgd, Values::F32);
        let mut nodes: Vec<_> = (0..4).map(|_| ChocoSgd::new(&spec, &[0.5; 16])).collect();
        let mut models = vec![vec![0.5_f32; 16]; 4];
        for round in 1..=3 {
            train(&mut models, round);
            exchange(&mut nodes, &mut models, &ring_plan(round, 4, 4), &[]);
        }
        assert!(nodes.iter().all(|node| node.copies.vectors() == 3));
        exchange(&mut nodes, &mut models, &ring_plan(4, 4, 4), &[[0, 1]]);
        assert_eq!(nodes[0].copies.vectors(), 4);
        assert_eq!(nodes[2].copies.vectors(), 3);
    }
}
