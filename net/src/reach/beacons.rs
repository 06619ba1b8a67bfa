//! Keeps this node in sight of mains over the address family that no connection with them uses: a second connection
//! to each would do the same for a thousand times the memory. Sends nothing itself; see [`crate::Lookouts`].
//!
//! A beacon is a small datagram whose token the main was told over the connection. The main answers with where it saw
//! the beacon come from, and with a number; the next beacon repeats that number, which proves that the answer has come
//! to where the beacon seemed to come from.

use crate::{Probe, ProbeId, ProbeKey, ProbeKind, Side, Token};
use lapwing_base::PeerId;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// What to do.
#[must_use]
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum BeaconAction {
    /// Tell a main, over the connection that stands, by which token our beacons are known.
    Announce {
        /// Whom.
        main: PeerId,
        /// What.
        token: Token,
    },
    /// Send a beacon, from the socket on which connections of its family are taken.
    Send {
        /// Where to.
        to: SocketAddr,
        /// Its bytes.
        datagram: Vec<u8>,
    },
}

/// Where a main saw a beacon come from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Beaconed {
    /// The main.
    pub main: PeerId,
    /// Where the beacon went.
    pub observed_at: SocketAddr,
    /// Where the main saw it come from.
    pub seen: SocketAddr,
}

/// The beacons of one node.
#[derive(Debug)]
pub struct Beacons {
    rng: StdRng,
    /// At most [`Self::MAINS_MAX`].
    beacons: BTreeMap<PeerId, Beacon>,
}

#[derive(Debug)]
struct Beacon {
    to: SocketAddr,
    key: ProbeKey,
    /// What the main has answered last; it is asked for one with the first beacon.
    number: u32,
    /// Beacons since the last answer.
    unanswered: usize,
    /// Answers in a row whose number was another than the one before.
    unproven: u32,
    /// Announcements in a row after which nothing was answered.
    in_vain: u32,
    announced: bool,
    due_at: Instant,
    token: Token,
}

impl Beacons {
    /// How many mains see this node so: the two relays that vouch for it, and two more that tell its NAT's kind.
    pub const MAINS_MAX: usize = 4;

    /// None yet. The seed is secret: tokens follow from it.
    pub fn new(seed: [u8; 32]) -> Self {
        Self {
            rng: StdRng::from_seed(blake3::derive_key(SEED_CONTEXT, &seed)),
            beacons: BTreeMap::new(),
        }
    }

    /// The mains that are to see this node, the most important first, with the address of each to send to.
    pub fn set_mains(&mut self, mains: impl IntoIterator<Item = (PeerId, SocketAddr)>, now: Instant) {
        let mains: BTreeMap<_, _> = mains.into_iter().take(Self::MAINS_MAX).collect();
        self.beacons
            .retain(|main, beacon| mains.get(main) == Some(&beacon.to));
        for (main, to) in mains {
            let rng = &mut self.rng;
            self.beacons.entry(main).or_insert_with(|| {
                let token = Token(rng.random());
                Beacon {
                    to,
                    key: ProbeKey::new(&token),
                    number: 0,
                    unanswered: 0,
                    unproven: 0,
                    in_vain: 0,
                    announced: false,
                    due_at: now,
                    token,
                }
            });
        }
    }

    /// This machine is in another network: everybody is to see where it is now.
    pub fn network_changed(&mut self, now: Instant) {
        for beacon in self.beacons.values_mut() {
            beacon.in_vain = 0;
            beacon.due_at = now;
        }
    }

    /// A datagram has come; tells what a main has seen, where it was one's answer.
    pub fn on_datagram(&mut self, from: SocketAddr, datagram: &[u8], now: Instant) -> Option<Beaconed> {
        let id = Probe::id(datagram).ok()?;
        let (main, beacon) = self.beacons.iter_mut().find(|(_, beacon)| beacon.id() == id)?;
        let probe = beacon.key.open(datagram).ok()?;
        let (Side::Answerer, ProbeKind::Pong, Some(seen)) = (probe.from, probe.kind, probe.seen) else {
            return None;
        };
        if from != beacon.to {
            return None;
        }
        let proven = beacon.number == probe.transaction;
        beacon.unproven = if proven {
            0
        } else {
            beacon.unproven.saturating_add(1)
        };
        beacon.number = probe.transaction;
        beacon.unanswered = 0;
        beacon.in_vain = 0;
        let at_once = (1..=AT_ONCE_MAX).contains(&beacon.unproven);
        beacon.due_at = if at_once {
            now
        } else {
            now + EVERY.mul_f64(self.rng.random_range(0.9..1.0))
        };
        Some(Beaconed {
            main: *main,
            observed_at: from,
            seen,
        })
    }

    /// What is to be done now; call after every input and at [`Self::next_at`].
    pub fn poll(&mut self, now: Instant) -> Vec<BeaconAction> {
        let mut actions = Vec::new();
        for (main, beacon) in self.beacons.iter_mut().filter(|(_, beacon)| beacon.due_at <= now) {
            if !beacon.announced {
                beacon.announced = true;
                beacon.unanswered = 0;
                beacon.due_at = now + WAITS[0];
                let (main, token) = (*main, beacon.token);
                actions.push(BeaconAction::Announce { main, token });
                continue;
            }
            let ping = Probe {
                kind: ProbeKind::Ping,
                from: Side::Offerer,
                transaction: beacon.number,
                seen: None,
            };
            actions.push(BeaconAction::Send {
                to: beacon.to,
                datagram: beacon.key.seal(&ping),
            });
            beacon.unanswered += 1;
            match WAITS.get(beacon.unanswered) {
                Some(wait) => beacon.due_at = now + *wait,
                None => {
                    // The main may have restarted and know the token no more, or nothing gets through.
                    let pause = EVERY.saturating_mul(1 << beacon.in_vain.min(4));
                    beacon.in_vain = beacon.in_vain.saturating_add(1);
                    beacon.announced = false;
                    beacon.due_at = now + pause.mul_f64(self.rng.random_range(0.9..1.1));
                }
            }
        }
        actions
    }

    /// When [`Self::poll`] has something to do.
    pub fn next_at(&self) -> Option<Instant> {
        self.beacons.values().map(|beacon| beacon.due_at).min()
    }
}

impl Beacon {
    const fn id(&self) -> ProbeId {
        self.key.id()
    }
}

/// A NAT forgets what nothing goes through for 30 s (Linux, and others that follow no RFC).
pub(super) const EVERY: Duration = Duration::from_secs(20);

/// From the announcement to the first beacon, so that the main knows the token, and then from one that is not answered to
/// the next.
const WAITS: [Duration; 4] = [
    Duration::from_millis(50),
    Duration::from_millis(300),
    Duration::from_secs(1),
    Duration::from_secs(3),
];

/// Numbers that are repeated at once. A NAT that gives each packet another port lets none be proven.
const AT_ONCE_MAX: u32 = 3;

/// Keeps the tokens apart from those that others draw from the same seed.
const SEED_CONTEXT: &str = "lapwing 2026 beacons";

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "any instant will do")]
mod tests {
    use super::*;
    use crate::Lookouts;

    #[test]
    fn a_main_sees_this_node_and_tells_it_where() {
        let mut world = World::new();
        world.run(Duration::from_secs(1));
        let [mapped] = ["203.0.113.9:50001"].map(addr);
        let told = Beaconed {
            main: world.main,
            observed_at: world.at,
            seen: mapped,
        };
        assert_eq!(world.told.first(), Some(&told));
        let sees = |world: &World| world.lookouts.seen(&world.me, world.now);
        assert_eq!(sees(&world), Some(mapped.ip()));
        assert!(world.sent <= 4, "{}", world.sent);
        let before = world.sent;
        world.run(Duration::from_secs(600));
        assert!(
            (30..=40).contains(&(world.sent - before)),
            "{}",
            world.sent - before
        );
        assert_eq!(sees(&world), Some(mapped.ip()));
    }

    #[test]
    fn a_main_that_has_restarted_sees_this_node_again_within_a_minute() {
        let mut world = World::new();
        world.run(Duration::from_secs(30));
        world.lookouts = Lookouts::new(2);
        world.run(Duration::from_secs(60));
        assert!(world.lookouts.seen(&world.me, world.now).is_some());
    }

    #[test]
    fn where_nothing_gets_through_little_is_sent() {
        let mut world = World::new();
        world.open = false;
        world.run(Duration::from_secs(3600));
        assert!((40..80).contains(&world.sent), "{}", world.sent);
        world.open = true;
        world.beacons.network_changed(world.now);
        world.run(Duration::from_secs(10));
        assert_eq!(world.told.len(), 2);
    }

    #[test]
    fn mains_that_are_not_needed_any_more_are_sent_nothing() {
        let mut world = World::new();
        world.run(Duration::from_secs(5));
        world.beacons.set_mains([], world.now);
        assert_eq!(world.beacons.next_at(), None);
        let many = (0..9).map(|n| (PeerId::random(), SocketAddr::from(([198, 51, 100, n], 1))));
        world.beacons.set_mains(many, world.now);
        assert_eq!(world.beacons.poll(world.now).len(), Beacons::MAINS_MAX);
    }

    #[test]
    fn where_every_packet_comes_from_another_port_no_more_is_sent() {
        let mut world = World::new();
        world.steady = false;
        world.run(Duration::from_secs(600));
        assert!(world.sent <= 40, "{}", world.sent);
        assert_eq!(world.lookouts.seen(&world.me, world.now), None);
    }

    #[test]
    fn an_answer_from_elsewhere_does_not_count() {
        let mut world = World::new();
        world.run(Duration::from_millis(40));
        let pong = Probe {
            kind: ProbeKind::Pong,
            from: Side::Answerer,
            transaction: 7,
            seen: Some(addr("192.0.2.1:1")),
        };
        let beacon = &world.beacons.beacons[&world.main];
        let (answer, elsewhere) = (beacon.key.seal(&pong), addr("198.51.100.2:4001"));
        let other = ProbeKey::new(&Token([3; 16])).seal(&pong);
        assert_eq!(world.beacons.on_datagram(elsewhere, &answer, world.now), None);
        assert_eq!(world.beacons.on_datagram(world.at, &other, world.now), None);
        assert!(world.beacons.on_datagram(world.at, &answer, world.now).is_some());
    }

    /// A node, a main, and a way between the two that takes no time.
    struct World {
        now: Instant,
        me: PeerId,
        main: PeerId,
        at: SocketAddr,
        beacons: Beacons,
        lookouts: Lookouts,
        open: bool,
        /// Whether the NAT gives the same port to each packet.
        steady: bool,
        sent: usize,
        told: Vec<Beaconed>,
    }

    impl World {
        fn new() -> Self {
            let (now, main, at) = (Instant::now(), PeerId::random(), addr("198.51.100.1:4001"));
            let mut beacons = Beacons::new([1; 32]);
            beacons.set_mains([(main, at)], now);
            Self {
                now,
                me: PeerId::random(),
                main,
                at,
                beacons,
                lookouts: Lookouts::new(1),
                open: true,
                steady: true,
                sent: 0,
                told: Vec::new(),
            }
        }

        fn run(&mut self, time: Duration) {
            let end = self.now + time;
            while let Some(at) = self.beacons.next_at().filter(|at| *at < end) {
                self.now = at.max(self.now);
                for action in self.beacons.poll(self.now) {
                    match action {
                        BeaconAction::Announce { token, .. } => self.lookouts.announced(self.me, &token),
                        BeaconAction::Send { datagram, .. } => {
                            self.sent += 1;
                            let mut mapped = addr("203.0.113.9:50001");
                            if !self.steady {
                                mapped.set_port(50_001 + self.sent as u16);
                            }
                            let answer = self.lookouts.on_datagram(mapped, &datagram, self.now);
                            if let Some(answer) = answer.filter(|_| self.open) {
                                assert_eq!(answer.len(), datagram.len());
                                let told = self.beacons.on_datagram(self.at, &answer, self.now);
                                self.told.extend(told);
                            }
                        }
                    }
                }
            }
            self.now = end;
        }
    }

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }
}
