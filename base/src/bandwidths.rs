//! The measured bandwidths between members, directed and sparse.

use crate::{Bandwidth, NodeId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One measured direction.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct LinkSpeed {
    /// Who sent.
    pub from: NodeId,
    /// Who received.
    pub to: NodeId,
    /// How fast.
    pub speed: Bandwidth,
}

/// What is known of the bandwidth from each member to each other.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct Bandwidths {
    links: BTreeMap<(NodeId, NodeId), Bandwidth>,
}

impl Bandwidths {
    /// Replaces what is known of one direction.
    pub fn set(&mut self, link: LinkSpeed) {
        self.links.insert((link.from, link.to), link.speed);
    }

    /// One direction, when it was measured.
    pub fn get(&self, from: NodeId, to: NodeId) -> Option<Bandwidth> {
        self.links.get(&(from, to)).copied()
    }

    /// The slower of the two directions, which bounds an exchange; one direction alone stands for both,
    /// and `None` means that neither was measured.
    pub fn between(&self, a: NodeId, b: NodeId) -> Option<Bandwidth> {
        match (self.get(a, b), self.get(b, a)) {
            (Some(there), Some(back)) => Some(there.min(back)),
            (one, other) => one.or(other),
        }
    }

    /// Forgets every direction from or to a member.
    pub fn forget(&mut self, node: NodeId) {
        self.links.retain(|(from, to), _| *from != node && *to != node);
    }

    /// Every measured direction, in the order of the members' numbers.
    pub fn iter(&self) -> impl Iterator<Item = LinkSpeed> + '_ {
        self.links
            .iter()
            .map(|(&(from, to), &speed)| LinkSpeed { from, to, speed })
    }

    /// How many directions were measured.
    pub fn len(&self) -> usize {
        self.links.len()
    }

    /// Whether nothing was measured yet.
    pub fn is_empty(&self) -> bool {
        self.links.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exchange_is_as_fast_as_its_slower_direction() {
        let (a, b, c) = (NodeId(1), NodeId(2), NodeId(3));
        let mut bandwidths = Bandwidths::default();
        bandwidths.set(LinkSpeed {
            from: a,
            to: b,
            speed: Bandwidth::mbit(10),
        });
        assert_eq!(bandwidths.between(b, a), Some(Bandwidth::mbit(10)));
        bandwidths.set(LinkSpeed {
            from: b,
            to: a,
            speed: Bandwidth::mbit(2),
        });
        assert_eq!(bandwidths.between(a, b), Some(Bandwidth::mbit(2)));
        assert_eq!(bandwidths.between(a, c), None);
        bandwidths.forget(b);
        assert!(bandwidths.is_empty());
    }
}
