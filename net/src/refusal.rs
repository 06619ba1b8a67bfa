//! What a node answers in place of a first frame when it does not take a channel.

use crate::VERSION;
use lapwing_base::{ByteSize, ClusterId};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Why a peer did not take a channel. `theirs` is the refusing peer's, as the opener sees it.
///
/// The text says what the opener can do.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub enum Refusal {
    /// The opener named another cluster, or none.
    WrongCluster {
        /// The cluster that the refusing peer belongs to.
        theirs: Option<ClusterId>,
    },
    /// The opener is not in the refusing peer's roster.
    NotMember,
    /// The peers speak different versions.
    Version {
        /// The version that the refusing peer speaks.
        theirs: u16,
    },
    /// A frame is longer than the refusing peer accepts.
    TooLong {
        /// The length that was announced.
        size: ByteSize,
        /// The longest that is accepted.
        max: ByteSize,
    },
    /// The refusing peer has as much of this kind in hand as it takes.
    Busy,
    /// The refusing peer knows no such kind.
    NotServed,
}

impl Refusal {
    /// Whether the same request may succeed a little later without anybody doing anything.
    pub const fn is_transient(&self) -> bool {
        matches!(self, Self::Busy)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WrongCluster { theirs: Some(theirs) } => write!(
                f,
                "it belongs to cluster {theirs}; check the gateway and the data directory of this node"
            ),
            Self::WrongCluster { theirs: None } => {
                f.write_str("it belongs to no cluster yet; try again once it has joined")
            }
            Self::NotMember => {
                f.write_str("this node is not a member of its cluster; join the cluster first")
            }
            Self::Version { theirs } => write!(
                f,
                "it speaks version {theirs} of the protocol and this node version {VERSION}; \
                 upgrade the older of the two"
            ),
            Self::TooLong { size, max } => write!(
                f,
                "a message of {size} is longer than the {max} that it takes; send less at once"
            ),
            Self::Busy => f.write_str("it has too many requests of this kind in hand; try again later"),
            Self::NotServed => {
                f.write_str("it does not serve this kind of request; ask another node, or upgrade it")
            }
        }
    }
}
