//! Whom to probe, when and with how much. Sends nothing itself.

use lapwing_base::{Bandwidth, ByteSize, PeerId};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

/// Plans bandwidth probes: one at a time, at most 60 a minute, at most a tenth of the time, and only where no
/// transfer has measured the link within the interval.
#[derive(Debug)]
pub struct Probes {
    interval: Duration,
    rng: StdRng,
    /// Starts within the last minute, oldest first; at most [`PER_MINUTE_MAX`].
    started_at: VecDeque<Instant>,
    /// Begun and neither measured nor gone yet, so that a peer that refuses is not asked again at once.
    tried: HashMap<PeerId, Tried>,
    /// Nine times as long as the last probe took, after its end.
    rest_until: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Tried {
    at: Instant,
    again_at: Instant,
    /// In a row, without a measurement.
    times: u32,
}

/// A member with a connection.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    /// Who.
    pub peer: PeerId,
    /// When the link was measured last.
    pub measured_at: Option<Instant>,
}

impl Probes {
    /// The first probe of a link: small enough for the slowest (0.5 s at 1 Mbit/s).
    pub const SIZE_MIN: ByteSize = ByteSize::kib(64);
    /// The largest probe: 8 ms at 1 Gbit/s, beyond which nobody needs to know.
    pub const SIZE_MAX: ByteSize = ByteSize::mib(1);
    /// A probe that is over sooner has measured the machine and not the link.
    pub const TOOK_MIN: Duration = Duration::from_millis(20);

    /// Probes links that were not measured for `interval`, with a jitter that follows from the seed.
    pub fn new(interval: Duration, seed: u64) -> Self {
        Self {
            interval,
            rng: StdRng::seed_from_u64(seed),
            started_at: VecDeque::new(),
            tried: HashMap::new(),
            rest_until: None,
        }
    }

    /// The peer to probe now, the one least lately measured first; or when to ask again.
    pub fn next(&mut self, candidates: &[Candidate], now: Instant) -> Result<PeerId, Instant> {
        while self.started_at.front().is_some_and(|at| *at + MINUTE <= now) {
            self.started_at.pop_front();
        }
        let stands = |peer: &PeerId, tried: &Tried| {
            candidates.iter().any(|candidate| {
                candidate.peer == *peer && candidate.measured_at.is_none_or(|measured| measured < tried.at)
            })
        };
        self.tried.retain(|peer, tried| stands(peer, tried));
        let due_at = |candidate: &Candidate| {
            let measured = candidate.measured_at.map(|at| at + self.interval);
            measured.max(self.tried.get(&candidate.peer).map(|tried| tried.again_at))
        };
        // `None`, never measured and never tried, sorts first.
        let Some((due, candidate)) = candidates
            .iter()
            .map(|candidate| (due_at(candidate), candidate))
            .min_by_key(|(due, candidate)| (*due, candidate.peer))
        else {
            return Err(now + self.interval);
        };
        let slot_at = (self.started_at.len() >= PER_MINUTE_MAX)
            .then(|| self.started_at.front().map(|at| *at + MINUTE))
            .flatten();
        match due.max(slot_at).max(self.rest_until) {
            Some(at) if at > now => Err(at),
            _ => {
                self.started_at.push_back(now);
                let times = self.tried.get(&candidate.peer).map_or(0, |tried| tried.times);
                let wait = RETRY.saturating_mul(1 << times.min(16)).min(self.interval);
                let tried = Tried {
                    at: now,
                    again_at: now + wait.mul_f64(self.rng.random_range(0.5..1.0)),
                    times: times.saturating_add(1),
                };
                self.tried.insert(candidate.peer, tried);
                Ok(candidate.peer)
            }
        }
    }

    /// A probe is over, whether it measured anything or not.
    pub fn ended(&mut self, took: Duration, now: Instant) {
        self.rest_until = Some(now + took * REST);
    }

    /// A larger probe counts as one more.
    pub fn grown(&mut self, now: Instant) {
        self.started_at.push_back(now);
    }

    /// How much to send over a link of which this much is known.
    pub fn size(known: Option<Bandwidth>) -> ByteSize {
        let Some(known) = known else {
            return Self::SIZE_MIN;
        };
        // Twice the shortest time that counts, so that a link that has become faster still measures.
        let bytes = known.bytes_per_second() * Self::TOOK_MIN.as_secs_f64() * 2.0;
        ByteSize((bytes as u64).clamp(Self::SIZE_MIN.0, Self::SIZE_MAX.0))
    }
}

const PER_MINUTE_MAX: usize = 60;
const MINUTE: Duration = Duration::from_secs(60);
/// Nine parts of rest to one of probing make a tenth.
const REST: u32 = 9;
/// A peer that did not answer a probe is asked again after this at most, then after twice as long, and so on up to the
/// interval: a main whose homes have all come at once refuses most of them, and each costs it a bulk lane.
const RETRY: Duration = Duration::from_secs(5);

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "any instant will do")]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(30);

    #[test]
    fn a_fresh_link_is_probed_at_once_and_then_rests() {
        let (mut probes, peer, now) = (Probes::new(INTERVAL, 1), PeerId::random(), Instant::now());
        assert_eq!(probes.next(&[never(peer)], now), Ok(peer));
        assert_eq!(probes.next(&[at(peer, now)], now), Err(now + INTERVAL));
        assert_eq!(probes.next(&[at(peer, now)], now + INTERVAL), Ok(peer));
    }

    #[test]
    fn a_real_transfer_stands_for_a_probe() {
        let (mut probes, peer, now) = (Probes::new(INTERVAL, 1), PeerId::random(), Instant::now());
        let transferred = now + Duration::from_secs(20);
        assert_eq!(
            probes.next(&[at(peer, transferred)], now + INTERVAL),
            Err(transferred + INTERVAL)
        );
    }

    #[test]
    fn a_peer_that_does_not_answer_is_not_asked_again_at_once() {
        let (mut probes, peer, now) = (Probes::new(INTERVAL, 1), PeerId::random(), Instant::now());
        assert_eq!(probes.next(&[never(peer)], now), Ok(peer));
        let again = probes.next(&[never(peer)], now).unwrap_err();
        assert!(again >= now + RETRY / 2 && again <= now + RETRY);
        assert_eq!(probes.next(&[never(peer)], again), Ok(peer));
        let third = probes.next(&[never(peer)], again).unwrap_err();
        assert!(
            third >= again + RETRY && third <= again + RETRY * 2,
            "later each time"
        );
        assert_eq!(
            probes.next(&[at(peer, third)], third),
            Err(third + INTERVAL),
            "measured at last"
        );
    }

    #[test]
    fn probes_take_at_most_a_tenth_of_the_time() {
        let (mut probes, now) = (Probes::new(INTERVAL, 1), Instant::now());
        let peers = [never(PeerId::random()), never(PeerId::random())];
        assert!(probes.next(&peers, now).is_ok());
        probes.ended(Duration::from_secs(1), now);
        assert_eq!(probes.next(&peers, now), Err(now + Duration::from_secs(9)));
    }

    #[test]
    fn at_most_sixty_start_in_a_minute() {
        let (mut probes, now) = (Probes::new(INTERVAL, 1), Instant::now());
        let peers: Vec<_> = (0..100).map(|_| never(PeerId::random())).collect();
        let started = (0..100).filter(|_| probes.next(&peers, now).is_ok()).count();
        assert_eq!(started, 60);
        assert_eq!(probes.next(&peers, now), Err(now + MINUTE));
        assert!(probes.next(&peers, now + MINUTE).is_ok());
    }

    #[test]
    fn a_probe_is_as_large_as_the_link_is_fast_within_bounds() {
        assert_eq!(Probes::size(None), Probes::SIZE_MIN);
        assert_eq!(Probes::size(Some(Bandwidth::mbit(1))), Probes::SIZE_MIN);
        assert_eq!(Probes::size(Some(Bandwidth::mbit(80))), ByteSize(400_000));
        assert_eq!(Probes::size(Some(Bandwidth::mbit(10_000))), Probes::SIZE_MAX);
    }

    fn never(peer: PeerId) -> Candidate {
        Candidate {
            peer,
            measured_at: None,
        }
    }

    fn at(peer: PeerId, at: Instant) -> Candidate {
        Candidate {
            peer,
            measured_at: Some(at),
        }
    }
}
