//! One attempt with one peer, from the offer to its end. Says nothing to the peer; that is [`crate::Punches`]'s.

use crate::reach::punch::Punch;
use crate::{
    Here, NatType, Presence, Probed, ProbedOutcome, ProbedSource, Prospect, PunchAction, RelayedBecause,
    SocketId, Strategy, There, Token,
};
use lapwing_base::PeerId;
use std::net::SocketAddr;
use std::time::Instant;

/// One attempt.
#[derive(Debug)]
pub(crate) struct Attempt {
    pub(crate) peer: PeerId,
    /// Drawn by the offerer.
    pub(crate) name: u64,
    pub(crate) number: u32,
    pub(crate) began_at: Instant,
    pub(crate) here: Here,
    pub(crate) there: There,
    pub(crate) phase: Phase,
}

/// How far an attempt has come.
#[derive(Debug)]
pub(crate) enum Phase {
    /// We have offered.
    Offered { token: Token, gives_up_at: Instant },
    /// We have answered, and cannot begin before a relay has said where the peer is.
    Answered(Box<Answered>),
    /// Both know what to do. Boxed: it is ten times the size of the other.
    Punching(Box<Punching>),
}

/// An offer that was answered before it was known which of the peer's addresses are its own.
#[derive(Clone, Debug)]
pub(crate) struct Answered {
    pub(crate) token: Token,
    pub(crate) strategy: Strategy,
    /// As the peer names it.
    pub(crate) presence: Presence,
    /// When it was answered.
    pub(crate) at: Instant,
    pub(crate) gives_up_at: Instant,
}

/// An attempt under way.
#[derive(Debug)]
pub(crate) struct Punching {
    pub(crate) punch: Punch,
    pub(crate) strategy: Strategy,
    pub(crate) prospect: Prospect,
    /// What stands before the peer.
    pub(crate) nat: NatType,
    pub(crate) opening: Opening,
}

/// Sockets whose ports the peer guesses.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Opening {
    /// There are none.
    None,
    /// They were asked for, to open ports towards this address.
    Asked(SocketAddr),
    /// They are open.
    Open,
}

/// What an attempt brings forth.
#[derive(Debug)]
pub(crate) enum Next {
    /// Something to do.
    Act(PunchAction),
    /// Nothing was found.
    Failed(PeerId, RelayedBecause),
    /// Something was found, and the peer has had time to learn of it.
    Over(PeerId),
}

impl Attempt {
    /// What is due.
    pub(crate) fn poll(&mut self, now: Instant) -> Option<Next> {
        let peer = self.peer;
        let punching = match &mut self.phase {
            Phase::Offered { gives_up_at, .. } => {
                return (*gives_up_at <= now).then_some(Next::Failed(peer, RelayedBecause::NoAnswer));
            }
            Phase::Answered(answered) => {
                let overdue = answered.gives_up_at <= now;
                return overdue.then_some(Next::Failed(peer, RelayedBecause::NoCandidates));
            }
            Phase::Punching(punching) => punching,
        };
        let punch = &mut punching.punch;
        if let Some((socket, remote)) = punch.take_early() {
            let dial = PunchAction::Dial { peer, socket, remote };
            return Some(Next::Act(dial));
        }
        if let Some(datagram) = punch.poll(now) {
            return Some(Next::Act(PunchAction::Send(datagram)));
        }
        if let Some((socket, observed_at, seen)) = punch.take_seen() {
            return Some(Next::Act(PunchAction::Observed(crate::Observation {
                socket,
                observer: peer,
                observed_at,
                seen,
            })));
        }
        if let Some(chosen) = punch.take_chosen() {
            return Some(Next::Act(PunchAction::Found {
                peer,
                chosen,
                strategy: punching.strategy,
                took: now.saturating_duration_since(self.began_at),
                probed: punch.probed(),
            }));
        }
        if !punch.is_over(now) {
            None
        } else if punch.is_settled() {
            Some(Next::Over(peer))
        } else {
            Some(Next::Failed(peer, punching.why(&self.here)))
        }
    }

    /// When [`Self::poll`] has something to say.
    pub(crate) fn next_at(&self) -> Instant {
        match &self.phase {
            Phase::Offered { gives_up_at, .. } => *gives_up_at,
            Phase::Answered(answered) => answered.gives_up_at,
            Phase::Punching(punching) => punching.punch.next_at(),
        }
    }

    /// Whether a path was found, so that only answers are still given.
    pub(crate) fn is_settled(&self) -> bool {
        self.punching()
            .is_some_and(|punching| punching.punch.is_settled())
    }

    /// Whether ports are being guessed.
    pub(crate) fn is_guessing(&self) -> bool {
        !self.is_settled()
            && self
                .punching()
                .is_some_and(|punching| matches!(punching.strategy, Strategy::Birthday { .. }))
    }

    /// What is under way, once both know.
    pub(crate) fn punching(&self) -> Option<&Punching> {
        match &self.phase {
            Phase::Offered { .. } | Phase::Answered(_) => None,
            Phase::Punching(punching) => Some(punching),
        }
    }

    /// As [`Self::punching`].
    pub(crate) fn punching_mut(&mut self) -> Option<&mut Punching> {
        match &mut self.phase {
            Phase::Offered { .. } | Phase::Answered(_) => None,
            Phase::Punching(punching) => Some(punching),
        }
    }

    /// The sockets that were asked for are there; says whether they are needed.
    pub(crate) fn opened(&mut self, sockets: Vec<SocketId>, now: Instant) -> bool {
        match self.punching_mut() {
            Some(punching) => match punching.opening {
                Opening::Asked(target) => {
                    punching.opening = Opening::Open;
                    punching.punch.open_from(sockets, target, now);
                    true
                }
                Opening::None | Opening::Open => false,
            },
            None => false,
        }
    }
}

impl Punching {
    /// Why nothing was found, now that the time is up.
    fn why(&self, here: &Here) -> RelayedBecause {
        let probed = self.punch.probed();
        let any = |is: fn(&Probed) -> bool| probed.iter().any(is);
        let unforeseen =
            any(|probed| probed.source == ProbedSource::Arrived && probed.outcome == ProbedOutcome::Heard);
        let steady = !here.presence.nat.is_symmetric() && !self.nat.is_symmetric();
        match (self.prospect, self.strategy) {
            (Prospect::Relayed(why), _) => why,
            (_, Strategy::Birthday { .. }) => RelayedBecause::PortsMissed,
            // Neither side's ports depend on whom it sends to, and yet packets come from one that nobody named.
            _ if steady && unforeseen => RelayedBecause::Race,
            _ if any(|probed| probed.outcome >= ProbedOutcome::Heard) => RelayedBecause::OneWay,
            _ => RelayedBecause::TimedOut,
        }
    }
}
