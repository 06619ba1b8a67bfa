//! The signed records of `/v1`: one per node, written only by that node, newest wins.
//!
//! Newest is by the node's own (incarnation, seq), never by the gateway's clock. Checks no signatures and
//! knows nothing of the bootstrap.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::time::{Duration, Instant};

use lapwing_base::{ClusterId, PeerId};
use serde::{Deserialize, Serialize};

use crate::{Expiry, NodeRecord, Now, Registration, Status, UnixTime};

/// The nodes that registered under `/v1`.
#[derive(Debug)]
pub struct Records {
    nodes_max: usize,
    records: BTreeMap<PeerId, Record>,
    /// What was removed, so that replays of its messages stay refused. At most `nodes_max`.
    tombstones: BTreeMap<PeerId, Tombstone>,
    /// How many listed records name each cluster; holds no zeros.
    members: BTreeMap<ClusterId, usize>,
    version: u64,
    guarded: bool,
    /// Whose record differs from what is on disk.
    unsaved: BTreeSet<PeerId>,
}

#[derive(Debug)]
struct Record {
    registration: Registration,
    status: Status,
    joined_at: UnixTime,
    last_seen: UnixTime,
    heard_at: Instant,
    /// The number of its newest claim in this incarnation; 0 before any.
    claim_seq: u64,
}

#[derive(Clone, Copy, Debug)]
struct Tombstone {
    incarnation: u64,
    seq: u64,
    buried_at: Instant,
}

/// A record on disk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StoredRecord {
    /// What the node said last, but for its `seq`, which may be older: heartbeats are not written.
    pub registration: Registration,
    /// When it was first heard of.
    pub joined_at: UnixTime,
    /// When it was heard of, at the time of writing.
    pub last_seen: UnixTime,
}

/// What a registration did.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Upsert {
    /// The node was not known.
    Inserted,
    /// It was, and was heard of.
    Renewed,
    /// The very same message came again; nothing changed.
    Repeated,
}

/// Why a message about a record was not taken.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum RecordError {
    /// A newer one was seen.
    #[error("incarnation {incarnation} with seq {seq} was already seen")]
    Stale {
        /// The newest incarnation.
        incarnation: u64,
        /// The newest number in it.
        seq: u64,
    },
    /// The bound on nodes is reached.
    #[error("the registry is full")]
    Full,
    /// There is no such record.
    #[error("the node is not registered")]
    NotRegistered,
}

impl Records {
    /// Starts from what was on disk. Everyone found there counts as just heard of.
    pub fn new(nodes_max: usize, stored: impl IntoIterator<Item = StoredRecord>, now: Instant) -> Self {
        let mut this = Self {
            nodes_max,
            records: BTreeMap::new(),
            tombstones: BTreeMap::new(),
            members: BTreeMap::new(),
            version: 0,
            guarded: false,
            unsaved: BTreeSet::new(),
        };
        for stored in stored.into_iter().take(nodes_max) {
            let record = Record {
                status: Status::Active,
                joined_at: stored.joined_at,
                last_seen: stored.last_seen,
                heard_at: now,
                claim_seq: 0,
                registration: stored.registration,
            };
            this.put(record);
        }
        this
    }

    /// Takes a registration.
    pub fn upsert(&mut self, registration: Registration, now: Now) -> Result<Upsert, RecordError> {
        let peer = registration.peer_id;
        let newest = self.newest(&peer);
        if let Some((incarnation, seq)) = newest
            && (registration.incarnation, registration.seq) <= (incarnation, seq)
        {
            return match self.records.get(&peer) {
                Some(record) if record.registration == registration => Ok(Upsert::Repeated),
                _ => Err(RecordError::Stale { incarnation, seq }),
            };
        }
        let known = self.records.get(&peer);
        if known.is_none() && self.records.len() >= self.nodes_max {
            return Err(RecordError::Full);
        }
        let upsert = if known.is_some() {
            Upsert::Renewed
        } else {
            Upsert::Inserted
        };
        let changed = known.is_none_or(|known| {
            known.status != Status::Active || !says_the_same(&known.registration, &registration)
        });
        let claim_seq = known
            .filter(|known| known.registration.incarnation == registration.incarnation)
            .map_or(0, |known| known.claim_seq);
        let record = Record {
            status: Status::Active,
            joined_at: known.map_or(now.unix, |known| known.joined_at),
            last_seen: now.unix,
            heard_at: now.instant,
            claim_seq,
            registration,
        };
        self.tombstones.remove(&peer);
        self.put(record);
        if changed {
            self.version += 1;
            self.unsaved.insert(peer);
        }
        Ok(upsert)
    }

    /// Marks a node as leaving. It is no longer listed, and is forgotten after three heartbeats.
    pub fn leave(&mut self, peer: &PeerId, incarnation: u64, seq: u64, now: Now) -> Result<(), RecordError> {
        let Some(record) = self.records.get(peer) else {
            return Err(RecordError::NotRegistered);
        };
        let known = &record.registration;
        if record.status == Status::Leaving && (known.incarnation, known.seq) == (incarnation, seq) {
            return Ok(());
        }
        if (incarnation, seq) <= (known.incarnation, known.seq) {
            return Err(RecordError::Stale {
                incarnation: known.incarnation,
                seq: known.seq,
            });
        }
        let mut registration = known.clone();
        (registration.incarnation, registration.seq) = (incarnation, seq);
        let record = Record {
            status: Status::Leaving,
            joined_at: record.joined_at,
            last_seen: now.unix,
            heard_at: now.instant,
            claim_seq: record.claim_seq,
            registration,
        };
        self.put(record);
        self.version += 1;
        self.unsaved.insert(*peer);
        Ok(())
    }

    /// Admits a claim of a registered node; true when it is newer than its last one.
    pub fn admit_claim(&mut self, peer: &PeerId, incarnation: u64, seq: u64) -> Result<bool, RecordError> {
        let record = self
            .records
            .get_mut(peer)
            .filter(|record| record.status.is_listed() && record.registration.incarnation == incarnation)
            .ok_or(RecordError::NotRegistered)?;
        if seq < record.claim_seq {
            return Err(RecordError::Stale {
                incarnation,
                seq: record.claim_seq,
            });
        }
        let is_new = seq > record.claim_seq;
        record.claim_seq = seq;
        Ok(is_new)
    }

    /// What a node said last, unless it is leaving or failed.
    pub fn get(&self, peer: &PeerId) -> Option<&Registration> {
        let record = self.records.get(peer)?;
        record.status.is_listed().then_some(&record.registration)
    }

    /// Grows with every change of what [`Self::page`] shows, but for `last_seen`.
    pub const fn version(&self) -> u64 {
        self.version
    }

    /// How many nodes are known, in any status.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether no node is known.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// How many listed nodes say they are members of this cluster.
    pub fn members_of(&self, cluster: &ClusterId) -> usize {
        self.members.get(cluster).copied().unwrap_or(0)
    }

    /// How many nodes there are in a status.
    pub fn count(&self, status: Status) -> usize {
        self.records
            .values()
            .filter(|record| record.status == status)
            .count()
    }

    /// Whether the guard against mass expiry holds.
    pub const fn is_guarded(&self) -> bool {
        self.guarded
    }

    /// At most `limit` nodes after `after` in the order of their ids, and whether there are more.
    pub fn page(&self, after: Option<PeerId>, limit: usize) -> (Vec<NodeRecord>, bool) {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut rest = self.records.range((start, Bound::Unbounded));
        let nodes = rest
            .by_ref()
            .take(limit)
            .map(|(_, record)| record.to_node())
            .collect();
        (nodes, rest.next().is_some())
    }

    /// At most `limit` listed nodes other than `peer`: those that follow it in the ring of ids, so that every
    /// asker gets a different section and no node is everybody's first contact.
    pub fn neighbours(&self, peer: &PeerId, limit: usize) -> Vec<NodeRecord> {
        let after = self.records.range((Bound::Excluded(*peer), Bound::Unbounded));
        let before = self.records.range(..*peer);
        after
            .chain(before)
            // Many failed ones in a row must not make one answer cost a walk over everything.
            .take(limit * 16)
            .filter(|(_, record)| record.status.is_listed())
            .take(limit)
            .map(|(_, record)| record.to_node())
            .collect()
    }

    /// Every listed node.
    pub fn listed(&self) -> impl Iterator<Item = NodeRecord> + '_ {
        self.records
            .values()
            .filter(|record| record.status.is_listed())
            .map(Record::to_node)
    }

    /// One listed node.
    pub fn listed_node(&self, peer: &PeerId) -> Option<NodeRecord> {
        let record = self.records.get(peer)?;
        record.status.is_listed().then(|| record.to_node())
    }

    /// Ages every record; returns the nodes that were forgotten.
    pub fn sweep(&mut self, expiry: &Expiry, now: Instant) -> Vec<PeerId> {
        let silence = |record: &Record| now.saturating_duration_since(record.heard_at);
        let expiring = self
            .records
            .values()
            .filter(|record| record.status != Status::Leaving);
        self.guarded = expiry.guards(expiring.map(silence));
        let judged: Vec<(PeerId, Option<Status>)> = self
            .records
            .iter()
            .map(|(peer, record)| {
                (
                    *peer,
                    record,
                    expiry.judge(record.status, silence(record), self.guarded),
                )
            })
            .filter(|(_, record, verdict)| *verdict != Some(record.status))
            .map(|(peer, _, verdict)| (peer, verdict))
            .collect();
        let mut forgotten = Vec::new();
        for (peer, verdict) in judged {
            self.version += 1;
            match verdict {
                Some(status) => self.set_status(&peer, status),
                None => {
                    self.bury(&peer, now);
                    forgotten.push(peer);
                }
            }
        }
        let ttl = expiry.tombstone_ttl();
        self.tombstones
            .retain(|_, tombstone| is_within(tombstone.buried_at, ttl, now));
        forgotten
    }

    /// Whether any record differs from what is on disk.
    pub fn has_unsaved(&self) -> bool {
        !self.unsaved.is_empty()
    }

    /// Takes the records that differ from what is on disk; `None` for those to delete.
    pub fn take_unsaved(&mut self) -> Vec<(PeerId, Option<StoredRecord>)> {
        std::mem::take(&mut self.unsaved)
            .into_iter()
            .map(|peer| (peer, self.records.get(&peer).and_then(Record::to_stored)))
            .collect()
    }

    /// Marks records as not on disk after all.
    pub fn mark_unsaved(&mut self, peers: impl IntoIterator<Item = PeerId>) {
        self.unsaved.extend(peers);
    }

    /// The newest (incarnation, seq) seen of a node, also after its removal.
    fn newest(&self, peer: &PeerId) -> Option<(u64, u64)> {
        let registration = self.records.get(peer).map(|record| &record.registration);
        let newest = registration.map(|newest| (newest.incarnation, newest.seq));
        newest.or_else(|| {
            let tombstone = self.tombstones.get(peer)?;
            Some((tombstone.incarnation, tombstone.seq))
        })
    }

    fn set_status(&mut self, peer: &PeerId, status: Status) {
        if let Some(mut record) = self.take(peer) {
            record.status = status;
            self.put(record);
        }
    }

    fn bury(&mut self, peer: &PeerId, now: Instant) {
        let Some(record) = self.take(peer) else {
            return;
        };
        self.unsaved.insert(*peer);
        if self.tombstones.len() >= self.nodes_max {
            self.tombstones.pop_first();
        }
        let tombstone = Tombstone {
            incarnation: record.registration.incarnation,
            seq: record.registration.seq,
            buried_at: now,
        };
        self.tombstones.insert(*peer, tombstone);
    }

    /// Inserts a record, replacing the one of the same node, and keeps `members` right.
    fn put(&mut self, record: Record) {
        let peer = record.registration.peer_id;
        self.take(&peer);
        if let Some(cluster) = record.membership() {
            *self.members.entry(cluster).or_default() += 1;
        }
        self.records.insert(peer, record);
    }

    /// Removes a record and keeps `members` right.
    fn take(&mut self, peer: &PeerId) -> Option<Record> {
        let record = self.records.remove(peer)?;
        if let Some(cluster) = record.membership()
            && let Some(members) = self.members.get_mut(&cluster)
        {
            *members -= 1;
            if *members == 0 {
                self.members.remove(&cluster);
            }
        }
        Some(record)
    }
}

impl Record {
    /// The cluster it counts for.
    fn membership(&self) -> Option<ClusterId> {
        self.registration.cluster_id.filter(|_| self.status.is_listed())
    }

    fn to_node(&self) -> NodeRecord {
        let said = &self.registration;
        NodeRecord {
            peer_id: said.peer_id,
            addrs: said.addrs.clone(),
            name: said.name.clone(),
            capabilities: said.capabilities.clone(),
            role: said.role,
            status: self.status,
            cluster_id: said.cluster_id,
            term: said.term,
            incarnation: said.incarnation,
            last_seen: self.last_seen,
            joined_at: self.joined_at,
        }
    }

    /// What to keep on disk; nothing of a node that leaves.
    fn to_stored(&self) -> Option<StoredRecord> {
        (self.status != Status::Leaving).then(|| StoredRecord {
            registration: self.registration.clone(),
            joined_at: self.joined_at,
            last_seen: self.last_seen,
        })
    }
}

/// Whether two registrations differ in nothing but their number.
fn says_the_same(a: &Registration, b: &Registration) -> bool {
    let Registration {
        peer_id,
        addrs,
        name,
        capabilities,
        role,
        cluster_id,
        term,
        leader,
        incarnation,
        seq: _,
    } = a;
    (peer_id, addrs, name, capabilities) == (&b.peer_id, &b.addrs, &b.name, &b.capabilities)
        && (role, cluster_id, term, leader) == (&b.role, &b.cluster_id, &b.term, &b.leader)
        && *incarnation == b.incarnation
}

fn is_within(start: Instant, span: Duration, now: Instant) -> bool {
    now.saturating_duration_since(start) < span
}

#[cfg(test)]
mod tests {
    use super::*;

    use lapwing_base::Keypair;

    use crate::message::tests::registration;

    const CLUSTER: ClusterId = ClusterId::from_bytes([1; 16]);

    #[test]
    fn the_newest_incarnation_and_seq_win() {
        let (mut records, now) = empty();
        let node = registration(&Keypair::generate_ed25519());
        let at = |incarnation, seq| Registration {
            incarnation,
            seq,
            ..node.clone()
        };
        assert_eq!(records.upsert(at(1, 5), now), Ok(Upsert::Inserted));
        assert_eq!(records.upsert(at(1, 6), now), Ok(Upsert::Renewed));
        let stale = Err(RecordError::Stale {
            incarnation: 1,
            seq: 6,
        });
        assert_eq!(records.upsert(at(1, 5), now), stale);
        assert_eq!(records.upsert(at(2, 1), now), Ok(Upsert::Renewed));
        assert!(records.upsert(at(1, 7), now).is_err());
    }

    #[test]
    fn the_same_message_twice_is_answered_but_keeps_nobody_alive() {
        let (mut records, now) = empty();
        let node = registration(&Keypair::generate_ed25519());
        let peer = node.peer_id;
        assert_eq!(records.upsert(node.clone(), now), Ok(Upsert::Inserted));
        let later = after(now, 200);
        assert_eq!(records.upsert(node.clone(), later), Ok(Upsert::Repeated));
        records.sweep(&expiry(), later.instant);
        assert_eq!(records.count(Status::Suspected), 1);
        let other = Registration {
            name: "mallory".to_owned(),
            ..node
        };
        assert!(records.upsert(other, later).is_err());
        assert_eq!(records.get(&peer).unwrap().name, "alice");
    }

    #[test]
    fn a_silent_node_is_suspected_then_failed_then_forgotten_and_its_replays_stay_refused() {
        let (mut records, now) = empty();
        let node = registration(&Keypair::generate_ed25519());
        records.upsert(node.clone(), now).unwrap();
        let mut status_at = |secs| {
            records.sweep(&expiry(), after(now, secs).instant);
            records.page(None, 10).0.first().map(|node| node.status)
        };
        assert_eq!(status_at(89), Some(Status::Active));
        assert_eq!(status_at(90), Some(Status::Suspected));
        assert_eq!(status_at(300), Some(Status::Failed));
        assert_eq!(status_at(330), None);
        assert!(records.upsert(node.clone(), after(now, 331)).is_err());
        let next = Registration { seq: 2, ..node };
        assert_eq!(records.upsert(next, after(now, 332)), Ok(Upsert::Inserted));
    }

    #[test]
    fn a_mass_of_silent_nodes_is_kept_as_suspected_for_twice_the_timeout() {
        let (mut records, now) = empty();
        for _ in 0..12 {
            records
                .upsert(registration(&Keypair::generate_ed25519()), now)
                .unwrap();
        }
        records.sweep(&expiry(), after(now, 310).instant);
        assert!(records.is_guarded());
        assert_eq!(records.count(Status::Suspected), 12);
        records.sweep(&expiry(), after(now, 601).instant);
        assert_eq!(records.count(Status::Failed), 12);
        records.sweep(&expiry(), after(now, 640).instant);
        assert!(records.is_empty());
    }

    #[test]
    fn a_leaving_node_is_shown_as_leaving_and_then_goes() {
        let (mut records, now) = empty();
        let node = registration(&Keypair::generate_ed25519());
        records.upsert(node.clone(), now).unwrap();
        assert!(records.leave(&node.peer_id, 1, 1, now).is_err());
        records.leave(&node.peer_id, 1, 2, now).unwrap();
        records.leave(&node.peer_id, 1, 2, now).unwrap();
        assert_eq!(records.page(None, 10).0[0].status, Status::Leaving);
        assert_eq!(records.listed().count(), 0);
        let forgotten = records.sweep(&expiry(), after(now, 90).instant);
        assert_eq!(forgotten, [node.peer_id]);
        assert_eq!(
            records.leave(&node.peer_id, 1, 3, now),
            Err(RecordError::NotRegistered)
        );
    }

    #[test]
    fn heartbeats_change_neither_the_version_nor_the_disk() {
        let (mut records, now) = empty();
        let node = registration(&Keypair::generate_ed25519());
        records.upsert(node.clone(), now).unwrap();
        assert_eq!(records.take_unsaved().len(), 1);
        let version = records.version();
        records
            .upsert(
                Registration {
                    seq: 2,
                    ..node.clone()
                },
                after(now, 30),
            )
            .unwrap();
        assert_eq!(records.version(), version);
        assert!(records.take_unsaved().is_empty());
        let moved = Registration {
            addrs: vec![],
            seq: 3,
            ..node
        };
        records.upsert(moved, after(now, 60)).unwrap();
        assert_eq!(records.version(), version + 1);
        assert_eq!(records.take_unsaved().len(), 1);
    }

    #[test]
    fn members_are_counted_by_cluster() {
        let (mut records, now) = empty();
        let node = registration(&Keypair::generate_ed25519());
        records.upsert(node.clone(), now).unwrap();
        assert_eq!(records.members_of(&CLUSTER), 0);
        let member = Registration {
            cluster_id: Some(CLUSTER),
            seq: 2,
            ..node.clone()
        };
        records.upsert(member, now).unwrap();
        assert_eq!(records.members_of(&CLUSTER), 1);
        records.leave(&node.peer_id, 1, 3, now).unwrap();
        assert_eq!(records.members_of(&CLUSTER), 0);
    }

    #[test]
    fn pages_cover_everyone_once_and_neighbours_wrap_around() {
        let (mut records, now) = empty();
        for _ in 0..7 {
            records
                .upsert(registration(&Keypair::generate_ed25519()), now)
                .unwrap();
        }
        let (first, more) = records.page(None, 4);
        assert!(more);
        let (rest, more) = records.page(Some(first[3].peer_id), 4);
        assert!(!more);
        assert_eq!(first.len() + rest.len(), 7);
        let last = rest[2].peer_id;
        let neighbours = records.neighbours(&last, 64);
        assert_eq!(neighbours.len(), 6);
        assert_eq!(neighbours[0].peer_id, first[0].peer_id);
    }

    #[test]
    fn a_full_registry_takes_no_more_but_still_renews() {
        let (_, now) = empty();
        let mut records = Records::new(1, [], now.instant);
        let node = registration(&Keypair::generate_ed25519());
        records.upsert(node.clone(), now).unwrap();
        let other = registration(&Keypair::generate_ed25519());
        assert_eq!(records.upsert(other, now), Err(RecordError::Full));
        assert!(records.upsert(Registration { seq: 2, ..node }, now).is_ok());
    }

    fn expiry() -> Expiry {
        Expiry::new(Duration::from_secs(300), Duration::from_secs(30))
    }

    fn after(now: Now, secs: u64) -> Now {
        Now {
            instant: now.instant + Duration::from_secs(secs),
            unix: UnixTime(now.unix.0 + secs as f64),
        }
    }

    #[expect(clippy::disallowed_methods, reason = "any instant will do")]
    fn empty() -> (Records, Now) {
        let now = Now {
            instant: Instant::now(),
            unix: UnixTime(1000.0),
        };
        (Records::new(100, [], now.instant), now)
    }
}
