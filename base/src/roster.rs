//! The applied membership of a cluster as a value.

use crate::{ClusterId, LogIndex, Multiaddr, NodeId, PeerId, Term};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// What a node does for others, given by where it stands.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Publicly reachable: may vote and relay.
    Main,
    /// Only dials out.
    Home,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Main => "main",
            Self::Home => "home",
        })
    }
}

/// How the cluster sees a member, by its log.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MemberState {
    /// Its `Join` is committed; it has not been heard to follow the log yet.
    Joining,
    /// Follows the log.
    Active,
    /// Has not answered for a while; takes no part in rounds until it does.
    Suspected,
    /// Has announced that it goes.
    Leaving,
}

impl fmt::Display for MemberState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Joining => "joining",
            Self::Active => "active",
            Self::Suspected => "suspected",
            Self::Leaving => "leaving",
        })
    }
}

/// One member of a cluster.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Member {
    /// Its number in this cluster.
    pub id: NodeId,
    /// Its identity on the network.
    pub peer: PeerId,
    /// What people call it; at most [`Member::NAME_MAX`] bytes, not unique.
    pub name: String,
    /// Where it listens; at most [`Member::ADDRS_MAX`].
    pub addrs: Vec<Multiaddr>,
    /// Publicly reachable or not.
    pub role: Role,
    /// How the cluster sees it.
    pub state: MemberState,
}

impl Member {
    /// Longest name, in bytes: fits a host name.
    pub const NAME_MAX: usize = 64;
    /// Most addresses: a machine with two networks, two IP versions and two relays, twice.
    pub const ADDRS_MAX: usize = 16;
}

/// Who is a member in what role, as of one log entry.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Roster {
    /// The cluster.
    pub cluster: ClusterId,
    /// The log entry after which this holds; grows with every change.
    pub version: LogIndex,
    /// Every member, by its number.
    pub members: BTreeMap<NodeId, Member>,
    /// Those that vote; a subset of `members`.
    pub voters: BTreeSet<NodeId>,
    /// The leader as far as this node knows; advisory.
    pub leader: Option<NodeId>,
    /// The term of that knowledge.
    pub term: Term,
}

impl Roster {
    /// The member with this identity.
    pub fn by_peer(&self, peer: &PeerId) -> Option<&Member> {
        self.members.values().find(|member| member.peer == *peer)
    }

    /// The leader's record, when a leader is known.
    pub fn leader(&self) -> Option<&Member> {
        self.members.get(&self.leader?)
    }
}
