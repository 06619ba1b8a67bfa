//! The main's side of a reachability check: sends one datagram to an address of whoever asks, from a socket or a
//! main that the asker has never sent to. Draws no conclusions; those are [`crate::Reachability`]'s.
//!
//! So that this is no reflector: the address must have the IP address that the asker is connected from, the
//! datagram is shorter than the question, and askers, mains and the whole node are held to rates.

use crate::{DecodeError, Family, Probe, ProbeKey, ProbeKind, Scope, Side, Token, decode, encode};
use lapwing_base::PeerId;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

/// What askers and witnesses say to one another over their connections.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub enum WitnessMessage {
    /// Asks a main to have a datagram sent.
    Ask {
        /// Seals the datagram; drawn by the asker.
        token: Token,
        /// Where to: an address of the asker.
        target: SocketAddr,
        /// Where from.
        stance: Stance,
        /// Whom the asker has sent to, which would prove less; at most [`WitnessMessage::AVOID_MAX`].
        avoid: Vec<IpAddr>,
    },
    /// Passes a question on to another main, which sends.
    Forward {
        /// As in the question.
        token: Token,
        /// As in the question; the main that was asked has compared it with the asker's own address.
        target: SocketAddr,
    },
    /// Tells the asker what became of it.
    Answer {
        /// As in the question.
        token: Token,
        /// Whether a datagram is under way.
        sent: Result<(), WitnessRefusal>,
    },
}

/// Where a witness sends from.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, Serialize, Deserialize)]
pub enum Stance {
    /// From the IP address of the main that is asked, and another port.
    OtherPort,
    /// From another main.
    ThirdParty,
}

/// Why a main did not have a datagram sent.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize, thiserror::Error)]
pub enum WitnessRefusal {
    /// The asker is connected from another IP address than the one it asks about.
    #[error("it sees this node at another address than the one to check")]
    NotYours,
    /// Too much was asked; try again later or elsewhere.
    #[error("too much was asked of it; another main may help")]
    Busy,
    /// It knows no other main that the asker has not sent to.
    #[error("it knows no third party to ask")]
    NoThirdParty,
}

impl WitnessMessage {
    /// Most addresses to avoid; a home sends to fewer mains.
    pub const AVOID_MAX: usize = 16;
    /// Longest message in bytes: the addresses to avoid at 18 bytes, and as much again.
    pub const SIZE_MAX: usize = 1024;

    /// Its bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        encode(self)
    }

    /// The message that these bytes hold.
    ///
    /// # Errors
    /// When they hold none, or one beyond the bounds.
    pub fn parse(bytes: &[u8]) -> Result<Self, DecodeError> {
        if bytes.len() > Self::SIZE_MAX {
            let bytes = bytes.len() - Self::SIZE_MAX;
            return Err(DecodeError::Trailing { bytes });
        }
        let mut message = decode(bytes)?;
        if let Self::Ask { avoid, .. } = &mut message {
            avoid.truncate(Self::AVOID_MAX);
        }
        Ok(message)
    }
}

/// What a witness does.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum WitnessAction {
    /// Say something to a connected peer.
    Tell {
        /// To whom.
        peer: PeerId,
        /// What.
        message: WitnessMessage,
    },
    /// Send a datagram.
    Send {
        /// From a socket of another port than the one that peers connect to, or from that one.
        from: Stance,
        /// Where to.
        to: SocketAddr,
        /// The datagram.
        datagram: Vec<u8>,
    },
}

/// The main's side of reachability checks.
#[derive(Debug)]
pub struct Witness {
    rng: StdRng,
    /// By who asked: an IP prefix would let one household use up another's share.
    askers: HashMap<PeerId, Allowance>,
    total: Allowance,
    refused: u64,
}

/// A count that drains over time.
#[derive(Clone, Copy, Debug)]
struct Allowance {
    used: f64,
    at: Instant,
}

impl Witness {
    /// A witness whose choices of third parties follow from the seed.
    pub fn new(seed: u64, now: Instant) -> Self {
        Self {
            rng: StdRng::seed_from_u64(seed),
            askers: HashMap::new(),
            total: Allowance { used: 0.0, at: now },
            refused: 0,
        }
    }

    /// A peer whose connection comes from `from_ip` has sent a message; `mains` are the mains that this node is
    /// connected to, with their IP addresses.
    pub fn on_message(
        &mut self,
        peer: PeerId,
        from_ip: IpAddr,
        message: WitnessMessage,
        mains: &[(PeerId, IpAddr)],
        now: Instant,
    ) -> Vec<WitnessAction> {
        match message {
            WitnessMessage::Ask {
                token,
                target,
                stance,
                avoid,
            } => {
                let order = self.ask(peer, from_ip, token, target, stance, &avoid, mains, now);
                let (sent, order) = match order {
                    Ok(order) => (Ok(()), Some(order)),
                    Err(refusal) => {
                        self.refused += 1;
                        (Err(refusal), None)
                    }
                };
                let answer = WitnessAction::Tell {
                    peer,
                    message: WitnessMessage::Answer { token, sent },
                };
                order.into_iter().chain([answer]).collect()
            }
            // Only a main may vouch for somebody else's address.
            WitnessMessage::Forward { token, target }
                if mains.iter().any(|(main, _)| *main == peer)
                    && is_target(target)
                    && self.admit(peer, FORWARDS_BURST, now) =>
            {
                vec![send(Stance::ThirdParty, token, target)]
            }
            WitnessMessage::Forward { .. } => {
                self.refused += 1;
                Vec::new()
            }
            // An answer is for the asker's side.
            WitnessMessage::Answer { .. } => Vec::new(),
        }
    }

    /// Questions refused since the start.
    pub const fn refused(&self) -> u64 {
        self.refused
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "a question's parts, and who asks when among whom"
    )]
    fn ask(
        &mut self,
        peer: PeerId,
        from_ip: IpAddr,
        token: Token,
        target: SocketAddr,
        stance: Stance,
        avoid: &[IpAddr],
        mains: &[(PeerId, IpAddr)],
        now: Instant,
    ) -> Result<WitnessAction, WitnessRefusal> {
        let from_ip = from_ip.to_canonical();
        if target.ip().to_canonical() != from_ip || !is_target(target) {
            return Err(WitnessRefusal::NotYours);
        }
        if !self.admit(peer, ASKS_BURST, now) {
            return Err(WitnessRefusal::Busy);
        }
        if stance == Stance::OtherPort {
            return Ok(send(stance, token, target));
        }
        let third: Vec<_> = mains
            .iter()
            .filter(|(main, ip)| {
                let ip = ip.to_canonical();
                *main != peer
                    && ip != from_ip
                    && !avoid.iter().any(|avoided| avoided.to_canonical() == ip)
                    && Family::of(ip) == Family::of(from_ip)
            })
            .collect();
        if third.is_empty() {
            return Err(WitnessRefusal::NoThirdParty);
        }
        let (third, _) = *third[self.rng.random_range(0..third.len())];
        Ok(WitnessAction::Tell {
            peer: third,
            message: WitnessMessage::Forward { token, target },
        })
    }

    fn admit(&mut self, peer: PeerId, burst: f64, now: Instant) -> bool {
        if self.askers.len() >= ASKERS_MAX && !self.askers.contains_key(&peer) {
            self.askers
                .retain(|_, allowance| allowance.left(PER_PEER_RATE, now) > 0.0);
            if self.askers.len() >= ASKERS_MAX {
                return false;
            }
        }
        let asker = self
            .askers
            .entry(peer)
            .or_insert(Allowance { used: 0.0, at: now });
        asker.take(PER_PEER_RATE, burst, now) && self.total.take(TOTAL_RATE, TOTAL_BURST, now)
    }
}

impl Allowance {
    fn left(&self, rate: f64, now: Instant) -> f64 {
        (self.used - now.saturating_duration_since(self.at).as_secs_f64() * rate).max(0.0)
    }

    fn take(&mut self, rate: f64, burst: f64, now: Instant) -> bool {
        let used = self.left(rate, now);
        let fits = used + 1.0 <= burst;
        *self = Self {
            used: if fits { used + 1.0 } else { used },
            at: now,
        };
        fits
    }
}

fn is_target(target: SocketAddr) -> bool {
    target.port() != 0 && Scope::of(target.ip()) != Scope::Nowhere
}

fn send(from: Stance, token: Token, to: SocketAddr) -> WitnessAction {
    let probe = Probe {
        kind: ProbeKind::Witness,
        from: Side::Answerer,
        transaction: 0,
        seen: None,
    };
    WitnessAction::Send {
        from,
        to,
        datagram: ProbeKey::new(&token).seal(&probe),
    }
}

/// One question in two seconds: a check asks two and is made every few minutes.
const PER_PEER_RATE: f64 = 0.5;
/// Checks of two families and a mapped port, twice.
const ASKS_BURST: f64 = 12.0;
/// A main forwards for many homes; what it sends in all is held by [`TOTAL_RATE`].
const FORWARDS_BURST: f64 = 50.0;
/// 50 datagrams of 51 bytes a second are 20 kbit/s.
const TOTAL_RATE: f64 = 50.0;
/// After a restart of a main its 2,000 homes ask within minutes.
const TOTAL_BURST: f64 = 200.0;
/// About 100 bytes each; those that have not asked lately make room.
const ASKERS_MAX: usize = 4096;

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "any instant will do")]
mod tests {
    use super::*;
    use std::time::Duration;

    const TOKEN: Token = Token([1; 16]);
    const HOME: &str = "203.0.113.9";

    #[test]
    fn an_asker_gets_a_datagram_from_another_port() {
        let (mut witness, peer, now) = fresh();
        let actions = witness.on_message(
            peer,
            ip(HOME),
            ask("203.0.113.9:4001", Stance::OtherPort),
            &[],
            now,
        );
        let WitnessAction::Send { from, to, datagram } = &actions[0] else {
            panic!("sends first: {actions:?}");
        };
        assert_eq!((*from, *to), (Stance::OtherPort, addr("203.0.113.9:4001")));
        assert_eq!(
            ProbeKey::new(&TOKEN).open(datagram).unwrap().kind,
            ProbeKind::Witness
        );
        assert!(datagram.len() < 64);
        assert_eq!(answer(&actions), Ok(()));
    }

    #[test]
    fn nobody_is_probed_for_somebody_else() {
        let (mut witness, peer, now) = fresh();
        for target in [
            "198.51.100.1:53",
            "203.0.113.9:0",
            "255.255.255.255:9",
            "127.0.0.1:9",
        ] {
            let actions = witness.on_message(peer, ip(HOME), ask(target, Stance::OtherPort), &[], now);
            assert_eq!(actions.len(), 1, "{target}");
            assert_eq!(answer(&actions), Err(WitnessRefusal::NotYours));
        }
        assert_eq!(witness.refused(), 4);
    }

    #[test]
    fn a_third_party_is_a_main_that_the_asker_has_not_sent_to() {
        let (mut witness, peer, now) = fresh();
        let (known, unknown) = (PeerId::random(), PeerId::random());
        let mains = [
            (known, ip("198.51.100.1")),
            (unknown, ip("198.51.100.2")),
            (peer, ip("198.51.100.3")),
            (PeerId::random(), ip(HOME)),
        ];
        let message = WitnessMessage::Ask {
            token: TOKEN,
            target: addr("203.0.113.9:4001"),
            stance: Stance::ThirdParty,
            avoid: vec![ip("198.51.100.1")],
        };
        let actions = witness.on_message(peer, ip(HOME), message, &mains, now);
        let target = addr("203.0.113.9:4001");
        let forward = WitnessMessage::Forward { token: TOKEN, target };
        let (peer_told, message) = (unknown, forward);
        assert_eq!(
            actions[0],
            WitnessAction::Tell {
                peer: peer_told,
                message
            }
        );
        let asked = ask("203.0.113.9:4001", Stance::ThirdParty);
        let actions = witness.on_message(peer, ip(HOME), asked, &[], now);
        assert_eq!(answer(&actions), Err(WitnessRefusal::NoThirdParty));
    }

    #[test]
    fn only_a_main_has_others_probe() {
        let (mut witness, main, now) = fresh();
        let target = addr("203.0.113.9:4001");
        let forward = WitnessMessage::Forward { token: TOKEN, target };
        let from = ip("198.51.100.7");
        assert!(
            witness
                .on_message(main, from, forward.clone(), &[], now)
                .is_empty()
        );
        let actions = witness.on_message(main, from, forward, &[(main, from)], now);
        assert!(matches!(actions[..], [WitnessAction::Send { to, .. }] if to == target));
    }

    #[test]
    fn askers_are_held_to_a_rate_each_and_together() {
        let (mut witness, peer, now) = fresh();
        let sent_by = |witness: &mut Witness, peer, now| {
            let asked = ask("203.0.113.9:4001", Stance::OtherPort);
            witness.on_message(peer, ip(HOME), asked, &[], now).len() - 1
        };
        let sent: usize = (0..100).map(|_| sent_by(&mut witness, peer, now)).sum();
        assert_eq!(sent, 12);
        let later = now + Duration::from_secs(2);
        assert_eq!(sent_by(&mut witness, peer, later), 1);
        assert_eq!(sent_by(&mut witness, peer, later), 0);
        let sent: usize = (0..10_000)
            .map(|_| sent_by(&mut witness, PeerId::random(), later))
            .sum();
        assert!(sent <= 200, "{sent}");
        assert!(witness.askers.len() <= ASKERS_MAX);
    }

    #[test]
    fn a_message_that_is_too_long_is_refused_unread() {
        let bytes = vec![0; WitnessMessage::SIZE_MAX + 1];
        assert!(WitnessMessage::parse(&bytes).is_err());
        let message = ask("203.0.113.9:4001", Stance::OtherPort);
        assert_eq!(WitnessMessage::parse(&message.to_bytes()), Ok(message));
    }

    fn fresh() -> (Witness, PeerId, Instant) {
        let now = Instant::now();
        (Witness::new(1, now), PeerId::random(), now)
    }

    fn ask(target: &str, stance: Stance) -> WitnessMessage {
        WitnessMessage::Ask {
            token: TOKEN,
            target: addr(target),
            stance,
            avoid: Vec::new(),
        }
    }

    fn answer(actions: &[WitnessAction]) -> Result<(), WitnessRefusal> {
        match actions.last() {
            Some(WitnessAction::Tell {
                message: WitnessMessage::Answer { sent, .. },
                ..
            }) => *sent,
            other => panic!("not an answer: {other:?}"),
        }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }
}
