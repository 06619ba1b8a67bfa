//! What a peer says to become, or to come back as, a member, and what it is told.
//!
//! Only values. Asking is in `driver/join.rs`, answering in `driver/serve.rs`.

use lapwing_base::{ClusterId, Member, Multiaddr, NodeId, PeerId, Role, Term};
use serde::{Deserialize, Serialize};

/// A peer's wish to be a member.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct JoinRequest {
    /// Who asks. The member that serves the request takes it from the connection, never from here.
    pub peer: PeerId,
    /// What people call it.
    pub name: String,
    /// Where it listens now.
    pub addrs: Vec<Multiaddr>,
    /// Whether it is publicly reachable.
    pub role: Role,
    /// What its data directory says that it is: it restarts, announces its addresses and learns the roster.
    /// `None` is a peer without any state, which gets a new number even if its identity was a member's.
    pub known: Option<(NodeId, ClusterId)>,
}

/// What a new or returning member needs to begin.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct JoinAccepted {
    /// Its number.
    pub id: NodeId,
    /// The cluster.
    pub cluster: ClusterId,
    /// The leader's term.
    pub term: Term,
    /// Every member, itself included, by number.
    pub members: Vec<Member>,
    /// Who leads.
    pub leader: NodeId,
}
