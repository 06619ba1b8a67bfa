//! Class streams as a libp2p protocol: opens them where the driver says, and hands inbound ones to the acceptor.
//!
//! It never drops a stream in silence and never chooses a connection: both are why `libp2p-stream` does not serve.

use std::collections::{HashMap, HashSet, VecDeque};
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::sync::Arc;
use std::task::{Context, Poll};

use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::core::upgrade::{InboundUpgrade, OutboundUpgrade, UpgradeInfo};
use libp2p::swarm::handler::{
    ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound,
};
use libp2p::swarm::{
    ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId, FromSwarm, NetworkBehaviour,
    NotifyHandler, StreamProtocol, StreamUpgradeError, SubstreamProtocol, THandler, THandlerInEvent,
    THandlerOutEvent, ToSwarm,
};
use tokio::sync::oneshot;

use super::OpenFailure;
use super::shared::Shared;
use super::stream::Stream;
use crate::Connections;
use futures::future::BoxFuture;
use lapwing_base::{CLASSES, Class, Multiaddr, PeerId};

/// The part that the swarm owns: knows the connections and which peers are members.
pub(crate) struct Behaviour {
    shared: Arc<Shared>,
    members: Arc<HashSet<PeerId>>,
    connections: HashMap<ConnectionId, Link>,
    orders: VecDeque<ToSwarm<Infallible, Order>>,
}

struct Link {
    peer: PeerId,
    /// Cloned into the handler and into every stream of the connection.
    usage: Arc<()>,
}

/// Connections at most, in both directions; a node that needs more is a relay, with limits of its own.
const CONNECTIONS_MAX: usize = 2048;

/// What the driver asks of one connection.
#[derive(Debug)]
pub(crate) enum Order {
    Open(OpenOrder),
    /// Whether the connection outlives its streams.
    KeepAlive(bool),
}

/// A stream that somebody waits for.
#[derive(Debug)]
pub(crate) struct OpenOrder {
    pub(crate) class: Class,
    pub(crate) reply: Reply,
}

type Reply = oneshot::Sender<Result<Opened, OpenFailure>>;

/// A stream with a hold on its connection.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) stream: Stream,
    pub(crate) usage: Arc<()>,
}

impl Behaviour {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            members: Arc::default(),
            connections: HashMap::new(),
            orders: VecDeque::new(),
        }
    }

    /// Opens a stream over one connection. When the connection goes first, the reply is dropped.
    pub(crate) fn open(&mut self, peer: PeerId, id: ConnectionId, order: OpenOrder) {
        self.notify(peer, id, Order::Open(order));
    }

    /// Connections with members stay, others close when they are idle.
    pub(crate) fn set_members(&mut self, members: &Arc<HashSet<PeerId>>) {
        let before = std::mem::replace(&mut self.members, Arc::clone(members));
        let changed: Vec<_> = self
            .connections
            .iter()
            .filter(|(_, link)| before.contains(&link.peer) != members.contains(&link.peer))
            .map(|(id, link)| (*id, link.peer))
            .collect();
        for (id, peer) in changed {
            self.notify(peer, id, Order::KeepAlive(members.contains(&peer)));
        }
    }

    pub(crate) fn is_member(&self, peer: &PeerId) -> bool {
        self.members.contains(peer)
    }

    /// Whether any channel is open over a connection.
    pub(crate) fn in_use(&self, id: ConnectionId) -> bool {
        // One is here and one in the handler.
        self.connections
            .get(&id)
            .is_some_and(|link| Arc::strong_count(&link.usage) > 2)
    }

    fn notify(&mut self, peer_id: PeerId, id: ConnectionId, event: Order) {
        self.orders.push_back(ToSwarm::NotifyHandler {
            peer_id,
            handler: NotifyHandler::One(id),
            event,
        });
    }

    fn handler(&mut self, id: ConnectionId, peer: PeerId) -> Result<Handler, ConnectionDenied> {
        let with_peer = self.connections.values().filter(|link| link.peer == peer).count();
        if with_peer >= Connections::<ConnectionId>::PER_PEER_MAX || self.connections.len() >= CONNECTIONS_MAX
        {
            return Err(ConnectionDenied::new(TooManyConnections));
        }
        let usage = Arc::new(());
        let link = Link {
            peer,
            usage: Arc::clone(&usage),
        };
        self.connections.insert(id, link);
        Ok(Handler {
            peer,
            shared: Arc::clone(&self.shared),
            usage,
            keep_alive: self.members.contains(&peer),
            orders: VecDeque::new(),
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
        self.connections.remove(&id);
    }

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        // No waker: the driver polls the swarm after whatever it asked of us.
        self.orders.pop_front().map_or(Poll::Pending, Poll::Ready)
    }
}

/// The part that one connection owns.
pub(crate) struct Handler {
    peer: PeerId,
    shared: Arc<Shared>,
    usage: Arc<()>,
    keep_alive: bool,
    orders: VecDeque<OpenOrder>,
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Order;
    type ToBehaviour = Infallible;
    type InboundProtocol = Accept;
    type OutboundProtocol = Propose;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = Reply;

    fn listen_protocol(&self) -> SubstreamProtocol<Accept> {
        let accept = Accept {
            peer: self.peer,
            shared: Arc::clone(&self.shared),
            usage: Arc::clone(&self.usage),
        };
        // A stream that says nothing for so long is half-open and dropped.
        SubstreamProtocol::new(accept, ()).with_timeout(super::acceptor::HELLO_TIMEOUT)
    }

    fn connection_keep_alive(&self) -> bool {
        self.keep_alive
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ConnectionHandlerEvent<Propose, Reply, Infallible>> {
        // No waker: the connection is polled after every order.
        self.orders.pop_front().map_or(Poll::Pending, |order| {
            let propose = Propose { class: order.class };
            Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest {
                protocol: SubstreamProtocol::new(propose, order.reply),
            })
        })
    }

    fn on_behaviour_event(&mut self, order: Order) {
        match order {
            Order::Open(order) => self.orders.push_back(order),
            Order::KeepAlive(keep_alive) => self.keep_alive = keep_alive,
        }
    }

    fn on_connection_event(&mut self, event: ConnectionEvent<'_, Accept, Propose, (), Reply>) {
        match event {
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound { protocol, info }) => {
                let usage = Arc::clone(&self.usage);
                // The opener may have stopped waiting, and then the stream is closed unused.
                drop(info.send(Ok(Opened {
                    stream: protocol,
                    usage,
                })));
            }
            ConnectionEvent::DialUpgradeError(DialUpgradeError { info, error }) => {
                let why = match error {
                    StreamUpgradeError::Timeout => "the peer takes no more streams".to_owned(),
                    StreamUpgradeError::NegotiationFailed => "the peer does not know this class".to_owned(),
                    StreamUpgradeError::Io(error) => error.to_string(),
                    StreamUpgradeError::Apply(never) => match never {},
                };
                drop(info.send(Err(OpenFailure::Stream(why))));
            }
            // The acceptor has done everything with it.
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound { protocol: (), .. }) => (),
            _ => (),
        }
    }
}

/// Takes inbound streams of every class.
pub(crate) struct Accept {
    peer: PeerId,
    shared: Arc<Shared>,
    usage: Arc<()>,
}

impl UpgradeInfo for Accept {
    type Info = StreamProtocol;
    type InfoIter = [StreamProtocol; CLASSES.len()];

    fn protocol_info(&self) -> Self::InfoIter {
        CLASSES.map(protocol)
    }
}

impl InboundUpgrade<libp2p::Stream> for Accept {
    type Output = ();
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<(), Infallible>>;

    fn upgrade_inbound(self, stream: libp2p::Stream, info: StreamProtocol) -> Self::Future {
        Box::pin(async move {
            let class = CLASSES.into_iter().find(|class| protocol(*class) == info);
            if let Some(class) = class {
                let opened = Opened {
                    stream: Stream::new(stream),
                    usage: self.usage,
                };
                self.shared
                    .acceptor
                    .accept(self.peer, class, opened, &self.shared)
                    .await;
            }
            Ok(())
        })
    }
}

/// Opens an outbound stream of one class.
pub(crate) struct Propose {
    class: Class,
}

impl UpgradeInfo for Propose {
    type Info = StreamProtocol;
    type InfoIter = [StreamProtocol; 1];

    fn protocol_info(&self) -> Self::InfoIter {
        [protocol(self.class)]
    }
}

impl OutboundUpgrade<libp2p::Stream> for Propose {
    type Output = Stream;
    type Error = Infallible;
    type Future = Ready<Result<Stream, Infallible>>;

    fn upgrade_outbound(self, stream: libp2p::Stream, _: StreamProtocol) -> Self::Future {
        ready(Ok(Stream::new(stream)))
    }
}

const fn protocol(class: Class) -> StreamProtocol {
    StreamProtocol::new(match class {
        Class::Control => "/lapwing/1/control",
        Class::Consensus => "/lapwing/1/consensus",
        Class::Call => "/lapwing/1/call",
        Class::Maintenance => "/lapwing/1/maintenance",
        Class::Model => "/lapwing/1/model",
    })
}
