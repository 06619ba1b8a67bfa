//! Which peers are in the local network, as far as they said so lately. Pure: hears nothing itself.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::message::Announcement;
use lapwing_base::{Multiaddr, PeerId};

/// Peers that are remembered. Anybody in the network can make up more.
const PEERS_MAX: usize = 256;

/// Addresses of one of them.
const ADDRESSES_MAX: usize = 8;

/// The longest that an announcement counts, whatever it says: two intervals of questions and some.
const LIFETIME_MAX: Duration = Duration::from_secs(600);

/// The peers around.
#[derive(Debug, Default)]
pub(crate) struct Neighbours {
    peers: BTreeMap<PeerId, Neighbour>,
}

#[derive(Debug)]
struct Neighbour {
    addresses: Vec<Multiaddr>,
    expires_at: Instant,
}

impl Neighbours {
    /// Takes in what a peer says of itself; addresses must have been checked. Whether that changed anything.
    pub(crate) fn heard(&mut self, announcement: Announcement, now: Instant) -> bool {
        let Announcement {
            peer,
            mut addresses,
            lifetime,
        } = announcement;
        if lifetime.is_zero() {
            return self.peers.remove(&peer).is_some();
        }
        addresses.sort();
        addresses.dedup();
        addresses.truncate(ADDRESSES_MAX);
        let is_full = self.peers.len() >= PEERS_MAX;
        let expires_at = now + lifetime.min(LIFETIME_MAX);
        match self.peers.get_mut(&peer) {
            Some(known) => {
                known.expires_at = expires_at;
                // A peer with several interfaces speaks on each of its addresses there.
                let before = known.addresses.len();
                for address in addresses {
                    if known.addresses.len() < ADDRESSES_MAX && !known.addresses.contains(&address) {
                        known.addresses.push(address);
                    }
                }
                known.addresses.len() > before
            }
            None if is_full || addresses.is_empty() => false,
            None => {
                self.peers.insert(
                    peer,
                    Neighbour {
                        addresses,
                        expires_at,
                    },
                );
                true
            }
        }
    }

    /// Forgets who has said nothing for too long. Whether there were any.
    pub(crate) fn expire(&mut self, now: Instant) -> bool {
        let before = self.peers.len();
        self.peers.retain(|_, neighbour| now < neighbour.expires_at);
        self.peers.len() < before
    }

    /// Forgets all: the network is another.
    pub(crate) fn clear(&mut self) -> bool {
        let had = !self.peers.is_empty();
        self.peers.clear();
        had
    }

    /// When somebody is to be forgotten next.
    pub(crate) fn expires_at(&self) -> Option<Instant> {
        self.peers.values().map(|neighbour| neighbour.expires_at).min()
    }

    /// Who is around, and where.
    pub(crate) fn addresses(&self) -> BTreeMap<PeerId, Vec<Multiaddr>> {
        let each = self.peers.iter();
        each.map(|(peer, neighbour)| (*peer, neighbour.addresses.clone()))
            .collect()
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "any instant will do")]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_known_until_it_has_been_silent_for_too_long() {
        let (now, peer) = (Instant::now(), PeerId::random());
        let mut neighbours = Neighbours::default();
        assert!(neighbours.heard(announcement(peer, 100), now));
        let later = now + Duration::from_secs(60);
        assert!(!neighbours.heard(announcement(peer, 100), later));
        assert_eq!(neighbours.expires_at(), Some(later + Duration::from_secs(100)));
        assert!(!neighbours.expire(later + Duration::from_secs(99)));
        assert!(neighbours.expire(later + Duration::from_secs(100)));
        assert!(neighbours.addresses().is_empty());
    }

    #[test]
    fn a_farewell_is_believed_at_once() {
        let (now, peer) = (Instant::now(), PeerId::random());
        let mut neighbours = Neighbours::default();
        neighbours.heard(announcement(peer, 100), now);
        assert!(neighbours.heard(announcement(peer, 0), now));
        assert!(!neighbours.heard(announcement(peer, 0), now));
    }

    #[test]
    fn nobody_stays_for_ever_or_in_any_number() {
        let now = Instant::now();
        let mut neighbours = Neighbours::default();
        for _ in 0..2 * PEERS_MAX {
            neighbours.heard(announcement(PeerId::random(), u64::from(u32::MAX)), now);
        }
        assert_eq!(neighbours.addresses().len(), PEERS_MAX);
        assert!(neighbours.expire(now + LIFETIME_MAX));
        assert!(neighbours.addresses().is_empty());
    }

    #[test]
    fn addresses_on_several_interfaces_add_up_to_a_bound() {
        let (now, peer) = (Instant::now(), PeerId::random());
        let mut neighbours = Neighbours::default();
        for host in 1..100_u8 {
            let address = format!("/ip4/192.168.1.{host}/udp/1/quic-v1").parse().unwrap();
            let announcement = Announcement {
                addresses: vec![address],
                ..announcement(peer, 100)
            };
            let grew = neighbours.heard(announcement, now);
            assert_eq!(grew, usize::from(host) <= ADDRESSES_MAX);
        }
    }

    fn announcement(peer: PeerId, seconds: u64) -> Announcement {
        Announcement {
            peer,
            addresses: vec!["/ip4/192.168.1.7/udp/4001/quic-v1".parse().unwrap()],
            lifetime: Duration::from_secs(seconds),
        }
    }
}
