//! One node and the mains around it over an hour of made-up time: what it knows of its own place must last for as long
//! as they stay. Cores only; a step is as long as the pause between two signs of life on a session.

use crate::{
    Change, Family, Mapping, Observation, Observations, ReachAction, Reachability, ReservationAction,
    Reservations, Sighting, SocketId, Witness, WitnessAction, WitnessMessage,
};
use lapwing_base::{PeerId, Role};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

const STEP: Duration = Duration::from_millis(1500);
const HOUR: Duration = Duration::from_secs(3600);
const SOCKET: SocketId = SocketId(0);
/// Shorter than the hour, so that they have to be renewed.
const LIFETIME: Duration = Duration::from_secs(1200);

#[test]
fn over_an_hour_a_main_stays_a_main() {
    let mut world = World::new("203.0.113.9", "203.0.113.9:4001", true);
    let begun = world.now;
    world.settle();
    assert_eq!(world.role(), Role::Main);
    while world.now < begun + HOUR {
        world.step();
        assert_eq!(world.role(), Role::Main, "after {:?}", world.now - begun);
        assert_eq!(world.observations.mapping(Family::V4), Mapping::None);
        assert_eq!(world.reachability.open().collect::<Vec<_>>(), [world.seen]);
    }
    assert_eq!(world.reservations.held().count(), 0);
}

#[test]
fn over_an_hour_a_home_keeps_its_observed_addresses_and_its_reservations() {
    let mut world = World::new("192.168.1.5", "203.0.113.9:40777", false);
    let begun = world.now;
    world.settle();
    assert_eq!(world.role(), Role::Home);
    while world.now < begun + HOUR {
        world.step();
        let after = world.now - begun;
        assert_eq!(world.role(), Role::Home, "after {after:?}");
        assert_eq!(world.observations.external(), [world.seen], "after {after:?}");
        assert_eq!(world.observations.reflexive(world.now), [world.seen]);
        assert_eq!(
            world.reservations.held().count(),
            Reservations::WANTED,
            "after {after:?}"
        );
    }
    assert!(!world.released, "what was granted was never let go");
}

#[test]
fn a_main_that_nobody_speaks_to_any_more_does_not_become_a_home() {
    let mut world = World::new("203.0.113.9", "203.0.113.9:4001", true);
    let begun = world.now;
    world.settle();
    for main in std::mem::take(&mut world.mains) {
        world.reachability.main_lost(&main.peer);
    }
    while world.now < begun + HOUR {
        world.step();
        assert_eq!(world.role(), Role::Main, "after {:?}", world.now - begun);
    }
}

/// A node that dials three mains.
struct World {
    now: Instant,
    me: PeerId,
    /// Where the mains see it.
    seen: SocketAddr,
    /// Whether datagrams come in from where it has not sent to.
    open: bool,
    mains: Vec<Main>,
    observations: Observations,
    reachability: Reachability,
    reservations: Reservations,
    released: bool,
}

struct Main {
    peer: PeerId,
    address: SocketAddr,
    sighting: Sighting,
    witness: Witness,
}

impl World {
    #[expect(clippy::disallowed_methods, reason = "any instant will do")]
    fn new(local_ip: &str, seen: &str, open: bool) -> Self {
        let now = Instant::now();
        let mut observations = Observations::default();
        observations.bound(SOCKET, addr("0.0.0.0:4001"));
        let _ = observations.set_local_ips([local_ip.parse().unwrap()], now);
        let mut reachability = Reachability::new(None, [1; 32]);
        let mut reservations = Reservations::new(0, 1);
        let mains: Vec<_> = (1..=3)
            .map(|n| Main {
                peer: PeerId::random(),
                address: addr(&format!("198.51.{n}.1:4001")),
                sighting: Sighting::default(),
                witness: Witness::new(n, now),
            })
            .collect();
        for main in &mains {
            reachability.main_connected(main.peer, now);
            reservations.learn(main.peer, None);
        }
        Self {
            now,
            me: PeerId::random(),
            seen: addr(seen),
            open,
            mains,
            observations,
            reachability,
            reservations,
            released: false,
        }
    }

    /// What is known at first.
    fn settle(&mut self) {
        let until = self.now + Duration::from_secs(60);
        while self.now < until {
            self.step();
        }
    }

    fn role(&self) -> Role {
        let standing = self.reachability.standing();
        assert!(!standing.provisional);
        standing.role
    }

    fn step(&mut self) {
        let now = self.now;
        let mut changes = Vec::new();
        for main in &mut self.mains {
            self.reachability.sent(main.address, now);
            if main.sighting.is_due(self.seen, now) {
                let said = Observation {
                    socket: SOCKET,
                    observer: main.peer,
                    observed_at: main.address,
                    seen: self.seen,
                };
                changes.extend(self.observations.observe(said, now));
            }
        }
        if self.observations.next_at().is_some_and(|at| at <= now) {
            changes.extend(self.observations.expire(now));
        }
        assert!(!changes.contains(&Change::Recheck), "nobody has changed its mind");
        if !changes.is_empty() {
            let targets = self.observations.to_check(now);
            self.reachability.set_targets(targets, now);
        }
        for action in self.reachability.poll(now) {
            match action {
                ReachAction::Ask { main, message } => self.ask(main, message),
                ReachAction::Stands(standing) if standing.role == Role::Home => {
                    self.reservations.set_wanted(Reservations::WANTED);
                }
                ReachAction::Stands(_) => self.reservations.set_wanted(0),
                ReachAction::Filters { .. } => (),
            }
        }
        for action in self.reservations.poll(now) {
            match action {
                ReservationAction::Reserve(relay) => self.reservations.granted(relay, LIFETIME, now),
                ReservationAction::Release(_) => self.released = true,
            }
        }
        self.now += STEP;
    }

    /// A main is asked to have a datagram sent, and does what it is made for.
    fn ask(&mut self, asked: PeerId, message: WitnessMessage) {
        let addresses: Vec<_> = self
            .mains
            .iter()
            .map(|main| (main.peer, main.address.ip()))
            .collect();
        let Some(main) = self.mains.iter_mut().find(|main| main.peer == asked) else {
            return;
        };
        let from = SocketAddr::new(main.address.ip(), 50_000);
        for action in main
            .witness
            .on_message(self.me, self.seen.ip(), message, &addresses, self.now)
        {
            match action {
                WitnessAction::Tell { peer, message } => {
                    assert_eq!(peer, self.me, "there is no main that this node has not sent to");
                    self.reachability.on_message(&asked, &message, self.now);
                }
                WitnessAction::Send { datagram, .. } if self.open => {
                    assert!(self.reachability.on_datagram(from, &datagram, self.now));
                }
                WitnessAction::Send { .. } => (),
            }
        }
    }
}

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}
