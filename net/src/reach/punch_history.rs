//! What is remembered of a peer between attempts to punch: how many there were, when the next one is due, and how
//! often it offered. Begins none.

use crate::{Prospect, RelayedBecause, Strategy};
use lapwing_base::PeerId;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// What is remembered of every peer, up to a bound.
#[derive(Debug, Default)]
pub(crate) struct Histories {
    peers: BTreeMap<PeerId, History>,
}

/// What is remembered of one peer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct History {
    /// The number of the next attempt, which decides its strategy.
    pub(crate) number: u32,
    /// When it is worth while.
    pub(crate) retry_at: Instant,
    guessed_at: Option<Instant>,
    /// Offers taken lately, draining over time.
    offers: f64,
    offers_at: Instant,
    used_at: Instant,
}

impl Histories {
    /// The history of a peer, made when there is none.
    pub(crate) fn of(&mut self, peer: PeerId, now: Instant) -> &mut History {
        if self.peers.len() >= PEERS_MAX
            && !self.peers.contains_key(&peer)
            && let Some(oldest) = self.peers.iter().min_by_key(|(_, history)| history.used_at)
        {
            let oldest = *oldest.0;
            self.peers.remove(&oldest);
        }
        let history = self.peers.entry(peer).or_insert(History {
            number: 0,
            retry_at: now,
            guessed_at: None,
            offers: 0.0,
            offers_at: now,
            used_at: now,
        });
        history.used_at = now;
        history
    }

    /// Whether ports may be guessed with a peer again.
    pub(crate) fn may_guess(&self, peer: &PeerId, now: Instant) -> bool {
        let guessed_at = self.peers.get(peer).and_then(|history| history.guessed_at);
        guessed_at.is_none_or(|at| at + GUESSING_PAUSE <= now)
    }

    /// The network has changed: what failed may work now.
    pub(crate) fn forgive(&mut self, now: Instant) {
        for history in self.peers.values_mut() {
            history.number = 0;
            history.retry_at = now;
        }
    }
}

impl History {
    /// Whether another offer of the peer's is taken.
    pub(crate) fn admit_offer(&mut self, now: Instant) -> bool {
        let drained = now.saturating_duration_since(self.offers_at).as_secs_f64() * OFFER_RATE;
        self.offers = (self.offers - drained).max(0.0);
        self.offers_at = now;
        let admitted = self.offers + 1.0 <= OFFER_BURST;
        if admitted {
            self.offers += 1.0;
        }
        admitted
    }

    /// The attempt with this number has found a path: the next one begins with what worked.
    pub(crate) fn found(&mut self, number: u32, now: Instant) {
        self.number = number.min(NUMBER_MAX);
        self.retry_at = now;
    }

    /// A path was found without an attempt.
    pub(crate) const fn not_needed(&mut self, now: Instant) {
        self.number = 0;
        self.retry_at = now;
    }

    /// The attempt with this number has found nothing; says when the next one is worth while. `ran` is what was tried,
    /// if it came to that. The wait is multiplied by `jitter`.
    pub(crate) fn failed(
        &mut self,
        number: u32,
        why: RelayedBecause,
        ran: Option<(Strategy, Prospect)>,
        jitter: f64,
        now: Instant,
    ) -> Instant {
        // The peer may know of attempts that this node has forgotten.
        self.number = self.number.max(number.min(NUMBER_MAX));
        let guessed = matches!(ran, Some((Strategy::Birthday { .. }, _)));
        if guessed {
            self.guessed_at = Some(now);
        }
        let hopeless = matches!(ran, Some((_, Prospect::Relayed(_))));
        let transient = matches!(why, RelayedBecause::Busy | RelayedBecause::NoCandidates);
        let wait = if transient {
            SOON
        } else if guessed || hopeless {
            GUESSING_PAUSE + SOON
        } else {
            let failures = usize::try_from(self.number).unwrap_or(usize::MAX);
            RETRIES[failures.min(RETRIES.len() - 1)]
        };
        // An attempt that did not take place changes nothing.
        if ran.is_some() || !transient {
            self.number = self.number.saturating_add(1).min(NUMBER_MAX);
        }
        self.retry_at = now + wait.mul_f64(jitter);
        self.retry_at
    }
}

/// When what lacked may be there.
pub(crate) const SOON: Duration = Duration::from_secs(5);
/// After the first attempt the second follows at once; a port that a router took away is free again after 30 s of
/// silence (Linux), and who has not met after that may meet when something changes.
const RETRIES: [Duration; 5] = [
    Duration::from_millis(250),
    Duration::from_secs(40),
    Duration::from_secs(60),
    Duration::from_secs(120),
    Duration::from_secs(300),
];
/// Guessing looks like an attack to who watches a network, so a failed one is not repeated soon.
const GUESSING_PAUSE: Duration = Duration::from_secs(600);
/// Attempts are told apart up to here, whatever a peer claims; beyond it they only alternate.
const NUMBER_MAX: u32 = 1 << 16;
/// Peers that are remembered, about 100 bytes each; the one that was used least lately makes room.
const PEERS_MAX: usize = 4096;
/// Offers that one peer may make: a retry follows at once, the others are tens of seconds apart.
const OFFER_BURST: f64 = 6.0;
/// One in ten seconds.
const OFFER_RATE: f64 = 0.1;

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "any instant will do")]
mod tests {
    use super::*;

    const PLAIN: (Strategy, Prospect) = (Strategy::Simultaneous, Prospect::Simultaneous);

    #[test]
    fn the_second_attempt_follows_at_once_and_the_others_ever_later() {
        let (mut histories, peer, now) = fresh();
        let history = histories.of(peer, now);
        let mut waits = Vec::new();
        for number in 0..8 {
            assert_eq!(history.number, number);
            let why = RelayedBecause::TimedOut;
            waits.push((history.failed(number, why, Some(PLAIN), 1.0, now) - now).as_millis());
        }
        assert_eq!(
            waits,
            [250, 40_000, 60_000, 120_000, 300_000, 300_000, 300_000, 300_000]
        );
    }

    #[test]
    fn what_worked_is_what_is_tried_first_the_next_time() {
        let (mut histories, peer, now) = fresh();
        let history = histories.of(peer, now);
        history.failed(0, RelayedBecause::TimedOut, Some(PLAIN), 1.0, now);
        history.found(1, now);
        assert_eq!((history.number, history.retry_at), (1, now));
    }

    #[test]
    fn a_failed_guess_is_not_repeated_for_ten_minutes() {
        let (mut histories, peer, now) = fresh();
        let birthday = Strategy::Birthday {
            symmetric: crate::Side::Offerer,
            sockets: 256,
            guesses: Strategy::GUESSES_MAX,
        };
        assert!(histories.may_guess(&peer, now));
        let history = histories.of(peer, now);
        let ran = Some((birthday, Prospect::Birthday));
        let retry_at = history.failed(1, RelayedBecause::PortsMissed, ran, 1.0, now);
        assert!(!histories.may_guess(&peer, now + Duration::from_secs(599)));
        assert!(histories.may_guess(&peer, retry_at));
        histories.forgive(now);
        assert!(
            !histories.may_guess(&peer, now),
            "another network does not change that"
        );
    }

    #[test]
    fn what_did_not_take_place_changes_nothing() {
        let (mut histories, peer, now) = fresh();
        let history = histories.of(peer, now);
        let retry_at = history.failed(0, RelayedBecause::Busy, None, 1.0, now);
        assert_eq!((history.number, retry_at), (0, now + SOON));
    }

    #[test]
    fn a_peer_cannot_offer_without_end() {
        let (mut histories, peer, now) = fresh();
        let history = histories.of(peer, now);
        let taken = (0..100).filter(|_| history.admit_offer(now)).count();
        assert_eq!(taken, 6);
        assert!(history.admit_offer(now + Duration::from_secs(10)));
        assert!(!history.admit_offer(now + Duration::from_secs(10)));
    }

    #[test]
    fn the_number_that_a_peer_claims_is_bounded() {
        let (mut histories, peer, now) = fresh();
        let history = histories.of(peer, now);
        for _ in 0..2 {
            history.failed(u32::MAX, RelayedBecause::TimedOut, Some(PLAIN), 1.0, now);
        }
        assert_eq!(history.number, NUMBER_MAX);
        history.found(u32::MAX, now);
        assert_eq!(history.number, NUMBER_MAX);
        history.failed(u32::MAX, RelayedBecause::TimedOut, Some(PLAIN), 1.0, now);
        assert_eq!(history.number, NUMBER_MAX);
    }

    fn fresh() -> (Histories, PeerId, Instant) {
        (Histories::default(), PeerId::random(), Instant::now())
    }
}
