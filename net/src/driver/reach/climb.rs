//! The way up to one peer: feeds its ladder, and does what it says.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Instant;

use libp2p::multiaddr::Protocol;
use tracing::{debug, info};

use crate::driver::addresses::{ip_of, relay_of, without_peer};
use crate::driver::links::Link;
use crate::driver::standing::RETIRE_MAX;
use crate::driver::{Driver, now};
use crate::{Dialed, Family, Ladder, LadderAction, RelayedBecause, ReservationAction, Rung, Scope, Udp};
use lapwing_base::{Multiaddr, PeerId};

use super::dial::Dial;

/// The way to one peer.
pub(super) struct Climb {
    pub(super) ladder: Ladder,
    pub(super) due_at: Option<Instant>,
    /// What came of each address since something stood last.
    pub(super) failures: BTreeMap<Multiaddr, String>,
    /// A punch waits for the relay to say where the peer is.
    pub(super) asking: bool,
    /// No address of a main answers, so that the ways around are tried too.
    pub(super) around: bool,
}

impl Driver {
    /// Somebody wants a link to a peer.
    pub(in crate::driver) fn want(&mut self, peer: PeerId, now: Instant) {
        self.climb_to(peer, now).ladder.want(true, now);
        self.drive(peer, now);
    }

    /// The way to a peer, which is begun when there is none, with what is known of where the peer is.
    fn climb_to(&mut self, peer: PeerId, now: Instant) -> &mut Climb {
        let addresses = self.addresses_of(&peer);
        let seed = self.reach.seed_towards(&peer);
        let udp = self.reach.verdicts.udp(self.reach.surroundings.network(), now);
        let climb = self.reach.climbs.entry(peer).or_insert_with(|| Climb {
            ladder: Ladder::new(seed),
            due_at: None,
            failures: BTreeMap::new(),
            asking: false,
            around: false,
        });
        climb.ladder.set_udp(udp);
        climb.ladder.set_addresses(addresses, now);
        climb
    }

    /// Somebody who has waited for a link to a peer does so no longer: without anybody else it is dialed no more.
    pub(in crate::driver) fn want_no_more(&mut self, peer: PeerId, now: Instant) {
        let is_waited_for = self.pending.contains_key(&peer) || self.reach.asked.contains(&peer);
        if !is_waited_for && self.connections.count(&peer) == 0 {
            self.unwanted(peer, now);
        }
    }

    /// Nobody waits for a link to a peer, and none stands.
    pub(in crate::driver) fn unwanted(&mut self, peer: PeerId, now: Instant) {
        if let Some(climb) = self.reach.climbs.get_mut(&peer) {
            climb.ladder.want(false, now);
            self.drive(peer, now);
        }
    }

    /// Whether there is, or just was, a reason to reach a peer.
    pub(in crate::driver) fn is_climbed_to(&self, peer: &PeerId) -> bool {
        self.reach.climbs.contains_key(peer)
    }

    /// Something new is known of where a peer is.
    pub(in crate::driver) fn relearn(&mut self, peer: PeerId, now: Instant) {
        let addresses = self.addresses_of(&peer);
        if let Some(climb) = self.reach.climbs.get_mut(&peer) {
            climb.ladder.set_addresses(addresses, now);
            self.drive(peer, now);
        }
        if self.known_gate.mains.contains(&peer) && peer != self.shared.me {
            self.learn_relay(peer, now);
            self.set_beacons(now);
            self.pump(now);
        }
    }

    /// Where a peer may be: what is known of it, and the way through each of our relays that it may use too.
    pub(in crate::driver) fn addresses_of(&self, peer: &PeerId) -> Vec<Multiaddr> {
        let mut addresses = self.shared.book().addresses(peer);
        let gate = self.gate.borrow();
        let udp = self.reach.verdicts.udp(self.reach.surroundings.network(), now());
        let in_vain = self.reach.climbs.get(peer).is_some_and(|climb| climb.around);
        let around = in_vain || !addresses.iter().any(|address| self.gets_to(address, udp));
        if gate.mains.contains(peer) && !around {
            // Whoever gets to it need not burden those that relay for it.
            addresses.retain(|address| relay_of(address).is_none());
            return addresses;
        }
        for address in &mut addresses {
            if let Some(relay) = relay_of(address)
                && !self.gets_to(&first_hop(address), udp)
                && let Some(through) = self.circuit_over(&relay, udp)
            {
                *address = through;
            }
        }
        if gate.mains.contains(peer) {
            // It says itself who relays for it; and should it be dead, all others are not to burden its relays for it.
            return addresses;
        }
        let through = gate
            .mains
            .iter()
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
    pub(super) fn circuit_through(&self, relay: &PeerId) -> Option<Multiaddr> {
        let address = match self.shared.link(relay) {
            // Nor is one that has come to us over TCP reached by others at the port that it came from.
            Some(Link::Lane(link)) if link.rung == Rung::Relayed || link.dialed == Dialed::ByThem => {
                return None;
            }
            Some(link) => link.address(),
            None if self.swarm.is_connected(relay) => self.reach.relays_dialed.get(relay)?.clone(),
            None => return None,
        };
        Some(address.with(Protocol::P2p(*relay)).with(Protocol::P2pCircuit))
    }

    /// Whether packets may get from this machine to an address without a relay: it has that version of IP, and UDP if need
    /// be.
    fn gets_to(&self, address: &Multiaddr, udp: Udp) -> bool {
        let carries = match Rung::of(address) {
            Some(Rung::Direct) => udp != Udp::Blocked,
            Some(Rung::Fallback) => true,
            Some(Rung::Relayed) | None => false,
        };
        let is_on = |ip: IpAddr| ip.is_loopback() || self.is_on(Family::of(ip));
        carries && ip_of(address).is_none_or(is_on)
    }

    /// The way through a relay: as we are connected to it, or at an address of its own that packets may get to.
    fn circuit_over(&self, relay: &PeerId, udp: Udp) -> Option<Multiaddr> {
        let dialed = || {
            let addresses = self.shared.book().addresses(relay);
            let address = addresses.iter().find(|address| self.gets_to(address, udp))?;
            let address = without_peer(address).with(Protocol::P2p(*relay));
            Some(address.with(Protocol::P2pCircuit))
        };
        self.circuit_through(relay).or_else(dialed)
    }

    /// No address of a peer answers. A main of which only direct ones were tried, as they are by all who have UDP, may be
    /// reached through a relay; says whether that is tried now.
    fn go_around(&mut self, peer: PeerId, now: Instant) -> bool {
        let is_main = self.known_gate.mains.contains(&peer);
        match self.reach.climbs.get_mut(&peer) {
            Some(climb) if is_main && !climb.around => climb.around = true,
            Some(_) | None => return false,
        }
        let addresses = self.addresses_of(&peer);
        let any = addresses.iter().any(|address| relay_of(address).is_some());
        if let Some(climb) = self.reach.climbs.get_mut(&peer) {
            climb.ladder.set_addresses(addresses, now);
        }
        any
    }

    /// Does what one ladder says.
    pub(super) fn drive(&mut self, peer: PeerId, now: Instant) {
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
                    Dial::Ladder { .. } | Dial::Punch(_) | Dial::Early { .. } | Dial::Foreign => None,
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
                self.let_go(now);
            }
            LadderAction::SawBlocked => self.saw(peer, Udp::Blocked, now),
            LadderAction::Unreachable { retry_at } => {
                if !self.go_around(peer, now) {
                    self.on_unreachable(peer, retry_at, now);
                }
            }
        }
    }

    fn saw(&mut self, peer: PeerId, udp: Udp, now: Instant) {
        let network = self.reach.surroundings.network();
        let before = self.reach.verdicts.udp(network, now);
        match udp {
            Udp::Open => self.reach.verdicts.open(network, now),
            Udp::Blocked => self.reach.verdicts.fallback_only(network, peer, now),
            Udp::Unknown => (),
        }
        let after = self.reach.verdicts.udp(network, now);
        if after != before {
            info!(udp = %after, "what is known of this network has changed");
            self.reach.keep_verdicts(now);
            let peers: Vec<_> = self.reach.climbs.keys().copied().collect();
            for peer in &peers {
                if let Some(climb) = self.reach.climbs.get_mut(peer) {
                    climb.ladder.set_udp(after);
                }
            }
            for other in peers {
                let addresses = self.addresses_of(&other);
                if let Some(climb) = self.reach.climbs.get_mut(&other) {
                    climb.ladder.set_addresses(addresses, now);
                }
                // The one whose ladder has said so is being driven.
                if other != peer {
                    self.drive(other, now);
                }
            }
            self.publish_reach(now);
        }
    }

    /// A link stands.
    pub(in crate::driver) fn on_path(&mut self, link: &Link, address: &Multiaddr, now: Instant) {
        let (peer, rung) = (link.peer(), link.rung());
        let dial = self.reach.dials.iter().find_map(|(connection, dial)| match dial {
            Dial::Ladder {
                peer: of,
                id,
                address: to,
            } if *of == peer && without_peer(to) == *address => Some((*connection, *id, to.clone())),
            Dial::Ladder { .. } | Dial::Punch(_) | Dial::Early { .. } | Dial::Foreign => None,
        });
        if let Some((connection, _, to)) = &dial {
            self.reach.dials.remove(connection);
            self.reach.candidates.succeeded(&peer, to, now);
        }
        if rung == Rung::Direct {
            self.reach.dials.retain(
                |_, dial| !matches!(dial, Dial::Punch(of) | Dial::Early { peer: of, .. } if *of == peer),
            );
            self.reach.candidates.succeeded(&peer, address, now);
            if let Some(climb) = self.reach.climbs.get_mut(&peer) {
                climb.around = false;
            }
            self.reach.awaited.remove(&peer);
            self.reach.punches.connected(&peer, now);
            if let Link::Session(session) = link {
                let remote = session.remote();
                self.reach.reachability.sent(remote, now);
                // A neighbour says nothing of what the firewall lets out.
                if Scope::of(remote.ip()).is_outside() {
                    self.saw(peer, Udp::Open, now);
                }
            }
        }
        if let Link::Lane(lane) = link
            && let Some(relay) = relay_of(&lane.address)
        {
            self.ask_where(relay, peer, now);
        }
        let is_main = self.gate.borrow().mains.contains(&peer);
        if is_main {
            self.learn_relay(peer, now);
            if rung == Rung::Direct {
                self.reach.reachability.main_connected(peer, now);
                self.set_beacons(now);
            }
        }
        // Links that others have made climb too: what is relayed is worth improving from either side.
        let begins = !self.reach.climbs.contains_key(&peer) && self.is_member(&peer) && rung != Rung::Direct;
        if begins {
            self.climb_to(peer, now);
        }
        if let Some(climb) = self.reach.climbs.get_mut(&peer) {
            climb.failures.clear();
            climb.ladder.connected(rung, dial.map(|(_, id, _)| id), now);
            if begins {
                // After it is known what stands, so that this is not dialed once more.
                climb.ladder.want(true, now);
            }
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
    pub(in crate::driver) fn on_path_lost(&mut self, peer: PeerId, rung: Rung, now: Instant) {
        let last = self.connections.count(&peer) == 0;
        if last {
            self.shared.lookouts().forget(&peer);
            self.reach.punches.disconnected(&peer);
            self.reach.seen_at.forget(&peer);
        }
        if rung == Rung::Direct {
            self.reach.reachability.main_lost(&peer);
            self.set_beacons(now);
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
}

/// Where the relay is that an address leads through.
fn first_hop(address: &Multiaddr) -> Multiaddr {
    let is_hop = |part: &Protocol<'_>| !matches!(part, Protocol::P2p(_) | Protocol::P2pCircuit);
    address.iter().take_while(is_hop).collect()
}

/// Relays through which a peer is tried that has not said where it holds reservations.
const GUESSED_RELAYS_MAX: usize = 4;
