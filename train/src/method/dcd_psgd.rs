//! Compressed differences that neighbours add to exact copies: DCD-PSGD.
//!
//! Tang et al., "Communication Compression for Decentralized Training" (NeurIPS 2018, arXiv 1803.06443), Algorithm 1.
//! It asks for an unbiased compression, which is only stable up to a small ratio (the paper's condition on alpha; random
//! coordinates scaled up diverge from a ratio of about four on); here the largest values are kept as they are, which is
//! biased and stable.

use super::copies::{Copies, Told};
use super::values::{check_length, restored};
use super::{Gossip, MethodError, mixing_weight};
use lapwing_base::{JobSpec, NodeId, Round, RoundPlan};
use std::sync::Arc;

/// What one node offers and takes, with `x` its model as its neighbours have it, `x+` after the local steps, and `c` the
/// copies, of which `c_i = x_i` unless a message was lost:
///
/// ```text
/// z_i  = x+_i + sum_j w (c_j - c_i) - x_i    w = 1/3 on a ring
/// x_i += C(z_i)                              told to the neighbours, and what is not told is given up
/// c_i += C(z_i),   c_j += C(z_j)             by both ends of an edge
/// ```
///
/// A neighbour to whom something was lost has an older copy; it is told `C(x_i - c_i)` with the new `x_i`, until it has
/// caught up.
///
/// Kept over a restart: the model as it was told, which is also the copy of all neighbours to whom nothing was lost, and
/// their copies: three vectors on a ring. During a round two more.
#[derive(Debug)]
pub(crate) struct DcdPsgd {
    copies: Copies,
    /// `x`.
    published: Arc<Vec<f32>>,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    round: Round,
    /// The model after the local steps.
    offered: Vec<f32>,
    /// What `x` becomes.
    next: Arc<Vec<f32>>,
}

impl DcdPsgd {
    /// For a node whose model is now `model`, which all nodes of the job have.
    pub(crate) fn new(spec: &JobSpec, model: &[f32]) -> Self {
        let published = Arc::new(model.to_vec());
        Self {
            copies: Copies::new(spec, &published),
            published,
            open: None,
        }
    }

    /// This node's own step, by which all neighbours that have `x` follow.
    fn step(&mut self, plan: &RoundPlan, model: &[f32]) -> Result<Open, MethodError> {
        let weight = mixing_weight(plan);
        let mut target = model.to_vec();
        for (mine, theirs) in self.copies.neighbours().filter_map(|node| self.copies.edge(node)) {
            for ((x, mine), theirs) in target.iter_mut().zip(mine).zip(theirs) {
                *x += weight * (theirs - mine);
            }
        }
        let told: Arc<Told> = self.copies.draft(plan, Some(&self.published), &target)?;
        Ok(Open {
            round: plan.round,
            offered: model.to_vec(),
            next: Arc::new(told.apply(Some(&self.published))),
        })
    }
}

impl Gossip for DcdPsgd {
    fn offer(
        &mut self,
        plan: &RoundPlan,
        partner: NodeId,
        model: &[f32],
        message: &mut Vec<u8>,
    ) -> Result<(), MethodError> {
        check_length(model, self.copies.parameters())?;
        let open = match self.open.take().filter(|open| open.round == plan.round) {
            Some(open) => open,
            None => self.step(plan, model)?,
        };
        let offered = self.copies.offer(plan, partner, &open.next, message);
        self.open = Some(open);
        offered
    }

    fn message_bytes_max(&self, plan: &RoundPlan) -> usize {
        self.copies.message_bytes_max(plan)
    }

    fn accept(&mut self, plan: &RoundPlan, partner: NodeId, message: &[u8]) -> Result<(), MethodError> {
        self.copies.accept(plan, partner, &self.published, message)
    }

    fn settle(&mut self, plan: &RoundPlan, merged: &[NodeId], model: &mut [f32]) -> Result<(), MethodError> {
        check_length(model, self.copies.parameters())?;
        self.copies.settle(plan, merged)?;
        self.published = match self.open.take().filter(|open| open.round == plan.round) {
            Some(open) => {
                for ((x, offered), next) in model.iter_mut().zip(&open.offered).zip(open.next.iter()) {
                    // What was trained since, which is exactly nothing where nothing was.
                    *x = next + (*x - offered);
                }
                open.next
            }
            // Nobody was told anything: neighbours follow when they are back.
            None => Arc::new(model.to_vec()),
        };
        self.copies.share(&self.published);
        Ok(())
    }

    fn state(&self) -> Vec<(String, &[f32])> {
        let mut state = self.copies.state();
        state.push((PUBLISHED.to_owned(), &self.published));
        state
    }

    fn restore(&mut self, mut state: Vec<(String, Vec<f32>)>) -> Result<(), MethodError> {
        let published = Arc::new(restored(&mut state, PUBLISHED, self.copies.parameters())?);
        self.copies.restore(state)?;
        self.copies.share(&published);
        (self.published, self.open) = (published, None);
        Ok(())
    }
}

/// The name of `x` in a checkpoint.
const PUBLISHED: &str = "published";

#[cfg(test)]
mod tests {
    use super::super::fixture::*;
    use super::*;
    use lapwing_base::{Algorithm, Values};

    /// The published update in plain `f64`: nothing is lost, so that every copy is the model itself.
    fn reference(before: &[Vec<f64>], trained: &[Vec<f64>], count: usize) -> Vec<Vec<f64>> {
        let n = before.len();
        (0..n)
            .map(|i| {
                let (left, right) = ((i + n - 1) % n, (i + 1) % n);
                let mut model = before[i].clone();
                let z: Vec<f64> = (0..model.len())
                    .map(|d| {
                        let mixed = (before[left][d] + before[i][d] + before[right][d]) / 3.0;
                        mixed + (trained[i][d] - before[i][d]) - before[i][d]
                    })
                    .collect();
                for index in largest_f64(&z, count) {
                    model[index] += z[index];
                }
                model
            })
            .collect()
    }

    #[test]
    fn rounds_without_losses_are_those_of_the_paper() {
        let mut world = World::new(Algorithm::DcdPsgd, Values::F32, 5, 12);
        let mut expected = vec![world.start(); 5];
        for round in 1..=25 {
            let before = expected.clone();
            world.train(round);
            train_f64(&mut expected, round);
            world.exchange(&ring_plan(round, 5, 3), &[]);
            expected = reference(&before, &expected, 4);
            assert_close(&world.models, &expected, 1e-4);
        }
    }

    #[test]
    fn both_ends_of_an_edge_have_the_same_copies_whatever_was_lost() {
        for kind in Values::ALL {
            let mut world = World::new(Algorithm::DcdPsgd, kind, 5, 40);
            for round in 1..=40 {
                world.train(round);
                world.exchange(&ring_plan(round, 5, 4), &lossy(round, 5));
                world.copies_agree();
            }
        }
    }

    #[test]
    fn models_agree_in_the_end_although_messages_were_lost() {
        let mut world = World::new(Algorithm::DcdPsgd, Values::F32, 5, 40);
        world.train(1);
        world.exchange(&ring_plan(1, 5, 1), &[]);
        let before = world.disagreement();
        assert!(before > 1e-3);
        for round in 2..=300 {
            world.exchange(&ring_plan(round, 5, 4), &lossy(round, 5));
        }
        assert!(
            world.disagreement() < 0.01 * before,
            "{} of {before}",
            world.disagreement()
        );
    }

    #[test]
    fn a_restart_goes_on_bit_identically() {
        restart_goes_on(Algorithm::DcdPsgd, |round| ring_plan(round, 5, 4), lossy);
    }

    #[test]
    fn a_node_that_lost_its_copies_is_told_the_whole_model_and_goes_on() {
        lost_copies_heal(Algorithm::DcdPsgd);
    }

    #[test]
    fn what_cannot_be_trusted_is_refused_and_changes_nothing() {
        refuses_what_it_should(Algorithm::DcdPsgd, ring_plan(1, 5, 4));
    }

    #[test]
    fn training_that_goes_on_during_the_exchange_is_kept() {
        training_meanwhile_is_kept(Algorithm::DcdPsgd, ring_plan(1, 5, 4));
    }

    #[test]
    fn three_vectors_are_kept_on_a_ring_on_which_nothing_fails() {
        let spec = spec(Algorithm::DcdPsgd, Values::Int8);
        let mut nodes: Vec<_> = (0..4).map(|_| DcdPsgd::new(&spec, &[0.5; 16])).collect();
        let mut models = vec![vec![0.5_f32; 16]; 4];
        for round in 1..=4 {
            train(&mut models, round);
            exchange(&mut nodes, &mut models, &ring_plan(round, 4, 4), &[]);
            for node in &nodes {
                assert_eq!(node.copies.vectors(), 3);
                assert!(
                    node.copies
                        .of_this_node()
                        .all(|mine| Arc::ptr_eq(mine, &node.published))
                );
            }
        }
    }
}
