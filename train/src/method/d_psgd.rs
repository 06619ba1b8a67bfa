//! Averaging with the neighbours on a ring: D-PSGD.
//!
//! Lian et al., "Can Decentralized Algorithms Outperform Centralized Algorithms?" (NIPS 2017, arXiv 1705.09056),
//! Algorithm 1, in the form that adapts, then combines: the gradient is taken where the model is, and what is averaged
//! is the model after the step. (As published it combines first and adds the step, computed meanwhile, afterwards; both
//! have the same fixed points.)

use super::values::{check_length, hear, tell, told_len};
use super::{Gossip, MethodError, mixing_weight};
use lapwing_base::{JobSpec, NodeId, Round, RoundPlan, Values};
use std::collections::BTreeMap;

/// What one node offers and takes: `x_i += sum_j w (Q(x_j) - Q(x_i))` over the neighbours `j` whose exchange counts,
/// with `w = 1/3` on a ring and `Q` the job's encoding. An exchange that does not count leaves its weight with the
/// node itself, so that the weights stay symmetric and every row of them sums to one.
///
/// Kept over a restart: nothing. During a round: what was sent, and what each neighbour told, each as long as the model.
#[derive(Debug)]
pub(crate) struct DPsgd {
    values: Values,
    parameters: usize,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    round: Round,
    /// As the neighbours decode it.
    sent: Vec<f32>,
    /// What each neighbour to whom it was offered told.
    heard: BTreeMap<NodeId, Option<Vec<f32>>>,
}

impl DPsgd {
    /// For a model of so many parameters.
    pub(crate) fn new(spec: &JobSpec, parameters: usize) -> Self {
        Self {
            values: spec.values,
            parameters,
            open: None,
        }
    }
}

impl Gossip for DPsgd {
    fn offer(
        &mut self,
        plan: &RoundPlan,
        partner: NodeId,
        model: &[f32],
        message: &mut Vec<u8>,
    ) -> Result<(), MethodError> {
        check_length(model, self.parameters)?;
        let open = self.open.take().filter(|open| open.round == plan.round);
        let mut open = open.unwrap_or_else(|| Open {
            round: plan.round,
            sent: Vec::new(),
            heard: BTreeMap::new(),
        });
        tell(model, self.values, message, &mut open.sent)?;
        open.heard.insert(partner, None);
        self.open = Some(open);
        Ok(())
    }

    fn message_bytes_max(&self, _plan: &RoundPlan) -> usize {
        told_len(self.parameters, self.values)
    }

    fn accept(&mut self, plan: &RoundPlan, partner: NodeId, message: &[u8]) -> Result<(), MethodError> {
        let round = plan.round;
        let not_offered = MethodError::NotOffered { round, partner };
        let Some(open) = self.open.as_mut().filter(|open| open.round == round) else {
            return Err(not_offered);
        };
        let place = open.heard.get_mut(&partner).ok_or(not_offered)?;
        *place = Some(hear(message, self.values, &open.sent)?);
        Ok(())
    }

    fn settle(&mut self, plan: &RoundPlan, merged: &[NodeId], model: &mut [f32]) -> Result<(), MethodError> {
        let round = plan.round;
        check_length(model, self.parameters)?;
        let open = self.open.as_ref().filter(|open| open.round == round);
        let heard: Vec<&[f32]> = merged
            .iter()
            .map(|&partner| {
                let heard = open.and_then(|open| open.heard.get(&partner)?.as_deref());
                heard.ok_or(MethodError::NotAccepted { round, partner })
            })
            .collect::<Result<_, _>>()?;
        let weight = mixing_weight(plan);
        if let Some(open) = open {
            for heard in heard {
                for ((x, heard), sent) in model.iter_mut().zip(heard).zip(&open.sent) {
                    *x += weight * (heard - sent);
                }
            }
        }
        self.open = None;
        Ok(())
    }

    fn state(&self) -> Vec<(String, &[f32])> {
        Vec::new()
    }

    fn restore(&mut self, _state: Vec<(String, Vec<f32>)>) -> Result<(), MethodError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::*;
    use lapwing_base::{Algorithm, Values};

    /// One round of the published update in plain `f64`: the mean of three on a ring, without the edges in `cut`.
    fn reference(models: &[Vec<f64>], cut: &[[usize; 2]]) -> Vec<Vec<f64>> {
        let n = models.len();
        let dimensions = models[0].len();
        let mut w = vec![vec![0.0; n]; n];
        for edge in ring_edges(n).iter().filter(|edge| !cut.contains(edge)) {
            let [a, b] = *edge;
            (w[a][b], w[b][a]) = (1.0 / 3.0, 1.0 / 3.0);
        }
        for (node, row) in w.iter_mut().enumerate() {
            row[node] = 1.0 - row.iter().sum::<f64>();
        }
        (0..n)
            .map(|i| {
                (0..dimensions)
                    .map(|d| (0..n).map(|j| w[i][j] * models[j][d]).sum())
                    .collect()
            })
            .collect()
    }

    #[test]
    fn a_round_multiplies_the_models_by_the_weights_of_the_ring_whatever_was_lost() {
        let mut world = World::new(Algorithm::DPsgd, Values::F32, 5, 6);
        let mut expected = world.models_f64();
        for round in 1..=12 {
            let cut: Vec<[usize; 2]> = if round % 3 == 0 { vec![[1, 2]] } else { vec![] };
            world.train(round);
            train_f64(&mut expected, round);
            world.exchange(&ring_plan(round, 5, 1), &cut);
            expected = reference(&expected, &cut);
            assert_close(&world.models, &expected, 1e-5);
        }
    }

    #[test]
    fn coarse_values_keep_the_mean_of_all() {
        for kind in Values::ALL {
            let mut world = World::new(Algorithm::DPsgd, kind, 6, 300);
            world.train(1);
            let before = world.mean();
            for round in 1..=20 {
                world.exchange(&ring_plan(round, 6, 1), &[[0, 1]]);
            }
            assert_close(&[to_f32(&world.mean())], &[before], 1e-4);
            assert!(world.disagreement() < 0.02, "{kind}: {}", world.disagreement());
        }
    }

    #[test]
    fn what_cannot_be_trusted_is_refused_and_changes_nothing() {
        refuses_what_it_should(Algorithm::DPsgd, ring_plan(1, 5, 1));
    }

    #[test]
    fn training_that_goes_on_during_the_exchange_is_kept() {
        training_meanwhile_is_kept(Algorithm::DPsgd, ring_plan(1, 5, 1));
    }
}
