//! Where members' beacons are seen to come from: what a relay vouches for besides the address of the connection. Sends
//! nothing itself; see [`crate::Beacons`].
//!
//! A datagram says where it comes from, and may lie. What a member is answered, it has to repeat from the same address;
//! so nobody is vouched for at an address at which nothing reaches it.

use super::beacons::EVERY;
use crate::{Probe, ProbeId, ProbeKey, ProbeKind, Side, Token};
use lapwing_base::PeerId;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// The members whose beacons are looked out for.
#[derive(Debug)]
pub struct Lookouts {
    rng: StdRng,
    /// At most [`MEMBERS_MAX`], about 200 bytes each.
    members: HashMap<PeerId, Lookout>,
    by_beacon: HashMap<ProbeId, PeerId>,
}

#[derive(Debug)]
struct Lookout {
    key: ProbeKey,
    /// From where the last beacon seemed to come, and the number that was sent there.
    asked: Option<(SocketAddr, u32)>,
    seen: Option<(IpAddr, Instant)>,
}

impl Lookouts {
    /// None yet. The numbers that members repeat follow from the seed, which is secret.
    pub fn new(seed: u64) -> Self {
        Self {
            rng: StdRng::seed_from_u64(seed),
            members: HashMap::new(),
            by_beacon: HashMap::new(),
        }
    }

    /// A member has told by which token its beacons are known.
    pub fn announced(&mut self, member: PeerId, token: &Token) {
        let seen = match self.members.remove(&member) {
            Some(before) => {
                self.by_beacon.remove(&before.key.id());
                before.seen
            }
            None if self.members.len() >= MEMBERS_MAX => return,
            None => None,
        };
        let key = ProbeKey::new(token);
        // A token that somebody else has told is not this one's.
        if self.by_beacon.contains_key(&key.id()) {
            return;
        }
        self.by_beacon.insert(key.id(), member);
        let asked = None;
        self.members.insert(member, Lookout { key, asked, seen });
    }

    /// No connection with a member stands any more.
    pub fn forget(&mut self, member: &PeerId) {
        if let Some(gone) = self.members.remove(member) {
            self.by_beacon.remove(&gone.key.id());
        }
    }

    /// A datagram has come; the answer, where it is a beacon. It goes out from the same socket, and is no longer.
    pub fn on_datagram(&mut self, from: SocketAddr, datagram: &[u8], now: Instant) -> Option<Vec<u8>> {
        let member = self.by_beacon.get(&Probe::id(datagram).ok()?)?;
        let lookout = self.members.get_mut(member)?;
        let probe = lookout.key.open(datagram).ok()?;
        if (probe.from, probe.kind) != (Side::Offerer, ProbeKind::Ping) {
            return None;
        }
        let number = match lookout.asked {
            Some((there, number)) if there == from && number == probe.transaction => {
                lookout.seen = Some((from.ip().to_canonical(), now));
                number
            }
            // Each guess has one chance in four billion: the next one is at another number.
            _ => self.rng.random(),
        };
        lookout.asked = Some((from, number));
        Some(lookout.key.seal(&Probe {
            kind: ProbeKind::Pong,
            from: Side::Answerer,
            transaction: number,
            seen: Some(from),
        }))
    }

    /// Where a member was seen lately.
    pub fn seen(&self, member: &PeerId, now: Instant) -> Option<IpAddr> {
        let (ip, at) = self.members.get(member)?.seen?;
        (now < at + FRESH).then_some(ip)
    }
}

/// As many as there may be connections.
const MEMBERS_MAX: usize = 16 << 10;

/// Three beacons in a row may be lost.
const FRESH: Duration = Duration::from_secs(EVERY.as_secs() * 4);

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "any instant will do")]
mod tests {
    use super::*;

    const TOKEN: Token = Token([7; 16]);

    #[test]
    fn nobody_is_vouched_for_where_the_answer_does_not_come_to() {
        let (mut lookouts, member, now) = watching();
        let [own, third] = ["203.0.113.9:1", "192.0.2.1:53"].map(addr);
        let first = answered(lookouts.on_datagram(own, &beacon(0), now));
        assert_eq!(lookouts.seen(&member, now), None, "it has proven nothing yet");
        // What was sent to its own address does not hold for another's.
        for guess in 0..100 {
            let _ = lookouts.on_datagram(third, &beacon(guess), now);
            let _ = lookouts.on_datagram(third, &beacon(first), now);
        }
        assert_eq!(lookouts.seen(&member, now), None);
        let second = answered(lookouts.on_datagram(own, &beacon(0), now));
        assert_eq!(answered(lookouts.on_datagram(own, &beacon(second), now)), second);
        assert_eq!(lookouts.seen(&member, now), Some(own.ip()));
        assert_eq!(lookouts.seen(&member, now + FRESH), None, "it may have moved");
    }

    #[test]
    fn what_is_no_beacon_is_not_answered() {
        let (mut lookouts, member, now) = watching();
        let from = addr("203.0.113.9:1");
        let ping = |side| Probe {
            kind: ProbeKind::Ping,
            from: side,
            transaction: 0,
            seen: None,
        };
        let other = ProbeKey::new(&Token([8; 16])).seal(&ping(Side::Offerer));
        let reflected = ProbeKey::new(&TOKEN).seal(&ping(Side::Answerer));
        for datagram in [&other[..], &reflected, &[]] {
            assert_eq!(lookouts.on_datagram(from, datagram, now), None);
        }
        lookouts.announced(PeerId::random(), &TOKEN);
        assert_eq!(lookouts.members.len(), 1, "a token is one member's");
        lookouts.forget(&member);
        assert_eq!(lookouts.on_datagram(from, &beacon(0), now), None);
        assert!(lookouts.by_beacon.is_empty());
    }

    #[test]
    fn there_is_an_end_to_whom_is_looked_out_for() {
        let mut lookouts = Lookouts::new(1);
        for n in 0..MEMBERS_MAX as u128 + 10 {
            lookouts.announced(PeerId::random(), &Token(n.to_be_bytes()));
        }
        assert_eq!(lookouts.members.len(), MEMBERS_MAX);
        assert_eq!(lookouts.by_beacon.len(), MEMBERS_MAX);
    }

    fn watching() -> (Lookouts, PeerId, Instant) {
        let (mut lookouts, member) = (Lookouts::new(1), PeerId::random());
        lookouts.announced(member, &TOKEN);
        (lookouts, member, Instant::now())
    }

    fn beacon(number: u32) -> Vec<u8> {
        ProbeKey::new(&TOKEN).seal(&Probe {
            kind: ProbeKind::Ping,
            from: Side::Offerer,
            transaction: number,
            seen: None,
        })
    }

    fn answered(datagram: Option<Vec<u8>>) -> u32 {
        ProbeKey::new(&TOKEN)
            .open(&datagram.unwrap())
            .unwrap()
            .transaction
    }

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }
}
