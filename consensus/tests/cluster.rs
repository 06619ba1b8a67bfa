//! Whole members over real sockets on loopback, in one process: forming, failing over, catching up, leaving.

#![expect(clippy::unwrap_used, reason = "a test says what it expects by unwrapping it")]

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use lapwing_base::{
    Algorithm, ClusterId, JobSpec, Keypair, Member, MemberState, NodeId, PeerId, Planner, Role, Roster,
    Values,
};
use lapwing_consensus::{
    Applied, Command, ConfigKey, Consensus, ConsensusConfig, JoinError, JoinRequest, ProposeError, RaftState,
    RefusedReason, Request, RequestId, Start, StartError, State, StorageError, Timing, join, retire, stored,
};
use lapwing_net::{Gate, Network, NetworkConfig};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Longer than anything takes on a starved machine, shorter than a person waits.
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn three_members_form_promote_three_voters_and_commit_from_a_follower() {
    let cluster = Cluster::of(3).await;
    let follower = cluster.follower().await;
    let applied = follower
        .consensus
        .propose(Command::SubmitJob(spec()))
        .await
        .unwrap();
    let Applied::Submitted(job) = applied else {
        panic!("{applied:?}");
    };
    for node in &cluster.nodes {
        node.until(|state| state.jobs.contains_key(&job)).await;
        let read = node.consensus.linearizable_state().await.unwrap();
        assert!(read.jobs.contains_key(&job));
    }
    let refused = follower
        .consensus
        .propose(Command::SubmitJob(spec()))
        .await
        .unwrap();
    assert_eq!(refused, Applied::Refused(RefusedReason::JobNotOver(job)));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_is_readable_after_the_leader_stops_and_comes_back() {
    let mut cluster = Cluster::of(3).await;
    let leader = cluster.leader_position().await;
    cluster.nodes[leader].set("voters_max", "5").await;
    let gone = cluster.nodes.remove(leader);
    let gone = gone.stop().await;

    for node in &cluster.nodes {
        let read = timeout(PATIENCE, node.consensus.linearizable_state())
            .await
            .unwrap()
            .unwrap();
        assert_eq!(read.config.get(ConfigKey::VotersMax), Some(5));
    }
    cluster.nodes[0].set("dead_after_ms", "9000").await;
    cluster.nodes[0]
        .until(|state| state.members[&gone.id].state == MemberState::Suspected)
        .await;

    let back = gone.restart(&cluster).await;
    back.until(|state| state.config.get(ConfigKey::DeadAfterMs) == Some(9000))
        .await;
    let id = back.consensus.id();
    back.until(|state| state.members[&id].state == MemberState::Active)
        .await;
    cluster.nodes.push(back);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_members_restart_and_go_on_with_the_same_members() {
    let mut cluster = Cluster::of(3).await;
    cluster.nodes[0].set("voters_max", "5").await;
    let members = cluster.nodes[0]
        .state()
        .members
        .keys()
        .copied()
        .collect::<Vec<_>>();
    let mut stopped = Vec::new();
    for node in cluster.nodes.drain(..) {
        stopped.push(node.stop().await);
    }
    for gone in stopped {
        let blank = gone.forget_nothing().await;
        cluster.nodes.push(blank.start(Start::Resume).await);
    }
    cluster.introduce_all();
    cluster.nodes[1].set("dead_after_ms", "9000").await;
    let after = cluster.nodes[2].consensus.linearizable_state().await.unwrap();
    assert_eq!(after.members.keys().copied().collect::<Vec<_>>(), members);
    assert_eq!(after.config.get(ConfigKey::VotersMax), Some(5));
    assert_eq!(after.config.get(ConfigKey::DeadAfterMs), Some(9000));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_member_goes_on_from_what_its_disk_held() {
    let mut cluster = Cluster::of(3).await;
    let position = cluster.follower_position().await;
    let killed = cluster.nodes.remove(position);
    let id = killed.consensus.id();
    cluster.nodes[0].set("voters_max", "5").await;
    // Nothing reaches it, and nothing of it is closed: this is what a power cut leaves.
    killed.network.shutdown().await;
    let image = TempDir::new().unwrap();
    std::fs::create_dir(image.path().join("raft")).unwrap();
    for file in std::fs::read_dir(killed.directory.path().join("raft")).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), image.path().join("raft").join(file.file_name())).unwrap();
    }
    let keypair = killed.stop().await.keypair;
    cluster.nodes[0].set("dead_after_ms", "9000").await;

    let crashed = Stopped {
        id,
        directory: image,
        keypair,
    };
    let back = crashed.restart(&cluster).await;
    assert_eq!(back.consensus.id(), id);
    back.until(|state| state.config.get(ConfigKey::DeadAfterMs) == Some(9000))
        .await;
    cluster.nodes.push(back);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn eight_that_join_at_once_are_eight_members() {
    let mut cluster = Cluster::of(1).await;
    let mut joining = JoinSet::new();
    for _ in 0..8 {
        let blank = Blank::new().await;
        cluster.introduce(&blank.network);
        joining.spawn(blank.join(cluster.peers()));
    }
    while let Some(joined) = joining.join_next().await {
        cluster.nodes.push(joined.unwrap().unwrap());
    }
    for node in &cluster.nodes {
        node.until_roster(|roster| {
            let active = |member: &Member| member.state == MemberState::Active;
            roster.members.len() == 9 && roster.voters.len() == 3 && roster.members.values().all(active)
        })
        .await;
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_request_is_applied_once() {
    let cluster = Cluster::of(1).await;
    let node = &cluster.nodes[0].consensus;
    let request = Request {
        id: RequestId([7; 16]),
        command: Command::SubmitJob(spec()),
    };
    let first = node.propose_request(request.clone()).await.unwrap();
    let second = node.propose_request(request).await.unwrap();
    assert_eq!(first, second);
    assert_eq!(cluster.nodes[0].state().jobs.len(), 1);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_joiner_that_asks_a_follower_is_sent_to_the_leader() {
    let mut cluster = Cluster::of(3).await;
    let follower = cluster.follower().await.network.clone();
    let joiner = Blank::new().await;
    joiner.network.learn(follower.peer_id(), follower.listen_addrs());
    let node = joiner.join(vec![follower.peer_id()]).await.unwrap();
    node.until(|state| state.members.len() == 4).await;
    cluster.nodes.push(node);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_learner_catches_up_by_snapshot_when_the_log_is_compacted() {
    let mut cluster = Cluster::of(1).await;
    for _ in 0..1100 {
        cluster.nodes[0].set("voters_max", "3").await;
    }
    cluster.nodes[0].consensus.snapshot().await.unwrap();
    for _ in 0..1100 {
        cluster.nodes[0].set("voters_max", "3").await;
    }
    let version = cluster.nodes[0].state().config.version();
    cluster.grow().await;
    let late = &cluster.nodes[1];
    late.until(|state| state.config.version() == version).await;
    assert!(snapshots(late.directory.path()) > 0);
    assert!(snapshots(cluster.nodes[0].directory.path()) <= 2);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_leaves_is_gone_and_the_others_go_on() {
    let mut cluster = Cluster::of(4).await;
    let leader = cluster.leader_position().await;
    let leaver = cluster.nodes.remove(leader);
    let id = leaver.consensus.id();
    timeout(PATIENCE, leaver.consensus.leave())
        .await
        .unwrap()
        .unwrap();
    let gone = leaver.stop().await;
    cluster.nodes[0]
        .until(|state| !state.members.contains_key(&id))
        .await;
    cluster.nodes[0].set("voters_max", "5").await;
    cluster.nodes[0]
        .until_roster(|roster| roster.voters.len() == 3 && !roster.voters.contains(&id))
        .await;
    let directory = gone.directory.path().to_path_buf();
    let blank = gone.forget_nothing().await;
    cluster.introduce(&blank.network);
    let Err(refused) = blank.rejoin(cluster.peers(), id, cluster.id).await else {
        panic!("it was removed");
    };
    assert_eq!(refused.0, JoinError::Removed);
    retire(&directory).unwrap();
    assert_eq!(stored(&directory).unwrap(), None);
    cluster.nodes.push(refused.1.join(cluster.peers()).await.unwrap());
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_member_is_no_voter_any_more() {
    let cluster = Cluster::of(3).await;
    let follower = cluster.follower().await.consensus.id();
    let leader = &cluster.nodes[cluster.leader_position().await];
    leader.consensus.remove(follower).await.unwrap();
    leader
        .until_roster(|roster| roster.members.len() == 2 && !roster.voters.contains(&follower))
        .await;
    let mut raft = leader.consensus.raft();
    let forgotten =
        raft.wait_for(|raft| !raft.voters.contains(&follower) && !raft.learners.contains(&follower));
    timeout(PATIENCE, forgotten).await.unwrap().unwrap();
    leader.set("voters_max", "5").await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_lost_its_disk_comes_back_under_a_new_number() {
    let mut cluster = Cluster::of(4).await;
    let position = cluster.follower_position().await;
    let gone = cluster.nodes.remove(position).stop().await;
    let (old, keypair) = (gone.id, gone.keypair.clone());
    drop(gone);
    let blank = Blank::with(keypair, TempDir::new().unwrap()).await;
    cluster.introduce(&blank.network);
    let node = blank.join(cluster.peers()).await.unwrap();
    let id = node.consensus.id();
    assert!(id > old);
    node.until(|state| state.members.contains_key(&id) && !state.members.contains_key(&old))
        .await;
    cluster.nodes.push(node);
    cluster.nodes[0]
        .until_roster(|roster| roster.voters.len() == 3 && !roster.voters.contains(&old))
        .await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_joins_a_founder_that_is_not_confirmed() {
    let founder = Node::found_closed().await;
    let blank = Blank::new().await;
    let network = founder.network.clone();
    blank.network.learn(network.peer_id(), network.listen_addrs());
    let request = blank.request(None);
    let refused = join(
        &blank.network,
        vec![network.peer_id()],
        request.clone(),
        Duration::from_secs(1),
    )
    .await;
    assert_eq!(refused, Err(JoinError::NotOpenYet));
    assert_eq!(
        founder.unconfirmed_after_restart(),
        None,
        "its directory is in use"
    );

    founder.consensus.open_admission();
    let accepted = join(&blank.network, vec![network.peer_id()], request, PATIENCE)
        .await
        .unwrap();
    assert_eq!(accepted.cluster, founder.consensus.cluster());
    let founder = founder.stop().await;
    assert_eq!(
        stored(founder.directory.path()).unwrap().unwrap().unconfirmed,
        None
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_of_another_node_or_cluster_is_refused_by_name() {
    let cluster = Cluster::of(1).await;
    let mut cluster = cluster;
    let gone = cluster.nodes.remove(0).stop().await;
    let blank = Blank::new().await;
    let start = Consensus::start(
        blank.config(gone.directory.path()),
        Start::Resume,
        blank.network.clone(),
    )
    .await;
    let error = start.unwrap_err();
    assert!(
        matches!(error, StartError::Storage(StorageError::OtherPeer { .. })),
        "{error}"
    );
    let found = Start::Found {
        cluster: ClusterId::from_bytes([9; 16]),
        epoch: 2,
    };
    let blank = Blank::with(gone.keypair.clone(), TempDir::new().unwrap()).await;
    let start = Consensus::start(blank.config(gone.directory.path()), found, blank.network.clone()).await;
    let error = start.unwrap_err();
    assert!(error.to_string().contains(&cluster.id.to_string()), "{error}");
    let nothing = Consensus::start(
        blank.config(blank.directory.path()),
        Start::Resume,
        blank.network.clone(),
    )
    .await;
    assert!(matches!(
        nothing.unwrap_err(),
        StartError::Storage(StorageError::Empty { .. })
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_quorum_an_error_says_since_when_and_who_is_silent() {
    let mut cluster = Cluster::of(3).await;
    let leader = cluster.leader_position().await;
    let lonely = cluster.nodes.remove(leader);
    let others: Vec<NodeId> = cluster.nodes.iter().map(|node| node.consensus.id()).collect();
    cluster.stop().await;
    let error = lonely
        .consensus
        .propose(Command::Bandwidth(Vec::new()))
        .await
        .unwrap_err();
    let (ProposeError::NoLeader { silent, voters, .. } | ProposeError::Timeout { silent, voters, .. }) =
        &error
    else {
        panic!("{error}");
    };
    assert_eq!((silent, *voters), (&others, 3), "{error}");
    lonely.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lead_is_handed_over_on_request() {
    let cluster = Cluster::of(3).await;
    let heir = cluster.follower().await.consensus.id();
    cluster.nodes[0].consensus.transfer_leader(heir).await.unwrap();
    cluster.nodes[0]
        .until_roster(|roster| roster.leader == Some(heir))
        .await;
    cluster.stop().await;
}

/// Members in one process; the roster of each one is its network's gate, as in a real node.
struct Cluster {
    id: ClusterId,
    nodes: Vec<Node>,
}

impl Cluster {
    /// Founds a cluster and has members join it until it has this many, and three (or all) vote.
    async fn of(size: usize) -> Self {
        let founder = Node::found_closed().await;
        founder.consensus.open_admission();
        let mut cluster = Self {
            id: founder.consensus.cluster(),
            nodes: vec![founder],
        };
        for _ in 1..size {
            cluster.grow().await;
        }
        for node in &cluster.nodes {
            node.until_roster(|roster| {
                roster.voters.len() == size.min(3)
                    && roster.members.len() == size
                    && roster.leader.is_some()
                    && roster
                        .members
                        .values()
                        .all(|member| member.state == MemberState::Active)
            })
            .await;
        }
        cluster
    }

    async fn grow(&mut self) {
        let blank = Blank::new().await;
        self.introduce(&blank.network);
        let node = blank.join(self.peers()).await.unwrap();
        self.nodes.push(node);
    }

    fn introduce(&self, network: &Network) {
        for node in &self.nodes {
            network.learn(node.network.peer_id(), node.network.listen_addrs());
        }
    }

    fn introduce_all(&self) {
        for node in &self.nodes {
            self.introduce(&node.network);
        }
    }

    fn peers(&self) -> Vec<PeerId> {
        self.nodes.iter().map(|node| node.network.peer_id()).collect()
    }

    async fn leader_position(&self) -> usize {
        let roster = self.nodes[0].until_roster(|roster| roster.leader.is_some()).await;
        let leader = roster.leader.unwrap();
        self.nodes
            .iter()
            .position(|node| node.consensus.id() == leader)
            .unwrap()
    }

    async fn follower_position(&self) -> usize {
        let leader = self.leader_position().await;
        (0..self.nodes.len())
            .find(|position| *position != leader)
            .unwrap()
    }

    async fn follower(&self) -> &Node {
        &self.nodes[self.follower_position().await]
    }

    async fn stop(self) {
        for node in self.nodes {
            node.stop().await;
        }
    }
}

/// A node without a cluster.
struct Blank {
    keypair: Keypair,
    directory: TempDir,
    network: Network,
    gate: watch::Sender<Gate>,
}

impl Blank {
    async fn new() -> Self {
        Self::with(Keypair::generate_ed25519(), TempDir::new().unwrap()).await
    }

    async fn with(keypair: Keypair, directory: TempDir) -> Self {
        let _already = tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .try_init();
        let (gate, gate_receiver) = watch::channel(Gate::default());
        let config = NetworkConfig {
            listen: vec!["/ip4/127.0.0.1/udp/0/quic-v1".parse().unwrap()],
            ..NetworkConfig::new(keypair.clone())
        };
        let network = Network::start(config, gate_receiver).await.unwrap();
        Self {
            keypair,
            directory,
            network,
            gate,
        }
    }

    fn config(&self, directory: &Path) -> ConsensusConfig {
        ConsensusConfig {
            data_dir: directory.to_path_buf(),
            peer: self.network.peer_id(),
            name: "tester".to_owned(),
            addrs: self.network.listen_addrs(),
            role: Role::Main,
            timing: Timing::default(),
        }
    }

    fn request(&self, known: Option<(NodeId, ClusterId)>) -> JoinRequest {
        JoinRequest {
            peer: self.network.peer_id(),
            name: "tester".to_owned(),
            addrs: self.network.listen_addrs(),
            role: Role::Main,
            known,
        }
    }

    async fn join(self, candidates: Vec<PeerId>) -> Result<Node, JoinError> {
        let accepted = join(&self.network, candidates, self.request(None), PATIENCE).await?;
        let members = accepted.members.iter().map(|member| member.peer).collect();
        self.gate.send_replace(Gate {
            cluster: Some(accepted.cluster),
            members: Arc::new(members),
            ..Gate::default()
        });
        Ok(self.start(Start::Joined(accepted)).await)
    }

    async fn rejoin(
        self,
        candidates: Vec<PeerId>,
        id: NodeId,
        cluster: ClusterId,
    ) -> Result<(), (JoinError, Self)> {
        let request = self.request(Some((id, cluster)));
        match join(&self.network, candidates, request, PATIENCE).await {
            Ok(accepted) => {
                assert_eq!(accepted.id, id);
                Ok(())
            }
            Err(error) => Err((error, self)),
        }
    }

    async fn start(self, start: Start) -> Node {
        let config = self.config(self.directory.path());
        let consensus = Consensus::start(config, start, self.network.clone())
            .await
            .unwrap();
        let mut wiring = JoinSet::new();
        wiring.spawn(wire(consensus.roster(), self.gate));
        Node {
            consensus,
            network: self.network,
            directory: self.directory,
            keypair: self.keypair,
            wiring,
        }
    }
}

/// What the node's wiring does: whoever is in the roster may come in.
async fn wire(mut roster: watch::Receiver<Arc<Roster>>, gate: watch::Sender<Gate>) {
    loop {
        let members: HashSet<PeerId> = {
            let roster = roster.borrow_and_update();
            roster.members.values().map(|member| member.peer).collect()
        };
        if !members.is_empty() {
            let cluster = Some(roster.borrow().cluster);
            gate.send_replace(Gate {
                cluster,
                members: Arc::new(members),
                ..Gate::default()
            });
        }
        if roster.changed().await.is_err() {
            return;
        }
    }
}

struct Node {
    consensus: Consensus,
    network: Network,
    directory: TempDir,
    keypair: Keypair,
    wiring: JoinSet<()>,
}

impl Node {
    #[expect(clippy::disallowed_methods, reason = "a cluster like no other")]
    async fn found_closed() -> Self {
        let cluster = ClusterId::from_bytes(rand::random());
        Blank::new().await.start(Start::Found { cluster, epoch: 1 }).await
    }

    fn state(&self) -> Arc<State> {
        self.consensus.state().borrow().clone()
    }

    async fn set(&self, key: &str, value: &str) {
        let command = Command::SetConfig {
            key: key.to_owned(),
            value: value.to_owned(),
            expected: None,
        };
        assert_eq!(self.consensus.propose(command).await.unwrap(), Applied::Done);
    }

    async fn until(&self, what: impl FnMut(&Arc<State>) -> bool) {
        let mut state = self.consensus.state();
        timeout(PATIENCE, state.wait_for(what))
            .await
            .expect("in time")
            .unwrap();
    }

    async fn until_roster(&self, what: impl FnMut(&Arc<Roster>) -> bool) -> Arc<Roster> {
        let mut roster = self.consensus.roster();
        let found = timeout(PATIENCE, roster.wait_for(what))
            .await
            .expect("in time")
            .unwrap();
        found.clone()
    }

    fn unconfirmed_after_restart(&self) -> Option<u64> {
        stored(self.directory.path()).ok()??.unconfirmed
    }

    async fn stop(mut self) -> Stopped {
        let id = self.consensus.id();
        self.consensus.shutdown().await;
        assert_eq!(self.consensus.raft().borrow().state, RaftState::Stopped);
        let refused = self.consensus.propose(Command::Bandwidth(Vec::new())).await;
        assert_eq!(refused, Err(ProposeError::Stopped));
        self.wiring.shutdown().await;
        self.network.shutdown().await;
        Stopped {
            id,
            directory: self.directory,
            keypair: self.keypair,
        }
    }
}

/// What is left of a node that was stopped.
struct Stopped {
    id: NodeId,
    directory: TempDir,
    keypair: Keypair,
}

impl Stopped {
    /// Starts again on its own directory, on another port, and announces itself.
    async fn restart(self, cluster: &Cluster) -> Node {
        let known: Vec<_> = cluster
            .nodes
            .iter()
            .map(|node| (node.network.peer_id(), node.network.listen_addrs()))
            .collect();
        let peers = cluster.peers();
        let id = stored(self.directory.path()).unwrap().unwrap().id;
        let blank = Blank::with(self.keypair, self.directory).await;
        for (peer, addrs) in &known {
            blank.network.learn(*peer, addrs.clone());
        }
        let request = blank.request(Some((id, cluster.id)));
        let accepted = join(&blank.network, peers, request, PATIENCE).await.unwrap();
        assert_eq!(accepted.id, id);
        blank.start(Start::Resume).await
    }

    /// The node before it starts again on its own directory, on another port.
    async fn forget_nothing(self) -> Blank {
        Blank::with(self.keypair, self.directory).await
    }
}

fn snapshots(directory: &Path) -> usize {
    let files = std::fs::read_dir(directory.join("raft")).unwrap();
    files
        .filter(|file| {
            let name = file.as_ref().unwrap().file_name();
            name.to_string_lossy().starts_with("snapshot-")
        })
        .count()
}

fn spec() -> JobSpec {
    JobSpec {
        model: "mlp".to_owned(),
        data: "digits".to_owned(),
        algorithm: Algorithm::Default,
        rounds: 100,
        local_steps: 5,
        compression: 25,
        values: Values::Int8,
        lr_micro: 100_000,
        batch: 32,
        seed: 1,
        final_dense_rounds: 5,
        checkpoint_every: 1,
        evaluate_every: 10,
        stop: None,
        planner: Planner::Adaptive,
        tuning: Algorithm::Default.tuning(),
    }
}
