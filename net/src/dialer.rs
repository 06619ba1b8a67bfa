//! When to dial a peer again. Dials nobody itself, and knows no addresses.

use lapwing_base::PeerId;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Spaces out the dials to each peer: 100 ms, doubling to 5 s, with full jitter (each wait is uniform between
/// nothing and the bound; "Exponential Backoff and Jitter", AWS Architecture Blog, 2015).
#[derive(Debug)]
pub struct Dialer {
    peers: HashMap<PeerId, State>,
    rng: StdRng,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Dialing { failures: u32 },
    Waiting { failures: u32, retry_at: Instant },
}

/// What to do for somebody who wants a connection.
#[must_use]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Step {
    /// Dial now; the dialer counts it as begun.
    Dial,
    /// A dial is under way.
    Dialing,
    /// Ask again then.
    Wait {
        /// Not before.
        retry_at: Instant,
    },
}

impl Dialer {
    /// A dialer whose jitter follows from the seed.
    pub fn new(seed: u64) -> Self {
        Self {
            peers: HashMap::new(),
            rng: StdRng::seed_from_u64(seed),
        }
    }

    /// Somebody wants a connection to a peer that has none.
    pub fn want(&mut self, peer: PeerId, now: Instant) -> Step {
        let failures = match self.peers.get(&peer) {
            Some(State::Dialing { .. }) => return Step::Dialing,
            Some(&State::Waiting { retry_at, .. }) if now < retry_at => return Step::Wait { retry_at },
            Some(&State::Waiting { failures, .. }) => failures,
            None => 0,
        };
        if self.peers.len() >= PEERS_MAX {
            self.peers.retain(
                |_, state| !matches!(state, State::Waiting { retry_at, .. } if *retry_at + BACKOFF_MAX < now),
            );
        }
        self.peers.insert(peer, State::Dialing { failures });
        Step::Dial
    }

    /// A dial has failed; says when the next one may begin.
    pub fn failed(&mut self, peer: PeerId, now: Instant) -> Instant {
        let failures = match self.peers.get(&peer) {
            Some(State::Dialing { failures } | State::Waiting { failures, .. }) => failures.saturating_add(1),
            None => 1,
        };
        let bound = BACKOFF_MIN
            .saturating_mul(1 << (failures - 1).min(16))
            .min(BACKOFF_MAX);
        let retry_at = now + bound.mul_f64(self.rng.random_range(0.0..=1.0));
        self.peers.insert(peer, State::Waiting { failures, retry_at });
        retry_at
    }

    /// A connection stands, whoever dialed it.
    pub fn connected(&mut self, peer: &PeerId) {
        self.peers.remove(peer);
    }

    /// Something new is known of where the peer is: earlier failures say nothing any more.
    pub fn learned(&mut self, peer: &PeerId) {
        if let Some(State::Waiting { .. }) = self.peers.get(peer) {
            self.peers.remove(peer);
        }
    }
}

/// Enough to be polite to a machine that is starting, short enough that nobody notices one lost packet.
const BACKOFF_MIN: Duration = Duration::from_millis(100);
/// A peer that comes back is found within this.
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// Beyond as many peers, those whose wait is long over are forgotten.
const PEERS_MAX: usize = 4096;

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "any instant will do")]
mod tests {
    use super::*;

    #[test]
    fn one_dial_at_a_time() {
        let (mut dialer, peer, now) = (Dialer::new(1), PeerId::random(), Instant::now());
        assert_eq!(dialer.want(peer, now), Step::Dial);
        assert_eq!(dialer.want(peer, now), Step::Dialing);
    }

    #[test]
    fn waits_grow_to_five_seconds_and_no_further() {
        let (mut dialer, peer, now) = (Dialer::new(1), PeerId::random(), Instant::now());
        let waits: Vec<_> = (0..200).map(|_| dialer.failed(peer, now) - now).collect();
        assert!(waits[0] <= BACKOFF_MIN);
        assert!(waits[1] <= BACKOFF_MIN * 2);
        assert!(waits.iter().all(|wait| *wait <= BACKOFF_MAX));
        let late: Duration = waits[100..].iter().sum();
        assert!(
            late / 100 > Duration::from_secs(2),
            "full jitter averages half the bound"
        );
    }

    #[test]
    fn a_dial_is_due_when_its_wait_is_over() {
        let (mut dialer, peer, now) = (Dialer::new(1), PeerId::random(), Instant::now());
        assert_eq!(dialer.want(peer, now), Step::Dial);
        let retry_at = dialer.failed(peer, now);
        assert_eq!(dialer.want(peer, now), Step::Wait { retry_at });
        assert_eq!(dialer.want(peer, retry_at), Step::Dial);
    }

    #[test]
    fn a_connection_or_a_new_address_forgives_earlier_failures() {
        let (mut dialer, peer, now) = (Dialer::new(1), PeerId::random(), Instant::now());
        for _ in 0..10 {
            dialer.failed(peer, now);
        }
        dialer.learned(&peer);
        assert_eq!(dialer.want(peer, now), Step::Dial);
        dialer.connected(&peer);
        assert_eq!(dialer.want(peer, now), Step::Dial);
    }

    #[test]
    fn a_new_address_does_not_start_a_second_dial() {
        let (mut dialer, peer, now) = (Dialer::new(1), PeerId::random(), Instant::now());
        assert_eq!(dialer.want(peer, now), Step::Dial);
        dialer.learned(&peer);
        assert_eq!(dialer.want(peer, now), Step::Dialing);
    }
}
