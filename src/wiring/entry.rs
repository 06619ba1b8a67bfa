//! How a node becomes a member: it resumes what its disk says, founds a cluster that the gateway lets it
//! found, or joins the one that exists.
//!
//! The gateway decides once who may found, and its word is fenced by an epoch that is in the first log entry;
//! until it has confirmed, the founder admits nobody. A node that has a log never founds.

use super::feeds::gate_of;
use super::registration::GatewayLink;
use crate::data_dir::{DataDir, DataDirError};
use crate::node::card_of;
use crate::node::{NodeConfig, Shared};
use lapwing_base::{ClusterId, NodeId, PeerId, chain};
use lapwing_consensus::{
    Consensus, ConsensusConfig, JoinError, JoinRequest, Start, StartError, StorageError, stored,
};
use lapwing_gateway::{Claim, ClientError, ClusterState, Confirm, ConfirmError, Registered};
use lapwing_net::Gate;
use std::time::Duration;
use tokio::sync::watch;
use tracing::{debug, info, warn};

/// Pause before asking again, after something did not work out; doubled up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(100);

/// The longest pause: a node that could join again is a member a second later.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// How long one attempt to join may take, redirects and the commit included.
const JOIN_PATIENCE: Duration = Duration::from_secs(15);

/// Everything that entering needs.
pub(crate) struct Entry<'a> {
    pub(crate) shared: &'a Shared,
    pub(crate) config: &'a NodeConfig,
    pub(crate) dir: &'a DataDir,
    pub(crate) gateway: Option<&'a GatewayLink>,
    pub(crate) gate: &'a watch::Sender<Gate>,
}

/// Why a node cannot become a member at all; waiting would not help.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EntryError {
    #[error(
        "this node is no member of a cluster yet; give it a --gateway to ask, or --bootstrap to found one"
    )]
    NobodyToAsk,
    #[error("the raft log cannot be opened")]
    Storage(#[from] StorageError),
    #[error("consensus cannot start")]
    Start(#[from] StartError),
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    #[error("no randomness can be had from the system")]
    Random,
}

impl Entry<'_> {
    /// Runs until the node is a member. Cancel by dropping.
    pub(crate) async fn enter(&self) -> Result<Consensus, EntryError> {
        if let Some(found) = stored(self.dir.root())? {
            info!(cluster = %found.cluster, id = %found.id, "resuming the membership on disk");
            self.gate.send_replace(Gate {
                cluster: Some(found.cluster),
                ..Gate::default()
            });
            let consensus = self.start(Start::Resume).await?;
            return match found.unconfirmed {
                None => Ok(consensus),
                Some(epoch) => match self.confirm(consensus, epoch).await? {
                    Some(consensus) => Ok(consensus),
                    None => self.enter_anew().await,
                },
            };
        }
        self.enter_anew().await
    }

    /// For a node without a log.
    async fn enter_anew(&self) -> Result<Consensus, EntryError> {
        self.gate.send_replace(Gate::default());
        let Some(gateway) = self.gateway else {
            if !self.config.bootstrap {
                return Err(EntryError::NobodyToAsk);
            }
            info!("founding a cluster without a gateway, as asked");
            let consensus = self
                .start(Start::Found {
                    cluster: random_cluster()?,
                    epoch: 0,
                })
                .await?;
            consensus.open_admission();
            return Ok(consensus);
        };
        gateway.outside();
        let mut pause = PAUSE_MIN;
        loop {
            match self.attempt(gateway).await? {
                Attempt::Member(consensus) => {
                    self.shared.waits_for(None);
                    return Ok(*consensus);
                }
                Attempt::Again { reason, after } => {
                    self.shared.waits_for(Some(reason));
                    tokio::time::sleep(after.unwrap_or(pause)).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                }
            }
        }
    }

    async fn attempt(&self, gateway: &GatewayLink) -> Result<Attempt, EntryError> {
        let registration = gateway.registration.borrow().clone();
        let incarnation = registration.incarnation;
        let registered = match gateway.client.register(registration).await {
            Ok(registered) => registered,
            Err(error) => return Ok(Attempt::again(unanswered(&error))),
        };
        if registered.cluster == ClusterState::Formed {
            return self.join(&registered).await;
        }
        match gateway.client.claim(incarnation).await {
            Err(error) => Ok(Attempt::again(unanswered(&error))),
            Ok(Claim::Formed { .. }) => Ok(Attempt::Again {
                reason: "the cluster has just been founded".to_owned(),
                after: Some(Duration::ZERO),
            }),
            Ok(Claim::Pending { retry_after }) => Ok(Attempt::Again {
                reason: "another node is founding the cluster".to_owned(),
                after: Some(retry_after.min(PAUSE_MAX)),
            }),
            Ok(Claim::Refused { reason }) => Ok(Attempt::again(reason.to_string())),
            Ok(Claim::Granted { epoch, .. }) => {
                info!(epoch, "the gateway lets this node found the cluster");
                let consensus = self
                    .start(Start::Found {
                        cluster: random_cluster()?,
                        epoch,
                    })
                    .await?;
                match self.confirm(consensus, epoch).await? {
                    Some(consensus) => Ok(Attempt::Member(Box::new(consensus))),
                    None => Ok(Attempt::again("another node has founded the cluster".to_owned())),
                }
            }
        }
    }

    /// Asks the gateway to confirm a cluster that was founded here; `None` when another one was faster, and
    /// nothing of ours is left.
    async fn confirm(&self, consensus: Consensus, epoch: u64) -> Result<Option<Consensus>, EntryError> {
        let Some(gateway) = self.gateway else {
            // Started again without its gateway: nobody can confirm, so nobody is admitted.
            self.shared.waits_for(Some(
                "the gateway that let this node found its cluster must confirm it; give it as --gateway"
                    .to_owned(),
            ));
            return std::future::pending().await;
        };
        let mut pause = PAUSE_MIN;
        loop {
            let confirm = Confirm {
                epoch,
                cluster_id: consensus.cluster(),
                term: consensus.raft().borrow().term,
            };
            // The gateway takes a confirmation from a node that it knows.
            let registration = gateway.registration.borrow().clone();
            let registered = gateway.client.register(registration).await;
            let confirmed = match registered {
                Ok(_) => gateway.client.confirm(confirm).await,
                Err(error) => Err(ConfirmError::Client(error)),
            };
            match confirmed {
                Ok(()) => {
                    info!(cluster = %consensus.cluster(), epoch, "the cluster is founded");
                    consensus.open_admission();
                    return Ok(Some(consensus));
                }
                Err(ConfirmError::Superseded { .. }) => {
                    warn!(epoch, "another node has founded the cluster; joining it");
                    consensus.shutdown().await;
                    drop(consensus);
                    lapwing_consensus::retire(self.dir.root())?;
                    return Ok(None);
                }
                Err(error) => {
                    self.shared.waits_for(Some(format!(
                        "the gateway has not confirmed the cluster: {}",
                        chain(&error)
                    )));
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSE_MAX);
                }
            }
        }
    }

    async fn join(&self, registered: &Registered) -> Result<Attempt, EntryError> {
        let network = &self.shared.network;
        let candidates = learn_candidates(self.shared, registered);
        if candidates.is_empty() {
            return Ok(Attempt::again(
                "the gateway knows of a cluster, but of no member that can be asked".to_owned(),
            ));
        }
        let asked = lapwing_consensus::join(network, candidates, self.request(None), JOIN_PATIENCE).await;
        match asked {
            Ok(accepted) => {
                info!(cluster = %accepted.cluster, id = %accepted.id, "accepted as a member");
                for member in &accepted.members {
                    network.learn(member.peer, member.addrs.clone());
                }
                self.gate
                    .send_replace(Gate::of(accepted.cluster, &accepted.members));
                Ok(Attempt::Member(Box::new(
                    self.start(Start::Joined(accepted)).await?,
                )))
            }
            Err(error) => Ok(Attempt::again(format!(
                "no member has let this node in yet: {}",
                chain(&error)
            ))),
        }
    }

    async fn start(&self, start: Start) -> Result<Consensus, EntryError> {
        let card = card_of(&self.shared.network);
        let config = ConsensusConfig {
            data_dir: self.dir.root().to_owned(),
            peer: self.shared.network.peer_id(),
            name: self.config.name.clone(),
            addrs: card.addrs,
            role: card.role,
            timing: lapwing_consensus::Timing::default(),
        };
        Ok(Consensus::start(config, start, self.shared.network.clone()).await?)
    }

    fn request(&self, known: Option<(NodeId, ClusterId)>) -> JoinRequest {
        join_request(self.shared, &self.config.name, known)
    }
}

enum Attempt {
    Member(Box<Consensus>),
    Again {
        /// Told once, and again only when it changes.
        reason: String,
        /// `None` backs off.
        after: Option<Duration>,
    },
}

impl Attempt {
    fn again(reason: String) -> Self {
        Self::Again { reason, after: None }
    }
}

/// What a node without a cluster waits for when its gateways are of no help, and what to do.
fn unanswered(error: &ClientError) -> String {
    let text = chain(error);
    match error {
        ClientError::NoAnswer { .. } | ClientError::Malformed { .. } => {
            format!(
                "{text}; the node goes on asking: start the gateway, or give the right address with --gateway"
            )
        }
        _ => text,
    }
}

/// How a member makes itself known again: after a restart it may listen elsewhere, and after a long absence
/// it may not know whoever leads now.
pub(crate) async fn announce(
    shared: &Shared,
    name: &str,
    consensus: &Consensus,
    gateway: Option<&GatewayLink>,
    gate: &watch::Sender<Gate>,
) -> Result<(), JoinError> {
    let network = &shared.network;
    let roster = consensus.roster().borrow().clone();
    let mut candidates: Vec<PeerId> = roster.leader().map(|leader| leader.peer).into_iter().collect();
    candidates.extend(roster.members.values().map(|member| member.peer));
    if let Some(gateway) = gateway {
        match gateway.client.discover().await {
            // Members that moved while nobody could commit it are found where they registered.
            Ok(discovered) => {
                for node in &discovered.nodes {
                    if node.cluster_id == Some(consensus.cluster()) {
                        network.learn(node.peer_id, node.addrs.clone());
                        candidates.push(node.peer_id);
                    }
                }
            }
            Err(error) => debug!(%error, "no gateway answers"),
        }
    }
    let me = network.peer_id();
    let mut seen = std::collections::HashSet::new();
    candidates.retain(|peer| *peer != me && seen.insert(*peer));
    if candidates.is_empty() {
        return Ok(());
    }
    let known = Some((consensus.id(), consensus.cluster()));
    let accepted = lapwing_consensus::join(
        network,
        candidates,
        join_request(shared, name, known),
        JOIN_PATIENCE,
    )
    .await?;
    for member in &accepted.members {
        network.learn(member.peer, member.addrs.clone());
    }
    // Whoever leads now may not be in this node's log yet, and must be let in to bring it.
    gate.send_modify(|gate| {
        let mut members = gate_of(&roster).members.as_ref().clone();
        members.extend(accepted.members.iter().map(|member| member.peer));
        gate.members = std::sync::Arc::new(members);
    });
    Ok(())
}

fn join_request(shared: &Shared, name: &str, known: Option<(NodeId, ClusterId)>) -> JoinRequest {
    let card = card_of(&shared.network);
    JoinRequest {
        peer: shared.network.peer_id(),
        name: name.to_owned(),
        addrs: card.addrs,
        role: card.role,
        known,
    }
}

/// The peers that may let a joiner in, the leader first; their addresses go to the network.
fn learn_candidates(shared: &Shared, registered: &Registered) -> Vec<PeerId> {
    let me = shared.network.peer_id();
    let mut candidates = Vec::new();
    if let Some(leader) = &registered.leader {
        if !leader.addrs.is_empty() {
            shared.network.learn(leader.peer_id, leader.addrs.clone());
        }
        candidates.push(leader.peer_id);
    }
    for node in &registered.nodes {
        if node.cluster_id.is_some() && node.cluster_id == registered.cluster_id {
            shared.network.learn(node.peer_id, node.addrs.clone());
            candidates.push(node.peer_id);
        }
    }
    let mut seen = std::collections::HashSet::new();
    candidates.retain(|peer| *peer != me && seen.insert(*peer));
    candidates
}

fn random_cluster() -> Result<ClusterId, EntryError> {
    use rand::TryRng as _;
    use rand::rngs::SysRng;
    let mut bytes = [0; 16];
    SysRng
        .try_fill_bytes(&mut bytes)
        .map_err(|_| EntryError::Random)?;
    Ok(ClusterId::from_bytes(bytes))
}
