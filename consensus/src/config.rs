//! The cluster's own settings: committed, versioned, checked when they are set.
//!
//! Not the settings of one node (those come from its flags and files). A key that nobody has set has the
//! default of the node that reads it, see [`Timing`](crate::Timing).

use std::collections::{BTreeMap, VecDeque};
use std::fmt;

use lapwing_base::nearest;
use serde::{Deserialize, Serialize};

use crate::RefusedReason;

/// A setting that the whole cluster shares.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
pub enum ConfigKey {
    /// Milliseconds without an answer after which a member is suspected, and takes no part in rounds.
    /// Smaller reacts faster and suspects busy machines.
    SuspectAfterMs,
    /// Milliseconds without an answer after which a voter's place is given to a learner.
    DeadAfterMs,
    /// Milliseconds without an answer after which a member is removed.
    RemoveAfterMs,
    /// How many members vote, if there are as many. More survive more failures and commit more slowly.
    VotersMax,
}

impl ConfigKey {
    /// Every key.
    pub const ALL: [Self; 4] = [
        Self::SuspectAfterMs,
        Self::DeadAfterMs,
        Self::RemoveAfterMs,
        Self::VotersMax,
    ];

    /// The key as people write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::SuspectAfterMs => "suspect_after_ms",
            Self::DeadAfterMs => "dead_after_ms",
            Self::RemoveAfterMs => "remove_after_ms",
            Self::VotersMax => "voters_max",
        }
    }

    /// Reads a key.
    ///
    /// # Errors
    ///
    /// [`RefusedReason::UnknownKey`] with the nearest known key.
    pub fn parse(text: &str) -> Result<Self, RefusedReason> {
        Self::ALL
            .into_iter()
            .find(|key| key.as_str() == text)
            .ok_or_else(|| {
                let text = shortened(text);
                RefusedReason::UnknownKey {
                    nearest: nearest(&text, Self::ALL.map(Self::as_str)).map(str::to_owned),
                    key: text,
                }
            })
    }

    /// Reads a value for this key.
    ///
    /// # Errors
    ///
    /// [`RefusedReason::BadValue`] with what is allowed.
    pub fn parse_value(self, text: &str) -> Result<u64, RefusedReason> {
        let value = text.trim().parse::<u64>().ok();
        let (fits, expected) = match self {
            Self::SuspectAfterMs => (in_range(value, 500, 600_000), "500 to 600000 milliseconds"),
            Self::DeadAfterMs => (in_range(value, 1_000, 3_600_000), "1000 to 3600000 milliseconds"),
            Self::RemoveAfterMs => (
                in_range(value, 5_000, 30 * 24 * 3_600_000),
                "5000 to 2592000000 milliseconds (30 days)",
            ),
            Self::VotersMax => (value.filter(|n| matches!(n, 1 | 3 | 5 | 7)), "1, 3, 5 or 7"),
        };
        fits.ok_or_else(|| RefusedReason::BadValue {
            key: self.as_str().to_owned(),
            value: shortened(text),
            expected: expected.to_owned(),
        })
    }
}

impl fmt::Display for ConfigKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

fn in_range(value: Option<u64>, min: u64, max: u64) -> Option<u64> {
    value.filter(|value| (min..=max).contains(value))
}

/// What people write is quoted back at most this far.
fn shortened(text: &str) -> String {
    text.chars().take(64).collect()
}

/// The settings that were made, at a version.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct ConfigRevision {
    /// Counts from 1, the version in which nothing is set.
    pub version: u64,
    /// What is set.
    pub values: BTreeMap<ConfigKey, u64>,
}

/// The cluster's settings, and the latest versions of them, oldest first; the last one holds.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct ClusterConfig {
    revisions: VecDeque<ConfigRevision>,
}

impl Default for ClusterConfig {
    fn default() -> Self {
        let first = ConfigRevision {
            version: 1,
            values: BTreeMap::new(),
        };
        Self {
            revisions: VecDeque::from([first]),
        }
    }
}

impl ClusterConfig {
    /// Versions that are kept, for `history` and `rollback`: enough for an afternoon of trying.
    pub const HISTORY_MAX: usize = 32;

    /// The version that holds.
    pub fn version(&self) -> u64 {
        self.revisions.back().map_or(1, |revision| revision.version)
    }

    /// The value of a key, if it was set.
    pub fn get(&self, key: ConfigKey) -> Option<u64> {
        self.revisions.back()?.values.get(&key).copied()
    }

    /// The versions that are kept, oldest first; the last one holds.
    pub fn history(&self) -> impl Iterator<Item = &ConfigRevision> {
        self.revisions.iter()
    }

    /// Sets one key.
    ///
    /// # Errors
    ///
    /// An unknown key, a value that does not fit, or a version other than the expected one.
    pub fn set(&mut self, key: &str, value: &str, expected: Option<u64>) -> Result<(), RefusedReason> {
        let current = self.version();
        if let Some(expected) = expected.filter(|expected| *expected != current) {
            return Err(RefusedReason::StaleVersion { expected, current });
        }
        let key = ConfigKey::parse(key)?;
        let value = key.parse_value(value)?;
        let mut values = self
            .revisions
            .back()
            .map(|last| last.values.clone())
            .unwrap_or_default();
        values.insert(key, value);
        self.revise(values);
        Ok(())
    }

    /// Makes a new version with the settings of an older one.
    ///
    /// # Errors
    ///
    /// The version is not kept.
    pub fn rollback(&mut self, version: u64) -> Result<(), RefusedReason> {
        let values = self
            .revisions
            .iter()
            .find(|revision| revision.version == version)
            .map(|revision| revision.values.clone())
            .ok_or(RefusedReason::UnknownVersion(version))?;
        self.revise(values);
        Ok(())
    }

    fn revise(&mut self, values: BTreeMap<ConfigKey, u64>) {
        let version = self.version() + 1;
        self.revisions.push_back(ConfigRevision { version, values });
        while self.revisions.len() > Self::HISTORY_MAX {
            self.revisions.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistyped_key_names_the_one_that_was_meant() {
        let error = ClusterConfig::default().set("voter_max", "3", None).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the cluster has no setting `voter_max`; did you mean `voters_max`?"
        );
    }

    #[test]
    fn a_value_out_of_range_says_what_is_allowed() {
        let mut config = ClusterConfig::default();
        for wrong in ["2", "0", "-1", "many", "99999999999999999999"] {
            let error = config.set("voters_max", wrong, None).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("`voters_max` must be 1, 3, 5 or 7, not `{wrong}`")
            );
        }
        assert_eq!(config, ClusterConfig::default());
    }

    #[test]
    fn a_change_meant_for_an_older_version_is_refused() {
        let mut config = ClusterConfig::default();
        config.set("voters_max", "5", Some(1)).unwrap();
        let stale = config.set("voters_max", "7", Some(1));
        assert_eq!(
            stale,
            Err(RefusedReason::StaleVersion {
                expected: 1,
                current: 2
            })
        );
        assert_eq!(config.get(ConfigKey::VotersMax), Some(5));
    }

    #[test]
    fn a_rollback_restores_a_version_and_makes_a_new_one() {
        let mut config = ClusterConfig::default();
        config.set("voters_max", "5", None).unwrap();
        config.rollback(1).unwrap();
        assert_eq!(config.version(), 3);
        assert_eq!(config.get(ConfigKey::VotersMax), None);
        assert_eq!(config.rollback(9), Err(RefusedReason::UnknownVersion(9)));
    }

    #[test]
    fn the_history_is_bounded() {
        let mut config = ClusterConfig::default();
        for _ in 0..2 * ClusterConfig::HISTORY_MAX {
            config.set("voters_max", "3", None).unwrap();
        }
        assert_eq!(config.history().count(), ClusterConfig::HISTORY_MAX);
        assert_eq!(config.version(), 1 + 2 * ClusterConfig::HISTORY_MAX as u64);
    }
}
