//! What the network shows of itself: plain values for the status document, metrics and people.

use lapwing_base::{Bandwidth, ByteSize, CLASSES, Multiaddr, PeerId};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The network as seen from one node at one moment.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct NetworkStatus {
    /// This node.
    pub peer: PeerId,
    /// Where it listens: concrete addresses.
    pub listen: Vec<Multiaddr>,
    /// Addresses under which peers have seen it, the most often seen first.
    pub observed: Vec<Multiaddr>,
    /// Everybody it has dealt with and still remembers, by identity.
    pub peers: Vec<PeerStatus>,
}

/// One link.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// The other end.
    pub peer: PeerId,
    /// Whether a connection stands now.
    pub connected: bool,
    /// How many stand: more than one only for seconds, after both ends have dialed at once or one has restarted.
    pub connections: u32,
    /// Where the standing connection leads, or else the last one did.
    pub address: Option<Multiaddr>,
    /// Round-trip time of the standing connection, as last measured.
    pub rtt: Option<Duration>,
    /// Our upload to the peer, smoothed; `None` when it was not measured lately.
    pub bandwidth: Option<Bandwidth>,
    /// Payload sent since this node started, by [`lapwing_base::Class::index`].
    pub sent: [ByteSize; CLASSES.len()],
    /// Payload received since this node started, by [`lapwing_base::Class::index`].
    pub received: [ByteSize; CLASSES.len()],
    /// Why the last connection ended or the last dial failed; `None` once connected again.
    pub last_error: Option<String>,
}
