//! What the log says of one round: its plan, what nodes report, and how it ended.

use crate::{ByteSize, JobId, LinkSpeed, NodeId, Round};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Two members that exchange in one round, the smaller number first.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
pub struct Pair(NodeId, NodeId);

impl Pair {
    /// The pair of two members, in either order; `None` when they are one.
    pub fn new(a: NodeId, b: NodeId) -> Option<Self> {
        (a != b).then(|| Self(a.min(b), a.max(b)))
    }

    /// Both members, the smaller number first.
    pub const fn nodes(self) -> [NodeId; 2] {
        [self.0, self.1]
    }

    /// The other of the two; `None` when `node` is neither.
    pub fn partner_of(self, node: NodeId) -> Option<NodeId> {
        match node {
            n if n == self.0 => Some(self.1),
            n if n == self.1 => Some(self.0),
            _ => None,
        }
    }
}

/// Whether a round trains, and what its pairs are for.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RoundKind {
    /// Local steps, then every pair exchanges what the job's algorithm tells partners.
    Sparse,
    /// No local steps; every coordinate. The last rounds of a job, which bring it to consensus.
    Dense,
    /// Everybody computes, then all learn the mean: the pairs are the links of one ring. It counts when all merged.
    Reduced,
    /// Those that a pair joins with this one compute, and it takes their mean.
    Served {
        /// Who averages.
        server: NodeId,
    },
}

impl RoundKind {
    /// What documents call it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sparse => "sparse",
            Self::Dense => "dense",
            Self::Reduced => "reduced",
            Self::Served { .. } => "served",
        }
    }
}

/// One round as the leader planned it; a pure function of the committed state before it.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct RoundPlan {
    /// The job.
    pub job: JobId,
    /// The round; one more than the round before.
    pub round: Round,
    /// What is exchanged.
    pub kind: RoundKind,
    /// The key of this round's mask and of the planner's draw: BLAKE3 of the job's seed and the round.
    pub seed: [u8; 32],
    /// Who exchanges with whom, sorted. Disjoint where partners are chosen anew; on a ring everybody is in two.
    pub pairs: Vec<Pair>,
    /// Members that train without a partner: disjoint from `pairs`, sorted.
    pub alone: Vec<NodeId>,
    /// One coordinate in `compression` is exchanged; 1 is all of them.
    pub compression: u32,
    /// Optimiser steps before the exchange.
    pub local_steps: u32,
    /// The learning rate in millionths.
    pub lr_micro: u32,
    /// How long the round may take from the moment its plan is applied.
    pub deadline_ms: u32,
}

impl RoundPlan {
    /// The partner that this plan gives a member; the first, where it gives several.
    pub fn partner_of(&self, node: NodeId) -> Option<NodeId> {
        self.pairs.iter().find_map(|pair| pair.partner_of(node))
    }

    /// Everybody whom this plan has a member exchange with, by number.
    pub fn partners_of(&self, node: NodeId) -> impl Iterator<Item = NodeId> + '_ {
        self.pairs.iter().filter_map(move |pair| pair.partner_of(node))
    }

    /// Everybody who takes part, with a partner or alone; once for each pair.
    pub fn participants(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.pairs
            .iter()
            .flat_map(|pair| pair.nodes())
            .chain(self.alone.iter().copied())
    }

    /// Names this exact plan. Partners compare it before they merge: two plans would mean two masks, and
    /// averaging under two masks corrupts both models silently.
    pub fn digest(&self) -> [u8; 32] {
        let bytes = postcard::to_stdvec(self).unwrap_or_default();
        debug_assert!(!bytes.is_empty(), "a plan of integers always encodes");
        *blake3::hash(&bytes).as_bytes()
    }

    /// How long the round may take.
    pub fn deadline(&self) -> Duration {
        Duration::from_millis(self.deadline_ms.into())
    }
}

/// What one node did in one round.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct NodeOutcome {
    /// Who.
    pub node: NodeId,
    /// Mean training loss of its local steps, in millionths.
    pub loss_micro: u32,
    /// Samples it trained on.
    pub samples: u32,
    /// `Model` payload it sent for the round's exchange.
    pub sent: ByteSize,
    /// `Model` payload it received for the round's exchange.
    pub received: ByteSize,
}

/// A node's message to the leader when it is done with its part of a round, or knows that its exchange failed.
///
/// Sent again until the round's outcome is applied: the leader that takes over needs it too.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct RoundReport {
    /// The job.
    pub job: JobId,
    /// The round.
    pub round: Round,
    /// The reporter's part.
    pub outcome: NodeOutcome,
    /// The partners whose values are here, whole, checked and on disk. Two that name each other merge.
    pub received: Vec<NodeId>,
    /// How long the local steps took.
    pub training_ms: u32,
    /// How long the exchange took.
    pub exchange_ms: u32,
    /// Bandwidths that this node measured since its last report.
    pub links: Vec<LinkSpeed>,
}

/// How a round ended. What is not in `merged` was merged by nobody.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct RoundOutcome {
    /// The job.
    pub job: JobId,
    /// The round.
    pub round: Round,
    /// The pairs in which both have what the other sent: sorted, a subset of the plan's.
    pub merged: Vec<Pair>,
    /// What the members that reported in time did, by number.
    pub nodes: Vec<NodeOutcome>,
    /// How long the round took on the leader's clock, from plan to close.
    pub took_ms: u32,
}

impl RoundOutcome {
    /// Whether this member's exchange counts.
    pub fn has_merged(&self, node: NodeId) -> bool {
        self.merged_with(node).next().is_some()
    }

    /// Everybody with whom a member has merged, by number.
    pub fn merged_with(&self, node: NodeId) -> impl Iterator<Item = NodeId> + '_ {
        self.merged.iter().filter_map(move |pair| pair.partner_of(node))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_is_the_same_in_either_order_and_never_of_one() {
        let (a, b) = (NodeId(1), NodeId(2));
        assert_eq!(Pair::new(a, b), Pair::new(b, a));
        assert_eq!(Pair::new(a, a), None);
        let pair = Pair::new(b, a).unwrap();
        assert_eq!(pair.partner_of(a), Some(b));
        assert_eq!(pair.partner_of(NodeId(3)), None);
    }

    #[test]
    fn any_change_of_a_plan_changes_its_digest() {
        let plan = RoundPlan {
            job: JobId(3),
            round: Round(1),
            kind: RoundKind::Sparse,
            seed: [7; 32],
            pairs: vec![Pair::new(NodeId(1), NodeId(2)).unwrap()],
            alone: vec![NodeId(3)],
            compression: 25,
            local_steps: 5,
            lr_micro: 100_000,
            deadline_ms: 1000,
        };
        let later = RoundPlan {
            round: Round(2),
            ..plan.clone()
        };
        assert_eq!(plan.digest(), plan.clone().digest());
        assert_ne!(plan.digest(), later.digest());
        assert_eq!(plan.partner_of(NodeId(2)), Some(NodeId(1)));
        assert_eq!(plan.partner_of(NodeId(3)), None);
        assert_eq!(plan.participants().count(), 3);
    }
}
