//! Finds direct paths to peers that are reached through a relay: agrees on an attempt, runs it, and changes the
//! strategy before the next. Sends nothing itself and dials nobody.
//!
//! Feed what comes over the relayed connection and what comes from the sockets, then do what [`Punches::poll`] says
//! until it says nothing, and call it again at [`Punches::next_at`]. When it says [`PunchAction::Found`] with
//! `dials`, dial QUIC from that socket to that address; otherwise await the peer's handshake there. Report a dial
//! that fails by [`Punches::failed`], and any direct connection by [`Punches::connected`].

use crate::reach::observations::Family;
use crate::reach::punch::{Punch, Sides};
use crate::reach::punch_attempt::{Answered, Attempt, Next, Opening, Phase, Punching};
use crate::reach::punch_history::{Histories, SOON};
use crate::{
    Chosen, NatType, PortSpan, Presence, Probe, ProbeId, Prospect, PunchAction, PunchError, PunchMessage,
    RelayedBecause, Scope, Side, SocketId, Strategy, Token, Vetting,
};
use lapwing_base::PeerId;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// Where this node is.
#[derive(Clone, Debug, Default)]
pub struct Here {
    /// What it tells a peer of itself.
    pub presence: Presence,
    /// Its sockets with their local addresses, one for each family.
    pub sockets: Vec<(SocketId, SocketAddr)>,
    /// The IP addresses from which others see its packets come.
    pub seen_at: Vec<IpAddr>,
}

/// What is known of a peer, other than by its own word.
#[derive(Clone, Debug, Default)]
pub struct There {
    /// The IP addresses from which this node or a relay sees its packets come. Nothing else of it is probed.
    pub seen_at: Vec<IpAddr>,
    /// Whether a relay is being asked for that, so that [`Punches::located`] will tell.
    pub awaited: bool,
    /// Round-trip time of the relayed connection, where both sides' ways to the relay are not known.
    pub rtt: Option<Duration>,
}

/// Every attempt that is under way, and what is remembered of earlier ones.
#[derive(Debug)]
pub struct Punches {
    me: PeerId,
    rng: StdRng,
    /// At most [`ATTEMPTS_MAX`].
    attempts: BTreeMap<PeerId, Attempt>,
    by_probe: HashMap<ProbeId, PeerId>,
    histories: Histories,
    actions: VecDeque<PunchAction>,
    /// Addresses that peers named and that are not theirs.
    refused: u64,
    /// Datagrams with an attempt's name that its key does not open.
    forged: u64,
}

impl Punches {
    /// No attempts yet. The seed is secret: tokens follow from it.
    pub fn new(me: PeerId, seed: [u8; 32]) -> Self {
        Self {
            me,
            rng: StdRng::from_seed(blake3::derive_key(SEED_CONTEXT, &seed)),
            attempts: BTreeMap::new(),
            by_probe: HashMap::new(),
            histories: Histories::default(),
            actions: VecDeque::new(),
            refused: 0,
            forged: 0,
        }
    }

    /// Offers an attempt to a peer over the relayed connection that stands.
    ///
    /// # Errors
    /// When there is nothing to gain now; the error says when to ask again.
    pub fn start(&mut self, peer: PeerId, here: Here, there: There, now: Instant) -> Result<(), PunchError> {
        if self.is_under_way(&peer) {
            return Err(PunchError::UnderWay);
        }
        let full = self.attempts.len() >= ATTEMPTS_MAX;
        let history = *self.histories.of(peer, now);
        if now < history.retry_at {
            let retry_at = history.retry_at;
            return Err(PunchError::NotDue { retry_at });
        }
        let hopeless = match () {
            () if here.presence.candidates.is_empty() || here.sockets.is_empty() => {
                Some(RelayedBecause::NoCandidates)
            }
            () if matches!(here.presence.nat.udp, crate::Udp::Blocked) => Some(RelayedBecause::UdpBlocked),
            () if full => Some(RelayedBecause::Busy),
            () => None,
        };
        if let Some(why) = hopeless {
            // Nothing was tried, so nothing counts; what lacks may be there in a moment.
            let retry_at = now + SOON;
            return Err(PunchError::Hopeless { why, retry_at });
        }
        let number = history.number;
        let token = Token(self.rng.random());
        let name = self.rng.random();
        let patience = OFFER_PATIENCE + there.rtt.unwrap_or_default() * 3;
        self.end(&peer);
        self.actions.push_back(PunchAction::Tell {
            peer,
            message: PunchMessage::Offer {
                attempt: name,
                token,
                number,
                presence: here.presence.clone().bounded(),
            },
        });
        let gives_up_at = now + patience;
        let phase = Phase::Offered { token, gives_up_at };
        let attempt = Attempt {
            peer,
            name,
            number,
            began_at: now,
            here,
            there,
            phase,
        };
        self.attempts.insert(peer, attempt);
        Ok(())
    }

    /// A message has come from a peer, over a connection that proves its identity.
    pub fn on_message(
        &mut self,
        peer: PeerId,
        message: PunchMessage,
        here: Here,
        there: There,
        now: Instant,
    ) {
        match message {
            PunchMessage::Offer {
                attempt: name,
                token,
                number,
                presence,
            } => self.on_offer(peer, name, token, number, presence, here, there, now),
            PunchMessage::Answer {
                attempt: name,
                strategy,
                presence,
            } => self.on_answer(peer, name, strategy, presence, now),
            PunchMessage::GiveUp { attempt: name, why } => {
                let named = self
                    .attempts
                    .get(&peer)
                    .is_some_and(|attempt| attempt.name == name);
                if named && self.is_under_way(&peer) {
                    self.fail(peer, why, now);
                }
            }
        }
    }

    /// A relay has said where it sees the peer; nowhere, when it does not know.
    pub fn located(&mut self, peer: PeerId, seen_at: &[IpAddr], now: Instant) {
        let Some(attempt) = self.attempts.get_mut(&peer) else {
            return;
        };
        let Phase::Answered(answered) = &attempt.phase else {
            return;
        };
        let Answered {
            token,
            strategy,
            presence,
            at,
            ..
        } = Answered::clone(answered);
        attempt.there.seen_at.extend_from_slice(seen_at);
        let (here, there) = (attempt.here.clone(), attempt.there.clone());
        let name = attempt.name;
        let theirs = self.vet(presence, &here, &there);
        if theirs.candidates.is_empty() {
            let why = RelayedBecause::NoCandidates;
            self.actions.push_back(PunchAction::Tell {
                peer,
                message: PunchMessage::GiveUp { attempt: name, why },
            });
            self.fail(peer, why, now);
            return;
        }
        let prospect = prospect(&here.presence, &theirs);
        let (me, plan) = (Side::Answerer, (token, strategy, prospect));
        // The moments are those that were agreed on.
        let phase = self.punching(peer, me, plan, &theirs, &here, &there, at);
        if let Some(attempt) = self.attempts.get_mut(&peer) {
            attempt.phase = phase;
        }
    }

    /// A datagram has come from a socket; says whether it belonged to an attempt.
    pub fn on_datagram(&mut self, socket: SocketId, from: SocketAddr, datagram: &[u8], now: Instant) -> bool {
        let Some(peer) = Probe::id(datagram).ok().and_then(|id| self.by_probe.get(&id)) else {
            return false;
        };
        let peer = *peer;
        let punching = self.attempts.get_mut(&peer).and_then(Attempt::punching_mut);
        if let Some(punching) = punching
            && punching.punch.on_datagram(socket, from, datagram, now).is_err()
        {
            self.forged += 1;
        }
        true
    }

    /// The sockets that were asked for are open: as many as there could be.
    pub fn sockets_opened(&mut self, peer: &PeerId, mut sockets: Vec<SocketId>, now: Instant) {
        sockets.truncate(usize::from(Strategy::SOCKETS_MAX));
        let needed = self
            .attempts
            .get_mut(peer)
            .is_some_and(|attempt| attempt.opened(sockets, now));
        if !needed {
            // The attempt has ended meanwhile.
            let (peer, keep) = (*peer, None);
            self.actions.push_back(PunchAction::CloseSockets { peer, keep });
        }
    }

    /// A direct connection stands, however it came about: there is nothing more to find.
    pub fn connected(&mut self, peer: &PeerId, now: Instant) {
        if self.is_under_way(peer) {
            self.histories.of(*peer, now).not_needed(now);
            self.end(peer);
        }
        // An attempt that has found its path goes on answering, so that the peer learns of it.
    }

    /// The peer cannot be told anything any more. An attempt that both have begun goes on: nothing is left to tell.
    pub fn disconnected(&mut self, peer: &PeerId) {
        let offered = |attempt: &Attempt| matches!(attempt.phase, Phase::Offered { .. });
        if self.attempts.get(peer).is_some_and(offered) {
            self.end(peer);
        }
    }

    /// The path that was found did not carry a connection; says when another attempt is worth while.
    pub fn failed(&mut self, peer: PeerId, now: Instant) -> Instant {
        let number = self.attempts.get(&peer).map_or(0, |attempt| attempt.number);
        self.end(&peer);
        let jitter = self.jitter();
        let history = self.histories.of(peer, now);
        history.failed(number, RelayedBecause::HandshakeFailed, None, jitter, now)
    }

    /// The network has changed: what is under way is in vain, and what failed may work now.
    pub fn network_changed(&mut self, now: Instant) {
        let peers: Vec<_> = self.attempts.keys().copied().collect();
        for peer in peers {
            if self.is_under_way(&peer) {
                self.fail(peer, RelayedBecause::TimedOut, now);
            } else {
                self.end(&peer);
            }
        }
        self.histories.forgive(now);
    }

    /// What is to be done now; call until there is nothing more, after every input and at [`Self::next_at`].
    pub fn poll(&mut self, now: Instant) -> Option<PunchAction> {
        loop {
            if let Some(action) = self.actions.pop_front() {
                return Some(action);
            }
            let next = self.attempts.values_mut().find_map(|attempt| attempt.poll(now));
            match next? {
                Next::Act(action) => {
                    if let PunchAction::Found { peer, chosen, .. } = &action {
                        // The sockets are sorted out before anybody dials from the one that stays.
                        self.found(*peer, *chosen, now);
                    }
                    self.actions.push_back(action);
                }
                Next::Failed(peer, why) => self.fail(peer, why, now),
                Next::Over(peer) => self.forget(&peer),
            }
        }
    }

    /// When [`Self::poll`] has something to do.
    pub fn next_at(&self) -> Option<Instant> {
        self.attempts.values().map(Attempt::next_at).min()
    }

    /// Addresses that peers named and that are not theirs, since the start.
    pub const fn refused(&self) -> u64 {
        self.refused
    }

    /// Datagrams that only claimed to belong to an attempt, since the start.
    pub const fn forged(&self) -> u64 {
        self.forged
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "an offer's parts, and who makes it to whom when"
    )]
    fn on_offer(
        &mut self,
        peer: PeerId,
        name: u64,
        token: Token,
        number: u32,
        presence: Presence,
        here: Here,
        there: There,
        now: Instant,
    ) {
        // Both have offered: the smaller one's offer stands.
        let ours_stands = self.me < peer;
        if let Some(attempt) = self.attempts.get(&peer)
            && matches!(attempt.phase, Phase::Offered { .. })
            && ours_stands
        {
            return;
        }
        let give_up = |why| PunchAction::Tell {
            peer,
            message: PunchMessage::GiveUp { attempt: name, why },
        };
        let known = self.attempts.contains_key(&peer);
        let full = self.attempts.len() >= ATTEMPTS_MAX && !known;
        if !self.histories.of(peer, now).admit_offer(now) || full {
            self.actions.push_back(give_up(RelayedBecause::Busy));
            return;
        }
        let nat = presence.nat;
        let presence = presence.bounded();
        // Until the relay has said where the peer is, its addresses are taken for its own, and nothing is sent there.
        let awaited = there.awaited && there.seen_at.is_empty();
        let theirs = if awaited {
            presence.clone()
        } else {
            self.vet(presence.clone(), &here, &there)
        };
        if here.presence.candidates.is_empty() || here.sockets.is_empty() || theirs.candidates.is_empty() {
            self.actions.push_back(give_up(RelayedBecause::NoCandidates));
            return;
        }
        let ours = here.presence.nat;
        let prospect = prospect(&here.presence, &theirs);
        if prospect == Prospect::Relayed(RelayedBecause::UdpBlocked) {
            self.actions.push_back(give_up(RelayedBecause::UdpBlocked));
            return;
        }
        self.end(&peer);
        let predicted = !theirs.predicted.is_empty() || !here.presence.predicted.is_empty();
        let guessed = if nat.is_symmetric() {
            theirs.ports
        } else {
            here.presence.ports
        };
        let birthday = self.may_guess(peer, now);
        let ports = guessed.unwrap_or(PortSpan::ANY);
        let strategy = Strategy::choose(number, &nat, &ours, predicted, ports, birthday);
        self.actions.push_back(PunchAction::Tell {
            peer,
            message: PunchMessage::Answer {
                attempt: name,
                strategy,
                presence: here.presence.clone().bounded(),
            },
        });
        let phase = if awaited {
            Phase::Answered(Box::new(Answered {
                token,
                strategy,
                presence,
                at: now,
                gives_up_at: now + LOCATING_PATIENCE,
            }))
        } else {
            let (me, plan) = (Side::Answerer, (token, strategy, prospect));
            self.punching(peer, me, plan, &theirs, &here, &there, now)
        };
        let attempt = Attempt {
            peer,
            name,
            number,
            began_at: now,
            here,
            there,
            phase,
        };
        self.attempts.insert(peer, attempt);
    }

    fn on_answer(&mut self, peer: PeerId, name: u64, strategy: Strategy, presence: Presence, now: Instant) {
        let Some(attempt) = self.attempts.get(&peer) else {
            return;
        };
        let &Phase::Offered { token, .. } = &attempt.phase else {
            return;
        };
        if attempt.name != name {
            return;
        }
        let (here, there) = (attempt.here.clone(), attempt.there.clone());
        let nat = presence.nat;
        let theirs = self.vet(presence.bounded(), &here, &there);
        let give_up = match () {
            () if theirs.candidates.is_empty() => Some(RelayedBecause::NoCandidates),
            () if !self.is_acceptable(peer, strategy, &here.presence.nat, &nat, now) => {
                Some(RelayedBecause::Busy)
            }
            () => None,
        };
        if let Some(why) = give_up {
            self.actions.push_back(PunchAction::Tell {
                peer,
                message: PunchMessage::GiveUp { attempt: name, why },
            });
            self.fail(peer, why, now);
            return;
        }
        let prospect = prospect(&here.presence, &theirs);
        let (me, plan) = (Side::Offerer, (token, strategy, prospect));
        let phase = self.punching(peer, me, plan, &theirs, &here, &there, now);
        if let Some(attempt) = self.attempts.get_mut(&peer) {
            attempt.phase = phase;
        }
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "everything that two sides have agreed on"
    )]
    fn punching(
        &mut self,
        peer: PeerId,
        me: Side,
        (token, strategy, prospect): (Token, Strategy, Prospect),
        theirs: &Presence,
        here: &Here,
        there: &There,
        now: Instant,
    ) -> Phase {
        // A symmetric side's packets open the only port that leads back to it, so it finds the path first; when its
        // ports are guessed, only it knows which was hit.
        let dialer = match (here.presence.nat.is_symmetric(), theirs.nat.is_symmetric()) {
            (true, false) => me,
            (false, true) => me.other(),
            // Otherwise who has asked, and so is the first to know that both begin.
            _ => Side::Offerer,
        };
        let sides = Sides {
            me,
            token,
            sockets: &here.sockets,
            theirs,
            seen_at: &there.seen_at,
            dialer,
            rtt: match (here.presence.to_relay, theirs.to_relay) {
                (Some(ours), Some(theirs)) => Some(ours + theirs.min(RTT_MAX)),
                _ => there.rtt,
            },
            foreseen: strategy == Strategy::Simultaneous
                && matches!(prospect, Prospect::Direct | Prospect::Simultaneous),
        };
        let punch = Punch::begin(&sides, strategy, &mut self.rng, now);
        self.by_probe.insert(punch.id(), peer);
        let mut opening = Opening::None;
        if let Strategy::Birthday {
            symmetric, sockets, ..
        } = strategy
            && symmetric == me
            && let Some(target) = guessing_address(&theirs.candidates, &there.seen_at)
        {
            opening = Opening::Asked(target);
            let count = sockets;
            self.actions.push_back(PunchAction::OpenSockets { peer, count });
        }
        Phase::Punching(Box::new(Punching {
            punch,
            strategy,
            prospect,
            nat: theirs.nat,
            opening,
        }))
    }

    /// What remains of what a peer names.
    fn vet(&mut self, presence: Presence, here: &Here, there: &There) -> Presence {
        let (theirs, refused) = vetting(here, there).vet(presence);
        self.refused += refused;
        theirs
    }

    /// Whether the strategy with which a peer has answered our offer is one that this node takes part in.
    fn is_acceptable(
        &self,
        peer: PeerId,
        strategy: Strategy,
        ours: &NatType,
        theirs: &NatType,
        now: Instant,
    ) -> bool {
        match strategy {
            Strategy::Birthday {
                symmetric,
                sockets,
                guesses,
            } => {
                let (ours, theirs) = (ours.is_symmetric(), theirs.is_symmetric());
                let is_so = match symmetric {
                    Side::Offerer => ours && !theirs,
                    Side::Answerer => theirs && !ours,
                };
                is_so
                    && sockets <= Strategy::SOCKETS_MAX
                    && guesses <= Strategy::GUESSES_MAX
                    && self.may_guess(peer, now)
            }
            Strategy::Primed { ttl, .. } => ttl > 0,
            Strategy::Simultaneous | Strategy::Predicted => true,
        }
    }

    /// Whether ports may be guessed with this peer now.
    fn may_guess(&self, peer: PeerId, now: Instant) -> bool {
        let guessing = self.attempts.values().filter(|attempt| attempt.is_guessing());
        self.histories.may_guess(&peer, now) && guessing.count() < BIRTHDAYS_MAX
    }

    fn is_under_way(&self, peer: &PeerId) -> bool {
        self.attempts
            .get(peer)
            .is_some_and(|attempt| !attempt.is_settled())
    }

    /// Notes what has worked, and lets go of the sockets that have not.
    fn found(&mut self, peer: PeerId, chosen: Chosen, now: Instant) {
        let Some(attempt) = self.attempts.get(&peer) else {
            return;
        };
        let opened = attempt
            .punching()
            .is_some_and(|punching| punching.opening == Opening::Open);
        self.histories.of(peer, now).found(attempt.number, now);
        if opened {
            let keep = Some(chosen.socket);
            self.actions.push_back(PunchAction::CloseSockets { peer, keep });
        }
    }

    /// Ends an attempt that found nothing, and tells so.
    fn fail(&mut self, peer: PeerId, why: RelayedBecause, now: Instant) {
        let Some(attempt) = self.attempts.get(&peer) else {
            return;
        };
        let number = attempt.number;
        let ran = attempt
            .punching()
            .map(|punching| (punching.strategy, punching.prospect));
        let probed = attempt.punching().map(|punching| punching.punch.probed());
        self.end(&peer);
        let jitter = self.jitter();
        let history = self.histories.of(peer, now);
        let retry_at = history.failed(number, why, ran, jitter, now);
        self.actions.push_back(PunchAction::Failed {
            peer,
            why,
            retry_at,
            probed: probed.unwrap_or_default(),
        });
    }

    /// Keeps pairs that failed together from trying again together.
    fn jitter(&mut self) -> f64 {
        self.rng.random_range(0.9..1.1)
    }

    /// Ends whatever there is with a peer.
    fn end(&mut self, peer: &PeerId) {
        let opened = self
            .attempts
            .get(peer)
            .and_then(Attempt::punching)
            .is_some_and(|punching| punching.opening == Opening::Open);
        if opened && self.is_under_way(peer) {
            let (peer, keep) = (*peer, None);
            self.actions.push_back(PunchAction::CloseSockets { peer, keep });
        }
        self.forget(peer);
    }

    fn forget(&mut self, peer: &PeerId) {
        if self.attempts.remove(peer).is_some() {
            self.by_probe.retain(|_, of| of != peer);
        }
    }
}

/// Where a peer can be found whose ports, or whose counterpart's, are guessed: where it is seen and not where it is at
/// home. NATs that give ports at random are IPv4's.
pub(crate) fn guessing_address(candidates: &[SocketAddr], seen_at: &[IpAddr]) -> Option<SocketAddr> {
    candidates.iter().copied().find(|address| {
        let ip = address.ip().to_canonical();
        Family::of(ip) == Family::V4 && seen_at.iter().any(|seen| seen.to_canonical() == ip)
    })
}

/// What two nodes can hope for. NATs are looked at over IPv4; where both have IPv6 nothing stands between them but
/// firewalls.
fn prospect(ours: &Presence, theirs: &Presence) -> Prospect {
    let over_ipv4 = ours.nat.prospect(&theirs.nat);
    let has_ipv6 = |presence: &Presence| {
        let mut ips = presence.candidates.iter().map(SocketAddr::ip);
        ips.any(|ip| Family::of(ip) == Family::V6 && Scope::of(ip) == Scope::Global)
    };
    match over_ipv4 {
        Prospect::Birthday | Prospect::Relayed(RelayedBecause::SymmetricBothSides)
            if has_ipv6(ours) && has_ipv6(theirs) =>
        {
            Prospect::Simultaneous
        }
        _ => over_ipv4,
    }
}

fn vetting<'a>(here: &'a Here, there: &'a There) -> Vetting<'a> {
    Vetting {
        theirs: &there.seen_at,
        ours: &here.seen_at,
    }
}

/// Keeps the tokens apart from those that others draw from the same seed.
const SEED_CONTEXT: &str = "lapwing 2026 punches";
/// How long an offer waits, besides three round trips: the peer answers from memory.
const OFFER_PATIENCE: Duration = Duration::from_secs(2);
/// How long a relay may take to say where a peer is: the attempt is in vain when it says so later than the peer probes.
const LOCATING_PATIENCE: Duration = Duration::from_secs(2);
/// No way to a relay takes longer that is of any use.
const RTT_MAX: Duration = Duration::from_secs(2);
/// Each opens up to 256 sockets or sends 100 packets a second.
const BIRTHDAYS_MAX: usize = 2;
/// Attempts at once: each takes about 10 KiB, guessing 100 KiB, and a few packets a second.
const ATTEMPTS_MAX: usize = 64;
