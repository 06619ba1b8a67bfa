//! How the swarm is built: the transports and the protocols of libp2p that a node speaks.

use std::num::NonZeroU8;
use std::sync::Arc;
use std::time::Duration;

use futures::future::Either;
use libp2p::core::muxing::StreamMuxerBox;
use libp2p::core::transport::Boxed;
use libp2p::core::upgrade::Version;
use libp2p::core::{ConnectedPoint, Transport as _};
use libp2p::swarm::NetworkBehaviour;
use libp2p::{Swarm, identify, noise, ping, relay, yamux};
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

use super::around::Wrapped;
use super::behaviour::Behaviour;
use super::boxed_handlers::BoxedHandlers;
use super::confirming::Confirming;
use super::network::StartError;
use super::pinging::Pinging;
use super::quic::{self, Quic};
use super::relaying::Relaying;
use super::shared::Shared;
use super::upgrading::Upgrading;
use super::websocket::{self, Proxy, WebSocketConfig};
use lapwing_base::{Keypair, Multiaddr, PeerId};

/// Connections with peers that are not members close after this much idleness.
const IDLE_CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);

/// A main has thousands of connections, and links know by themselves how far their peers are: this is for those that
/// are no nodes of ours.
const PING_INTERVAL: Duration = Duration::from_secs(60);

/// Everything that is spoken over a connection.
#[derive(NetworkBehaviour)]
pub(crate) struct Protocols {
    pub(crate) upkeep: Behaviour,
    identify: identify::Behaviour,
    ping: Wrapped<Pinging>,
    pub(crate) relaying: Wrapped<Relaying>,
    relayed: relay::client::Behaviour,
    pub(crate) upgrading: Upgrading,
    pub(crate) confirming: Wrapped<Confirming>,
}

/// What a swarm is made of.
pub(crate) struct Setup<'a> {
    pub(crate) keypair: &'a Keypair,
    pub(crate) shared: Arc<Shared>,
    pub(crate) quic: Arc<Quic>,
    pub(crate) tracker: TaskTracker,
    pub(crate) relays_strangers: bool,
    pub(crate) certificate: Option<websocket::CertificateFiles>,
    pub(crate) proxy: Option<Proxy>,
    /// Where peers that are no nodes of ours may find this node when they upgrade a circuit.
    pub(crate) candidates: watch::Receiver<Vec<Multiaddr>>,
}

/// By which nodes of ours know each other before they say anything else.
pub(crate) const PROTOCOL_VERSION: &str = "/lapwing/1";

/// A swarm whose connections run on the tracker.
///
/// # Errors
/// When the identity cannot sign, or the certificate for WebSocket cannot be used.
pub(crate) fn build(setup: Setup<'_>) -> Result<Swarm<Wrapped<BoxedHandlers<Protocols>>>, StartError> {
    let Setup {
        keypair,
        shared,
        quic,
        tracker,
        relays_strangers,
        certificate,
        proxy,
        candidates,
    } = setup;
    let me = keypair.public().to_peer_id();
    let (circuits, relayed) = relay::client::new(me);
    let config = WebSocketConfig {
        proxy,
        certificate,
        ..WebSocketConfig::default()
    };
    let websocket = websocket::transport(keypair, &config, &shared.websockets)
        .map_err(|error| StartError::WebSocket { source: error.into() })?;
    let transport = quic::Transport::new(quic)
        .map(|(peer, connection), _| (peer, StreamMuxerBox::new(connection)))
        .or_transport(websocket)
        .map(either)
        .or_transport(over_circuits(keypair, circuits)?)
        .map(either)
        .boxed();
    let agent = format!("lapwing/{}", env!("CARGO_PKG_VERSION"));
    let identify = identify::Config::new(PROTOCOL_VERSION.to_owned(), keypair.public())
        .with_agent_version(agent)
        .with_push_listen_addr_updates(true);
    let ping = ping::Config::new()
        .with_interval(PING_INTERVAL)
        .with_timeout(Duration::from_secs(10));
    let protocols = Protocols {
        upkeep: Behaviour::new(Arc::clone(&shared)),
        identify: identify::Behaviour::new(identify),
        ping: Wrapped(Pinging::new(ping)),
        confirming: Wrapped(Confirming::new(Arc::clone(&shared))),
        relaying: Wrapped(Relaying::new(me, shared, relays_strangers)),
        relayed,
        upgrading: Upgrading::new(candidates),
    };
    let executor = move |task| {
        tracker.spawn(task);
    };
    let config = libp2p::swarm::Config::with_executor(executor)
        .with_idle_connection_timeout(IDLE_CONNECTION_TIMEOUT)
        // An open costs no round trip: the protocol's name and the first frame travel together.
        .with_substream_upgrade_protocol_override(Version::V1Lazy)
        .with_dial_concurrency_factor(DIALS_AT_ONCE);
    Ok(Swarm::new(
        transport,
        Wrapped(BoxedHandlers(protocols)),
        me,
        config,
    ))
}

/// Relayed circuits, secured from end to end.
fn over_circuits(
    keypair: &Keypair,
    circuits: relay::client::Transport,
) -> Result<Boxed<(PeerId, StreamMuxerBox)>, StartError> {
    let noise = noise::Config::new(keypair).map_err(|error| StartError::Identity { source: error.into() })?;
    Ok(circuits
        .upgrade(Version::V1Lazy)
        .authenticate(noise)
        .multiplex(yamux::Config::default())
        .timeout(CIRCUIT_PATIENCE)
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)))
        .boxed())
}

/// The same, whichever transport it comes from.
fn either<T>(output: Either<T, T>, _: ConnectedPoint) -> T {
    match output {
        Either::Left(output) | Either::Right(output) => output,
    }
}

/// A circuit, and two handshakes through it: five round trips at 600 ms each way twice over.
const CIRCUIT_PATIENCE: Duration = Duration::from_secs(10);

/// Addresses of one peer that are tried at once: all that it may have.
const DIALS_AT_ONCE: NonZeroU8 = NonZeroU8::MIN.saturating_add(15);
