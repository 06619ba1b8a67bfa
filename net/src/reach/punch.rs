//! One attempt at a direct path: which probes go where and when, and which pair of addresses is chosen.
//!
//! After ICE (RFC 8445): every address of the peer is probed from every socket of its family; a probe that arrives
//! from an address that nobody named makes that address one to be probed at once; a pair counts once its own
//! probe was answered, which proves both directions; the side that will dial names the pair. Sends nothing itself,
//! and says nothing over the relayed connection; that is [`crate::Punches`]'s.

use crate::reach::observations::canonical;
use crate::reach::punches::guessing_address;
use crate::{
    Family, PortSpan, Presence, Probe, ProbeError, ProbeId, ProbeKey, ProbeKind, Side, SocketId, Strategy,
    Token,
};
use rand::{RngExt, rngs::StdRng};
use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// A datagram to send.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Datagram {
    /// From which socket.
    pub socket: SocketId,
    /// Where to.
    pub to: SocketAddr,
    /// How many hops it lives; the system's default when there is nothing.
    pub ttl: Option<u8>,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// The pair of addresses that was found.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Chosen {
    /// Our socket.
    pub socket: SocketId,
    /// The peer's address.
    pub remote: SocketAddr,
    /// Whether this side dials; otherwise it waits for the peer's handshake.
    pub dials: bool,
}

/// What became of one address in an attempt.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Probed {
    /// The address.
    pub address: SocketAddr,
    /// How it came to be one.
    pub source: ProbedSource,
    /// Probes sent there.
    pub sent: u32,
    /// What came back.
    pub outcome: ProbedOutcome,
}

/// How an address came to be probed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ProbedSource {
    /// The peer named it.
    Named,
    /// The peer foretold it.
    Predicted,
    /// A probe of the peer's came from it.
    Arrived,
    /// It was guessed; the address stands for all guesses at its IP address.
    Guessed,
}

/// What came back from an address.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum ProbedOutcome {
    /// Nothing.
    Silent,
    /// The peer's probes arrive from it, and its answers do not.
    Heard,
    /// It answers.
    Answered,
    /// It was chosen.
    Chosen,
}

/// Who and where the two sides of an attempt are.
#[derive(Debug)]
pub(crate) struct Sides<'a> {
    pub(crate) me: Side,
    pub(crate) token: Token,
    /// Our sockets with their local addresses.
    pub(crate) sockets: &'a [(SocketId, SocketAddr)],
    /// What the peer named and vetting left of it.
    pub(crate) theirs: &'a Presence,
    /// The IP addresses from which the peer is seen.
    pub(crate) seen_at: &'a [IpAddr],
    /// Which side dials: both come to the same conclusion.
    pub(crate) dialer: Side,
    /// Over the relayed connection.
    pub(crate) rtt: Option<Duration>,
    /// Whether the first addresses are in all likelihood the ones.
    pub(crate) foreseen: bool,
}

/// One attempt, from the moment that both know the strategy.
#[derive(Debug)]
pub(crate) struct Punch {
    key: ProbeKey,
    me: Side,
    dials: bool,
    sockets: Vec<(SocketId, Family)>,
    seen_at: Vec<IpAddr>,
    /// At most [`PAIRS_MAX`].
    pairs: Vec<Pair>,
    spray: Option<Spray>,
    /// Whom each of our probes asked; at most [`SENT_MAX`].
    asked: HashMap<u32, (SocketId, SocketAddr)>,
    next_transaction: u32,
    sent: u32,
    outbox: VecDeque<Datagram>,
    /// What the peer has told of where our packets come from: our socket, the peer's address, what it saw there.
    /// Once for each pair.
    seen: VecDeque<(SocketId, SocketAddr, SocketAddr)>,
    /// Where QUIC is dialed before any probe has come back, told once.
    early: Option<(SocketId, SocketAddr)>,
    /// Nothing is tried any more from then on; when chosen, how long answers are still given.
    ends_at: Instant,
    chosen: Option<Chosen>,
    /// Which entry of [`NOMINATING`] is due next, counted from the choice; past the end once the peer has answered.
    nominated: usize,
    /// The transactions of what was sent for it.
    nominations: Vec<u32>,
    chosen_at: Instant,
    told: bool,
}

/// An address of the peer, and a socket to reach it from.
#[derive(Debug)]
struct Pair {
    socket: SocketId,
    remote: SocketAddr,
    source: ProbedSource,
    /// Which entry of `spacing` is due next, counted from `starts_at`.
    step: usize,
    starts_at: Instant,
    spacing: &'static [u64],
    ttl: Option<u8>,
    sent: u32,
    outcome: ProbedOutcome,
}

/// Guessing, of which each side does one half.
#[derive(Debug)]
enum Spray {
    /// We are symmetric: open a port from each socket, again and again.
    Open {
        sockets: Vec<SocketId>,
        target: SocketAddr,
        next: usize,
        next_at: Instant,
        round_at: Instant,
    },
    /// The peer is: guess.
    Guess {
        socket: SocketId,
        ip: IpAddr,
        ports: Vec<u16>,
        next: usize,
        next_at: Instant,
    },
}

impl Punch {
    /// Begins an attempt at `now`: when the offer was answered, or was read and answered.
    pub(crate) fn begin(sides: &Sides<'_>, strategy: Strategy, rng: &mut StdRng, now: Instant) -> Self {
        let rtt = sides.rtt.unwrap_or(RTT_UNKNOWN);
        let mut punch = Self {
            key: ProbeKey::new(&sides.token),
            me: sides.me,
            dials: sides.dialer == sides.me,
            sockets: sides
                .sockets
                .iter()
                .map(|(socket, local)| (*socket, Family::of(local.ip())))
                .collect(),
            seen_at: sides.seen_at.iter().map(|ip| ip.to_canonical()).collect(),
            pairs: Vec::new(),
            spray: None,
            asked: HashMap::new(),
            next_transaction: rng.random(),
            sent: 0,
            outbox: VecDeque::new(),
            seen: VecDeque::new(),
            early: None,
            ends_at: now,
            chosen: None,
            nominated: 0,
            nominations: Vec::new(),
            chosen_at: now,
            told: false,
        };
        let starts_at = match (strategy, sides.me) {
            // The answer takes half a round trip to the other side, which begins when it has it.
            (Strategy::Simultaneous | Strategy::Predicted, Side::Answerer) => now + rtt / 2,
            (Strategy::Simultaneous | Strategy::Predicted, Side::Offerer) => now,
            (Strategy::Primed { first, .. }, me) if first != me => now + rtt * 2 + TURN_MARGIN,
            // The answerer has opened its NAT half a round trip ago; ours only has to be open.
            (Strategy::Primed { .. }, Side::Offerer) => now + PRIMING,
            // The offerer opens its NAT when it has the answer.
            (Strategy::Primed { .. }, Side::Answerer) => now + rtt + PRIMING,
            (Strategy::Birthday { sockets, .. }, _) => now + rtt + RATE * u32::from(sockets),
        };
        match strategy {
            Strategy::Simultaneous | Strategy::Predicted | Strategy::Primed { .. } => {
                if let Strategy::Primed { ttl, .. } = strategy {
                    punch.prime(&sides.theirs.candidates, ttl, now);
                }
                punch.probe_all(&sides.theirs.candidates, ProbedSource::Named, starts_at);
                punch.probe_all(&sides.theirs.predicted, ProbedSource::Predicted, starts_at);
                punch.ends_at = now + rtt * 4 + TURN_MARGIN + PROBING;
                if sides.foreseen && punch.dials && sides.me == Side::Offerer {
                    punch.early = punch.likeliest(&sides.theirs.candidates);
                }
            }
            Strategy::Birthday {
                symmetric,
                sockets,
                guesses,
            } => {
                punch.ends_at = starts_at + RATE * u32::from(guesses) + rtt * 4 + PROBING;
                if symmetric != sides.me {
                    let ports = sides.theirs.ports.unwrap_or(PortSpan::ANY);
                    punch.guess(sides.theirs, ports, guesses, rng, starts_at);
                }
                debug_assert!(sockets <= Strategy::SOCKETS_MAX, "checked where it came in");
            }
        }
        punch
    }

    /// Where the peer can be found that has a NAT to guess at: our sockets for that purpose are open.
    pub(crate) fn open_from(&mut self, sockets: Vec<SocketId>, target: SocketAddr, now: Instant) {
        let target = canonical(target);
        self.spray = Some(Spray::Open {
            sockets,
            target,
            next: 0,
            next_at: now,
            round_at: now,
        });
    }

    /// What its probes are named by.
    pub(crate) const fn id(&self) -> ProbeId {
        self.key.id()
    }

    /// A datagram with this attempt's name has arrived.
    pub(crate) fn on_datagram(
        &mut self,
        socket: SocketId,
        from: SocketAddr,
        datagram: &[u8],
        now: Instant,
    ) -> Result<(), ProbeError> {
        let probe = self.key.open(datagram)?;
        if probe.from == self.me {
            // Our own, sent back by somebody.
            return Err(ProbeError::Forged);
        }
        let from = canonical(from);
        match probe.kind {
            ProbeKind::Ping => {
                self.answer(socket, from, probe.transaction);
                if self.heard(socket, from, now) && self.chosen.is_none() {
                    self.trigger(socket, from, now);
                }
            }
            ProbeKind::Pong => {
                if self.asked.get(&probe.transaction) == Some(&(socket, from)) {
                    let _ = self.heard(socket, from, now);
                    let first = self
                        .pair(socket, from)
                        .is_some_and(|pair| pair.outcome < ProbedOutcome::Answered);
                    if let Some(seen) = probe.seen
                        && first
                    {
                        self.seen.push_back((socket, from, seen));
                    }
                    self.confirmed(socket, from, probe.transaction, now);
                }
            }
            ProbeKind::Nominate => {
                self.answer(socket, from, probe.transaction);
                let _ = self.heard(socket, from, now);
                if !self.dials {
                    self.choose(socket, from, now);
                }
            }
            ProbeKind::Witness => return Err(ProbeError::Malformed),
        }
        Ok(())
    }

    /// The next datagram to send, when one is due.
    pub(crate) fn poll(&mut self, now: Instant) -> Option<Datagram> {
        if self.chosen.is_none() && now < self.ends_at {
            self.probe_due(now);
            self.spray_due(now);
        }
        self.nominate_due(now);
        self.outbox.pop_front()
    }

    /// When [`Self::poll`] or [`Self::is_over`] has something to say.
    pub(crate) fn next_at(&self) -> Instant {
        if self.chosen.is_some() {
            return self.nominate_at().map_or(self.ends_at, |at| at.min(self.ends_at));
        }
        let pairs = self.pairs.iter().filter_map(Pair::due_at);
        let spray = self.spray.as_ref().and_then(Spray::due_at);
        pairs.chain(spray).fold(self.ends_at, Instant::min)
    }

    /// Where to dial before any probe has come back, told once: from which socket, and where to.
    pub(crate) const fn take_early(&mut self) -> Option<(SocketId, SocketAddr)> {
        self.early.take()
    }

    /// The first address that the peer names and that we have a socket for, an IPv6 one if there is any, since no NAT
    /// stands before it. None of a peer on the same site, whose other addresses are better.
    fn likeliest(&self, candidates: &[SocketAddr]) -> Option<(SocketId, SocketAddr)> {
        let seen = |remote: &SocketAddr| self.seen_at.contains(&remote.ip().to_canonical());
        if !candidates.iter().all(seen) {
            return None;
        }
        candidates
            .iter()
            .map(|remote| canonical(*remote))
            .filter_map(|remote| Some((*self.sockets_for(remote).first()?, remote)))
            .min_by_key(|(_, remote)| remote.is_ipv4())
    }

    /// Where the peer has seen packets of ours come from, told once: our socket, where they went, and that.
    pub(crate) fn take_seen(&mut self) -> Option<(SocketId, SocketAddr, SocketAddr)> {
        self.seen.pop_front()
    }

    /// The pair that was chosen, told once.
    pub(crate) fn take_chosen(&mut self) -> Option<Chosen> {
        if self.told {
            return None;
        }
        self.told = self.chosen.is_some();
        self.chosen
    }

    /// Whether there is nothing more to expect.
    pub(crate) fn is_over(&self, now: Instant) -> bool {
        self.ends_at <= now
    }

    /// Whether a pair was chosen.
    pub(crate) const fn is_settled(&self) -> bool {
        self.chosen.is_some()
    }

    /// What became of every address.
    pub(crate) fn probed(&self) -> Vec<Probed> {
        let pairs = self.pairs.iter().filter(|pair| pair.ttl.is_none()).map(|pair| {
            let chosen = self
                .chosen
                .is_some_and(|chosen| (chosen.socket, chosen.remote) == (pair.socket, pair.remote));
            Probed {
                address: pair.remote,
                source: pair.source,
                sent: pair.sent,
                outcome: if chosen {
                    ProbedOutcome::Chosen
                } else {
                    pair.outcome
                },
            }
        });
        let guessed = match &self.spray {
            Some(Spray::Guess { ip, next, .. }) => Some(Probed {
                address: SocketAddr::new(*ip, 0),
                source: ProbedSource::Guessed,
                sent: u32::try_from(*next).unwrap_or(u32::MAX),
                outcome: ProbedOutcome::Silent,
            }),
            Some(Spray::Open { .. }) | None => None,
        };
        pairs.chain(guessed).collect()
    }

    fn probe_all(&mut self, remotes: &[SocketAddr], source: ProbedSource, starts_at: Instant) {
        for &remote in remotes {
            for socket in self.sockets_for(remote) {
                self.add(socket, remote, source, starts_at, &SPACING, None);
            }
        }
    }

    /// Opens our NATs towards the peer with packets that do not reach it.
    fn prime(&mut self, remotes: &[SocketAddr], ttl: u8, now: Instant) {
        for &remote in remotes {
            for socket in self.sockets_for(remote) {
                self.add(
                    socket,
                    remote,
                    ProbedSource::Named,
                    now,
                    &PRIMING_SPACING,
                    Some(ttl),
                );
            }
        }
    }

    fn guess(&mut self, theirs: &Presence, ports: PortSpan, guesses: u16, rng: &mut StdRng, at: Instant) {
        let Some(remote) = guessing_address(&theirs.candidates, &self.seen_at) else {
            return;
        };
        let ip = remote.ip().to_canonical();
        let Some(&socket) = self.sockets_for(remote).first() else {
            return;
        };
        let count = usize::from(guesses).min(ports.len() as usize);
        let ports = rand::seq::index::sample(rng, ports.len() as usize, count)
            .into_iter()
            .filter_map(|n| u16::try_from(n + usize::from(ports.low)).ok())
            .collect();
        self.spray = Some(Spray::Guess {
            socket,
            ip,
            ports,
            next: 0,
            next_at: at,
        });
    }

    fn sockets_for(&self, remote: SocketAddr) -> Vec<SocketId> {
        let family = Family::of(remote.ip());
        self.sockets
            .iter()
            .filter(|(_, of)| *of == family)
            .map(|(socket, _)| *socket)
            .collect()
    }

    fn add(
        &mut self,
        socket: SocketId,
        remote: SocketAddr,
        source: ProbedSource,
        starts_at: Instant,
        spacing: &'static [u64],
        ttl: Option<u8>,
    ) {
        let remote = canonical(remote);
        let known = |pair: &Pair| {
            pair.socket == socket && pair.remote == remote && pair.ttl.is_some() == ttl.is_some()
        };
        if self.pairs.len() < PAIRS_MAX && !self.pairs.iter().any(known) {
            self.pairs.push(Pair {
                socket,
                remote,
                source,
                step: 0,
                starts_at,
                spacing,
                ttl,
                sent: 0,
                outcome: ProbedOutcome::Silent,
            });
        }
    }

    /// Notes that the peer's packets arrive from an address; says whether it is one to probe.
    fn heard(&mut self, socket: SocketId, from: SocketAddr, now: Instant) -> bool {
        if self.pair(socket, from).is_none() {
            // Whoever knows the token can write any sender into a packet: an address where nobody has seen the
            // peer is probed a few times at most, and few such addresses.
            let vetted = self.seen_at.contains(&from.ip());
            let strangers = self
                .pairs
                .iter()
                .filter(|pair| {
                    pair.source == ProbedSource::Arrived && !self.seen_at.contains(&pair.remote.ip())
                })
                .count();
            if !vetted && strangers >= STRANGERS_MAX {
                return false;
            }
            let spacing: &[u64] = if vetted { &SPACING } else { &STRANGER_SPACING };
            self.add(socket, from, ProbedSource::Arrived, now, spacing, None);
        }
        match self.pair(socket, from) {
            Some(pair) => {
                pair.outcome = pair.outcome.max(ProbedOutcome::Heard);
                true
            }
            None => false,
        }
    }

    fn pair(&mut self, socket: SocketId, remote: SocketAddr) -> Option<&mut Pair> {
        self.pairs
            .iter_mut()
            .find(|pair| pair.socket == socket && pair.remote == remote && pair.ttl.is_none())
    }

    /// The peer's packets get through, so ours are worth sending now.
    fn trigger(&mut self, socket: SocketId, remote: SocketAddr, now: Instant) {
        if let Some(pair) = self.pair(socket, remote)
            && pair.due_at().is_none_or(|at| at > now)
            && pair.sent < TRIGGERED_MAX
            && pair.outcome < ProbedOutcome::Answered
        {
            pair.sent += 1;
            self.send(socket, remote, ProbeKind::Ping, None);
        }
    }

    fn confirmed(&mut self, socket: SocketId, remote: SocketAddr, transaction: u32, now: Instant) {
        if let Some(pair) = self.pair(socket, remote) {
            pair.outcome = pair.outcome.max(ProbedOutcome::Answered);
        }
        if self.nominations.contains(&transaction) {
            self.nominated = NOMINATING.len();
        }
        if self.dials {
            self.choose(socket, remote, now);
        }
    }

    fn choose(&mut self, socket: SocketId, remote: SocketAddr, now: Instant) {
        if self.chosen.is_none() {
            let dials = self.dials;
            self.chosen = Some(Chosen {
                socket,
                remote,
                dials,
            });
            self.chosen_at = now;
            self.ends_at = now + LINGER;
        }
    }

    /// Tells the peer which pair was chosen until it has heard so.
    fn nominate_due(&mut self, now: Instant) {
        let Some(chosen) = self.chosen else {
            return;
        };
        if self.nominate_at().is_some_and(|at| at <= now) {
            self.nominated += 1;
            self.nominations.push(self.next_transaction);
            self.send(chosen.socket, chosen.remote, ProbeKind::Nominate, None);
        }
    }

    fn nominate_at(&self) -> Option<Instant> {
        let offset = NOMINATING.get(self.nominated).filter(|_| self.dials)?;
        Some(self.chosen_at + Duration::from_millis(*offset))
    }

    fn probe_due(&mut self, now: Instant) {
        for n in 0..self.pairs.len() {
            let pair = &mut self.pairs[n];
            if pair.due_at().is_none_or(|at| now < at) {
                continue;
            }
            // Late is late: what was missed is not made up for in one burst.
            while pair.due_at().is_some_and(|at| at <= now) {
                pair.step += 1;
            }
            pair.sent += 1;
            let (socket, remote, ttl) = (pair.socket, pair.remote, pair.ttl);
            self.send(socket, remote, ProbeKind::Ping, ttl);
        }
    }

    fn spray_due(&mut self, now: Instant) {
        let (socket, to) = match &mut self.spray {
            Some(Spray::Open {
                sockets,
                target,
                next,
                next_at,
                round_at,
            }) if *next_at <= now => {
                let Some(&socket) = sockets.get(*next) else {
                    return;
                };
                *next += 1;
                *next_at = now + RATE;
                if *next == sockets.len() {
                    *next = 0;
                    *round_at += OPEN_AGAIN;
                    *next_at = (*next_at).max(*round_at);
                }
                (socket, *target)
            }
            Some(Spray::Guess {
                socket,
                ip,
                ports,
                next,
                next_at,
            }) if *next_at <= now => {
                let Some(&port) = ports.get(*next) else {
                    return;
                };
                *next += 1;
                *next_at = now + RATE;
                (*socket, SocketAddr::new(*ip, port))
            }
            _ => return,
        };
        self.send(socket, to, ProbeKind::Ping, None);
    }

    fn answer(&mut self, socket: SocketId, from: SocketAddr, transaction: u32) {
        let probe = Probe {
            kind: ProbeKind::Pong,
            from: self.me,
            transaction,
            seen: Some(from),
        };
        let _ = self.push(socket, from, None, &probe);
    }

    fn send(&mut self, socket: SocketId, to: SocketAddr, kind: ProbeKind, ttl: Option<u8>) {
        let transaction = self.next_transaction;
        self.next_transaction = transaction.wrapping_add(1);
        let probe = Probe {
            kind,
            from: self.me,
            transaction,
            seen: None,
        };
        if self.push(socket, to, ttl, &probe) {
            self.asked.insert(transaction, (socket, to));
        }
    }

    /// Sends within the bounds; says whether it did.
    fn push(&mut self, socket: SocketId, to: SocketAddr, ttl: Option<u8>, probe: &Probe) -> bool {
        if self.sent >= SENT_MAX || self.outbox.len() >= OUTBOX_MAX {
            return false;
        }
        self.sent += 1;
        let bytes = self.key.seal(probe);
        self.outbox.push_back(Datagram {
            socket,
            to,
            ttl,
            bytes,
        });
        true
    }
}

impl Pair {
    /// When the next probe is due; never again once the pair has answered or the steps are used up.
    fn due_at(&self) -> Option<Instant> {
        if self.outcome >= ProbedOutcome::Answered {
            return None;
        }
        let offset = self.spacing.get(self.step)?;
        Some(self.starts_at + Duration::from_millis(*offset))
    }
}

impl Spray {
    fn due_at(&self) -> Option<Instant> {
        match self {
            Self::Open { sockets, next_at, .. } => (!sockets.is_empty()).then_some(*next_at),
            Self::Guess {
                ports, next, next_at, ..
            } => (*next < ports.len()).then_some(*next_at),
        }
    }
}

/// Milliseconds after the start at which an address is probed: densely at first, since the two sides' moments
/// differ by the jitter of the relayed path, and then against losses.
const SPACING: [u64; 14] = [0, 3, 7, 12, 20, 30, 45, 70, 120, 200, 400, 700, 1000, 1300];
/// Packets that open a NAT; the second is against a loss.
const PRIMING_SPACING: [u64; 2] = [0, 15];
/// Until the peer answers; its handshake comes from the dialing side in any case.
const NOMINATING: [u64; 6] = [0, 20, 60, 150, 400, 1000];
const STRANGER_SPACING: [u64; 3] = [0, 40, 200];
/// When the opening packets are out.
const PRIMING: Duration = Duration::from_millis(25);
/// What the side that waits its turn waits beyond two round trips.
const TURN_MARGIN: Duration = Duration::from_millis(250);
/// Until the last of [`SPACING`], and a little.
const PROBING: Duration = Duration::from_millis(1500);
/// 100 packets a second.
const RATE: Duration = Duration::from_millis(10);
/// A port that was opened is opened again after this, against a loss and before the NAT forgets.
const OPEN_AGAIN: Duration = Duration::from_secs(8);
/// What is assumed when the relayed round trip was not measured.
const RTT_UNKNOWN: Duration = Duration::from_millis(200);
/// How long the side that has chosen still answers: until the other has heard so.
const LINGER: Duration = Duration::from_secs(2);
/// 16 addresses and 16 foretold ones, opened and probed, and those that arrive.
const PAIRS_MAX: usize = 96;
/// Addresses of the peer's where nobody but it has seen it: a second uplink, a carrier with several public addresses.
const STRANGERS_MAX: usize = 4;
/// Probes of one address that the peer's own probes may bring about beyond the schedule.
const TRIGGERED_MAX: u32 = 16;
/// Everything that one attempt may send: the guesses of both volleys, or what keeps the guessed ports open meanwhile,
/// and as much again as probes and answers need at most.
const SENT_MAX: u32 = 4096;
/// What is due at one moment: every pair once.
const OUTBOX_MAX: usize = 256;
