//! Who may found the cluster: a lease with a fencing number, confirmed once and never granted again.
//!
//! Pure: the caller passes `now` and writes [`Bootstrap::record`] to disk before it answers anybody from a
//! changed state. Does not know which nodes are registered.

use std::time::{Duration, Instant};

use lapwing_base::{ClusterId, PeerId};
use serde::{Deserialize, Serialize};

use crate::Lineage;

/// How long a claimant has to confirm before the next one gets the claim.
///
/// Founding takes a few disk writes and one request; thirty seconds leave room for a slow disk under load.
pub const LEASE: Duration = Duration::from_secs(30);

/// The state of one lineage's only bootstrap.
#[derive(Clone, Debug)]
pub struct Bootstrap {
    lineage: Lineage,
    genesis: bool,
    /// Only grows; the number of the newest grant.
    epoch: u64,
    stage: Stage,
}

#[derive(Clone, Copy, Debug)]
enum Stage {
    /// Nobody holds the claim.
    Open,
    /// Granted, not confirmed. Past `expires_at` somebody else may take it.
    Leased {
        holder: PeerId,
        incarnation: u64,
        expires_at: Instant,
    },
    /// Confirmed, or told by a member. Final.
    Formed { cluster: ClusterId },
}

/// What survives a restart.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct BootstrapRecord {
    /// The data directory's lineage.
    pub lineage: Lineage,
    /// The newest grant's number; 0 when there was none.
    pub epoch: u64,
    /// Who holds the claim.
    pub claim: Option<ClaimRecord>,
    /// The cluster, once there is one.
    pub cluster: Option<ClusterId>,
}

/// An unconfirmed claim on disk. Its deadline is not kept: a restart gives the holder a whole lease again.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct ClaimRecord {
    /// Who claimed.
    pub holder: PeerId,
    /// In which incarnation.
    pub incarnation: u64,
}

/// The answer to a claim.
#[must_use]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Decision {
    /// Found the cluster under this epoch.
    Granted {
        /// The fencing number.
        epoch: u64,
        /// How long the lease lasts from now.
        expires_in: Duration,
    },
    /// Another node is founding.
    Pending {
        /// What is left of its lease.
        remaining: Duration,
    },
    /// Join this one.
    Formed {
        /// The cluster.
        cluster: ClusterId,
    },
    /// This gateway was told not to found clusters.
    Refused,
}

/// The epoch that was to be confirmed is not the current one: its holder must join instead.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the claim was superseded; the epoch is {epoch} now")]
pub struct Superseded {
    /// The newest epoch.
    pub epoch: u64,
    /// The cluster to join, when there is one.
    pub cluster: Option<ClusterId>,
}

/// A second cluster id came up.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("this gateway serves cluster {formed}")]
pub struct Mismatch {
    /// The id that stays.
    pub formed: ClusterId,
}

impl Bootstrap {
    /// Starts from what was on disk. Without `genesis` no claim is granted.
    pub fn new(record: BootstrapRecord, genesis: bool, now: Instant) -> Self {
        let stage = match (record.cluster, record.claim) {
            (Some(cluster), _) => Stage::Formed { cluster },
            (None, Some(ClaimRecord { holder, incarnation })) => Stage::Leased {
                holder,
                incarnation,
                expires_at: now + LEASE,
            },
            (None, None) => Stage::Open,
        };
        Self {
            lineage: record.lineage,
            genesis,
            epoch: record.epoch,
            stage,
        }
    }

    /// What must be on disk before anyone is answered from this state.
    pub fn record(&self) -> BootstrapRecord {
        let (claim, cluster) = match self.stage {
            Stage::Open => (None, None),
            Stage::Leased {
                holder, incarnation, ..
            } => (Some(ClaimRecord { holder, incarnation }), None),
            Stage::Formed { cluster } => (None, Some(cluster)),
        };
        BootstrapRecord {
            lineage: self.lineage,
            epoch: self.epoch,
            claim,
            cluster,
        }
    }

    /// The lineage.
    pub const fn lineage(&self) -> Lineage {
        self.lineage
    }

    /// The newest grant's number; 0 when there was none.
    pub const fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The cluster, once there is one.
    pub const fn cluster(&self) -> Option<ClusterId> {
        match self.stage {
            Stage::Formed { cluster } => Some(cluster),
            Stage::Open | Stage::Leased { .. } => None,
        }
    }

    /// Whether a claim is out whose lease has not run out.
    pub fn is_forming(&self, now: Instant) -> bool {
        matches!(self.stage, Stage::Leased { expires_at, .. } if now < expires_at)
    }

    /// Whether neither a claim nor a cluster was ever seen, and claims are granted.
    pub const fn is_untouched(&self) -> bool {
        self.genesis && self.epoch == 0 && matches!(self.stage, Stage::Open)
    }

    /// Asks to found the cluster. The same node in the same incarnation gets the same answer again.
    pub fn claim(&mut self, peer: PeerId, incarnation: u64, now: Instant) -> Decision {
        match self.stage {
            Stage::Formed { cluster } => return Decision::Formed { cluster },
            Stage::Open | Stage::Leased { .. } if !self.genesis => return Decision::Refused,
            Stage::Leased {
                holder,
                incarnation: held,
                ..
            } if holder == peer && held == incarnation => (),
            // A later incarnation proves that the earlier process is gone; an earlier one is itself gone.
            Stage::Leased {
                holder,
                incarnation: held,
                expires_at,
            } if now < expires_at && !(holder == peer && held < incarnation) => {
                return Decision::Pending {
                    remaining: expires_at - now,
                };
            }
            Stage::Open | Stage::Leased { .. } => self.epoch += 1,
        }
        self.stage = Stage::Leased {
            holder: peer,
            incarnation,
            expires_at: now + LEASE,
        };
        Decision::Granted {
            epoch: self.epoch,
            expires_in: LEASE,
        }
    }

    /// What a repeated claim would be answered, changing nothing; `None` when it would be granted anew.
    ///
    /// A request that is not new may be a replay by somebody else, which must not keep a dead claimant's lease
    /// alive.
    pub fn peek(&self, peer: PeerId, incarnation: u64, now: Instant) -> Option<Decision> {
        match self.stage {
            Stage::Formed { cluster } => Some(Decision::Formed { cluster }),
            Stage::Open | Stage::Leased { .. } if !self.genesis => Some(Decision::Refused),
            Stage::Leased {
                holder,
                incarnation: held,
                expires_at,
            } if now < expires_at => Some(if (holder, held) == (peer, incarnation) {
                Decision::Granted {
                    epoch: self.epoch,
                    expires_in: expires_at - now,
                }
            } else {
                Decision::Pending {
                    remaining: expires_at - now,
                }
            }),
            Stage::Open | Stage::Leased { .. } => None,
        }
    }

    /// Reports that the claim of `epoch` founded `cluster`; true when this formed it just now.
    ///
    /// Right also past the lease's end, as long as nobody else has got the claim.
    pub fn confirm(&mut self, peer: PeerId, epoch: u64, cluster: ClusterId) -> Result<bool, Superseded> {
        match self.stage {
            Stage::Formed { cluster: formed } if formed == cluster => Ok(false),
            Stage::Leased { holder, .. } if holder == peer && epoch == self.epoch => {
                self.stage = Stage::Formed { cluster };
                Ok(true)
            }
            Stage::Open | Stage::Leased { .. } | Stage::Formed { .. } => Err(Superseded {
                epoch: self.epoch,
                cluster: self.cluster(),
            }),
        }
    }

    /// Learns from a member that a cluster exists, which ends a pending claim; true when that was news.
    pub fn adopt(&mut self, cluster: ClusterId) -> Result<bool, Mismatch> {
        match self.stage {
            Stage::Formed { cluster: formed } if formed == cluster => Ok(false),
            Stage::Formed { cluster: formed } => Err(Mismatch { formed }),
            Stage::Open | Stage::Leased { .. } => {
                self.stage = Stage::Formed { cluster };
                Ok(true)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: ClusterId = ClusterId::from_bytes([1; 16]);
    const OTHER: ClusterId = ClusterId::from_bytes([2; 16]);

    #[test]
    fn a_retry_of_a_claim_gets_the_same_epoch() {
        let (mut bootstrap, now) = empty();
        let peer = PeerId::random();
        assert_eq!(bootstrap.claim(peer, 4, now), granted(1));
        assert_eq!(bootstrap.claim(peer, 4, now + LEASE / 2), granted(1));
        assert_eq!(bootstrap.claim(peer, 4, now + LEASE * 3), granted(1));
    }

    #[test]
    fn a_second_node_waits_for_the_rest_of_the_lease() {
        let (mut bootstrap, now) = empty();
        assert_eq!(bootstrap.claim(PeerId::random(), 1, now), granted(1));
        assert_eq!(
            bootstrap.claim(PeerId::random(), 1, now + LEASE / 3),
            Decision::Pending {
                remaining: LEASE - LEASE / 3
            }
        );
    }

    #[test]
    fn when_the_claimant_dies_the_next_gets_a_higher_epoch_and_the_late_confirm_is_refused() {
        let (mut bootstrap, now) = empty();
        let (first, second) = (PeerId::random(), PeerId::random());
        assert_eq!(bootstrap.claim(first, 1, now), granted(1));
        assert_eq!(bootstrap.claim(second, 1, now + LEASE), granted(2));
        let late = bootstrap.confirm(first, 1, CLUSTER).unwrap_err();
        assert_eq!(
            late,
            Superseded {
                epoch: 2,
                cluster: None
            }
        );
        assert_eq!(bootstrap.confirm(second, 2, OTHER), Ok(true));
        let later = bootstrap.confirm(first, 1, CLUSTER).unwrap_err();
        assert_eq!(later.cluster, Some(OTHER));
    }

    #[test]
    fn a_claimant_that_restarted_gets_a_new_epoch_at_once() {
        let (mut bootstrap, now) = empty();
        let peer = PeerId::random();
        assert_eq!(bootstrap.claim(peer, 1, now), granted(1));
        assert_eq!(bootstrap.claim(peer, 2, now), granted(2));
        assert!(matches!(bootstrap.claim(peer, 1, now), Decision::Pending { .. }));
    }

    #[test]
    fn a_confirmation_past_the_lease_counts_while_nobody_else_has_claimed() {
        let (mut bootstrap, now) = empty();
        let peer = PeerId::random();
        assert_eq!(bootstrap.claim(peer, 1, now), granted(1));
        assert!(!bootstrap.is_forming(now + LEASE));
        assert_eq!(bootstrap.confirm(peer, 1, CLUSTER), Ok(true));
        assert_eq!(bootstrap.confirm(peer, 1, CLUSTER), Ok(false));
    }

    #[test]
    fn nobody_confirms_the_claim_of_another() {
        let (mut bootstrap, now) = empty();
        assert_eq!(bootstrap.claim(PeerId::random(), 1, now), granted(1));
        assert!(bootstrap.confirm(PeerId::random(), 1, CLUSTER).is_err());
    }

    #[test]
    fn a_formed_cluster_is_final_across_restarts() {
        let (mut bootstrap, now) = empty();
        let peer = PeerId::random();
        assert_eq!(bootstrap.claim(peer, 1, now), granted(1));
        assert_eq!(bootstrap.confirm(peer, 1, CLUSTER), Ok(true));
        let mut again = Bootstrap::new(bootstrap.record(), true, now);
        let formed = Decision::Formed { cluster: CLUSTER };
        assert_eq!(again.claim(PeerId::random(), 1, now), formed);
        assert_eq!(again.claim(peer, 2, now + LEASE * 100), formed);
    }

    #[test]
    fn a_restart_in_the_middle_of_a_claim_keeps_the_holder_and_the_epoch() {
        let (mut bootstrap, now) = empty();
        let peer = PeerId::random();
        assert_eq!(bootstrap.claim(peer, 1, now), granted(1));
        let mut again = Bootstrap::new(bootstrap.record(), true, now);
        assert!(matches!(
            again.claim(PeerId::random(), 1, now),
            Decision::Pending { .. }
        ));
        assert_eq!(again.claim(peer, 1, now), granted(1));
        assert_eq!(again.claim(PeerId::random(), 1, now + LEASE), granted(2));
    }

    #[test]
    fn a_members_word_ends_a_pending_claim() {
        let (mut bootstrap, now) = empty();
        let peer = PeerId::random();
        assert_eq!(bootstrap.claim(peer, 1, now), granted(1));
        assert_eq!(bootstrap.adopt(CLUSTER), Ok(true));
        assert_eq!(
            bootstrap.claim(peer, 1, now),
            Decision::Formed { cluster: CLUSTER }
        );
        assert!(bootstrap.confirm(peer, 1, OTHER).is_err());
        assert_eq!(bootstrap.adopt(OTHER), Err(Mismatch { formed: CLUSTER }));
    }

    #[test]
    fn without_genesis_claims_are_refused_until_a_member_seeds_the_gateway() {
        let (bootstrap, now) = empty();
        let mut restored = Bootstrap::new(bootstrap.record(), false, now);
        assert_eq!(restored.claim(PeerId::random(), 1, now), Decision::Refused);
        assert_eq!(restored.adopt(CLUSTER), Ok(true));
        assert_eq!(
            restored.claim(PeerId::random(), 1, now),
            Decision::Formed { cluster: CLUSTER }
        );
    }

    fn granted(epoch: u64) -> Decision {
        Decision::Granted {
            epoch,
            expires_in: LEASE,
        }
    }

    #[expect(clippy::disallowed_methods, reason = "any instant will do")]
    fn empty() -> (Bootstrap, Instant) {
        let record = BootstrapRecord {
            lineage: Lineage::from_bytes([9; 16]),
            epoch: 0,
            claim: None,
            cluster: None,
        };
        let now = Instant::now();
        (Bootstrap::new(record, true, now), now)
    }
}
