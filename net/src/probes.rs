//! Whom to probe, when and with how much. Sends nothing itself.

use crate::Bucket;
use lapwing_base::{Bandwidth, ByteSize, PeerId};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

/// Plans bandwidth probes: one at a time, at most 60 a minute, at most a tenth of the time (a third while it gets to know
/// its links), and only where no transfer has measured the link within the interval.
///
/// Two probes with one node at an end measure each other, so a node takes part in one at a time and refuses others
/// meanwhile; who was refused goes on with another peer and comes back soon.
///
/// Whoever has many peers is probed by all of them, who know nothing of each other. So each puts off its first probe of a
/// peer that has come, or come back, by a random part of the time in which all members could probe that one after the
/// other, and none probes again sooner than that.
#[derive(Debug)]
pub struct Probes {
    interval: Duration,
    rng: StdRng,
    /// Starts within the last minute, oldest first; at most [`PER_MINUTE_MAX`].
    started_at: VecDeque<Instant>,
    /// Begun and neither measured nor gone yet, so that a peer that refuses is not asked again at once.
    tried: HashMap<PeerId, Tried>,
    /// Who was there at the last look.
    met: HashSet<PeerId>,
    /// Some times as long as the last probe took, after its end.
    rest_until: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Tried {
    at: Instant,
    again_at: Instant,
    /// In a row, without a measurement; none while the first is put off.
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
    /// Of this many bytes each.
    pub const SLICE: ByteSize = Bucket::SLICE;
    /// A probe that is over sooner has measured the machine and not the link.
    pub const TOOK_MIN: Duration = Duration::from_millis(20);

    /// So much longer a slice of the earlier half may have taken. In slow start it is about twice as long.
    pub const STEADY: f64 = 1.25;

    /// Probes links that were not measured for `interval`, with a jitter that follows from the seed.
    pub fn new(interval: Duration, seed: u64) -> Self {
        Self {
            interval,
            rng: StdRng::seed_from_u64(seed),
            started_at: VecDeque::new(),
            tried: HashMap::new(),
            met: HashSet::new(),
            rest_until: None,
        }
    }

    /// Whether a probe has measured the link, and not what others left of it: at most a tenth of it went beside it.
    pub fn has_been_alone(probe: ByteSize, beside: ByteSize) -> bool {
        beside.0 <= probe.0 / 10
    }

    /// Whether what would have measured the link was mostly a pause. Of the largest probe it counts: there is no better
    /// one, and on a path that is very long, slices come a window at a time.
    pub fn has_stalled(probe: ByteSize, timing: ProbeTiming) -> bool {
        timing.is_stalled && probe < Self::SIZE_MAX
    }

    /// How often a link is probed where the roster has as many members.
    pub fn interval(least: Duration, members: usize) -> Duration {
        least.max(spread(members))
    }

    /// The peer to probe now, the one that has been due the longest; or when to ask again.
    pub fn next(
        &mut self,
        candidates: &[Candidate],
        members: usize,
        now: Instant,
    ) -> Result<PeerId, Instant> {
        let interval = Self::interval(self.interval, members);
        while self.started_at.front().is_some_and(|at| *at + MINUTE <= now) {
            self.started_at.pop_front();
        }
        let measured: HashMap<_, _> = candidates
            .iter()
            .map(|candidate| (candidate.peer, candidate.measured_at))
            .collect();
        self.tried.retain(|peer, tried| {
            let stands = |measured: &Option<Instant>| measured.is_none_or(|at| at < tried.at);
            measured.get(peer).is_some_and(stands)
        });
        for (peer, measured_at) in &measured {
            let is_due = measured_at.is_none_or(|at| at + interval <= now);
            if is_due && !self.met.contains(peer) {
                let tried = self.tried.entry(*peer).or_insert(Tried {
                    at: now,
                    again_at: now,
                    times: 0,
                });
                let wait = spread(members).mul_f64(self.rng.random_range(0.0..1.0));
                tried.again_at = tried.again_at.max(now + wait);
            }
        }
        self.met = measured.into_keys().collect();
        let due_at = |candidate: &Candidate| {
            let measured = candidate.measured_at.map(|at| at + interval);
            measured.max(self.tried.get(&candidate.peer).map(|tried| tried.again_at))
        };
        let Some((due, candidate)) = candidates
            .iter()
            .map(|candidate| (due_at(candidate), candidate))
            .min_by_key(|(due, candidate)| (*due, candidate.peer))
        else {
            return Err(now + interval);
        };
        let slot_at = (self.started_at.len() >= PER_MINUTE_MAX)
            .then(|| self.started_at.front().map(|at| *at + MINUTE))
            .flatten();
        match due.max(slot_at).max(self.rest_until) {
            Some(at) if at > now => Err(at),
            _ => {
                self.started_at.push_back(now);
                let times = self.tried.get(&candidate.peer).map_or(0, |tried| tried.times);
                let wait = RETRY.saturating_mul(1 << times.min(16)).min(interval);
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

    /// A probe is over, whether it measured anything or not; `is_first` if nothing was known of the link.
    pub fn ended(&mut self, took: Duration, is_first: bool, now: Instant) {
        let rest = if is_first { REST_FIRST } else { REST };
        self.rest_until = Some(now + took * rest);
    }

    /// The peer did not answer: it is left alone for a while, however long it kept the probe waiting.
    pub fn failed(&mut self, peer: PeerId, now: Instant) {
        let wait = RETRY.mul_f64(self.rng.random_range(0.5..1.0));
        if let Some(tried) = self.tried.get_mut(&peer) {
            tried.again_at = tried.again_at.max(now + wait);
        }
    }

    /// The peer takes part in another probe: this one was none, and others come first, but not for long.
    pub fn refused(&mut self, peer: PeerId, members: usize, now: Instant) {
        self.started_at.pop_back();
        let wait = (spread(members) + TURN).mul_f64(self.rng.random_range(0.5..1.0));
        if let Some(tried) = self.tried.get_mut(&peer) {
            (tried.times, tried.again_at) = (0, now + wait);
        }
    }

    /// The last probe of this peer measured nothing because something else was on its way: no reason to wait ever
    /// longer, but with many members the others have to come in between.
    pub fn disturbed(&mut self, peer: PeerId, members: usize, now: Instant) {
        let wait = spread(members).mul_f64(self.rng.random_range(0.5..1.0));
        if let Some(tried) = self.tried.get_mut(&peer) {
            tried.times = 0;
            tried.again_at = tried.again_at.max(now + wait);
        }
    }

    /// A larger probe counts as one more.
    pub fn grown(&mut self, now: Instant) {
        self.started_at.push_back(now);
    }

    /// How much to send over a link of which this much is known.
    pub fn size(known: Option<Bandwidth>, rtt: Duration) -> ByteSize {
        let Some(known) = known else {
            return Self::SIZE_MIN;
        };
        // Longer than the shortest time that counts, so that a link that has become faster still measures.
        let lasts = (Self::TOOK_MIN * 2).max(Self::lasts_min(rtt).mul_f64(1.25));
        let bytes = known.bytes_per_second() * lasts.as_secs_f64();
        ByteSize((bytes as u64).clamp(Self::SIZE_MIN.0, Self::SIZE_MAX.0))
    }

    /// How much to send after a probe of `size` that has arrived like this; `None` if that has measured the link.
    pub fn larger(size: ByteSize, timing: ProbeTiming, rtt: Duration) -> Option<ByteSize> {
        if size >= Self::SIZE_MAX || (timing.is_steady && timing.lasted >= Self::lasts_min(rtt)) {
            return None;
        }
        let factor = if timing.lasted < Self::TOOK_MIN { 16 } else { 4 };
        let mut larger = size.0 * factor;
        if timing.is_steady {
            // It was only too short: on a slow link four times as much would be in the way for long.
            let missing = Self::lasts_min(rtt).as_secs_f64() / timing.lasted.as_secs_f64().max(1e-6);
            let enough = ByteSize((size.0 as f64 * missing * LONG_ENOUGH) as u64);
            larger = larger.min(enough.0.next_multiple_of(Self::SLICE.0));
        }
        Some(ByteSize(larger.min(Self::SIZE_MAX.0)))
    }

    /// What arrives within a few round trips shows how the congestion window grows: steady, if all of it was one window.
    fn lasts_min(rtt: Duration) -> Duration {
        Self::TOOK_MIN.max(rtt * 4)
    }
}

/// When the slices of a probe arrived, or left.
#[derive(Debug, Default)]
pub struct ProbeClock(Vec<Instant>);

/// What they have shown. The congestion window of a new lane begins small and grows, so that only the later half shows
/// what the link carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeTiming {
    /// From the first slice to the last.
    pub lasted: Duration,
    /// The slices of the later half.
    pub counted: ByteSize,
    /// From the last slice of the earlier half to the last of all.
    pub took: Duration,
    /// Whether the earlier half came about as fast; or faster, as what a limit lets through at once does.
    pub is_steady: bool,
    /// Whether most of the later half was one pause: whoever sends or reads had to wait for a processor, or a packet was
    /// lost. That says nothing of the link.
    pub is_stalled: bool,
}

impl ProbeClock {
    /// One more, whole. What is more than the largest probe has is not counted.
    pub fn record(&mut self, now: Instant) {
        if !self.is_full() {
            self.0.push(now);
        }
    }

    /// Whether it was the last of the largest probe.
    pub fn is_full(&self) -> bool {
        self.0.len() as u64 >= Probes::SIZE_MAX.0 / Probes::SLICE.0
    }

    /// What has been shown; `None` of fewer than four slices.
    pub fn timing(&self) -> Option<ProbeTiming> {
        let slices = self.0.len();
        let half = slices / 2;
        let (first, last) = (*self.0.first()?, *self.0.last()?);
        let middle = *self.0.get(half.checked_sub(1)?).filter(|_| slices >= 4)?;
        let (earlier, took) = (middle - first, last - middle);
        // The first slice does not count: when it began to arrive is not known.
        let per_slice = |took: Duration, slices: usize| took.as_secs_f64() / slices as f64;
        let is_steady = per_slice(earlier, half - 1) <= per_slice(took, slices - half) * Probes::STEADY;
        let mut gaps: Vec<Duration> = self.0.windows(2).map(|two| two[1] - two[0]).collect();
        let longest = gaps[half - 1..].iter().copied().max()?;
        gaps.sort_unstable();
        let usual = gaps[gaps.len() / 2];
        let is_stalled =
            longest >= Probes::TOOK_MIN && longest > usual * STALLED && longest > took.mul_f64(STALLED_SHARE);
        Some(ProbeTiming {
            lasted: last - first,
            counted: ByteSize(Probes::SLICE.0 * (slices - half) as u64),
            took,
            is_steady,
            is_stalled,
        })
    }
}

/// What a probe that was too short is made longer by, beyond what was missing.
const LONG_ENOUGH: f64 = 1.5;

/// A pause is so many times as long as slices usually are apart, and so large a part of what counts: of two slices that
/// come evenly each takes a half.
const STALLED: u32 = 4;
const STALLED_SHARE: f64 = 0.6;

const PER_MINUTE_MAX: usize = 60;
const MINUTE: Duration = Duration::from_secs(60);
/// Nine parts of rest to one of probing make a tenth.
const REST: u32 = 9;
/// Plans are made with what is known, and at first that is nothing: the sooner all links are, the fewer exchanges go over
/// the wrong ones.
const REST_FIRST: u32 = 2;
/// About as long as a probe of a fast link takes.
const TURN: Duration = Duration::from_millis(100);
/// A peer that did not answer a probe is asked again after this at most, then after twice as long, and so on up to the
/// interval: who is asked by many at once refuses most of them, and each costs it a bulk lane.
const RETRY: Duration = Duration::from_secs(5);

/// For one member's probe of a peer. The lane that it opens there is closed four seconds later, so that a peer has 80 of
/// them at a time, however many members there are.
const EACH: Duration = Duration::from_millis(50);

/// In which all members can probe one of them.
fn spread(members: usize) -> Duration {
    // A roster beyond four thousand million is none.
    EACH.saturating_mul(u32::try_from(members).unwrap_or(u32::MAX))
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "any instant will do")]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(30);

    #[test]
    fn a_fresh_link_is_probed_at_once_and_then_rests() {
        let (mut probes, peer, now) = (Probes::new(INTERVAL, 1), PeerId::random(), Instant::now());
        assert_eq!(probes.next(&[never(peer)], 0, now), Ok(peer));
        assert_eq!(probes.next(&[at(peer, now)], 0, now), Err(now + INTERVAL));
        assert_eq!(probes.next(&[at(peer, now)], 0, now + INTERVAL), Ok(peer));
    }

    #[test]
    fn a_probe_that_shares_its_link_with_more_than_a_tenth_of_it_was_not_alone() {
        let probe = ByteSize::kib(64);
        assert!(Probes::has_been_alone(probe, ByteSize(0)));
        assert!(Probes::has_been_alone(probe, ByteSize::kib(6)));
        assert!(!Probes::has_been_alone(probe, ByteSize::kib(7)));
        assert!(!Probes::has_been_alone(ByteSize(0), ByteSize(1)));
    }

    /// Slices of a link that carries one in 4 ms (33 Mbit/s), over 50 ms of round trip, from a window of one slice that
    /// doubles; paced over the round trip until the link is full.
    fn slow_start(slices: usize) -> ProbeTiming {
        let (rtt, slot) = (Duration::from_millis(50), Duration::from_millis(4));
        let (mut clock, mut at, mut window, mut left) = (ProbeClock::default(), Instant::now(), 1, 1);
        for _ in 0..slices {
            clock.record(at);
            at += slot.max(rtt / window);
            left -= 1;
            if left == 0 {
                window *= 2;
                left = window;
            }
        }
        clock.timing().unwrap()
    }

    #[test]
    fn a_probe_grows_until_it_has_measured_the_link_and_not_the_window_that_opens() {
        let rtt = Duration::from_millis(50);
        let mut size = Probes::SIZE_MIN;
        let mut sizes = vec![size];
        let timing = loop {
            let timing = slow_start((size.0 / Probes::SLICE.0) as usize);
            let Some(larger) = Probes::larger(size, timing, rtt) else {
                break timing;
            };
            size = larger;
            sizes.push(size);
        };
        assert_eq!(sizes, [ByteSize::kib(64), ByteSize::kib(256), ByteSize::mib(1)]);
        let speed = Bandwidth::per(timing.counted, timing.took).as_mbit_s();
        assert!((32.0..34.0).contains(&speed), "{speed}");
    }

    #[test]
    fn a_slow_link_needs_one_small_probe_and_a_fast_one_a_large_one() {
        let steady = |slice: Duration, slices: u32| {
            let (mut clock, now) = (ProbeClock::default(), Instant::now());
            (0..slices).for_each(|k| clock.record(now + slice * k));
            clock.timing().unwrap()
        };
        let slow = steady(Duration::from_millis(130), 4);
        assert!(slow.is_steady);
        let (rtt, least) = (Duration::from_millis(50), Probes::SIZE_MIN);
        assert_eq!(Probes::larger(least, slow, rtt), None);
        let fast = steady(Duration::from_micros(10), 4);
        assert_eq!(
            Probes::larger(least, fast, Duration::ZERO),
            Some(Probes::SIZE_MAX)
        );
        assert_eq!(Probes::larger(Probes::SIZE_MAX, fast, rtt), None);
    }

    #[test]
    fn a_pause_is_no_slow_link() {
        let timing = |gaps: &[u64]| {
            let (mut clock, mut at) = (ProbeClock::default(), Instant::now());
            clock.record(at);
            for gap in gaps {
                at += Duration::from_millis(*gap);
                clock.record(at);
            }
            clock.timing().unwrap()
        };
        for paused in [[7, 7, 200], [7, 200, 0], [0, 0, 200], [6, 250, 6]] {
            assert!(
                Probes::has_stalled(Probes::SIZE_MIN, timing(&paused)),
                "{paused:?}"
            );
            assert!(!Probes::has_stalled(Probes::SIZE_MAX, timing(&paused)));
        }
        // What comes evenly, what a limit lets through at once before it does, and what is over at once anyway.
        for link in [[130, 130, 130], [0, 130, 130], [90, 130, 170], [0, 0, 15]] {
            assert!(!timing(&link).is_stalled, "{link:?}");
        }
        let mut lossy = [7; 15];
        lossy[12] = 60;
        assert!(!timing(&lossy).is_stalled);
    }

    #[test]
    fn what_a_limit_lets_through_at_once_does_not_count() {
        let (mut clock, now) = (ProbeClock::default(), Instant::now());
        (0..4).for_each(|_| clock.record(now));
        (1..5).for_each(|k| clock.record(now + Duration::from_millis(100) * k));
        let timing = clock.timing().unwrap();
        assert_eq!(timing.counted, ByteSize::kib(64));
        assert_eq!(timing.took, Duration::from_millis(400));
        assert!(timing.is_steady);
    }

    #[test]
    fn too_few_slices_show_nothing_and_too_many_are_not_kept() {
        let mut clock = ProbeClock::default();
        let now = Instant::now();
        (0..3).for_each(|_| clock.record(now));
        assert_eq!(clock.timing(), None);
        (0..1000).for_each(|_| clock.record(now));
        assert!(clock.is_full());
        assert_eq!(clock.timing().unwrap().counted, ByteSize::kib(512));
    }

    #[test]
    fn a_main_whose_members_all_come_at_once_is_probed_by_one_after_the_other() {
        const MEMBERS: usize = 1000;
        let (main, now) = (PeerId::random(), Instant::now());
        let first_at = |seed| {
            let mut probes = Probes::new(INTERVAL, seed);
            probes.next(&[never(main)], MEMBERS, now).unwrap_err()
        };
        let mut first: Vec<_> = (0..MEMBERS as u64).map(first_at).collect();
        first.sort_unstable();
        let within_a_second = |from: &Instant| {
            let later = first.iter().filter(|at| *at >= from);
            later
                .take_while(|at| **at < *from + Duration::from_secs(1))
                .count()
        };
        assert!(first.iter().map(within_a_second).max() < Some(50));
        assert!(first[MEMBERS - 1] < now + spread(MEMBERS));
        // Nor do they come again sooner, nor all at once when the main has been away.
        let mut probes = Probes::new(INTERVAL, 1);
        assert_eq!(
            probes.next(&[at(main, now)], MEMBERS, now),
            Err(now + spread(MEMBERS))
        );
        let back_at = now + spread(MEMBERS) * 2;
        assert!(probes.next(&[], MEMBERS, back_at).is_err());
        let again_at = probes.next(&[at(main, now)], MEMBERS, back_at).unwrap_err();
        assert!(again_at < back_at + spread(MEMBERS));
        assert_eq!(probes.next(&[at(main, now)], MEMBERS, again_at), Ok(main));
    }

    #[test]
    fn a_probe_that_is_disturbed_is_repeated_within_seconds_and_among_many_after_the_others() {
        let (mut probes, peer, mut now) = (Probes::new(INTERVAL, 1), PeerId::random(), Instant::now());
        for _ in 0..5 {
            assert_eq!(probes.next(&[never(peer)], 0, now), Ok(peer));
            probes.disturbed(peer, 4, now);
            let again = probes.next(&[never(peer)], 0, now).unwrap_err();
            assert!(again <= now + RETRY, "{:?}", again - now);
            now = again;
        }
        assert_eq!(probes.next(&[never(peer)], 0, now), Ok(peer));
        probes.disturbed(peer, 2000, now);
        let again = probes.next(&[never(peer)], 0, now).unwrap_err();
        assert!(again >= now + spread(2000) / 2, "{:?}", again - now);
    }

    #[test]
    fn a_real_transfer_stands_for_a_probe() {
        let (mut probes, peer, now) = (Probes::new(INTERVAL, 1), PeerId::random(), Instant::now());
        let transferred = now + Duration::from_secs(20);
        assert_eq!(
            probes.next(&[at(peer, transferred)], 0, now + INTERVAL),
            Err(transferred + INTERVAL)
        );
    }

    #[test]
    fn a_peer_that_does_not_answer_is_not_asked_again_at_once() {
        let (mut probes, peer, now) = (Probes::new(INTERVAL, 1), PeerId::random(), Instant::now());
        assert_eq!(probes.next(&[never(peer)], 0, now), Ok(peer));
        let again = probes.next(&[never(peer)], 0, now).unwrap_err();
        assert!(again >= now + RETRY / 2 && again <= now + RETRY);
        assert_eq!(probes.next(&[never(peer)], 0, again), Ok(peer));
        let third = probes.next(&[never(peer)], 0, again).unwrap_err();
        assert!(
            third >= again + RETRY && third <= again + RETRY * 2,
            "later each time"
        );
        assert_eq!(
            probes.next(&[at(peer, third)], 0, third),
            Err(third + INTERVAL),
            "measured at last"
        );
    }

    #[test]
    fn probes_take_at_most_a_tenth_of_the_time() {
        let (mut probes, now) = (Probes::new(INTERVAL, 1), Instant::now());
        let peers = [never(PeerId::random()), never(PeerId::random())];
        assert!(probes.next(&peers, 0, now).is_ok());
        probes.ended(Duration::from_secs(1), false, now);
        assert_eq!(probes.next(&peers, 0, now), Err(now + Duration::from_secs(9)));
    }

    #[test]
    fn a_peer_that_let_a_probe_wait_is_left_alone_after_it() {
        let (mut probes, now) = (Probes::new(INTERVAL, 1), Instant::now());
        let silent = never(PeerId::random());
        assert_eq!(probes.next(&[silent], 0, now), Ok(silent.peer));
        let ended = now + Duration::from_secs(15);
        probes.failed(silent.peer, ended);
        let again = probes.next(&[silent], 0, ended).unwrap_err();
        assert!(
            again >= ended + RETRY / 2 && again <= ended + RETRY,
            "{:?}",
            again - ended
        );
    }

    #[test]
    fn links_that_nobody_knows_yet_are_probed_for_a_third_of_the_time() {
        let (mut probes, now) = (Probes::new(INTERVAL, 1), Instant::now());
        let peers = [never(PeerId::random()), never(PeerId::random())];
        assert!(probes.next(&peers, 0, now).is_ok());
        probes.ended(Duration::from_secs(1), true, now);
        assert_eq!(probes.next(&peers, 0, now), Err(now + Duration::from_secs(2)));
    }

    #[test]
    fn a_peer_that_takes_part_in_another_probe_is_asked_again_soon_and_the_others_meanwhile() {
        let (mut probes, now) = (Probes::new(INTERVAL, 1), Instant::now());
        let peers = [never(PeerId::random()), never(PeerId::random())];
        for _ in 0..PER_MINUTE_MAX {
            let first = probes.next(&peers, 0, now).unwrap();
            probes.refused(first, 0, now);
            let second = probes.next(&peers, 0, now).unwrap();
            assert_ne!(first, second);
            probes.refused(second, 0, now);
            let again = probes.next(&peers, 0, now).unwrap_err();
            assert!(again > now && again <= now + TURN, "{:?}", again - now);
            // Whoever is refused has not probed.
            assert!(probes.next(&peers, 0, now + TURN).is_ok());
            probes.refused(first, 0, now - TURN * 2);
            probes.refused(second, 0, now - TURN * 2);
        }
    }

    #[test]
    fn at_most_sixty_start_in_a_minute() {
        let (mut probes, now) = (Probes::new(INTERVAL, 1), Instant::now());
        let peers: Vec<_> = (0..100).map(|_| never(PeerId::random())).collect();
        let started = (0..100).filter(|_| probes.next(&peers, 0, now).is_ok()).count();
        assert_eq!(started, 60);
        assert_eq!(probes.next(&peers, 0, now), Err(now + MINUTE));
        assert!(probes.next(&peers, 0, now + MINUTE).is_ok());
    }

    #[test]
    fn a_probe_is_as_large_as_the_link_is_fast_within_bounds() {
        assert_eq!(Probes::size(None, Duration::ZERO), Probes::SIZE_MIN);
        assert_eq!(
            Probes::size(Some(Bandwidth::mbit(1)), Duration::ZERO),
            Probes::SIZE_MIN
        );
        assert_eq!(
            Probes::size(Some(Bandwidth::mbit(80)), Duration::ZERO),
            ByteSize(400_000)
        );
        assert_eq!(
            Probes::size(Some(Bandwidth::mbit(10_000)), Duration::ZERO),
            Probes::SIZE_MAX
        );
        let far = Duration::from_millis(50);
        assert_eq!(Probes::size(Some(Bandwidth::mbit(10)), far), ByteSize(312_500));
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
