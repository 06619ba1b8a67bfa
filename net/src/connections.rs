//! Which of a peer's connections is used, and which are let go. Opens and closes none itself.

use crate::Rung;
use lapwing_base::PeerId;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// The standing connections, of which each peer's best carries all new streams: one on the highest rung that there
/// is.
///
/// Two connections on one rung arise in two ways. Both ends dialed at once: then both must keep the same one,
/// and they keep the one that the smaller identity dialed. Or the peer has lost the older one (it restarted, or
/// its network changed) and dialed anew: then the newer one counts. They are told apart by the peer's incarnation,
/// a number that it draws when it starts, and by the time between the two. Until both are known to lead to the same
/// incarnation the newer one counts, since it is the one that was alive last.
#[derive(Debug)]
pub struct Connections<Id> {
    me: PeerId,
    /// Each list is in the order in which the connections were established, and never empty.
    by_peer: HashMap<PeerId, Vec<Connection<Id>>>,
}

#[derive(Debug)]
struct Connection<Id> {
    id: Id,
    dialed: Dialed,
    rung: Rung,
    established_at: Instant,
    incarnation: Option<u64>,
}

/// Who dialed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Dialed {
    /// This node.
    ByUs,
    /// The peer.
    ByThem,
}

impl<Id: Copy + Eq> Connections<Id> {
    /// Most connections with one peer: one in use, one from dialing at once, one from before a restart, one spare;
    /// and as many relayed or fallback ones while the path is being changed.
    pub const PER_PEER_MAX: usize = 8;

    /// No connections yet.
    pub fn new(me: PeerId) -> Self {
        Self {
            me,
            by_peer: HashMap::new(),
        }
    }

    /// A connection stands; says whether it is the peer's first.
    pub fn established(&mut self, peer: PeerId, id: Id, dialed: Dialed, rung: Rung, now: Instant) -> bool {
        let list = self.by_peer.entry(peer).or_default();
        list.push(Connection {
            id,
            dialed,
            rung,
            established_at: now,
            incarnation: None,
        });
        list.len() == 1
    }

    /// The peer has said which incarnation of it is at the other end; says which connections lead to an earlier
    /// one and are dead.
    pub fn identified(&mut self, peer: &PeerId, id: Id, incarnation: u64) -> Vec<Id> {
        let Some(list) = self.by_peer.get_mut(peer) else {
            return Vec::new();
        };
        let Some(position) = list.iter().position(|connection| connection.id == id) else {
            return Vec::new();
        };
        list[position].incarnation = Some(incarnation);
        // Whoever answers later is the later incarnation: the dead do not dial.
        let newest = list.iter().rev().find_map(|connection| connection.incarnation);
        list.iter()
            .filter(|connection| connection.incarnation.is_some() && connection.incarnation != newest)
            .map(|connection| connection.id)
            .collect()
    }

    /// A connection has ended; says whether it was the peer's last.
    pub fn closed(&mut self, peer: &PeerId, id: Id) -> bool {
        let Some(list) = self.by_peer.get_mut(peer) else {
            return false;
        };
        list.retain(|connection| connection.id != id);
        let last = list.is_empty();
        if last {
            self.by_peer.remove(peer);
        }
        last
    }

    /// The connection that carries new streams to a peer.
    pub fn preferred(&self, peer: &PeerId) -> Option<Id> {
        Some(self.best(peer, self.by_peer.get(peer)?)?.id)
    }

    /// How many connections stand with a peer.
    pub fn count(&self, peer: &PeerId) -> usize {
        self.by_peer.get(peer).map_or(0, Vec::len)
    }

    /// The connections that stand with a peer.
    pub fn of(&self, peer: &PeerId) -> Vec<Id> {
        let list = self.by_peer.get(peer).map(Vec::as_slice).unwrap_or_default();
        list.iter().map(|connection| connection.id).collect()
    }

    /// The connections with a peer on one rung.
    pub fn on_rung(&self, peer: &PeerId, rung: Rung) -> Vec<Id> {
        let list = self.by_peer.get(peer).map(Vec::as_slice).unwrap_or_default();
        let there = list.iter().filter(|connection| connection.rung == rung);
        there.map(|connection| connection.id).collect()
    }

    /// Every peer with a connection.
    pub fn peers(&self) -> impl Iterator<Item = &PeerId> {
        self.by_peer.keys()
    }

    /// Connections that this node should close once nothing uses them any more.
    ///
    /// Only the smaller identity closes, so that two ends that judge differently do not close both.
    pub fn surplus(&self, now: Instant) -> Vec<(PeerId, Id)> {
        let mut surplus = Vec::new();
        for (peer, list) in &self.by_peer {
            if list.len() < 2 || self.me > *peer {
                continue;
            }
            let Some(best) = self.best(peer, list) else {
                continue;
            };
            // What is worse is let go by whoever climbs to the peer.
            let alike = || list.iter().filter(|connection| connection.rung == best.rung);
            let settled =
                alike().all(|connection| now.saturating_duration_since(connection.established_at) >= GRACE);
            if settled {
                let others = alike().filter(|connection| connection.id != best.id);
                surplus.extend(others.map(|connection| (*peer, connection.id)));
            }
        }
        surplus
    }

    fn best<'a>(&self, peer: &PeerId, list: &'a [Connection<Id>]) -> Option<&'a Connection<Id>> {
        let highest = list.iter().map(|connection| connection.rung).max()?;
        let alike = list.iter().filter(|connection| connection.rung == highest);
        alike.reduce(|older, newer| {
            // Only of connections to one and the same incarnation both are known to be alive.
            let same = older.incarnation.is_some() && older.incarnation == newer.incarnation;
            let apart = newer
                .established_at
                .saturating_duration_since(older.established_at);
            if !same || older.dialed == newer.dialed || apart > SIMULTANEOUS {
                return newer;
            }
            let dialed_by_smaller = if self.me < *peer {
                Dialed::ByUs
            } else {
                Dialed::ByThem
            };
            if newer.dialed == dialed_by_smaller {
                newer
            } else {
                older
            }
        })
    }
}

/// Two dials can only cross within the longest handshake (3 s); one second more for the clock of a busy machine.
const SIMULTANEOUS: Duration = Duration::from_secs(4);

/// A surplus connection stays this long, so that streams that the other end has just opened are seen.
const GRACE: Duration = Duration::from_secs(2);

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "any instant will do")]
mod tests {
    use super::*;

    #[test]
    fn when_both_dial_at_once_both_keep_the_same_connection() {
        let (small, large) = two_peers();
        let now = Instant::now();
        let soon = now + Duration::from_millis(5);
        // Connection 1 was dialed by the small one, 2 by the large one; each end saw another order.
        let mut at_small = Connections::new(small);
        at_small.established(large, 2, Dialed::ByThem, Rung::Direct, now);
        at_small.established(large, 1, Dialed::ByUs, Rung::Direct, soon);
        let mut at_large = Connections::new(large);
        at_large.established(small, 1, Dialed::ByThem, Rung::Direct, now);
        at_large.established(small, 2, Dialed::ByUs, Rung::Direct, soon);
        assert_eq!(
            at_small.preferred(&large),
            Some(1),
            "the newer one until more is known"
        );
        assert_eq!(
            at_large.preferred(&small),
            Some(2),
            "the newer one until more is known"
        );
        for id in [1, 2] {
            assert!(at_small.identified(&large, id, 77).is_empty());
            assert!(at_large.identified(&small, id, 78).is_empty());
        }
        assert_eq!(at_small.preferred(&large), Some(1));
        assert_eq!(at_large.preferred(&small), Some(1));
        let later = soon + GRACE;
        assert_eq!(at_small.surplus(soon), [], "not before the grace");
        assert_eq!(at_small.surplus(later), [(large, 2)]);
        assert_eq!(at_large.surplus(later), [], "only one end closes");
    }

    #[test]
    fn a_peer_that_dials_again_has_lost_the_older_connection() {
        let (small, large) = two_peers();
        let now = Instant::now();
        let mut connections = Connections::new(small);
        connections.established(large, 1, Dialed::ByThem, Rung::Direct, now);
        connections.established(large, 2, Dialed::ByThem, Rung::Direct, now);
        assert_eq!(connections.preferred(&large), Some(2));
    }

    #[test]
    fn a_connection_that_comes_long_after_the_other_replaces_it() {
        let (small, large) = two_peers();
        let now = Instant::now();
        let mut connections = Connections::new(small);
        connections.established(large, 1, Dialed::ByUs, Rung::Direct, now);
        connections.established(large, 2, Dialed::ByThem, Rung::Direct, now + SIMULTANEOUS * 2);
        connections.identified(&large, 1, 77);
        connections.identified(&large, 2, 77);
        assert_eq!(connections.preferred(&large), Some(2));
    }

    #[test]
    fn connections_to_an_earlier_incarnation_are_dead() {
        let (small, large) = two_peers();
        let now = Instant::now();
        let mut connections = Connections::new(small);
        connections.established(large, 1, Dialed::ByUs, Rung::Direct, now);
        assert!(connections.identified(&large, 1, 77).is_empty());
        connections.established(large, 2, Dialed::ByThem, Rung::Direct, now);
        assert_eq!(connections.preferred(&large), Some(2));
        assert_eq!(connections.identified(&large, 2, 78), [1]);
        assert_eq!(connections.preferred(&large), Some(2));
    }

    #[test]
    fn the_last_connection_to_close_is_told() {
        let (small, large) = two_peers();
        let now = Instant::now();
        let mut connections = Connections::new(small);
        assert!(connections.established(large, 1, Dialed::ByUs, Rung::Direct, now));
        assert!(!connections.established(large, 2, Dialed::ByThem, Rung::Direct, now));
        assert!(!connections.closed(&large, 1));
        assert!(connections.closed(&large, 2));
        assert_eq!(connections.preferred(&large), None);
    }

    #[test]
    fn a_direct_connection_is_preferred_to_any_relayed_one() {
        let (small, large) = two_peers();
        let now = Instant::now();
        let mut connections = Connections::new(small);
        connections.established(large, 1, Dialed::ByUs, Rung::Direct, now);
        connections.established(large, 2, Dialed::ByThem, Rung::Relayed, now + GRACE);
        assert_eq!(connections.preferred(&large), Some(1));
        assert_eq!(
            connections.surplus(now + GRACE * 2),
            [],
            "the relayed one is not of its kind"
        );
        connections.closed(&large, 1);
        assert_eq!(connections.preferred(&large), Some(2));
    }

    fn two_peers() -> (PeerId, PeerId) {
        let (a, b) = (PeerId::random(), PeerId::random());
        (a.min(b), a.max(b))
    }
}
