//! How patient a node's consensus is.

use std::time::Duration;

use crate::ConfigKey;
use crate::state::State;

/// Repetitions and timeouts of raft and of the care for its members.
///
/// What the cluster's own configuration sets goes before what is here.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Timing {
    /// How often a leader shows that it lives. Default 200 ms: six times within the shortest silence that
    /// starts an election.
    pub heartbeat: Duration,
    /// Shortest draw of the election timeout. It begins to run when the leader's lease, which is
    /// `election_max`, has passed, so that a follower stands up after 1.5 s to 2 s of silence by default: a
    /// killed leader is followed by another within 3 s, and a machine that runs 50 processes on two cores
    /// still answers often enough.
    pub election_min: Duration,
    /// Longest draw of the election timeout, and the leader's lease. Default 1 s.
    pub election_max: Duration,
    /// Silence after which a member is suspected. Default 2 s, ten heartbeats.
    pub suspect_after: Duration,
    /// Silence after which a voter is replaced. Default 10 s: a restart in place is cheaper than a change
    /// of voters.
    pub dead_after: Duration,
    /// Silence after which a member is removed. Default 10 min.
    pub remove_after: Duration,
    /// How many vote. Default 3.
    pub voters_max: usize,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(200),
            election_min: Duration::from_millis(500),
            election_max: Duration::from_secs(1),
            suspect_after: Duration::from_secs(2),
            dead_after: Duration::from_secs(10),
            remove_after: Duration::from_secs(600),
            voters_max: 3,
        }
    }
}

impl Timing {
    /// The timing with what the cluster has set.
    #[must_use]
    pub fn with_settings_of(mut self, state: &State) -> Self {
        let millis = |key| state.config.get(key).map(Duration::from_millis);
        if let Some(set) = millis(ConfigKey::SuspectAfterMs) {
            self.suspect_after = set;
        }
        if let Some(set) = millis(ConfigKey::DeadAfterMs) {
            self.dead_after = set;
        }
        if let Some(set) = millis(ConfigKey::RemoveAfterMs) {
            self.remove_after = set;
        }
        if let Some(set) = state.config.get(ConfigKey::VotersMax) {
            self.voters_max = usize::try_from(set).unwrap_or(self.voters_max);
        }
        self
    }

    /// The shortest silence of a leader after which another may stand up: its lease, then the timeout.
    pub fn silence_min(&self) -> Duration {
        self.election_max + self.election_min
    }

    /// The longest silence of a leader before a healthy follower stands up.
    pub fn silence_max(&self) -> Duration {
        self.election_max * 2
    }
}
