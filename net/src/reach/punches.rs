//! Finds direct paths to peers that are reached through a relay: agrees on an attempt, runs it, and changes the
//! strategy before the next. Sends nothing itself and dials nobody.
//!
//! Feed what comes over the relayed connection and what comes from the sockets, then do what [`Punches::poll`] says
//! until it says nothing, and call it again at [`Punches::next_at`]. When it says [`PunchAction::Found`] with
//! `dials`, dial QUIC from that socket to that address; otherwise await the peer's handshake there. Report a dial
//! that fails by [`Punches::failed`], and any direct connection by [`Punches::connected`].

use crate::reach::punch::{Punch, Sides};
use crate::{
    Chosen, Datagram, NatType, PortSpan, Presence, Probe, ProbeId, Probed, ProbedOutcome, ProbedSource,
    Prospect, PunchMessage, RelayedBecause, Side, SocketId, Strategy, Token, Vetting,
};
use lapwing_base::PeerId;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::collections::{HashMap, VecDeque};
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
    /// Round-trip time of the relayed connection.
    pub rtt: Option<Duration>,
}

/// What to do.
#[must_use]
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum PunchAction {
    /// Say this to the peer over the relayed connection.
    Tell {
        /// To whom.
        peer: PeerId,
        /// What.
        message: PunchMessage,
    },
    /// Send a datagram.
    Send(Datagram),
    /// Open as many sockets of this family on any port, and hand them over by [`Punches::sockets_opened`].
    OpenSockets {
        /// For the attempt with this peer.
        peer: PeerId,
        /// How many.
        count: u16,
    },
    /// Close the sockets that were opened for this peer, but for the one that a path was found from.
    CloseSockets {
        /// For the attempt with this peer.
        peer: PeerId,
        /// The one that stays.
        keep: Option<SocketId>,
    },
    /// A path was found.
    Found {
        /// To whom.
        peer: PeerId,
        /// From where to where, and who dials.
        chosen: Chosen,
        /// How.
        strategy: Strategy,
        /// Since the offer was sent, or came in.
        took: Duration,
        /// What became of every address.
        probed: Vec<Probed>,
    },
    /// None was found in this attempt.
    Failed {
        /// To whom.
        peer: PeerId,
        /// Why.
        why: RelayedBecause,
        /// When another attempt is worth while.
        retry_at: Instant,
        /// What became of every address.
        probed: Vec<Probed>,
    },
}

/// An attempt was not begun.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum PunchError {
    /// One is under way.
    #[error("an attempt is under way")]
    UnderWay,
    /// The last one was not long ago.
    #[error("the next attempt is not due yet")]
    NotDue {
        /// When it is.
        retry_at: Instant,
    },
    /// Nothing can be gained.
    #[error("{why}")]
    Hopeless {
        /// Why.
        why: RelayedBecause,
        /// When to ask again, in case something has changed.
        retry_at: Instant,
    },
}

/// Every attempt that is under way, and what is remembered of earlier ones.
#[derive(Debug)]
pub struct Punches {
    me: PeerId,
    rng: StdRng,
    /// At most [`SESSIONS_MAX`].
    sessions: HashMap<PeerId, Session>,
    by_probe: HashMap<ProbeId, PeerId>,
    /// At most [`HISTORIES_MAX`].
    histories: HashMap<PeerId, History>,
    actions: VecDeque<PunchAction>,
    /// Addresses that peers named and that are not theirs.
    refused: u64,
    /// Datagrams with an attempt's name that its key does not open.
    forged: u64,
}

#[derive(Debug)]
struct Session {
    peer: PeerId,
    attempt: u64,
    number: u32,
    began_at: Instant,
    here: Here,
    there: There,
    phase: Phase,
}

#[derive(Debug)]
enum Phase {
    Offered {
        token: Token,
        gives_up_at: Instant,
    },
    /// Boxed: it is ten times the size of the other.
    Punching {
        punch: Box<Punch>,
        strategy: Strategy,
        prospect: Prospect,
        /// Where to open ports towards once the sockets are there.
        open_towards: Option<SocketAddr>,
        opened: bool,
    },
}

/// What is remembered of a peer between attempts.
#[derive(Clone, Copy, Debug)]
struct History {
    /// Attempts since the last direct connection; the next one's number.
    attempts: u32,
    retry_at: Instant,
    nat: Option<NatType>,
    birthday_failed_at: Option<Instant>,
    /// Offers taken lately, draining over time.
    offers: f64,
    offers_at: Instant,
    used_at: Instant,
}

impl Punches {
    /// No attempts yet. The seed is secret: tokens follow from it.
    pub fn new(me: PeerId, seed: [u8; 32]) -> Self {
        Self {
            me,
            rng: StdRng::from_seed(seed),
            sessions: HashMap::new(),
            by_probe: HashMap::new(),
            histories: HashMap::new(),
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
        if self
            .sessions
            .get(&peer)
            .is_some_and(|session| !session.is_settled())
        {
            return Err(PunchError::UnderWay);
        }
        let full = self.sessions.len() >= SESSIONS_MAX;
        let history = self.history(peer, now);
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
        let number = history.attempts;
        let token = Token(self.rng.random());
        let attempt = self.rng.random();
        let patience = OFFER_PATIENCE + there.rtt.unwrap_or_default() * 3;
        self.end(&peer);
        self.actions.push_back(PunchAction::Tell {
            peer,
            message: PunchMessage::Offer {
                attempt,
                token,
                number,
                presence: here.presence.clone().bounded(),
            },
        });
        let gives_up_at = now + patience;
        let phase = Phase::Offered { token, gives_up_at };
        let session = Session {
            peer,
            attempt,
            number,
            began_at: now,
            here,
            there,
            phase,
        };
        self.sessions.insert(peer, session);
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
                attempt,
                token,
                number,
                presence,
            } => self.on_offer(peer, attempt, token, number, presence, here, there, now),
            PunchMessage::Answer {
                attempt,
                strategy,
                presence,
            } => self.on_answer(peer, attempt, strategy, presence, now),
            PunchMessage::GiveUp { attempt, why } => {
                let current = self
                    .sessions
                    .get(&peer)
                    .is_some_and(|session| session.attempt == attempt && !session.is_settled());
                if current {
                    self.fail(peer, why, now);
                }
            }
        }
    }

    /// A datagram has come from a socket; says whether it belonged to an attempt.
    pub fn on_datagram(&mut self, socket: SocketId, from: SocketAddr, datagram: &[u8], now: Instant) -> bool {
        let Some(peer) = Probe::id(datagram).ok().and_then(|id| self.by_probe.get(&id)) else {
            return false;
        };
        let peer = *peer;
        if let Some(Session {
            phase: Phase::Punching { punch, .. },
            ..
        }) = self.sessions.get_mut(&peer)
            && punch.on_datagram(socket, from, datagram, now).is_err()
        {
            self.forged += 1;
        }
        true
    }

    /// The sockets that were asked for are open: as many as there could be.
    pub fn sockets_opened(&mut self, peer: &PeerId, mut sockets: Vec<SocketId>, now: Instant) {
        sockets.truncate(usize::from(Strategy::SOCKETS_MAX));
        match self.sessions.get_mut(peer) {
            Some(Session {
                phase:
                    Phase::Punching {
                        punch,
                        open_towards,
                        opened,
                        ..
                    },
                ..
            }) if open_towards.is_some() && !*opened => {
                *opened = true;
                if let Some(target) = *open_towards {
                    punch.open_from(sockets, target, now);
                }
            }
            // The attempt has ended meanwhile.
            _ => {
                let (peer, keep) = (*peer, None);
                self.actions.push_back(PunchAction::CloseSockets { peer, keep });
            }
        }
    }

    /// A direct connection stands, however it came about: there is nothing more to find.
    pub fn connected(&mut self, peer: &PeerId, now: Instant) {
        let history = self.history(*peer, now);
        history.attempts = 0;
        history.retry_at = now;
        // A chosen pair goes on answering, so that the peer learns of it; anything else is over.
        if self
            .sessions
            .get(peer)
            .is_some_and(|session| !session.is_settled())
        {
            self.end(peer);
        }
    }

    /// The peer cannot be told anything any more.
    pub fn disconnected(&mut self, peer: &PeerId) {
        if self
            .sessions
            .get(peer)
            .is_some_and(|session| !session.is_settled())
        {
            self.end(peer);
        }
    }

    /// The path that was found did not carry a connection; says when another attempt is worth while.
    pub fn failed(&mut self, peer: PeerId, now: Instant) -> Instant {
        self.end(&peer);
        self.defer(peer, RelayedBecause::HandshakeFailed, None, None, now)
    }

    /// The network has changed: what failed may work now.
    pub fn network_changed(&mut self, now: Instant) {
        let peers: Vec<_> = self.sessions.keys().copied().collect();
        for peer in peers {
            self.fail(peer, RelayedBecause::TimedOut, now);
        }
        for history in self.histories.values_mut() {
            history.attempts = 0;
            history.retry_at = now;
        }
    }

    /// What is to be done now; call until there is nothing more, after every input and at [`Self::next_at`].
    pub fn poll(&mut self, now: Instant) -> Option<PunchAction> {
        loop {
            if let Some(action) = self.actions.pop_front() {
                return Some(action);
            }
            let next = self.sessions.values_mut().find_map(|session| session.poll(now));
            match next? {
                Next::Act(action) => {
                    if let PunchAction::Found {
                        peer,
                        chosen,
                        strategy: Strategy::Birthday { .. },
                        ..
                    } = &action
                        && chosen.dials
                    {
                        let (peer, keep) = (*peer, Some(chosen.socket));
                        self.actions.push_back(PunchAction::CloseSockets { peer, keep });
                    }
                    return Some(action);
                }
                Next::Failed(peer, why) => self.fail(peer, why, now),
                Next::Over(peer) => self.forget(&peer),
            }
        }
    }

    /// When [`Self::poll`] has something to do.
    pub fn next_at(&self) -> Option<Instant> {
        let due = self.sessions.values().map(|session| match &session.phase {
            Phase::Offered { gives_up_at, .. } => *gives_up_at,
            Phase::Punching { punch, .. } => punch.next_at(),
        });
        due.min()
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
        attempt: u64,
        token: Token,
        number: u32,
        presence: Presence,
        here: Here,
        there: There,
        now: Instant,
    ) {
        // Both have offered: the smaller one's offer stands.
        let ours_stands = self.me < peer;
        if let Some(session) = self.sessions.get(&peer)
            && matches!(session.phase, Phase::Offered { .. })
            && ours_stands
        {
            return;
        }
        let give_up = |why| PunchAction::Tell {
            peer,
            message: PunchMessage::GiveUp { attempt, why },
        };
        let known = self.sessions.contains_key(&peer);
        let full = self.sessions.len() >= SESSIONS_MAX && !known;
        if !self.admit_offer(peer, now) || full {
            self.actions.push_back(give_up(RelayedBecause::Busy));
            return;
        }
        let nat = presence.nat;
        let (theirs, refused) = vetting(&here, &there).vet(presence.bounded());
        self.refused += refused;
        self.history(peer, now).nat = Some(nat);
        if here.presence.candidates.is_empty() || here.sockets.is_empty() || theirs.candidates.is_empty() {
            self.actions.push_back(give_up(RelayedBecause::NoCandidates));
            return;
        }
        let ours = here.presence.nat;
        let prospect = ours.prospect(&nat);
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
                attempt,
                strategy,
                presence: here.presence.clone().bounded(),
            },
        });
        let phase = self.punching(
            peer,
            Side::Answerer,
            token,
            strategy,
            prospect,
            &theirs,
            &here,
            &there,
            now,
        );
        let session = Session {
            peer,
            attempt,
            number,
            began_at: now,
            here,
            there,
            phase,
        };
        self.sessions.insert(peer, session);
    }

    fn on_answer(
        &mut self,
        peer: PeerId,
        attempt: u64,
        strategy: Strategy,
        presence: Presence,
        now: Instant,
    ) {
        let Some(session) = self.sessions.get(&peer) else {
            return;
        };
        let &Phase::Offered { token, .. } = &session.phase else {
            return;
        };
        if session.attempt != attempt {
            return;
        }
        let (here, there) = (session.here.clone(), session.there.clone());
        let nat = presence.nat;
        let (theirs, refused) = vetting(&here, &there).vet(presence.bounded());
        self.refused += refused;
        self.history(peer, now).nat = Some(nat);
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
                message: PunchMessage::GiveUp { attempt, why },
            });
            self.fail(peer, why, now);
            return;
        }
        let prospect = here.presence.nat.prospect(&nat);
        let phase = self.punching(
            peer,
            Side::Offerer,
            token,
            strategy,
            prospect,
            &theirs,
            &here,
            &there,
            now,
        );
        if let Some(session) = self.sessions.get_mut(&peer) {
            session.phase = phase;
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
        token: Token,
        strategy: Strategy,
        prospect: Prospect,
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
            _ if self.me < peer => me,
            _ => me.other(),
        };
        let sides = Sides {
            me,
            token,
            sockets: &here.sockets,
            theirs,
            seen_at: &there.seen_at,
            dialer,
            rtt: there.rtt,
        };
        let punch = Box::new(Punch::begin(&sides, strategy, &mut self.rng, now));
        self.by_probe.insert(punch.id(), peer);
        let mut open_towards = None;
        if let Strategy::Birthday {
            symmetric, sockets, ..
        } = strategy
            && symmetric == me
        {
            // Where the peer is seen, not where it is at home.
            let is_seen = |address: &&SocketAddr| {
                there
                    .seen_at
                    .iter()
                    .any(|ip| ip.to_canonical() == address.ip().to_canonical())
            };
            open_towards = theirs.candidates.iter().find(is_seen).copied();
            if open_towards.is_some() {
                let count = sockets;
                self.actions.push_back(PunchAction::OpenSockets { peer, count });
            }
        }
        Phase::Punching {
            punch,
            strategy,
            prospect,
            open_towards,
            opened: false,
        }
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
        let rested = self
            .histories
            .get(&peer)
            .and_then(|history| history.birthday_failed_at)
            .is_none_or(|at| at + BIRTHDAY_PAUSE <= now);
        let guessing = self.sessions.values().filter(|session| {
            matches!(
                session.phase,
                Phase::Punching {
                    strategy: Strategy::Birthday { .. },
                    ..
                }
            ) && !session.is_settled()
        });
        rested && guessing.count() < BIRTHDAYS_MAX
    }

    fn admit_offer(&mut self, peer: PeerId, now: Instant) -> bool {
        let history = self.history(peer, now);
        let drained = now.saturating_duration_since(history.offers_at).as_secs_f64() * OFFER_RATE;
        history.offers = (history.offers - drained).max(0.0);
        history.offers_at = now;
        let admitted = history.offers + 1.0 <= OFFER_BURST;
        if admitted {
            history.offers += 1.0;
        }
        admitted
    }

    fn history(&mut self, peer: PeerId, now: Instant) -> &mut History {
        if self.histories.len() >= HISTORIES_MAX
            && !self.histories.contains_key(&peer)
            && let Some(oldest) = self.histories.iter().min_by_key(|(_, history)| history.used_at)
        {
            let oldest = *oldest.0;
            self.histories.remove(&oldest);
        }
        let history = self.histories.entry(peer).or_insert(History {
            attempts: 0,
            retry_at: now,
            nat: None,
            birthday_failed_at: None,
            offers: 0.0,
            offers_at: now,
            used_at: now,
        });
        history.used_at = now;
        history
    }

    /// Ends an attempt that found nothing, and tells so.
    fn fail(&mut self, peer: PeerId, why: RelayedBecause, now: Instant) {
        let Some(session) = self.sessions.get(&peer) else {
            return;
        };
        let (strategy, prospect, probed) = match &session.phase {
            Phase::Offered { .. } => (None, None, Vec::new()),
            Phase::Punching {
                punch,
                strategy,
                prospect,
                ..
            } => (Some(*strategy), Some(*prospect), punch.probed()),
        };
        let number = session.number;
        self.end(&peer);
        // The peer may know of attempts that this node has forgotten.
        let history = self.history(peer, now);
        history.attempts = history.attempts.max(number.min(ATTEMPTS_COUNTED));
        let retry_at = self.defer(peer, why, strategy, prospect, now);
        self.actions.push_back(PunchAction::Failed {
            peer,
            why,
            retry_at,
            probed,
        });
    }

    /// Counts a failure, and says when the next attempt is worth while.
    fn defer(
        &mut self,
        peer: PeerId,
        why: RelayedBecause,
        strategy: Option<Strategy>,
        prospect: Option<Prospect>,
        now: Instant,
    ) -> Instant {
        let jitter = self.rng.random_range(0.9..1.1);
        let history = self.history(peer, now);
        let birthday = matches!(strategy, Some(Strategy::Birthday { .. }));
        if birthday {
            history.birthday_failed_at = Some(now);
        }
        let wait = match (why, prospect) {
            (RelayedBecause::Busy | RelayedBecause::NoCandidates, _) => SOON,
            _ if birthday || matches!(prospect, Some(Prospect::Relayed(_))) => BIRTHDAY_PAUSE + SOON,
            _ => {
                let attempts = usize::try_from(history.attempts).unwrap_or(usize::MAX);
                RETRIES[attempts.min(RETRIES.len() - 1)]
            }
        };
        // An attempt that did not take place changes nothing.
        if strategy.is_some() || !matches!(why, RelayedBecause::Busy | RelayedBecause::NoCandidates) {
            history.attempts = (history.attempts + 1).min(ATTEMPTS_COUNTED);
        }
        history.retry_at = now + wait.mul_f64(jitter);
        history.retry_at
    }

    /// Ends whatever is under way with a peer.
    fn end(&mut self, peer: &PeerId) {
        if let Some(Session {
            phase:
                Phase::Punching {
                    open_towards: Some(_),
                    opened: true,
                    punch,
                    ..
                },
            ..
        }) = self.sessions.get(peer)
            && !punch.is_settled()
        {
            let (peer, keep) = (*peer, None);
            self.actions.push_back(PunchAction::CloseSockets { peer, keep });
        }
        self.forget(peer);
    }

    fn forget(&mut self, peer: &PeerId) {
        if self.sessions.remove(peer).is_some() {
            self.by_probe.retain(|_, of| of != peer);
        }
    }
}

/// What a session brings forth.
#[derive(Debug)]
enum Next {
    Act(PunchAction),
    /// Nothing was found.
    Failed(PeerId, RelayedBecause),
    /// Something was found, and the peer has had time to learn of it.
    Over(PeerId),
}

impl Session {
    fn poll(&mut self, now: Instant) -> Option<Next> {
        let peer = self.peer;
        let (punch, strategy) = match &mut self.phase {
            Phase::Offered { gives_up_at, .. } => {
                return (*gives_up_at <= now).then(|| Next::Failed(peer, RelayedBecause::NoAnswer));
            }
            Phase::Punching { punch, strategy, .. } => (punch, *strategy),
        };
        if let Some(datagram) = punch.poll(now) {
            return Some(Next::Act(PunchAction::Send(datagram)));
        }
        if let Some(chosen) = punch.take_chosen() {
            return Some(Next::Act(PunchAction::Found {
                peer,
                chosen,
                strategy,
                took: now.saturating_duration_since(self.began_at),
                probed: punch.probed(),
            }));
        }
        let (over, settled) = (punch.is_over(now), punch.is_settled());
        over.then(|| {
            if settled {
                Next::Over(peer)
            } else {
                Next::Failed(peer, self.why())
            }
        })
    }

    fn is_settled(&self) -> bool {
        match &self.phase {
            Phase::Offered { .. } => false,
            Phase::Punching { punch, .. } => punch.is_settled(),
        }
    }

    /// Why nothing was found, now that the time is up.
    fn why(&self) -> RelayedBecause {
        let (punch, strategy, prospect) = match &self.phase {
            Phase::Offered { .. } => return RelayedBecause::NoAnswer,
            Phase::Punching {
                punch,
                strategy,
                prospect,
                ..
            } => (punch, strategy, prospect),
        };
        let probed = punch.probed();
        let any = |is: fn(&Probed) -> bool| probed.iter().any(is);
        match (prospect, strategy) {
            (Prospect::Relayed(why), _) => *why,
            (_, Strategy::Birthday { .. }) => RelayedBecause::PortsMissed,
            // Neither side's ports depend on whom it sends to, and yet packets come from one that nobody named.
            (Prospect::Simultaneous, _)
                if any(|probed| {
                    probed.source == ProbedSource::Arrived && probed.outcome == ProbedOutcome::Heard
                }) =>
            {
                RelayedBecause::Race
            }
            _ if any(|probed| probed.outcome >= ProbedOutcome::Heard) => RelayedBecause::OneWay,
            _ => RelayedBecause::TimedOut,
        }
    }
}

fn vetting<'a>(here: &'a Here, there: &'a There) -> Vetting<'a> {
    Vetting {
        theirs: &there.seen_at,
        ours: &here.seen_at,
    }
}

/// After the first attempt the second follows at once; a port that a router took away is free again after 30 s of
/// silence (Linux), and who has not met after that may meet when something changes.
const RETRIES: [Duration; 5] = [
    Duration::from_millis(250),
    Duration::from_secs(40),
    Duration::from_secs(60),
    Duration::from_secs(120),
    Duration::from_secs(300),
];
/// Attempts are told apart up to here; beyond it they only alternate.
const ATTEMPTS_COUNTED: u32 = 1 << 16;
/// When what lacked may be there.
const SOON: Duration = Duration::from_secs(5);
/// How long an offer waits, besides three round trips: the peer answers from memory.
const OFFER_PATIENCE: Duration = Duration::from_secs(2);
/// Guessing looks like an attack to who watches a network, so a failed one is not repeated soon.
const BIRTHDAY_PAUSE: Duration = Duration::from_secs(600);
/// Each opens up to 256 sockets or sends 100 packets a second.
const BIRTHDAYS_MAX: usize = 2;
/// Attempts at once: each takes about 10 KiB, guessing 100 KiB, and a few packets a second.
const SESSIONS_MAX: usize = 64;
/// Peers that are remembered, about 150 bytes each; the one that was used least lately makes room.
const HISTORIES_MAX: usize = 4096;
/// Offers that one peer may make: a retry follows at once, the others are tens of seconds apart.
const OFFER_BURST: f64 = 6.0;
/// One in ten seconds.
const OFFER_RATE: f64 = 0.1;
