//! The members of a plan in the order in which it numbers them.
//!
//! A planner works with places, `0..n`, and breaks ties by them; who sits where is drawn by its caller.

use lapwing_base::{NodeId, Pair};

/// Members, each with a place.
#[derive(Debug)]
pub(super) struct Seats {
    nodes: Vec<NodeId>,
    /// By number, so that a member's place is found by bisection.
    places: Vec<(NodeId, usize)>,
}

impl Seats {
    /// Everybody has the place that it has in `order`.
    pub(super) fn new(order: Vec<NodeId>) -> Self {
        let mut places: Vec<(NodeId, usize)> = order.iter().copied().zip(0..).collect();
        places.sort_unstable();
        Self { nodes: order, places }
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Where a member sits; `None` when it takes no part.
    pub(super) fn place(&self, node: NodeId) -> Option<usize> {
        let found = self.places.binary_search_by_key(&node, |&(node, _)| node).ok()?;
        Some(self.places[found].1)
    }

    /// Where two members sit; `None` when one of them takes no part.
    pub(super) fn places(&self, pair: Pair) -> Option<(usize, usize)> {
        let [a, b] = pair.nodes();
        Some((self.place(a)?, self.place(b)?))
    }

    /// Members and their places, by number.
    pub(super) fn by_number(&self) -> &[(NodeId, usize)] {
        &self.places
    }

    /// The member at a place; `None` when there is no such place.
    pub(super) fn node(&self, place: usize) -> Option<NodeId> {
        self.nodes.get(place).copied()
    }

    /// The members at two places; `None` when the places are one.
    pub(super) fn pair(&self, a: usize, b: usize) -> Option<Pair> {
        Pair::new(self.nodes[a], self.nodes[b])
    }

    /// The members at these places, as pairs.
    pub(super) fn pairs(&self, places: impl Iterator<Item = (usize, usize)>) -> Vec<Pair> {
        places.filter_map(|(a, b)| self.pair(a, b)).collect()
    }
}

/// All pairs of places of `0..n`.
pub(super) fn edges(n: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..n).flat_map(move |a| (a + 1..n).map(move |b| (a, b)))
}
