//! Two nodes behind NATs of every kind, in made-up time: what the specification's matrix promises, and how fast.

use super::*;
use lapwing_base::PeerId;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

const RTT: Duration = Duration::from_millis(40);

/// One kind of NAT.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Kind {
    name: &'static str,
    ports: Ports,
    filtering: Filtering,
}

/// How a NAT gives ports.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Ports {
    /// No translation.
    Own,
    Preserving,
    Translating,
    SymmetricRandom,
    SymmetricCounting,
    /// Out of a block of 1,024.
    SymmetricBlock,
}

const fn kind(name: &'static str, ports: Ports, filtering: Filtering) -> Kind {
    Kind {
        name,
        ports,
        filtering,
    }
}

const EIF: Filtering = Filtering::EndpointIndependent;
const ADF: Filtering = Filtering::AddressDependent;
const APDF: Filtering = Filtering::AddressAndPortDependent;

const CONE: Kind = kind("eim-p apdf", Ports::Preserving, APDF);
const SYMMETRIC: Kind = kind("sym-random", Ports::SymmetricRandom, APDF);

const KINDS: [Kind; 11] = [
    kind("none", Ports::Own, EIF),
    kind("firewall", Ports::Own, APDF),
    kind("eim-p eif", Ports::Preserving, EIF),
    kind("eim-t eif", Ports::Translating, EIF),
    kind("eim-p adf", Ports::Preserving, ADF),
    kind("eim-t adf", Ports::Translating, ADF),
    CONE,
    kind("eim-t apdf", Ports::Translating, APDF),
    SYMMETRIC,
    kind("sym-count", Ports::SymmetricCounting, APDF),
    kind("sym-block", Ports::SymmetricBlock, APDF),
];

impl Kind {
    fn nat_type(self) -> NatType {
        NatType {
            mapping: match self.ports {
                Ports::Own => Mapping::None,
                Ports::Preserving | Ports::Translating => Mapping::EndpointIndependent,
                Ports::SymmetricRandom | Ports::SymmetricCounting | Ports::SymmetricBlock => {
                    Mapping::Symmetric
                }
            },
            port_preserving: Some(self.ports == Ports::Preserving),
            filtering: self.filtering,
            udp: Udp::Open,
        }
    }
}

/// A router with a NAT, as Linux and its kin do it.
struct Router {
    kind: Kind,
    public: IpAddr,
    rng: StdRng,
    /// Ports by local address and, where it matters, destination.
    ports: HashMap<(SocketAddr, Option<SocketAddr>), u16>,
    locals: HashMap<u16, SocketAddr>,
    /// Who was sent to from a public port.
    sent: HashMap<(u16, SocketAddr), Instant>,
    counter: u16,
    /// Whether a packet that comes in first takes the port for its flow (the race of Linux' conntrack).
    races: bool,
    taken: HashMap<(SocketAddr, u16), Instant>,
    /// Flows that got another port for that reason, until the router forgets them.
    moved: HashMap<(SocketAddr, SocketAddr), (u16, Instant)>,
}

/// How long Linux remembers a flow of UDP that was not answered.
const UNREPLIED: Duration = Duration::from_secs(30);

impl Router {
    fn out(&mut self, local: SocketAddr, to: SocketAddr, now: Instant) -> SocketAddr {
        let key = match self.kind.ports {
            Ports::Own | Ports::Preserving | Ports::Translating => (local, None),
            _ => (local, Some(to)),
        };
        let port = match self.ports.get(&key) {
            Some(port) => *port,
            None => {
                let port = match self.kind.ports {
                    Ports::Own | Ports::Preserving => local.port(),
                    Ports::SymmetricCounting => {
                        self.counter += 1;
                        self.counter
                    }
                    Ports::SymmetricBlock => self.free_port(2048..3072),
                    Ports::Translating | Ports::SymmetricRandom => self.free_port(1024..65535),
                };
                self.ports.insert(key, port);
                port
            }
        };
        // Taken by the other side's packet, which came first: this flow gets another port for as long as it lasts.
        let moved = self.moved.get(&(local, to)).filter(|(_, until)| now < *until);
        let taken = self.taken.get(&(to, port)).is_some_and(|until| now < *until);
        let flows = match moved {
            Some((moved, _)) => *moved,
            None if taken && !self.is_open(port, now, |of| *of == to) => self.free_port(1024..65535),
            None => port,
        };
        if flows != port {
            self.moved.insert((local, to), (flows, now + UNREPLIED));
        }
        let port = flows;
        self.locals.insert(port, local);
        self.sent.insert((port, to), now);
        SocketAddr::new(self.public, port)
    }

    fn in_(&mut self, from: SocketAddr, port: u16, now: Instant) -> Option<SocketAddr> {
        let admitted = match self.kind.filtering {
            Filtering::EndpointIndependent => true,
            Filtering::AddressDependent => self.is_open(port, now, |to| to.ip() == from.ip()),
            _ => self.is_open(port, now, |to| *to == from),
        };
        let local = self.locals.get(&port).copied().filter(|_| admitted);
        if local.is_none() && self.races {
            self.taken.insert((from, port), now + UNREPLIED);
        }
        local
    }

    /// Whether such an address was sent to from a public port lately.
    fn is_open(&self, port: u16, now: Instant, is: impl Fn(&SocketAddr) -> bool) -> bool {
        self.sent
            .iter()
            .any(|((of, to), at)| *of == port && is(to) && now < *at + UNREPLIED)
    }

    fn free_port(&mut self, range: std::ops::Range<u16>) -> u16 {
        loop {
            let port = self.rng.random_range(range.clone());
            if !self.locals.contains_key(&port) {
                return port;
            }
        }
    }
}

/// The first packet of a handshake, and what answers it.
const INITIAL: &[u8] = b"initial";
const FLIGHT: &[u8] = b"flight";

struct Node {
    peer: PeerId,
    punches: Punches,
    router: Router,
    lan: IpAddr,
    sockets: BTreeMap<SocketId, u16>,
    candidate: SocketAddr,
    predicted: Vec<SocketAddr>,
    ports: Option<PortSpan>,
    nat: NatType,
    chosen: Option<(Chosen, Instant)>,
    /// When a handshake that was begun before any probe had come back was done.
    direct_at: Option<Instant>,
    failures: Vec<RelayedBecause>,
    retry_at: Option<Instant>,
    sent: u32,
    observed: Vec<Observation>,
}

enum Event {
    Located {
        to: usize,
    },
    Told {
        to: usize,
        message: Vec<u8>,
    },
    Local {
        to: usize,
        from: SocketAddr,
        bytes: Vec<u8>,
    },
    Packet {
        to: usize,
        from: SocketAddr,
        port: u16,
        bytes: Vec<u8>,
    },
}

struct Lab {
    nodes: [Node; 2],
    events: BTreeMap<(Instant, u64), Event>,
    serial: u64,
    start: Instant,
    now: Instant,
    rng: StdRng,
    rtt: Duration,
    relayed: [Duration; 2],
    jitter: Duration,
    loss: f64,
    /// Whether both are behind the first node's router, which does not send back what is meant for itself.
    same_lan: bool,
    /// Who is told only a while after an offer where the other is seen.
    locating: Option<usize>,
}

impl Lab {
    fn new(kinds: [Kind; 2], seed: u64) -> Self {
        #[expect(clippy::disallowed_methods, reason = "any instant will do")]
        let start = Instant::now();
        let mut rng = StdRng::seed_from_u64(seed);
        let relay: SocketAddr = "198.18.0.1:4001".parse().unwrap();
        let nodes = [0_u8, 1].map(|n| {
            let kind = kinds[usize::from(n)];
            let public = IpAddr::V4(Ipv4Addr::new(203, 0, 113 + n, 9));
            let lan = match kind.ports {
                Ports::Own => public,
                _ => IpAddr::V4(Ipv4Addr::new(192, 168, n, 5)),
            };
            let mut router = Router {
                kind,
                public,
                rng: StdRng::seed_from_u64(rng.random()),
                ports: HashMap::new(),
                locals: HashMap::new(),
                sent: HashMap::new(),
                counter: 40_000,
                races: false,
                taken: HashMap::new(),
                moved: HashMap::new(),
            };
            let local = SocketAddr::new(lan, 4001);
            let candidate = router.out(local, relay, start);
            let predicted = match kind.ports {
                Ports::SymmetricCounting => (1..=8)
                    .map(|step| SocketAddr::new(public, candidate.port() + step))
                    .collect(),
                _ => Vec::new(),
            };
            let ports = (kind.ports == Ports::SymmetricBlock).then_some(PortSpan {
                low: 2048,
                high: 3071,
            });
            Node {
                peer: PeerId::random(),
                punches: Punches::new(PeerId::random(), [0; 32]),
                router,
                lan,
                sockets: BTreeMap::from([(SocketId(0), 4001)]),
                candidate,
                predicted,
                ports,
                nat: kind.nat_type(),
                chosen: None,
                direct_at: None,
                failures: Vec::new(),
                retry_at: None,
                sent: 0,
                observed: Vec::new(),
            }
        });
        let mut lab = Self {
            nodes,
            events: BTreeMap::new(),
            serial: 0,
            start,
            now: start,
            rng,
            rtt: RTT,
            relayed: [RTT / 2; 2],
            jitter: Duration::ZERO,
            loss: 0.0,
            same_lan: false,
            locating: None,
        };
        for node in &mut lab.nodes {
            node.punches = Punches::new(node.peer, lab.rng.random());
        }
        lab
    }

    fn here_and_there(&self, me: usize) -> (Here, There) {
        let node = &self.nodes[me];
        let here = Here {
            presence: Presence {
                nat: node.nat,
                candidates: vec![SocketAddr::new(node.lan, 4001), node.candidate],
                predicted: node.predicted.clone(),
                ports: node.ports,
                to_relay: None,
            },
            sockets: vec![(SocketId(0), SocketAddr::new(node.lan, 4001))],
            seen_at: vec![node.router.public],
        };
        let there = There {
            seen_at: if self.locating == Some(me) {
                Vec::new()
            } else {
                vec![self.nodes[1 - me].router.public]
            },
            awaited: self.locating == Some(me),
            rtt: Some(self.relayed[0] + self.relayed[1]),
        };
        (here, there)
    }

    fn offer(&mut self, me: usize) {
        let (here, there) = self.here_and_there(me);
        let peer = self.nodes[1 - me].peer;
        // Another attempt may have been begun by the other side; that is as good.
        let _ = self.nodes[me].punches.start(peer, here, there, self.now);
        self.drain(me);
    }

    fn schedule(&mut self, after: Duration, event: Event) {
        let jitter = self.jitter.mul_f64(self.rng.random_range(0.0..=1.0));
        self.serial += 1;
        self.events
            .insert((self.now + after + jitter, self.serial), event);
    }

    fn send(&mut self, me: usize, local: SocketAddr, to: SocketAddr, ttl: Option<u8>, bytes: Vec<u8>) {
        if self.same_lan {
            if to == SocketAddr::new(self.nodes[1 - me].lan, 4001) {
                let (from, to) = (local, 1 - me);
                self.schedule(Duration::from_millis(1), Event::Local { to, from, bytes });
            }
            return;
        }
        let from = self.nodes[me].router.out(local, to, self.now);
        // The routers are eight hops apart; a low TTL ends between them.
        let arrives = ttl.is_none_or(|ttl| ttl > 8) && !self.rng.random_bool(self.loss);
        let other = 1 - me;
        if arrives && to.ip() == self.nodes[other].router.public {
            let port = to.port();
            let event = Event::Packet {
                to: other,
                from,
                port,
                bytes,
            };
            self.schedule(self.rtt / 2, event);
        }
    }

    fn drain(&mut self, me: usize) {
        while let Some(action) = self.nodes[me].punches.poll(self.now) {
            match action {
                PunchAction::Tell { message, .. } => {
                    let message = message.to_bytes();
                    let to = 1 - me;
                    self.schedule(self.relayed[me], Event::Told { to, message });
                }
                PunchAction::Send(datagram) => {
                    self.nodes[me].sent += 1;
                    let port = self.nodes[me].sockets[&datagram.socket];
                    let local = SocketAddr::new(self.nodes[me].lan, port);
                    self.send(me, local, datagram.to, datagram.ttl, datagram.bytes);
                }
                PunchAction::Dial { socket, remote, .. } => {
                    let local = SocketAddr::new(self.nodes[me].lan, self.nodes[me].sockets[&socket]);
                    self.send(me, local, remote, None, INITIAL.to_vec());
                }
                PunchAction::OpenSockets { peer, count } => {
                    let opened: Vec<_> = (0..u64::from(count)).map(|n| SocketId(1000 + n)).collect();
                    for (n, socket) in opened.iter().enumerate() {
                        self.nodes[me].sockets.insert(*socket, 20_000 + n as u16);
                    }
                    self.nodes[me].punches.sockets_opened(&peer, opened, self.now);
                }
                PunchAction::CloseSockets { keep, .. } => {
                    assert!(self.nodes[me].chosen.is_none(), "sorted out before the dial");
                    self.nodes[me]
                        .sockets
                        .retain(|socket, _| socket.0 == 0 || Some(*socket) == keep);
                }
                PunchAction::Observed(said) => self.nodes[me].observed.push(said),
                PunchAction::Found { chosen, .. } => self.nodes[me].chosen = Some((chosen, self.now)),
                PunchAction::Failed { why, retry_at, .. } => {
                    self.nodes[me].failures.push(why);
                    self.nodes[me].retry_at = Some(retry_at);
                }
            }
        }
    }

    /// One step; says whether anything is left to happen.
    fn step(&mut self) -> bool {
        let timers = self.nodes.iter().filter_map(|node| node.punches.next_at());
        let retries = self.nodes.iter().filter_map(|node| node.retry_at);
        let event = self.events.keys().next().map(|(at, _)| *at);
        let Some(at) = timers.chain(retries).chain(event).min() else {
            return false;
        };
        self.now = self.now.max(at);
        if event.is_some_and(|at| at <= self.now)
            && let Some((_, event)) = self.events.pop_first()
        {
            match event {
                Event::Located { to } => {
                    let (peer, seen_at) = (self.nodes[1 - to].peer, self.nodes[1 - to].router.public);
                    self.nodes[to].punches.located(peer, &[seen_at], self.now);
                }
                Event::Told { to, message } => {
                    let message = PunchMessage::parse(&message).unwrap();
                    let (here, there) = self.here_and_there(to);
                    let peer = self.nodes[1 - to].peer;
                    self.nodes[to]
                        .punches
                        .on_message(peer, message, here, there, self.now);
                }
                Event::Local { to, from, bytes } => {
                    self.nodes[to]
                        .punches
                        .on_datagram(SocketId(0), from, &bytes, self.now);
                }
                Event::Packet {
                    to,
                    from,
                    port,
                    bytes,
                } => {
                    let node = &mut self.nodes[to];
                    if let Some(local) = node.router.in_(from, port, self.now) {
                        if bytes == INITIAL {
                            self.send(to, local, from, None, FLIGHT.to_vec());
                            return true;
                        }
                        if bytes == FLIGHT {
                            node.direct_at = Some(self.now);
                            return true;
                        }
                        let socket = node.sockets.iter().find(|(_, port)| **port == local.port());
                        if let Some((&socket, _)) = socket {
                            node.punches.on_datagram(socket, from, &bytes, self.now);
                        }
                    }
                }
            }
        }
        for me in [0, 1] {
            if self.nodes[me].retry_at.is_some_and(|at| at <= self.now) {
                self.nodes[me].retry_at = None;
                self.offer(me);
            }
            self.drain(me);
        }
        true
    }

    /// Runs until both know the path, or for so long.
    fn run(&mut self, patience: Duration) -> Option<Duration> {
        self.offer(0);
        while self.now < self.start + patience && self.step() {
            if let [Some((a, a_at)), Some((b, b_at))] = [self.nodes[0].chosen, self.nodes[1].chosen] {
                assert_ne!(a.dials, b.dials, "one dials and the other waits");
                let (dialer, at, chosen) = if a.dials { (0, a_at, a) } else { (1, b_at, b) };
                if !self.same_lan {
                    self.assert_passes(dialer, chosen);
                }
                // The handshake takes one more round trip, unless one was begun before.
                let early = self.nodes[dialer].direct_at;
                return Some((at + self.rtt).min(early.unwrap_or(at + self.rtt)) - self.start);
            }
        }
        None
    }

    /// What the dialer sends on the chosen pair arrives, and so does the answer.
    fn assert_passes(&mut self, me: usize, chosen: Chosen) {
        let (now, other) = (self.now, 1 - me);
        let local = SocketAddr::new(self.nodes[me].lan, self.nodes[me].sockets[&chosen.socket]);
        let from = self.nodes[me].router.out(local, chosen.remote, now);
        let remote = self.nodes[other].router.in_(from, chosen.remote.port(), now);
        let remote = remote.expect("the dial arrives");
        let answered = self.nodes[other].router.out(remote, from, now);
        assert_eq!(answered, chosen.remote, "the answer comes from where we dialed");
        let back = self.nodes[me].router.in_(answered, from.port(), now);
        assert_eq!(back, Some(local), "the answer arrives");
    }
}

#[test]
fn an_offer_is_answered_before_the_relay_has_said_where_the_peer_is() {
    let mut lab = Lab::new([CONE, CONE], 7);
    lab.locating = Some(1);
    // Just in time for the probes, which the answerer begins when the offerer has the answer.
    lab.schedule(RTT, Event::Located { to: 1 });
    let took = lab.run(Duration::from_secs(3)).expect("direct");
    assert!(took <= RTT * 2 + Duration::from_millis(6), "{took:?}");
}

#[test]
fn an_attempt_that_both_have_begun_outlives_the_relayed_path() {
    let mut lab = Lab::new([CONE, CONE], 7);
    lab.offer(0);
    while lab.nodes.iter().any(|node| node.sent == 0) {
        assert!(lab.step());
    }
    for me in [0, 1] {
        let peer = lab.nodes[1 - me].peer;
        lab.nodes[me].punches.disconnected(&peer);
    }
    assert!(lab.run(Duration::from_secs(3)).is_some());
}

#[test]
fn nothing_is_sent_to_where_no_relay_sees_the_peer() {
    let mut lab = Lab::new([CONE, CONE], 7);
    lab.locating = Some(1);
    let elsewhere = "192.0.2.1".parse().unwrap();
    lab.offer(0);
    while lab.nodes[1].punches.next_at().is_none() {
        assert!(lab.step());
    }
    let peer = lab.nodes[0].peer;
    lab.nodes[1].punches.located(peer, &[elsewhere], lab.now);
    lab.drain(1);
    assert_eq!(lab.nodes[1].failures, [RelayedBecause::NoCandidates]);
    assert_eq!((lab.nodes[1].sent, lab.nodes[1].punches.refused()), (0, 2));
    while lab.nodes[0].failures.is_empty() {
        assert!(lab.step(), "the peer is told");
    }
    assert_eq!(lab.nodes[0].failures, [RelayedBecause::NoCandidates]);
}

#[test]
fn every_cell_of_the_matrix_is_what_the_specification_says() {
    println!("time to direct in RTT, or why relayed");
    for a in KINDS {
        let mut row = format!("{:>11}", a.name);
        for b in KINDS {
            let mut lab = Lab::new([a, b], 7);
            let took = lab.run(Duration::from_secs(60));
            let prospect = a.nat_type().prospect(&b.nat_type());
            let cell = match took {
                Some(took) => format!("{:.2}", took.as_secs_f64() / RTT.as_secs_f64()),
                None => "relayed".to_owned(),
            };
            row.push_str(&format!(" {cell:>11}"));
            match prospect {
                Prospect::Direct | Prospect::Simultaneous => {
                    let took = took.unwrap_or_else(|| panic!("{a:?} {b:?} becomes direct"));
                    let symmetric = a.nat_type().is_symmetric() || b.nat_type().is_symmetric();
                    // Where both know where the other will be, the handshake itself opens the way.
                    let most = RTT * if symmetric { 3 } else { 2 };
                    assert!(took <= most + Duration::from_millis(6), "{a:?} {b:?} in {took:?}");
                }
                Prospect::Birthday => assert!(took.is_some(), "{a:?} {b:?} becomes direct"),
                Prospect::Relayed(why) => {
                    assert_eq!(took, None, "{a:?} {b:?}");
                    assert!(lab.nodes.iter().all(|node| node.failures == [why]));
                }
            }
        }
        println!("{row}");
    }
}

#[test]
fn jitter_and_loss_cost_retries_and_not_the_path() {
    for seed in 0..100 {
        let mut lab = Lab::new([CONE, CONE], seed);
        lab.jitter = Duration::from_millis(20);
        lab.loss = 0.2;
        let took = lab.run(Duration::from_secs(3));
        assert!(took.is_some(), "seed {seed}: {:?}", lab.nodes[0].failures);
    }
}

#[test]
fn a_path_by_satellite_takes_one_attempt() {
    for seed in 0..50 {
        let mut lab = Lab::new([CONE, CONE], seed);
        lab.rtt = Duration::from_millis(600);
        lab.relayed = [lab.rtt / 2; 2];
        lab.jitter = Duration::from_millis(30);
        lab.loss = 0.05;
        let took = lab.run(Duration::from_secs(10)).expect("direct");
        assert!(
            took <= lab.rtt * 3 + Duration::from_millis(300),
            "seed {seed}: {took:?}"
        );
        assert!(lab.nodes.iter().all(|node| node.failures.is_empty()));
    }
}

#[test]
fn guessing_finds_a_symmetric_nat() {
    let (mut direct, mut total, mut longest) = (0, Duration::ZERO, Duration::ZERO);
    for seed in 0..100 {
        let kinds = if seed % 2 == 0 {
            [CONE, SYMMETRIC]
        } else {
            [SYMMETRIC, CONE]
        };
        let mut lab = Lab::new(kinds, seed);
        if let Some(took) = lab.run(Duration::from_secs(60)) {
            direct += 1;
            total += took;
            longest = longest.max(took);
            let symmetric = usize::from(seed % 2 == 0);
            assert!(
                lab.nodes[symmetric]
                    .chosen
                    .is_some_and(|(chosen, _)| chosen.dials)
            );
        }
    }
    println!(
        "birthday: {direct} of 100 direct, {:?} on average, {longest:?} at most",
        total / direct
    );
    assert_eq!(direct, 100);
}

#[test]
fn guessing_keeps_to_a_hundred_packets_a_second_and_ten_minutes() {
    let mut lab = Lab::new([CONE, SYMMETRIC], 1);
    // Nothing that is guessed arrives.
    lab.loss = 1.0;
    assert_eq!(lab.run(Duration::from_secs(500)), None);
    let guesses: Vec<_> = lab.nodes[0]
        .failures
        .iter()
        .filter(|why| **why == RelayedBecause::PortsMissed)
        .collect();
    assert_eq!(guesses.len(), 1, "{:?}", lab.nodes[0].failures);
    for node in &lab.nodes {
        assert!(
            node.sent <= u32::from(Strategy::GUESSES_MAX) + 40,
            "{}",
            node.sent
        );
        assert_eq!(node.sockets.len(), 1, "what was opened is closed");
    }
}

#[test]
fn a_carriers_block_takes_few_guesses() {
    let block = kind("sym-block", Ports::SymmetricBlock, APDF);
    for seed in 0..50 {
        let mut lab = Lab::new([CONE, block], seed);
        let took = lab.run(Duration::from_secs(20));
        assert!(took.is_some(), "seed {seed}");
        assert!(lab.nodes[0].sent < 600 && lab.nodes[1].sent < 300);
    }
}

#[test]
fn routers_that_race_are_beaten_by_crossing_probes() {
    for seed in 0..50 {
        let mut lab = Lab::new([CONE, CONE], seed);
        for node in &mut lab.nodes {
            node.router.races = true;
        }
        lab.jitter = Duration::from_millis(5);
        let took = lab.run(Duration::from_secs(3)).expect("direct");
        assert!(took <= RTT * 4, "{took:?}");
    }
}

#[test]
fn routers_that_race_on_a_lopsided_relayed_path_are_beaten_by_opening_first() {
    let mut longest = Duration::ZERO;
    for seed in 0..50 {
        let mut lab = Lab::new([CONE, CONE], seed);
        for node in &mut lab.nodes {
            node.router.races = true;
        }
        // The answer takes far longer than half the round trip, so that the answerer's probes come too soon.
        lab.relayed = [Duration::from_millis(5), Duration::from_millis(200)];
        let took = lab.run(Duration::from_secs(120));
        let took = took.unwrap_or_else(|| panic!("seed {seed}: {:?}", lab.nodes[0].failures));
        assert!(!lab.nodes[0].failures.is_empty(), "the first attempt is lost");
        longest = longest.max(took);
    }
    println!("race on a lopsided path: direct after {longest:?} at most");
    assert!(longest < Duration::from_secs(60));
}

#[test]
fn two_offers_at_once_become_one_attempt() {
    for seed in 0..20 {
        let mut lab = Lab::new([CONE, CONE], seed);
        lab.offer(1);
        let took = lab.run(Duration::from_secs(3)).expect("direct");
        assert!(took <= RTT * 4);
    }
}

#[test]
fn two_homes_behind_one_router_meet_at_home() {
    let mut lab = Lab::new([CONE, CONE], 1);
    lab.same_lan = true;
    let public = lab.nodes[0].router.public;
    lab.nodes[1].router.public = public;
    lab.nodes[1].candidate = SocketAddr::new(public, 5001);
    assert!(lab.run(Duration::from_secs(3)).is_some());
    let [a, b] = [0, 1].map(|n| lab.nodes[n].chosen.unwrap().0.remote.ip());
    assert_eq!((a, b), (lab.nodes[1].lan, lab.nodes[0].lan));
}

#[test]
fn a_peer_tells_where_it_sees_us() {
    let mut lab = Lab::new([CONE, CONE], 1);
    assert!(lab.run(Duration::from_secs(3)).is_some());
    let dialer = usize::from(!lab.nodes[0].chosen.unwrap().0.dials);
    let said = lab.nodes[dialer].observed[0];
    assert_eq!(said.seen, lab.nodes[dialer].candidate);
    assert_eq!(said.observed_at, lab.nodes[1 - dialer].candidate);
}

#[test]
fn what_worked_with_a_peer_is_what_is_tried_first_the_next_time() {
    let mut lab = Lab::new([CONE, SYMMETRIC], 3);
    let first = lab.run(Duration::from_secs(60)).unwrap();
    assert!(first > Duration::from_secs(2), "a plain attempt comes first");
    // Let both forget the path, but not each other.
    for node in &mut lab.nodes {
        node.chosen = None;
    }
    lab.now += Duration::from_secs(60);
    lab.start = lab.now;
    lab.events.clear();
    for me in [0, 1] {
        lab.drain(me);
        lab.nodes[me].failures.clear();
    }
    lab.run(Duration::from_secs(60)).unwrap();
    assert!(lab.nodes.iter().all(|node| node.failures.is_empty()));
}

#[test]
fn a_peer_that_does_not_answer_is_told_apart() {
    let mut lab = Lab::new([CONE, CONE], 1);
    lab.offer(0);
    lab.events.clear();
    while lab.nodes[0].failures.is_empty() {
        assert!(lab.step());
    }
    assert_eq!(lab.nodes[0].failures, [RelayedBecause::NoAnswer]);
}

#[test]
fn nobody_is_made_to_probe_third_parties() {
    let mut lab = Lab::new([CONE, CONE], 1);
    let attacker = lab.nodes[0].peer;
    let (here, there) = lab.here_and_there(1);
    let victim: SocketAddr = "192.0.2.1:53".parse().unwrap();
    let token = Token([3; 16]);
    let own = lab.nodes[0].candidate;
    for number in 0..50 {
        let message = PunchMessage::Offer {
            attempt: u64::from(number),
            token,
            number,
            presence: Presence {
                candidates: vec![victim, own],
                predicted: vec![victim],
                ..Presence::default()
            },
        };
        let (now, here, there) = (lab.now, here.clone(), there.clone());
        lab.nodes[1]
            .punches
            .on_message(attacker, message, here, there, now);
    }
    // Forged senders of its own probes make few packets, each no longer than what it sent itself.
    let key = ProbeKey::new(&token);
    for n in 0..200_u8 {
        let from = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, n)), 53);
        let ping = Probe {
            kind: ProbeKind::Ping,
            from: Side::Offerer,
            transaction: u32::from(n),
            seen: None,
        };
        let now = lab.now;
        lab.nodes[1]
            .punches
            .on_datagram(SocketId(0), from, &key.seal(&ping), now);
    }
    let (mut answers, mut probes, mut busy) = (0, 0, 0);
    let end = lab.now + Duration::from_secs(10);
    while lab.now < end {
        while let Some(action) = lab.nodes[1].punches.poll(lab.now) {
            match action {
                PunchAction::Send(datagram) if datagram.to.ip() != own.ip() => {
                    match key.open(&datagram.bytes).unwrap().kind {
                        ProbeKind::Pong => answers += 1,
                        _ => probes += 1,
                    }
                }
                PunchAction::Tell {
                    message: PunchMessage::GiveUp { why, .. },
                    ..
                } => {
                    assert_eq!(why, RelayedBecause::Busy);
                    busy += 1;
                }
                _ => (),
            }
        }
        let Some(next) = lab.nodes[1].punches.next_at() else {
            break;
        };
        lab.now = next.max(lab.now);
    }
    assert!(
        answers <= 200 && probes <= 20,
        "{answers} answers, {probes} probes"
    );
    assert_eq!((busy, lab.nodes[1].punches.refused()), (44, 12));
}

#[test]
fn one_seed_gives_offers_and_checks_different_tokens() {
    let lab = Lab::new([CONE, CONE], 1);
    let (now, seed) = (lab.now, [7; 32]);
    let (here, there) = lab.here_and_there(0);
    let mut punches = Punches::new(lab.nodes[0].peer, seed);
    punches.start(lab.nodes[1].peer, here, there, now).unwrap();
    let offered = std::iter::from_fn(|| punches.poll(now)).find_map(|action| match action {
        PunchAction::Tell {
            message: PunchMessage::Offer { token, .. },
            ..
        } => Some(token),
        _ => None,
    });
    let mut reachability = Reachability::new(None, seed);
    reachability.set_targets([(lab.nodes[0].candidate, false)], now);
    reachability.main_connected(lab.nodes[1].peer, now);
    let asked: Vec<_> = reachability
        .poll(now)
        .into_iter()
        .filter_map(|action| match action {
            ReachAction::Ask {
                message: WitnessMessage::Ask { token, .. },
                ..
            } => Some(token),
            _ => None,
        })
        .collect();
    assert_eq!(asked.len(), 2);
    assert!(!asked.contains(&offered.unwrap()));
}

#[test]
fn datagrams_of_nobody_are_not_taken() {
    let mut lab = Lab::new([CONE, CONE], 1);
    let (now, from) = (lab.now, lab.nodes[0].candidate);
    let stranger = ProbeKey::new(&Token([1; 16])).seal(&Probe {
        kind: ProbeKind::Ping,
        from: Side::Offerer,
        transaction: 0,
        seen: None,
    });
    let punches = &mut lab.nodes[1].punches;
    assert!(!punches.on_datagram(SocketId(0), from, &stranger, now));
    assert!(!punches.on_datagram(SocketId(0), from, &[], now));
    assert!(punches.poll(now).is_none());
}
