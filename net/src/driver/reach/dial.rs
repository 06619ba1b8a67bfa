//! Dials of the swarm that are under way, and what becomes of them.

use std::net::SocketAddr;
use std::time::Instant;

use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::{ConnectionId, DialError};
use tracing::trace;

use crate::driver::addresses::{relay_of, socket_address, without_peer};
use crate::driver::quic::to_multiaddr;
use crate::driver::{Driver, explain};
use crate::{CandidateKind, CandidateRow, CandidateSource, DialId, Rung, SocketId, Udp};
use lapwing_base::{Multiaddr, PeerId};

pub(super) enum Dial {
    Ladder {
        peer: PeerId,
        id: DialId,
        address: Multiaddr,
    },
    Punch(PeerId),
    /// While NATs are being opened.
    Early {
        peer: PeerId,
        remote: SocketAddr,
    },
    /// To a peer that is no node of ours.
    Foreign,
}

impl Driver {
    pub(super) fn dial(&mut self, peer: PeerId, id: DialId, address: Multiaddr, now: Instant) {
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
            self.listen_towards(to);
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

    pub(super) fn dial_found(&mut self, peer: PeerId, socket: SocketId, remote: SocketAddr, now: Instant) {
        self.dial_from(socket, remote, peer, Dial::Punch(peer), now);
    }

    /// Dials a peer where it can be found once the NATs are open, which they are about to be.
    pub(super) fn dial_early(&mut self, peer: PeerId, socket: SocketId, remote: SocketAddr, now: Instant) {
        let (kind, source) = (CandidateKind::Reflexive, CandidateSource::Peer);
        let address = to_multiaddr(remote);
        self.reach.candidates.trying(peer, address, kind, source, now);
        self.reach.reachability.sent(remote, now);
        self.dial_from(socket, remote, peer, Dial::Early { peer, remote }, now);
    }

    fn dial_from(&mut self, socket: SocketId, remote: SocketAddr, peer: PeerId, dial: Dial, now: Instant) {
        trace!(%peer, %remote, "dialing from the socket that the peer is to see");
        self.quic.dial_from(socket, remote);
        let options = DialOpts::peer_id(peer)
            .condition(PeerCondition::Always)
            .addresses(vec![to_multiaddr(remote)])
            .build();
        let connection = options.connection_id();
        self.reach.dials.insert(connection, dial);
        if let Err(error) = self.swarm.dial(options) {
            self.dial_failed(connection, peer, &error, now);
            self.drive(peer, now);
        }
    }

    /// A dial of the swarm has come to nothing.
    pub(in crate::driver) fn on_dial_failure(
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
            Some(Dial::Early { peer, remote }) => {
                // The probes may yet find the path.
                self.reach
                    .candidates
                    .failed(&peer, &to_multiaddr(remote), &why, now);
            }
            Some(Dial::Foreign) | None => (),
        }
    }

    /// What became of each address of a peer since something stood last, in one line; and what is missing where UDP does
    /// not get through.
    pub(in crate::driver) fn dial_failures(&self, peer: &PeerId, now: Instant) -> Option<String> {
        let failures = &self.reach.climbs.get(peer)?.failures;
        let shown: Vec<_> = failures.values().take(FAILURES_SHOWN).cloned().collect();
        let more = failures.len() - shown.len();
        let more = if more > 0 {
            format!(" and {more} more")
        } else {
            String::new()
        };
        let udp = self.reach.verdicts.udp(self.reach.surroundings.network(), now);
        let only_udp = |address: &Multiaddr| Rung::of(address) == Some(Rung::Direct);
        let hint = if udp != Udp::Open && self.addresses_of(peer).iter().all(only_udp) {
            NO_WAY_AROUND
        } else {
            ""
        };
        (!shown.is_empty()).then(|| format!("{}{more}{hint}", shown.join("; ")))
    }

    /// Every address that was tried for a peer.
    pub(in crate::driver) fn candidates(&self, peer: &PeerId, now: Instant) -> Vec<CandidateRow> {
        self.reach.candidates.rows(peer, now)
    }
}

const FAILURES_SHOWN: usize = 3;

const NO_WAY_AROUND: &str = "; if UDP is blocked on the way, nothing leads around that: the peer listens for no WebSocket, \
                             and no relay is known through which it can be reached";
