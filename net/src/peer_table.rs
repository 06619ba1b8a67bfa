//! What is remembered of each peer: its link, its speed, and what went over it.

use crate::said::legible;
use crate::{Estimate, LinkStatus, PeerStatus, RelayedBecause};
use lapwing_base::{ByteSize, CLASSES, Class, Multiaddr, PeerId};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Every peer that this node has dealt with, up to a bound.
#[derive(Debug, Default)]
pub struct PeerTable {
    peers: BTreeMap<PeerId, PeerEntry>,
    /// Of everybody, the forgotten included.
    totals: Arc<Totals>,
}

impl PeerTable {
    /// Beyond as many, peers without a connection are forgotten; connections have a bound of their own.
    pub const PEERS_MAX: usize = 4096;

    /// Of what a peer says it runs, as much is kept: a name and a version.
    pub const AGENT_MAX: usize = 64;

    /// The entry of a peer, made when there is none.
    pub fn entry(&mut self, peer: PeerId) -> &mut PeerEntry {
        if self.peers.len() >= Self::PEERS_MAX && !self.peers.contains_key(&peer) {
            self.peers.retain(|_, entry| entry.connections > 0);
        }
        let totals = &self.totals;
        self.peers.entry(peer).or_insert_with(|| PeerEntry {
            counters: Arc::new(Counters::within(Arc::clone(totals))),
            ..PeerEntry::default()
        })
    }

    /// Forgets those without a connection that are not to be kept.
    pub fn forget_unless(&mut self, is_kept: impl Fn(&PeerId) -> bool) {
        self.peers
            .retain(|peer, entry| entry.connections > 0 || is_kept(peer));
    }

    /// Payload sent to everybody since this node started, by class.
    pub fn sent(&self) -> [ByteSize; CLASSES.len()] {
        self.totals.sent()
    }

    /// Payload received from everybody since this node started, by class.
    pub fn received(&self) -> [ByteSize; CLASSES.len()] {
        self.totals.received()
    }

    /// The entry of a peer, when there is one.
    pub fn get(&self, peer: &PeerId) -> Option<&PeerEntry> {
        self.peers.get(peer)
    }

    /// Every entry, by identity.
    pub fn iter(&self) -> impl Iterator<Item = (&PeerId, &PeerEntry)> {
        self.peers.iter()
    }
}

/// What is remembered of one peer.
#[derive(Debug, Default)]
pub struct PeerEntry {
    /// How many connections stand.
    pub connections: u32,
    /// Where the last connection led.
    pub address: Option<Multiaddr>,
    /// What it says it runs: at most [`PeerTable::AGENT_MAX`] bytes.
    pub agent: Option<String>,
    /// The last round trip of libp2p's ping.
    pub pinged: Option<Duration>,
    /// Why the path is not direct.
    pub relayed_because: Option<RelayedBecause>,
    /// Our upload to it.
    pub estimate: Estimate,
    /// Its upload to us.
    pub download: Estimate,
    /// When it was told last what its transfers have shown.
    pub told_at: Option<Instant>,
    /// Payload in both directions.
    pub counters: Arc<Counters>,
    /// Why there is no connection; gone once there is one.
    pub last_error: Option<String>,
    /// Whether its being unreachable has been logged; told once, until it is reached again.
    pub told_unreachable: bool,
}

impl PeerEntry {
    /// The peer has said what it runs. Cut to its bound, and without what a terminal would obey.
    pub fn set_agent(&mut self, said: &str) {
        self.agent = Some(legible(said, PeerTable::AGENT_MAX));
    }

    /// The entry as the status document shows it, with the link that stands now.
    pub fn status(
        &self,
        peer: PeerId,
        link: Option<LinkStatus>,
        now: Instant,
        fresh: Duration,
    ) -> PeerStatus {
        PeerStatus {
            peer,
            connected: self.connections > 0,
            connections: self.connections,
            address: self.address.clone(),
            agent: self.agent.clone(),
            pinged: self.pinged,
            relayed_because: self.relayed_because,
            link,
            bandwidth: self.estimate.speed(now, fresh),
            download: self.download.speed(now, fresh),
            sent: self.counters.sent(),
            received: self.counters.received(),
            last_error: self.last_error.clone(),
        }
    }
}

/// Payload bytes with one peer by class, counted where frames are sent and received.
#[derive(Debug, Default)]
pub struct Counters {
    own: Totals,
    all: Arc<Totals>,
}

impl Counters {
    fn within(all: Arc<Totals>) -> Self {
        Self {
            own: Totals::default(),
            all,
        }
    }

    /// A frame was handed to the transport whole.
    pub fn count_sent(&self, class: Class, size: usize) {
        for bytes in [&self.own, &*self.all] {
            // Usize is at most 64 bits wide.
            bytes.sent[class.index()].fetch_add(size as u64, Ordering::Relaxed);
        }
    }

    /// A frame has arrived whole.
    pub fn count_received(&self, class: Class, size: usize) {
        for bytes in [&self.own, &*self.all] {
            bytes.received[class.index()].fetch_add(size as u64, Ordering::Relaxed);
        }
    }

    /// Sent so far, by class.
    pub fn sent(&self) -> [ByteSize; CLASSES.len()] {
        self.own.sent()
    }

    /// Received so far, by class.
    pub fn received(&self) -> [ByteSize; CLASSES.len()] {
        self.own.received()
    }
}

/// Payload bytes by class.
#[derive(Debug, Default)]
struct Totals {
    sent: [AtomicU64; CLASSES.len()],
    received: [AtomicU64; CLASSES.len()],
}

impl Totals {
    fn sent(&self) -> [ByteSize; CLASSES.len()] {
        CLASSES.map(|class| ByteSize(self.sent[class.index()].load(Ordering::Relaxed)))
    }

    fn received(&self) -> [ByteSize; CLASSES.len()] {
        CLASSES.map(|class| ByteSize(self.received[class.index()].load(Ordering::Relaxed)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_table_forgets_peers_without_a_connection() {
        let mut table = PeerTable::default();
        let connected = PeerId::random();
        table.entry(connected).connections = 1;
        for _ in 1..PeerTable::PEERS_MAX {
            table.entry(PeerId::random());
        }
        table.entry(PeerId::random());
        assert_eq!(table.peers.len(), 2);
        assert!(table.get(&connected).is_some());
    }

    #[test]
    fn what_went_over_a_peer_that_is_forgotten_stays_in_the_totals() {
        let mut table = PeerTable::default();
        let (stranger, member, connected) = (PeerId::random(), PeerId::random(), PeerId::random());
        let counters = Arc::clone(&table.entry(stranger).counters);
        counters.count_sent(Class::Call, 10);
        table.entry(member).counters.count_sent(Class::Call, 1);
        table.entry(connected).connections = 1;
        table.forget_unless(|peer| *peer == member);
        assert!(table.get(&stranger).is_none());
        assert!(table.get(&member).is_some() && table.get(&connected).is_some());
        // A channel may outlive the entry.
        counters.count_sent(Class::Call, 5);
        assert_eq!(table.sent()[Class::Call.index()], ByteSize(16));
        assert_eq!(table.received()[Class::Call.index()], ByteSize(0));
    }

    #[test]
    fn what_a_peer_says_of_itself_is_cut_and_cannot_steer_a_terminal() {
        let mut entry = PeerEntry::default();
        entry.set_agent("go-libp2p\u{1b}[2J\n");
        assert_eq!(entry.agent.as_deref(), Some("go-libp2p\u{fffd}[2J\u{fffd}"));
        entry.set_agent(&"ü".repeat(1000));
        assert_eq!(entry.agent.map(|agent| agent.len()), Some(PeerTable::AGENT_MAX));
    }

    #[test]
    fn counters_keep_classes_and_directions_apart() {
        let counters = Counters::default();
        counters.count_sent(Class::Model, 10);
        counters.count_received(Class::Control, 3);
        assert_eq!(counters.sent()[Class::Model.index()], ByteSize(10));
        assert_eq!(counters.received()[Class::Model.index()], ByteSize(0));
        assert_eq!(counters.received()[Class::Control.index()], ByteSize(3));
    }
}
