//! What [`crate::Punches`] says is to be done, and why it begins nothing. Does none of it.

use crate::{Chosen, Datagram, Observation, Probed, PunchMessage, RelayedBecause, SocketId, Strategy};
use lapwing_base::PeerId;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// What to do.
#[must_use]
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum PunchAction {
    /// Say this to the peer over the relayed connection.
    Tell {
        /// To whom.
        peer: PeerId,
        /// What.
        message: PunchMessage,
    },
    /// Send a datagram.
    Send(Datagram),
    /// Open as many IPv4 sockets on any port, and hand them over by [`crate::Punches::sockets_opened`].
    OpenSockets {
        /// For the attempt with this peer.
        peer: PeerId,
        /// How many.
        count: u16,
    },
    /// Close the sockets that were opened for this peer, but for the one that a path was found from: that comes just
    /// before [`Self::Found`], and the attempt may send a few more datagrams from the socket that stays.
    CloseSockets {
        /// For the attempt with this peer.
        peer: PeerId,
        /// The one that stays.
        keep: Option<SocketId>,
    },
    /// The peer has told where one of our sockets' packets come from.
    Observed(Observation),
    /// Dial QUIC there at once, from this socket: the peer's NAT is about to be opened, and in all likelihood the
    /// handshake itself gets through, a round trip before it is known that probes do. What comes of it may be nothing.
    Dial {
        /// Whom.
        peer: PeerId,
        /// Our socket.
        socket: SocketId,
        /// The peer's address.
        remote: SocketAddr,
    },
    /// A path was found.
    Found {
        /// To whom.
        peer: PeerId,
        /// From where to where, and who dials.
        chosen: Chosen,
        /// How.
        strategy: Strategy,
        /// Since the offer was sent, or came in.
        took: Duration,
        /// What became of every address.
        probed: Vec<Probed>,
    },
    /// None was found in this attempt.
    Failed {
        /// To whom.
        peer: PeerId,
        /// Why.
        why: RelayedBecause,
        /// When another attempt is worth while.
        retry_at: Instant,
        /// What became of every address.
        probed: Vec<Probed>,
    },
}

/// An attempt was not begun.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum PunchError {
    /// One is under way.
    #[error("an attempt is under way")]
    UnderWay,
    /// The last one was not long ago.
    #[error("the next attempt is not due yet")]
    NotDue {
        /// When it is.
        retry_at: Instant,
    },
    /// Nothing can be gained.
    #[error("{why}")]
    Hopeless {
        /// Why.
        why: RelayedBecause,
        /// When to ask again, in case something has changed.
        retry_at: Instant,
    },
}
