//! Opening NATs: feeds the core that agrees on attempts, and does what it says.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{debug, info, trace};

use crate::driver::addresses::{relay_of, socket_address};
use crate::driver::links::Link;
use crate::driver::quic::Stray;
use crate::driver::{Command, Driver, notes};
use crate::{Family, Here, Presence, Probe, PunchAction, PunchError, RelayedBecause, Rung, SocketId, There};
use lapwing_base::PeerId;

use super::dial::Dial;

impl Driver {
    pub(super) fn punch(&mut self, peer: PeerId, now: Instant) {
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
        let here = self.here_for(&peer, now);
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

    pub(super) fn punch_action(&mut self, action: PunchAction, now: Instant) {
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
            PunchAction::Dial { peer, socket, remote } => self.dial_early(peer, socket, remote, now),
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
                let dialed = self.reach.dials.values().any(|dial| match dial {
                    Dial::Early { peer: of, remote } => (*of, *remote) == (peer, chosen.remote),
                    Dial::Ladder { .. } | Dial::Punch(_) | Dial::Foreign => false,
                });
                if !chosen.dials {
                    let awaited = Awaited::Handshake {
                        until: now + HANDSHAKE_AWAITED,
                    };
                    self.reach.awaited.insert(peer, awaited);
                } else if dialed {
                    // Its answer comes with that to the probe, or the dial was too early for the peer's NAT.
                    let awaited = Awaited::Answer {
                        until: now + ANSWER_AWAITED,
                        socket: chosen.socket,
                        remote: chosen.remote,
                    };
                    self.reach.awaited.insert(peer, awaited);
                } else {
                    self.dial_found(peer, chosen.socket, chosen.remote, now);
                }
            }
            PunchAction::Failed {
                peer,
                why,
                retry_at,
                probed,
            } => {
                debug!(%peer, why = why.code(), "no direct path was found");
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

    /// The path that was found carries no connection.
    pub(super) fn punch_failed(&mut self, peer: PeerId, now: Instant) {
        self.reach.awaited.remove(&peer);
        let retry_at = self.reach.punches.failed(peer, now);
        if let Some(climb) = self.reach.climbs.get_mut(&peer) {
            climb
                .ladder
                .punch_failed(RelayedBecause::HandshakeFailed, retry_at);
        }
    }

    /// Where this node is, as a peer is told.
    pub(super) fn here_for(&self, peer: &PeerId, now: Instant) -> Here {
        let mut here = self.here(now);
        here.presence.to_relay = self.to_relay(peer);
        here
    }

    /// The round trip to the relay of the path on which a peer stands.
    fn to_relay(&self, peer: &PeerId) -> Option<Duration> {
        self.shared.link(&self.relay_towards(peer)?)?.rtt()
    }

    pub(super) fn here(&self, now: Instant) -> Here {
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
                to_relay: None,
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

    pub(super) fn there(&self, peer: &PeerId) -> There {
        let mut seen_at = self.reach.seen_at.of(peer).to_vec();
        let link = self.shared.link(peer);
        seen_at.extend(link.as_ref().and_then(Link::remote_ip));
        There {
            seen_at,
            awaited: self.reach.seen_at.is_awaited(peer),
            // A circuit is seldom old enough to have been measured; what is known is our half of it.
            rtt: link
                .as_ref()
                .and_then(Link::rtt)
                .or_else(|| self.to_relay(peer).map(|rtt| rtt * 2)),
        }
    }

    /// A datagram that is not QUIC has come.
    pub(in crate::driver) fn on_stray(&mut self, stray: &Stray, now: Instant) {
        let Stray {
            socket,
            from,
            payload,
        } = stray;
        if !Probe::is_ours(payload) {
            return;
        }
        let taken = self.reach.punches.on_datagram(*socket, *from, payload, now)
            || self.reach.reachability.on_datagram(*from, payload, now)
            || self.on_beacon(stray, now);
        if taken {
            self.pump(now);
        } else {
            trace!(%from, "a probe that nobody waits for");
        }
    }

    pub(in crate::driver) fn on_seen_at(&mut self, peer: PeerId, seen: Vec<IpAddr>, now: Instant) {
        trace!(%peer, ?seen, "where the relay sees the peer");
        self.reach.punches.located(peer, &seen, now);
        self.reach.seen_at.answered(peer, seen, now);
        if let Some(climb) = self.reach.climbs.get_mut(&peer)
            && std::mem::take(&mut climb.asking)
        {
            self.punch(peer, now);
            self.drive(peer, now);
            self.pump(now);
        }
    }

    /// Asks a relay where it sees a peer, unless that is known.
    pub(super) fn ask_where(&mut self, relay: PeerId, peer: PeerId, now: Instant) {
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
}

/// How long a handshake may take on a path that was found.
const HANDSHAKE_AWAITED: Duration = Duration::from_secs(4);

/// How much later than the answer to a probe the one to a handshake may come that was begun at the same time: the peer
/// looks at certificates and signs.
const ANSWER_AWAITED: Duration = Duration::from_millis(50);

/// What is waited for, after a path was found.
#[derive(Clone, Copy, Debug)]
pub(super) enum Awaited {
    /// The peer's handshake, since it dials.
    Handshake { until: Instant },
    /// The answer to a handshake that was begun before it was known that it gets through; then it is begun anew.
    Answer {
        until: Instant,
        socket: SocketId,
        remote: SocketAddr,
    },
}

impl Awaited {
    pub(super) const fn until(&self) -> Instant {
        match self {
            Self::Handshake { until } | Self::Answer { until, .. } => *until,
        }
    }
}
