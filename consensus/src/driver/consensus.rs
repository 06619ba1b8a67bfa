//! One member's consensus: starting it on a data directory, asking it, stopping it.
//!
//! It owns raft, the log and every task it has spawned. What it serves to others is in `serve.rs`, what it
//! does while it leads in `duty.rs`, what it shows in `observe.rs`.
//!
//! Shutdown order: no new streams and questions, raft, the tasks, and last the log, so that whatever raft has
//! written is on disk and the directory is free when [`Consensus::shutdown`] returns.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use lapwing_base::{ClusterId, Multiaddr, NodeId, PeerId, Role, Roster};
use lapwing_net::Network;
use openraft::{Config, SnapshotPolicy};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::asking::{PATIENCE, ProposeError, ReadError};
use super::directory::open_file;
use super::duty;
use super::link::Link;
use super::log_file::{LogFile, Stored};
use super::log_store::LogStore;
use super::observe;
use super::raft_network::RaftNetwork;
use super::serve::Services;
use super::snapshot_files::SnapshotFiles;
use super::state_machine::StateMachine;
use super::status::{RaftState, RaftStatus};
use super::types::{Raft, RaftNode, raft_id};
use super::{StorageError, draw_request_id, now};
use crate::{Applied, Command, JoinAccepted, Pin, RefusedReason, Request, State, Timing};

/// How a node takes part.
#[derive(Clone, Debug)]
pub struct ConsensusConfig {
    /// Where the log and snapshots live, below `raft/`.
    pub data_dir: PathBuf,
    /// This node's identity on the network.
    pub peer: PeerId,
    /// What people call it.
    pub name: String,
    /// Where it listens now.
    pub addrs: Vec<Multiaddr>,
    /// Whether it is publicly reachable.
    pub role: Role,
    /// How patient it is.
    pub timing: Timing,
}

/// What a member says of itself that may change while it runs.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Card {
    /// Where it can be reached.
    pub addrs: Vec<Multiaddr>,
    /// Whether it is publicly reachable.
    pub role: Role,
}

/// How a node begins.
#[derive(Clone, Debug)]
pub enum Start {
    /// Goes on as the member that its data directory holds.
    Resume,
    /// Begins a cluster. It admits nobody before [`Consensus::open_admission`].
    Found {
        /// The new cluster's id.
        cluster: ClusterId,
        /// The gateway's fencing number; 0 without a gateway.
        epoch: u64,
    },
    /// Begins as the member that a cluster has just made it.
    Joined(JoinAccepted),
}

/// A member of a cluster, running. Clones share it.
#[derive(Clone, Debug)]
pub struct Consensus {
    inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) id: NodeId,
    pub(super) cluster: ClusterId,
    pub(super) config: ConsensusConfig,
    /// Where this node can be reached and how, as of now.
    card: watch::Sender<Card>,
    pub(super) raft: Raft,
    pub(super) link: Arc<Link>,
    pub(super) state: watch::Receiver<Arc<State>>,
    pub(super) roster: watch::Sender<Arc<Roster>>,
    pub(super) status: watch::Sender<RaftStatus>,
    /// Whether others are let in.
    pub(super) admission: watch::Sender<bool>,
    /// One snapshot is received at a time.
    pub(super) receiving: Semaphore,
    pub(super) stop: CancellationToken,
    pub(super) tasks: TaskTracker,
    log: LogStore,
    stored: Mutex<Stored>,
    pub(super) started_at: Instant,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner")
            .field("id", &self.id)
            .field("cluster", &self.cluster)
            .finish_non_exhaustive()
    }
}

/// A node could not begin.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// Its data directory cannot be used.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The timing contradicts itself.
    #[error("the timing cannot work: {0}")]
    Timing(String),
    /// Raft did not come up on what the directory holds.
    #[error("raft cannot start on {}: {what}", path.display())]
    Raft {
        /// The directory.
        path: PathBuf,
        /// What raft says.
        what: String,
    },
    /// The bootstrap did not go through.
    #[error("the cluster could not be founded: {0}")]
    Bootstrap(#[source] ProposeError),
}

/// How long a leaving node waits until the others have let it go.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(15);

/// Entries between two snapshots.
const SNAPSHOT_EVERY: u64 = 1000;

/// Entries that stay in the log behind a snapshot, for followers that are a little behind.
const ENTRIES_KEPT: u64 = 1000;

impl Consensus {
    /// Starts a member. A founder's cluster exists when this returns; otherwise it returns before a leader is
    /// heard.
    ///
    /// # Errors
    ///
    /// See [`StartError`]; nothing is left running.
    pub async fn start(config: ConsensusConfig, start: Start, network: Network) -> Result<Self, StartError> {
        let raft_config = raft_config(&config.timing)?;
        if let Start::Joined(accepted) = &start {
            for member in accepted
                .members
                .iter()
                .filter(|member| member.peer != config.peer)
            {
                network.learn(member.peer, member.addrs.clone());
            }
        }
        let file = {
            let config = config.clone();
            blocking(move || open_file(&config, &start)).await?
        };
        let stored = file.identity()?;
        let unconfirmed = stored.unconfirmed;
        let directory = LogFile::directory(&config.data_dir);
        let (files, newest) = SnapshotFiles::open(&directory)?;
        let machine = StateMachine::new(files, newest);
        let state = machine.subscribe();
        let log = LogStore::start(file)?;
        let link = Arc::new(Link::new(network.clone(), raft_id(stored.id)));
        let services = Services::open(&network);
        let raft_network = RaftNetwork { link: link.clone() };
        let raft = Raft::new(
            raft_id(stored.id),
            Arc::new(raft_config),
            raft_network,
            log.clone(),
            machine,
        )
        .await;
        let raft = match raft {
            Ok(raft) => raft,
            Err(fatal) => {
                // The first error is the one to tell.
                drop(log.close().await);
                return Err(StartError::Raft {
                    path: directory,
                    what: fatal.to_string(),
                });
            }
        };
        let roster = Roster {
            cluster: stored.cluster,
            version: Default::default(),
            members: Default::default(),
            voters: Default::default(),
            leader: None,
            term: Default::default(),
        };
        let inner = Arc::new(Inner {
            id: stored.id,
            cluster: stored.cluster,
            card: watch::Sender::new(Card {
                addrs: config.addrs.clone(),
                role: config.role,
            }),
            config,
            raft,
            link,
            state,
            roster: watch::channel(Arc::new(roster)).0,
            status: watch::channel(RaftStatus::default()).0,
            admission: watch::channel(unconfirmed.is_none()).0,
            receiving: Semaphore::new(1),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            log,
            stored: Mutex::new(stored),
            started_at: now(),
        });
        let mut shown = None;
        observe::look(&inner, &mut shown);
        inner.tasks.spawn(observe::run(inner.clone(), shown));
        inner.tasks.spawn(services.run(inner.clone()));
        inner.tasks.spawn(duty::run(inner.clone()));
        inner.tasks.spawn(announce(inner.clone()));
        let consensus = Self { inner };
        // Also a founder that crashed before anybody could join it begins here: once more, or for the first time.
        if let Some(epoch) = unconfirmed
            && let Err(error) = consensus.found(epoch).await
        {
            consensus.shutdown().await;
            return Err(StartError::Bootstrap(error));
        }
        Ok(consensus)
    }

    /// This node can be reached otherwise than before: the log is told.
    pub fn set_card(&self, card: Card) {
        self.inner.card.send_if_modified(|known| {
            let news = *known != card;
            *known = card;
            news
        });
    }

    /// This member's number.
    pub fn id(&self) -> NodeId {
        self.inner.id
    }

    /// The cluster.
    pub fn cluster(&self) -> ClusterId {
        self.inner.cluster
    }

    /// The state as this node has applied it; it changes with every batch.
    pub fn state(&self) -> watch::Receiver<Arc<State>> {
        self.inner.state.clone()
    }

    /// The members, who votes and who leads; it changes only when one of these does.
    pub fn roster(&self) -> watch::Receiver<Arc<Roster>> {
        self.inner.roster.subscribe()
    }

    /// Where raft stands on this node.
    pub fn raft(&self) -> watch::Receiver<RaftStatus> {
        self.inner.status.subscribe()
    }

    /// How long ago a leader was last heard; zero on the leader itself.
    pub fn leader_silence(&self) -> Duration {
        self.inner.leader_silence()
    }

    /// Asks the cluster for a change, through whoever leads, for up to ten seconds, surviving elections. It
    /// happens once, however often it had to be asked for.
    ///
    /// # Errors
    ///
    /// See [`ProposeError`]. After [`ProposeError::Timeout`] it may still happen.
    pub async fn propose(&self, command: Command) -> Result<Applied, ProposeError> {
        let id = draw_request_id();
        self.propose_request(Request { id, command }).await
    }

    /// As [`Consensus::propose`], under an id of the caller's own: proposing the same again has no further
    /// effect while the state remembers it.
    ///
    /// # Errors
    ///
    /// As [`Consensus::propose`].
    pub async fn propose_request(&self, request: Request) -> Result<Applied, ProposeError> {
        self.inner.propose(request, PATIENCE).await
    }

    /// The state with everything that was acknowledged, by anyone, before this was asked.
    ///
    /// # Errors
    ///
    /// See [`ReadError`].
    pub async fn linearizable_state(&self) -> Result<Arc<State>, ReadError> {
        self.inner.read(PATIENCE).await
    }

    /// Lets others in from now on: the gateway has confirmed the founder, or there is no gateway.
    pub fn open_admission(&self) {
        let confirmed = {
            let mut stored = self.inner.stored.lock().unwrap_or_else(PoisonError::into_inner);
            stored.unconfirmed = None;
            stored.clone()
        };
        if let Err(error) = self.inner.log.save_identity(confirmed) {
            tracing::warn!(%error, "the gateway's confirmation is not saved; it is asked again after a restart");
        }
        self.inner.admission.send_replace(true);
    }

    /// Says goodbye: gives up the vote and the membership. Returns once the others have let this node go, or
    /// have not within fifteen seconds of its announcement, which they will then do without it.
    ///
    /// # Errors
    ///
    /// The announcement was not committed, or this is the only member.
    pub async fn leave(&self) -> Result<(), ProposeError> {
        self.demand(Command::Leave { id: self.inner.id }).await?;
        let inner = &self.inner;
        let mut status = inner.status.subscribe();
        let mut state = inner.state.clone();
        let gone = async {
            loop {
                let votes = status.borrow_and_update().voters.contains(&inner.id);
                let member = state.borrow_and_update().members.contains_key(&inner.id);
                if !votes && !member {
                    return;
                }
                tokio::select! {
                    changed = status.changed() => if changed.is_err() { return },
                    changed = state.changed() => if changed.is_err() { return },
                }
            }
        };
        if tokio::time::timeout(FAREWELL_TIMEOUT, gone).await.is_err() {
            tracing::warn!("the cluster has not confirmed that this node left; it will remove it later");
        }
        Ok(())
    }

    /// Removes a member, dead or alive. Its number is never given again.
    ///
    /// # Errors
    ///
    /// As [`Consensus::propose`], and refusals as [`ProposeError::Refused`].
    pub async fn remove(&self, id: NodeId) -> Result<(), ProposeError> {
        self.demand(Command::Remove { id }).await
    }

    /// Has a member vote, before any that nobody promoted.
    ///
    /// # Errors
    ///
    /// As [`Consensus::remove`].
    pub async fn promote(&self, id: NodeId) -> Result<(), ProposeError> {
        let pin = Some(Pin::Voter);
        self.demand(Command::Pin { id, pin }).await
    }

    /// Has a member not vote, as soon as another one can take its place.
    ///
    /// # Errors
    ///
    /// As [`Consensus::remove`].
    pub async fn demote(&self, id: NodeId) -> Result<(), ProposeError> {
        let pin = Some(Pin::Learner);
        self.demand(Command::Pin { id, pin }).await
    }

    /// Has the leader hand over to a voter. Returns when it has been told to; the roster shows when it is done.
    ///
    /// # Errors
    ///
    /// As [`Consensus::propose`].
    pub async fn transfer_leader(&self, to: NodeId) -> Result<(), ProposeError> {
        self.inner.transfer_leader(to).await
    }

    /// Has this node write a snapshot now. Returns when it has been told to.
    ///
    /// # Errors
    ///
    /// This node has stopped.
    pub async fn snapshot(&self) -> Result<(), ProposeError> {
        let told = self.inner.raft.trigger().snapshot().await;
        told.map_err(|_| ProposeError::Stopped)
    }

    /// Stops the member. When this returns, its log is on disk and its directory free.
    pub async fn shutdown(&self) {
        let inner = &self.inner;
        inner.stop.cancel();
        if let Err(error) = inner.raft.shutdown().await {
            tracing::warn!(%error, "raft did not stop cleanly");
        }
        inner.tasks.close();
        inner.tasks.wait().await;
        if let Err(error) = inner.log.close().await {
            // A second shutdown finds the log closed.
            tracing::debug!(%error, "the log was not closed");
        }
        inner
            .status
            .send_modify(|status| status.state = RaftState::Stopped);
    }

    #[cfg(test)]
    pub(super) fn raft_for_tests(&self) -> &Raft {
        &self.inner.raft
    }

    async fn demand(&self, command: Command) -> Result<(), ProposeError> {
        match self.propose(command).await? {
            Applied::Refused(reason) => Err(ProposeError::Refused(reason)),
            Applied::Joined(_) | Applied::Submitted(_) | Applied::Done => Ok(()),
        }
    }

    /// Initialises raft, and commits the bootstrap as the first application entry. Both may have happened
    /// before a crash; then they are there.
    async fn found(&self, epoch: u64) -> Result<(), ProposeError> {
        let inner = &self.inner;
        let node = inner.node_of_this();
        let members = std::collections::BTreeMap::from([(raft_id(inner.id), node)]);
        if let Err(error) = inner.raft.initialize(members).await
            && let Some(fatal) = error.fatal()
        {
            return Err(ProposeError::Storage(fatal.to_string()));
        }
        let command = Command::BootstrapEpoch {
            cluster: inner.cluster,
            epoch,
            peer: inner.config.peer,
            name: inner.config.name.clone(),
            addrs: inner.config.addrs.clone(),
            role: inner.config.role,
        };
        match self.propose(command).await? {
            Applied::Refused(RefusedReason::AlreadyBootstrapped(cluster)) if cluster == inner.cluster => {
                Ok(())
            }
            Applied::Refused(reason) => Err(ProposeError::Refused(reason)),
            Applied::Joined(_) | Applied::Submitted(_) | Applied::Done => Ok(()),
        }
    }
}

impl Inner {
    /// Tells the network where a peer listens.
    pub(super) fn learn(&self, peer: PeerId, addrs: &[Multiaddr]) {
        if !addrs.is_empty() && peer != self.config.peer {
            self.link.network.learn(peer, addrs.to_vec());
        }
    }

    /// This node as raft's membership names it.
    pub(super) fn node_of_this(&self) -> RaftNode {
        RaftNode {
            peer: Some(self.config.peer),
            addrs: self
                .card
                .borrow()
                .addrs
                .iter()
                .take(NODE_ADDRS_MAX)
                .cloned()
                .collect(),
        }
    }
}

/// Addresses of one node in raft's membership, which is written whole with every change of voters.
pub(super) const NODE_ADDRS_MAX: usize = 4;

/// Has the log say where this node listens and what it is called, when it says something else.
async fn announce(inner: Arc<Inner>) {
    let mut state = inner.state.clone();
    let mut card = inner.card.subscribe();
    let name = &inner.config.name;
    let differs = |state: &State, card: &Card| {
        state.members.get(&inner.id).is_some_and(|member| {
            (&member.name, &member.addrs, member.role) != (name, &card.addrs, card.role)
        })
    };
    let work = async {
        loop {
            let now = card.borrow_and_update().clone();
            let stale = differs(&state.borrow_and_update(), &now);
            if stale {
                let command = Command::Update {
                    id: inner.id,
                    addrs: now.addrs,
                    name: name.clone(),
                    role: now.role,
                };
                let id = draw_request_id();
                match inner.propose(Request { id, command }, PATIENCE).await {
                    Ok(Applied::Refused(reason)) => {
                        tracing::warn!(%reason, "the cluster does not take this node's addresses");
                        return;
                    }
                    Ok(_) => {}
                    Err(error) => tracing::debug!(%error, "this node's addresses are not announced yet"),
                }
            }
            let changed = tokio::select! {
                changed = state.changed() => changed,
                changed = card.changed() => changed,
            };
            if changed.is_err() {
                return;
            }
        }
    };
    inner.stop.run_until_cancelled(work).await;
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StorageError> + Send + 'static,
) -> Result<T, StorageError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(StorageError::Io {
            path: PathBuf::new(),
            source: std::io::Error::other(error),
        }),
    }
}

fn raft_config(timing: &Timing) -> Result<Config, StartError> {
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let config = Config {
        cluster_name: "lapwing".to_owned(),
        heartbeat_interval: millis(timing.heartbeat).max(1),
        election_timeout_min: millis(timing.election_min),
        election_timeout_max: millis(timing.election_max),
        max_payload_entries: 512,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(SNAPSHOT_EVERY),
        max_in_snapshot_log_to_keep: ENTRIES_KEPT,
        install_snapshot_timeout: 60_000,
        // A proposal waits for a place when this many are on the way on one node. Both queues are allocated
        // whole, 400 bytes a place: openraft's 65,536 would be half of an idle node's memory.
        api_channel_size: Some(4096),
        notification_channel_size: Some(4096),
        // A term that cannot win must not unseat a leader that works.
        enable_pre_vote: Some(true),
        // Under partial connectivity, as NATs cause it, nothing is acknowledged without this.
        quorum_loss_probe_interval: Some(millis(timing.election_max).saturating_mul(2)),
        // A restored leader has served reads older than an acknowledged write.
        enable_leader_restore: Some(false),
        ..Config::default()
    };
    config
        .validate()
        .map_err(|error| StartError::Timing(error.to_string()))
}
