//! This node's own place: what others see of it, what reaches it, its role, and what it tells of that.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Instant;

use tracing::{debug, info};

use crate::driver::addresses::{ip_of, is_loopback};
use crate::driver::links::Link;
use crate::driver::listening::Listener;
use crate::driver::quic::{Quic, Session, to_multiaddr};
use crate::driver::{Driver, notes};
use crate::{
    Change, Dialed, Family, Gate, NetworkPrint, Observation, ReachStatus, ReservationAction, Reservations,
    Rung, Scope, SocketId, Stance, Standing, WitnessAction,
};
use lapwing_base::{Multiaddr, PeerId, Role};

impl Driver {
    pub(super) fn witness(&mut self, action: WitnessAction, now: Instant) {
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

    pub(super) fn connected_mains(&self) -> Vec<(PeerId, IpAddr)> {
        let gate = self.gate.borrow();
        let mains = gate.mains.iter();
        mains
            .filter_map(|main| Some((*main, self.shared.link(main)?.remote_ip()?)))
            .collect()
    }

    pub(super) fn socket_towards(&self, to: SocketAddr) -> Option<SocketId> {
        let sockets = self.quic.sockets();
        let mut fits = sockets
            .iter()
            .filter(|(_, local)| local.is_ipv4() == to.is_ipv4());
        fits.next().map(|(socket, _)| *socket)
    }

    /// Makes sure that what is sent to an address comes from a socket that takes connections: others are told the port
    /// that they see, and a NAT that is opened is opened for that one. A node that was told to listen on every address of
    /// one version of IP, and has something to send over the other, listens there too. Whoever named single addresses is
    /// taken at the word; so is a main that was said to be one, since nobody has opened a firewall for another port.
    pub(super) fn listen_towards(&mut self, to: SocketAddr) {
        let on_all = |address: &Multiaddr| {
            let is_quic = Rung::of(address) == Some(Rung::Direct);
            is_quic && ip_of(address).is_some_and(|ip| ip.is_unspecified())
        };
        let is_main = self.reach.reachability.standing().role == Role::Main;
        let family = Family::of(to.ip());
        if self.socket_towards(to).is_some()
            || Scope::of(to.ip()) < Scope::Private
            || (is_main && self.reach.reachability.is_pinned())
            || !self.listeners.iter().any(|listener| on_all(&listener.asked))
            || !self.is_on(family)
        {
            return;
        }
        let any: IpAddr = match family {
            Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
        };
        let asked = to_multiaddr((any, 0).into());
        match self.swarm.listen_on(asked.clone()) {
            Ok(id) => {
                debug!(%family, "listening over this version of IP too, since it is used");
                self.listeners.push(Listener {
                    id,
                    asked,
                    bound: Vec::new(),
                });
            }
            Err(error) => debug!(%family, %error, "this version of IP is only dialed over"),
        }
    }

    /// Whether this machine has an address of a family.
    pub(super) fn is_on(&self, family: Family) -> bool {
        let interfaces = self.interfaces.borrow();
        let mut ips = interfaces.addresses.iter().map(|address| address.addr());
        ips.any(|ip| Family::of(ip) == family && Scope::of(ip) >= Scope::Private)
    }

    /// A peer has told where it sees us. The word of mains counts, and of those that this node has turned to by itself:
    /// anybody else could come in any number to say what is not so.
    pub(in crate::driver) fn on_word(&mut self, session: &Session, now: Instant) {
        let counts = session.dialed == Dialed::ByUs || self.known_gate.mains.contains(&session.peer);
        if counts && let Some(said) = session.observation() {
            self.on_observed(said, now);
        }
    }

    /// Someone whose word counts has told where it sees us.
    pub(in crate::driver) fn on_observed(&mut self, said: Observation, now: Instant) {
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

    /// A socket that was kept for one path is gone with it.
    pub(in crate::driver) fn on_socket_closed(&mut self, socket: SocketId, now: Instant) {
        let changes = self.reach.observations.closed(socket, now);
        self.on_changes(changes, now);
    }

    pub(super) fn on_changes(&mut self, changes: Vec<Change>, now: Instant) {
        if changes.is_empty() {
            return;
        }
        for change in &changes {
            match change {
                Change::Mapping { family, mapping } => {
                    info!(%family, %mapping, "what is known of the NAT has changed")
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
                Change::Recheck => {
                    // A packet to each is enough: who sees it come from elsewhere says so.
                    for link in self.links.values() {
                        if matches!(link, Link::Session(_)) {
                            link.suspect();
                        }
                    }
                }
                Change::External => (),
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
    pub(in crate::driver) fn on_mapped(&mut self, mapped: Option<SocketAddr>, now: Instant) {
        if self.reach.mapped != mapped {
            self.reach.mapped = mapped;
            self.set_targets(now);
            self.publish_reach(now);
            self.pump(now);
        }
    }

    /// The networks around this machine are others than before; it may be in none, or have moved to another.
    pub(in crate::driver) fn on_network(
        &mut self,
        present: Option<NetworkPrint>,
        local_ips: impl IntoIterator<Item = IpAddr>,
        now: Instant,
    ) {
        let known = self.reach.surroundings.network();
        let moved = self.reach.surroundings.look(present);
        self.tell_sockets();
        let mut changes = Vec::new();
        if moved {
            changes.extend(self.reach.observations.network_changed(now));
            self.reach.reachability.network_changed();
        }
        changes.extend(self.reach.observations.set_local_ips(local_ips, now));
        self.on_changes(changes, now);
        if known != self.reach.surroundings.network() {
            // What was seen here at other times holds.
            self.publish_reach(now);
        }
        if moved {
            info!("this machine is in another network");
            self.reach.punches.network_changed(now);
            self.reach.reservations.network_changed(now);
            self.reach.beacons.network_changed(now);
            let udp = self.reach.verdicts.udp(self.reach.surroundings.network(), now);
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
    pub(in crate::driver) fn on_mains(&mut self, gate: &Gate, before: &Gate, now: Instant) {
        let me = self.shared.me;
        for main in gate.mains.iter().filter(|main| **main != me) {
            self.learn_relay(*main, now);
            if matches!(self.shared.link(main), Some(Link::Session(_))) {
                self.reach.reachability.main_connected(*main, now);
            }
        }
        // What they said before they were mains counts now.
        for main in gate.mains.difference(&before.mains) {
            for id in self.connections.of(main) {
                if let Some(Link::Session(session)) = self.links.get(&id).cloned() {
                    self.on_word(&session, now);
                }
            }
        }
        for gone in before.mains.difference(&gate.mains) {
            self.reach.relays_dialed.remove(gone);
            self.reach.reachability.main_lost(gone);
            self.forget_relay(*gone, now);
        }
        // Whoever joins has somebody to ask; whoever founds has nobody.
        let alone = gate.cluster.is_some() && gate.mains.iter().all(|main| *main == me);
        self.reach.reachability.set_alone(alone);
        self.pump(now);
    }

    pub(super) fn on_standing(&mut self, standing: Standing, now: Instant) {
        self.reach.standing = Some(standing);
        self.learn_relays(now);
        if !standing.provisional {
            info!(role = %standing.role, "how this node can be reached is known");
        }
        self.swarm
            .behaviour_mut()
            .relaying
            .serve(standing.role == Role::Main);
        let confirming = &mut self.swarm.behaviour_mut().confirming;
        confirming.serve(standing.role == Role::Main);
        self.publish_reach(now);
    }

    /// A main may serve this node as a relay: a home any, since it is dialed by everybody through it. A main is so
    /// dialed only by those who do not get to itself, for whom the relay has to have what it has not.
    pub(super) fn learn_relay(&mut self, main: PeerId, now: Instant) {
        let is_main = self
            .reach
            .standing
            .is_some_and(|standing| standing.role == Role::Main);
        let theirs = || ways_in(&self.shared.book().addresses(&main));
        if !is_main || theirs().iter().any(|way| !self.reach.ways_in.contains(way)) {
            let link = self.shared.link(&main);
            self.reach
                .reservations
                .learn(main, link.as_ref().and_then(Link::rtt));
        } else {
            self.forget_relay(main, now);
        }
    }

    fn learn_relays(&mut self, now: Instant) {
        let (me, mains) = (self.shared.me, self.known_gate.mains.clone());
        for main in mains.iter().copied().filter(|main| *main != me) {
            self.learn_relay(main, now);
        }
    }

    fn forget_relay(&mut self, main: PeerId, now: Instant) {
        self.reach.reservations.forget(&main);
        self.reserve(ReservationAction::Release(main), now);
        self.forget_asked(main, now);
    }

    /// Tells everybody who asks where this node can be reached.
    pub(in crate::driver) fn publish_reach(&mut self, now: Instant) {
        let Some(standing) = self.reach.standing else {
            return;
        };
        let listen = self.shared.listen();
        // Who is on this machine only is reached by all who are.
        let wanted = if standing.role == Role::Main && listen.iter().all(is_loopback) {
            0
        } else {
            Reservations::WANTED
        };
        self.reach.reservations.set_wanted(wanted);
        let mut external: Vec<_> = self.reach.reachability.open().map(to_multiaddr).collect();
        if standing.role == Role::Main && external.is_empty() {
            // Pinned, or nobody to ask: what it listens on, and where its router and others see that.
            external.clone_from(&listen);
            for seen in self
                .reach
                .mapped
                .into_iter()
                .chain(self.reach.observations.external())
            {
                let address = to_multiaddr(seen);
                if !external.contains(&address) {
                    external.push(address);
                }
            }
        }
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
        // Whether anybody can come in over WebSocket, only those find out who are to.
        let web = listen
            .iter()
            .filter(|address| Rung::of(address) == Some(Rung::Fallback));
        let ways = ways_in(external.iter().chain(web));
        if self.reach.ways_in != ways {
            self.reach.ways_in = ways;
            self.learn_relays(now);
        }
        let mut advertised = external;
        let circuits = self
            .reach
            .circuits
            .values()
            .filter_map(|circuit| circuit.address.clone());
        advertised.extend(circuits.collect::<Vec<_>>());
        for address in listen {
            if !advertised.contains(&address) {
                advertised.push(address);
            }
        }
        advertised.truncate(ADVERTISED_MAX);
        self.reach.advertised.clone_from(&advertised);
        let reservations = self.reach.reservations.held();
        let reservations = reservations
            .map(|held| (held.relay, held.expires_at.saturating_duration_since(now)))
            .collect();
        self.publish_candidates(now);
        let nat = self.reach.nat(Family::V4, now);
        self.shared.set_reach(ReachStatus {
            standing,
            nat,
            nat_v6: self.reach.nat(Family::V6, now),
            observed: self.reach.observations.external(),
            reservations,
            advertised,
        });
        debug!(mapping = ?nat.mapping, filtering = ?nat.filtering, "reach published");
    }
}

/// The ways that lead in by these addresses, other than through a relay.
fn ways_in<'a>(addresses: impl IntoIterator<Item = &'a Multiaddr>) -> BTreeSet<WayIn> {
    let ways = addresses
        .into_iter()
        .filter_map(|address| match Rung::of(address)? {
            Rung::Direct => Some(WayIn::Quic(Family::of(ip_of(address)?))),
            Rung::Fallback => Some(WayIn::Web),
            Rung::Relayed => None,
        });
    ways.collect()
}

/// What somebody has to have to get to a node. Not everybody has both versions of IP, and not everybody has UDP.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum WayIn {
    Quic(Family),
    /// WebSocket over TLS, whatever is below.
    Web,
}

/// As many as a member may have in the roster.
const ADVERTISED_MAX: usize = 16;
