//! What openraft is told about our nouns.
//!
//! At most one leader in a term: `leader_id_std`, not openraft's default that allows several.

use lapwing_base::{Multiaddr, NodeId, PeerId};
use openraft::alias;
use serde::{Deserialize, Serialize};

use super::state_machine::StateMachine;
use crate::{Applied, Request};

openraft::declare_raft_types!(
    /// Our types in openraft's places.
    pub(crate) TypeConfig:
        D = Request,
        R = Applied,
        NodeId = u64,
        Node = RaftNode,
        Term = u64,
        LeaderId = openraft::impls::leader_id_std::LeaderId<Self::Term, Self::NodeId>,
);

pub(crate) type Raft = openraft::Raft<TypeConfig, StateMachine>;
pub(crate) type Entry = alias::EntryOf<TypeConfig>;
pub(crate) type LogId = alias::LogIdOf<TypeConfig>;
pub(crate) type Vote = alias::VoteOf<TypeConfig>;
pub(crate) type StoredMembership = alias::StoredMembershipOf<TypeConfig>;
pub(crate) type SnapshotMeta = alias::SnapshotMetaOf<TypeConfig>;

/// How raft's membership names a node: enough to reach it before the entry that made it a member is applied.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub(crate) struct RaftNode {
    /// `None` only in openraft's own tests.
    pub(crate) peer: Option<PeerId>,
    /// Where it listened when it became a learner; the roster knows newer ones.
    pub(crate) addrs: Vec<Multiaddr>,
}

pub(crate) fn raft_id(id: NodeId) -> u64 {
    id.0
}
