//! libp2p's upgrade of relayed connections to direct ones (`/libp2p/dcutr`), for peers that are no nodes of ours; nodes
//! agree in a protocol of their own, see [`crate::Punches`].
//!
//! This part only has the two sides exchange addresses, at the moment that suits both. Dialing, and opening NATs, is the
//! driver's. Written anew, since libp2p's own (libp2p-dcutr 0.15) begins with every peer, nodes of ours too, dials as
//! many addresses as a stranger cares to name, and knows ours as libp2p-identify guesses them, which behind a NAT that
//! translates ports is wrong.

mod exchange;
mod handler;
mod message;

use std::collections::{HashMap, VecDeque};
use std::task::{Context, Poll};

use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::swarm::{
    ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, NotifyHandler, StreamProtocol, THandler,
    THandlerInEvent, THandlerOutEvent, ToSwarm,
};
use tokio::sync::watch;

use super::addresses::relay_of;
use crate::Dialed;
use handler::{Begin, Handler};
use lapwing_base::{Multiaddr, PeerId};

/// What is spoken.
pub(crate) const PROTOCOL: StreamProtocol = StreamProtocol::new("/libp2p/dcutr");

/// The part that the swarm owns.
pub(crate) struct Upgrading {
    /// Where this node may be found, the likeliest first.
    ours: watch::Receiver<Vec<Multiaddr>>,
    /// Circuits that others have dialed, on which it is ours to begin.
    circuits: HashMap<ConnectionId, PeerId>,
    events: VecDeque<ToSwarm<Agreed, Begin>>,
}

/// Both sides know where the other may be found, and that now is the moment.
#[derive(Debug)]
pub(crate) struct Agreed {
    pub(crate) peer: PeerId,
    /// Where the peer says that it is. Nobody vouches for that.
    pub(crate) theirs: Vec<Multiaddr>,
    /// Whether this side dials; else it opens its NAT towards the peer, which dials.
    pub(crate) dials: bool,
}

impl Upgrading {
    pub(crate) fn new(ours: watch::Receiver<Vec<Multiaddr>>) -> Self {
        Self {
            ours,
            circuits: HashMap::new(),
            events: VecDeque::new(),
        }
    }

    /// The peer at the other end speaks this protocol, and not ours. Whoever was dialed over the circuit begins.
    pub(crate) fn is_foreign(&mut self, id: ConnectionId) {
        if let Some(peer) = self.circuits.get(&id) {
            self.events.push_back(ToSwarm::NotifyHandler {
                peer_id: *peer,
                handler: NotifyHandler::One(id),
                event: Begin,
            });
        }
    }

    fn handler(&self, address: &Multiaddr, dialed: Dialed) -> Handler {
        if relay_of(address).is_some() {
            Handler::of_circuit(dialed, self.ours.clone())
        } else {
            Handler::default()
        }
    }
}

impl NetworkBehaviour for Upgrading {
    type ConnectionHandler = Handler;
    type ToSwarm = Agreed;

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        if relay_of(local).is_some() {
            self.circuits.insert(id, peer);
        }
        Ok(self.handler(local, Dialed::ByThem))
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        address: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler(address, Dialed::ByUs))
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        // A connection that another protocol denies after our handler was made ends in a failure, not a close.
        match event {
            FromSwarm::ConnectionClosed(event) => drop(self.circuits.remove(&event.connection_id)),
            FromSwarm::ListenFailure(event) => drop(self.circuits.remove(&event.connection_id)),
            _ => (),
        }
    }

    fn on_connection_handler_event(&mut self, peer: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        let handler::Exchanged { theirs, dials } = event;
        let agreed = Agreed { peer, theirs, dials };
        self.events.push_back(ToSwarm::GenerateEvent(agreed));
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Agreed, THandlerInEvent<Self>>> {
        // No waker: the swarm polls its behaviours after every event of a handler, and after the driver's own calls.
        self.events.pop_front().map_or(Poll::Pending, Poll::Ready)
    }
}
