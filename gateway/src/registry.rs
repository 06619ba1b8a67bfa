//! The registry of the compatible API. Unsigned, and apart from everything under `/v1`.
//!
//! Nothing that comes in here reaches signed records, claims or termed hints.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use lapwing_base::Term;
use serde::{Deserialize, Serialize};

use crate::{Expiry, FieldError, LegacyNode, NodeKey, Now, Profile, Status, StoredLegacyNode};

/// The nodes that registered through the compatible API.
#[derive(Debug)]
pub struct Registry {
    nodes_max: usize,
    nodes: BTreeMap<NodeKey, Entry>,
    record: RegistryRecord,
    guarded: bool,
    /// Whose entry differs from what is on disk.
    unsaved: BTreeSet<NodeKey>,
}

#[derive(Debug)]
struct Entry {
    node: LegacyNode,
    heard_at: Instant,
}

/// What survives a restart beside the nodes.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct RegistryRecord {
    /// Whether somebody was told to bootstrap.
    pub genesis: Genesis,
    /// Who was said to lead.
    pub leader: Option<NodeKey>,
    /// The term that came with it, when one did.
    pub leader_term: Option<Term>,
    /// Grows with every change.
    pub version: u64,
}

/// How far the first registration ever has got.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub enum Genesis {
    /// Nobody has registered yet.
    #[default]
    Open,
    /// This node was told to bootstrap, and nobody else has come since: its retry gets the same answer.
    Alone(NodeKey),
    /// Others have come, or the first one has gone.
    Past,
}

/// What a registration did.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Entrance {
    /// Whether the node was known.
    pub updated: bool,
    /// Whether it is the first ever, and bootstraps.
    pub is_bootstrap: bool,
}

/// What a new leader hint did.
#[must_use]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LeaderUpdate {
    /// It was taken.
    Updated,
    /// No such node.
    NotFound,
    /// A termed hint exists, so one without a term cannot be ordered against it.
    TermRequired,
    /// A newer term is known.
    Stale {
        /// The known one.
        known: Term,
    },
    /// The same term has another leader.
    Conflict {
        /// The term.
        term: Term,
    },
}

/// The registry in numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Stats {
    /// Nodes in any status.
    pub total: usize,
    /// Nodes heard of within three heartbeats.
    pub active: usize,
    /// Who was said to lead.
    pub leader: Option<NodeKey>,
    /// The registry's version.
    pub version: u64,
    /// Whether somebody was told to bootstrap.
    pub bootstrap_initiated: bool,
}

/// Why a registration was not taken.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum EnterError {
    /// A field breaks a bound.
    #[error(transparent)]
    Field(#[from] FieldError),
    /// The bound on nodes is reached.
    #[error("the registry is full")]
    Full,
}

impl Registry {
    /// Starts from what was on disk. Everyone found there counts as just heard of.
    pub fn new(
        nodes_max: usize,
        record: RegistryRecord,
        stored: impl IntoIterator<Item = StoredLegacyNode>,
        now: Instant,
    ) -> Self {
        let entry = |stored: StoredLegacyNode| {
            let node = LegacyNode {
                profile: stored.profile,
                status: Status::Active,
                last_seen: stored.last_seen,
                join_timestamp: stored.join_timestamp,
            };
            let heard_at = now;
            (node.profile.node_id.clone(), Entry { node, heard_at })
        };
        Self {
            nodes_max,
            nodes: stored.into_iter().take(nodes_max).map(entry).collect(),
            record,
            guarded: false,
            unsaved: BTreeSet::new(),
        }
    }

    /// Takes a registration. `may_bootstrap` says whether the first one ever is told to bootstrap.
    pub fn enter(
        &mut self,
        mut profile: Profile,
        may_bootstrap: bool,
        now: Now,
    ) -> Result<Entrance, EnterError> {
        let key = profile.node_id.clone();
        let known = self.nodes.get(&key);
        if known.is_none() && self.nodes.len() >= self.nodes_max {
            return Err(EnterError::Full);
        }
        if let Some(known) = known {
            profile.inherit(&known.node.profile.metadata)?;
        }
        let updated = known.is_some();
        let changed =
            known.is_none_or(|known| known.node.status != Status::Active || known.node.profile != profile);
        let node = LegacyNode {
            profile,
            status: Status::Active,
            last_seen: now.unix,
            join_timestamp: known.map_or(now.unix, |known| known.node.join_timestamp),
        };
        let heard_at = now.instant;
        self.nodes.insert(key.clone(), Entry { node, heard_at });
        if changed {
            self.record.version += 1;
            self.unsaved.insert(key.clone());
        }
        let is_bootstrap = match &self.record.genesis {
            Genesis::Open if may_bootstrap => {
                self.record.genesis = Genesis::Alone(key.clone());
                self.record.leader = Some(key);
                true
            }
            Genesis::Alone(first) if *first == key => updated,
            Genesis::Open | Genesis::Alone(_) | Genesis::Past => {
                self.record.genesis = Genesis::Past;
                false
            }
        };
        Ok(Entrance {
            updated,
            is_bootstrap,
        })
    }

    /// Takes a heartbeat; false when the node is not known and must register again.
    pub fn heartbeat(&mut self, key: &NodeKey, now: Now) -> bool {
        let Some(entry) = self.nodes.get_mut(key) else {
            return false;
        };
        entry.heard_at = now.instant;
        entry.node.last_seen = now.unix;
        if entry.node.status != Status::Active {
            entry.node.status = Status::Active;
            self.record.version += 1;
        }
        true
    }

    /// Takes a hint on who leads. `signed` is the termed hint of `/v1`, which fences but is never changed here.
    pub fn set_leader(
        &mut self,
        key: &NodeKey,
        term: Option<Term>,
        signed: Option<(Term, &str)>,
    ) -> LeaderUpdate {
        let own = self.record.leader_term;
        let known = own.max(signed.map(|(term, _)| term));
        match (term, known) {
            (None, Some(_)) => return LeaderUpdate::TermRequired,
            (Some(term), Some(known)) if term < known => return LeaderUpdate::Stale { known },
            (Some(term), _) => {
                let differs_here = own == Some(term) && self.record.leader.as_ref() != Some(key);
                let differs_there =
                    signed.is_some_and(|(known, leader)| known == term && !key.is_word(leader));
                if differs_here || differs_there {
                    return LeaderUpdate::Conflict { term };
                }
            }
            (None, None) => (),
        }
        if !self.nodes.contains_key(key) {
            return LeaderUpdate::NotFound;
        }
        if self.record.leader.as_ref() != Some(key) || own != term {
            self.record.leader = Some(key.clone());
            self.record.leader_term = term;
            self.record.version += 1;
        }
        LeaderUpdate::Updated
    }

    /// Forgets a node; false when it was not known.
    pub fn remove(&mut self, key: &NodeKey) -> bool {
        if self.nodes.remove(key).is_none() {
            return false;
        }
        self.record.version += 1;
        self.unsaved.insert(key.clone());
        if self.record.leader.as_ref() == Some(key) {
            self.record.leader = None;
        }
        if self.record.genesis == Genesis::Alone(key.clone()) {
            self.record.genesis = Genesis::Past;
        }
        true
    }

    /// The nodes that newcomers are told of, but for `except`.
    pub fn listed<'a>(&'a self, except: Option<&'a NodeKey>) -> impl Iterator<Item = &'a LegacyNode> + 'a {
        self.nodes
            .iter()
            .filter(move |(key, entry)| entry.node.status.is_listed() && Some(*key) != except)
            .map(|(_, entry)| &entry.node)
    }

    /// Who was said to lead, when it is known and listed.
    pub fn leader(&self) -> Option<&LegacyNode> {
        let entry = self.nodes.get(self.record.leader.as_ref()?)?;
        entry.node.status.is_listed().then_some(&entry.node)
    }

    /// The registry in numbers.
    pub fn stats(&self) -> Stats {
        let statuses = self.nodes.values().map(|entry| entry.node.status);
        Stats {
            total: self.nodes.len(),
            active: statuses.filter(|status| *status == Status::Active).count(),
            leader: self.record.leader.clone(),
            version: self.record.version,
            bootstrap_initiated: self.record.genesis != Genesis::Open,
        }
    }

    /// How many nodes there are in a status.
    pub fn count(&self, status: Status) -> usize {
        let statuses = self.nodes.values().map(|entry| entry.node.status);
        statuses.filter(|own| *own == status).count()
    }

    /// Grows with every change.
    pub const fn version(&self) -> u64 {
        self.record.version
    }

    /// Whether the guard against mass expiry holds.
    pub const fn is_guarded(&self) -> bool {
        self.guarded
    }

    /// What survives a restart beside the nodes.
    pub const fn record(&self) -> &RegistryRecord {
        &self.record
    }

    /// Ages every node; returns those that were forgotten.
    pub fn sweep(&mut self, expiry: &Expiry, now: Instant) -> Vec<NodeKey> {
        let silence = |entry: &Entry| now.saturating_duration_since(entry.heard_at);
        self.guarded = expiry.guards(self.nodes.values().map(silence));
        let mut forgotten = Vec::new();
        for (key, entry) in &mut self.nodes {
            match expiry.judge(entry.node.status, silence(entry), self.guarded) {
                Some(status) if status == entry.node.status => (),
                Some(status) => {
                    entry.node.status = status;
                    self.record.version += 1;
                }
                None => forgotten.push(key.clone()),
            }
        }
        for key in &forgotten {
            self.remove(key);
        }
        forgotten
    }

    /// Whether any node differs from what is on disk.
    pub fn has_unsaved(&self) -> bool {
        !self.unsaved.is_empty()
    }

    /// Takes the nodes that differ from what is on disk; `None` for those to delete.
    pub fn take_unsaved(&mut self) -> Vec<(NodeKey, Option<StoredLegacyNode>)> {
        let stored = |entry: &Entry| StoredLegacyNode {
            profile: entry.node.profile.clone(),
            join_timestamp: entry.node.join_timestamp,
            last_seen: entry.node.last_seen,
        };
        std::mem::take(&mut self.unsaved)
            .into_iter()
            .map(|key| {
                let node = self.nodes.get(&key).map(stored);
                (key, node)
            })
            .collect()
    }

    /// Marks nodes as not on disk after all.
    pub fn mark_unsaved(&mut self, keys: impl IntoIterator<Item = NodeKey>) {
        self.unsaved.extend(keys);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::time::Duration;

    use serde_json::json;

    use crate::UnixTime;

    #[test]
    fn the_first_ever_bootstraps_and_leads_and_its_retry_gets_the_same_answer() {
        let (mut registry, now) = empty();
        let first = Entrance {
            updated: false,
            is_bootstrap: true,
        };
        assert_eq!(registry.enter(profile(0), true, now), Ok(first));
        let retry = Entrance {
            updated: true,
            is_bootstrap: true,
        };
        assert_eq!(registry.enter(profile(0), true, now), Ok(retry));
        assert_eq!(registry.leader().unwrap().profile.node_id, NodeKey::Number(0));

        assert!(!registry.enter(profile(1), true, now).unwrap().is_bootstrap);
        assert!(!registry.enter(profile(0), true, now).unwrap().is_bootstrap);
    }

    #[test]
    fn nobody_bootstraps_a_second_time_even_when_all_have_gone() {
        let (mut registry, now) = empty();
        assert!(registry.enter(profile(1), true, now).unwrap().is_bootstrap);
        assert!(registry.remove(&NodeKey::Number(1)));
        assert!(!registry.remove(&NodeKey::Number(1)));
        assert!(registry.leader().is_none());
        assert!(!registry.enter(profile(1), true, now).unwrap().is_bootstrap);
    }

    #[test]
    fn a_leader_with_a_term_is_fenced_and_one_without_is_then_refused() {
        let (mut registry, now) = empty();
        for id in 1..=3 {
            registry.enter(profile(id), true, now).unwrap();
        }
        let key = NodeKey::Number;
        assert_eq!(registry.set_leader(&key(9), None, None), LeaderUpdate::NotFound);
        assert_eq!(registry.set_leader(&key(2), None, None), LeaderUpdate::Updated);
        assert_eq!(
            registry.set_leader(&key(2), Some(Term(5)), None),
            LeaderUpdate::Updated
        );
        assert_eq!(
            registry.set_leader(&key(3), None, None),
            LeaderUpdate::TermRequired
        );
        let stale = LeaderUpdate::Stale { known: Term(5) };
        assert_eq!(registry.set_leader(&key(3), Some(Term(4)), None), stale);
        let conflict = LeaderUpdate::Conflict { term: Term(5) };
        assert_eq!(registry.set_leader(&key(3), Some(Term(5)), None), conflict);
        assert_eq!(
            registry.set_leader(&key(3), Some(Term(6)), None),
            LeaderUpdate::Updated
        );
    }

    #[test]
    fn a_signed_hint_fences_the_old_form() {
        let (mut registry, now) = empty();
        registry.enter(profile(1), true, now).unwrap();
        let key = NodeKey::Number(1);
        let signed = Some((Term(3), "12D3Koo"));
        assert_eq!(
            registry.set_leader(&key, None, signed),
            LeaderUpdate::TermRequired
        );
        let conflict = LeaderUpdate::Conflict { term: Term(3) };
        assert_eq!(registry.set_leader(&key, Some(Term(3)), signed), conflict);
    }

    #[test]
    fn a_heartbeat_revives_a_suspected_node_and_an_unknown_one_must_register() {
        let (mut registry, now) = empty();
        registry.enter(profile(1), true, now).unwrap();
        let expiry = Expiry::new(Duration::from_secs(300), Duration::from_secs(30));
        let at = |secs| Now {
            instant: now.instant + Duration::from_secs(secs),
            unix: UnixTime(now.unix.0 + secs as f64),
        };
        registry.sweep(&expiry, at(100).instant);
        assert_eq!(registry.listed(None).next().unwrap().status, Status::Suspected);
        assert_eq!(registry.stats().active, 0);
        assert!(registry.heartbeat(&NodeKey::Number(1), at(101)));
        assert_eq!(registry.stats().active, 1);
        assert!(!registry.heartbeat(&NodeKey::Number(2), at(101)));
        registry.sweep(&expiry, at(401).instant);
        assert_eq!(registry.listed(None).count(), 0);
        assert_eq!(registry.stats().total, 1);
        registry.sweep(&expiry, at(432).instant);
        assert_eq!(registry.stats().total, 0);
    }

    #[test]
    fn an_update_keeps_the_metadata_it_does_not_mention() {
        let (mut registry, now) = empty();
        let with = |metadata: serde_json::Value| {
            let body = json!({"node_id": 1, "ip_address": "::1", "port": 1, "capabilities": [],
                "metadata": metadata});
            Profile::from_body(&body).unwrap()
        };
        registry.enter(with(json!({"a": 1, "b": 1})), true, now).unwrap();
        registry.enter(with(json!({"b": 2})), true, now).unwrap();
        let node = registry.listed(None).next().unwrap();
        assert_eq!(json!(node.profile.metadata), json!({"a": 1, "b": 2}));
        let mut large = with(json!({"a": 1}));
        large.metadata.insert("c".to_owned(), json!("x".repeat(4085)));
        assert!(registry.enter(large, true, now).is_err());
    }

    fn profile(id: i64) -> Profile {
        let body = json!({"node_id": id, "ip_address": "10.0.0.1", "port": 5000, "capabilities": ["raft"]});
        Profile::from_body(&body).unwrap()
    }

    #[expect(clippy::disallowed_methods, reason = "any instant will do")]
    fn empty() -> (Registry, Now) {
        let now = Now {
            instant: Instant::now(),
            unix: UnixTime(1000.0),
        };
        let registry = Registry::new(100, RegistryRecord::default(), [], now.instant);
        (registry, now)
    }
}
