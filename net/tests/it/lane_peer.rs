//! A peer that is not ours and opens lanes: as many as it likes on one connection, with any bytes.

use std::collections::HashSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::BytesMut;
use futures::{AsyncReadExt as _, AsyncWriteExt as _, StreamExt as _};
use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::core::upgrade::{DeniedUpgrade, ReadyUpgrade, Version};
use libp2p::multiaddr::Protocol;
use libp2p::swarm::handler::{ConnectionEvent, FullyNegotiatedOutbound};
use libp2p::swarm::{
    ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId, FromSwarm, NetworkBehaviour,
    Stream, StreamProtocol, SubstreamProtocol, SwarmEvent, THandler, THandlerInEvent, THandlerOutEvent,
    ToSwarm,
};
use libp2p::{noise, relay, yamux};
use tokio::task::JoinSet;

use crate::nodes::{Node, PATIENCE, config, eventually};
use lapwing_base::{Keypair, Multiaddr, PeerId, Role};
use lapwing_net::{Gate, LaneError, LaneSide, Mux, NetworkConfig};

/// A home, and a relay that takes anybody to it.
pub(crate) struct Relayed {
    pub(crate) relay: Node,
    pub(crate) home: Node,
}

impl Relayed {
    pub(crate) async fn start() -> Self {
        let open = NetworkConfig {
            relays_strangers: true,
            ..config()
        };
        let relay = Node::with(open).await.unwrap();
        let home = NetworkConfig {
            role: Some(Role::Home),
            ..config()
        };
        let home = Node::with(home).await.unwrap();
        home.learn(&relay);
        home.admit(&[relay.id()]);
        home.gate
            .send_modify(|gate: &mut Gate| gate.mains = Arc::new(HashSet::from([relay.id()])));
        eventually("the home holds a reservation", || {
            !home.network.reach().borrow().reservations.is_empty()
        })
        .await;
        Self { relay, home }
    }

    fn circuit(&self) -> Multiaddr {
        self.relay.network.listen_addrs()[0]
            .clone()
            .with(Protocol::P2p(self.relay.id()))
            .with(Protocol::P2pCircuit)
            .with(Protocol::P2p(self.home.id()))
    }

    /// Opens as many lanes over one circuit as a stranger.
    pub(crate) async fn lanes(&self, count: usize) -> Lanes {
        let mut swarm = libp2p::SwarmBuilder::with_existing_identity(Keypair::generate_ed25519())
            .with_tokio()
            .with_quic()
            .with_relay_client(noise::Config::new, yamux::Config::default)
            .unwrap()
            .with_behaviour(|_, relay| Protocols {
                relay,
                lanes: Opening {
                    to: self.home.id(),
                    count,
                    opened: Vec::new(),
                },
            })
            .unwrap()
            // All are proposed at once, before any is answered.
            .with_swarm_config(|config| config.with_substream_upgrade_protocol_override(Version::V1Lazy))
            .build();
        swarm.dial(self.circuit()).unwrap();
        let mut opened = Vec::new();
        let all = async {
            while opened.len() < count {
                if let SwarmEvent::Behaviour(ProtocolsEvent::Lanes(stream)) = swarm.select_next_some().await {
                    opened.push(Wire::new(stream));
                }
            }
        };
        tokio::time::timeout(PATIENCE, all).await.unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            loop {
                swarm.select_next_some().await;
            }
        });
        Lanes {
            opened,
            _tasks: tasks,
        }
    }
}

/// Lanes over one connection, which stands for as long as this.
pub(crate) struct Lanes {
    pub(crate) opened: Vec<Wire>,
    _tasks: JoinSet<()>,
}

/// Our end of one lane.
pub(crate) struct Wire {
    pub(crate) mux: Mux,
    pub(crate) stream: Stream,
}

impl Wire {
    fn new(stream: Stream) -> Self {
        let mux = Mux::new(LaneSide::Dialer, now());
        Self { mux, stream }
    }

    /// Moves what there is to move, until something holds; says whether the lane still stands then.
    pub(crate) async fn until(&mut self, mut holds: impl FnMut(&mut Mux) -> bool) -> bool {
        let Self { mux, stream } = self;
        let moving = async {
            let mut buffer = vec![0; 64 << 10];
            loop {
                let mut out = BytesMut::new();
                mux.transmit(now(), &mut |_, _| now(), &mut out, &mut |_| {});
                if !out.is_empty() && (stream.write_all(&out).await.is_err() || stream.flush().await.is_err())
                {
                    return false;
                }
                if holds(mux) {
                    return true;
                }
                match stream.read(&mut buffer).await {
                    Ok(0) | Err(_) => return false,
                    Ok(read) => {
                        let taken: Result<(), LaneError> = mux.receive(&buffer[..read], now(), &mut |_| {});
                        taken.unwrap();
                    }
                }
            }
        };
        tokio::time::timeout(PATIENCE, moving).await.unwrap()
    }
}

#[derive(NetworkBehaviour)]
struct Protocols {
    relay: relay::client::Behaviour,
    lanes: Opening,
}

/// Opens so many lanes on each connection with one peer.
struct Opening {
    to: PeerId,
    count: usize,
    opened: Vec<Stream>,
}

impl Opening {
    fn handler(&self, peer: PeerId) -> Opener {
        Opener {
            left: if peer == self.to { self.count } else { 0 },
            opened: Vec::new(),
        }
    }
}

impl NetworkBehaviour for Opening {
    type ConnectionHandler = Opener;
    type ToSwarm = Stream;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler(peer))
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler(peer))
    }

    fn on_swarm_event(&mut self, _: FromSwarm<'_>) {}

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, stream: THandlerOutEvent<Self>) {
        self.opened.push(stream);
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Stream, THandlerInEvent<Self>>> {
        let opened = self.opened.pop();
        opened.map_or(Poll::Pending, |stream| {
            Poll::Ready(ToSwarm::GenerateEvent(stream))
        })
    }
}

struct Opener {
    left: usize,
    opened: Vec<Stream>,
}

impl ConnectionHandler for Opener {
    type FromBehaviour = Infallible;
    type ToBehaviour = Stream;
    type InboundProtocol = DeniedUpgrade;
    type OutboundProtocol = ReadyUpgrade<StreamProtocol>;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = ();

    fn listen_protocol(&self) -> SubstreamProtocol<DeniedUpgrade> {
        SubstreamProtocol::new(DeniedUpgrade, ())
    }

    fn connection_keep_alive(&self) -> bool {
        true
    }

    fn poll(
        &mut self,
        _: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Self::OutboundProtocol, (), Stream>> {
        if let Some(stream) = self.opened.pop() {
            return Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(stream));
        }
        if self.left == 0 {
            return Poll::Pending;
        }
        self.left -= 1;
        let lane = ReadyUpgrade::new(StreamProtocol::new("/lapwing/lane/1"));
        Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest {
            protocol: SubstreamProtocol::new(lane, ()),
        })
    }

    fn on_behaviour_event(&mut self, event: Infallible) {
        match event {}
    }

    fn on_connection_event(
        &mut self,
        event: ConnectionEvent<'_, Self::InboundProtocol, Self::OutboundProtocol>,
    ) {
        if let ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound { protocol, .. }) = event {
            self.opened.push(protocol);
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "a test of real time")]
fn now() -> Instant {
    Instant::now()
}
