//! Which connections libp2p may keep: how many, and for how long. Opens no streams.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::core::upgrade::DeniedUpgrade;
use libp2p::swarm::handler::ConnectionEvent;
use libp2p::swarm::{
    ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId, FromSwarm, NetworkBehaviour,
    SubstreamProtocol, THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
};

use super::shared::Shared;
use crate::Connections;
use lapwing_base::{Multiaddr, PeerId};

/// The part that the swarm owns.
pub(crate) struct Behaviour {
    shared: Arc<Shared>,
    connections: HashMap<ConnectionId, PeerId>,
    of_peer: HashMap<PeerId, usize>,
}

/// Connections at most, in both directions: ten thousand homes at one main, and room for strangers.
const CONNECTIONS_MAX: usize = 16 << 10;

impl Behaviour {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            connections: HashMap::new(),
            of_peer: HashMap::new(),
        }
    }

    fn handler(&mut self, id: ConnectionId, peer: PeerId) -> Result<Handler, ConnectionDenied> {
        let with_peer = self.of_peer.entry(peer).or_default();
        if *with_peer >= Connections::<ConnectionId>::PER_PEER_MAX
            || self.connections.len() >= CONNECTIONS_MAX
        {
            return Err(ConnectionDenied::new(TooManyConnections));
        }
        *with_peer += 1;
        self.connections.insert(id, peer);
        Ok(Handler {
            peer,
            shared: Arc::clone(&self.shared),
        })
    }
}

/// The peer or this node has more connections than are of use.
#[derive(Debug, thiserror::Error)]
#[error("there are too many connections")]
struct TooManyConnections;

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = Infallible;

    fn handle_pending_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        if self.connections.len() >= CONNECTIONS_MAX {
            return Err(ConnectionDenied::new(TooManyConnections));
        }
        Ok(())
    }

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.handler(id, peer)
    }

    fn handle_established_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.handler(id, peer)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        // A connection that another protocol denies after our handler was made ends in a failure, not a close.
        let id = match event {
            FromSwarm::ConnectionClosed(event) => event.connection_id,
            FromSwarm::DialFailure(event) => event.connection_id,
            FromSwarm::ListenFailure(event) => event.connection_id,
            _ => return,
        };
        if let Some(peer) = self.connections.remove(&id)
            && let Some(with_peer) = self.of_peer.get_mut(&peer)
        {
            *with_peer -= 1;
            if *with_peer == 0 {
                self.of_peer.remove(&peer);
            }
        }
    }

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        Poll::Pending
    }
}

/// The part that one connection owns.
pub(crate) struct Handler {
    peer: PeerId,
    shared: Arc<Shared>,
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Infallible;
    type ToBehaviour = Infallible;
    type InboundProtocol = DeniedUpgrade;
    type OutboundProtocol = DeniedUpgrade;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = ();

    fn listen_protocol(&self) -> SubstreamProtocol<DeniedUpgrade> {
        SubstreamProtocol::new(DeniedUpgrade, ())
    }

    fn connection_keep_alive(&self) -> bool {
        self.shared.keeps(&self.peer)
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ConnectionHandlerEvent<DeniedUpgrade, (), Infallible>> {
        Poll::Pending
    }

    fn on_behaviour_event(&mut self, event: Infallible) {
        match event {}
    }

    fn on_connection_event(&mut self, _: ConnectionEvent<'_, DeniedUpgrade, DeniedUpgrade>) {}
}
