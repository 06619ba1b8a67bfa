//! Averaging by halves over a mask: SAPS, as published, what [`SlowMomentum`](super::slow_momentum::SlowMomentum) goes on
//! from, and every dense round.
//!
//! Tang et al., "Communication-Efficient Decentralized Learning with Sparsification and Adaptive Peer Selection" (ICDCS
//! 2020, arXiv 2002.09692), Algorithm 2. Values are merged against what the partner decoded, so that a pair's mean
//! stays what it was.

use super::values::{check_length, told_len};
use super::{Gossip, MethodError};
use crate::guard::Clip;
use crate::mask::Mask;
use crate::merge;
use crate::quantise::Encoded;
use bytes::Bytes;
use lapwing_base::{Algorithm, JobSpec, NodeId, Round, RoundPlan, Values};

/// What one node offers and takes: `x_i += (Q(x_j) - Q(x_i)) / 2` on the round's mask, with `Q` the job's encoding and
/// `j` the partner. With the job's `clip`, only as far as [`Clip`] goes.
///
/// Kept over a restart: nothing, or with `clip` some distances. During a round: what was sent and received, each as long
/// as the mask, and the mask.
#[derive(Debug)]
pub(crate) struct Averaging {
    seed: u64,
    algorithm: Algorithm,
    values: Values,
    parameters: usize,
    clip: Option<Clip>,
    exchange: Option<Exchange>,
    /// The memory of what was sent last, for what is sent next.
    spare: Vec<u8>,
}

/// What was offered to the partner and, once it is here, what came back.
#[derive(Debug)]
struct Exchange {
    round: Round,
    partner: NodeId,
    mask: Mask,
    /// As the partner decodes it.
    sent: Encoded,
    received: Option<Encoded>,
}

impl Averaging {
    /// For a model of so many parameters.
    pub(crate) fn new(spec: &JobSpec, parameters: usize) -> Self {
        Self {
            seed: spec.seed,
            algorithm: spec.algorithm,
            values: spec.values,
            parameters,
            clip: spec.tuning.clip.then(Clip::default),
            exchange: None,
            spare: Vec::new(),
        }
    }

    fn mask(&self, plan: &RoundPlan) -> Mask {
        Mask::of(self.seed, self.algorithm, plan, self.parameters)
    }

    fn merge(
        &mut self,
        model: &mut [f32],
        mask: &Mask,
        sent: &Encoded,
        received: &Encoded,
    ) -> Result<(), MethodError> {
        let Some(clip) = &mut self.clip else {
            return Ok(merge::merge_encoded(model, mask, sent, received)?);
        };
        let distance = merge::distance(sent, received);
        let typical = (distance / (mask.len().max(1) as f64).sqrt()) as f32;
        let share = clip.share(typical);
        clip.note(typical);
        if share < 1.0 {
            merge::merge_clipped(model, mask, sent, received, f64::from(share) * distance)?;
        } else {
            merge::merge_encoded(model, mask, sent, received)?;
        }
        Ok(())
    }

    /// [`settle`](Gossip::settle); returns the mask where something was merged.
    pub(super) fn merge_on_mask(
        &mut self,
        plan: &RoundPlan,
        merged: &[NodeId],
        model: &mut [f32],
    ) -> Result<Option<Mask>, MethodError> {
        let round = plan.round;
        check_length(model, self.parameters)?;
        let is_here = |exchange: &&Exchange| exchange.round == round && exchange.received.is_some();
        let here = self.exchange.as_ref().filter(is_here);
        if let Some(&partner) = merged
            .iter()
            .find(|&&partner| here.is_none_or(|here| here.partner != partner))
        {
            return Err(MethodError::NotAccepted { round, partner });
        }
        let Some(exchange) = self.exchange.take() else {
            return Ok(None);
        };
        let Exchange {
            mask, sent, received, ..
        } = exchange;
        let received = received.filter(|_| !merged.is_empty());
        if let Some(received) = &received {
            self.merge(model, &mask, &sent, received)?;
        }
        self.spare = sent.into_buffer();
        Ok(received.map(|_| mask))
    }
}

impl Gossip for Averaging {
    fn offer(
        &mut self,
        plan: &RoundPlan,
        partner: NodeId,
        model: &[f32],
        message: &mut Vec<u8>,
    ) -> Result<(), MethodError> {
        check_length(model, self.parameters)?;
        let mask = self.mask(plan);
        let sent = Encoded::of(model, &mask, self.values, std::mem::take(&mut self.spare))?;
        message.clear();
        message.extend_from_slice(&sent.bytes());
        self.exchange = Some(Exchange {
            round: plan.round,
            partner,
            mask,
            sent,
            received: None,
        });
        Ok(())
    }

    fn message_bytes_max(&self, plan: &RoundPlan) -> usize {
        told_len(self.mask(plan).len(), self.values)
    }

    fn accept(&mut self, plan: &RoundPlan, partner: NodeId, message: &[u8]) -> Result<(), MethodError> {
        let round = plan.round;
        let exchange = self
            .exchange
            .as_mut()
            .filter(|exchange| (exchange.round, exchange.partner) == (round, partner))
            .ok_or(MethodError::NotOffered { round, partner })?;
        let received = Encoded::parse(Bytes::copy_from_slice(message), self.values, exchange.mask.len())?;
        merge::check_encoded(&exchange.mask, &exchange.sent, &received)?;
        exchange.received = Some(received);
        Ok(())
    }

    fn settle(&mut self, plan: &RoundPlan, merged: &[NodeId], model: &mut [f32]) -> Result<(), MethodError> {
        self.merge_on_mask(plan, merged, model).map(|_| ())
    }

    fn state(&self) -> Vec<(String, &[f32])> {
        let seen = self.clip.iter().map(|clip| (SEEN.to_owned(), clip.seen()));
        seen.collect()
    }

    fn restore(&mut self, state: Vec<(String, Vec<f32>)>) -> Result<(), MethodError> {
        if self.clip.is_some() {
            let seen = state.into_iter().find(|(name, _)| name == SEEN);
            let clip = seen.and_then(|(_, seen)| Clip::restored(seen));
            self.clip = Some(clip.ok_or(MethodError::NoState { name: SEEN })?);
        }
        self.exchange = None;
        Ok(())
    }
}

/// The name of the distances in a checkpoint.
const SEEN: &str = "distances";

#[cfg(test)]
mod tests {
    use super::super::fixture::*;
    use crate::mask::Mask;
    use lapwing_base::{Algorithm, RoundKind, RoundPlan, Values};

    /// One round of the published update in plain `f64`: `X' = X o (1 - M) + (X o M) W`.
    fn reference(models: &mut [Vec<f64>], mask: &[usize], pairs: &[[usize; 2]]) {
        for &[a, b] in pairs {
            for &d in mask {
                let mean = (models[a][d] + models[b][d]) / 2.0;
                (models[a][d], models[b][d]) = (mean, mean);
            }
        }
    }

    fn places(algorithm: Algorithm, plan: &RoundPlan, n: usize) -> Vec<usize> {
        let mask = Mask::of(1, algorithm, plan, n);
        mask.coordinates().map(|index| index as usize).collect()
    }

    #[test]
    fn rounds_are_those_of_the_paper_under_either_mask_and_whatever_was_lost() {
        for algorithm in [Algorithm::Default, Algorithm::Saps] {
            let mut world = World::of(without_momentum(algorithm, Values::F32), 5, 60);
            let mut expected = world.models_f64();
            for round in 1..=30 {
                let mut plan = pairs_plan(round, 5, 5);
                if round > 25 {
                    (plan.kind, plan.compression) = (RoundKind::Dense, 1);
                }
                world.train(round);
                train_f64(&mut expected, round);
                let merged = world.exchange(&plan, &lossy(round, 5));
                reference(&mut expected, &places(algorithm, &plan, 60), &merged);
                assert_close(&world.models, &expected, 1e-5);
            }
        }
    }

    #[test]
    fn coarse_values_keep_the_mean_of_all_and_bring_them_together() {
        for kind in [Values::F16, Values::Int8] {
            let mut world = World::of(without_momentum(Algorithm::Default, kind), 6, 300);
            world.train(1);
            let before = (world.mean(), world.disagreement());
            for round in 1..=60 {
                world.exchange(&pairs_plan(round, 6, 4), &lossy(round, 6));
            }
            assert_close(&[to_f32(&world.mean())], &[before.0], 1e-5);
            assert!(
                world.disagreement() < 0.1 * before.1,
                "{kind}: {}",
                world.disagreement()
            );
        }
    }

    #[test]
    fn what_cannot_be_trusted_is_refused_and_changes_nothing() {
        refuses_what_it_should(Algorithm::Saps, pairs_plan(1, 5, 4));
    }

    #[test]
    fn training_that_goes_on_during_the_exchange_is_kept() {
        training_meanwhile_is_kept(Algorithm::Saps, pairs_plan(1, 5, 4));
    }

    /// How far the mean of eight honest nodes is drawn away by a ninth, whose model is always the same nonsense.
    fn drawn_away(clip: bool) -> f64 {
        let mut spec = without_momentum(Algorithm::Default, Values::F32);
        spec.tuning.clip = clip;
        let [mut honest, mut poisoned] = [0, 1].map(|_| World::of(spec.clone(), 9, 40));
        let (mut sum, rounds) = (0.0, 100);
        for round in 1..=rounds {
            for world in [&mut honest, &mut poisoned] {
                world.train(round);
            }
            poisoned.models[8] = vec![20.0; 40];
            let pairs = drawn_pairs(round, 9);
            let plan = pairs_plan(round, 9, 2);
            poisoned.exchange(&plan, &[]);
            // In the world without it, nobody meets it.
            let cut: Vec<[usize; 2]> = pairs.into_iter().filter(|pair| pair.contains(&8)).collect();
            honest.exchange(&plan, &cut);
            if round > rounds / 2 {
                let honest = honest.models[..8].iter().flatten();
                let apart = honest
                    .zip(poisoned.models[..8].iter().flatten())
                    .map(|(a, b)| f64::from(a - b).powi(2));
                sum += (apart.sum::<f64>() / (8.0 * 40.0)).sqrt();
            }
        }
        sum / (rounds / 2) as f64
    }

    #[test]
    fn a_clipped_merge_holds_against_a_poisoned_node_and_a_plain_one_does_not() {
        let (plain, clipped) = (drawn_away(false), drawn_away(true));
        // What honest nodes' data pull apart is of the order of one half.
        assert!(plain > 2.0, "{plain}");
        assert!(clipped < 0.3, "{clipped}");
    }

    #[test]
    fn among_honest_nodes_a_clipped_merge_ends_where_a_plain_one_does() {
        let ends = [false, true].map(|clip| {
            let mut spec = without_momentum(Algorithm::Default, Values::Int8);
            spec.tuning.clip = clip;
            let mut world = World::of(spec, 8, 200);
            for round in 1..=60 {
                world.train(round);
                world.exchange(&pairs_plan(round, 8, 4), &lossy(round, 8));
            }
            (world.mean(), world.disagreement())
        });
        let [(plain, apart), (clipped, apart_clipped)] = ends;
        let squares = plain
            .iter()
            .zip(&clipped)
            .map(|(a, b)| (a - b).powi(2))
            .sum::<f64>();
        assert!((squares / 200.0).sqrt() < 0.02, "{squares}");
        assert!(apart_clipped < 1.05 * apart, "{apart_clipped}, not {apart}");
    }

    #[test]
    fn the_distances_seen_are_kept_over_a_restart() {
        let mut spec = without_momentum(Algorithm::Default, Values::Int8);
        spec.tuning.clip = true;
        let [mut steady, mut restarted] = [0, 1].map(|_| World::of(spec.clone(), 5, 30));
        for round in 1..=15 {
            for world in [&mut steady, &mut restarted] {
                world.train(round);
                world.models[4] = vec![3.0; 30];
                world.exchange(&pairs_plan(round, 5, 4), &lossy(round, 5));
            }
            restarted.restart(round as usize % 5);
        }
        assert_eq!(steady.models, restarted.models);
        assert!(steady.nodes[0].restore(Vec::new()).is_err());
    }
}
