//! The relay service (circuit relay v2): libp2p's, for whom we choose. Everybody else finds that we do not speak it.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use either::Either;
use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::relay;
use libp2p::swarm::handler::ConnectionEvent;
use libp2p::swarm::{
    ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId, FromSwarm, NetworkBehaviour,
    SubstreamProtocol, THandler, THandlerInEvent, THandlerOutEvent, ToSwarm, dummy,
};

use super::shared::Shared;
use lapwing_base::{Multiaddr, PeerId};

/// Reservations at once: as many homes as one main is planned for.
const RESERVATIONS_MAX: usize = 10_000;

/// A home needs one; a second may overlap while the first is replaced. libp2p-relay 0.22 looks at how many there are
/// before it adds one, and so gives one more than it is told.
const RESERVATIONS_PER_PEER_MAX: usize = 1;

/// Of the reservation; clients renew it well before. What libp2p's relays give.
pub(crate) const RESERVATION_LIFETIME: Duration = Duration::from_secs(3600);

/// Circuits at once: each is two streams and two buffers of 8 KiB.
const CIRCUITS_MAX: usize = 4096;

/// A home that talks with everybody of a middling cluster through us.
const CIRCUITS_PER_PEER_MAX: usize = 64;

/// A circuit is for control, and may have to last: nodes hold each other's bulk off relayed paths.
const CIRCUIT_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// Per circuit and direction; then the nodes make another one.
const CIRCUIT_BYTES_MAX: u64 = 4 << 30;

/// libp2p's relay service behind a door.
pub(crate) struct Relaying {
    inner: relay::Behaviour,
    shared: Arc<Shared>,
    /// Whether strangers may use it too.
    open: bool,
}

impl Relaying {
    pub(crate) fn new(me: PeerId, shared: Arc<Shared>, open: bool) -> Self {
        let config = relay::Config {
            max_reservations: RESERVATIONS_MAX,
            max_reservations_per_peer: RESERVATIONS_PER_PEER_MAX,
            reservation_duration: RESERVATION_LIFETIME,
            // Members are counted, and accepting connections has its own limits; the homes of one household or lab
            // share an IP address.
            reservation_rate_limiters: Vec::new(),
            max_circuits: CIRCUITS_MAX,
            max_circuits_per_peer: CIRCUITS_PER_PEER_MAX,
            max_circuit_duration: CIRCUIT_LIFETIME,
            max_circuit_bytes: CIRCUIT_BYTES_MAX,
            circuit_src_rate_limiters: Vec::new(),
        };
        let mut inner = relay::Behaviour::new(me, config);
        inner.set_status(Some(relay::Status::Disable));
        Self { inner, shared, open }
    }

    /// Serves from now on, or no longer.
    pub(crate) fn serve(&mut self, serve: bool) {
        let status = if serve {
            relay::Status::Enable
        } else {
            relay::Status::Disable
        };
        self.inner.set_status(Some(status));
    }

    fn door(&self, peer: PeerId, inner: THandler<relay::Behaviour>) -> Door {
        Door {
            peer,
            inner,
            shared: Arc::clone(&self.shared),
            open: self.open,
        }
    }
}

impl NetworkBehaviour for Relaying {
    type ConnectionHandler = Door;
    type ToSwarm = relay::Event;

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        let inner = self
            .inner
            .handle_established_inbound_connection(id, peer, local, remote)?;
        Ok(self.door(peer, inner))
    }

    fn handle_established_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        address: &Multiaddr,
        role: Endpoint,
        port: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        let inner = self
            .inner
            .handle_established_outbound_connection(id, peer, address, role, port)?;
        Ok(self.door(peer, inner))
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        self.inner.on_swarm_event(event);
    }

    fn on_connection_handler_event(&mut self, peer: PeerId, id: ConnectionId, event: THandlerOutEvent<Self>) {
        self.inner.on_connection_handler_event(peer, id, event);
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<relay::Event, THandlerInEvent<Self>>> {
        self.inner.poll(cx)
    }
}

type Inner = THandler<relay::Behaviour>;

/// Of one connection: takes the relay protocol only from whom it is for, at the moment that it is asked.
pub(crate) struct Door {
    peer: PeerId,
    inner: Inner,
    shared: Arc<Shared>,
    open: bool,
}

impl ConnectionHandler for Door {
    type FromBehaviour = <Inner as ConnectionHandler>::FromBehaviour;
    type ToBehaviour = <Inner as ConnectionHandler>::ToBehaviour;
    type InboundProtocol = <Inner as ConnectionHandler>::InboundProtocol;
    type OutboundProtocol = <Inner as ConnectionHandler>::OutboundProtocol;
    type InboundOpenInfo = <Inner as ConnectionHandler>::InboundOpenInfo;
    type OutboundOpenInfo = <Inner as ConnectionHandler>::OutboundOpenInfo;

    fn listen_protocol(&self) -> SubstreamProtocol<Self::InboundProtocol, Self::InboundOpenInfo> {
        if self.open || self.shared.is_member(&self.peer) {
            self.inner.listen_protocol()
        } else {
            let shut: Inner = Either::Right(dummy::ConnectionHandler);
            shut.listen_protocol()
        }
    }

    fn connection_keep_alive(&self) -> bool {
        self.inner.connection_keep_alive()
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Self::OutboundProtocol, Self::OutboundOpenInfo, Self::ToBehaviour>> {
        self.inner.poll(cx)
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Option<Self::ToBehaviour>> {
        self.inner.poll_close(cx)
    }

    fn on_behaviour_event(&mut self, event: Self::FromBehaviour) {
        // A change of the service's status is told to relayed connections too, which have no such handler and would
        // panic (libp2p-relay 0.22, `reconfigure_relay_status`).
        if self.inner.is_left() == event.is_left() {
            self.inner.on_behaviour_event(event);
        }
    }

    fn on_connection_event(
        &mut self,
        event: ConnectionEvent<
            '_,
            Self::InboundProtocol,
            Self::OutboundProtocol,
            Self::InboundOpenInfo,
            Self::OutboundOpenInfo,
        >,
    ) {
        self.inner.on_connection_event(event);
    }
}
