//! What one member's raft shows of itself.

use std::collections::BTreeSet;
use std::fmt;

use lapwing_base::{LogIndex, NodeId, Term};
use serde::Serialize;

/// Where a node stands in raft.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RaftState {
    /// Follows the log and does not vote.
    #[default]
    Learner,
    /// Votes, and follows a leader.
    Follower,
    /// Stands for election.
    Candidate,
    /// Leads.
    Leader,
    /// Has stopped.
    Stopped,
}

impl fmt::Display for RaftState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Learner => "learner",
            Self::Follower => "follower",
            Self::Candidate => "candidate",
            Self::Leader => "leader",
            Self::Stopped => "stopped",
        })
    }
}

/// One node's view of raft, as of now.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
pub struct RaftStatus {
    /// Where this node stands.
    pub state: RaftState,
    /// The newest term it knows.
    pub term: Term,
    /// The leader, while it is heard.
    pub leader: Option<NodeId>,
    /// Who votes.
    pub voters: BTreeSet<NodeId>,
    /// Who only follows the log.
    pub learners: BTreeSet<NodeId>,
    /// The newest entry on this node's disk.
    pub last_log: LogIndex,
    /// The newest entry that this node knows to be committed.
    pub committed: LogIndex,
    /// The newest entry that this node has applied.
    pub applied: LogIndex,
    /// Whether a majority answers: on the leader measured, elsewhere that there is a leader.
    pub quorum: bool,
    /// Why raft has stopped on this node, if it did by itself: its disk failed, or it is at fault.
    pub failure: Option<String>,
}
