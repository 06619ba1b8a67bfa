//! The status document: everything that one node shows of itself, from which the terminal view, the metrics
//! and `lapwing status` are drawn. Only its shape, and how the rooms' own snapshots fill it.

use lapwing_base::{Bandwidth, Bandwidths, ByteSize, CLASSES, Class, Multiaddr, Ppm};
use lapwing_consensus::RaftStatus;
use lapwing_federation::{Offered, Version};
use lapwing_net::{NatType, NetworkStatus, Path, PeerStatus, RateLimits, Refused, RelayedBecause, Transport};
use lapwing_train::{TrainingState, TrainingStatus};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use lapwing_base::{ClusterId, MemberState, NodeId, PeerId, Role, Roster};

/// `GET /v1/status`; the keys are promised in the command line's specification.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StatusDocument {
    /// Of the running program.
    pub version: &'static str,
    /// The node's identity.
    pub peer_id: PeerId,
    /// What people call it.
    pub name: String,
    /// Publicly reachable or not.
    pub role: Role,
    /// The cluster it is a member of.
    pub cluster_id: Option<ClusterId>,
    /// Since the process started.
    pub uptime_seconds: f64,
    /// The node as a whole.
    pub node: NodeSection,
    /// Its part in consensus.
    pub raft: RaftSection,
    /// Its part in training.
    pub training: TrainingSection,
    /// Its peers and addresses.
    pub network: NetworkSection,
    /// What is callable as far as this node knows: a home knows its own.
    pub services: Vec<ServiceSection>,
    /// The cluster's configuration.
    pub config: ConfigSection,
}

/// The node as a whole.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NodeSection {
    /// How it stands.
    pub state: NodeState,
    /// What it waits for, or what is wrong.
    pub reason: Option<String>,
}

/// How a node stands in its cluster.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    /// Not a member yet, or not yet following the log.
    #[default]
    Joining,
    /// A member that follows the log.
    Active,
    /// A member that the others do not hear.
    Suspected,
    /// On its way out.
    Leaving,
    /// Cannot go on; the reason says why.
    Failed,
}

impl NodeState {
    /// The word in the status document.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Joining => "joining",
            Self::Active => "active",
            Self::Suspected => "suspected",
            Self::Leaving => "leaving",
            Self::Failed => "failed",
        }
    }
}

/// The node's part in consensus.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RaftSection {
    /// `observer`, `learner`, `follower`, `candidate` or `leader`.
    pub state: String,
    /// The current term.
    pub term: u64,
    /// Who leads, as far as this node knows.
    pub leader: Option<PeerId>,
    /// Who votes.
    pub voters: Vec<PeerId>,
    /// Who follows without a vote.
    pub learners: Vec<PeerId>,
    /// The last entry on disk.
    pub last_log_index: u64,
    /// The last entry that a quorum has.
    pub committed_index: u64,
    /// The last entry in the state.
    pub applied_index: u64,
}

impl Default for RaftSection {
    /// Of a node that has no log: it takes no part.
    fn default() -> Self {
        Self {
            state: "observer".to_owned(),
            term: 0,
            leader: None,
            voters: Vec::new(),
            learners: Vec::new(),
            last_log_index: 0,
            committed_index: 0,
            applied_index: 0,
        }
    }
}

/// The node's part in training.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct TrainingSection {
    /// What it does now.
    pub state: TrainingState,
    /// The job.
    pub job: Option<String>,
    /// The round it is in.
    pub round: u64,
    /// All rounds of the job.
    pub rounds: u32,
    /// With whom it exchanges.
    pub partner: Option<PeerId>,
    /// Mean training loss of the last local steps.
    pub loss: Option<f32>,
    /// Of its own model at the last evaluation.
    pub local_accuracy: Option<f64>,
    /// Of the averaged model at the last evaluation.
    pub averaged_accuracy: Option<f64>,
    /// Payload of exchanges sent since the start.
    pub sent_bytes: ByteSize,
    /// Payload of exchanges received since the start.
    pub received_bytes: ByteSize,
    /// Samples trained on since the start.
    pub samples: u64,
    /// Why this node takes no useful part, when it cannot.
    pub problem: Option<String>,
    /// What this node has told about one of its samples so far, where the job promises differential privacy.
    pub epsilon: Option<f64>,
    /// The chance with which that promise may fail.
    pub delta: Option<f64>,
    /// Members without which the job's rounds are planned for a while.
    pub quarantined: Vec<QuarantineSection>,
}

/// A member whose values several partners refused.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct QuarantineSection {
    /// Its number.
    pub id: String,
    /// Its identity, while it is a member.
    pub peer_id: Option<PeerId>,
    /// Its name, while it is a member.
    pub name: Option<String>,
    /// The last round without it.
    pub until_round: u64,
    /// The how manieth time in this job.
    pub times: u32,
    /// What it sent.
    pub reason: String,
    /// Who refused it.
    pub refused_by: Vec<String>,
}

/// The node's peers and addresses.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct NetworkSection {
    /// Whether the members can be reached.
    pub state: NetworkState,
    /// Where it listens.
    pub listen: Vec<Multiaddr>,
    /// Where others see it.
    pub external: Vec<Multiaddr>,
    /// What stands between it and the internet over IPv4.
    pub nat: NatType,
    /// The same over IPv6.
    pub nat_ipv6: NatType,
    /// Relays that accept circuits for it.
    pub reservations: Vec<ReservationSection>,
    /// What was turned away since the start, by what it was.
    pub refused: Refused,
    /// What it keeps to when it sends.
    pub max_upload: LimitsSection,
    /// What it keeps to when it receives.
    pub max_download: LimitsSection,
    /// Payload sent to everybody since the start, by class; of peers that are forgotten, too.
    pub sent_bytes: BTreeMap<&'static str, u64>,
    /// Payload received from everybody since the start, by class.
    pub received_bytes: BTreeMap<&'static str, u64>,
    /// Every other member, and whoever else has a connection, by identity.
    pub peers: Vec<PeerSection>,
}

/// Rates that one direction is held to, in Mbit/s; all that apply hold.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct LimitsSection {
    /// Everything together.
    pub node_mbit_s: Option<f64>,
    /// Single classes.
    pub class_mbit_s: BTreeMap<&'static str, f64>,
    /// Single peers.
    pub peer_mbit_s: BTreeMap<String, f64>,
}

/// Whether the members can be reached.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum NetworkState {
    /// Every other member has a connection here, or needs none yet.
    #[default]
    Connected,
    /// Some members cannot be reached from here, or are suspected by the cluster and have no connection here.
    Degraded,
    /// A quorum of the voters cannot be reached from here.
    Partitioned,
}

/// A relay's promise to accept circuits for this node.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ReservationSection {
    /// The relay.
    pub relay: PeerId,
    /// Unix seconds.
    pub expires_at: f64,
}

/// A service; there are none yet.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ServiceSection {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// How many offer it.
    pub instances: u32,
    /// Whether this node does.
    pub local: bool,
}

/// The cluster's configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct ConfigSection {
    /// Grows with every change.
    pub version: u64,
}

/// One peer as this node sees it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PeerSection {
    /// Its identity.
    pub peer_id: PeerId,
    /// Its name, when it is a member.
    pub name: Option<String>,
    /// Whether it is a member of the cluster.
    pub member: bool,
    /// What it says it runs, as `lapwing/0.1.0` or `go-libp2p`: nobody has checked that.
    pub agent: Option<String>,
    /// `direct` or `relayed`; null without a connection.
    pub path: Option<Path>,
    /// `quic` or `wss`; null without a connection.
    pub transport: Option<Transport>,
    /// The address in use, or the one tried last.
    pub address: Option<Multiaddr>,
    /// Why the path is not direct: a code of [`RelayedBecause`].
    pub relayed_because: Option<&'static str>,
    /// The same in words, with what would help.
    pub relayed_explanation: Option<&'static str>,
    /// Round trip; null until there has been one.
    pub rtt_ms: Option<f64>,
    /// The last round trip of libp2p's own ping.
    pub ping_ms: Option<f64>,
    /// From this node to the peer, measured.
    pub bandwidth_mbit_s: Option<f64>,
    /// From the peer to this node, measured.
    pub download_mbit_s: Option<f64>,
    /// From this node to the peer, as the log has it: what plans go by.
    pub committed_mbit_s: Option<f64>,
    /// Payload sent since the start, by class.
    pub sent_bytes: BTreeMap<&'static str, u64>,
    /// Payload received since the start, by class.
    pub received_bytes: BTreeMap<&'static str, u64>,
    /// What went wrong last.
    pub last_error: Option<String>,
}

/// What the parts of a node say of themselves at one moment.
#[derive(Debug)]
pub(crate) struct Parts<'a> {
    pub(crate) name: &'a str,
    pub(crate) uptime: Duration,
    pub(crate) network: NetworkStatus,
    /// What it waits for while it joins, or why it failed.
    pub(crate) reason: Option<String>,
    pub(crate) failed: bool,
    pub(crate) leaving: bool,
    pub(crate) services: Vec<Offered>,
    pub(crate) member: Option<MemberParts<'a>>,
}

/// The same for the parts that only a member has.
#[derive(Debug)]
pub(crate) struct MemberParts<'a> {
    pub(crate) id: NodeId,
    pub(crate) roster: &'a Roster,
    pub(crate) raft: RaftStatus,
    pub(crate) training: TrainingStatus,
    pub(crate) config_version: u64,
    /// As the log has them.
    pub(crate) bandwidths: &'a Bandwidths,
}

impl StatusDocument {
    pub(crate) fn new(parts: Parts<'_>) -> Self {
        let Parts {
            name,
            uptime,
            network,
            reason,
            failed,
            leaving,
            services,
            member,
        } = parts;
        let me = network.peer;
        Self {
            version: env!("CARGO_PKG_VERSION"),
            peer_id: me,
            name: name.to_owned(),
            role: network.reach.standing.role,
            cluster_id: member.as_ref().map(|member| member.roster.cluster),
            uptime_seconds: uptime.as_secs_f64(),
            node: NodeSection {
                state: node_state(failed, leaving, member.as_ref()),
                reason,
            },
            raft: member.as_ref().map(raft_section).unwrap_or_default(),
            training: member.as_ref().map(training_section).unwrap_or_default(),
            config: ConfigSection {
                version: member.as_ref().map_or(0, |member| member.config_version),
            },
            services: service_sections(&services),
            network: network_section(network, member.as_ref()),
        }
    }
}

fn node_state(failed: bool, leaving: bool, member: Option<&MemberParts<'_>>) -> NodeState {
    if failed {
        return NodeState::Failed;
    }
    if leaving {
        return NodeState::Leaving;
    }
    let record = member.and_then(|member| member.roster.members.get(&member.id));
    match record.map(|record| record.state) {
        None | Some(MemberState::Joining) => NodeState::Joining,
        Some(MemberState::Active) => NodeState::Active,
        Some(MemberState::Suspected) => NodeState::Suspected,
        Some(MemberState::Leaving) => NodeState::Leaving,
    }
}

/// What is known of services that can be reached, one section for each version of each.
fn service_sections(offered: &[Offered]) -> Vec<ServiceSection> {
    let mut counted: BTreeMap<(&str, &Version), (u32, bool)> = BTreeMap::new();
    for Offered { service, hops, .. } in offered {
        let Some(hops) = hops else { continue };
        let (instances, local) = counted
            .entry((service.name.as_str(), &service.version))
            .or_default();
        *instances += 1;
        *local |= *hops == 0;
    }
    let section = |((name, version), (instances, local)): ((&str, &Version), (u32, bool))| ServiceSection {
        name: name.to_owned(),
        version: version.to_string(),
        instances,
        local,
    };
    counted.into_iter().map(section).collect()
}

fn raft_section(member: &MemberParts<'_>) -> RaftSection {
    let raft = &member.raft;
    let peer = |id: &NodeId| member.roster.members.get(id).map(|record| record.peer);
    RaftSection {
        state: raft.state.to_string(),
        term: raft.term.0,
        leader: raft.leader.as_ref().and_then(peer),
        voters: raft.voters.iter().filter_map(peer).collect(),
        learners: raft.learners.iter().filter_map(peer).collect(),
        last_log_index: raft.last_log.0,
        committed_index: raft.committed.0,
        applied_index: raft.applied.0,
    }
}

fn training_section(member: &MemberParts<'_>) -> TrainingSection {
    let training = &member.training;
    let partner = training
        .partner
        .and_then(|partner| member.roster.members.get(&partner));
    TrainingSection {
        state: training.state,
        job: training.job.map(|job| job.to_string()),
        round: training.round.0,
        rounds: training.rounds,
        partner: partner.map(|partner| partner.peer),
        loss: training.loss,
        local_accuracy: training.local_accuracy.map(Ppm::as_f64),
        averaged_accuracy: training.averaged_accuracy.map(Ppm::as_f64),
        sent_bytes: training.sent,
        received_bytes: training.received,
        samples: training.samples,
        problem: training.problem.clone(),
        epsilon: training.epsilon,
        delta: training.delta,
        quarantined: training
            .quarantined
            .iter()
            .map(|(node, quarantine)| {
                let record = member.roster.members.get(node);
                QuarantineSection {
                    id: node.to_string(),
                    peer_id: record.map(|record| record.peer),
                    name: record.map(|record| record.name.clone()),
                    until_round: quarantine.until.0,
                    times: quarantine.times,
                    reason: format!("sent {}", quarantine.why),
                    refused_by: crate::documents::ids(&quarantine.by),
                }
            })
            .collect(),
    }
}

/// The moment `left` from now, in Unix seconds.
fn unix_seconds(left: Duration) -> f64 {
    let now = crate::node::unix_now();
    (now + left).as_secs_f64()
}

fn network_section(network: NetworkStatus, member: Option<&MemberParts<'_>>) -> NetworkSection {
    let state = member.map_or(NetworkState::Connected, |member| reach(&network, member));
    let mut peers: Vec<_> = network
        .peers
        .into_iter()
        .map(|peer| peer_section(peer, member))
        .collect();
    if let Some(member) = member {
        peers.extend(unmet(member, network.peer, &peers));
        peers.sort_by_key(|peer| peer.peer_id);
    }
    NetworkSection {
        state,
        listen: network.listen,
        external: network.reach.advertised,
        refused: network.refused,
        max_upload: limits_section(&network.upload_max),
        max_download: limits_section(&network.download_max),
        nat: network.reach.nat,
        nat_ipv6: network.reach.nat_v6,
        reservations: network
            .reach
            .reservations
            .iter()
            .map(|(relay, left)| ReservationSection {
                relay: *relay,
                expires_at: unix_seconds(*left),
            })
            .collect(),
        sent_bytes: by_class(&network.sent),
        received_bytes: by_class(&network.received),
        peers,
    }
}

fn limits_section(limits: &RateLimits) -> LimitsSection {
    let of_class = |class: Class| Some((class.as_str(), limits.class(class)?.as_mbit_s()));
    LimitsSection {
        node_mbit_s: limits.node.map(Bandwidth::as_mbit_s),
        class_mbit_s: CLASSES.into_iter().filter_map(of_class).collect(),
        peer_mbit_s: limits
            .peers
            .iter()
            .map(|(peer, rate)| (peer.to_string(), rate.as_mbit_s()))
            .collect(),
    }
}

/// The members that the network has not dealt with.
fn unmet(member: &MemberParts<'_>, me: PeerId, met: &[PeerSection]) -> Vec<PeerSection> {
    let met: BTreeSet<PeerId> = met.iter().map(|peer| peer.peer_id).collect();
    let records = member.roster.members.values();
    records
        .filter(|record| record.peer != me && !met.contains(&record.peer))
        .map(|record| PeerSection::unmet(record.peer, record.name.clone()))
        .collect()
}

/// Partitioned: fewer voters than a majority are in reach (this node counts itself). Degraded: a member has no
/// connection here, and has failed to answer its last dial, or is suspected by the cluster: that counts until it is
/// removed. Nodes dial on demand: a peer that nobody suspects and that was never needed is not missed.
fn reach(network: &NetworkStatus, member: &MemberParts<'_>) -> NetworkState {
    let missed = |id: &NodeId| {
        *id != member.id
            && member.roster.members.get(id).is_some_and(|record| {
                let seen = network.peers.iter().find(|peer| peer.peer == record.peer);
                let connected = seen.is_some_and(|peer| peer.connected);
                let failed = seen.is_some_and(|peer| peer.last_error.is_some());
                !connected && (failed || record.state == MemberState::Suspected)
            })
    };
    let voters = &member.roster.voters;
    let voters_missed = voters.iter().filter(|id| missed(id)).count();
    let is_expected = |id: &&NodeId| {
        let state = member.roster.members.get(id).map(|record| record.state);
        matches!(state, Some(MemberState::Active | MemberState::Suspected))
    };
    if voters.len() - voters_missed < voters.len() / 2 + 1 && !voters.is_empty() {
        NetworkState::Partitioned
    } else if member.roster.members.keys().filter(is_expected).any(missed) {
        NetworkState::Degraded
    } else {
        NetworkState::Connected
    }
}

fn peer_section(peer: PeerStatus, member: Option<&MemberParts<'_>>) -> PeerSection {
    let met = member.and_then(|member| Some((member, member.roster.by_peer(&peer.peer)?)));
    let name = met.map(|(_, record)| record.name.clone());
    let committed = met.and_then(|(member, record)| member.bandwidths.get(member.id, record.id));
    PeerSection {
        peer_id: peer.peer,
        member: name.is_some(),
        name,
        agent: peer.agent,
        path: peer.link.map(|link| link.path),
        transport: peer.link.map(|link| link.transport),
        address: peer.address,
        relayed_because: peer.relayed_because.map(RelayedBecause::code),
        relayed_explanation: peer.relayed_because.map(RelayedBecause::explanation),
        rtt_ms: peer.link.and_then(|link| link.rtt).map(milliseconds),
        ping_ms: peer.pinged.map(milliseconds),
        bandwidth_mbit_s: peer.bandwidth.map(Bandwidth::as_mbit_s),
        download_mbit_s: peer.download.map(Bandwidth::as_mbit_s),
        committed_mbit_s: committed.map(Bandwidth::as_mbit_s),
        sent_bytes: by_class(&peer.sent),
        received_bytes: by_class(&peer.received),
        last_error: peer.last_error,
    }
}

impl PeerSection {
    /// A member that nothing is known of but its name.
    fn unmet(peer_id: PeerId, name: String) -> Self {
        Self {
            peer_id,
            name: Some(name),
            member: true,
            agent: None,
            path: None,
            transport: None,
            address: None,
            relayed_because: None,
            relayed_explanation: None,
            rtt_ms: None,
            ping_ms: None,
            bandwidth_mbit_s: None,
            download_mbit_s: None,
            committed_mbit_s: None,
            sent_bytes: by_class(&[ByteSize(0); CLASSES.len()]),
            received_bytes: by_class(&[ByteSize(0); CLASSES.len()]),
            last_error: None,
        }
    }
}

fn milliseconds(took: Duration) -> f64 {
    took.as_secs_f64() * 1e3
}

fn by_class(sizes: &[ByteSize; CLASSES.len()]) -> BTreeMap<&'static str, u64> {
    CLASSES
        .iter()
        .map(|class| (class.as_str(), sizes[class.index()].0))
        .collect()
}
