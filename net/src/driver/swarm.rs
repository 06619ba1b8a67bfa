//! How the swarm is built: the transport and the protocols of libp2p that a node speaks.

use std::num::NonZeroU8;
use std::sync::Arc;
use std::time::Duration;

use libp2p::core::Transport as _;
use libp2p::core::muxing::StreamMuxerBox;
use libp2p::core::upgrade::Version;
use libp2p::swarm::NetworkBehaviour;
use libp2p::{Swarm, identify, ping};
use tokio_util::task::TaskTracker;

use super::behaviour::Behaviour;
use super::quic::{self, Quic};
use super::shared::Shared;
use lapwing_base::Keypair;

/// Connections with peers that are not members close after this much idleness.
const IDLE_CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);

/// Everything that is spoken over a connection.
#[derive(NetworkBehaviour)]
pub(crate) struct Protocols {
    upkeep: Behaviour,
    identify: identify::Behaviour,
    ping: ping::Behaviour,
}

/// A swarm whose connections run on the tracker.
pub(crate) fn build(
    keypair: &Keypair,
    shared: Arc<Shared>,
    quic: Arc<Quic>,
    tracker: TaskTracker,
) -> Swarm<Protocols> {
    let transport = quic::Transport::new(quic)
        .map(|(peer, connection), _| (peer, StreamMuxerBox::new(connection)))
        .boxed();
    let agent = format!("lapwing/{}", env!("CARGO_PKG_VERSION"));
    let identify = identify::Config::new("/lapwing/1".to_owned(), keypair.public())
        .with_agent_version(agent)
        .with_push_listen_addr_updates(true);
    let ping = ping::Config::new()
        .with_interval(Duration::from_secs(5))
        .with_timeout(Duration::from_secs(10));
    let protocols = Protocols {
        upkeep: Behaviour::new(shared),
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
