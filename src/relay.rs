//! A relay: a node that belongs to no cluster's log, carries calls, and answers JSON-RPC over HTTP. As a main it takes in homes
//! and knows other mains; as a home it dials one main and offers services.
//!
//! Start: identity, network, federation, HTTP; then, in the background, looking for the mains that it was told of. Stop: HTTP,
//! federation, network.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use lapwing_base::{ClusterId, Keypair, Multiaddr, PeerId, Role};
use lapwing_federation::{
    Announcement, AnnouncementError, Around, Balancing, Federation, FederationConfig, HttpConfig,
    MainAddress, NodeName, ParseMainAddressError, PeerChange, Policy, router,
};
use lapwing_gateway::{Client, ClientConfig};
use lapwing_net::{Gate, Network, NetworkConfig, load_or_create_identity};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::audit;
use crate::data_dir::{DataDir, DataDirError};
use crate::services::{self, OfferFailure, ServiceSpec};
use crate::spans::{SpanExporter, SpanExporterError};
use crate::wiring::mains::{Finder, Names};

/// What a relay is told when it starts.
#[derive(Clone, Debug)]
pub struct RelayConfig {
    /// Main or home.
    pub role: Role,
    /// What it wants to be called, with the ending of its kind or without ([`NodeName::own`]); the first that claims a name has
    /// it. Default: its peer id.
    pub name: Option<NodeName>,
    /// Where its identity is kept. Default: nowhere, and it is another node after each start.
    pub data_dir: Option<PathBuf>,
    /// Where JSON-RPC is answered.
    pub http: SocketAddr,
    /// Where other nodes are listened to.
    pub listen: Vec<Multiaddr>,
    /// Of a home the mains that it may dial, the most wanted first; of a main those that it is to be connected with.
    pub mains: Vec<MainSource>,
    /// Gateways that know of mains, as URLs.
    pub gateways: Vec<String>,
    /// To which cluster it belongs. Default: none.
    pub cluster: Option<ClusterId>,
    /// Whom it has to do with.
    pub policy: Policy,
    /// What it offers others.
    pub services: Vec<ServiceSpec>,
    /// Whether it offers the built-in `echo` beside them.
    pub has_echo: bool,
    /// How many links away its services are known.
    pub hops_max: u8,
    /// How a main spreads calls over the instances of each service; a home leaves that to its main.
    pub balancing: Balancing,
    /// Whether callers of the edge may add mains and remove them.
    pub peers_may_change: bool,
}

impl RelayConfig {
    /// A main that answers JSON-RPC at `http` and listens for other nodes at the same number of UDP (with 0 at any).
    pub fn main(http: SocketAddr) -> Self {
        Self::new(Role::Main, http, http.port())
    }

    /// A home that dials `main`, and answers JSON-RPC at `http`.
    pub fn home(http: SocketAddr, main: MainSource) -> Self {
        Self {
            mains: vec![main],
            ..Self::new(Role::Home, http, 0)
        }
    }

    fn new(role: Role, http: SocketAddr, port: u16) -> Self {
        let family = if http.is_ipv4() { "ip4" } else { "ip6" };
        let listen = format!("/{family}/{}/udp/{port}/quic-v1", http.ip());
        Self {
            role,
            name: None,
            data_dir: None,
            http,
            listen: listen.parse().into_iter().collect(),
            mains: Vec::new(),
            gateways: Vec::new(),
            cluster: None,
            policy: Policy::default(),
            services: Vec::new(),
            has_echo: true,
            hops_max: Announcement::HOPS_DEFAULT,
            balancing: Balancing::default(),
            peers_may_change: false,
        }
    }
}

/// Where a main is found.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum MainSource {
    /// At an address.
    Address(MainAddress),
    /// Wherever the domain name system's SRV records of a name say, as `_lapwing._tcp.example.org`.
    Srv(String),
}

/// Why a relay could not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RelayError {
    /// The data directory.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The key.
    #[error("the identity cannot be used")]
    Identity(#[from] lapwing_net::IdentityError),
    /// A listen address is in use, or not ours.
    #[error("the network cannot start")]
    Network(#[from] lapwing_net::StartError),
    /// A gateway URL is wrong.
    #[error("a gateway cannot be asked")]
    Gateway(#[from] lapwing_gateway::ConfigError),
    /// HTTP's address is in use.
    #[error("the address {addr} cannot be used for HTTP; give another --port, or stop what uses it")]
    Http {
        /// Which.
        addr: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What it says of itself is nothing that others take.
    #[error("the relay cannot be announced")]
    Announcement(#[from] AnnouncementError),
    /// A service that `--service` describes.
    #[error("the service `{service}` cannot be offered")]
    Service {
        /// As given.
        service: String,
        /// Why.
        #[source]
        source: OfferFailure,
    },
    /// The settings of OpenTelemetry.
    #[error("spans cannot be exported")]
    Spans(#[from] SpanExporterError),
    /// HTTP cannot be spoken.
    #[error("there is no client for HTTP")]
    Client(#[from] reqwest::Error),
}

impl FromStr for MainSource {
    type Err = ParseMainAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.trim().strip_prefix("srv:") {
            Some(name) => Ok(Self::Srv(name.to_owned())),
            None => text.parse().map(Self::Address),
        }
    }
}

impl fmt::Display for MainSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Srv(name) => write!(f, "srv:{name}"),
        }
    }
}

/// A relay to be.
#[derive(Debug)]
pub struct Relay;

/// A running relay. It stops when this is dropped, and in good order when [`RelayHandle::shutdown`] is called.
#[derive(Debug)]
#[must_use = "a relay stops when its handle is dropped"]
pub struct RelayHandle {
    federation: Federation,
    network: Network,
    http: SocketAddr,
    dir: Option<DataDir>,
    tasks: JoinSet<()>,
    /// They end last, so that what the others have to say at their end is written.
    writers: JoinSet<()>,
    stop_writers: CancellationToken,
    stop: CancellationToken,
    /// The network asks it whom to let in; there is no log that says so.
    _gate: watch::Sender<Gate>,
    /// Kept for as long as anybody may want other mains.
    _wanted: watch::Sender<WantedMains>,
}

/// The mains that a relay is to be connected with.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct WantedMains {
    /// Where they are.
    pub(crate) sources: Vec<MainSource>,
    /// None of these: not at a gateway, and not at the first so many places, which were named before that was said.
    pub(crate) removed: BTreeMap<PeerId, usize>,
}

impl WantedMains {
    /// One more place: whoever is found there is wanted, also where it was removed before.
    fn add(&mut self, source: MainSource) {
        if let Some(place) = self.sources.iter().position(|known| *known == source) {
            self.sources.remove(place);
            for places in self.removed.values_mut() {
                *places -= usize::from(*places > place);
            }
        }
        if self.sources.len() < SOURCES_MAX {
            self.sources.push(source);
        }
    }

    fn remove(&mut self, node: PeerId) {
        // Whoever reaches HTTP may name anybody.
        if self.removed.len() < SOURCES_MAX || self.removed.contains_key(&node) {
            self.removed.insert(node, self.sources.len());
        }
    }

    /// Whether a main that was found at one of the places is not wanted.
    pub(crate) fn is_removed(&self, node: PeerId, place: usize) -> bool {
        self.removed.get(&node).is_some_and(|places| place < *places)
    }
}

/// Changes of mains that wait to be made; a person makes one at a time.
const CHANGES_MAX: usize = 16;

/// What a relay was asked over HTTP may take so long to end after the last call has.
const HTTP_DRAIN: Duration = Duration::from_secs(5);

/// Connections may take so long to be closed: one with a peer that is cut off would take half a minute to end by itself.
const NETWORK_CLOSE: Duration = Duration::from_secs(5);

impl Relay {
    /// Starts a relay: returns when its addresses answer, and goes on to look for its mains by itself.
    ///
    /// # Errors
    /// When something that the user gave is wrong, in use, or damaged; the error says what to do.
    pub async fn start(config: RelayConfig) -> Result<RelayHandle, RelayError> {
        Self::start_with(config, Names::default()).await
    }

    /// The same, with another way to look up the names of mains.
    pub(crate) async fn start_with(config: RelayConfig, names: Names) -> Result<RelayHandle, RelayError> {
        let name = config.name.clone().map(|name| name.own(Some(config.role)));
        let name = name.transpose().map_err(AnnouncementError::from)?;
        let (dir, keypair, epoch) = match &config.data_dir {
            Some(folder) => {
                let dir = DataDir::open(folder)?;
                let keypair = load_or_create_identity(&dir.identity())?;
                let epoch = dir.next_incarnation()?;
                (Some(dir), keypair, epoch)
            }
            None => (None, Keypair::generate_ed25519(), 1),
        };
        // Bound first: what is in use is told before anybody hears of this node.
        let http_error = |source| RelayError::Http {
            addr: config.http,
            source,
        };
        let listener = TcpListener::bind(config.http).await.map_err(http_error)?;
        let http = listener.local_addr().map_err(http_error)?;
        let (gate, gate_receiver) = watch::channel(Gate::default());
        let network_config = NetworkConfig {
            listen: config.listen.clone(),
            role: Some(config.role),
            ..NetworkConfig::new(keypair.clone())
        };
        let network = Network::start(network_config, gate_receiver).await?;
        let around = watch::Sender::new(Around {
            cluster: config.cluster,
            ..Around::new(config.role)
        });
        let exporter = SpanExporter::from_env(network.peer_id())?;
        let (audit_sender, audit_events) = mpsc::channel(audit::QUEUE);
        let federation_config = FederationConfig {
            name: name.clone(),
            policy: config.policy.clone(),
            audit: Some(audit_sender),
            spans: exporter.as_ref().map(SpanExporter::sender),
            sampler: exporter.as_ref().map(SpanExporter::sampler).unwrap_or_default(),
            hops_max: config.hops_max,
            balancing: config.balancing.clone(),
            ..FederationConfig::new(keypair.clone(), epoch)
        };
        let federation = Federation::start(network.clone(), federation_config, around.subscribe())?;
        for spec in &config.services {
            services::offer(&federation, spec).map_err(|source| RelayError::Service {
                service: spec.to_string(),
                source,
            })?;
        }
        if config.has_echo {
            services::offer_echo(&federation);
        }
        let (kind, id) = match config.role {
            Role::Main => ("Main", network.peer_id()),
            Role::Home => ("Home", network.peer_id()),
        };
        match &name {
            Some(name) => {
                info!(node = %id, node_type = %kind.to_lowercase(), "Starting as {kind} Relay with node ID {}", name.as_str())
            }
            None => {
                info!(node = %id, node_type = %kind.to_lowercase(), "Starting as {kind} Relay with auto-generated node ID")
            }
        }

        let stop = CancellationToken::new();
        let (mut tasks, mut writers) = (JoinSet::new(), JoinSet::new());
        let stop_writers = CancellationToken::new();
        writers.spawn(audit::write(
            config.data_dir.clone(),
            audit_events,
            stop_writers.clone(),
        ));
        if let Some(exporter) = exporter {
            writers.spawn(exporter.run(stop_writers.clone()));
        }
        let wanted = watch::Sender::new(WantedMains {
            sources: config.mains.clone(),
            removed: BTreeMap::new(),
        });
        let wanted_receiver = wanted.subscribe();
        let peer_changes = config.peers_may_change.then(|| {
            let (changes, asked) = mpsc::channel(CHANGES_MAX);
            tasks.spawn(change_mains(asked, wanted.clone(), stop.clone()));
            changes
        });
        let finder = Finder {
            gateway: gateway_client(&config, &keypair)?,
            http: http_client()?,
            network: network.clone(),
            federation: federation.clone(),
            around,
            wanted: wanted_receiver,
            names,
        };
        tasks.spawn(finder.run(stop.clone()));
        let served = router(federation.clone(), HttpConfig { peer_changes });
        tasks.spawn(lapwing_federation::serve(listener, served, stop.clone()));
        if let Some(dir) = &dir {
            dir.write_admin_addr(http)?;
        }
        Ok(RelayHandle {
            federation,
            network,
            http,
            dir,
            tasks,
            writers,
            stop_writers,
            stop,
            _gate: gate,
            _wanted: wanted,
        })
    }
}

impl RelayHandle {
    /// Who the relay is.
    pub fn peer_id(&self) -> PeerId {
        self.network.peer_id()
    }

    /// Where JSON-RPC is answered.
    pub fn http_addr(&self) -> SocketAddr {
        self.http
    }

    /// Its part in the federation: for programs that have a relay inside and offer handlers of their own, or call.
    pub fn federation(&self) -> &Federation {
        &self.federation
    }

    /// Resolves when the relay ends by itself, which is a defect.
    pub async fn ended(&self) {
        self.network.ended().await;
    }

    /// Stops the relay: others hear that its services go, calls that are under way have half a minute to end, and everything is
    /// closed.
    pub async fn shutdown(mut self) {
        self.stop.cancel();
        // Calls that came over HTTP too have until their end.
        self.federation.clone().shutdown().await;
        let drained = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(HTTP_DRAIN, drained).await.is_err() {
            warn!("open requests are cut off");
            self.tasks.shutdown().await;
        }
        if tokio::time::timeout(NETWORK_CLOSE, self.network.shutdown())
            .await
            .is_err()
        {
            warn!("connections with peers that do not answer are left as they are");
        }
        if let Some(dir) = &self.dir {
            dir.remove_admin_addr();
        }
        self.stop_writers.cancel();
        let written = async { while self.writers.join_next().await.is_some() {} };
        if tokio::time::timeout(HTTP_DRAIN, written).await.is_err() {
            warn!("the end of the audit log was not written, or not all spans were exported");
        }
    }
}

/// Makes the changes that callers of the edge want.
async fn change_mains(
    mut asked: mpsc::Receiver<PeerChange>,
    wanted: watch::Sender<WantedMains>,
    stop: CancellationToken,
) {
    while let Some(Some(change)) = stop.run_until_cancelled(asked.recv()).await {
        match change {
            PeerChange::Add { node, address } => match address.parse::<MainSource>() {
                Ok(source) => {
                    info!(%source, "a main was added");
                    let named = node.and_then(|node| node.node.as_str().parse::<PeerId>().ok());
                    wanted.send_modify(|wanted| {
                        // Wherever it is found.
                        wanted.removed.retain(|removed, _| Some(*removed) != named);
                        wanted.add(source);
                    });
                }
                Err(error) => warn!(%error, "a main was not added"),
            },
            PeerChange::Remove { node } => {
                info!(%node, "a main was removed");
                wanted.send_modify(|wanted| wanted.remove(node));
            }
            _ => {}
        }
    }
}

/// Mains that are looked for; each is asked who it is.
const SOURCES_MAX: usize = 256;

fn gateway_client(config: &RelayConfig, keypair: &Keypair) -> Result<Option<Arc<Client>>, RelayError> {
    if config.gateways.is_empty() {
        return Ok(None);
    }
    let client_config = ClientConfig {
        gateways: config.gateways.clone(),
        ..ClientConfig::default()
    };
    Ok(Some(Arc::new(Client::new(client_config, keypair.clone())?)))
}

fn http_client() -> Result<reqwest::Client, RelayError> {
    // An error means that the process has a provider already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Ok(reqwest::Client::builder().build()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_main_listens_for_nodes_where_it_answers_and_a_home_at_any_port() {
        let main = RelayConfig::main("[::1]:8080".parse().unwrap());
        assert_eq!(main.listen[0].to_string(), "/ip6/::1/udp/8080/quic-v1");
        let home = RelayConfig::home("127.0.0.1:8081".parse().unwrap(), "ws://a:1".parse().unwrap());
        assert_eq!(home.listen[0].to_string(), "/ip4/127.0.0.1/udp/0/quic-v1");
        assert_eq!((home.role, home.mains.len()), (Role::Home, 1));
    }

    #[test]
    fn a_main_that_was_removed_is_wanted_again_at_a_place_that_is_named_after_that() {
        let [one, other]: [MainSource; 2] = ["a:1", "b:1"].map(|place| place.parse().unwrap());
        let [a, b] = [(); 2].map(|()| PeerId::random());
        let mut wanted = WantedMains::default();
        wanted.add(one.clone());
        wanted.add(other.clone());
        wanted.remove(a);
        wanted.remove(b);
        assert!(wanted.is_removed(a, 0) && wanted.is_removed(b, 1));
        wanted.add(one.clone());
        assert_eq!(wanted.sources, [other, one]);
        assert!(wanted.is_removed(b, 0), "it was not named again");
        assert!(!wanted.is_removed(a, 1));
    }

    #[test]
    fn mains_are_named_by_address_or_in_the_domain_name_system() {
        let srv: MainSource = "srv:_lapwing._tcp.example.org".parse().unwrap();
        assert_eq!(srv, MainSource::Srv("_lapwing._tcp.example.org".to_owned()));
        assert_eq!(srv.to_string(), "srv:_lapwing._tcp.example.org");
        let url: MainSource = "ws://127.0.0.1:8080/ws/federation".parse().unwrap();
        assert_eq!(url.to_string(), "ws://127.0.0.1:8080/ws/federation");
        assert!("ftp://x".parse::<MainSource>().is_err());
    }
}
