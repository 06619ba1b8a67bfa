//! What a node holds its bulk to in one direction: the settings. They hold nothing themselves; a
//! [`Limiter`](super::Limiter) does.

use std::collections::BTreeMap;

use lapwing_base::{Bandwidth, CLASSES, Class, PeerId};

/// Rates that a node keeps to when it sends, or when it receives. Default: none at all.
///
/// Every rate that applies to a message holds: what goes to a peer that has a limit counts against the node's, too.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct RateLimits {
    /// Everything together. Only bulk (maintenance and model values) waits for it; the rest is counted.
    pub node: Option<Bandwidth>,
    /// Everything with one peer together, in the same way.
    pub peers: BTreeMap<PeerId, Bandwidth>,
    /// By [`Class::index`]; none of those that [`may_be_limited`] does not allow.
    classes: [Option<Bandwidth>; CLASSES.len()],
}

/// A class that nothing may hold up.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{class} may not be limited: a cluster lives by it; call, maintenance and model may be")]
pub struct UnlimitedClass {
    class: Class,
}

impl RateLimits {
    /// Nothing but a rate for everything together.
    pub fn of_node(rate: Bandwidth) -> Self {
        Self {
            node: Some(rate),
            ..Self::default()
        }
    }

    /// And so much with each of these peers.
    #[must_use]
    pub fn with_peers(self, peers: impl IntoIterator<Item = (PeerId, Bandwidth)>) -> Self {
        Self {
            peers: peers.into_iter().collect(),
            ..self
        }
    }

    /// Holds one class, with all peers together, to a rate.
    ///
    /// # Errors
    /// [`UnlimitedClass`] where a cluster would fall apart.
    pub fn limit_class(&mut self, class: Class, rate: Bandwidth) -> Result<(), UnlimitedClass> {
        if !may_be_limited(class) {
            return Err(UnlimitedClass { class });
        }
        self.classes[class.index()] = Some(rate);
        Ok(())
    }

    /// What a class is held to by itself.
    pub const fn class(&self, class: Class) -> Option<Bandwidth> {
        self.classes[class.index()]
    }

    /// Whether nothing is held to anything.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Votes and heartbeats that wait make a leader look dead.
const fn may_be_limited(class: Class) -> bool {
    match class {
        Class::Control | Class::Consensus => false,
        Class::Call | Class::Maintenance | Class::Model => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_cluster_lives_by_cannot_be_limited() {
        let mut limits = RateLimits::default();
        for class in [Class::Control, Class::Consensus] {
            assert_eq!(
                limits.limit_class(class, Bandwidth::mbit(1)),
                Err(UnlimitedClass { class })
            );
        }
        assert!(limits.is_empty());
        assert_eq!(limits.limit_class(Class::Model, Bandwidth::mbit(1)), Ok(()));
        assert_eq!(limits.class(Class::Model), Some(Bandwidth::mbit(1)));
        assert_eq!(limits.class(Class::Maintenance), None);
    }
}
