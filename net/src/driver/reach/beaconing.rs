//! Being seen over both address families: feeds the core that keeps this node in sight of mains, and does what it says;
//! and answers those whom this node keeps in sight.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use tracing::trace;

use crate::driver::Driver;
use crate::driver::addresses::socket_address;
use crate::driver::links::Link;
use crate::driver::notes::BEACON;
use crate::driver::quic::Stray;
use crate::{BeaconAction, Beacons, Family, Observation, Rung, Scope, WitnessMessage, encode};
use lapwing_base::PeerId;

impl Driver {
    /// Chooses who is to see this node over the family that no session uses: the relays that vouch for it before others,
    /// of whom each node has its own.
    pub(super) fn set_beacons(&mut self, now: Instant) {
        let held: Vec<_> = self.reach.reservations.held().map(|held| held.relay).collect();
        let mut mains: Vec<_> = self
            .known_gate
            .mains
            .iter()
            .filter_map(|main| Some((*main, self.beacon_to(main)?)))
            .collect();
        mains.sort_by_cached_key(|(main, _)| (!held.contains(main), self.reach.seed_towards(main)));
        mains.truncate(Beacons::MAINS_MAX);
        for (_, to) in &mains {
            self.listen_towards(*to);
        }
        self.reach.beacons.set_mains(mains, now);
    }

    /// Where a main is sent beacons, if there is a session with it, over one family only, and it can be reached over the
    /// other one too.
    fn beacon_to(&self, main: &PeerId) -> Option<SocketAddr> {
        let mut families =
            self.connections
                .of(main)
                .into_iter()
                .filter_map(|id| match self.links.get(&id)? {
                    Link::Session(session) => Some(Family::of(session.remote().ip())),
                    Link::Lane(_) => None,
                });
        let family = families.next()?;
        if families.any(|other| other != family) {
            return None;
        }
        let addresses = self.shared.book().addresses(main);
        addresses
            .iter()
            .filter(|address| Rung::of(address) == Some(Rung::Direct))
            .filter_map(socket_address)
            .find(|to| Family::of(to.ip()) == family.other() && Scope::of(to.ip()).is_outside())
    }

    pub(super) fn beacon(&mut self, action: BeaconAction, now: Instant) {
        match action {
            BeaconAction::Announce { main, token } => self.tell(main, BEACON, encode(&token)),
            BeaconAction::Send { to, datagram } => {
                let Some(socket) = self.socket_towards(to) else {
                    return;
                };
                self.reach.reachability.sent(to, now);
                if let Err(error) = self.quic.send_probe(socket, to, &datagram, None) {
                    trace!(%to, %error, "a beacon was not sent");
                }
            }
        }
    }

    /// A datagram may be a beacon, or an answer to one of ours; says whether it was.
    pub(super) fn on_beacon(&mut self, stray: &Stray, now: Instant) -> bool {
        let Stray {
            socket,
            from,
            payload,
        } = stray;
        if let Some(told) = self.reach.beacons.on_datagram(*from, payload, now) {
            let said = Observation {
                socket: *socket,
                observer: told.main,
                observed_at: told.observed_at,
                seen: told.seen,
            };
            self.on_observed(said, now);
            return true;
        }
        let answer = self.shared.lookouts().on_datagram(*from, payload, now);
        let Some(answer) = answer else {
            return false;
        };
        if let Err(error) = self.quic.send_probe(*socket, *from, &answer, None) {
            trace!(to = %from, %error, "a beacon was not answered");
        }
        true
    }

    /// Where a peer is seen that says something of addresses: of their family, if it is seen there.
    pub(super) fn seen_for(&self, peer: &PeerId, message: &WitnessMessage) -> Option<IpAddr> {
        let seen = self.shared.seen_at(peer);
        let named = match message {
            WitnessMessage::Ask { target, .. } => Some(Family::of(target.ip())),
            WitnessMessage::Forward { .. } | WitnessMessage::Answer { .. } => None,
        };
        let of_family = seen.iter().find(|ip| Some(Family::of(**ip)) == named);
        of_family.or_else(|| seen.first()).copied()
    }
}
