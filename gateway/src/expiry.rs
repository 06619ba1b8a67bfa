//! When silence makes a node suspected, failed and forgotten. Knows nothing else about nodes.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How the gateway sees a node.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Registered, not taken up yet.
    Joining,
    /// Heard of within three heartbeats.
    Active,
    /// Missed three heartbeats.
    Suspected,
    /// Silent for the whole node timeout; about to be forgotten.
    Failed,
    /// Has said that it goes.
    Leaving,
}

impl Status {
    /// The word on the wire and in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Joining => "joining",
            Self::Active => "active",
            Self::Suspected => "suspected",
            Self::Failed => "failed",
            Self::Leaving => "leaving",
        }
    }

    /// Whether newcomers are told of the node.
    ///
    /// A suspected one is listed too: the guard against mass expiry keeps nodes as suspected because the
    /// fault is likely the gateway's own, and hiding them would undo it.
    pub const fn is_listed(self) -> bool {
        match self {
            Self::Joining | Self::Active | Self::Suspected => true,
            Self::Failed | Self::Leaving => false,
        }
    }
}

/// The ages at which a silent node changes its status.
#[derive(Clone, Copy, Debug)]
pub struct Expiry {
    suspect_after: Duration,
    timeout: Duration,
    failed_for: Duration,
}

/// Fewest known nodes for which the guard against mass expiry exists: below it, most of them may well be gone.
const GUARDED_NODES_MIN: usize = 10;

impl Expiry {
    /// Suspected after three missed heartbeats, failed after `timeout`, forgotten a tenth of `timeout` later.
    pub fn new(timeout: Duration, heartbeat_interval: Duration) -> Self {
        Self {
            suspect_after: (heartbeat_interval * 3).min(timeout),
            timeout,
            failed_for: timeout / 10,
        }
    }

    /// How long a node that is gone is remembered, so that replays of its messages are refused: twice the timeout.
    pub fn tombstone_ttl(&self) -> Duration {
        self.timeout * 2
    }

    /// Whether this sweep must keep silent nodes, since their silence is likely the gateway's own fault.
    ///
    /// True when at least ten nodes are known, one of them would expire now, and more than half are about as
    /// silent. "About" is within three heartbeats of expiry: nodes that fell silent at the same moment
    /// expire spread over the heartbeat interval, not in one sweep.
    pub fn guards(&self, silences: impl Iterator<Item = Duration>) -> bool {
        let near = self.timeout.saturating_sub(self.suspect_after);
        let (mut known, mut silent, mut expiring) = (0_usize, 0_usize, 0_usize);
        for silence in silences {
            known += 1;
            silent += usize::from(silence >= near.max(self.suspect_after));
            expiring += usize::from(silence >= self.timeout);
        }
        known >= GUARDED_NODES_MIN && expiring > 0 && silent * 2 > known
    }

    /// The status after `silence`, or `None` when the node is to be forgotten.
    ///
    /// A failed node stays failed until it is heard of again.
    pub fn judge(&self, status: Status, silence: Duration, guarded: bool) -> Option<Status> {
        let failed_after = if guarded { self.timeout * 2 } else { self.timeout };
        if status == Status::Leaving {
            return (silence < self.suspect_after).then_some(status);
        }
        if status == Status::Failed {
            return (silence < failed_after + self.failed_for).then_some(status);
        }
        Some(if silence >= failed_after {
            Status::Failed
        } else if silence >= self.suspect_after {
            Status::Suspected
        } else {
            Status::Active
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_suspects_at_90_fails_at_300_and_forgets_at_330_seconds() {
        let expiry = Expiry::new(Duration::from_secs(300), Duration::from_secs(30));
        let judge = |status, secs| expiry.judge(status, Duration::from_secs(secs), false);
        assert_eq!(judge(Status::Active, 89), Some(Status::Active));
        assert_eq!(judge(Status::Active, 90), Some(Status::Suspected));
        assert_eq!(judge(Status::Suspected, 299), Some(Status::Suspected));
        assert_eq!(judge(Status::Suspected, 300), Some(Status::Failed));
        assert_eq!(judge(Status::Failed, 329), Some(Status::Failed));
        assert_eq!(judge(Status::Failed, 330), None);
    }

    #[test]
    fn more_than_half_of_ten_falling_silent_is_taken_for_the_gateways_fault() {
        let expiry = Expiry::new(Duration::from_secs(300), Duration::from_secs(30));
        let guards = |known: usize, silent: usize| {
            expiry.guards((0..known).map(|i| Duration::from_secs(if i < silent { 301 } else { 1 })))
        };
        assert!(guards(10, 6));
        assert!(!guards(10, 5));
        assert!(!guards(9, 9));
        assert_eq!(
            expiry.judge(Status::Suspected, Duration::from_secs(599), true),
            Some(Status::Suspected)
        );
        assert_eq!(
            expiry.judge(Status::Suspected, Duration::from_secs(600), true),
            Some(Status::Failed)
        );
    }

    #[test]
    fn nodes_that_expire_one_after_the_other_within_an_interval_are_one_mass() {
        let expiry = Expiry::new(Duration::from_secs(300), Duration::from_secs(30));
        let silences = (0..20).map(|i| Duration::from_secs(301 - i));
        assert!(expiry.guards(silences));
    }
}
