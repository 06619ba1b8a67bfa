//! Asking to become, or to come back as, a member.
//!
//! It asks the candidates one after another, follows whoever knows the leader, and goes round again until its
//! patience ends: a leader may be about to be elected. What the answer means is the caller's business.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use lapwing_base::{ClusterId, PeerId};
use lapwing_net::Network;

use super::wire::{JOIN, JoinAnswer, JoinAttempt};
use crate::{JoinAccepted, JoinRequest};

/// Peers that are remembered in one attempt, redirections included: more would take longer than any patience.
const CANDIDATES_MAX: usize = 64;

/// How long one candidate may take. The leader itself takes at most five seconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(6);

/// Rest between two rounds of asking: about the time in which an election makes progress.
const ROUND_INTERVAL: Duration = Duration::from_millis(250);

/// Joining came to nothing.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    /// None of the candidates could let us in.
    #[error("nobody let this node in after {}: {}", in_seconds(.after), list(.reasons))]
    Nobody {
        /// What each one last said, or why it could not be asked.
        reasons: Vec<(PeerId, String)>,
        /// How long was tried.
        after: Duration,
    },
    /// The cluster has removed this member, and its number is never used again: see [`retire`](crate::retire).
    #[error("this node was removed from the cluster; move its raft directory away and join as a new member")]
    Removed,
    /// The candidates are of another cluster.
    #[error("the peers belong to cluster {theirs}; use another data directory to join that one")]
    WrongCluster {
        /// Theirs.
        theirs: ClusterId,
    },
    /// There is a founder, and it waits for the gateway to confirm the bootstrap.
    #[error("the founder does not let others in yet: the gateway has not confirmed it")]
    NotOpenYet,
    /// The leader says no.
    #[error("the leader refused: {0}")]
    Refused(String),
}

fn in_seconds(time: &Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

fn list(reasons: &[(PeerId, String)]) -> String {
    if reasons.is_empty() {
        return "there is nobody to ask".to_owned();
    }
    let parts: Vec<String> = reasons
        .iter()
        .map(|(peer, why)| format!("{peer}: {why}"))
        .collect();
    parts.join("; ")
}

/// Asks to be a member of the candidates' cluster. Their addresses must be known to the network.
///
/// # Errors
///
/// See [`JoinError`]. [`JoinError::Nobody`] and [`JoinError::NotOpenYet`] may pass with time.
pub async fn join(
    network: &Network,
    candidates: Vec<PeerId>,
    request: JoinRequest,
    timeout: Duration,
) -> Result<JoinAccepted, JoinError> {
    let began = super::now();
    let deadline = began + timeout;
    let body = lapwing_net::encode(&JoinAttempt {
        id: super::draw_request_id(),
        request,
    });
    let mut known: VecDeque<PeerId> = VecDeque::new();
    for peer in candidates {
        if peer != network.peer_id() && !known.contains(&peer) && known.len() < CANDIDATES_MAX {
            known.push_back(peer);
        }
    }
    let mut reasons: BTreeMap<PeerId, String> = BTreeMap::new();
    let mut not_open = false;
    let mut wrong_cluster = None;
    loop {
        let mut round: VecDeque<PeerId> = known.clone();
        // Each answer may send us on once; a circle of followers ends with the round.
        let mut asked = 0;
        while let Some(peer) = round.pop_front() {
            let left = deadline.saturating_duration_since(super::now());
            asked += 1;
            if left.is_zero() || asked > CANDIDATES_MAX {
                break;
            }
            match ask(network, peer, &body, left.min(ANSWER_TIMEOUT)).await {
                Ok(JoinAnswer::Accepted(accepted)) => return Ok(accepted),
                Ok(JoinAnswer::Removed) => return Err(JoinError::Removed),
                Ok(JoinAnswer::Refused(why)) => return Err(JoinError::Refused(why)),
                Ok(JoinAnswer::NotOpenYet) => {
                    not_open = true;
                    reasons.insert(peer, "it waits for the gateway's confirmation".to_owned());
                }
                Ok(JoinAnswer::WrongCluster(theirs)) => {
                    wrong_cluster = Some(theirs);
                    reasons.insert(peer, format!("it belongs to cluster {theirs}"));
                }
                Ok(JoinAnswer::NotLeader { leader }) => {
                    reasons.insert(peer, "it does not lead".to_owned());
                    if let Some((leader, addrs)) = leader.filter(|(leader, _)| *leader != peer) {
                        network.learn(leader, addrs);
                        // The leader next, now and in the rounds to come.
                        known.retain(|peer| *peer != leader);
                        known.push_front(leader);
                        known.truncate(CANDIDATES_MAX);
                        round.retain(|peer| *peer != leader);
                        round.push_front(leader);
                    }
                }
                Err(why) => {
                    reasons.insert(peer, why);
                }
            }
        }
        if let Some(theirs) = wrong_cluster.filter(|_| !not_open) {
            return Err(JoinError::WrongCluster { theirs });
        }
        if known.is_empty() || super::now() + ROUND_INTERVAL >= deadline {
            break;
        }
        tokio::time::sleep(ROUND_INTERVAL).await;
    }
    if not_open {
        return Err(JoinError::NotOpenYet);
    }
    Err(JoinError::Nobody {
        reasons: reasons.into_iter().collect(),
        after: super::now().duration_since(began),
    })
}

async fn ask(network: &Network, peer: PeerId, body: &[u8], timeout: Duration) -> Result<JoinAnswer, String> {
    let answer = network
        .request(peer, JOIN, body, timeout)
        .await
        .map_err(|error| error.to_string())?;
    lapwing_net::decode(&answer).map_err(|error| error.to_string())
}
