//! The messages between members: their kinds, bounds and frames.
//!
//! Each frame names the member that it is meant for. A peer that lost its disk comes back under a new number
//! with the same identity; frames for its old number must not reach it, since it has none of the log that
//! they build on.

use lapwing_base::{ByteSize, Class, ClusterId, Multiaddr, NodeId, PeerId};
use lapwing_net::{Access, Kind};
use openraft::raft::{
    AppendEntriesRequest, StreamAppendResult, TransferLeaderRequest, TransferLeaderResponse, VoteRequest,
    VoteResponse,
};
use serde::{Deserialize, Serialize};

use super::types::{LogId, SnapshotMeta, TypeConfig, Vote};
use crate::{Applied, JoinAccepted, JoinRequest, Request, RequestId};

/// Entries for one follower, in order, answered in order. A frame holds at most what
/// `LogStore::limited_get_log_entries` reads.
pub(crate) const APPEND: Kind = members(Class::Consensus, "append", ByteSize::mib(4));

/// Signs of life, on a stream of their own, so that no batch of entries is before them.
pub(crate) const HEARTBEAT: Kind = members(Class::Consensus, "heartbeat", ByteSize::kib(64));

/// Votes, pre-votes and handing over the lead.
pub(crate) const VOTE: Kind = members(Class::Consensus, "vote", ByteSize::kib(64));

/// One snapshot in chunks.
pub(crate) const SNAPSHOT: Kind = members(Class::Maintenance, "snapshot", ByteSize::kib(256));

/// What the leader is asked for: proposals and read indices.
pub(crate) const LEADER: Kind = members(Class::Control, "leader", ByteSize::kib(512));

/// Wishes to become a member; the answer lists all members with their addresses.
pub(crate) const JOIN: Kind = Kind {
    class: Class::Control,
    name: "join",
    access: Access::Anyone,
    frame_max: ByteSize::mib(1),
};

/// Bytes in one chunk of a snapshot: below the frame's bound, with the length in front.
pub(crate) const CHUNK_SIZE: usize = 128 * 1024;

const fn members(class: Class, name: &'static str, frame_max: ByteSize) -> Kind {
    Kind {
        class,
        name,
        access: Access::Members,
        frame_max,
    }
}

/// A frame for one member.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct To<T> {
    pub(crate) to: u64,
    pub(crate) body: T,
}

/// The answer to a frame.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Reply<T> {
    Done(T),
    /// The frame was for another member; this one has this number.
    NotMe(u64),
    /// The answering node could not; it says why.
    Failed(String),
}

pub(crate) type Append = AppendEntriesRequest<TypeConfig>;
pub(crate) type Appended = StreamAppendResult<TypeConfig>;

/// What travels on [`VOTE`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Ballot {
    Vote(VoteRequest<TypeConfig>),
    PreVote(VoteRequest<TypeConfig>),
    TransferLeader(TransferLeaderRequest<TypeConfig>),
}

/// The answer to a [`Ballot`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum BallotAnswer {
    Vote(VoteResponse<TypeConfig>),
    TransferLeader(TransferLeaderResponse<TypeConfig>),
}

/// The first frame of a snapshot; its bytes follow in chunks.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SnapshotHeader {
    pub(crate) vote: Vote,
    pub(crate) meta: SnapshotMeta,
    pub(crate) size: u64,
}

/// What travels on [`LEADER`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Ask {
    Propose {
        request: Request,
        /// How long the asking node waits for it.
        wait_ms: u32,
    },
    /// Up to where a read that begins now must see the log.
    ReadIndex,
    TransferLeader(NodeId),
}

/// The answer to an [`Ask`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Told {
    Applied(Applied),
    ReadIndex(Option<LogId>),
    Done,
    /// The asked node does not lead, or not any more; it says who might.
    NotLeader {
        leader: Option<(PeerId, Vec<Multiaddr>)>,
    },
    /// It leads, but its disk or its raft has failed.
    Failed(String),
}

/// A join request as it travels.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct JoinAttempt {
    /// The same for every member that is asked: a second answer gives the same number as a first one that
    /// was lost.
    pub(crate) id: RequestId,
    pub(crate) request: JoinRequest,
}

/// The answer to a join request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum JoinAnswer {
    Accepted(JoinAccepted),
    /// Ask the leader; `None` when the asked member knows none right now.
    NotLeader {
        leader: Option<(PeerId, Vec<Multiaddr>)>,
    },
    /// The number in `known` was a member's, and is no longer.
    Removed,
    WrongCluster(ClusterId),
    /// The founder waits for the gateway to confirm it.
    NotOpenYet,
    Refused(String),
}
