//! Everything one gateway knows, and what follows from each message. Pure: no clock, no disk, no socket.
//!
//! What must survive a crash has a version, [`Directory::durable_version`]: whoever was answered from a
//! version must not be answered before that version is on disk. The driver sees to that.

use std::time::{Duration, Instant};

use lapwing_base::{ClusterId, Multiaddr, PeerId, Term};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::registry::EnterError;
use crate::{
    Bootstrap, BootstrapRecord, Claim, ClaimRequest, ClusterState, ClusterSummary, ConfirmRequest, Decision,
    Entrance, Expiry, Genesis, Hint, HintError, HintRequest, Hints, LeaderHint, LeaderUpdate, Leave,
    LegacyNode, NodeKey, NodeRecord, Now, Profile, Records, Refusal, RefusedReason, Registered, Registration,
    Registry, RegistryRecord, Standing, StoredLegacyNode, StoredRecord, Upsert,
};

/// The gateway's whole state.
#[derive(Debug)]
pub struct Directory {
    limits: Limits,
    expiry: Expiry,
    bootstrap: Bootstrap,
    hints: Hints,
    records: Records,
    registry: Registry,
    counts: Counts,
    durable_version: u64,
    /// Whether the registry of the compatible API changed in what can wait for the next batch.
    registry_unsaved: bool,
}

/// Bounds and intervals.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most nodes on each API.
    pub nodes_max: usize,
    /// How long a silent node is known.
    pub node_timeout: Duration,
    /// How often nodes are asked to send a heartbeat.
    pub heartbeat_interval: Duration,
}

/// What survives a restart beside the nodes; small, and written as one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DirectoryRecord {
    /// The claim, or the cluster.
    pub bootstrap: BootstrapRecord,
    /// Who leads.
    pub hint: Option<Hint>,
    /// The compatible API's.
    pub registry: RegistryRecord,
}

/// What was found on disk.
#[derive(Clone, Debug)]
pub struct LoadedState {
    /// The small part.
    pub record: DirectoryRecord,
    /// The signed records.
    pub records: Vec<StoredRecord>,
    /// The nodes of the compatible API.
    pub legacy: Vec<StoredLegacyNode>,
}

/// What to write to disk in one transaction.
#[derive(Debug)]
pub struct Changes {
    /// The version that is on disk once these are.
    pub durable_version: u64,
    /// The small part.
    pub record: DirectoryRecord,
    /// Signed records to write, or to delete.
    pub records: Vec<(PeerId, Option<StoredRecord>)>,
    /// Nodes of the compatible API to write, or to delete.
    pub legacy: Vec<(NodeKey, Option<StoredLegacyNode>)>,
}

/// Things that happened since the start.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counts {
    /// Registrations and heartbeats under `/v1` that were taken.
    pub registrations: u64,
    /// Heartbeats of the compatible API that were taken.
    pub heartbeats: u64,
    /// Claims granted, repetitions included.
    pub claims_granted: u64,
    /// Leader hints refused since a newer term was known. Heartbeats of followers that lag count too.
    pub hints_stale: u64,
    /// Leader hints refused since their term has another leader: an alarm.
    pub hints_conflicting: u64,
    /// Messages refused since they named a second cluster: an alarm.
    pub cluster_mismatches: u64,
    /// Nodes forgotten after a silence.
    pub nodes_expired: u64,
}

/// What one sweep found.
#[derive(Debug, Default, Eq, PartialEq)]
pub struct SweepReport {
    /// Signed nodes that were forgotten.
    pub forgotten: Vec<PeerId>,
    /// Nodes of the compatible API that were forgotten.
    pub forgotten_legacy: Vec<NodeKey>,
    /// Set when the guard against mass expiry began or ended with this sweep.
    pub guard_changed: Option<bool>,
}

/// Most nodes in the answer to a registration: enough to find a cluster although most of them are gone.
const NEIGHBOURS_MAX: usize = 64;

/// First part of the wait for another's founding: a few round trips and disk writes.
const CLAIM_RETRY: Duration = Duration::from_millis(250);
/// Longest such wait.
const CLAIM_RETRY_MAX: Duration = Duration::from_secs(5);

impl Directory {
    /// Starts from what was on disk. Without `genesis` nobody is told to found a cluster.
    pub fn new(limits: Limits, loaded: LoadedState, genesis: bool, now: Instant) -> Self {
        let mut record = loaded.record;
        if !genesis && record.registry.genesis == Genesis::Open {
            record.registry.genesis = Genesis::Past;
        }
        Self {
            expiry: Expiry::new(limits.node_timeout, limits.heartbeat_interval),
            bootstrap: Bootstrap::new(record.bootstrap, genesis, now),
            hints: Hints::new(record.hint),
            records: Records::new(limits.nodes_max, loaded.records, now),
            registry: Registry::new(limits.nodes_max, record.registry, loaded.legacy, now),
            limits,
            counts: Counts::default(),
            durable_version: 0,
            registry_unsaved: false,
        }
    }

    // Under /v1. Signatures and sizes have been checked.

    /// Takes a registration or heartbeat.
    pub fn register(&mut self, registration: Registration, now: Now) -> Result<Registered, Refusal> {
        if let (Some(offered), Some(formed)) = (registration.cluster_id, self.bootstrap.cluster())
            && offered != formed
        {
            return Err(self.mismatched(formed, offered));
        }
        let peer = registration.peer_id;
        let (cluster, leader, term) = (registration.cluster_id, registration.leader, registration.term);
        let upsert = self.records.upsert(registration, now)?;
        self.counts.registrations += 1;
        if let Some(cluster) = cluster
            && self.bootstrap.adopt(cluster) == Ok(true)
        {
            self.durable_version += 1;
        }
        if let (Some(_), Some(leader), Some(term)) = (cluster, leader, term) {
            // A follower that lags is alive all the same, so its heartbeat counts and its hint does not.
            let _ = self.offer(Hint { leader, term });
        }
        let summary = self.summary(now.instant);
        Ok(Registered {
            status: match upsert {
                Upsert::Inserted => Standing::Registered,
                Upsert::Renewed | Upsert::Repeated => Standing::Renewed,
            },
            lineage: summary.lineage,
            cluster: summary.cluster,
            cluster_id: summary.cluster_id,
            size: summary.size,
            leader: summary.leader,
            nodes: self.records.neighbours(&peer, NEIGHBOURS_MAX),
            version: summary.version,
            heartbeat_interval_seconds: self.limits.heartbeat_interval.as_secs_f64(),
        })
    }

    /// Takes a farewell.
    pub fn leave(&mut self, leave: &Leave, now: Now) -> Result<(), Refusal> {
        Ok(self
            .records
            .leave(&leave.peer_id, leave.incarnation, leave.seq, now)?)
    }

    /// Asks to found the cluster.
    pub fn claim(&mut self, claim: &ClaimRequest, now: Now) -> Result<Claim, Refusal> {
        let ClaimRequest {
            peer_id,
            incarnation,
            seq,
        } = *claim;
        let decision = if self.records.admit_claim(&peer_id, incarnation, seq)? {
            let before = self.bootstrap.record();
            let decision = self.bootstrap.claim(peer_id, incarnation, now.instant);
            self.durable_version += u64::from(self.bootstrap.record() != before);
            decision
        } else {
            self.bootstrap
                .peek(peer_id, incarnation, now.instant)
                .ok_or(Refusal::Stale { incarnation, seq })?
        };
        Ok(match decision {
            Decision::Granted { epoch, expires_in } => {
                self.counts.claims_granted += 1;
                Claim::Granted {
                    lineage: self.bootstrap.lineage(),
                    epoch,
                    expires_in,
                }
            }
            Decision::Pending { remaining } => {
                // A longer wait where many wait: 10,000 nodes ask 2,000 times a second in all, not 40,000.
                let crowd = Duration::from_millis(2) * u32::try_from(self.records.len()).unwrap_or(u32::MAX);
                let retry_after = (CLAIM_RETRY + crowd.min(CLAIM_RETRY_MAX)).min(CLAIM_RETRY_MAX);
                Claim::Pending {
                    retry_after: retry_after.min(remaining.max(CLAIM_RETRY)),
                }
            }
            Decision::Formed { cluster } => Claim::Formed { cluster_id: cluster },
            Decision::Refused => Claim::Refused {
                reason: RefusedReason::NoGenesis,
            },
        })
    }

    /// Takes a founder's report that its cluster exists; it is also the first leader hint.
    pub fn confirm(&mut self, confirm: &ConfirmRequest) -> Result<(), Refusal> {
        let ConfirmRequest {
            peer_id,
            epoch,
            cluster_id,
            term,
        } = *confirm;
        if self.bootstrap.confirm(peer_id, epoch, cluster_id)? {
            self.durable_version += 1;
            let leader = peer_id;
            let _ = self.offer(Hint { leader, term });
        }
        Ok(())
    }

    /// Takes a member's word on who leads.
    pub fn hint(&mut self, hint: &HintRequest) -> Result<(), Refusal> {
        let formed = self.bootstrap.cluster();
        if let Some(formed) = formed
            && formed != hint.cluster_id
        {
            return Err(self.mismatched(formed, hint.cluster_id));
        }
        let is_member = |said: &Registration| said.cluster_id == Some(hint.cluster_id);
        if formed.is_none() || !self.records.get(&hint.peer_id).is_some_and(is_member) {
            return Err(Refusal::NotMember);
        }
        let (leader, term) = (hint.leader, hint.term);
        Ok(self.offer(Hint { leader, term })?)
    }

    /// What is known of the cluster.
    pub fn summary(&self, now: Instant) -> ClusterSummary {
        let cluster_id = self.bootstrap.cluster();
        let leader = self.hints.current().map(|hint| LeaderHint {
            peer_id: hint.leader,
            term: hint.term,
            addrs: self.addrs_of(&hint.leader),
        });
        ClusterSummary {
            lineage: self.bootstrap.lineage(),
            cluster: match cluster_id {
                Some(_) => ClusterState::Formed,
                None if self.bootstrap.is_forming(now) => ClusterState::Forming,
                None => ClusterState::None,
            },
            cluster_id,
            size: cluster_id.map_or(0, |cluster| self.records.members_of(&cluster)),
            term: leader.as_ref().map(|leader| leader.term),
            leader,
            epoch: self.bootstrap.epoch(),
            version: self.version(),
        }
    }

    /// At most `limit` nodes after `after` in the order of their ids, and whether there are more.
    pub fn page(&self, after: Option<PeerId>, limit: usize) -> (Vec<NodeRecord>, bool) {
        self.records.page(after, limit)
    }

    /// Grows with every change of what `/v1` would show, but for the times.
    pub const fn version(&self) -> u64 {
        self.records.version() + self.durable_version
    }

    // The compatible API. Reads show both kinds of node; writes reach only its own registry.

    /// Takes a registration of the compatible API. The first ever bootstraps, unless `/v1` has seen a claim.
    pub fn enter(&mut self, profile: Profile, now: Now) -> Result<Entrance, EnterError> {
        let may_bootstrap = self.bootstrap.is_untouched() && self.records.is_empty();
        let genesis = self.registry.record().genesis.clone();
        let entrance = self.registry.enter(profile, may_bootstrap, now)?;
        if self.registry.record().genesis != genesis {
            self.durable_version += 1;
        }
        Ok(entrance)
    }

    /// Takes a heartbeat of the compatible API; false when the node must register again.
    pub fn heartbeat(&mut self, key: &NodeKey, now: Now) -> bool {
        let known = self.registry.heartbeat(key, now);
        self.counts.heartbeats += u64::from(known);
        known
    }

    /// Takes a leader hint of the compatible API, which never changes a termed one.
    pub fn set_leader(&mut self, key: &NodeKey, term: Option<Term>) -> LeaderUpdate {
        let signed = self.hints.current();
        let leader = signed.map(|hint| (hint.term, hint.leader.to_base58()));
        let signed = leader.as_ref().map(|(term, leader)| (*term, leader.as_str()));
        let update = self.registry.set_leader(key, term, signed);
        self.registry_unsaved |= update == LeaderUpdate::Updated;
        update
    }

    /// Forgets a node of the compatible API; false when it was not known.
    pub fn remove(&mut self, key: &NodeKey) -> bool {
        self.registry.remove(key)
    }

    /// The nodes of both kinds that newcomers are told of, but for `except`.
    pub fn legacy_nodes(&self, except: Option<&NodeKey>) -> Vec<LegacyNode> {
        let is_signed = |key: &NodeKey| match key {
            NodeKey::Word(word) => word.parse().is_ok_and(|peer| self.records.get(&peer).is_some()),
            NodeKey::Number(_) => false,
        };
        let own = self
            .registry
            .listed(except)
            .filter(|node| !is_signed(&node.profile.node_id))
            .cloned();
        let signed = self.records.listed().map(to_legacy);
        own.chain(signed.filter(|node| Some(&node.profile.node_id) != except))
            .collect()
    }

    /// The leader as the compatible API shows it: the signed hint's, else the one that was said there.
    pub fn legacy_leader(&self) -> Option<LegacyNode> {
        match self.hints.current() {
            Some(hint) => {
                let node = self.records.listed_node(&hint.leader);
                node.map(to_legacy)
            }
            None => self.registry.leader().cloned(),
        }
    }

    /// The version that the compatible API shows; moves with every change of either kind of node.
    pub const fn registry_version(&self) -> u64 {
        self.registry.version() + self.records.version()
    }

    /// The compatible API's registry.
    pub const fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The signed records.
    pub const fn records(&self) -> &Records {
        &self.records
    }

    /// What happened since the start.
    pub const fn counts(&self) -> Counts {
        self.counts
    }

    // Upkeep.

    /// Ages every node.
    pub fn sweep(&mut self, now: Instant) -> SweepReport {
        let was_guarded = self.records.is_guarded() || self.registry.is_guarded();
        let forgotten = self.records.sweep(&self.expiry, now);
        let forgotten_legacy = self.registry.sweep(&self.expiry, now);
        self.counts.nodes_expired += (forgotten.len() + forgotten_legacy.len()) as u64;
        let guarded = self.records.is_guarded() || self.registry.is_guarded();
        SweepReport {
            forgotten,
            forgotten_legacy,
            guard_changed: (guarded != was_guarded).then_some(guarded),
        }
    }

    /// The version of what must be on disk before anyone is answered from it.
    pub const fn durable_version(&self) -> u64 {
        self.durable_version
    }

    /// Takes what differs from the disk.
    pub fn take_changes(&mut self) -> Changes {
        self.registry_unsaved = false;
        Changes {
            durable_version: self.durable_version,
            record: DirectoryRecord {
                bootstrap: self.bootstrap.record(),
                hint: self.hints.current(),
                registry: self.registry.record().clone(),
            },
            records: self.records.take_unsaved(),
            legacy: self.registry.take_unsaved(),
        }
    }

    /// Gives back what could not be written.
    pub fn return_changes(&mut self, changes: Changes) {
        self.registry_unsaved = true;
        self.records
            .mark_unsaved(changes.records.into_iter().map(|(peer, _)| peer));
        self.registry
            .mark_unsaved(changes.legacy.into_iter().map(|(key, _)| key));
    }

    /// Whether anything waits for the next batch to disk.
    pub fn has_unsaved(&self) -> bool {
        self.registry_unsaved || self.records.has_unsaved() || self.registry.has_unsaved()
    }

    fn addrs_of(&self, peer: &PeerId) -> Vec<Multiaddr> {
        self.records
            .get(peer)
            .map(|said| said.addrs.clone())
            .unwrap_or_default()
    }

    fn offer(&mut self, hint: Hint) -> Result<(), HintError> {
        match self.hints.offer(hint) {
            Ok(changed) => {
                self.durable_version += u64::from(changed);
                Ok(())
            }
            Err(error @ HintError::Stale { .. }) => {
                self.counts.hints_stale += 1;
                Err(error)
            }
            Err(error @ HintError::Conflict { .. }) => {
                self.counts.hints_conflicting += 1;
                Err(error)
            }
        }
    }

    fn mismatched(&mut self, formed: ClusterId, offered: ClusterId) -> Refusal {
        self.counts.cluster_mismatches += 1;
        Refusal::ClusterMismatch { formed, offered }
    }
}

/// A signed node as the compatible API shows it: its peer id is the node id, its first address with a host and
/// a port is the address, and the rest is metadata.
fn to_legacy(node: NodeRecord) -> LegacyNode {
    let (ip_address, port) = node
        .addrs
        .iter()
        .find_map(host_and_port)
        .unwrap_or_else(|| (String::new(), 0));
    let mut metadata = Map::new();
    metadata.insert("name".to_owned(), Value::from(node.name));
    metadata.insert("role".to_owned(), json!(node.role));
    metadata.insert("addrs".to_owned(), json!(node.addrs));
    if let Some(cluster) = node.cluster_id {
        metadata.insert("cluster_id".to_owned(), json!(cluster));
    }
    LegacyNode {
        profile: Profile {
            node_id: NodeKey::Word(node.peer_id.to_base58()),
            ip_address,
            port,
            capabilities: node.capabilities,
            metadata,
        },
        status: node.status,
        last_seen: node.last_seen,
        join_timestamp: node.joined_at,
    }
}

/// The host and the port of an address, from its text: `/ip4/HOST/udp/PORT/…`.
fn host_and_port(addr: &Multiaddr) -> Option<(String, u16)> {
    let text = addr.to_string();
    let mut parts = text.split('/').skip(1);
    let host = match parts.next()? {
        "ip4" | "ip6" | "dns" | "dns4" | "dns6" => parts.next()?,
        _ => return None,
    };
    let port = match parts.next()? {
        "udp" | "tcp" => parts.next()?.parse().ok()?,
        _ => return None,
    };
    Some((host.to_owned(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    use lapwing_base::Keypair;

    use crate::message::tests::registration;
    use crate::{LEASE, Lineage, UnixTime};

    const CLUSTER: ClusterId = ClusterId::from_bytes([1; 16]);
    const OTHER: ClusterId = ClusterId::from_bytes([2; 16]);

    #[test]
    fn of_fifty_nodes_that_claim_at_once_exactly_one_is_granted() {
        let (mut directory, now) = empty(true);
        let nodes: Vec<Registration> = (0..50).map(|_| node()).collect();
        let mut granted = 0;
        for node in &nodes {
            directory.register(node.clone(), now).unwrap();
            match directory.claim(&claim_of(node, 1), now).unwrap() {
                Claim::Granted { epoch, .. } => {
                    assert_eq!(epoch, 1);
                    granted += 1;
                }
                Claim::Pending { retry_after } => assert!(retry_after <= LEASE),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(granted, 1);
    }

    #[test]
    fn a_dead_claimants_late_confirmation_is_refused_and_the_next_ones_counts() {
        let (mut directory, now) = empty(true);
        let (first, second) = (node(), node());
        directory.register(first.clone(), now).unwrap();
        directory.register(second.clone(), now).unwrap();
        assert_eq!(epoch_of(directory.claim(&claim_of(&first, 1), now)), 1);
        let later = after(now, LEASE);
        assert_eq!(epoch_of(directory.claim(&claim_of(&second, 1), later)), 2);
        let late = directory.confirm(&confirm_of(&first, 1, CLUSTER)).unwrap_err();
        assert_eq!(late.code(), "epoch-superseded");
        directory.confirm(&confirm_of(&second, 2, OTHER)).unwrap();
        let formed = Claim::Formed { cluster_id: OTHER };
        assert_eq!(directory.claim(&claim_of(&first, 2), later), Ok(formed));
        assert_eq!(
            directory.summary(later.instant).leader.unwrap().peer_id,
            second.peer_id
        );
    }

    #[test]
    fn only_a_registered_node_claims_and_an_older_request_is_refused() {
        let (mut directory, now) = empty(true);
        let node = node();
        assert_eq!(
            directory.claim(&claim_of(&node, 1), now),
            Err(Refusal::NotRegistered)
        );
        directory.register(node.clone(), now).unwrap();
        assert_eq!(epoch_of(directory.claim(&claim_of(&node, 5), now)), 1);
        assert_eq!(epoch_of(directory.claim(&claim_of(&node, 5), now)), 1);
        let replayed = directory.claim(&claim_of(&node, 4), now).unwrap_err();
        assert_eq!(replayed.code(), "stale-sequence");
        let revived = directory
            .claim(&claim_of(&node, 5), after(now, LEASE))
            .unwrap_err();
        assert_eq!(revived.code(), "stale-sequence");
        assert_eq!(
            epoch_of(directory.claim(&claim_of(&node, 6), after(now, LEASE))),
            1
        );
    }

    #[test]
    fn every_change_that_must_survive_a_crash_raises_the_durable_version() {
        let (mut directory, now) = empty(true);
        let founder = node();
        directory.register(founder.clone(), now).unwrap();
        assert_eq!(directory.durable_version(), 0);
        directory.claim(&claim_of(&founder, 1), now).unwrap();
        let claimed = directory.durable_version();
        assert!(claimed > 0);
        directory.claim(&claim_of(&founder, 2), now).unwrap();
        assert_eq!(directory.durable_version(), claimed);
        directory.confirm(&confirm_of(&founder, 1, CLUSTER)).unwrap();
        let confirmed = directory.durable_version();
        assert!(confirmed > claimed);
        directory.register(member(&founder, 2, 7), now).unwrap();
        assert!(directory.durable_version() > confirmed, "a newer term");
    }

    #[test]
    fn a_member_of_another_cluster_is_refused_and_counted() {
        let (mut directory, now) = formed();
        let stranger = Registration {
            cluster_id: Some(OTHER),
            ..node()
        };
        let refusal = directory.register(stranger, now).unwrap_err();
        assert_eq!(refusal.code(), "cluster-mismatch");
        assert_eq!(refusal.to_problem().cluster_id, Some(CLUSTER));
        assert_eq!(directory.counts().cluster_mismatches, 1);
    }

    #[test]
    fn a_heartbeat_with_a_stale_hint_counts_without_its_hint() {
        let (mut directory, now) = formed();
        let (old, new) = (node(), node());
        directory.register(member(&new, 2, 9), now).unwrap();
        let answer = directory.register(member(&old, 2, 8), now).unwrap();
        assert_eq!(answer.leader.unwrap().peer_id, new.peer_id);
        assert_eq!(directory.counts().hints_stale, 1);
        directory.register(member(&old, 3, 9), now).unwrap();
        assert_eq!(directory.counts().hints_conflicting, 1);
    }

    #[test]
    fn only_members_say_who_leads() {
        let (mut directory, now) = formed();
        let (stranger, insider) = (node(), node());
        let hint = |from: &Registration, term| HintRequest {
            peer_id: from.peer_id,
            cluster_id: CLUSTER,
            leader: from.peer_id,
            term: Term(term),
        };
        directory.register(stranger.clone(), now).unwrap();
        assert_eq!(directory.hint(&hint(&stranger, 99)), Err(Refusal::NotMember));
        let outsider = Registration {
            leader: Some(stranger.peer_id),
            term: Some(Term(99)),
            seq: 2,
            ..stranger.clone()
        };
        directory.register(outsider, now).unwrap();
        assert_ne!(directory.summary(now.instant).term, Some(Term(99)));

        directory.register(member(&insider, 2, 5), now).unwrap();
        directory.hint(&hint(&insider, 6)).unwrap();
        let stale = directory.hint(&hint(&insider, 5)).unwrap_err();
        assert_eq!((stale.code(), stale.status()), ("stale-term", 409));
        let conflict = HintRequest {
            leader: stranger.peer_id,
            ..hint(&insider, 6)
        };
        let conflict = directory.hint(&conflict).unwrap_err();
        assert_eq!((conflict.code(), conflict.status()), ("leader-conflict", 409));
    }

    #[test]
    fn what_the_compatible_api_writes_never_reaches_claims_hints_or_records() {
        let (mut directory, now) = formed();
        let before = (directory.summary(now.instant), directory.page(None, 10));
        let leader = before.0.leader.clone().unwrap().peer_id.to_base58();
        let profile = |id: Value| {
            let body = json!({"node_id": id, "ip_address": "::1", "port": 1, "capabilities": []});
            Profile::from_body(&body).unwrap()
        };
        assert!(!directory.enter(profile(json!(1)), now).unwrap().is_bootstrap);
        directory.enter(profile(json!(leader)), now).unwrap();
        let key = NodeKey::Number(1);
        assert_eq!(directory.set_leader(&key, None), LeaderUpdate::TermRequired);
        assert_eq!(directory.set_leader(&key, Some(Term(99))), LeaderUpdate::Updated);
        assert!(directory.remove(&NodeKey::Word(leader.clone())));
        let after = (directory.summary(now.instant), directory.page(None, 10));
        assert_eq!(before.1, after.1);
        assert_eq!(before.0.leader, after.0.leader);
        assert_eq!(before.0.cluster_id, after.0.cluster_id);
        assert!(
            directory
                .legacy_leader()
                .unwrap()
                .profile
                .node_id
                .is_word(&leader)
        );
    }

    #[test]
    fn signed_nodes_are_shown_to_old_clients_with_their_peer_id() {
        let (directory, _) = formed();
        let nodes = directory.legacy_nodes(None);
        assert_eq!(nodes.len(), 1);
        assert_eq!(nodes[0].profile.ip_address, "127.0.0.1");
        assert_eq!(nodes[0].profile.port, 4001);
        assert!(directory.legacy_nodes(Some(&nodes[0].profile.node_id)).is_empty());
    }

    #[test]
    fn a_restart_from_what_was_written_keeps_cluster_leader_and_nodes() {
        let (mut directory, now) = formed();
        let changes = directory.take_changes();
        let loaded = LoadedState {
            record: changes.record,
            records: changes
                .records
                .into_iter()
                .filter_map(|(_, record)| record)
                .collect(),
            legacy: Vec::new(),
        };
        let mut again = Directory::new(LIMITS, loaded, true, now.instant);
        assert_eq!(again.page(None, 10), directory.page(None, 10));
        let (before, after) = (directory.summary(now.instant), again.summary(now.instant));
        assert_eq!(
            (before.cluster_id, before.leader),
            (after.cluster_id, after.leader)
        );
        let newcomer = node();
        again.register(newcomer.clone(), now).unwrap();
        let formed = Claim::Formed { cluster_id: CLUSTER };
        assert_eq!(again.claim(&claim_of(&newcomer, 1), now), Ok(formed));
    }

    #[test]
    fn without_genesis_nobody_founds_until_a_member_comes() {
        let (mut directory, now) = empty(false);
        let newcomer = node();
        directory.register(newcomer.clone(), now).unwrap();
        let refused = directory.claim(&claim_of(&newcomer, 1), now).unwrap();
        assert!(matches!(refused, Claim::Refused { .. }));
        directory.register(member(&node(), 1, 3), now).unwrap();
        let formed = Claim::Formed { cluster_id: CLUSTER };
        assert_eq!(directory.claim(&claim_of(&newcomer, 2), now), Ok(formed));
    }

    const LIMITS: Limits = Limits {
        nodes_max: 100,
        node_timeout: Duration::from_secs(300),
        heartbeat_interval: Duration::from_secs(30),
    };

    /// A directory whose cluster was founded by its only node in term 1.
    fn formed() -> (Directory, Now) {
        let (mut directory, now) = empty(true);
        let founder = node();
        directory.register(founder.clone(), now).unwrap();
        directory.claim(&claim_of(&founder, 1), now).unwrap();
        directory.confirm(&confirm_of(&founder, 1, CLUSTER)).unwrap();
        directory.register(member(&founder, 2, 1), now).unwrap();
        (directory, now)
    }

    #[expect(clippy::disallowed_methods, reason = "any instant will do")]
    fn empty(genesis: bool) -> (Directory, Now) {
        let now = Now {
            instant: Instant::now(),
            unix: UnixTime(1000.0),
        };
        let record = DirectoryRecord {
            bootstrap: BootstrapRecord {
                lineage: Lineage::from_bytes([9; 16]),
                epoch: 0,
                claim: None,
                cluster: None,
            },
            hint: None,
            registry: RegistryRecord::default(),
        };
        let loaded = LoadedState {
            record,
            records: Vec::new(),
            legacy: Vec::new(),
        };
        (Directory::new(LIMITS, loaded, genesis, now.instant), now)
    }

    fn node() -> Registration {
        registration(&Keypair::generate_ed25519())
    }

    /// The node as a member that leads its cluster in `term`.
    fn member(node: &Registration, seq: u64, term: u64) -> Registration {
        Registration {
            cluster_id: Some(CLUSTER),
            leader: Some(node.peer_id),
            term: Some(Term(term)),
            seq,
            ..node.clone()
        }
    }

    fn claim_of(node: &Registration, seq: u64) -> ClaimRequest {
        ClaimRequest {
            peer_id: node.peer_id,
            incarnation: node.incarnation,
            seq,
        }
    }

    fn confirm_of(node: &Registration, epoch: u64, cluster_id: ClusterId) -> ConfirmRequest {
        ConfirmRequest {
            peer_id: node.peer_id,
            epoch,
            cluster_id,
            term: Term(1),
        }
    }

    fn epoch_of(claim: Result<Claim, Refusal>) -> u64 {
        match claim {
            Ok(Claim::Granted { epoch, .. }) => epoch,
            other => panic!("{other:?}"),
        }
    }

    fn after(now: Now, span: Duration) -> Now {
        Now {
            instant: now.instant + span,
            ..now
        }
    }
}
