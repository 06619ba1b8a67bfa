//! Reaching peers: feeds the cores that find paths, and does what they say. Part of the driver's one task.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use libp2p::core::transport::ListenerId;
use libp2p::multiaddr::Protocol;
use libp2p::relay;
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::{ConnectionId, DialError};
use tracing::{debug, info, trace};

use super::addresses::{is_loopback, relay_of, socket_address, without_peer};
use super::links::Link;
use super::notes::{self, Note};
use super::quic::{Quic, Stray, to_multiaddr};
use super::relaying::RESERVATION_LIFETIME;
use super::{Command, Driver, RETIRE_MAX, explain};
use crate::{
    CandidateKind, CandidateSource, CandidateTable, Change, DialId, Family, Gate, Here, Kind, Ladder,
    LadderAction, NatType, NetworkPrint, Observation, Observations, Presence, Probe, PunchAction, PunchError,
    PunchMessage, Punches, ReachAction, ReachStatus, Reachability, RelayedBecause, ReservationAction,
    ReservationRefusal, Reservations, Rung, SocketId, Stance, Standing, There, Udp, UdpVerdicts, Unwelcome,
    Whereabouts, Witness, WitnessAction,
};
use lapwing_base::{Multiaddr, PeerId, Role};

/// What the driver knows of ways to others, and of its own place.
pub(crate) struct Reach {
    observations: Observations,
    reachability: Reachability,
    witness: Witness,
    reservations: Reservations,
    punches: Punches,
    verdicts: UdpVerdicts,
    candidates: CandidateTable,
    network: NetworkPrint,
    seed: u64,
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
    /// Until when the peer's handshake is waited for, after a path was found on which the peer dials.
    awaited: HashMap<PeerId, Instant>,
    /// What a router forwards to us.
    mapped: Option<SocketAddr>,
    standing: Option<Standing>,
    advertised: Vec<Multiaddr>,
    external: Vec<Multiaddr>,
    looked_at: Instant,
}

/// The way to one peer.
struct Climb {
    ladder: Ladder,
    due_at: Option<Instant>,
    /// What came of each address since something stood last.
    failures: BTreeMap<Multiaddr, String>,
    /// A punch waits for the relay to say where the peer is.
    asking: bool,
}

struct Circuit {
    relay: PeerId,
    address: Option<Multiaddr>,
    granted: bool,
    /// To be let go as soon as it is granted: libp2p's client panics when it is before (libp2p-relay 0.22,
    /// `ReservationReqAccepted`).
    unwanted: bool,
}

enum Dial {
    Ladder {
        peer: PeerId,
        id: DialId,
        address: Multiaddr,
    },
    Punch(PeerId),
}

/// How long a handshake may take on a path that was found.
const HANDSHAKE_AWAITED: Duration = Duration::from_secs(4);

/// How often what is sent to is told to the core that judges what comes back, and the relays' round trips are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Relays through which a peer is tried that has not said where it holds reservations.
const GUESSED_RELAYS_MAX: usize = 4;

impl Reach {
    pub(crate) fn new(me: PeerId, role: Option<Role>, seed: [u8; 32], now: Instant) -> Self {
        let short = u64::from_le_bytes(*seed.first_chunk().unwrap_or(&[0; 8]));
        Self {
            observations: Observations::default(),
            reachability: Reachability::new(role, seed),
            witness: Witness::new(short, now),
            reservations: Reservations::new(0, short),
            punches: Punches::new(me, seed),
            verdicts: UdpVerdicts::default(),
            candidates: CandidateTable::default(),
            network: NetworkPrint(0),
            seed: short,
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
            looked_at: now,
        }
    }

    /// When something is to be done.
    pub(crate) fn next_at(&self) -> Option<Instant> {
        let cores = [
            self.due.first().map(|(at, _)| *at),
            self.awaited.values().min().copied(),
            self.observations.next_at(),
            self.reachability.next_at(),
            self.reservations.next_at(),
            self.punches.next_at(),
            Some(self.looked_at + LOOK_EVERY),
        ];
        cores.into_iter().flatten().min()
    }

    fn nat(&self, family: Family, now: Instant) -> NatType {
        NatType {
            mapping: self.observations.mapping(family),
            port_preserving: self.observations.port_preserving(family),
            filtering: self.reachability.filtering(family),
            udp: self.verdicts.udp(self.network, now),
        }
    }

    /// What became of each address of a peer since something stood last, in one line.
    fn failures(&self, peer: &PeerId) -> Option<String> {
        let failures = &self.climbs.get(peer)?.failures;
        let shown: Vec<_> = failures.values().take(FAILURES_SHOWN).cloned().collect();
        let more = failures.len() - shown.len();
        let more = if more > 0 {
            format!(" and {more} more")
        } else {
            String::new()
        };
        (!shown.is_empty()).then(|| format!("{}{more}", shown.join("; ")))
    }
}

const FAILURES_SHOWN: usize = 3;

impl Driver {
    /// Somebody wants a link to a peer.
    pub(super) fn want(&mut self, peer: PeerId, now: Instant) {
        let addresses = self.addresses_of(&peer);
        let seed = self.reach.seed ^ now.elapsed().as_nanos() as u64;
        let udp = self.reach.verdicts.udp(self.reach.network, now);
        let climb = self.reach.climbs.entry(peer).or_insert_with(|| Climb {
            ladder: Ladder::new(seed),
            due_at: None,
            failures: BTreeMap::new(),
            asking: false,
        });
        climb.ladder.set_udp(udp);
        climb.ladder.set_addresses(addresses, now);
        climb.ladder.want(true, now);
        self.drive(peer, now);
    }

    /// Nobody waits for a link to a peer, and none stands.
    pub(super) fn unwanted(&mut self, peer: PeerId, now: Instant) {
        if let Some(climb) = self.reach.climbs.get_mut(&peer) {
            climb.ladder.want(false, now);
            self.drive(peer, now);
        }
    }

    /// Something new is known of where a peer is.
    pub(super) fn relearn(&mut self, peer: PeerId, now: Instant) {
        let addresses = self.addresses_of(&peer);
        if let Some(climb) = self.reach.climbs.get_mut(&peer) {
            climb.ladder.set_addresses(addresses, now);
            self.drive(peer, now);
        }
    }

    /// Where a peer may be: what is known of it, and the way through each of our relays that it may use too.
    pub(super) fn addresses_of(&self, peer: &PeerId) -> Vec<Multiaddr> {
        let mut addresses = self.shared.book().addresses(peer);
        let gate = self.gate.borrow();
        if gate.mains.contains(peer) {
            return addresses;
        }
        let through = gate.mains.iter().filter(|main| *main != peer);
        let through = through
            .filter_map(|main| self.circuit_through(main))
            .take(GUESSED_RELAYS_MAX);
        for address in through.collect::<Vec<_>>() {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        addresses
    }

    /// The way through a relay that we are connected to.
    fn circuit_through(&self, relay: &PeerId) -> Option<Multiaddr> {
        let address = match self.shared.link(relay) {
            Some(link) if link.rung() == Rung::Relayed => return None,
            Some(link) => link.address(),
            None if self.swarm.is_connected(relay) => self.reach.relays_dialed.get(relay)?.clone(),
            None => return None,
        };
        Some(address.with(Protocol::P2p(*relay)).with(Protocol::P2pCircuit))
    }

    /// Does what one ladder says.
    fn drive(&mut self, peer: PeerId, now: Instant) {
        loop {
            let Some(climb) = self.reach.climbs.get_mut(&peer) else {
                return;
            };
            let Some(action) = climb.ladder.poll(now) else {
                break;
            };
            self.climb(peer, action, now);
        }
        let Some(climb) = self.reach.climbs.get_mut(&peer) else {
            return;
        };
        let due_at = climb.ladder.next_at();
        if due_at != climb.due_at {
            if let Some(before) = climb.due_at {
                self.reach.due.remove(&(before, peer));
            }
            if let Some(at) = due_at {
                self.reach.due.insert((at, peer));
            }
            climb.due_at = due_at;
        }
        let because = climb.ladder.because();
        self.shared.peers().entry(peer).relayed_because = because;
        // Bulk has to wait while there is hope, and goes through the relay when there is none.
        let hopeless = because
            .is_some_and(|because| !matches!(because, RelayedBecause::NotTriedYet | RelayedBecause::Trying));
        for id in self.connections.of(&peer) {
            if let Some(Link::Lane(link)) = self.links.get(&id) {
                link.allow_bulk(hopeless);
            }
        }
    }

    fn climb(&mut self, peer: PeerId, action: LadderAction, now: Instant) {
        match action {
            LadderAction::Dial { id, address } => self.dial(peer, id, address, now),
            LadderAction::Abandon(id) => {
                let abandoned = self.reach.dials.iter().find_map(|(connection, dial)| match dial {
                    Dial::Ladder {
                        peer: of,
                        id: other,
                        address,
                    } if *of == peer && *other == id => Some((*connection, address.clone())),
                    Dial::Ladder { .. } | Dial::Punch(_) => None,
                });
                if let Some((connection, address)) = abandoned {
                    // The swarm lets no dial go; what comes of it is one link more, which is closed as surplus.
                    self.reach.dials.remove(&connection);
                    self.reach.candidates.not_needed(&peer, &address);
                }
            }
            LadderAction::Punch => self.punch(peer, now),
            LadderAction::Prefer(rung) => {
                debug!(%peer, %rung, "path");
                self.publish_link(&peer);
            }
            LadderAction::Retire(rung) => {
                for id in self.connections.on_rung(&peer, rung) {
                    self.retiring.entry(id).or_insert(now + RETIRE_MAX);
                }
                self.retire(now);
            }
            LadderAction::Saw(udp) => self.saw(peer, udp, now),
            LadderAction::Unreachable { retry_at } => self.on_unreachable(peer, retry_at),
        }
    }

    fn saw(&mut self, peer: PeerId, udp: Udp, now: Instant) {
        let network = self.reach.network;
        let before = self.reach.verdicts.udp(network, now);
        match udp {
            Udp::Open => self.reach.verdicts.open(network, now),
            Udp::Blocked => self.reach.verdicts.fallback_only(network, peer, now),
            Udp::Unknown => (),
        }
        let after = self.reach.verdicts.udp(network, now);
        if after != before {
            info!(udp = ?after, "what is known of this network has changed");
            let peers: Vec<_> = self.reach.climbs.keys().copied().collect();
            for peer in &peers {
                if let Some(climb) = self.reach.climbs.get_mut(peer) {
                    climb.ladder.set_udp(after);
                }
            }
            // The one whose ladder has said so is being driven.
            for other in peers.into_iter().filter(|other| *other != peer) {
                self.drive(other, now);
            }
            self.publish_reach(now);
        }
    }

    fn dial(&mut self, peer: PeerId, id: DialId, address: Multiaddr, now: Instant) {
        let kind = match Rung::of(&address) {
            Some(Rung::Relayed) => CandidateKind::Relayed,
            Some(Rung::Fallback) => CandidateKind::Websocket,
            Some(Rung::Direct) | None => CandidateKind::Host,
        };
        self.reach
            .candidates
            .trying(peer, address.clone(), kind, CandidateSource::Learned, now);
        if let Some(relay) = relay_of(&address) {
            self.ask_where(relay, peer, now);
        }
        if let Some(to) = socket_address(&address) {
            self.reach.reachability.sent(to, now);
        }
        let options = DialOpts::peer_id(peer)
            .condition(PeerCondition::Always)
            .addresses(vec![address.clone()])
            .build();
        let connection = options.connection_id();
        trace!(%peer, %address, "dialing");
        let dial = Dial::Ladder { peer, id, address };
        self.reach.dials.insert(connection, dial);
        if let Err(error) = self.swarm.dial(options) {
            self.dial_failed(connection, peer, &error, now);
        }
    }

    /// A dial of the swarm has come to nothing.
    pub(super) fn on_dial_failure(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        error: &DialError,
        now: Instant,
    ) {
        self.dial_failed(id, peer, error, now);
        self.drive(peer, now);
        self.pump(now);
    }

    fn dial_failed(&mut self, id: ConnectionId, peer: PeerId, error: &DialError, now: Instant) {
        if let DialError::WrongPeerId { address, .. } = error {
            self.shared.book().mistaken(&peer, &without_peer(address));
        }
        self.suspected_at.remove(&peer);
        let why = explain::dial_error(error);
        trace!(%peer, reason = why, "dial failed");
        match self.reach.dials.remove(&id) {
            Some(Dial::Ladder { peer, id, address }) => {
                self.reach.candidates.failed(&peer, &address, &why, now);
                if let Some(climb) = self.reach.climbs.get_mut(&peer) {
                    climb.failures.insert(address, why);
                    climb.ladder.dial_failed(id, now);
                }
            }
            Some(Dial::Punch(peer)) => self.punch_failed(peer, now),
            None => (),
        }
    }

    /// The path that was found carries no connection.
    fn punch_failed(&mut self, peer: PeerId, now: Instant) {
        self.reach.awaited.remove(&peer);
        let retry_at = self.reach.punches.failed(peer, now);
        if let Some(climb) = self.reach.climbs.get_mut(&peer) {
            climb
                .ladder
                .punch_failed(RelayedBecause::HandshakeFailed, retry_at);
        }
    }

    /// What a dial has failed with since something stood last.
    pub(super) fn dial_failures(&self, peer: &PeerId) -> Option<String> {
        self.reach.failures(peer)
    }

    /// A link stands.
    pub(super) fn on_path(&mut self, link: &Link, address: &Multiaddr, now: Instant) {
        let (peer, rung) = (link.peer(), link.rung());
        let dial = self.reach.dials.iter().find_map(|(connection, dial)| match dial {
            Dial::Ladder {
                peer: of,
                id,
                address: to,
            } if *of == peer && without_peer(to) == *address => Some((*connection, *id, to.clone())),
            Dial::Ladder { .. } | Dial::Punch(_) => None,
        });
        if let Some((connection, _, to)) = &dial {
            self.reach.dials.remove(connection);
            self.reach.candidates.succeeded(&peer, to, now);
        }
        if rung == Rung::Direct {
            self.reach
                .dials
                .retain(|_, dial| !matches!(dial, Dial::Punch(of) if *of == peer));
            self.reach.awaited.remove(&peer);
            self.reach.punches.connected(&peer, now);
            if let Link::Session(session) = link {
                self.reach.reachability.sent(session.remote(), now);
                self.saw(peer, Udp::Open, now);
            }
        }
        if let Link::Lane(lane) = link
            && let Some(relay) = relay_of(&lane.address)
        {
            self.ask_where(relay, peer, now);
        }
        let is_main = self.gate.borrow().mains.contains(&peer);
        if is_main {
            self.reach.reservations.learn(peer, link.rtt());
            if rung == Rung::Direct {
                self.reach.reachability.main_connected(peer, now);
            }
        }
        // Links that others have made climb too: what is relayed is worth improving from either side.
        if !self.reach.climbs.contains_key(&peer) && self.is_member(&peer) && rung != Rung::Direct {
            self.want(peer, now);
        }
        if let Some(climb) = self.reach.climbs.get_mut(&peer) {
            climb.failures.clear();
            climb.ladder.connected(rung, dial.map(|(_, id, _)| id), now);
            self.drive(peer, now);
        }
        if is_main {
            self.relearn_homes(now);
        }
        if self.reach.asked.contains(&peer) {
            self.reserve(ReservationAction::Reserve(peer), now);
        }
        self.pump(now);
    }

    /// The last link on a rung is gone.
    pub(super) fn on_path_lost(&mut self, peer: PeerId, rung: Rung, now: Instant) {
        let last = self.connections.count(&peer) == 0;
        if last {
            self.reach.punches.disconnected(&peer);
            self.reach.seen_at.forget(&peer);
        }
        if rung == Rung::Direct {
            self.reach.reachability.main_lost(&peer);
        }
        let wanted = self.pending.contains_key(&peer);
        if let Some(climb) = self.reach.climbs.get_mut(&peer) {
            climb.asking = false;
            if last && !wanted {
                climb.ladder.want(false, now);
            }
            climb.ladder.lost(rung, now);
            if climb.ladder.best().is_none()
                && let Some(link) = self.preferred(&peer)
                && let Some(climb) = self.reach.climbs.get_mut(&peer)
            {
                // What was about to be let go is needed again.
                self.retiring
                    .retain(|id, _| self.links.get(id).is_none_or(|link| link.peer() != peer));
                climb.ladder.connected(link.rung(), None, now);
            }
            self.drive(peer, now);
        }
        self.pump(now);
    }

    /// Another relay is connected, through which those may be reached that are not yet.
    fn relearn_homes(&mut self, now: Instant) {
        let climbing: Vec<_> = self
            .reach
            .climbs
            .iter()
            .filter(|(_, climb)| climb.ladder.best().is_none())
            .map(|(peer, _)| *peer)
            .collect();
        for peer in climbing {
            if self.pending.contains_key(&peer) {
                self.relearn(peer, now);
            }
        }
    }

    /// Asks a relay where it sees a peer, unless that is known.
    fn ask_where(&mut self, relay: PeerId, peer: PeerId, now: Instant) {
        if self.reach.seen_at.is_due(&peer, now) && self.ask_again(relay, peer) {
            self.reach.seen_at.asked(peer);
        }
    }

    /// Asks a relay where it sees a peer now; says whether the question is on its way.
    fn ask_again(&self, relay: PeerId, peer: PeerId) -> bool {
        // A relay without a link is not there yet, or is no node of ours and cannot say: it is not dialed for this.
        if relay == self.shared.me || self.shared.link(&relay).is_none() {
            return false;
        }
        let shared = Arc::clone(&self.shared);
        self.spawn_note(async move {
            let seen = notes::ask_where(&shared, relay, peer).await;
            // The driver is gone when it does not take it.
            let _ = shared.commands.send(Command::SeenAt { peer, seen }).await;
        })
    }

    /// The relay of the path on which a peer stands, where there is one.
    fn relay_towards(&self, peer: &PeerId) -> Option<PeerId> {
        let lanes = self.connections.on_rung(peer, Rung::Relayed);
        match lanes.last().and_then(|id| self.links.get(id))? {
            Link::Lane(lane) => relay_of(&lane.address),
            Link::Session(_) => None,
        }
    }

    pub(super) fn on_seen_at(&mut self, peer: PeerId, seen: Vec<IpAddr>, now: Instant) {
        trace!(%peer, ?seen, "where the relay sees the peer");
        self.reach.seen_at.answered(peer, seen, now);
        if let Some(climb) = self.reach.climbs.get_mut(&peer)
            && std::mem::take(&mut climb.asking)
        {
            self.punch(peer, now);
            self.drive(peer, now);
            self.pump(now);
        }
    }

    fn punch(&mut self, peer: PeerId, now: Instant) {
        if let Some(relay) = self.relay_towards(&peer) {
            self.ask_where(relay, peer, now);
        }
        let there = self.there(&peer);
        if there.seen_at.is_empty()
            && let Some(climb) = self.reach.climbs.get_mut(&peer)
            && self.reach.seen_at.is_awaited(&peer)
        {
            // The relay's answer is on its way.
            climb.asking = true;
            return;
        }
        let here = self.here(now);
        trace!(%peer, ?here, ?there, "offering to punch");
        let started = self.reach.punches.start(peer, here, there, now);
        let failed = match started {
            Ok(()) | Err(PunchError::UnderWay) => None,
            Err(PunchError::NotDue { retry_at }) => {
                let because = self
                    .reach
                    .climbs
                    .get(&peer)
                    .and_then(|climb| climb.ladder.because());
                Some((because.unwrap_or(RelayedBecause::TimedOut), retry_at))
            }
            Err(PunchError::Hopeless { why, retry_at }) => Some((why, retry_at)),
        };
        if let (Some((why, retry_at)), Some(climb)) = (failed, self.reach.climbs.get_mut(&peer)) {
            climb.ladder.punch_failed(why, retry_at);
        }
    }

    fn here(&self, now: Instant) -> Here {
        let sockets = self.quic.sockets();
        let reflexive = self.reach.observations.reflexive(now);
        // What others see comes first: towards that a symmetric NAT opens its ports, and the list has an end.
        let mut candidates = reflexive.clone();
        let own: Vec<_> = self.shared.listen().iter().filter_map(socket_address).collect();
        for address in self.reach.mapped.into_iter().chain(own) {
            if !candidates.contains(&address) {
                candidates.push(address);
            }
        }
        let predicted = sockets
            .first()
            .map(|(socket, _)| self.reach.observations.predicted(*socket, Family::V4, now))
            .unwrap_or_default();
        Here {
            presence: Presence {
                nat: self.reach.nat(Family::V4, now),
                candidates,
                predicted,
                ports: self.reach.observations.port_block(now),
            },
            sockets,
            seen_at: reflexive
                .iter()
                .map(SocketAddr::ip)
                .collect::<BTreeSet<_>>()
                .into_iter()
                .collect(),
        }
    }

    fn there(&self, peer: &PeerId) -> There {
        let mut seen_at = self.reach.seen_at.of(peer).to_vec();
        let link = self.shared.link(peer);
        seen_at.extend(link.as_ref().and_then(Link::remote_ip));
        // A circuit is seldom old enough to have been measured; what is known is our half of it.
        let to_relay = match &link {
            Some(Link::Lane(lane)) => {
                relay_of(&lane.address).and_then(|relay| self.shared.link(&relay)?.rtt())
            }
            Some(Link::Session(_)) | None => None,
        };
        There {
            seen_at,
            rtt: link
                .as_ref()
                .and_then(Link::rtt)
                .or_else(|| to_relay.map(|rtt| rtt * 2)),
        }
    }

    /// A datagram that is not QUIC has come.
    pub(super) fn on_stray(&mut self, stray: &Stray, now: Instant) {
        let Stray {
            socket,
            from,
            payload,
        } = stray;
        if !Probe::is_ours(payload) {
            return;
        }
        let taken = self.reach.punches.on_datagram(*socket, *from, payload, now)
            || self.reach.reachability.on_datagram(*from, payload, now);
        if taken {
            self.pump(now);
        } else {
            trace!(%from, "a probe that nobody waits for");
        }
    }

    pub(super) fn on_note(&mut self, note: Note, now: Instant) {
        match note {
            Note::Punch(peer, message) => {
                trace!(%peer, ?message, "punch message");
                if matches!(message, PunchMessage::Offer { .. }) {
                    // The peer has no direct path to us any more.
                    self.suspect(&peer);
                }
                let (here, there) = (self.here(now), self.there(&peer));
                self.reach.punches.on_message(peer, message, here, there, now);
            }
            Note::Witness(peer, message) => {
                self.reach.reachability.on_message(&peer, &message, now);
                if let Some(from) = self.shared.link(&peer).and_then(|link| link.remote_ip()) {
                    let mains = self.connected_mains();
                    let actions = self.reach.witness.on_message(peer, from, message, &mains, now);
                    for action in actions {
                        self.witness(action, now);
                    }
                }
            }
        }
        self.pump(now);
    }

    fn connected_mains(&self) -> Vec<(PeerId, IpAddr)> {
        let gate = self.gate.borrow();
        let mains = gate.mains.iter();
        mains
            .filter_map(|main| Some((*main, self.shared.link(main)?.remote_ip()?)))
            .collect()
    }

    fn witness(&mut self, action: WitnessAction, now: Instant) {
        match action {
            WitnessAction::Tell { peer, message } => self.tell(peer, notes::WITNESS, message.to_bytes()),
            WitnessAction::Send { from, to, datagram } => {
                let sent = match from {
                    Stance::OtherPort => Quic::send_from_other_port(to, &datagram),
                    Stance::ThirdParty => match self.socket_towards(to) {
                        Some(socket) => {
                            self.reach.reachability.sent(to, now);
                            self.quic.send_probe(socket, to, &datagram, None)
                        }
                        None => return,
                    },
                };
                if let Err(error) = sent {
                    debug!(%to, %error, "a witness's datagram was not sent");
                }
            }
        }
    }

    fn socket_towards(&self, to: SocketAddr) -> Option<SocketId> {
        let sockets = self.quic.sockets();
        let mut fits = sockets
            .iter()
            .filter(|(_, local)| local.is_ipv4() == to.is_ipv4());
        fits.next().map(|(socket, _)| *socket)
    }

    fn tell(&self, peer: PeerId, kind: Kind, body: Vec<u8>) {
        if !self.spawn_note(notes::tell(Arc::clone(&self.shared), peer, kind, body)) {
            trace!(%peer, %kind, "a message was not sent, since too many are on their way");
        }
    }

    /// Says something of punching: it is about the direct path, which may be dead where it still stands, and so goes
    /// beside it.
    fn tell_beside(&self, peer: PeerId, body: Vec<u8>) {
        let lanes = self.connections.on_rung(&peer, Rung::Relayed);
        let Some(link) = lanes.last().and_then(|id| self.links.get(id)) else {
            return self.tell(peer, notes::PUNCH, body);
        };
        let telling = notes::tell_over(Arc::clone(&self.shared), link.clone(), notes::PUNCH, body);
        if !self.spawn_note(telling) {
            trace!(%peer, "a message was not sent, since too many are on their way");
        }
    }

    /// Notes are short and few; beyond their bound they are lost, and sent again if they matter.
    /// Says whether this one is on its way.
    fn spawn_note(&self, note: impl Future<Output = ()> + Send + 'static) -> bool {
        let Ok(permit) = Arc::clone(&self.notes_under_way).try_acquire_owned() else {
            return false;
        };
        let stop = self.stop.clone();
        self.tracker.spawn(async move {
            stop.run_until_cancelled(note).await;
            drop(permit);
        });
        true
    }

    /// Someone has told where it sees us.
    pub(super) fn on_observed(&mut self, said: Observation, now: Instant) {
        if !self.reach.observations.is_bound(said.socket) {
            self.tell_sockets();
        }
        let changes = self.reach.observations.observe(said, now);
        self.on_changes(changes, now);
    }

    fn tell_sockets(&mut self) {
        for (socket, local) in self.quic.sockets() {
            self.reach.observations.bound(socket, local);
        }
    }

    fn on_changes(&mut self, changes: Vec<Change>, now: Instant) {
        if changes.is_empty() {
            return;
        }
        for change in &changes {
            match change {
                Change::Mapping { family, mapping } => {
                    info!(?family, ?mapping, "what is known of the NAT has changed")
                }
                Change::Rebound { socket, from, to } => {
                    info!(%from, %to, "the NAT has given this node another address");
                    // Whoever has dialed us knows the old one only.
                    for link in self.links.values() {
                        if matches!(link, Link::Session(session) if session.socket == *socket) {
                            link.suspect();
                        }
                    }
                }
                Change::External | Change::Recheck => (),
            }
        }
        self.set_targets(now);
        self.publish_reach(now);
        self.pump(now);
    }

    /// The addresses at which this node may be reachable by everybody.
    fn set_targets(&mut self, now: Instant) {
        let mut targets = self.reach.observations.to_check(now);
        targets.extend(self.reach.mapped.map(|mapped| (mapped, false)));
        self.reach.reachability.set_targets(targets, now);
    }

    /// A router forwards a port to us, or no longer.
    pub(super) fn on_mapped(&mut self, mapped: Option<SocketAddr>, now: Instant) {
        if self.reach.mapped != mapped {
            self.reach.mapped = mapped;
            self.set_targets(now);
            self.publish_reach(now);
            self.pump(now);
        }
    }

    /// This machine is in another network.
    pub(super) fn on_network(
        &mut self,
        network: NetworkPrint,
        local_ips: impl IntoIterator<Item = IpAddr>,
        now: Instant,
    ) {
        let moved = self.reach.network != network && self.reach.network != NetworkPrint(0);
        self.reach.network = network;
        self.tell_sockets();
        let changes = self.reach.observations.set_local_ips(local_ips, now);
        self.on_changes(changes, now);
        if moved {
            info!("this machine is in another network");
            self.reach.punches.network_changed(now);
            self.reach.reservations.network_changed(now);
            let udp = self.reach.verdicts.udp(network, now);
            let peers: Vec<_> = self.reach.climbs.keys().copied().collect();
            for peer in peers {
                if let Some(climb) = self.reach.climbs.get_mut(&peer) {
                    climb.ladder.set_udp(udp);
                    climb.ladder.network_changed(now);
                }
                self.drive(peer, now);
            }
            self.pump(now);
        }
    }

    /// The roster has changed.
    pub(super) fn on_mains(&mut self, gate: &Gate, before: &Gate, now: Instant) {
        let me = self.shared.me;
        for main in gate.mains.iter().filter(|main| **main != me) {
            let link = self.shared.link(main);
            self.reach
                .reservations
                .learn(*main, link.as_ref().and_then(Link::rtt));
            if matches!(link, Some(Link::Session(_))) {
                self.reach.reachability.main_connected(*main, now);
            }
        }
        for gone in before.mains.difference(&gate.mains) {
            self.reach.relays_dialed.remove(gone);
            self.reach.reservations.forget(gone);
            self.reach.reachability.main_lost(gone);
            self.reserve(ReservationAction::Release(*gone), now);
            self.forget_asked(*gone, now);
        }
        // Whoever joins has somebody to ask; whoever founds has nobody.
        let alone = gate.cluster.is_some() && gate.mains.iter().all(|main| *main == me);
        self.reach.reachability.set_alone(alone);
        self.pump(now);
    }

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
            .filter(|(_, at)| **at <= now)
            .map(|(peer, _)| *peer)
            .collect();
        for peer in overdue {
            self.punch_failed(peer, now);
            self.drive(peer, now);
        }
        if self.reach.observations.next_at().is_some_and(|at| at <= now) {
            let changes = self.reach.observations.expire(now);
            self.on_changes(changes, now);
        }
        if self.reach.looked_at + LOOK_EVERY <= now {
            self.reach.looked_at = now;
            for link in self.links.values() {
                if let Link::Session(session) = link {
                    self.reach.reachability.sent(session.remote(), now);
                }
            }
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
        for action in self.reach.reservations.poll(now) {
            self.reserve(action, now);
        }
        for action in self.reach.reachability.poll(now) {
            match action {
                ReachAction::Ask { main, message } => self.tell(main, notes::WITNESS, message.to_bytes()),
                ReachAction::Stands(standing) => self.on_standing(standing, now),
                ReachAction::Filters { family, filtering } => {
                    debug!(?family, ?filtering, "what is known of the filter has changed");
                    self.publish_reach(now);
                }
            }
        }
        let reach = &self.reach;
        self.shared.refused.set_reach(
            reach.punches.refused(),
            reach.punches.forged(),
            reach.witness.refused(),
        );
    }

    fn punch_action(&mut self, action: PunchAction, now: Instant) {
        match action {
            PunchAction::Observed(said) => self.on_observed(said, now),
            PunchAction::Tell { peer, message } => self.tell_beside(peer, message.to_bytes()),
            PunchAction::Send(datagram) => {
                self.reach.reachability.sent(datagram.to, now);
                let sent = self
                    .quic
                    .send_probe(datagram.socket, datagram.to, &datagram.bytes, datagram.ttl);
                if let Err(error) = sent {
                    trace!(to = %datagram.to, %error, "a probe was not sent");
                }
            }
            PunchAction::OpenSockets { peer, count } => {
                let sockets = self.quic.open_spares(peer, count);
                self.reach.punches.sockets_opened(&peer, sockets, now);
            }
            PunchAction::CloseSockets { peer, keep } => {
                if let Err(error) = self.quic.close_spares(&peer, keep) {
                    debug!(%peer, %error, "the socket of the path that was found cannot be kept");
                }
            }
            PunchAction::Found {
                peer,
                chosen,
                strategy,
                took,
                probed,
            } => {
                info!(%peer, address = %chosen.remote, %strategy, ?took, dials = chosen.dials, "a direct path was found");
                self.reach
                    .candidates
                    .punched(peer, &probed, None, now.checked_sub(took).unwrap_or(now), now);
                if chosen.dials {
                    self.dial_found(peer, chosen.socket, chosen.remote, now);
                } else {
                    self.reach.awaited.insert(peer, now + HANDSHAKE_AWAITED);
                }
            }
            PunchAction::Failed {
                peer,
                why,
                retry_at,
                probed,
            } => {
                debug!(%peer, %why, "no direct path was found");
                self.reach.candidates.punched(peer, &probed, Some(why), now, now);
                // It may have moved: the next attempt is to know.
                if let Some(relay) = self.relay_towards(&peer) {
                    self.ask_again(relay, peer);
                }
                if let Some(climb) = self.reach.climbs.get_mut(&peer) {
                    climb.ladder.punch_failed(why, retry_at);
                    self.drive(peer, now);
                }
            }
        }
    }

    fn dial_found(&mut self, peer: PeerId, socket: SocketId, remote: SocketAddr, now: Instant) {
        self.quic.dial_from(socket, remote);
        let options = DialOpts::peer_id(peer)
            .condition(PeerCondition::Always)
            .addresses(vec![to_multiaddr(remote)])
            .build();
        let connection = options.connection_id();
        self.reach.dials.insert(connection, Dial::Punch(peer));
        if let Err(error) = self.swarm.dial(options) {
            self.dial_failed(connection, peer, &error, now);
            self.drive(peer, now);
        }
    }

    fn reserve(&mut self, action: ReservationAction, now: Instant) {
        match action {
            ReservationAction::Reserve(relay) => {
                if let Some(circuit) = self
                    .reach
                    .circuits
                    .values_mut()
                    .find(|circuit| circuit.relay == relay)
                {
                    // It is renewed by libp2p, which tells.
                    circuit.unwanted = false;
                    return;
                }
                let Some(through) = self.circuit_through(&relay) else {
                    // On whatever path there is; the reservation is asked for once it stands.
                    self.reach.asked.insert(relay);
                    self.want(relay, now);
                    return;
                };
                self.reserve_through(relay, through, now);
            }
            ReservationAction::Release(relay) => {
                let held = self
                    .reach
                    .circuits
                    .iter_mut()
                    .find(|(_, circuit)| circuit.relay == relay);
                let Some((id, circuit)) = held else {
                    return;
                };
                if !circuit.granted {
                    circuit.unwanted = true;
                    return;
                }
                let id = *id;
                self.reach.circuits.remove(&id);
                self.swarm.remove_listener(id);
                self.publish_reach(now);
            }
        }
    }

    fn reserve_through(&mut self, relay: PeerId, through: Multiaddr, now: Instant) {
        self.reach.asked.remove(&relay);
        match self.swarm.listen_on(through) {
            Ok(id) => {
                let circuit = Circuit {
                    relay,
                    address: None,
                    granted: false,
                    unwanted: false,
                };
                self.reach.circuits.insert(id, circuit);
            }
            Err(error) => {
                debug!(%relay, %error, "no reservation can be asked for");
                self.reach.reservations.lost(&relay, now);
            }
        }
    }

    /// A dial of the swarm has led to a peer. A relay may be any that speaks libp2p's protocol: it is asked for a
    /// reservation as soon as it is connected, whether or not it is a node of ours, with whom there will be a link.
    pub(super) fn on_dialed(&mut self, peer: PeerId, address: &Multiaddr, now: Instant) {
        if !self.reach.asked.contains(&peer) || relay_of(address).is_some() {
            return;
        }
        // One for each relay that is ever asked: as many as there are mains.
        self.reach.relays_dialed.insert(peer, without_peer(address));
        if let Some(through) = self.circuit_through(&peer) {
            self.reserve_through(peer, through, now);
        }
    }

    /// No reservation is wanted of a relay any more, so that it need not be reached.
    fn forget_asked(&mut self, relay: PeerId, now: Instant) {
        if self.reach.asked.remove(&relay)
            && !self.pending.contains_key(&relay)
            && self.connections.count(&relay) == 0
        {
            self.unwanted(relay, now);
        }
    }

    /// A relay has given us an address.
    pub(super) fn on_circuit_address(&mut self, id: ListenerId, address: Multiaddr, now: Instant) -> bool {
        let Some(circuit) = self.reach.circuits.get_mut(&id) else {
            return false;
        };
        // Two transports may reach a relay; one address is enough to come back by.
        if circuit.address.is_none() {
            circuit.address = Some(without_peer(&address));
            self.publish_reach(now);
        }
        true
    }

    /// A reservation has come to nothing or to its end.
    pub(super) fn on_circuit_closed(
        &mut self,
        id: ListenerId,
        why: Option<&std::io::Error>,
        now: Instant,
    ) -> bool {
        let Some(circuit) = self.reach.circuits.remove(&id) else {
            return false;
        };
        let why = why.map_or_else(|| "closed".to_owned(), |error| explain::chain(error));
        debug!(relay = %circuit.relay, reason = why, "no reservation");
        // The error is hidden behind every transport that it has passed; its text is all that is left.
        let refusal = if why.contains("does not support") {
            Some(ReservationRefusal::NotAllowed)
        } else if why.contains("esource limit") {
            Some(ReservationRefusal::NoSlots)
        } else {
            None
        };
        match refusal {
            Some(refusal) => self.reach.reservations.refused(&circuit.relay, refusal, now),
            None => self.reach.reservations.lost(&circuit.relay, now),
        }
        self.publish_reach(now);
        self.pump(now);
        true
    }

    pub(super) fn on_relayed(&mut self, event: &relay::client::Event, now: Instant) {
        if let relay::client::Event::ReservationReqAccepted {
            relay_peer_id: relay,
            renewal,
            ..
        } = event
        {
            if !renewal {
                info!(%relay, "this node can be reached through a relay");
            }
            let circuit = self
                .reach
                .circuits
                .values_mut()
                .find(|circuit| circuit.relay == *relay);
            if let Some(circuit) = circuit {
                circuit.granted = true;
                if std::mem::take(&mut circuit.unwanted) {
                    self.reserve(ReservationAction::Release(*relay), now);
                    return;
                }
            }
            self.reach.reservations.granted(*relay, RESERVATION_LIFETIME, now);
            self.publish_reach(now);
            self.pump(now);
        }
    }

    /// The relay service has refused somebody, or done something.
    pub(super) fn on_relaying(&self, event: &relay::Event) {
        let refused = &self.shared.refused;
        match event {
            relay::Event::ReservationReqDenied {
                src_peer_id: peer, ..
            } => {
                debug!(%peer, "no reservation beyond the quota");
                refused.count(Unwelcome::Reservation);
            }
            relay::Event::CircuitReqDenied {
                src_peer_id: from,
                dst_peer_id: to,
                status,
            } => {
                debug!(%from, %to, ?status, "circuit refused");
                refused.count(Unwelcome::Circuit);
            }
            event => trace!(?event, "relay"),
        }
    }

    fn on_standing(&mut self, standing: Standing, now: Instant) {
        self.reach.standing = Some(standing);
        if !standing.provisional {
            info!(role = %standing.role, "how this node can be reached is known");
        }
        let wanted = if standing.role == Role::Home {
            Reservations::WANTED
        } else {
            0
        };
        self.reach.reservations.set_wanted(wanted);
        self.swarm
            .behaviour_mut()
            .relaying
            .serve(standing.role == Role::Main);
        self.publish_reach(now);
    }

    /// Tells everybody who asks where this node can be reached.
    pub(super) fn publish_reach(&mut self, now: Instant) {
        let Some(standing) = self.reach.standing else {
            return;
        };
        let listen = self.shared.listen();
        let open: Vec<_> = self.reach.reachability.open().map(to_multiaddr).collect();
        let external: Vec<_> = if standing.role == Role::Main && open.is_empty() {
            // Pinned, or nobody to ask: what it listens on is what there is.
            listen.clone()
        } else {
            open
        };
        for gone in self
            .reach
            .external
            .iter()
            .filter(|address| !external.contains(address))
        {
            self.swarm.remove_external_address(gone);
        }
        for new in external
            .iter()
            .filter(|address| !self.reach.external.contains(address))
        {
            self.swarm.add_external_address(new.clone());
        }
        self.reach.external.clone_from(&external);
        let mut advertised = external;
        let circuits = self
            .reach
            .circuits
            .values()
            .filter_map(|circuit| circuit.address.clone());
        advertised.extend(circuits.collect::<Vec<_>>());
        let only_loopback = listen.iter().all(is_loopback);
        for address in listen {
            if !advertised.contains(&address) && (only_loopback || !is_loopback(&address)) {
                advertised.push(address);
            }
        }
        advertised.truncate(ADVERTISED_MAX);
        self.reach.advertised.clone_from(&advertised);
        let reservations = self.reach.reservations.held();
        let reservations = reservations
            .map(|held| (held.relay, held.expires_at.saturating_duration_since(now)))
            .collect();
        let nat = self.reach.nat(Family::V4, now);
        self.shared.set_reach(ReachStatus {
            standing,
            nat,
            observed: self.reach.observations.external(),
            reservations,
            advertised,
        });
        debug!(mapping = ?nat.mapping, filtering = ?nat.filtering, "reach published");
    }

    /// Every address that was tried for a peer.
    pub(super) fn candidates(&self, peer: &PeerId, now: Instant) -> Vec<crate::CandidateRow> {
        self.reach.candidates.rows(peer, now)
    }
}

/// As many as a member may have in the roster.
const ADVERTISED_MAX: usize = 16;
