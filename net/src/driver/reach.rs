//! Reaching peers: feeds the cores that find paths, and does what they say. Part of the driver's one task.

mod beaconing;
mod circuit;
mod climb;
mod dial;
mod place;
mod punching;
mod telling;
mod upgrade;
mod verdicts_file;

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use libp2p::core::transport::ListenerId;
use libp2p::swarm::ConnectionId;
use tokio::sync::{Semaphore, watch};
use tokio_util::task::TaskTracker;
use tracing::debug;

use super::Driver;
use super::links::Link;
use super::notes::WITNESS;
use crate::{
    Beacons, CandidateTable, Family, NatType, Observations, Punches, ReachAction, Reachability, Reservations,
    Standing, Surroundings, UdpVerdicts, Whereabouts, Witness,
};
use circuit::Circuit;
use climb::Climb;
use dial::Dial;
use lapwing_base::{Multiaddr, PeerId, Role};
use place::WayIn;
use punching::Awaited;
use upgrade::UPGRADES_MAX;
use verdicts_file::VerdictsFile;

/// What the driver knows of ways to others, and of its own place.
pub(crate) struct Reach {
    observations: Observations,
    reachability: Reachability,
    witness: Witness,
    reservations: Reservations,
    beacons: Beacons,
    punches: Punches,
    verdicts: UdpVerdicts,
    /// Where they are kept, and when that was done last.
    verdicts_file: Option<VerdictsFile>,
    verdicts_kept_at: Instant,
    candidates: CandidateTable,
    surroundings: Surroundings,
    seed: [u8; 32],
    climbs: HashMap<PeerId, Climb>,
    /// The climbs that have something to do, by when.
    due: BTreeSet<(Instant, PeerId)>,
    /// Dials of the swarm that are under way.
    dials: HashMap<ConnectionId, Dial>,
    /// Listeners at relays, and the address that each gives us once it is granted.
    circuits: HashMap<ListenerId, Circuit>,
    /// Relays that are to be asked for a reservation once they are connected.
    asked: BTreeSet<PeerId>,
    /// Where relays were dialed. Those that are no nodes of ours have no link that would say so.
    relays_dialed: HashMap<PeerId, Multiaddr>,
    /// Where relays see those peers that we reach through them.
    seen_at: Whereabouts,
    /// What is waited for after a path was found.
    awaited: HashMap<PeerId, Awaited>,
    /// What a router forwards to us.
    mapped: Option<SocketAddr>,
    standing: Option<Standing>,
    advertised: Vec<Multiaddr>,
    external: Vec<Multiaddr>,
    /// The ways that lead in to this node itself.
    ways_in: BTreeSet<WayIn>,
    looked_at: Instant,
    /// Direct connections that this node has dialed, with where they lead, whoever is there.
    foreign_dialed: HashMap<ConnectionId, SocketAddr>,
    /// Where peers that are no nodes of ours may find this one.
    foreign_candidates: watch::Sender<Vec<Multiaddr>>,
    /// Places for opening our NAT towards them.
    foreign_opening: Arc<Semaphore>,
    /// Addresses that they named and that nothing is sent to.
    foreign_refused: u64,
}

/// How often what is sent to is told to the core that judges what comes back, and the relays' round trips are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Keeps the jitter of ladders apart from what else follows from the node's seed.
const LADDER_CONTEXT: &str = "lapwing 2026 ladder";

/// How often it is kept that verdicts still hold: they do for a week.
const KEEP_EVERY: Duration = Duration::from_secs(6 * 3600);

impl Reach {
    pub(crate) fn new(
        me: PeerId,
        role: Option<Role>,
        seed: [u8; 32],
        foreign_candidates: watch::Sender<Vec<Multiaddr>>,
        now: Instant,
    ) -> Self {
        let short = u64::from_le_bytes(*seed.first_chunk().unwrap_or(&[0; 8]));
        Self {
            observations: Observations::default(),
            reachability: Reachability::new(role, seed),
            witness: Witness::new(short, now),
            reservations: Reservations::new(0, short),
            beacons: Beacons::new(seed),
            punches: Punches::new(me, seed),
            verdicts: UdpVerdicts::default(),
            verdicts_file: None,
            verdicts_kept_at: now,
            candidates: CandidateTable::default(),
            surroundings: Surroundings::default(),
            seed,
            climbs: HashMap::new(),
            due: BTreeSet::new(),
            dials: HashMap::new(),
            circuits: HashMap::new(),
            asked: BTreeSet::new(),
            relays_dialed: HashMap::new(),
            seen_at: Whereabouts::default(),
            awaited: HashMap::new(),
            mapped: None,
            standing: None,
            advertised: Vec::new(),
            external: Vec::new(),
            ways_in: BTreeSet::new(),
            looked_at: now,
            foreign_dialed: HashMap::new(),
            foreign_candidates,
            foreign_opening: Arc::new(Semaphore::new(UPGRADES_MAX)),
            foreign_refused: 0,
        }
    }

    /// Takes in what a file holds of networks that this node was in, and keeps there what becomes known.
    pub(crate) fn keep_verdicts_in(&mut self, path: &Path, tracker: &TaskTracker, now: Instant) {
        let (file, verdicts) = VerdictsFile::open(path, tracker, now);
        self.verdicts = verdicts;
        self.verdicts_file = Some(file);
    }

    /// Keeps what is known of networks.
    pub(crate) fn keep_verdicts(&mut self, now: Instant) {
        if let Some(file) = &self.verdicts_file {
            file.keep(&self.verdicts, now);
            self.verdicts_kept_at = now;
        }
    }

    /// When something is to be done.
    pub(crate) fn next_at(&self) -> Option<Instant> {
        let cores = [
            self.due.first().map(|(at, _)| *at),
            self.awaited.values().map(Awaited::until).min(),
            self.observations.next_at(),
            self.reachability.next_at(),
            self.reservations.next_at(),
            self.beacons.next_at(),
            self.punches.next_at(),
            Some(self.looked_at + LOOK_EVERY),
        ];
        cores.into_iter().flatten().min()
    }

    /// What the jitter on the way to a peer follows from: nobody else's is the same.
    fn seed_towards(&self, peer: &PeerId) -> u64 {
        let mut hasher = blake3::Hasher::new_derive_key(LADDER_CONTEXT);
        hasher.update(&self.seed).update(&peer.to_bytes());
        let mut seed = [0; 8];
        hasher.finalize_xof().fill(&mut seed);
        u64::from_le_bytes(seed)
    }

    fn nat(&self, family: Family, now: Instant) -> NatType {
        NatType {
            mapping: self.observations.mapping(family),
            port_preserving: self.observations.port_preserving(family),
            filtering: self.reachability.filtering(family),
            udp: self.verdicts.udp(self.surroundings.network(), now),
        }
    }
}

impl Driver {
    /// Does what is due.
    pub(super) fn on_reach_time(&mut self, now: Instant) {
        while let Some((at, peer)) = self.reach.due.first().copied()
            && at <= now
        {
            self.reach.due.pop_first();
            if let Some(climb) = self.reach.climbs.get_mut(&peer) {
                climb.due_at = None;
            }
            self.drive(peer, now);
        }
        let overdue: Vec<_> = self
            .reach
            .awaited
            .iter()
            .filter(|(_, awaited)| awaited.until() <= now)
            .map(|(peer, awaited)| (*peer, *awaited))
            .collect();
        for (peer, awaited) in overdue {
            match awaited {
                Awaited::Handshake { .. } => self.punch_failed(peer, now),
                Awaited::Answer { socket, remote, .. } => {
                    self.reach.awaited.remove(&peer);
                    self.dial_found(peer, socket, remote, now);
                }
            }
            self.drive(peer, now);
        }
        if self.reach.observations.next_at().is_some_and(|at| at <= now) {
            let changes = self.reach.observations.expire(now);
            self.on_changes(changes, now);
        }
        if self.reach.looked_at + LOOK_EVERY <= now {
            self.reach.looked_at = now;
            if self.reach.verdicts_kept_at + KEEP_EVERY <= now {
                self.reach.keep_verdicts(now);
            }
            for link in self.links.values() {
                if let Link::Session(session) = link {
                    self.reach.reachability.sent(session.remote(), now);
                }
            }
            self.set_beacons(now);
            let given_up: Vec<_> = self
                .reach
                .asked
                .iter()
                .filter(|relay| !self.reach.reservations.asks(relay))
                .copied()
                .collect();
            for relay in given_up {
                self.forget_asked(relay, now);
            }
            let climbs = &mut self.reach.climbs;
            let (connections, pending) = (&self.connections, &self.pending);
            climbs.retain(|peer, climb| {
                climb.due_at.is_some() || connections.count(peer) > 0 || pending.contains_key(peer)
            });
            // Asked for a dial that came to nothing.
            self.reach.seen_at.retain(|peer| climbs.contains_key(peer));
        }
        self.pump(now);
    }

    /// Does what the cores say that are not about one peer's ladder.
    pub(super) fn pump(&mut self, now: Instant) {
        while let Some(action) = self.reach.punches.poll(now) {
            self.punch_action(action, now);
        }
        for action in self.reach.reachability.poll(now) {
            match action {
                ReachAction::Ask { main, message } => self.tell(main, WITNESS, message.to_bytes()),
                ReachAction::Stands(standing) => self.on_standing(standing, now),
                ReachAction::Filters { family, filtering } => {
                    debug!(?family, ?filtering, "what is known of the filter has changed");
                    self.publish_reach(now);
                }
            }
        }
        // What this node is decides at whom it reserves.
        for action in self.reach.reservations.poll(now) {
            self.reserve(action, now);
        }
        for action in self.reach.beacons.poll(now) {
            self.beacon(action, now);
        }
        let reach = &self.reach;
        self.shared.refused.set_reach(
            reach.punches.refused() + reach.foreign_refused,
            reach.punches.forged(),
            reach.witness.refused() + self.swarm.behaviour().confirming.refused(),
        );
    }
}
