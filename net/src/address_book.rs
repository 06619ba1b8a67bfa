//! Where peers can be reached, as far as anybody has said. Dials nobody.
//!
//! Anybody can make up peers, in a local network in any number. What the roster, the gateway or a person has said never
//! makes room for what peers say of themselves.

use lapwing_base::{Member, Multiaddr, PeerId};
use std::collections::{BTreeMap, HashMap};

/// What is known of peers' addresses, by who said it. Each source replaces only what it said before.
#[derive(Debug, Default)]
pub struct AddressBook {
    peers: HashMap<PeerId, Entry>,
    /// Counts changes, so that of those that nobody else has named the one that has not changed for longest makes room.
    clock: u64,
}

#[derive(Debug, Default)]
struct Entry {
    /// What the roster, the gateway or a person said.
    learned: Vec<Multiaddr>,
    /// What the peer itself says over a standing connection.
    told: Vec<Multiaddr>,
    /// What the peer says to everybody in the local network.
    heard: Vec<Multiaddr>,
    /// Where the last dial succeeded.
    reached: Option<Multiaddr>,
    changed: u64,
}

impl Entry {
    const fn is_empty(&self) -> bool {
        let nobody_says = self.learned.is_empty() && self.told.is_empty() && self.heard.is_empty();
        nobody_says && self.reached.is_none()
    }
}

impl AddressBook {
    /// Most peers: ten times the largest cluster that is planned for; about 400 bytes each.
    pub const PEERS_MAX: usize = 4096;

    /// Replaces what was learned about a peer; says whether that changed anything.
    pub fn learn(&mut self, peer: PeerId, addrs: Vec<Multiaddr>) -> bool {
        let addrs = bounded(addrs);
        if !self.has_room(&peer)
            && let Some(oldest) = self.oldest(|_| true)
        {
            self.peers.remove(&oldest);
        }
        let entry = self.changing(peer);
        let changed = entry.learned != addrs;
        entry.learned = addrs;
        changed
    }

    /// Whether something was learned about a peer.
    pub fn has_learned(&self, peer: &PeerId) -> bool {
        self.peers
            .get(peer)
            .is_some_and(|entry| !entry.learned.is_empty())
    }

    /// Replaces what the peer has told of itself.
    pub fn told(&mut self, peer: PeerId, addrs: Vec<Multiaddr>) {
        if let Some(entry) = self.entry(peer) {
            entry.told = bounded(addrs);
        }
    }

    /// Replaces what peers were heard to say in the local network, of everybody: who is no longer around is not heard.
    /// Returns those of whom that changed anything.
    pub fn heard(&mut self, around: &BTreeMap<PeerId, Vec<Multiaddr>>) -> Vec<PeerId> {
        let mut changed = Vec::new();
        for (peer, entry) in &mut self.peers {
            if !entry.heard.is_empty() && !around.contains_key(peer) {
                entry.heard.clear();
                changed.push(*peer);
            }
        }
        self.peers.retain(|_, entry| !entry.is_empty());
        for (peer, addrs) in around {
            let addrs = bounded(addrs.clone());
            if let Some(entry) = self.entry(*peer)
                && entry.heard != addrs
            {
                entry.heard = addrs;
                changed.push(*peer);
            }
        }
        changed
    }

    /// Notes where a dial has reached the peer.
    pub fn reached(&mut self, peer: PeerId, addr: Multiaddr) {
        if let Some(entry) = self.entry(peer) {
            entry.reached = Some(addr);
        }
    }

    /// Forgets an address at which somebody else has answered, unless it was learned: what a person or the
    /// roster said is theirs to correct.
    pub fn mistaken(&mut self, peer: &PeerId, addr: &Multiaddr) {
        if let Some(entry) = self.peers.get_mut(peer) {
            entry.told.retain(|told| told != addr);
            entry.reached.take_if(|reached| reached == addr);
        }
    }

    /// Where to dial a peer, the likeliest first, without repetition.
    pub fn addresses(&self, peer: &PeerId) -> Vec<Multiaddr> {
        let Some(entry) = self.peers.get(peer) else {
            return Vec::new();
        };
        let mut addrs = Vec::new();
        let known = entry
            .reached
            .iter()
            .chain(&entry.heard)
            .chain(&entry.learned)
            .chain(&entry.told);
        for addr in known {
            if !addrs.contains(addr) {
                addrs.push(addr.clone());
            }
        }
        addrs
    }

    /// The entry of a peer, for what was not learned of it; none where all others were.
    fn entry(&mut self, peer: PeerId) -> Option<&mut Entry> {
        if !self.has_room(&peer) {
            let oldest = self.oldest(|entry| entry.learned.is_empty())?;
            self.peers.remove(&oldest);
        }
        Some(self.changing(peer))
    }

    fn has_room(&self, peer: &PeerId) -> bool {
        self.peers.len() < Self::PEERS_MAX || self.peers.contains_key(peer)
    }

    /// Of those of a kind, whose entry has not changed for longest; what nobody else has named goes first.
    fn oldest(&self, of_kind: impl Fn(&Entry) -> bool) -> Option<PeerId> {
        let candidates = self.peers.iter().filter(|(_, entry)| of_kind(entry));
        let oldest = candidates.min_by_key(|(_, entry)| (!entry.learned.is_empty(), entry.changed))?;
        Some(*oldest.0)
    }

    fn changing(&mut self, peer: PeerId) -> &mut Entry {
        self.clock += 1;
        let entry = self.peers.entry(peer).or_default();
        entry.changed = self.clock;
        entry
    }
}

fn bounded(mut addrs: Vec<Multiaddr>) -> Vec<Multiaddr> {
    addrs.truncate(Member::ADDRS_MAX);
    addrs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_learned_replaces_what_was_learned_but_not_what_the_peer_told() {
        let (mut book, peer) = (AddressBook::default(), PeerId::random());
        assert!(book.learn(peer, vec![addr(1)]));
        book.told(peer, vec![addr(2)]);
        assert!(book.learn(peer, vec![addr(3)]));
        assert!(!book.learn(peer, vec![addr(3)]));
        assert_eq!(book.addresses(&peer), [addr(3), addr(2)]);
    }

    #[test]
    fn the_address_that_worked_comes_first_and_once() {
        let (mut book, peer) = (AddressBook::default(), PeerId::random());
        book.learn(peer, vec![addr(1), addr(2)]);
        book.reached(peer, addr(2));
        assert_eq!(book.addresses(&peer), [addr(2), addr(1)]);
    }

    #[test]
    fn an_address_where_somebody_else_answers_is_forgotten_unless_it_was_learned() {
        let (mut book, peer) = (AddressBook::default(), PeerId::random());
        book.learn(peer, vec![addr(1)]);
        book.told(peer, vec![addr(1), addr(2)]);
        book.reached(peer, addr(2));
        book.mistaken(&peer, &addr(1));
        book.mistaken(&peer, &addr(2));
        assert_eq!(book.addresses(&peer), [addr(1)]);
    }

    #[test]
    fn who_has_left_the_local_network_is_not_looked_for_there() {
        let (mut book, [a, b]) = (AddressBook::default(), [PeerId::random(), PeerId::random()]);
        book.learn(a, vec![addr(1)]);
        let around = BTreeMap::from([(a, vec![addr(2)]), (b, vec![addr(3)])]);
        assert_eq!(book.heard(&around).len(), 2);
        assert!(book.heard(&around).is_empty(), "nothing has changed");
        assert_eq!(book.addresses(&a), [addr(2), addr(1)]);
        assert_eq!(book.heard(&BTreeMap::from([(b, vec![addr(3)])])), [a]);
        assert_eq!(book.addresses(&a), [addr(1)]);
        assert_eq!(book.heard(&BTreeMap::new()), [b]);
        assert_eq!(book.peers.len(), 1, "of the other nothing is known any more");
    }

    #[test]
    fn neither_peers_nor_addresses_grow_without_bound() {
        let mut book = AddressBook::default();
        let first = PeerId::random();
        book.learn(first, (0..100).map(addr).collect());
        assert_eq!(book.addresses(&first).len(), Member::ADDRS_MAX);
        for _ in 0..AddressBook::PEERS_MAX {
            book.learn(PeerId::random(), vec![addr(1)]);
        }
        assert_eq!(book.peers.len(), AddressBook::PEERS_MAX);
        assert!(book.addresses(&first).is_empty(), "the oldest made room");
    }

    #[test]
    fn strangers_displace_one_another_and_nobody_that_was_learned() {
        let (mut book, first) = (AddressBook::default(), PeerId::random());
        book.learn(first, vec![addr(1)]);
        let strangers: Vec<_> = (0..AddressBook::PEERS_MAX + 10)
            .map(|_| PeerId::random())
            .collect();
        for stranger in &strangers {
            book.told(*stranger, vec![addr(2)]);
        }
        assert_eq!(book.peers.len(), AddressBook::PEERS_MAX);
        assert_eq!(book.addresses(&first), [addr(1)]);
        assert!(book.addresses(&strangers[0]).is_empty(), "the oldest made room");

        for _ in 1..AddressBook::PEERS_MAX {
            book.learn(PeerId::random(), vec![addr(1)]);
        }
        assert_eq!(book.addresses(&first), [addr(1)]);
        for stranger in &strangers[..10] {
            book.told(*stranger, vec![addr(2)]);
            book.heard(&BTreeMap::from([(*stranger, vec![addr(2)])]));
            book.reached(*stranger, addr(2));
        }
        assert_eq!(book.addresses(&first), [addr(1)]);
        assert_eq!(book.peers.len(), AddressBook::PEERS_MAX);
    }

    fn addr(port: u16) -> Multiaddr {
        format!("/ip4/192.0.2.1/udp/{port}/quic-v1").parse().unwrap()
    }
}
