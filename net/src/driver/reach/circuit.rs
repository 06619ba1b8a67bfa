//! Reservations at relays, and the circuits over which they let others come.

use std::time::Instant;

use libp2p::core::transport::ListenerId;
use libp2p::multiaddr::Protocol;
use libp2p::relay;
use libp2p::swarm::ConnectionId;
use tracing::{debug, info, trace};

use crate::driver::Driver;
use crate::driver::addresses::{relay_of, without_peer};
use crate::driver::quic::from_multiaddr;
use crate::driver::relaying::RESERVATION_LIFETIME;
use crate::{ReservationAction, ReservationRefusal, Unwelcome};
use lapwing_base::{Multiaddr, PeerId, chain};

use super::dial::Dial;

pub(super) struct Circuit {
    pub(super) relay: PeerId,
    pub(super) address: Option<Multiaddr>,
    pub(super) granted: bool,
    /// To be let go as soon as it is granted: libp2p's client panics when it is before (libp2p-relay 0.22,
    /// `ReservationReqAccepted`).
    pub(super) unwanted: bool,
}

impl Driver {
    pub(super) fn reserve(&mut self, action: ReservationAction, now: Instant) {
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
    pub(in crate::driver) fn on_dialed(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        address: &Multiaddr,
        now: Instant,
    ) {
        if matches!(self.reach.dials.get(&id), Some(Dial::Foreign)) {
            self.reach.dials.remove(&id);
        }
        if let Some((remote, _)) = from_multiaddr(address) {
            self.reach.foreign_dialed.insert(id, remote);
        }
        if !self.reach.asked.contains(&peer) || relay_of(address).is_some() {
            return;
        }
        // One for each relay that is ever asked: as many as there are mains.
        self.reach.relays_dialed.insert(peer, without_peer(address));
        if let Some(through) = self.circuit_through(&peer) {
            self.reserve_through(peer, through, now);
        }
    }

    /// A connection has ended, whoever dialed it.
    pub(in crate::driver) fn on_dialed_closed(&mut self, id: ConnectionId) {
        self.reach.foreign_dialed.remove(&id);
    }

    /// No reservation is wanted of a relay any more, so that it need not be reached.
    pub(super) fn forget_asked(&mut self, relay: PeerId, now: Instant) {
        if self.reach.asked.remove(&relay) {
            self.want_no_more(relay, now);
        }
    }

    /// A relay has given us an address.
    pub(in crate::driver) fn on_circuit_address(
        &mut self,
        id: ListenerId,
        address: Multiaddr,
        now: Instant,
    ) -> bool {
        let Some(circuit) = self.reach.circuits.get_mut(&id) else {
            return false;
        };
        // A relay that others relay for names those ways too, which nobody can use a second time.
        let ways = address.iter().filter(|part| *part == Protocol::P2pCircuit);
        // Two transports may reach a relay; one address is enough to come back by.
        if ways.count() == 1 && circuit.address.is_none() {
            circuit.address = Some(without_peer(&address));
            self.publish_reach(now);
        }
        true
    }

    /// A reservation has come to nothing or to its end.
    pub(in crate::driver) fn on_circuit_closed(
        &mut self,
        id: ListenerId,
        why: Option<&std::io::Error>,
        now: Instant,
    ) -> bool {
        let Some(circuit) = self.reach.circuits.remove(&id) else {
            return false;
        };
        let why = why.map_or_else(|| "closed".to_owned(), |error| chain(error));
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

    pub(in crate::driver) fn on_relayed(&mut self, event: &relay::client::Event, now: Instant) {
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
            self.set_beacons(now);
            self.publish_reach(now);
            self.pump(now);
        }
    }

    /// The relay service has refused somebody, or done something.
    pub(in crate::driver) fn on_relaying(&self, event: &relay::Event) {
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
}
