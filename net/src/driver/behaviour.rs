//! Which connections libp2p may keep: how many, and for how long; and the one substream, on connections that are not
//! QUIC to the peer itself, over which a lane carries all classes.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::core::upgrade::{DeniedUpgrade, ReadyUpgrade};
use libp2p::swarm::handler::{
    ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound,
};
use libp2p::swarm::{
    ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId, FromSwarm, NetworkBehaviour,
    Stream, StreamProtocol, SubstreamProtocol, THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
};

use super::shared::Shared;
use crate::{Connections, Dialed, Rung, Unwelcome};
use either::Either;
use lapwing_base::{Multiaddr, PeerId};
use tracing::debug;

/// The part that the swarm owns.
pub(crate) struct Behaviour {
    shared: Arc<Shared>,
    connections: HashMap<ConnectionId, Known>,
    strangers: usize,
    of_peer: HashMap<PeerId, [usize; 2]>,
    /// At most one for each connection.
    carriers: VecDeque<Carrier>,
}

/// Relayed and fallback connections must not keep out the direct one that replaces them, so each sort has its own
/// share.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Sort {
    Direct,
    Other,
}

/// Whose connection it is.
#[derive(Clone, Copy, Debug)]
struct Known {
    peer: PeerId,
    sort: Sort,
    /// Whether it was none of ours when it came.
    stranger: bool,
}

/// A substream that is to carry a lane.
#[derive(Debug)]
pub(crate) struct Carrier {
    pub(crate) id: ConnectionId,
    pub(crate) peer: PeerId,
    pub(crate) dialed: Dialed,
    pub(crate) rung: Rung,
    /// Where the connection leads; of a circuit that the peer has dialed, our own relayed address.
    pub(crate) address: Multiaddr,
    pub(crate) stream: Stream,
}

const LANE: StreamProtocol = StreamProtocol::new("/lapwing/lane/1");

/// Connections at most, in both directions: ten thousand homes at one main, and room for strangers.
const CONNECTIONS_MAX: usize = 16 << 10;

/// Of these, with strangers: whoever makes up identities takes no member's place.
const STRANGERS_MAX: usize = 4 << 10;

impl Behaviour {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            connections: HashMap::new(),
            strangers: 0,
            of_peer: HashMap::new(),
            carriers: VecDeque::new(),
        }
    }

    fn handler(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        dialed: Dialed,
        address: &Multiaddr,
    ) -> Result<Handler, ConnectionDenied> {
        // QUIC to the peer itself has sessions.
        let rung = Rung::of(address).filter(|rung| *rung != Rung::Direct);
        let sort = if rung.is_none() { Sort::Direct } else { Sort::Other };
        let of_sort = self.of_peer.get(&peer).map_or(0, |counts| counts[sort as usize]);
        let stranger = dialed == Dialed::ByThem && !self.shared.is_let_in(&peer);
        if of_sort >= Connections::<ConnectionId>::PER_PEER_MAX / 2
            || self.connections.len() >= CONNECTIONS_MAX
            || (stranger && self.strangers >= STRANGERS_MAX)
        {
            self.shared.refused.count(Unwelcome::Connection);
            return Err(ConnectionDenied::new(TooManyConnections));
        }
        self.of_peer.entry(peer).or_default()[sort as usize] += 1;
        self.strangers += usize::from(stranger);
        self.connections.insert(id, Known { peer, sort, stranger });
        Ok(Handler {
            peer,
            shared: Arc::clone(&self.shared),
            lane: rung.map(|rung| Laying {
                id,
                dialed,
                rung,
                address: address.clone(),
                asked: false,
            }),
            ready: None,
        })
    }
}

/// Where a connection that a peer has dialed leads: to where its packets come from; through a relay that is not known,
/// but which one it is.
fn where_from<'a>(local: &'a Multiaddr, remote: &'a Multiaddr) -> &'a Multiaddr {
    if Rung::of(local) == Some(Rung::Relayed) {
        local
    } else {
        remote
    }
}

/// The peer or this node has more connections than are of use.
#[derive(Debug, thiserror::Error)]
#[error("there are too many connections")]
struct TooManyConnections;

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = Carrier;

    fn handle_pending_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        if self.connections.len() >= CONNECTIONS_MAX {
            self.shared.refused.count(Unwelcome::Connection);
            return Err(ConnectionDenied::new(TooManyConnections));
        }
        Ok(())
    }

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.handler(id, peer, Dialed::ByThem, where_from(local, remote))
    }

    fn handle_established_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        address: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.handler(id, peer, Dialed::ByUs, address)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        // A connection that another protocol denies after our handler was made ends in a failure, not a close.
        let id = match event {
            FromSwarm::ConnectionClosed(event) => event.connection_id,
            FromSwarm::DialFailure(event) => event.connection_id,
            FromSwarm::ListenFailure(event) => event.connection_id,
            _ => return,
        };
        let Some(Known { peer, sort, stranger }) = self.connections.remove(&id) else {
            return;
        };
        self.strangers -= usize::from(stranger);
        if let Some(counts) = self.of_peer.get_mut(&peer) {
            counts[sort as usize] -= 1;
            if *counts == [0; 2] {
                self.of_peer.remove(&peer);
            }
        }
    }

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, carrier: THandlerOutEvent<Self>) {
        self.carriers.push_back(carrier);
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Carrier, THandlerInEvent<Self>>> {
        // No waker: the swarm polls its behaviours after every event of a handler.
        let carrier = self.carriers.pop_front();
        carrier.map_or(Poll::Pending, |carrier| {
            Poll::Ready(ToSwarm::GenerateEvent(carrier))
        })
    }
}

/// The part that one connection owns.
pub(crate) struct Handler {
    peer: PeerId,
    shared: Arc<Shared>,
    lane: Option<Laying>,
    ready: Option<Stream>,
}

/// What a lane's substream is opened with.
struct Laying {
    id: ConnectionId,
    dialed: Dialed,
    rung: Rung,
    address: Multiaddr,
    asked: bool,
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Infallible;
    type ToBehaviour = Carrier;
    type InboundProtocol = Either<ReadyUpgrade<StreamProtocol>, DeniedUpgrade>;
    type OutboundProtocol = ReadyUpgrade<StreamProtocol>;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = ();

    fn listen_protocol(&self) -> SubstreamProtocol<Self::InboundProtocol> {
        // Whoever has dialed opens the lane, once.
        let takes = |laying: &Laying| laying.dialed == Dialed::ByThem && !laying.asked;
        let protocol = if self.lane.as_ref().is_some_and(takes) {
            Either::Left(ReadyUpgrade::new(LANE))
        } else {
            Either::Right(DeniedUpgrade)
        };
        SubstreamProtocol::new(protocol, ())
    }

    fn connection_keep_alive(&self) -> bool {
        self.shared.keeps(&self.peer)
    }

    fn poll(
        &mut self,
        _: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Self::OutboundProtocol, (), Carrier>> {
        let Some(laying) = &mut self.lane else {
            return Poll::Pending;
        };
        if let Some(stream) = self.ready.take() {
            let carrier = Carrier {
                id: laying.id,
                peer: self.peer,
                dialed: laying.dialed,
                rung: laying.rung,
                address: laying.address.clone(),
                stream,
            };
            return Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(carrier));
        }
        if laying.dialed == Dialed::ByUs && !laying.asked {
            laying.asked = true;
            return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest {
                protocol: SubstreamProtocol::new(ReadyUpgrade::new(LANE), ()),
            });
        }
        // No waker: the connection is polled after every event.
        Poll::Pending
    }

    fn on_behaviour_event(&mut self, event: Infallible) {
        match event {}
    }

    fn on_connection_event(
        &mut self,
        event: ConnectionEvent<'_, Self::InboundProtocol, Self::OutboundProtocol>,
    ) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound {
                protocol: futures::future::Either::Left(stream),
                ..
            }) => {
                // Several may be negotiated before the first is done. A connection has one lane, and the others end here.
                match &mut self.lane {
                    Some(laying) if !laying.asked => {
                        laying.asked = true;
                        self.ready = Some(stream);
                    }
                    Some(_) | None => self.shared.refused.count(Unwelcome::Stream),
                }
            }
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound {
                protocol: stream, ..
            }) => {
                self.ready = Some(stream);
            }
            ConnectionEvent::DialUpgradeError(DialUpgradeError { error, .. }) => {
                // It is no node of ours, or of another version; libp2p's own protocols go on.
                debug!(peer = %self.peer, %error, "the peer takes no lane");
            }
            _ => (),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_in_comes_from_where_its_packets_do_and_through_a_relay_from_that_relay() {
        let address = |text: &str| text.parse::<Multiaddr>().unwrap();
        let (ours, theirs) = (
            address("/ip4/192.0.2.1/tcp/443/tls/ws"),
            address("/ip4/203.0.113.9/tcp/50123/tls/ws"),
        );
        assert_eq!(where_from(&ours, &theirs), &theirs);
        let relay = format!(
            "/ip4/198.51.100.1/udp/4001/quic-v1/p2p/{}/p2p-circuit",
            PeerId::random()
        );
        let (ours, theirs) = (address(&relay), address(&format!("/p2p/{}", PeerId::random())));
        assert_eq!(where_from(&ours, &theirs), &ours);
    }
}
