//! How the swarm is built: the transport, its settings, and the protocols that a node speaks.

use std::num::NonZeroU8;
use std::sync::Arc;
use std::time::Duration;

use libp2p::core::Transport as _;
use libp2p::core::muxing::StreamMuxerBox;
use libp2p::core::upgrade::Version;
use libp2p::swarm::NetworkBehaviour;
use libp2p::{Swarm, identify, ping, quic};
use tokio_util::task::TaskTracker;

use super::behaviour::Behaviour;
use super::shared::Shared;
use lapwing_base::Keypair;

/// A dead peer is noticed after this much silence; four keep-alives may be lost before.
pub(crate) const IDLE_MAX: Duration = Duration::from_secs(6);
const KEEP_ALIVE: Duration = Duration::from_millis(1200);

/// Two round trips at 600 ms and one lost packet, which costs QUIC a second.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(3);

/// Streams that one peer may have open with us. Two kinds' worth of [`super::acceptor::PER_PEER_AND_KIND_MAX`], and as
/// many on their way.
const STREAMS_MAX: u32 = 1024;

/// Eight streams that nobody reads fill a connection; one alone fills an eighth.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;

/// Connections with peers that are not members close after this much idleness.
const IDLE_CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);

/// Everything that is spoken over a connection.
#[derive(NetworkBehaviour)]
pub(crate) struct Protocols {
    pub(crate) classes: Behaviour,
    identify: identify::Behaviour,
    ping: ping::Behaviour,
}

/// A swarm whose connections run on the tracker, and which tells peers its incarnation.
pub(crate) fn build(
    keypair: &Keypair,
    shared: Arc<Shared>,
    tracker: TaskTracker,
    incarnation: u64,
) -> Swarm<Protocols> {
    let mut quic = quic::Config::new(keypair);
    quic.handshake_timeout = HANDSHAKE_TIMEOUT;
    // Six seconds fit in 32 bits of milliseconds.
    quic.max_idle_timeout = IDLE_MAX.as_millis() as u32;
    quic.keep_alive_interval = KEEP_ALIVE;
    quic.max_concurrent_stream_limit = STREAMS_MAX;
    quic.max_stream_data = STREAM_WINDOW;
    quic.max_connection_data = CONNECTION_WINDOW;
    let transport = quic::tokio::Transport::new(quic)
        .map(|(peer, connection), _| (peer, StreamMuxerBox::new(connection)))
        .boxed();
    let agent = format!("lapwing/{}+{incarnation:016x}", env!("CARGO_PKG_VERSION"));
    let identify = identify::Config::new("/lapwing/1".to_owned(), keypair.public())
        .with_agent_version(agent)
        .with_push_listen_addr_updates(true);
    let ping = ping::Config::new()
        .with_interval(Duration::from_secs(5))
        .with_timeout(Duration::from_secs(10));
    let protocols = Protocols {
        classes: Behaviour::new(shared),
        identify: identify::Behaviour::new(identify),
        ping: ping::Behaviour::new(ping),
    };
    let executor = move |task| {
        tracker.spawn(task);
    };
    let config = libp2p::swarm::Config::with_executor(executor)
        .with_idle_connection_timeout(IDLE_CONNECTION_TIMEOUT)
        // An open costs no round trip: the protocol's name and the first frame travel together.
        .with_substream_upgrade_protocol_override(Version::V1Lazy)
        .with_dial_concurrency_factor(DIALS_AT_ONCE);
    Swarm::new(transport, protocols, keypair.public().to_peer_id(), config)
}

/// Addresses of one peer that are tried at once: all that it may have.
const DIALS_AT_ONCE: NonZeroU8 = NonZeroU8::MIN.saturating_add(15);

/// The incarnation in an agent of ours, `lapwing/VERSION+INCARNATION`.
pub(crate) fn incarnation_of(agent: &str) -> Option<u64> {
    let (_, incarnation) = agent.strip_prefix("lapwing/")?.split_once('+')?;
    u64::from_str_radix(incarnation, 16).ok()
}
