use super::*;
use crate::announcement::tests::announcement;
use crate::call::tests::call;
use crate::{Constraint, Departure, Step};
use lapwing_base::Keypair;
use proptest::prelude::*;
use std::collections::{BTreeSet, VecDeque};

/// Nodes and links between them, on which messages wait in order until they are carried over.
struct World {
    keys: Vec<Keypair>,
    registries: Vec<Registry>,
    roles: Vec<Role>,
    stamps: Vec<Stamp>,
    hops_max: u8,
    /// By sender and receiver.
    links: BTreeMap<(usize, usize), VecDeque<Message>>,
    now: Instant,
    /// Who has said that it goes, and has not come back.
    left: BTreeSet<usize>,
    laws: Laws,
}

/// What has been sent and heard so far, for the laws that hold at every step.
#[derive(Default)]
struct Laws {
    /// As its origin has sent each announcement.
    signed: BTreeMap<(PeerId, Stamp), SignedAnnouncement>,
    /// Ways that a node has heard of.
    heard: BTreeSet<(usize, Vec<PeerId>)>,
    /// Announcements that were news to a node, and when.
    news: BTreeMap<(usize, PeerId, Stamp), Instant>,
    /// What a node has last told a neighbour of an origin, while the link between them stands.
    told: BTreeMap<(usize, usize, PeerId), (Stamp, Vec<PeerId>)>,
}

impl World {
    fn new(roles: &[Role], hops_max: u8) -> Self {
        // Always the same, so that a failure comes again: ids decide between ways of equal length.
        let key = |node: u8| Keypair::ed25519_from_bytes([node; 32]).unwrap();
        let keys: Vec<Keypair> = (1..).map(key).take(roles.len()).collect();
        let registry = |(key, role): (&Keypair, &Role)| Registry::new(key.public().to_peer_id(), *role);
        let mut world = Self {
            registries: keys.iter().zip(roles).map(registry).collect(),
            keys,
            roles: roles.to_vec(),
            stamps: vec![Stamp { epoch: 1, number: 0 }; roles.len()],
            hops_max,
            links: BTreeMap::new(),
            now: origin(),
            left: BTreeSet::new(),
            laws: Laws::default(),
        };
        (0..roles.len()).for_each(|node| world.offer(node, &[&format!("service-{node}"), "echo"], None));
        world
    }

    fn id(&self, node: usize) -> PeerId {
        self.keys[node].public().to_peer_id()
    }

    fn place(&self, id: PeerId) -> usize {
        (0..self.keys.len()).find(|node| self.id(*node) == id).unwrap()
    }

    fn said(&self, node: usize, services: &[&str], departure: Option<Departure>) -> Announcement {
        Announcement {
            stamp: self.stamps[node],
            role: self.roles[node],
            hops_max: self.hops_max,
            name: Some(format!("node-{node}").parse().unwrap()),
            departure,
            ..announcement(&self.keys[node], services)
        }
    }

    /// A node announces these from now on.
    fn offer(&mut self, node: usize, services: &[&str], departure: Option<Departure>) {
        self.stamps[node].number += 1;
        match departure {
            Some(_) => self.left.insert(node),
            None => self.left.remove(&node),
        };
        let said = self.said(node, services, departure);
        let signed = SignedAnnouncement::new(&said, &self.keys[node]).unwrap();
        let to_send = self.registries[node].announce(signed).unwrap();
        self.queue(node, to_send);
    }

    fn connect(&mut self, one: usize, other: usize) {
        if one == other || self.links.contains_key(&(one, other)) {
            return;
        }
        for (node, peer) in [(one, other), (other, one)] {
            self.links.insert((node, peer), VecDeque::new());
            let (id, role) = (self.id(peer), self.roles[peer]);
            let to_send = self.registries[node].on_connected(id, role);
            self.queue(node, to_send);
        }
    }

    /// A node forgets everything, and is there again under its name, with nobody connected.
    fn restart(&mut self, node: usize) {
        (0..self.keys.len()).for_each(|peer| self.cut(node, peer));
        self.registries[node] = Registry::new(self.id(node), self.roles[node]);
        self.laws.heard.retain(|(at, _)| *at != node);
        self.laws.news.retain(|(at, ..), _| *at != node);
        let epoch = self.stamps[node].epoch + 1;
        self.stamps[node] = Stamp { epoch, number: 0 };
        self.offer(node, &[&format!("service-{node}"), "echo"], None);
    }

    /// Time passes, and whoever is there announces itself again.
    fn refresh(&mut self) {
        self.now += Registry::REFRESH;
        for node in 0..self.keys.len() {
            if !self.left.contains(&node) {
                self.offer(node, &[&format!("service-{node}"), "echo"], None);
            }
            let to_send = self.registries[node].on_tick(self.now);
            self.queue(node, to_send);
        }
    }

    /// What was on its way is lost.
    fn cut(&mut self, one: usize, other: usize) {
        for (node, peer) in [(one, other), (other, one)] {
            if self.links.remove(&(node, peer)).is_some() {
                self.laws
                    .told
                    .retain(|(from, to, _), _| (*from, *to) != (node, peer));
                let id = self.id(peer);
                let to_send = self.registries[node].on_disconnected(id);
                self.queue(node, to_send);
            }
        }
    }

    fn queue(&mut self, from: usize, to_send: Vec<ToSend>) {
        for ToSend { to, message } in to_send {
            let to = self.place(to);
            // One end may know of the cut before the other.
            if self.links.contains_key(&(from, to)) {
                self.check_sent(from, to, &message);
                self.links.get_mut(&(from, to)).unwrap().push_back(message);
            }
        }
    }

    fn check_sent(&mut self, from: usize, to: usize, message: &Message) {
        let me = self.id(from);
        let forwarded = match message {
            Message::Announced(forwarded) => forwarded,
            Message::Lost { origin } => {
                self.laws.told.remove(&(from, to, *origin));
                return;
            }
        };
        let said = forwarded.signed.open().unwrap();
        let (last, before) = forwarded.path.split_last().unwrap();
        assert_eq!(*last, me, "whoever sends adds itself");
        let is_own = before.is_empty() && said.origin == me;
        let way = (from, before.to_vec());
        assert!(
            is_own || self.laws.heard.contains(&way),
            "and nothing else: hops grow by one"
        );
        let signed = self.laws.signed.entry((said.origin, said.stamp));
        let signed = signed.or_insert_with(|| forwarded.signed.clone());
        assert_eq!(*signed, forwarded.signed, "content stays as it was signed");
        let telling = (said.stamp, forwarded.path.clone());
        let told = self.laws.told.insert((from, to, said.origin), telling.clone());
        assert_ne!(told, Some(telling), "nothing is told twice");
    }

    /// Carries one message over some link, as `pick` says; false where none waits.
    fn step(&mut self, pick: usize) -> bool {
        let waiting: Vec<(usize, usize)> = self
            .links
            .iter()
            .filter(|(_, link)| !link.is_empty())
            .map(|(ends, _)| *ends)
            .collect();
        let Some((from, to)) = waiting.get(pick % waiting.len().max(1)).copied() else {
            return false;
        };
        let message = self.links.get_mut(&(from, to)).unwrap().pop_front().unwrap();
        let mut stamp = None;
        if let Message::Announced(forwarded) = &message {
            let said = forwarded.signed.open().unwrap();
            stamp = Some((said.origin, said.stamp));
            let path = &forwarded.path;
            self.laws.heard.insert((to, path.clone()));
            let bound = usize::from(self.hops_max);
            assert!(path.len() <= bound, "hops are bounded");
            let nodes: BTreeSet<_> = path.iter().collect();
            assert_eq!(nodes.len(), path.len(), "no way meets a node twice");
            assert_eq!(path[0], said.origin, "its source stays its source");
        }
        let from = self.id(from);
        let (heard, to_send) = self.registries[to].on_message(from, message, self.now).unwrap();
        if heard == Heard::News {
            let (origin, stamp) = stamp.unwrap();
            let before = self.laws.news.insert((to, origin, stamp), self.now);
            // A last word that still goes round after so long is heard as if it were new.
            let is_forgotten = |before| self.now >= before + Registry::GONE_FOR;
            assert!(before.is_none_or(is_forgotten), "news is news once");
        }
        self.queue(to, to_send);
        true
    }

    /// Carries everything over, in an order that follows from the seed.
    fn settle(&mut self, mut seed: u64) {
        for _ in 0..STEPS_MAX {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            if !self.step((seed >> 33) as usize) {
                return;
            }
        }
        panic!("they do not come to rest");
    }

    /// Links from one node to another, where all in between are mains.
    fn distance(&self, from: usize, to: usize) -> Option<usize> {
        let (mut reached, mut edge) = (BTreeSet::from([from]), BTreeSet::from([from]));
        for links in 1..=self.roles.len() {
            let next = self.links.keys().filter(|(one, _)| edge.contains(one));
            let next: BTreeSet<usize> = next.map(|(_, other)| *other).collect();
            edge = next.difference(&reached).copied().collect();
            if edge.contains(&to) {
                return Some(links);
            }
            reached.extend(edge.iter().copied());
            edge.retain(|node| self.roles[*node] == Role::Main);
        }
        None
    }

    /// Links that a call crosses from one node to another.
    fn carry(&self, from: usize, to: usize) -> Result<usize, CallError> {
        let (mut at, mut call) = (from, call(&[]));
        loop {
            let is_uplink = |peer: &usize| self.roles[*peer] == MAIN && self.links.contains_key(&(at, *peer));
            let uplink = (0..self.keys.len()).find(is_uplink);
            let uplink = uplink
                .filter(|_| self.roles[at] == HOME)
                .map(|peer| self.id(peer));
            let (me, registry) = (self.id(at), &self.registries[at]);
            match call.advance(me, Some(self.id(to)), uplink, registry, Duration::ZERO)? {
                Step::Serve => return Ok(call.path.len()),
                Step::Forward { to, onward } => {
                    call = call.onward(onward);
                    call.check(me)?;
                    at = self.place(to);
                }
            }
        }
    }

    /// Every main knows those that are near enough, by the nearest way and as they are now, and calls cross as many links; and
    /// homes know nobody.
    fn check(&self) {
        for (node, registry) in self.registries.iter().enumerate() {
            for origin in (0..self.keys.len()).filter(|origin| *origin != node) {
                let distance = self
                    .distance(origin, node)
                    .filter(|_| !self.left.contains(&origin));
                let near = distance.filter(|links| *links <= usize::from(self.hops_max));
                let expected = near.filter(|_| self.roles[node] == Role::Main);
                let id = self.id(origin);
                let known = registry.known().find(|(known, _)| known.origin == id);
                let hops = known.and_then(|(_, hops)| hops);
                assert_eq!(hops, expected, "from {origin} to {node}");
                if hops.is_some() {
                    assert_eq!(
                        known.unwrap().0.stamp,
                        self.stamps[origin],
                        "of {origin} at {node}"
                    );
                }
                assert_eq!(registry.next(id, &[]).is_ok(), hops.is_some());
                if let Some(hops) = hops {
                    assert_eq!(
                        self.carry(node, origin),
                        Ok(hops),
                        "a call from {node} to {origin}"
                    );
                }
            }
        }
    }

    fn knows(&self, node: usize, service: &str) -> Result<Vec<usize>, ErrorCode> {
        let wanted = Wanted {
            service: service.parse().unwrap(),
            method: "say".to_owned(),
            versions: Constraint::default(),
            resources: BTreeSet::new(),
        };
        match self.registries[node].find(&wanted) {
            Ok(found) => Ok(found.iter().map(|instance| self.place(instance.origin)).collect()),
            Err(error) => Err(error.code),
        }
    }
}

/// More than any order of a small world needs.
const STEPS_MAX: usize = 100_000;

#[expect(clippy::disallowed_methods, reason = "any instant will do")]
fn origin() -> Instant {
    Instant::now()
}

const MAIN: Role = Role::Main;
const HOME: Role = Role::Home;

/// Two mains, each with a home: alice and bob.
fn two_houses() -> World {
    let mut world = World::new(&[HOME, MAIN, MAIN, HOME], 3);
    for (one, other) in [(0, 1), (1, 2), (2, 3)] {
        world.connect(one, other);
    }
    world.settle(1);
    world
}
const ALICE: usize = 0;
const MAIN_A: usize = 1;
const MAIN_B: usize = 2;
const BOB: usize = 3;

#[test]
fn each_main_knows_its_home_and_the_other_mains() {
    let world = two_houses();
    world.check();
    assert_eq!(world.knows(MAIN_A, "service-3"), Ok(vec![BOB]));
    assert_eq!(world.knows(MAIN_B, "service-0"), Ok(vec![ALICE]));
    assert_eq!(
        world.registries[MAIN_A].next(world.id(BOB), &[]),
        Ok(world.id(MAIN_B))
    );
    let addresses = [("node-3.home@node-2", BOB), ("node-3", BOB), ("node-1", MAIN_A)];
    for (text, node) in addresses {
        let found = world.registries[MAIN_A].locate(&text.parse().unwrap());
        assert_eq!(found, Ok(world.id(node)), "{text}");
    }
    let unknown = "new.home@node-2".parse().unwrap();
    assert_eq!(world.registries[MAIN_A].main_of(&unknown), Some(world.id(MAIN_B)));
    assert_eq!(world.registries[MAIN_B].main_of(&unknown), None);
    let missing = world.registries[MAIN_A].locate(&"nonexistent.home".parse().unwrap());
    assert_eq!(missing.unwrap_err().code, ErrorCode::NodeNotFound);
    for (text, is) in [
        ("node-3.main", "`node-3` is a home"),
        ("node-1.home", "`node-1` is a main"),
    ] {
        let error = world.registries[MAIN_A]
            .locate(&text.parse().unwrap())
            .unwrap_err();
        assert_eq!(error.code, ErrorCode::NodeNotFound);
        assert!(error.message.ends_with(is), "{error}");
    }
}

#[test]
fn a_node_is_called_by_its_name_and_a_home_by_that_of_its_main_too() {
    let world = two_houses();
    let address = |at: usize, node: usize| world.registries[at].address(world.id(node)).to_string();
    assert_eq!(address(MAIN_A, ALICE), "node-0.home@node-1");
    assert_eq!(address(MAIN_A, BOB), "node-3.home@node-2");
    assert_eq!(address(MAIN_A, MAIN_A), "node-1.main");
    assert_eq!(address(MAIN_A, MAIN_B), "node-2.main");
    // A home hears nothing of others, but knows its main.
    let main = world.id(MAIN_A).to_string();
    assert_eq!(address(ALICE, ALICE), format!("node-0.home@{main}"));
    assert_eq!(address(ALICE, MAIN_A), main);
    for node in [ALICE, MAIN_A, MAIN_B, BOB] {
        let registry = &world.registries[MAIN_B];
        assert_eq!(
            registry.locate(&registry.address(world.id(node))),
            Ok(world.id(node))
        );
    }
}

#[test]
fn a_service_that_was_never_announced_is_not_found() {
    assert_eq!(
        two_houses().knows(MAIN_A, "none"),
        Err(ErrorCode::ServiceNotFound)
    );
}

#[test]
fn what_a_node_offers_anew_is_known_at_once_and_what_it_does_not_offer_any_more_is_not() {
    let mut world = two_houses();
    world.offer(ALICE, &["blog"], None);
    world.settle(1);
    assert_eq!(world.knows(MAIN_B, "blog"), Ok(vec![ALICE]));
    assert_eq!(world.knows(MAIN_B, "service-0"), Err(ErrorCode::ServiceNotFound));
}

#[test]
fn a_home_whose_connection_is_gone_is_offline_everywhere_and_comes_back() {
    let mut world = two_houses();
    world.cut(ALICE, MAIN_A);
    world.settle(1);
    world.check();
    assert_eq!(world.knows(MAIN_B, "service-0"), Err(ErrorCode::NodeOffline));
    world.connect(ALICE, MAIN_A);
    world.settle(1);
    world.check();
    assert_eq!(world.knows(MAIN_B, "service-0"), Ok(vec![ALICE]));
}

#[test]
fn who_has_said_that_it_goes_is_forgotten_and_a_late_announcement_does_not_bring_it_back() {
    let mut world = two_houses();
    let late = world.said(ALICE, &["service-0"], None);
    let late = SignedAnnouncement::new(&late, &world.keys[ALICE]).unwrap();
    world.offer(ALICE, &[], Some(Departure::Shutdown));
    world.settle(1);
    assert_eq!(world.knows(MAIN_B, "service-0"), Err(ErrorCode::ServiceNotFound));
    let path = vec![world.id(ALICE), world.id(MAIN_A)];
    let message = Message::Announced(Box::new(Forwarded { path, signed: late }));
    let from = world.id(MAIN_A);
    let heard = world.registries[MAIN_B].on_message(from, message, world.now);
    assert_eq!(heard, Ok((Heard::Stale, Vec::new())));
    // Whoever starts again is known again at once.
    world.stamps[ALICE] = Stamp { epoch: 2, number: 0 };
    world.offer(ALICE, &["service-0"], None);
    world.settle(1);
    world.check();
}

#[test]
fn a_last_word_that_comes_again_when_all_have_forgotten_it_goes_no_further() {
    let mut world = World::new(&[MAIN; 3], 3);
    world.connect(0, 1);
    world.connect(1, 2);
    world.settle(1);
    world.offer(0, &[], Some(Departure::Maintenance));
    world.settle(1);
    world.cut(0, 1);
    world.now += Registry::GONE_FOR;
    world.refresh();
    world.settle(1);
    // Whoever has left says so to everybody that it meets.
    world.connect(0, 1);
    while world.links.values().any(|link| !link.is_empty()) {
        assert!(world.links[&(1, 2)].is_empty(), "nobody was told of it since");
        world.step(0);
    }
    world.check();
}

#[test]
fn what_nobody_has_refreshed_expires() {
    let mut world = two_houses();
    world.now += Registry::REFRESH;
    world.offer(BOB, &["service-3"], None);
    world.settle(1);
    world.now = origin() + Registry::TTL;
    for node in [MAIN_A, MAIN_B] {
        let to_send = world.registries[node].on_tick(world.now);
        world.queue(node, to_send);
    }
    world.settle(1);
    assert_eq!(world.knows(MAIN_B, "service-0"), Err(ErrorCode::ServiceNotFound));
    assert_eq!(world.knows(MAIN_A, "service-3"), Ok(vec![BOB]));
}

#[test]
fn what_has_expired_comes_back_by_a_refresh_and_not_by_a_late_copy() {
    let mut world = two_houses();
    let [alice, from] = [ALICE, MAIN_A].map(|node| world.id(node));
    let copy = |world: &World| {
        let said = world.said(ALICE, &["service-0"], None);
        let signed = SignedAnnouncement::new(&said, &world.keys[ALICE]).unwrap();
        let path = vec![alice, from];
        Message::Announced(Box::new(Forwarded { path, signed }))
    };
    let late = copy(&world);
    world.now += Registry::TTL;
    drop(world.registries[MAIN_B].on_tick(world.now));
    let heard = world.registries[MAIN_B].on_message(from, late, world.now);
    assert_eq!(heard, Ok((Heard::Stale, Vec::new())));
    world.stamps[ALICE].number += 1;
    let refresh = copy(&world);
    let (heard, _) = world.registries[MAIN_B]
        .on_message(from, refresh, world.now)
        .unwrap();
    assert_eq!(heard, Heard::News);
    assert_eq!(world.knows(MAIN_B, "service-0"), Ok(vec![ALICE]));
    // It expires once more, and then nothing is kept of it.
    for _ in 0..2 {
        world.now += Registry::GONE_FOR;
        drop(world.registries[MAIN_B].on_tick(world.now));
    }
    assert!(world.registries[MAIN_B].gone.is_empty());
}

#[test]
fn who_has_come_back_is_not_sought_where_its_last_word_came_from() {
    let key = Keypair::generate_ed25519();
    let node = key.public().to_peer_id();
    let [me, other] = [(); 2].map(|()| PeerId::random());
    let mut registry = Registry::new(me, MAIN);
    let hear = |registry: &mut Registry, path: &[PeerId], epoch, departure: Option<Departure>| {
        let stamp = Stamp {
            epoch,
            number: u64::from(departure.is_some()),
        };
        let said = Announcement {
            stamp,
            departure,
            ..announcement(&key, &["blog"])
        };
        let signed = SignedAnnouncement::new(&said, &key).unwrap();
        let (path, from) = (path.to_vec(), *path.last().unwrap());
        let message = Message::Announced(Box::new(Forwarded { path, signed }));
        registry.on_message(from, message, origin()).unwrap().0
    };
    for peer in [node, other] {
        drop(registry.on_connected(peer, MAIN));
    }
    hear(&mut registry, &[node, other], 1, None);
    // It goes and comes back, and is heard of here before its last word has come the longer way.
    assert_eq!(hear(&mut registry, &[node], 2, None), Heard::News);
    assert_eq!(registry.hops_by(node, other), Some(2));
    let late = hear(&mut registry, &[node, other], 1, Some(Departure::Shutdown));
    assert_eq!((late, registry.hops_by(node, other)), (Heard::Stale, None));
    assert_eq!(registry.next(node, &[]), Ok(node));
}

#[test]
fn whoever_was_told_of_a_node_hears_when_it_expires_also_where_a_way_to_it_was_heard_of_later() {
    let key = Keypair::generate_ed25519();
    let node = key.public().to_peer_id();
    let signed = SignedAnnouncement::new(&announcement(&key, &["blog"]), &key).unwrap();
    let [me, first, second, next] = [(); 4].map(|()| PeerId::random());
    let mut registry = Registry::new(me, MAIN);
    for peer in [first, second, next] {
        drop(registry.on_connected(peer, MAIN));
    }
    for (from, now) in [(first, origin()), (second, origin() + Registry::REFRESH)] {
        let (path, signed) = (vec![node, from], signed.clone());
        let message = Message::Announced(Box::new(Forwarded { path, signed }));
        drop(registry.on_message(from, message, now).unwrap());
    }
    let told = registry.on_tick(origin() + Registry::TTL + Registry::REFRESH / 2);
    let lost = Message::Lost { origin: node };
    assert!(told.contains(&ToSend {
        to: next,
        message: lost
    }));
    assert_eq!(
        registry.next(node, &[]).unwrap_err().code,
        ErrorCode::NodeNotFound
    );
}

#[test]
fn what_is_heard_by_two_ways_is_news_once_and_goes_on_again_only_by_a_nearer_one() {
    let key = Keypair::generate_ed25519();
    let origin_id = key.public().to_peer_id();
    let signed = SignedAnnouncement::new(&announcement(&key, &["blog"]), &key).unwrap();
    let [me, far, first, second, next] = [(); 5].map(|()| PeerId::random());
    let mut registry = Registry::new(me, MAIN);
    for peer in [first, second, next] {
        drop(registry.on_connected(peer, MAIN));
    }
    let mut hear = |path: &[PeerId]| {
        let (path, signed) = (path.to_vec(), signed.clone());
        let from = *path.last().unwrap();
        let message = Message::Announced(Box::new(Forwarded { path, signed }));
        let (heard, to_send) = registry.on_message(from, message, origin()).unwrap();
        let on = to_send.into_iter().filter(|sent| sent.to == next);
        let hops = on.map(|sent| match sent.message {
            Message::Announced(forwarded) => Some(forwarded.hops()),
            Message::Lost { .. } => None,
        });
        (heard, hops.collect::<Vec<_>>())
    };
    let (long, short) = ([origin_id, far, first], [origin_id, second]);
    assert_eq!(
        hear(&long),
        (Heard::News, vec![]),
        "it would be known too far away"
    );
    assert_eq!(hear(&short), (Heard::Known, vec![Some(3)]));
    for way in [&long[..], &short, &long] {
        assert_eq!(hear(way), (Heard::Known, vec![]));
    }
}

#[test]
fn a_home_calls_whatever_its_main_reaches() {
    let world = two_houses();
    for (from, to, links) in [
        (ALICE, MAIN_A, 1),
        (ALICE, MAIN_B, 2),
        (ALICE, BOB, 3),
        (BOB, ALICE, 3),
        (BOB, BOB, 0),
    ] {
        assert_eq!(world.carry(from, to), Ok(links), "from {from} to {to}");
    }
}

#[test]
fn a_name_is_its_first_claimants() {
    let mut world = two_houses();
    let (alice, bob) = (world.id(ALICE), world.id(BOB));
    let name: NodeName = "node-0".parse().unwrap();
    let claim = |world: &mut World| {
        world.stamps[BOB].number += 1;
        let mut said = world.said(BOB, &["blog"], None);
        said.name = Some(name.clone());
        let signed = SignedAnnouncement::new(&said, &world.keys[BOB]).unwrap();
        let to_send = world.registries[BOB].announce(signed).unwrap();
        world.queue(BOB, to_send);
        world.settle(1);
    };
    claim(&mut world);
    for main in [MAIN_A, MAIN_B] {
        let registry = &world.registries[main];
        assert_eq!(registry.claim(bob), Some((&name, alice)));
        assert_eq!(registry.locate(&"node-0".parse().unwrap()), Ok(alice));
        // By its id it is called all the same, and so is what it offers.
        assert_eq!(registry.name(bob), None);
        let address = registry.address(bob);
        assert_eq!(registry.locate(&address), Ok(bob), "{address}");
        assert_eq!(world.knows(main, "blog"), Ok(vec![BOB]));
    }
    world.offer(ALICE, &[], Some(Departure::Shutdown));
    world.settle(1);
    let registry = &world.registries[MAIN_B];
    let nobody = registry.locate(&"node-0".parse().unwrap()).unwrap_err();
    assert_eq!(nobody.code, ErrorCode::NodeNotFound);
    claim(&mut world);
    let registry = &world.registries[MAIN_B];
    assert_eq!(registry.name(bob), Some(&name), "it was free");
    assert_eq!(registry.locate(&"node-0".parse().unwrap()), Ok(bob));
}

#[test]
fn a_node_is_known_three_links_away_and_no_further() {
    let mut world = World::new(&[MAIN; 6], 3);
    (0..5).for_each(|node| world.connect(node, node + 1));
    world.settle(1);
    world.check();
    assert_eq!(world.knows(3, "service-0"), Ok(vec![0]));
    assert_eq!(world.knows(4, "service-0"), Err(ErrorCode::ServiceNotFound));
}

#[test]
fn a_call_that_has_passed_a_node_is_not_led_back_over_it() {
    // A square: from 0 to 3 by 1 or by 2.
    let mut world = World::new(&[MAIN; 4], 3);
    for (one, other) in [(0, 1), (0, 2), (1, 3), (2, 3)] {
        world.connect(one, other);
    }
    world.settle(1);
    let [first, second] = [world.id(1), world.id(2)];
    let next = |passed: &[PeerId]| world.registries[0].next(world.id(3), passed);
    assert!([Ok(first), Ok(second)].contains(&next(&[])));
    assert_eq!(next(&[first]), Ok(second));
    // Nobody who has passed it on would have done so, had they known: the same call may do better in a moment.
    assert_eq!(next(&[first, second]).unwrap_err().code, ErrorCode::NodeOffline);
}

#[test]
fn several_offer_the_same_and_the_one_with_just_these_resources_is_wanted_most() {
    let mut world = two_houses();
    assert_eq!(world.knows(MAIN_A, "echo").map(|nodes| nodes.len()), Ok(4));
    world.stamps[ALICE].number += 1;
    let mut said = world.said(ALICE, &["process"], None);
    said.services[0].resources = ["model-a", "model-b"].map(str::to_owned).into();
    let signed = SignedAnnouncement::new(&said, &world.keys[ALICE]).unwrap();
    let to_send = world.registries[ALICE].announce(signed).unwrap();
    world.queue(ALICE, to_send);
    world.stamps[BOB].number += 1;
    let mut said = world.said(BOB, &["process"], None);
    said.services[0].resources = ["model-a"].map(str::to_owned).into();
    let signed = SignedAnnouncement::new(&said, &world.keys[BOB]).unwrap();
    let to_send = world.registries[BOB].announce(signed).unwrap();
    world.queue(BOB, to_send);
    world.settle(1);
    let find = |resources: &[&str]| {
        let wanted = Wanted {
            service: "process".parse().unwrap(),
            method: "run".to_owned(),
            versions: Constraint::default(),
            resources: resources.iter().map(|name| (*name).to_owned()).collect(),
        };
        let found = world.registries[MAIN_A].find(&wanted);
        found.map(|found| {
            found
                .iter()
                .map(|one| world.place(one.origin))
                .collect::<Vec<_>>()
        })
    };
    assert_eq!(find(&["model-a"]), Ok(vec![BOB]));
    assert_eq!(find(&["model-b"]), Ok(vec![ALICE]));
    assert_eq!(find(&["model-c"]).unwrap_err().code, ErrorCode::ServiceNotFound);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn whatever_comes_and_goes_everybody_near_enough_is_known_by_the_nearest_way(
        roles in proptest::collection::vec(prop_oneof![4 => Just(MAIN), 1 => Just(HOME)], 2..8),
        hops_max in 1..=4_u8,
        events in proptest::collection::vec((0..9_u8, 0..8_usize, 0..8_usize, any::<u64>()), 1..60),
    ) {
        let mut world = World::new(&roles, hops_max);
        for (what, one, other, seed) in events {
            let (one, other) = (one % roles.len(), other % roles.len());
            match what {
                0..=2 => world.connect(one, other),
                3 => {
                    // A link that there is, so that ways become longer and not only none.
                    let links: Vec<(usize, usize)> = world.links.keys().copied().collect();
                    if let Some((one, other)) = links.get(seed as usize % links.len().max(1)) {
                        world.cut(*one, *other);
                    }
                }
                4 => world.offer(one, &[], None),
                5 => world.offer(one, &[], Some(Departure::Maintenance)),
                6 => world.restart(one),
                7 => world.refresh(),
                _ => world.offer(one, &[&format!("service-{one}"), "echo"], None),
            }
            // Some of it while the rest is still on its way.
            for step in 0..seed % 5 {
                world.step((seed >> step) as usize);
            }
        }
        world.settle(7);
        world.check();
    }
}

#[test]
fn what_one_main_of_a_mesh_says_is_told_to_mains_outside_and_not_to_the_others() {
    let key = Keypair::generate_ed25519();
    let home = key.public().to_peer_id();
    let signed = SignedAnnouncement::new(&announcement(&key, &["blog"]), &key).unwrap();
    let [me, first, second, outside] = [(); 4].map(|()| PeerId::random());
    let mut registry = Registry::new(me, MAIN);
    drop(registry.set_mesh([first, second].into()));
    for peer in [first, second, outside] {
        drop(registry.on_connected(peer, MAIN));
    }
    let path = vec![home, first];
    let message = Message::Announced(Box::new(Forwarded { path, signed }));
    let (heard, told) = registry.on_message(first, message, origin()).unwrap();
    let to: Vec<PeerId> = told.iter().map(|told| told.to).collect();
    assert_eq!(
        (heard, to),
        (Heard::News, vec![outside]),
        "the second has heard it itself"
    );
    // Once they are no mesh any more, it may have not.
    let told = registry.set_mesh(BTreeSet::new());
    let to: Vec<PeerId> = told.iter().map(|told| told.to).collect();
    assert_eq!(to, [second]);
}
