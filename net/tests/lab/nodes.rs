//! Nodes of ours on hosts of the laboratory, as one cluster.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lapwing_base::{ByteSize, Class, ClusterId, Keypair, Multiaddr, PeerId, Role};
use lapwing_net::{Access, Gate, Kind, Network, NetworkConfig, Path, PeerStatus, ReachStatus};
use lapwing_netlab::Host;
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::runtime::Runtime;
use tokio::sync::watch;

pub(crate) const CLUSTER: ClusterId = ClusterId::from_bytes([7; 16]);

/// What everybody answers with what was asked.
pub(crate) const ECHO: Kind = Kind {
    class: Class::Consensus,
    name: "echo",
    access: Access::Members,
    frame_max: ByteSize::kib(64),
};

/// Longer than anything that a test has a node do: it only guards against hanging.
const RUNS_MAX: Duration = Duration::from_secs(900);

/// A node with a runtime whose threads live on its host.
pub(crate) struct LabNode {
    pub(crate) name: String,
    pub(crate) network: Network,
    pub(crate) gate: watch::Sender<Gate>,
    runtime: Option<Runtime>,
}

impl LabNode {
    pub(crate) fn start(host: &Host, role: Option<Role>, listen: &[&str]) -> Self {
        let config = NetworkConfig {
            listen: listen.iter().map(|address| address.parse().unwrap()).collect(),
            role,
            maps_port: false,
            finds_neighbours: false,
            probe_interval: Duration::from_secs(600),
            ..NetworkConfig::new(Keypair::generate_ed25519())
        };
        Self::with(host, config)
    }

    pub(crate) fn with(host: &Host, config: NetworkConfig) -> Self {
        // Many nodes are in one process here, and one that guesses opens 256 sockets.
        let mut files = getrlimit(Resource::Nofile);
        files.current = files.maximum;
        setrlimit(Resource::Nofile, files).unwrap();
        // RUST_LOG says what is shown; a second node finds it set up.
        let _ = tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .with_test_writer()
            .try_init();
        let build = || {
            tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .unwrap()
        };
        let runtime = host.enter(build).unwrap();
        let (gate, gates) = watch::channel(Gate::default());
        let (started, network) = std::sync::mpsc::channel();
        runtime.spawn(async move {
            started.send(Network::start(config, gates).await).unwrap();
        });
        let network = network.recv_timeout(Duration::from_secs(20)).unwrap().unwrap();
        let mut inbound = network.serve(ECHO, 64);
        runtime.spawn(async move {
            while let Some(mut channel) = inbound.recv().await {
                tokio::spawn(async move {
                    while let Ok(Some(frame)) = channel.receive().await {
                        if channel.send(&frame).await.is_err() {
                            break;
                        }
                    }
                });
            }
        });
        Self {
            name: host.name().to_owned(),
            network,
            gate,
            runtime: Some(runtime),
        }
    }

    pub(crate) fn id(&self) -> PeerId {
        self.network.peer_id()
    }

    pub(crate) fn reach(&self) -> ReachStatus {
        self.network.reach().borrow().clone()
    }

    pub(crate) fn peer(&self, other: &Self) -> Option<PeerStatus> {
        let id = other.id();
        self.network
            .status()
            .peers
            .into_iter()
            .find(|peer| peer.peer == id)
    }

    /// How the other is reached now.
    pub(crate) fn path(&self, other: &Self) -> Option<Path> {
        Some(self.peer(other)?.link?.path)
    }

    /// Starts a future on the node's host, which ends with the node.
    pub(crate) fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        self.runtime.as_ref().unwrap().spawn(future);
    }

    /// Tasks of its runtime that have not ended.
    pub(crate) fn tasks(&self) -> usize {
        self.runtime.as_ref().unwrap().metrics().num_alive_tasks()
    }

    /// How many links stand, to whomever.
    pub(crate) fn links(&self) -> u32 {
        self.network
            .status()
            .peers
            .iter()
            .map(|peer| peer.connections)
            .sum()
    }

    /// Runs a future on the node's host.
    pub(crate) fn run<T: Send + 'static>(&self, future: impl Future<Output = T> + Send + 'static) -> T {
        let (done, result) = std::sync::mpsc::channel();
        self.runtime
            .as_ref()
            .unwrap()
            .spawn(async move { done.send(future.await) });
        result.recv_timeout(RUNS_MAX).unwrap()
    }

    /// Asks for an echo and says how long it took.
    pub(crate) fn ask(&self, other: &Self, patience: Duration) -> Result<Duration, String> {
        let (network, peer) = (self.network.clone(), other.id());
        self.run(async move {
            let begun = Instant::now();
            let asked = network.request(peer, ECHO, b"hello", patience).await;
            asked.map(|_| begun.elapsed()).map_err(|error| error.to_string())
        })
    }

    pub(crate) fn stop(mut self) {
        let network = self.network.clone();
        self.run(async move { network.shutdown().await });
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(5));
        }
    }
}

impl Drop for LabNode {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Makes members of all, of which the first are mains, and tells everybody where everybody is.
pub(crate) fn enrol(mains: &[LabNode], homes: &[LabNode]) {
    refresh(mains, homes);
    admit(mains, homes);
}

/// Makes members of all, of which the first are mains, without a word of where anybody is.
pub(crate) fn admit(mains: &[LabNode], homes: &[LabNode]) {
    let all = || mains.iter().chain(homes);
    let members: Arc<HashSet<_>> = Arc::new(all().map(LabNode::id).collect());
    let relays: Arc<HashSet<_>> = Arc::new(mains.iter().map(LabNode::id).collect());
    for node in all() {
        node.gate.send_replace(Gate {
            cluster: Some(CLUSTER),
            members: Arc::clone(&members),
            mains: Arc::clone(&relays),
            watched: Arc::clone(&relays),
        });
    }
}

/// Tells everybody where everybody is now, as the roster would.
pub(crate) fn refresh(mains: &[LabNode], homes: &[LabNode]) {
    let all = || mains.iter().chain(homes);
    for node in all() {
        for other in all().filter(|other| other.id() != node.id()) {
            node.network.learn(other.id(), advertised(other));
        }
    }
}

fn advertised(node: &LabNode) -> Vec<Multiaddr> {
    node.reach().advertised
}

/// Waits until something holds.
pub(crate) fn eventually(what: &str, patience: Duration, mut holds: impl FnMut() -> bool) -> Duration {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < patience, "not within {patience:?}: {what}");
        std::thread::park_timeout(Duration::from_millis(1));
    }
    begun.elapsed()
}
