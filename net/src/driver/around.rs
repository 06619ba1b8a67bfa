//! A behaviour of libp2p's with another one around it: what that one does differently it says itself, and everything else
//! is passed on from here. Does nothing differently by itself.

use std::fmt::Debug;
use std::ops::{Deref, DerefMut};
use std::task::{Context, Poll};

use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::swarm::handler::ConnectionEvent;
use libp2p::swarm::{
    ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId, FromSwarm, NetworkBehaviour,
    SubstreamProtocol, THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
};

use lapwing_base::{Multiaddr, PeerId};

/// What is done differently from the behaviour inside; by default nothing is.
pub(crate) trait Around: 'static {
    type Inner: NetworkBehaviour;
    type Handler: AroundHandler<Inner = THandler<Self::Inner>>;

    /// The behaviour inside.
    fn inner(&mut self) -> &mut Self::Inner;

    /// What is around its handler of a connection with a peer.
    fn handler(&self, peer: PeerId, inner: THandler<Self::Inner>) -> Self::Handler;

    /// See [`NetworkBehaviour::handle_pending_inbound_connection`].
    fn pending_inbound(
        &mut self,
        id: ConnectionId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        self.inner().handle_pending_inbound_connection(id, local, remote)
    }

    /// See [`NetworkBehaviour::handle_established_inbound_connection`].
    fn inbound(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self::Inner>, ConnectionDenied> {
        self.inner()
            .handle_established_inbound_connection(id, peer, local, remote)
    }

    /// See [`NetworkBehaviour::handle_pending_outbound_connection`].
    fn pending_outbound(
        &mut self,
        id: ConnectionId,
        peer: Option<PeerId>,
        addresses: &[Multiaddr],
        role: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        self.inner()
            .handle_pending_outbound_connection(id, peer, addresses, role)
    }

    /// See [`NetworkBehaviour::on_swarm_event`].
    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        self.inner().on_swarm_event(event);
    }

    /// See [`NetworkBehaviour::poll`].
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Wants<Self::Inner>> {
        self.inner().poll(cx)
    }
}

/// What a behaviour wants of the swarm.
pub(crate) type Wants<B> = ToSwarm<<B as NetworkBehaviour>::ToSwarm, THandlerInEvent<B>>;

/// What is done differently from the handler inside; by default nothing is.
pub(crate) trait AroundHandler: Send + 'static {
    type Inner: ConnectionHandler;
    /// How what it says to the behaviour, and hears from it, travels.
    type Events: Carriage;

    /// The handler inside.
    fn inner(&self) -> &Self::Inner;

    /// The handler inside.
    fn inner_mut(&mut self) -> &mut Self::Inner;

    /// See [`ConnectionHandler::listen_protocol`].
    fn listen_protocol(&self) -> Listens<Self::Inner> {
        self.inner().listen_protocol()
    }

    /// See [`ConnectionHandler::poll`].
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Says<Self::Inner>> {
        self.inner_mut().poll(cx)
    }

    /// See [`ConnectionHandler::on_behaviour_event`].
    fn on_behaviour_event(&mut self, event: <Self::Inner as ConnectionHandler>::FromBehaviour) {
        self.inner_mut().on_behaviour_event(event);
    }
}

/// What a handler takes of the peer's streams.
pub(crate) type Listens<H> =
    SubstreamProtocol<<H as ConnectionHandler>::InboundProtocol, <H as ConnectionHandler>::InboundOpenInfo>;

/// What a handler has to say.
pub(crate) type Says<H> = ConnectionHandlerEvent<
    <H as ConnectionHandler>::OutboundProtocol,
    <H as ConnectionHandler>::OutboundOpenInfo,
    <H as ConnectionHandler>::ToBehaviour,
>;

/// How events between a behaviour and its handlers travel.
pub(crate) trait Carriage: 'static {
    type Of<T: Debug + Send + 'static>: Debug + Send + 'static;

    fn put<T: Debug + Send + 'static>(event: T) -> Self::Of<T>;
    fn take<T: Debug + Send + 'static>(event: Self::Of<T>) -> T;
}

/// As they are.
pub(crate) struct Plain;

impl Carriage for Plain {
    type Of<T: Debug + Send + 'static> = T;

    fn put<T: Debug + Send + 'static>(event: T) -> T {
        event
    }

    fn take<T: Debug + Send + 'static>(event: T) -> T {
        event
    }
}

/// Apart from the task that polls the handler.
pub(crate) struct Boxed;

impl Carriage for Boxed {
    type Of<T: Debug + Send + 'static> = Box<T>;

    fn put<T: Debug + Send + 'static>(event: T) -> Box<T> {
        Box::new(event)
    }

    fn take<T: Debug + Send + 'static>(event: Box<T>) -> T {
        *event
    }
}

/// A behaviour with what is around it.
pub(crate) struct Wrapped<A>(pub(crate) A);

impl<A> Deref for Wrapped<A> {
    type Target = A;

    fn deref(&self) -> &A {
        &self.0
    }
}

impl<A> DerefMut for Wrapped<A> {
    fn deref_mut(&mut self) -> &mut A {
        &mut self.0
    }
}

impl<A: Around> NetworkBehaviour for Wrapped<A> {
    type ConnectionHandler = WrappedHandler<A::Handler>;
    type ToSwarm = <A::Inner as NetworkBehaviour>::ToSwarm;

    fn handle_pending_inbound_connection(
        &mut self,
        id: ConnectionId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        self.0.pending_inbound(id, local, remote)
    }

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        let inner = self.0.inbound(id, peer, local, remote)?;
        Ok(WrappedHandler(self.0.handler(peer, inner)))
    }

    fn handle_pending_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: Option<PeerId>,
        addresses: &[Multiaddr],
        role: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        self.0.pending_outbound(id, peer, addresses, role)
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
            .0
            .inner()
            .handle_established_outbound_connection(id, peer, address, role, port)?;
        Ok(WrappedHandler(self.0.handler(peer, inner)))
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        self.0.on_swarm_event(event);
    }

    fn on_connection_handler_event(&mut self, peer: PeerId, id: ConnectionId, event: THandlerOutEvent<Self>) {
        let event = <A::Handler as AroundHandler>::Events::take(event);
        self.0.inner().on_connection_handler_event(peer, id, event);
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Wants<Self>> {
        let polled = self.0.poll(cx);
        polled.map(|action| action.map_in(<A::Handler as AroundHandler>::Events::put))
    }
}

/// A handler with what is around it.
pub(crate) struct WrappedHandler<A>(A);

impl<A: AroundHandler> ConnectionHandler for WrappedHandler<A> {
    type FromBehaviour = <A::Events as Carriage>::Of<<A::Inner as ConnectionHandler>::FromBehaviour>;
    type ToBehaviour = <A::Events as Carriage>::Of<<A::Inner as ConnectionHandler>::ToBehaviour>;
    type InboundProtocol = <A::Inner as ConnectionHandler>::InboundProtocol;
    type OutboundProtocol = <A::Inner as ConnectionHandler>::OutboundProtocol;
    type InboundOpenInfo = <A::Inner as ConnectionHandler>::InboundOpenInfo;
    type OutboundOpenInfo = <A::Inner as ConnectionHandler>::OutboundOpenInfo;

    fn listen_protocol(&self) -> Listens<Self> {
        self.0.listen_protocol()
    }

    fn connection_keep_alive(&self) -> bool {
        self.0.inner().connection_keep_alive()
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Says<Self>> {
        self.0.poll(cx).map(|event| event.map_custom(A::Events::put))
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Option<Self::ToBehaviour>> {
        let polled = self.0.inner_mut().poll_close(cx);
        polled.map(|event| event.map(A::Events::put))
    }

    fn on_behaviour_event(&mut self, event: Self::FromBehaviour) {
        self.0.on_behaviour_event(A::Events::take(event));
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
        self.0.inner_mut().on_connection_event(event);
    }
}
