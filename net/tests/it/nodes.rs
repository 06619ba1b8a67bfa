//! Nodes to test with: a network, its gate, and tasks that answer.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use lapwing_base::{ByteSize, Class, ClusterId, Keypair, Multiaddr, PeerId};
use lapwing_net::{Access, Gate, Kind, Network, NetworkConfig, PeerStatus, RateLimits, StartError};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Long enough for a busy machine; nothing here waits for it to pass.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) const CLUSTER: ClusterId = ClusterId::from_bytes([7; 16]);

/// A kind for members of any class.
pub(crate) const fn kind(class: Class) -> Kind {
    Kind {
        class,
        name: "test",
        access: Access::Members,
        frame_max: ByteSize::mib(1),
    }
}

pub(crate) struct Node {
    pub(crate) network: Network,
    pub(crate) gate: watch::Sender<Gate>,
    pub(crate) tasks: JoinSet<()>,
}

impl Node {
    pub(crate) async fn start() -> Self {
        Self::with(config()).await.unwrap()
    }

    pub(crate) async fn with(config: NetworkConfig) -> Result<Self, StartError> {
        let (gate, watched) = watch::channel(Gate::default());
        Ok(Self {
            network: Network::start(config, watched).await?,
            gate,
            tasks: JoinSet::new(),
        })
    }

    pub(crate) fn id(&self) -> PeerId {
        self.network.peer_id()
    }

    pub(crate) fn learn(&self, other: &Self) {
        self.network.learn(other.id(), other.network.listen_addrs());
    }

    /// Lets in exactly these, of [`CLUSTER`].
    pub(crate) fn admit(&self, peers: &[PeerId]) {
        self.gate.send_replace(Gate {
            cluster: Some(CLUSTER),
            members: Arc::new(peers.iter().copied().collect::<HashSet<_>>()),
            ..Gate::default()
        });
    }

    /// Answers every frame of a kind with itself.
    pub(crate) fn echo(&mut self, kind: Kind) {
        let mut inbound = self.network.serve(kind, 256);
        self.tasks.spawn(async move {
            let mut answers = JoinSet::new();
            while let Some(mut channel) = inbound.recv().await {
                answers.spawn(async move {
                    while let Ok(Some(frame)) = channel.receive().await {
                        if channel.send(&frame).await.is_err() {
                            return;
                        }
                    }
                    let _ = channel.finish().await;
                });
            }
        });
    }

    pub(crate) fn peer(&self, other: &Self) -> PeerStatus {
        let status = self.network.status();
        let found = status.peers.into_iter().find(|peer| peer.peer == other.id());
        found.expect("the peer is known")
    }
}

pub(crate) fn config() -> NetworkConfig {
    NetworkConfig {
        keypair: Keypair::generate_ed25519(),
        listen: vec![loopback(0)],
        // Long, so that a test sees the probe of a fresh connection and no other.
        probe_interval: Duration::from_secs(600),
        ..NetworkConfig::new(Keypair::generate_ed25519())
    }
}

pub(crate) fn limited(upload_max: RateLimits, download_max: RateLimits) -> NetworkConfig {
    NetworkConfig {
        upload_max,
        download_max,
        ..config()
    }
}

pub(crate) fn loopback(port: u16) -> Multiaddr {
    format!("/ip4/127.0.0.1/udp/{port}/quic-v1").parse().unwrap()
}

/// Two members of one cluster that know each other's addresses.
pub(crate) async fn two_members() -> (Node, Node) {
    let (a, b) = (Node::start().await, Node::start().await);
    befriend(&a, &b);
    (a, b)
}

pub(crate) fn befriend(a: &Node, b: &Node) {
    for (node, other) in [(a, b), (b, a)] {
        node.admit(&[other.id()]);
        node.learn(other);
    }
}

/// Looks again and again until something is so.
pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let looked = async {
        let mut ticks = tokio::time::interval(Duration::from_millis(5));
        while !holds() {
            ticks.tick().await;
        }
    };
    let in_time = tokio::time::timeout(PATIENCE, looked).await;
    assert!(in_time.is_ok(), "never came true: {what}");
}
