//! A libp2p peer that is not ours: writes any bytes on a stream of any name, and tells what came back.

use std::io;

use futures::future::BoxFuture;
use futures::{AsyncReadExt as _, AsyncWriteExt as _, StreamExt as _};
use libp2p::core::muxing::StreamMuxerBox;
use libp2p::core::transport::PortUse;
use libp2p::core::upgrade::{DeniedUpgrade, OutboundUpgrade, UpgradeInfo};
use libp2p::core::{Endpoint, Transport as _};
use libp2p::swarm::{
    ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, NotifyHandler, OneShotHandler,
    StreamProtocol, SubstreamProtocol, SwarmEvent, THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
    dial_opts::DialOpts,
};
use libp2p::{Stream, Swarm, quic};
use std::task::{Context, Poll};
use std::time::Duration;

use crate::nodes::{Node, PATIENCE};
use lapwing_base::{Keypair, Multiaddr, PeerId};

pub(crate) struct RawPeer {
    swarm: Swarm<Raw>,
    peer: PeerId,
}

impl RawPeer {
    /// Connects to a node under a fresh identity.
    pub(crate) async fn connect(node: &Node) -> Self {
        let keypair = Keypair::generate_ed25519();
        let transport = quic::tokio::Transport::new(quic::Config::new(&keypair))
            .map(|(peer, connection), _| (peer, StreamMuxerBox::new(connection)))
            .boxed();
        let config = libp2p::swarm::Config::with_tokio_executor().with_idle_connection_timeout(PATIENCE);
        let mut swarm = Swarm::new(transport, Raw::default(), keypair.public().to_peer_id(), config);
        let dial = DialOpts::peer_id(node.id())
            .addresses(node.network.listen_addrs())
            .build();
        swarm.dial(dial).unwrap();
        let mut raw = Self {
            swarm,
            peer: node.id(),
        };
        raw.until(|event| matches!(event, SwarmEvent::ConnectionEstablished { .. }).then_some(()))
            .await;
        raw
    }

    /// Writes bytes on a control stream, ends it, and reads to its end.
    pub(crate) async fn exchange(&mut self, bytes: Vec<u8>) -> io::Result<Vec<u8>> {
        self.exchange_as("/lapwing/1/control", bytes).await
    }

    pub(crate) async fn exchange_as(
        &mut self,
        protocol: &'static str,
        bytes: Vec<u8>,
    ) -> io::Result<Vec<u8>> {
        self.swarm.behaviour_mut().order = Some((self.peer, Exchange { protocol, bytes }));
        self.until(|event| match event {
            SwarmEvent::Behaviour(answer) => Some(answer),
            _ => None,
        })
        .await
    }

    async fn until<T>(&mut self, mut pick: impl FnMut(SwarmEvent<io::Result<Vec<u8>>>) -> Option<T>) -> T {
        let picked = async {
            loop {
                if let Some(picked) = pick(self.swarm.select_next_some().await) {
                    return picked;
                }
            }
        };
        tokio::time::timeout(PATIENCE, picked)
            .await
            .expect("the raw peer gets what it waits for")
    }
}

#[derive(Debug)]
struct Exchange {
    protocol: &'static str,
    bytes: Vec<u8>,
}

impl UpgradeInfo for Exchange {
    type Info = StreamProtocol;
    type InfoIter = [StreamProtocol; 1];

    fn protocol_info(&self) -> Self::InfoIter {
        [StreamProtocol::new(self.protocol)]
    }
}

#[derive(Debug)]
struct Answer(io::Result<Vec<u8>>);

impl OutboundUpgrade<Stream> for Exchange {
    type Output = Answer;
    type Error = io::Error;
    type Future = BoxFuture<'static, Result<Answer, io::Error>>;

    fn upgrade_outbound(self, mut stream: Stream, _: StreamProtocol) -> Self::Future {
        Box::pin(async move {
            let exchange = async {
                stream.write_all(&self.bytes).await?;
                stream.close().await?;
                let mut answer = Vec::new();
                stream.read_to_end(&mut answer).await?;
                Ok(answer)
            };
            Ok(Answer(exchange.await))
        })
    }
}

impl From<std::convert::Infallible> for Answer {
    fn from(never: std::convert::Infallible) -> Self {
        match never {}
    }
}

#[derive(Default)]
struct Raw {
    order: Option<(PeerId, Exchange)>,
    answer: Option<io::Result<Vec<u8>>>,
}

impl NetworkBehaviour for Raw {
    type ConnectionHandler = OneShotHandler<DeniedUpgrade, Exchange, Answer>;
    type ToSwarm = io::Result<Vec<u8>>;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(handler())
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(handler())
    }

    fn on_swarm_event(&mut self, _: FromSwarm<'_>) {}

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        self.answer = Some(match event {
            Ok(Answer(answer)) => answer,
            Err(error) => Err(io::Error::other(error)),
        });
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        if let Some(answer) = self.answer.take() {
            return Poll::Ready(ToSwarm::GenerateEvent(answer));
        }
        self.order.take().map_or(Poll::Pending, |(peer_id, event)| {
            Poll::Ready(ToSwarm::NotifyHandler {
                peer_id,
                handler: NotifyHandler::Any,
                event,
            })
        })
    }
}

fn handler() -> OneShotHandler<DeniedUpgrade, Exchange, Answer> {
    let config = libp2p::swarm::OneShotHandlerConfig {
        outbound_substream_timeout: Duration::from_secs(10),
        ..Default::default()
    };
    OneShotHandler::new(SubstreamProtocol::new(DeniedUpgrade, ()), config)
}
