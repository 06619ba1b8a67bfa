//! One node, from its configuration to its end: builds the rooms, starts them in order, and stops them in
//! the reverse one.
//!
//! Start: data directory and identity, network, admin address; then, in the background, becoming a member
//! (`wiring::entry`) and living as one (`wiring::membership`), again whenever the cluster has removed the
//! node. Stop: membership, admin address, network.

use crate::admin;
use crate::audit;
use crate::data_dir::{DataDir, DataDirError};
use crate::rate_rules::RateRules;
use crate::services::{self, OfferFailure, ServiceSpec};
use crate::spans::{SpanExporter, SpanExporterError};
use crate::status::{MemberParts, Parts, StatusDocument};
use crate::wiring::entry::Entry;
use crate::wiring::federated::feed_role;
use crate::wiring::membership::{Ended, live};
use crate::wiring::registration::GatewayLink;
use lapwing_base::{JobView, Keypair, Multiaddr, PeerId, Role, chain};
use lapwing_consensus::{Card, Consensus};
use lapwing_federation::{Around, Balancing, Federation, FederationConfig, NodeName, OfferError, Policy};
use lapwing_gateway::{Client, ClientConfig};
use lapwing_net::{Gate, Network, NetworkConfig, load_or_create_identity};
use lapwing_train::{
    BackendError, ChildError, DataError, DataSpec, ExternalModel, Introduced, ParseDataSpecError,
    TrainingStatus,
};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

/// How often a link without a measurement is probed: a plan made from a measurement that is twice this old
/// is still right for a home uplink, and a probe is a fraction of a second's traffic.
const PROBE_INTERVAL: Duration = Duration::from_secs(30);

/// What a node is told when it starts.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Gateways to ask, as URLs; any of them will do.
    pub gateways: Vec<String>,
    /// Where identity, log, checkpoints and models are kept. One node, one directory.
    pub data_dir: PathBuf,
    /// Where to listen, as `/ip4/0.0.0.0/udp/0/quic-v1`. Port 0 takes the port of the last start if it is
    /// free, else any.
    pub listen: Vec<Multiaddr>,
    /// Where the admin address answers. Default `127.0.0.1:0`: loopback, any port.
    pub admin: SocketAddr,
    /// What people call the node.
    pub name: String,
    /// Main or home; `None` finds out by asking others whether they reach it.
    pub role: Option<Role>,
    /// What a WebSocket listener shows: a certificate chain and its key, PEM files.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// This node's data, as `digits#partition=iid,seed=1,part=1/8`; `None` takes an equal share of the job's.
    pub data: Option<String>,
    /// What computes; `burn` is built in.
    pub backend: String,
    /// The command of a program that trains models of its own, for jobs that ask for one.
    pub trainer: Option<String>,
    /// Founds a cluster without a gateway.
    pub bootstrap: bool,
    /// What it offers others.
    pub services: Vec<ServiceSpec>,
    /// With whom beside the members of its cluster it has to do, and which services cross the border. Default: nobody.
    pub policy: Policy,
    /// How it spreads calls over the instances of each service. Default: round robin.
    pub balancing: Balancing,
    /// What is kept to when sending. Default: nothing.
    pub max_upload: RateRules,
    /// What is kept to when receiving. Default: nothing.
    pub max_download: RateRules,
}

/// Why a node could not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
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
    /// The raft log.
    #[error("the raft log cannot be opened")]
    Log(#[from] lapwing_consensus::StorageError),
    /// The key is another node's.
    #[error(
        "the data directory {} belongs to {theirs}, but its identity.key is that of {ours}; restore the right key, or use another --data-dir",
        dir.display()
    )]
    AnotherNode {
        /// The data directory.
        dir: PathBuf,
        /// Whose key is there.
        ours: Box<PeerId>,
        /// Whose log is there.
        theirs: Box<PeerId>,
    },
    /// `--data` means nothing.
    #[error("the data specification `{text}` cannot be read")]
    Data {
        /// As given.
        text: String,
        /// Why.
        #[source]
        source: ParseDataSpecError,
    },
    /// The samples that `--data` names.
    #[error("the data `{text}` cannot be used")]
    Samples {
        /// As given.
        text: String,
        /// Why.
        #[source]
        source: DataError,
    },
    /// The program that `--trainer` names.
    #[error("the trainer `{command}` cannot be used")]
    Trainer {
        /// As given.
        command: String,
        /// Why.
        #[source]
        source: ChildError,
    },
    /// The backend is not in this build.
    #[error(transparent)]
    Backend(BackendError),
    /// A service that `--service` describes.
    #[error("the service `{service}` cannot be offered")]
    Service {
        /// As given.
        service: String,
        /// Why.
        #[source]
        source: OfferFailure,
    },
    /// The admin address is in use.
    #[error(
        "the admin address {addr} cannot be used; give another one as --admin, or port 0 for any free one"
    )]
    Admin {
        /// Which.
        addr: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The settings of OpenTelemetry.
    #[error("spans cannot be exported")]
    Spans(#[from] SpanExporterError),
    /// Name too long.
    #[error("the name has {0} bytes; at most {max} are allowed", max = lapwing_base::Member::NAME_MAX)]
    Name(usize),
    /// `--bootstrap` beside a gateway.
    #[error(
        "--bootstrap founds a cluster without a gateway; with --gateway it is the gateway that decides who founds"
    )]
    BootstrapBesideGateway,
    /// Neither member nor anybody to ask.
    #[error(
        "this node is no member of a cluster yet; give it a --gateway to ask, or --bootstrap to found one"
    )]
    NobodyToAsk,
}

/// Why a running node ended by itself.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the node cannot go on: {0}")]
pub struct NodeError(String);

/// A node to be.
#[derive(Debug)]
pub struct Node;

impl Node {
    /// Starts a node: returns when its addresses answer, and goes on to become a member by itself.
    ///
    /// # Errors
    /// When something that the user gave is wrong, in use, or damaged; the error says what to do.
    pub async fn start(config: NodeConfig) -> Result<NodeHandle, StartError> {
        if config.name.len() > lapwing_base::Member::NAME_MAX {
            return Err(StartError::Name(config.name.len()));
        }
        if config.bootstrap && !config.gateways.is_empty() {
            return Err(StartError::BootstrapBesideGateway);
        }
        lapwing_train::check_backend(&config.backend).map_err(StartError::Backend)?;
        let data = config
            .data
            .as_ref()
            .map(|text| {
                text.parse::<DataSpec>().map_err(|source| StartError::Data {
                    text: text.clone(),
                    source,
                })
            })
            .transpose()?;
        let dir = DataDir::open(&config.data_dir)?;
        let keypair = load_or_create_identity(&dir.identity())?;
        // What is damaged or another's is told before anybody hears of this node.
        check_membership(&dir, keypair.public().to_peer_id(), &config)?;
        let trainer = match &config.trainer {
            Some(command) => Some(introduced(command).await?),
            None => None,
        };
        // A program of its own reads the data itself.
        if let Some(spec) = data.as_ref().filter(|_| trainer.is_none()) {
            check_samples(spec).await?;
        }
        let (gate, gate_receiver) = watch::channel(Gate::default());
        let network = start_network(&config, &dir, keypair.clone(), gate_receiver).await?;
        let incarnation = dir.next_incarnation()?;
        let around = watch::Sender::new(Around::new(network.reach().borrow().standing.role));
        let exporter = SpanExporter::from_env(network.peer_id())?;
        let (audit_sender, audit_events) = mpsc::channel(audit::QUEUE);
        let federation_config = FederationConfig {
            policy: config.policy.clone(),
            balancing: config.balancing.clone(),
            audit: Some(audit_sender),
            spans: exporter.as_ref().map(SpanExporter::sender),
            sampler: exporter.as_ref().map(SpanExporter::sampler).unwrap_or_default(),
            ..FederationConfig::new(keypair.clone(), incarnation)
        };
        let federation = start_federation(&config, federation_config, &network, &around)?;
        let gateway = if config.gateways.is_empty() {
            None
        } else {
            let client_config = ClientConfig {
                gateways: config.gateways.clone(),
                cache_file: Some(dir.gateway_cache()),
                ..ClientConfig::default()
            };
            let client = Client::new(client_config, keypair.clone())?;
            let peer = network.peer_id();
            let card = card_of(&network);
            let link = GatewayLink::new(client, peer, config.name.clone(), card.role, incarnation);
            link.reached_at(card);
            Some(link)
        };
        let admin_error = |source| StartError::Admin {
            addr: config.admin,
            source,
        };
        let listener = TcpListener::bind(config.admin).await.map_err(admin_error)?;
        let admin_addr = listener.local_addr().map_err(admin_error)?;
        dir.write_admin_addr(admin_addr)?;

        let shared = Arc::new(Shared {
            name: config.name.clone(),
            started: now(),
            trained: trainer.map(|trainer| trainer.model),
            network,
            keypair,
            federation,
            around,
            phase: watch::Sender::new(Phase::default()),
            stop: CancellationToken::new(),
        });
        info!(peer = %shared.network.peer_id(), name = config.name, %admin_addr, "node started");
        let mut tasks = JoinSet::new();
        let stop_writers = CancellationToken::new();
        tasks.spawn(audit::write(
            Some(dir.root().to_owned()),
            audit_events,
            stop_writers.clone(),
        ));
        if let Some(exporter) = exporter {
            tasks.spawn(exporter.run(stop_writers.clone()));
        }
        let admin_stop = CancellationToken::new();
        tasks.spawn(admin::serve(listener, shared.clone(), admin_stop.clone()));
        let life = Life {
            shared: shared.clone(),
            config,
            data,
            dir,
            gateway,
            gate,
            stop_writers,
        };
        let mut life_task = JoinSet::new();
        life_task.spawn(life.run(admin_stop));
        tasks.spawn(feed_role(
            shared.network.clone(),
            shared.around.clone(),
            shared.stop.clone(),
        ));
        Ok(NodeHandle {
            shared,
            admin_addr,
            life: life_task,
            tasks,
        })
    }
}

/// A running node. It stops when this is dropped, and in good order when [`NodeHandle::shutdown`] is called.
#[derive(Debug)]
#[must_use = "a node stops when its handle is dropped"]
pub struct NodeHandle {
    shared: Arc<Shared>,
    admin_addr: SocketAddr,
    /// The background of the node: one task.
    life: JoinSet<Result<(), NodeError>>,
    tasks: JoinSet<()>,
}

impl NodeHandle {
    /// Where the admin address answers.
    pub fn admin_addr(&self) -> SocketAddr {
        self.admin_addr
    }

    /// Who the node is.
    pub fn peer_id(&self) -> PeerId {
        self.shared.network.peer_id()
    }

    /// The status document of this moment.
    pub fn status(&self) -> StatusDocument {
        self.shared.status()
    }

    /// Resolves when the node ends by itself: it has left its cluster, or cannot go on.
    ///
    /// # Errors
    /// When it cannot go on.
    pub async fn stopped(&mut self) -> Result<(), NodeError> {
        let ended = match self.life.join_next().await {
            Some(ended) => ended.unwrap_or_else(|error| Err(NodeError(error.to_string()))),
            // Has been asked before.
            None => Ok(()),
        };
        while self.tasks.join_next().await.is_some() {}
        ended
    }

    /// Stops the node and waits until everything is closed and on disk.
    pub async fn shutdown(mut self) {
        self.shared.stop.cancel();
        if let Err(error) = self.stopped().await {
            warn!(%error, "the node did not stop in good order");
        }
    }
}

impl Drop for NodeHandle {
    fn drop(&mut self) {
        self.shared.stop.cancel();
    }
}

/// What the parts of a node share: who it is, and how far it is.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) name: String,
    pub(crate) started: Instant,
    /// The model of this node's own program, if it has one.
    pub(crate) trained: Option<ExternalModel>,
    pub(crate) network: Network,
    pub(crate) keypair: Keypair,
    pub(crate) federation: Federation,
    /// What the federation knows beside what is announced.
    pub(crate) around: watch::Sender<Around>,
    pub(crate) phase: watch::Sender<Phase>,
    pub(crate) stop: CancellationToken,
}

/// How far a node is.
#[derive(Debug, Default)]
pub(crate) struct Phase {
    pub(crate) member: Option<Arc<Membership>>,
    pub(crate) waiting: Option<String>,
    pub(crate) failed: Option<String>,
    pub(crate) leaving: bool,
}

/// What only a member has.
#[derive(Debug)]
pub(crate) struct Membership {
    pub(crate) consensus: Consensus,
    pub(crate) training: watch::Receiver<TrainingStatus>,
    pub(crate) train_dir: PathBuf,
}

impl Membership {
    /// How many parameters a job's model has, once somebody here has built it.
    pub(crate) fn parameters(&self, view: &JobView) -> Option<u64> {
        let training = self.training.borrow();
        let ours = training.parameters.filter(|_| training.job == Some(view.id));
        view.manifest
            .as_ref()
            .map(|manifest| manifest.parameters)
            .or(ours)
    }
}

impl Shared {
    /// Says what the node waits for: once, and again only when that changes.
    pub(crate) fn waits_for(&self, reason: Option<String>) {
        self.phase.send_if_modified(|phase| {
            let changed = phase.waiting != reason;
            if changed {
                if let Some(reason) = &reason {
                    info!(reason, "waiting");
                }
                phase.waiting = reason;
            }
            changed
        });
    }

    pub(crate) fn status(&self) -> StatusDocument {
        let network = self.network.status();
        let phase = self.phase.borrow();
        let member = phase.member.clone();
        let (waiting, failed, leaving) = (phase.waiting.clone(), phase.failed.clone(), phase.leaving);
        drop(phase);
        let agreed = member.as_ref().map(|member| {
            let (roster, state) = (member.consensus.roster(), member.consensus.state());
            (roster.borrow().clone(), state.borrow().clone())
        });
        let member = member
            .as_ref()
            .zip(agreed.as_ref())
            .map(|(member, (roster, state))| MemberParts {
                id: member.consensus.id(),
                roster,
                raft: member.consensus.raft().borrow().clone(),
                training: member.training.borrow().clone(),
                config_version: state.config.version(),
                bandwidths: &state.bandwidths,
            });
        StatusDocument::new(Parts {
            name: &self.name,
            uptime: now().duration_since(self.started),
            network,
            services: self.federation.offered(),
            failed: failed.is_some(),
            reason: failed.or(waiting),
            leaving,
            member,
        })
    }
}

/// The background of a node.
struct Life {
    shared: Arc<Shared>,
    config: NodeConfig,
    data: Option<DataSpec>,
    dir: DataDir,
    gateway: Option<GatewayLink>,
    gate: watch::Sender<Gate>,
    /// Ends those who write down what the others say at their end.
    stop_writers: CancellationToken,
}

impl Life {
    async fn run(self, admin_stop: CancellationToken) -> Result<(), NodeError> {
        // Also where this panics: whoever waits for the end waits for the admin address too.
        let admin_stop = admin_stop.drop_guard();
        let _stop_writers = self.stop_writers.clone().drop_guard();
        let ended = self.until_ended().await;
        if let Err(error) = &ended {
            // Whoever waits for the end tells it to people.
            debug!(%error, "the node stops");
            self.shared
                .phase
                .send_modify(|phase| phase.failed = Some(error.0.clone()));
        }
        drop(admin_stop);
        self.dir.remove_admin_addr();
        // Before the network: others are told that its services go.
        self.shared.federation.clone().shutdown().await;
        self.shared.stop.cancel();
        self.shared.network.shutdown().await;
        ended
    }

    /// Lives until it is told to stop, cannot go on, or has no network any more, without which nothing would come of
    /// going on.
    async fn until_ended(&self) -> Result<(), NodeError> {
        let mut stretches = std::pin::pin!(self.stretches());
        tokio::select! {
            ended = &mut stretches => ended,
            () = self.shared.network.ended() => {
                self.shared.stop.cancel();
                stretches.await?;
                Err(NodeError("its network has ended by itself, which is a defect: start it again".to_owned()))
            }
        }
    }

    /// Becomes a member and lives as one, again after each removal.
    async fn stretches(&self) -> Result<(), NodeError> {
        let Self {
            shared,
            config,
            data,
            dir,
            gateway,
            gate,
            ..
        } = self;
        loop {
            let entry = Entry {
                shared,
                config,
                dir,
                gateway: gateway.as_ref(),
                gate,
            };
            let Some(entered) = shared.stop.run_until_cancelled(entry.enter()).await else {
                return Ok(());
            };
            let consensus = entered.map_err(|error| NodeError(chain(&error)))?;
            shared.waits_for(None);
            match live(
                consensus,
                shared,
                config,
                data.clone(),
                dir,
                gateway.as_ref(),
                gate,
            )
            .await
            {
                Ended::Stopped => {
                    if shared.phase.borrow().leaving
                        && let Some(gateway) = gateway
                        && let Err(error) = gateway.client.leave().await
                    {
                        info!(%error, "no gateway could be told that this node has left");
                    }
                    return Ok(());
                }
                Ended::Removed => {
                    info!("joining again as a new member");
                    lapwing_consensus::retire(dir.root()).map_err(|error| NodeError(chain(&error)))?;
                }
                Ended::Failed(reason) => return Err(NodeError(reason)),
            }
        }
    }
}

/// A log goes on only with the key that it was begun with; a node without one needs a way into a cluster.
fn check_membership(dir: &DataDir, ours: PeerId, config: &NodeConfig) -> Result<(), StartError> {
    match lapwing_consensus::stored(dir.root())? {
        Some(found) if found.peer != ours => Err(StartError::AnotherNode {
            dir: dir.root().to_owned(),
            ours: Box::new(ours),
            theirs: Box::new(found.peer),
        }),
        None if config.gateways.is_empty() && !config.bootstrap => Err(StartError::NobodyToAsk),
        Some(_) | None => Ok(()),
    }
}

/// Begins to offer the node's services, and to carry calls.
fn start_federation(
    config: &NodeConfig,
    mut federation_config: FederationConfig,
    network: &Network,
    around: &watch::Sender<Around>,
) -> Result<Federation, StartError> {
    // Which kind of node this is may change, and its name stays; a host may be called after the other kind.
    let name = config.name.parse::<NodeName>().and_then(|name| name.own(None));
    federation_config.name = name.ok();
    if federation_config.name.is_none() {
        info!(
            name = config.name,
            "the node's services are called by its peer id: its name is none for them, which has letters, digits, `-`, `_` and `.`"
        );
    }
    let failed = |service: &dyn fmt::Display, source| StartError::Service {
        service: service.to_string(),
        source,
    };
    let federation = Federation::start(network.clone(), federation_config, around.subscribe())
        .map_err(|error| failed(&"of the node itself", OfferError::from(error).into()))?;
    for spec in &config.services {
        let offered = services::offer(&federation, spec);
        offered.map_err(|source| failed(spec, source))?;
    }
    // A node without services has nothing to tell anybody.
    if !config.services.is_empty() {
        services::offer_echo(&federation);
    }
    Ok(federation)
}

/// Starts the program of `--trainer` once: what is wrong with it is told before anybody hears of this node.
async fn introduced(command: &str) -> Result<Introduced, StartError> {
    let failed = |source| StartError::Trainer {
        command: command.to_owned(),
        source,
    };
    let (text, stop) = (command.to_owned(), CancellationToken::new());
    // Whoever gives up waiting for the node ends the program.
    let ended = stop.clone().drop_guard();
    let asked = tokio::task::spawn_blocking(move || lapwing_train::introduce(&text, &stop)).await;
    drop(ended);
    let introduced = asked.unwrap_or(Err(ChildError::Stopped)).map_err(failed)?;
    info!(model = %introduced.model, parameters = introduced.parameters, name = introduced.name, "trainer found");
    Ok(introduced)
}

/// Reads the node's samples once, so that a set that is missing or cut is told now, and not when a job comes.
async fn check_samples(spec: &DataSpec) -> Result<(), StartError> {
    let reading = spec.clone();
    let read = tokio::task::spawn_blocking(move || lapwing_train::load(&reading).map(drop)).await;
    match read {
        Ok(Err(source)) => Err(StartError::Samples {
            text: spec.to_string(),
            source,
        }),
        // A reader that was cancelled with the runtime has found nothing wrong.
        Ok(Ok(())) | Err(_) => Ok(()),
    }
}

/// Binds the node's addresses; with port 0, the port of the last start where that is free.
///
/// Members know each other's addresses from the log. A cluster that was stopped as a whole finds itself again
/// without a gateway only if its nodes come back where they were.
async fn start_network(
    config: &NodeConfig,
    dir: &DataDir,
    keypair: Keypair,
    gate: watch::Receiver<Gate>,
) -> Result<Network, StartError> {
    let network_config = |listen| NetworkConfig {
        listen,
        upload_max: config.max_upload.limits().clone(),
        download_max: config.max_download.limits().clone(),
        probe_interval: PROBE_INTERVAL,
        role: config.role,
        certificate: config.tls.clone(),
        networks_file: Some(dir.networks()),
        ..NetworkConfig::new(keypair.clone())
    };
    let remembered = dir.listen_port()?;
    let same = remembered
        .map(|port| with_port(&config.listen, port))
        .filter(|same| *same != config.listen);
    let network = match same {
        Some(same) => match Network::start(network_config(same), gate.clone()).await {
            Ok(network) => network,
            Err(lapwing_net::StartError::AddressInUse { address }) => {
                info!(%address, "the port of the last start is taken; using another one");
                Network::start(network_config(config.listen.clone()), gate).await?
            }
            Err(error) => return Err(error.into()),
        },
        None => Network::start(network_config(config.listen.clone()), gate).await?,
    };
    if let Some(port) = network.listen_addrs().iter().find_map(udp_port)
        && Some(port) != remembered
    {
        dir.remember_listen_port(port)?;
    }
    Ok(network)
}

fn udp_port(addr: &Multiaddr) -> Option<u16> {
    addr.iter().find_map(|part| match part {
        lapwing_base::Protocol::Udp(port) => Some(port),
        _ => None,
    })
}

/// The addresses with `port` where they leave it open.
fn with_port(addrs: &[Multiaddr], port: u16) -> Vec<Multiaddr> {
    addrs
        .iter()
        .map(|addr| {
            addr.iter()
                .map(|part| match part {
                    lapwing_base::Protocol::Udp(0) => lapwing_base::Protocol::Udp(port),
                    other => other,
                })
                .collect()
        })
        .collect()
}

#[expect(
    clippy::disallowed_methods,
    reason = "the node is a driver: uptime counts from here"
)]
fn now() -> Instant {
    Instant::now()
}

/// Since the Unix epoch.
#[expect(
    clippy::disallowed_methods,
    reason = "the status document tells the time of day"
)]
pub(crate) fn unix_now() -> Duration {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default()
}

/// Where a node can be reached and how, as far as it knows now.
pub(crate) fn card_of(network: &Network) -> Card {
    let reach = network.reach().borrow().clone();
    Card {
        addrs: reach.advertised,
        role: reach.standing.role,
    }
}
