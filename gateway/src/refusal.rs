//! Why the gateway says no under `/v1`, with the stable code that programs act on.

use lapwing_base::{ClusterId, PeerId, Term};

use crate::{HintError, Problem, RecordError, Superseded};

/// A refusal. Its message is for the person at the node; its [`code`](Self::code) never changes.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The signature is not that of the peer named in the message.
    #[error("the signature does not belong to the peer id in the message")]
    BadSignature,
    /// A field breaks a bound.
    #[error("`{field}` is invalid: {problem}")]
    InvalidField {
        /// Which.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The body is not the JSON that was expected.
    #[error("the body is not valid: {0}")]
    InvalidJson(String),
    /// The query is not one of this path.
    #[error("the query is not valid: {0}")]
    InvalidQuery(String),
    /// A newer message of the same node was seen.
    #[error("a message with incarnation {incarnation} and seq {seq} of this node was already seen")]
    Stale {
        /// The newest incarnation seen.
        incarnation: u64,
        /// The newest number seen in it.
        seq: u64,
    },
    /// The node belongs to another cluster than the gateway's.
    #[error("this gateway serves cluster {formed}, not {offered}")]
    ClusterMismatch {
        /// The gateway's.
        formed: ClusterId,
        /// The node's.
        offered: ClusterId,
    },
    /// Somebody else has got the claim.
    #[error("{0}; join the cluster instead")]
    Superseded(#[from] Superseded),
    /// The hint is older than what is known.
    #[error("the hint is of an older term than {known}")]
    StaleTerm {
        /// The known term.
        known: Term,
    },
    /// Two leaders for one term.
    #[error("term {term} is already led by {leader}")]
    LeaderConflict {
        /// The term.
        term: Term,
        /// The leader that stays.
        leader: PeerId,
    },
    /// The node must register first.
    #[error("this node is not registered in this incarnation")]
    NotRegistered,
    /// Only members say who leads.
    #[error("only a registered member of the confirmed cluster may say who leads")]
    NotMember,
    /// The registry is at its bound.
    #[error("the registry is full")]
    Full,
    /// The gateway could not write what it must not forget.
    #[error("the gateway could not write to its disk")]
    StorageFailed,
    /// The body is over its bound.
    #[error("the body is longer than {bytes_max} bytes")]
    TooLarge {
        /// The bound.
        bytes_max: usize,
    },
    /// The body is not declared as JSON.
    #[error("the content type must be application/json")]
    NotJson,
    /// The body did not arrive in time.
    #[error("the request did not arrive in time")]
    TooSlow,
    /// No such path.
    #[error("no such path")]
    NoSuchPath,
    /// Not with this method.
    #[error("this path does not answer to that method")]
    NoSuchMethod,
}

impl Refusal {
    /// The stable word for programs.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::BadSignature => "bad-signature",
            Self::InvalidField { .. } => "invalid-field",
            Self::InvalidJson(_) => "invalid-json",
            Self::InvalidQuery(_) => "invalid-query",
            Self::Stale { .. } => "stale-sequence",
            Self::ClusterMismatch { .. } => "cluster-mismatch",
            Self::Superseded(_) => "epoch-superseded",
            Self::StaleTerm { .. } => "stale-term",
            Self::LeaderConflict { .. } => "leader-conflict",
            Self::NotRegistered => "not-registered",
            Self::NotMember => "not-a-member",
            Self::Full => "registry-full",
            Self::StorageFailed => "storage-failed",
            Self::TooLarge { .. } => "body-too-large",
            Self::NotJson => "unsupported-media-type",
            Self::TooSlow => "request-timeout",
            Self::NoSuchPath => "not-found",
            Self::NoSuchMethod => "method-not-allowed",
        }
    }

    /// The HTTP status.
    pub const fn status(&self) -> u16 {
        match self {
            Self::InvalidJson(_) | Self::InvalidQuery(_) => 400,
            Self::NotRegistered | Self::NoSuchPath => 404,
            Self::NoSuchMethod => 405,
            Self::TooSlow => 408,
            Self::Stale { .. }
            | Self::ClusterMismatch { .. }
            | Self::Superseded(_)
            | Self::StaleTerm { .. }
            | Self::LeaderConflict { .. }
            | Self::NotMember => 409,
            Self::TooLarge { .. } => 413,
            Self::NotJson => 415,
            Self::BadSignature | Self::InvalidField { .. } => 422,
            Self::Full | Self::StorageFailed => 503,
        }
    }

    /// Whether the very same request may succeed later.
    pub const fn is_retryable(&self) -> bool {
        matches!(self, Self::Full | Self::StorageFailed | Self::TooSlow)
    }

    /// The RFC 9457 document.
    pub fn to_problem(&self) -> Problem {
        let mut problem = Problem {
            kind: format!("urn:lapwing:problem:{}", self.code()),
            title: self.code().replace('-', " "),
            status: self.status(),
            detail: self.to_string(),
            code: self.code().to_owned(),
            retryable: self.is_retryable(),
            field: None,
            incarnation: None,
            seq: None,
            epoch: None,
            term: None,
            cluster_id: None,
        };
        match self {
            Self::InvalidField { field, .. } => problem.field = Some((*field).to_owned()),
            Self::Stale { incarnation, seq } => {
                (problem.incarnation, problem.seq) = (Some(*incarnation), Some(*seq));
            }
            Self::ClusterMismatch { formed, .. } => problem.cluster_id = Some(*formed),
            Self::Superseded(superseded) => {
                (problem.epoch, problem.cluster_id) = (Some(superseded.epoch), superseded.cluster);
            }
            Self::StaleTerm { known: term } | Self::LeaderConflict { term, .. } => {
                problem.term = Some(*term);
            }
            Self::BadSignature
            | Self::InvalidJson(_)
            | Self::InvalidQuery(_)
            | Self::NotRegistered
            | Self::NotMember
            | Self::Full
            | Self::StorageFailed
            | Self::TooLarge { .. }
            | Self::NotJson
            | Self::TooSlow
            | Self::NoSuchPath
            | Self::NoSuchMethod => (),
        }
        problem
    }
}

impl From<RecordError> for Refusal {
    fn from(error: RecordError) -> Self {
        match error {
            RecordError::Stale { incarnation, seq } => Self::Stale { incarnation, seq },
            RecordError::Full => Self::Full,
            RecordError::NotRegistered => Self::NotRegistered,
        }
    }
}

impl From<HintError> for Refusal {
    fn from(error: HintError) -> Self {
        match error {
            HintError::Stale { known } => Self::StaleTerm { known },
            HintError::Conflict { known } => Self::LeaderConflict {
                term: known.term,
                leader: known.leader,
            },
        }
    }
}
