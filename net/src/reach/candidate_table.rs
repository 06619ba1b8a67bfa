//! Every address that was tried for a peer, how it was known and what came of it: for people who ask why a path is
//! relayed. Tries none.

use crate::said::legible;
use crate::{Probed, ProbedOutcome, ProbedSource, RelayedBecause};
use lapwing_base::{Multiaddr, PeerId, Protocol};
use serde::ser::SerializeStruct as _;
use serde::{Deserialize, Serialize, Serializer};
use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// What kind of address a candidate is; the first words are ICE's (RFC 8445).
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CandidateKind {
    /// The peer's own.
    Host,
    /// What others see of the peer.
    Reflexive,
    /// Where the peer's probes came from.
    PeerReflexive,
    /// What the peer's NAT would give next.
    Predicted,
    /// Ports of the peer's NAT that were guessed.
    Guessed,
    /// A port that the peer's router forwards.
    Mapped,
    /// Through a relay.
    Relayed,
    /// WebSocket over TLS.
    Websocket,
}

/// Who named a candidate.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CandidateSource {
    /// The gateway, the roster or a person.
    Learned,
    /// The peer itself.
    Peer,
    /// A relay.
    Relay,
    /// The local network (mDNS).
    LocalNetwork,
    /// A packet of the peer's.
    Packet,
    /// Nobody: it was foretold or guessed.
    Inferred,
    /// An earlier connection.
    Earlier,
}

/// What came of a candidate.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum CandidateOutcome {
    /// Being tried.
    Trying {
        /// Why it did not work the last time, in words.
        last: Option<String>,
    },
    /// It works.
    Succeeded {
        /// Since it was tried first.
        after: Duration,
    },
    /// It does not.
    Failed {
        /// Since it was tried first.
        after: Duration,
        /// Why, in words.
        why: String,
    },
    /// Something else was better or sooner.
    NotNeeded,
}

impl CandidateOutcome {
    /// The word in documents.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Trying { .. } => "trying",
            Self::Succeeded { .. } => "succeeded",
            Self::Failed { .. } => "failed",
            Self::NotNeeded => "not-needed",
        }
    }

    /// How long it took, where it has come to an end.
    pub const fn after(&self) -> Option<Duration> {
        match self {
            Self::Succeeded { after } | Self::Failed { after, .. } => Some(*after),
            Self::Trying { .. } | Self::NotNeeded => None,
        }
    }

    /// Why it failed last, in words.
    pub fn why(&self) -> Option<&str> {
        match self {
            Self::Trying { last } => last.as_deref(),
            Self::Failed { why, .. } => Some(why),
            Self::Succeeded { .. } | Self::NotNeeded => None,
        }
    }
}

impl fmt::Display for CandidateOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Trying { last: None } => f.write_str("being tried"),
            Self::Trying { last: Some(why) } => write!(f, "being tried again; last: {why}"),
            Self::Succeeded { after } => write!(f, "succeeded after {after:.1?}"),
            Self::Failed { after, why } => write!(f, "failed after {after:.1?}: {why}"),
            Self::NotNeeded => f.write_str("not needed"),
        }
    }
}

/// One row, as people and programs see it; what it is serialised as has the units in its keys.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CandidateRow {
    /// The address; port 0 stands for many ports.
    pub address: Multiaddr,
    /// What kind it is.
    pub kind: CandidateKind,
    /// Who named it.
    pub source: CandidateSource,
    /// How long ago it was tried last.
    pub ago: Duration,
    /// How often it was tried.
    pub tries: u32,
    /// What came of it.
    pub outcome: CandidateOutcome,
}

impl Serialize for CandidateRow {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut row = serializer.serialize_struct("CandidateRow", 8)?;
        row.serialize_field("address", &self.address)?;
        row.serialize_field("kind", &self.kind)?;
        row.serialize_field("source", &self.source)?;
        row.serialize_field("ago_seconds", &self.ago.as_secs_f64())?;
        row.serialize_field("tries", &self.tries)?;
        row.serialize_field("outcome", self.outcome.code())?;
        let after_ms = self.outcome.after().map(|after| after.as_secs_f64() * 1e3);
        row.serialize_field("after_ms", &after_ms)?;
        row.serialize_field("why", &self.outcome.why())?;
        row.end()
    }
}

/// Every candidate of every peer that was dealt with lately.
#[derive(Debug, Default)]
pub struct CandidateTable {
    peers: BTreeMap<PeerId, Vec<Tried>>,
}

#[derive(Clone, Debug)]
struct Tried {
    address: Multiaddr,
    kind: CandidateKind,
    source: CandidateSource,
    began_at: Instant,
    tries: u32,
    outcome: CandidateOutcome,
}

impl CandidateTable {
    /// Most rows of one peer: what one attempt may try of each kind, and what is left of earlier ones.
    pub const PER_PEER_MAX: usize = 48;
    /// Most peers: as many as are planned for one cluster; about 10 KiB each when full.
    pub const PEERS_MAX: usize = 512;

    /// An address is being tried.
    pub fn trying(
        &mut self,
        peer: PeerId,
        address: Multiaddr,
        kind: CandidateKind,
        source: CandidateSource,
        now: Instant,
    ) {
        self.make_room(&peer);
        let rows = self.peers.entry(peer).or_default();
        if let Some(row) = rows.iter_mut().find(|row| row.address == address) {
            row.began_at = now;
            row.kind = kind;
            row.source = source;
            row.tries = row.tries.saturating_add(1);
            let last = match std::mem::replace(&mut row.outcome, CandidateOutcome::NotNeeded) {
                CandidateOutcome::Failed { why, .. } => Some(why),
                CandidateOutcome::Trying { last } => last,
                CandidateOutcome::Succeeded { .. } | CandidateOutcome::NotNeeded => None,
            };
            row.outcome = CandidateOutcome::Trying { last };
            return;
        }
        if rows.len() >= Self::PER_PEER_MAX
            && let Some(oldest) = (0..rows.len()).min_by_key(|n| (rows[*n].rank(), rows[*n].began_at))
        {
            rows.swap_remove(oldest);
        }
        rows.push(Tried {
            address,
            kind,
            source,
            began_at: now,
            tries: 1,
            outcome: CandidateOutcome::Trying { last: None },
        });
    }

    /// An address works.
    pub fn succeeded(&mut self, peer: &PeerId, address: &Multiaddr, now: Instant) {
        self.settle(peer, address, |began_at| CandidateOutcome::Succeeded {
            after: now.saturating_duration_since(began_at),
        });
    }

    /// An address does not work. `why` is cut to three lines of a terminal, and shown without what that would obey.
    pub fn failed(&mut self, peer: &PeerId, address: &Multiaddr, why: &str, now: Instant) {
        self.settle(peer, address, |began_at| CandidateOutcome::Failed {
            after: now.saturating_duration_since(began_at),
            why: legible(why, WHY_MAX),
        });
    }

    /// An address is not tried to the end.
    pub fn not_needed(&mut self, peer: &PeerId, address: &Multiaddr) {
        self.settle(peer, address, |_| CandidateOutcome::NotNeeded);
    }

    /// Takes in what an attempt to punch has tried since `began_at`, and why it ended when it found nothing.
    pub fn punched(
        &mut self,
        peer: PeerId,
        probed: &[Probed],
        why: Option<RelayedBecause>,
        began_at: Instant,
        now: Instant,
    ) {
        for probed in probed.iter().filter(|probed| probed.sent > 0) {
            let (kind, source) = match probed.source {
                ProbedSource::Named if crate::Scope::of(probed.address.ip()) < crate::Scope::Global => {
                    (CandidateKind::Host, CandidateSource::Peer)
                }
                ProbedSource::Named => (CandidateKind::Reflexive, CandidateSource::Peer),
                ProbedSource::Predicted => (CandidateKind::Predicted, CandidateSource::Inferred),
                ProbedSource::Arrived => (CandidateKind::PeerReflexive, CandidateSource::Packet),
                ProbedSource::Guessed => (CandidateKind::Guessed, CandidateSource::Inferred),
            };
            let address = udp_address(probed.address);
            self.trying(peer, address.clone(), kind, source, began_at);
            match (probed.outcome, why) {
                (ProbedOutcome::Chosen, _) => self.succeeded(&peer, &address, now),
                (ProbedOutcome::Answered, _) => self.not_needed(&peer, &address),
                (ProbedOutcome::Heard, Some(_)) => {
                    self.failed(&peer, &address, "its probes arrive, and no answer to ours", now);
                }
                (ProbedOutcome::Silent, Some(_)) => {
                    let why = format!("no answer to {} probes", probed.sent);
                    self.failed(&peer, &address, &why, now);
                }
                (ProbedOutcome::Heard | ProbedOutcome::Silent, None) => self.not_needed(&peer, &address),
            }
        }
    }

    /// A peer's rows, the latest first.
    pub fn rows(&self, peer: &PeerId, now: Instant) -> Vec<CandidateRow> {
        let mut rows: Vec<_> = self
            .peers
            .get(peer)
            .into_iter()
            .flatten()
            .map(|row| CandidateRow {
                address: row.address.clone(),
                kind: row.kind,
                source: row.source,
                ago: now.saturating_duration_since(row.began_at),
                tries: row.tries,
                outcome: row.outcome.clone(),
            })
            .collect();
        rows.sort_by_key(|row| row.ago);
        rows
    }

    /// A peer is gone for good.
    pub fn forget(&mut self, peer: &PeerId) {
        self.peers.remove(peer);
    }

    fn settle(
        &mut self,
        peer: &PeerId,
        address: &Multiaddr,
        outcome: impl FnOnce(Instant) -> CandidateOutcome,
    ) {
        let row = self
            .peers
            .get_mut(peer)
            .and_then(|rows| rows.iter_mut().find(|row| row.address == *address));
        if let Some(row) = row {
            row.outcome = outcome(row.began_at);
        }
    }

    /// The peer that was dealt with least lately makes room.
    fn make_room(&mut self, peer: &PeerId) {
        if self.peers.len() < Self::PEERS_MAX || self.peers.contains_key(peer) {
            return;
        }
        let latest = |rows: &Vec<Tried>| rows.iter().map(|row| row.began_at).max();
        if let Some(oldest) = self.peers.iter().min_by_key(|(_, rows)| latest(rows)) {
            let oldest = *oldest.0;
            self.peers.remove(&oldest);
        }
    }
}

impl Tried {
    /// What works and what is being tried is kept longest.
    const fn rank(&self) -> u8 {
        match self.outcome {
            CandidateOutcome::NotNeeded => 0,
            CandidateOutcome::Failed { .. } => 1,
            CandidateOutcome::Trying { .. } => 2,
            CandidateOutcome::Succeeded { .. } => 3,
        }
    }
}

/// A UDP address as people write it.
fn udp_address(address: SocketAddr) -> Multiaddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) => Protocol::Ip4(ip),
        IpAddr::V6(ip) => Protocol::Ip6(ip),
    };
    Multiaddr::empty().with(ip).with(Protocol::Udp(address.port()))
}

/// Longest reason that is kept, in bytes: three lines of a terminal.
const WHY_MAX: usize = 240;

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "any instant will do")]
mod tests {
    use super::*;

    #[test]
    fn a_row_tells_what_came_of_an_address() {
        let (mut table, peer, now) = fresh();
        let (good, bad) = (addr(1), addr(2));
        let later = now + Duration::from_millis(1500);
        for address in [&good, &bad] {
            let (kind, source) = (CandidateKind::Host, CandidateSource::Learned);
            table.trying(peer, address.clone(), kind, source, now);
        }
        table.succeeded(&peer, &good, later);
        table.failed(&peer, &bad, "timed out", later);
        let told: Vec<_> = table
            .rows(&peer, later)
            .iter()
            .map(|row| row.outcome.to_string())
            .collect();
        assert_eq!(told, ["succeeded after 1.5s", "failed after 1.5s: timed out"]);
    }

    #[test]
    fn an_address_that_is_tried_again_tells_why_it_failed_last() {
        let (mut table, peer, now) = fresh();
        let (kind, source) = (CandidateKind::Host, CandidateSource::Learned);
        table.trying(peer, addr(1), kind, source, now);
        assert_eq!(table.rows(&peer, now)[0].outcome.to_string(), "being tried");
        table.failed(&peer, &addr(1), "timed out", now);
        for _ in 0..2 {
            table.trying(peer, addr(1), kind, source, now);
            let outcome = table.rows(&peer, now)[0].outcome.clone();
            assert_eq!(outcome.to_string(), "being tried again; last: timed out");
            assert_eq!(
                (outcome.code(), outcome.after(), outcome.why()),
                ("trying", None, Some("timed out"))
            );
        }
        table.succeeded(&peer, &addr(1), now);
        table.trying(peer, addr(1), kind, source, now);
        assert_eq!(table.rows(&peer, now)[0].outcome.why(), None);
    }

    #[test]
    fn an_address_has_one_row_however_often_it_is_tried() {
        let (mut table, peer, now) = fresh();
        for n in 0..5 {
            let at = now + Duration::from_secs(n);
            table.trying(peer, addr(1), CandidateKind::Host, CandidateSource::Peer, at);
        }
        let rows = table.rows(&peer, now + Duration::from_secs(5));
        assert_eq!((rows.len(), rows[0].tries), (1, 5));
        assert_eq!(rows[0].ago, Duration::from_secs(1));
    }

    #[test]
    fn what_works_outlives_what_does_not() {
        let (mut table, peer, now) = fresh();
        table.trying(peer, addr(9), CandidateKind::Host, CandidateSource::Peer, now);
        table.succeeded(&peer, &addr(9), now);
        for n in 100..1000 {
            table.trying(
                peer,
                addr(n),
                CandidateKind::Predicted,
                CandidateSource::Inferred,
                now,
            );
            table.failed(&peer, &addr(n), "no answer", now);
        }
        let rows = table.rows(&peer, now);
        assert_eq!(rows.len(), CandidateTable::PER_PEER_MAX);
        assert!(rows.iter().any(|row| row.address == addr(9)));
    }

    #[test]
    fn peers_and_reasons_are_bounded() {
        let (mut table, peer, now) = fresh();
        for n in 0..CandidateTable::PEERS_MAX as u64 + 10 {
            let (at, other) = (now + Duration::from_secs(n), PeerId::random());
            table.trying(other, addr(1), CandidateKind::Host, CandidateSource::Peer, at);
        }
        assert_eq!(table.peers.len(), CandidateTable::PEERS_MAX);
        table.trying(
            peer,
            addr(1),
            CandidateKind::Host,
            CandidateSource::Peer,
            now + HOUR,
        );
        table.failed(&peer, &addr(1), &"ü".repeat(1000), now + HOUR);
        assert!(table.rows(&peer, now + HOUR)[0].outcome.to_string().len() < 300);
    }

    #[test]
    fn an_attempt_to_punch_fills_in_its_rows() {
        let (mut table, peer, now) = fresh();
        let probed = |port, source, sent, outcome| Probed {
            address: SocketAddr::new("203.0.113.9".parse().unwrap(), port),
            source,
            sent,
            outcome,
        };
        let all = [
            probed(1, ProbedSource::Named, 10, ProbedOutcome::Silent),
            probed(2, ProbedSource::Arrived, 3, ProbedOutcome::Heard),
            probed(0, ProbedSource::Guessed, 1536, ProbedOutcome::Silent),
            probed(3, ProbedSource::Named, 0, ProbedOutcome::Silent),
        ];
        table.punched(peer, &all, Some(RelayedBecause::OneWay), now, now);
        let rows = table.rows(&peer, now);
        assert_eq!(rows.len(), 3, "what was not tried has no row");
        assert_eq!(rows[0].address.to_string(), "/ip4/203.0.113.9/udp/1");
        assert!(rows[2].outcome.to_string().ends_with("no answer to 1536 probes"));
        let found = [probed(1, ProbedSource::Named, 1, ProbedOutcome::Chosen)];
        table.punched(peer, &found, None, now, now);
        assert!(matches!(
            table.rows(&peer, now)[0].outcome,
            CandidateOutcome::Succeeded { .. }
        ));
    }

    const HOUR: Duration = Duration::from_secs(3600);

    fn fresh() -> (CandidateTable, PeerId, Instant) {
        (CandidateTable::default(), PeerId::random(), Instant::now())
    }

    fn addr(port: u16) -> Multiaddr {
        format!("/ip4/203.0.113.9/udp/{port}").parse().unwrap()
    }
}
