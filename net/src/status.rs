//! What the network shows of itself: plain values for the status document, metrics and people.

use crate::{NatType, RateLimits, Refused, RelayedBecause, Standing};
use lapwing_base::{Bandwidth, ByteSize, CLASSES, Multiaddr, PeerId, Role};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::time::Duration;

/// How a node can be reached, as far as it knows itself.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ReachStatus {
    /// Main or home, and how well that is known.
    pub standing: Standing,
    /// What stands before its IPv4 addresses.
    pub nat: NatType,
    /// What stands before its IPv6 addresses.
    pub nat_v6: NatType,
    /// Where others see it.
    pub observed: Vec<SocketAddr>,
    /// Relays that accept circuits for it, and for how long from now.
    pub reservations: Vec<(PeerId, Duration)>,
    /// The addresses that others should know.
    pub advertised: Vec<Multiaddr>,
}

impl Default for ReachStatus {
    /// Of a node that has just started.
    fn default() -> Self {
        Self {
            standing: Standing {
                role: Role::Home,
                provisional: true,
            },
            nat: NatType::default(),
            nat_v6: NatType::default(),
            observed: Vec::new(),
            reservations: Vec::new(),
            advertised: Vec::new(),
        }
    }
}

/// The network as seen from one node at one moment.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NetworkStatus {
    /// This node.
    pub peer: PeerId,
    /// Where it listens: concrete addresses.
    pub listen: Vec<Multiaddr>,
    /// How it can be reached.
    pub reach: ReachStatus,
    /// What was turned away at the door since this node started.
    pub refused: Refused,
    /// What it keeps to when it sends.
    pub upload_max: RateLimits,
    /// What it keeps to when it receives.
    pub download_max: RateLimits,
    /// Payload sent to everybody since this node started, by [`lapwing_base::Class::index`].
    pub sent: [ByteSize; CLASSES.len()],
    /// Payload received from everybody since this node started, by [`lapwing_base::Class::index`].
    pub received: [ByteSize; CLASSES.len()],
    /// Members that it has dealt with, and others as long as they have a connection, by identity.
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
    /// What it says it runs, as `lapwing/0.1.0` or `go-libp2p`: nobody has checked that. At most
    /// [`crate::PeerTable::AGENT_MAX`] bytes; `None` until it has said so.
    pub agent: Option<String>,
    /// The last round trip of libp2p's own ping, which peers that are no nodes of ours answer too.
    pub pinged: Option<Duration>,
    /// Why the link is not direct; `None` when it is, or when there is none.
    pub relayed_because: Option<RelayedBecause>,
    /// What the link is made of that new channels take; `None` when there is none.
    pub link: Option<LinkStatus>,
    /// Our upload to the peer, smoothed; `None` when it was not measured lately.
    pub bandwidth: Option<Bandwidth>,
    /// The peer's upload to us, in the same way.
    pub download: Option<Bandwidth>,
    /// Payload sent since this node started, by [`lapwing_base::Class::index`].
    pub sent: [ByteSize; CLASSES.len()],
    /// Payload received since this node started, by [`lapwing_base::Class::index`].
    pub received: [ByteSize; CLASSES.len()],
    /// Why the last connection ended or the last dial failed; `None` once connected again.
    pub last_error: Option<String>,
}

/// How a peer is reached.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct LinkStatus {
    /// Whether somebody stands between.
    pub path: Path,
    /// What it is spoken over; of a relayed one, as far as the relay.
    pub transport: Transport,
    /// Round-trip time, smoothed; `None` until there has been one.
    pub rtt: Option<Duration>,
    /// What may be on its way of everything but bulk before it is acknowledged; `None` where the transport hides it.
    pub window: Option<ByteSize>,
    /// The same of bulk; `None` while there is no bulk lane.
    pub bulk_window: Option<ByteSize>,
    /// Packets that were sent, bulk among them, and those of them that were lost.
    pub packets: Packets,
}

/// Packets of one link since it stands.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct Packets {
    /// Sent, first or again.
    pub sent: u64,
    /// Taken for lost.
    pub lost: u64,
}

/// Whether a link leads to the peer itself.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Path {
    /// To the peer itself.
    Direct,
    /// Through a relay.
    Relayed,
}

/// What a link is spoken over.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Transport {
    /// QUIC.
    Quic,
    /// WebSocket over TLS.
    Wss,
}
