//! One node's side of an algorithm: what it tells others in a round, and what it makes of what they tell.
//!
//! Pure: no clock, no socket, no partner is found and nothing is trained here. Whether an exchange counts, the log
//! says; until then what was accepted is only kept. The driver and the simulation feed the same methods, so that what
//! was simulated is what will run.

use crate::merge::MergeError;
use crate::quantise::DecodeError;
use lapwing_base::{Algorithm, Garbage, JobSpec, NodeId, Round, RoundPlan};
use std::collections::BTreeMap;
use std::fmt::Debug;

mod all_reduce;
pub(crate) mod averaging;
mod choco_sgd;
#[cfg(feature = "driver")]
pub(crate) mod contribution;
mod copies;
mod d_psgd;
mod dcd_psgd;
mod diloco;
mod fed_avg;
#[cfg(test)]
pub(crate) mod fixture;
#[cfg(feature = "driver")]
mod methods;
mod noloco;
mod slow_momentum;
mod sparse;
mod values;

#[cfg(feature = "driver")]
pub(crate) use self::methods::Methods;

use self::all_reduce::AllReduce;
use self::averaging::Averaging;
use self::choco_sgd::ChocoSgd;
use self::d_psgd::DPsgd;
use self::dcd_psgd::DcdPsgd;
use self::diloco::DiLoCo;
use self::fed_avg::FedAvg;
use self::noloco::NoLoCo;
use self::slow_momentum::SlowMomentum;

/// An algorithm on one node, with what it keeps beside the model.
#[derive(Debug)]
pub enum Method {
    /// Partners tell each other something, and each moves its own model.
    Gossip(Box<dyn Gossip>),
    /// All give a vector, and all get the mean.
    Collective(Box<dyn Collective>),
    /// Nothing is told.
    Local,
}

/// What is told from partner to partner.
///
/// In each round: local steps, [`offer`](Self::offer) to each partner, [`accept`](Self::accept) of what each of them
/// told, and once the log has the outcome, [`settle`](Self::settle) with the partners whose exchange counts. Both ends
/// of an exchange see the same outcome, so what a method keeps about a partner is changed when settling, and never
/// before. An offer that is not settled is forgotten with the next one.
pub trait Gossip: Debug + Send {
    /// Writes what `partner` is told into `message`, whatever was in it. `model` is the model after the local steps, the
    /// same for all partners of a round.
    ///
    /// # Errors
    ///
    /// When the plan does not fit this job.
    fn offer(
        &mut self,
        plan: &RoundPlan,
        partner: NodeId,
        model: &[f32],
        message: &mut Vec<u8>,
    ) -> Result<(), MethodError>;

    /// The most bytes that a partner may tell in this round: own knowledge, never the partner's word.
    fn message_bytes_max(&self, plan: &RoundPlan) -> usize;

    /// Takes what a partner told, if it can be merged.
    ///
    /// # Errors
    ///
    /// When nothing was offered to that partner in this round, or the message is damaged, of another plan, or not to
    /// be trusted; then it is as if it had not arrived.
    fn accept(&mut self, plan: &RoundPlan, partner: NodeId, message: &[u8]) -> Result<(), MethodError>;

    /// Ends the round: moves `model`, which may have been trained on since the offer, by what the partners in `merged`
    /// told. All of them were accepted.
    ///
    /// # Errors
    ///
    /// When one of them was not accepted; then nothing is changed.
    fn settle(&mut self, plan: &RoundPlan, merged: &[NodeId], model: &mut [f32]) -> Result<(), MethodError>;

    /// What must be kept over a restart beside the model, each vector with a name of its own.
    fn state(&self) -> Vec<(String, &[f32])>;

    /// Goes on from what [`state`](Self::state) gave.
    ///
    /// # Errors
    ///
    /// When a vector is missing, or of another length.
    fn restore(&mut self, state: Vec<(String, Vec<f32>)>) -> Result<(), MethodError>;
}

/// What is averaged over all who take part.
///
/// In each round: [`begin`](Self::begin), the local work, [`contribute`](Self::contribute), and once the mean is here
/// and the log has the outcome, [`settle`](Self::settle). In a round that does not count the mean is left out: the next
/// one begins with the model as it is.
pub trait Collective: Debug + Send {
    /// What a node computes before it contributes.
    fn work(&self) -> Work;

    /// Takes note of the model from which the local work of a round starts.
    fn begin(&mut self, plan: &RoundPlan, model: &[f32]);

    /// Writes what this node adds to the mean into `vector`, whatever was in it: for all nodes of a round equally
    /// long. Returns its weight in the mean.
    ///
    /// # Errors
    ///
    /// When the round was not begun.
    fn contribute(
        &mut self,
        plan: &RoundPlan,
        done: Done<'_>,
        vector: &mut Vec<f32>,
    ) -> Result<u64, MethodError>;

    /// Values of what a node adds in this round, and so of the mean.
    fn length(&self, plan: &RoundPlan) -> usize;

    /// Ends the round with the mean of what all contributed.
    ///
    /// # Errors
    ///
    /// When the mean is of another length, or not finite; then nothing is changed.
    fn settle(&mut self, plan: &RoundPlan, mean: &[f32], model: &mut [f32]) -> Result<Learnt, MethodError>;

    /// As [`Gossip::state`].
    fn state(&self) -> Vec<(String, &[f32])>;

    /// As [`Gossip::restore`].
    ///
    /// # Errors
    ///
    /// When a vector is missing, or of another length.
    fn restore(&mut self, state: Vec<(String, Vec<f32>)>) -> Result<(), MethodError>;
}

/// What a node computes in a round.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Work {
    /// The plan's local steps.
    Steps,
    /// The gradient of one batch, without a step.
    Gradient,
}

/// The result of a round's local work.
#[derive(Clone, Copy, Debug)]
pub struct Done<'a> {
    /// The model after it.
    pub model: &'a [f32],
    /// The gradient, where the work is [`Work::Gradient`]; otherwise empty.
    pub gradient: &'a [f32],
    /// Samples of this node's part of the data.
    pub samples: u64,
}

/// What a mean was to a model.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Learnt {
    /// The model was changed.
    Model,
    /// The mean is a gradient: the backend takes a step down it.
    Gradient,
}

/// Why a method did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum MethodError {
    /// Something came of a round or partner that nothing was offered to.
    #[error("nothing was offered to node {partner} in round {round}")]
    NotOffered {
        /// The round.
        round: Round,
        /// The partner.
        partner: NodeId,
    },
    /// Something is to come of a round that was not begun here.
    #[error("round {round} was not begun")]
    NotBegun {
        /// The round.
        round: Round,
    },
    /// What a partner told is to be merged, and is not here.
    #[error("nothing of node {partner} was accepted in round {round}")]
    NotAccepted {
        /// The round.
        round: Round,
        /// The partner.
        partner: NodeId,
    },
    /// A vector of another model.
    #[error("a vector of {given} values is not one of {expected}")]
    Length {
        /// Its length.
        given: usize,
        /// What was expected.
        expected: usize,
    },
    /// A message that no partner with the same plan would send.
    #[error("the message is not one of this round: {why}")]
    Malformed {
        /// What is wrong.
        why: &'static str,
    },
    /// A change of a copy that is not here, since one of two has lost what both had; the next round mends it.
    #[error("node {partner} tells a change of a copy that is not here")]
    OutOfStep {
        /// The partner.
        partner: NodeId,
    },
    /// A checkpoint of another algorithm.
    #[error("the checkpoint has no `{name}`; it is of another algorithm or version")]
    NoState {
        /// What is missing.
        name: &'static str,
    },
    /// Its values cannot be read.
    #[error("the values cannot be decoded")]
    Decode(#[from] DecodeError),
    /// Its values cannot be merged.
    #[error("the values cannot be merged")]
    Merge(#[from] MergeError),
}

impl MethodError {
    /// What is wrong with a partner's message that was not accepted, where that is the partner's doing; `None` where
    /// nothing was expected of it.
    pub fn garbage(&self) -> Option<Garbage> {
        match self {
            Self::NotOffered { .. }
            | Self::NotBegun { .. }
            | Self::NotAccepted { .. }
            | Self::OutOfStep { .. }
            | Self::NoState { .. } => None,
            Self::Length { .. }
            | Self::Malformed { .. }
            | Self::Decode(DecodeError::Length { .. })
            | Self::Merge(MergeError::Length { .. } | MergeError::Model { .. }) => Some(Garbage::Malformed),
            Self::Decode(DecodeError::NotFinite { .. }) | Self::Merge(MergeError::NotFinite { .. }) => {
                Some(Garbage::NotFinite)
            }
            Self::Merge(MergeError::TooLarge { .. }) => Some(Garbage::TooLarge),
        }
    }
}

/// The method of a job's rounds that train, on a node whose model is now `model`, which all nodes of the job have.
///
/// A node that joins later makes it with the model that it took from a peer. Methods in pairs and on a ring go on from
/// that; those of [`Meeting::All`](lapwing_base::Meeting::All) need the peer's [`state`](Collective::state) too.
pub fn method(spec: &JobSpec, model: &[f32]) -> Method {
    match spec.algorithm {
        Algorithm::Default if spec.tuning.slow_momentum_micro > 0 && !spec.tuning.clip => {
            Method::Gossip(Box::new(SlowMomentum::new(spec, model)))
        }
        Algorithm::Default | Algorithm::Saps => Method::Gossip(Box::new(Averaging::new(spec, model.len()))),
        Algorithm::DPsgd => Method::Gossip(Box::new(DPsgd::new(spec, model.len()))),
        Algorithm::DcdPsgd => Method::Gossip(Box::new(DcdPsgd::new(spec, model))),
        Algorithm::ChocoSgd => Method::Gossip(Box::new(ChocoSgd::new(spec, model))),
        Algorithm::NoLoCo => Method::Gossip(Box::new(NoLoCo::new(spec, model))),
        Algorithm::DiLoCo => Method::Collective(Box::new(DiLoCo::new(spec, model))),
        Algorithm::FedAvg | Algorithm::SFedAvg => Method::Collective(Box::new(FedAvg::new(spec, model))),
        Algorithm::AllReduce => Method::Collective(Box::new(AllReduce::new(model.len()))),
        Algorithm::Local => Method::Local,
    }
}

/// The weight of a neighbour in a round in which everybody has as many: one share of as many as meet, so a third on a
/// ring and a half in a pair. Of the plan alone, so that both ends of an edge have the same.
fn mixing_weight(plan: &RoundPlan) -> f32 {
    let mut degrees = BTreeMap::<NodeId, u16>::new();
    for node in plan.pairs.iter().flat_map(|pair| pair.nodes()) {
        let degree = degrees.entry(node).or_default();
        *degree = degree.saturating_add(1);
    }
    let most = degrees.values().max().copied().unwrap_or_default();
    1.0 / (1.0 + f32::from(most))
}

#[cfg(test)]
mod tests {
    use super::fixture::{pairs_plan, ring_plan, spec};
    use super::*;
    use lapwing_base::{Meeting, Values};

    #[test]
    fn every_algorithm_has_the_kind_of_method_that_its_meetings_need() {
        for algorithm in Algorithm::ALL {
            let method = method(&spec(algorithm, Values::F32), &[0.0; 10]);
            let fits = match algorithm.meeting() {
                Meeting::Pairs | Meeting::Ring => matches!(method, Method::Gossip(_)),
                Meeting::All | Meeting::Server => matches!(method, Method::Collective(_)),
                Meeting::Nobody => matches!(method, Method::Local),
            };
            assert!(fits, "{algorithm}: {method:?}");
        }
    }

    #[test]
    fn neighbours_have_a_third_on_a_ring_and_a_half_in_a_pair() {
        assert_eq!(mixing_weight(&ring_plan(1, 5, 1)), 1.0 / 3.0);
        assert_eq!(mixing_weight(&pairs_plan(1, 5, 1)), 0.5);
    }
}
