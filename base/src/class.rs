//! The priority classes of messages.

use serde::{Deserialize, Serialize};
use std::fmt;

/// What a message is for; decides what it may overtake.
///
/// The order of the variants is the order of priority, highest first. A class is chosen where a stream is
/// opened and holds until the message has been handled.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// Joins, leader hints, reports of a round, shutdown, eviction.
    Control,
    /// Votes, appends, heartbeats.
    Consensus,
    /// Federated calls.
    Call,
    /// Snapshots, anti-entropy, bandwidth probes: at most a tenth of the link.
    Maintenance,
    /// Model values: whatever the others leave.
    Model,
}

/// Every class, highest priority first.
pub const CLASSES: [Class; 5] = [
    Class::Control,
    Class::Consensus,
    Class::Call,
    Class::Maintenance,
    Class::Model,
];

impl Class {
    /// The word used in protocol names, logs, metrics and the status document.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Consensus => "consensus",
            Self::Call => "call",
            Self::Maintenance => "maintenance",
            Self::Model => "model",
        }
    }

    /// Position in [`CLASSES`].
    pub const fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_in_order_of_priority_and_whole() {
        assert!(CLASSES.is_sorted());
        for (position, class) in CLASSES.into_iter().enumerate() {
            assert_eq!(class.index(), position);
        }
    }
}
