//! What the gateway answers under `/v1`: plain documents, the same types on both sides of the wire.

use std::time::Duration;

use lapwing_base::{ClusterId, Multiaddr, PeerId, Role, Term};
use serde::{Deserialize, Serialize};

use crate::{Lineage, Status, UnixTime};

/// Whether a cluster exists, as far as the gateway was told.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClusterState {
    /// No cluster and no claim.
    None,
    /// Somebody holds the claim to found one.
    Forming,
    /// There is one.
    Formed,
}

/// One node as the gateway knows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Who.
    pub peer_id: PeerId,
    /// Where it says that it listens.
    pub addrs: Vec<Multiaddr>,
    /// What people call it.
    pub name: String,
    /// What it offers.
    pub capabilities: Vec<String>,
    /// Publicly reachable or not.
    pub role: Role,
    /// How the gateway sees it.
    pub status: Status,
    /// The cluster it is a member of.
    pub cluster_id: Option<ClusterId>,
    /// The term in which it knows its leader.
    pub term: Option<Term>,
    /// Grows with every start of the node's process.
    pub incarnation: u64,
    /// When it was heard of last.
    pub last_seen: UnixTime,
    /// When it was first heard of.
    pub joined_at: UnixTime,
}

/// Who leads, as far as members have said. Ask the node it names; a follower redirects.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct LeaderHint {
    /// The leader.
    pub peer_id: PeerId,
    /// The term that elected it.
    pub term: Term,
    /// Where it listens; empty when it is not registered.
    pub addrs: Vec<Multiaddr>,
}

/// What the gateway knows of the cluster as a whole.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct ClusterSummary {
    /// The data directory's lineage.
    pub lineage: Lineage,
    /// Whether there is a cluster.
    pub cluster: ClusterState,
    /// Its id, once there is one.
    pub cluster_id: Option<ClusterId>,
    /// Registered nodes that say they are members.
    pub size: usize,
    /// Who leads.
    pub leader: Option<LeaderHint>,
    /// The leader's term.
    pub term: Option<Term>,
    /// The newest bootstrap grant's number.
    pub epoch: u64,
    /// Grows with every change of what the gateway would list.
    pub version: u64,
}

/// Whether a registration was news.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// The gateway did not know this node.
    Registered,
    /// It did.
    Renewed,
}

/// The answer to a registration or heartbeat.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Registered {
    /// Whether it was news.
    pub status: Standing,
    /// The data directory's lineage.
    pub lineage: Lineage,
    /// Whether there is a cluster.
    pub cluster: ClusterState,
    /// Its id, once there is one.
    pub cluster_id: Option<ClusterId>,
    /// Registered nodes that say they are members.
    pub size: usize,
    /// Who leads.
    pub leader: Option<LeaderHint>,
    /// Other nodes, at most 64; every asker gets a different section of the whole.
    pub nodes: Vec<NodeRecord>,
    /// The version of the list.
    pub version: u64,
    /// How often to send a heartbeat, in seconds.
    pub heartbeat_interval_seconds: f64,
}

/// One page of `GET /v1/nodes`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodePage {
    /// What is known of the cluster.
    #[serde(flatten)]
    pub summary: ClusterSummary,
    /// Nodes in the order of their ids.
    pub nodes: Vec<NodeRecord>,
    /// Where the next page starts; opaque.
    pub next_cursor: Option<String>,
}

/// The answer to a bootstrap claim.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "lowercase")]
pub enum Claim {
    /// Found the cluster: write `epoch` into the first log entry, then confirm.
    Granted {
        /// The data directory's lineage.
        lineage: Lineage,
        /// The fencing number.
        epoch: u64,
        /// How long the claim lasts.
        #[serde(rename = "expires_in_seconds", with = "seconds")]
        expires_in: Duration,
    },
    /// Another node is founding: ask again.
    Pending {
        /// When to ask again.
        #[serde(rename = "retry_after_seconds", with = "seconds")]
        retry_after: Duration,
    },
    /// There is a cluster: join it.
    Formed {
        /// Which.
        cluster_id: ClusterId,
    },
    /// This gateway does not found clusters; a member must reach it first.
    Refused {
        /// Why, for people.
        reason: RefusedReason,
    },
}

/// Why a claim is refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum RefusedReason {
    /// The gateway was started with `--no-genesis`, and no member has told it of a cluster yet.
    NoGenesis,
}

impl std::fmt::Display for RefusedReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::NoGenesis => "the gateway was started with --no-genesis and knows of no cluster yet",
        })
    }
}

/// An RFC 9457 problem document. Act on `code` and `retryable`; `detail` is for people.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Problem {
    /// A URI naming the kind of problem.
    #[serde(rename = "type", default)]
    pub kind: String,
    /// The kind in words.
    #[serde(default)]
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// This occurrence in words.
    #[serde(default)]
    pub detail: String,
    /// The stable word for programs.
    pub code: String,
    /// Whether the very same request may succeed later.
    #[serde(default)]
    pub retryable: bool,
    /// The field that is wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// The newest incarnation that was seen of the sender.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incarnation: Option<u64>,
    /// The newest number that was seen in that incarnation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seq: Option<u64>,
    /// The newest bootstrap epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    /// The term that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub term: Option<Term>,
    /// The cluster that the gateway serves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster_id: Option<ClusterId>,
}

/// Durations on the wire: seconds with a fraction.
mod seconds {
    use std::time::Duration;

    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(value.as_secs_f64())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        Duration::try_from_secs_f64(f64::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_reads_back_from_its_json() {
        let lineage = Lineage::from_bytes([1; 16]);
        let cluster_id = ClusterId::from_bytes([2; 16]);
        let claims = [
            Claim::Granted {
                lineage,
                epoch: 3,
                expires_in: Duration::from_secs(30),
            },
            Claim::Pending {
                retry_after: Duration::from_millis(250),
            },
            Claim::Formed { cluster_id },
            Claim::Refused {
                reason: RefusedReason::NoGenesis,
            },
        ];
        for claim in claims {
            let json = serde_json::to_string(&claim).unwrap();
            assert_eq!(serde_json::from_str::<Claim>(&json).unwrap(), claim, "{json}");
        }
    }

    #[test]
    fn a_wait_from_a_hostile_gateway_is_an_error_and_not_a_panic() {
        for wait in ["-1.0", "1e300"] {
            let json = format!(r#"{{"status":"pending","retry_after_seconds":{wait}}}"#);
            assert!(serde_json::from_str::<Claim>(&json).is_err());
        }
    }
}
