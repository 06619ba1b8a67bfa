//! How fast a transfer came in, from when its frames did. Reads no clock.

use crate::Probes;
use lapwing_base::{Bandwidth, ByteSize};
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// When the pieces of a transfer arrived: its frames, or what was read at once.
#[derive(Debug, Default)]
pub struct TransferClock {
    /// With what had arrived by then: of the first piece and every so many after it, at most [`ARRIVALS_MAX`].
    arrivals: Vec<Arrival>,
    /// The last one of all.
    last: Option<Arrival>,
    pieces: u64,
    /// Two to the power of this many pieces.
    apart: u32,
}

/// What that has shown. The congestion window of a link that was idle is small and grows, may be cut, and lets its queue run
/// empty now and then, so that the whole of a short transfer is mostly waiting. What the link carries the fastest stretch
/// says that came evenly; where that is over before the later half, which is as even and slower, a limit has let it through
/// or the link has become slow, and the later half says what it carries now. Where no stretch is even or long enough, the
/// later half counts; or, where that was much faster, so that the window may still have been growing or who reads came late
/// and found much at once, all of it.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct TransferTiming {
    /// Bytes of that.
    pub counted: ByteSize,
    /// In which they arrived.
    pub took: Duration,
    /// Whether the later half came about as fast, and the earlier half too, or faster, as what a limit lets through at once
    /// does. If not, the link is at least this fast.
    pub is_steady: bool,
}

impl TransferClock {
    /// One more piece, whole.
    pub fn record(&mut self, size: ByteSize, now: Instant) {
        if self.arrivals.len() == ARRIVALS_MAX {
            let mut keeps = false;
            self.arrivals.retain(|_| {
                keeps = !keeps;
                keeps
            });
            self.apart += 1;
        }
        let bytes = self.last.map_or(0, |(_, bytes)| bytes).saturating_add(size.0);
        self.last = Some((now, bytes));
        if self.pieces.is_multiple_of(1 << self.apart) {
            self.arrivals.push((now, bytes));
        }
        self.pieces += 1;
    }

    /// What has been shown; `None` of fewer than three pieces. The first piece does not count: when it began to arrive
    /// is not known.
    pub fn timing(&self) -> Option<TransferTiming> {
        let (&first, last) = (self.arrivals.first()?, self.last?);
        let middle = first.1 + (last.1 - first.1) / 2;
        // Neither half is empty.
        let inner = self.arrivals.iter().skip(1).filter(|(_, bytes)| *bytes < last.1);
        let &half = inner.min_by_key(|(_, bytes)| bytes.abs_diff(middle))?;
        let (earlier, later) = (per_byte(first, half), per_byte(half, last));
        let stretch = self.fastest_stretch(first, last);
        let is_over = stretch.is_some_and(|(_, to)| to.0 <= half.0);
        let stretch = if is_over && Self::is_long(half, last) && self.strays(half, last) <= ASTRAY_MAX {
            Some((half, last))
        } else {
            stretch
        };
        let shows_more = stretch.is_some_and(|(from, to)| per_byte(from, to) * Probes::STEADY < later);
        let is_steady = earlier <= later * Probes::STEADY && !shows_more;
        let (from, to) = stretch.unwrap_or((if is_steady { half } else { first }, last));
        Some(TransferTiming {
            counted: ByteSize(to.1 - from.1),
            took: to.0 - from.0,
            is_steady,
        })
    }

    /// Whether a stretch says more of the link than of the latency and of the machine.
    fn is_long(from: Arrival, to: Arrival) -> bool {
        to.1 - from.1 >= TransferTiming::COUNTED_MIN.0 && to.0 - from.0 >= Probes::TOOK_MIN
    }

    /// The fastest stretch, of some that are long enough to count and do not begin with much at once; of two that are about as
    /// fast, the longer.
    ///
    /// Whoever has come late finds at once what has arrived meanwhile; so also where a packet that was lost has held up
    /// those behind it, and where a limit lets something through first. That has not arrived since, and what follows it has.
    /// Only who goes on to read a little at a time what has long been there is not found out.
    fn fastest_stretch(&self, first: Arrival, last: Arrival) -> Option<(Arrival, Arrival)> {
        let all = last.1 - first.1;
        let mut next = first.1;
        let is_end = |arrival: &&Arrival| {
            let is_next = arrival.1 >= next;
            next = if is_next { arrival.1 + all / ENDS } else { next };
            is_next
        };
        let mut ends: Vec<Arrival> = self.arrivals.iter().filter(is_end).copied().collect();
        ends.push(last);
        let mut fastest: Option<(Arrival, Arrival)> = None;
        for (place, &from) in ends.iter().enumerate() {
            for &to in ends[place..].iter().rev() {
                let is_long = to.1 - from.1 >= all / 4 && Self::is_long(from, to);
                let is_faster = fastest.is_none_or(|(f, t)| per_byte(from, to) < FASTER * per_byte(f, t));
                if is_long && is_faster && self.hurries(from, to) <= AT_ONCE_MAX {
                    fastest = Some((from, to));
                }
            }
        }
        fastest
    }

    /// The part of a stretch that any of its beginnings came before its time.
    fn hurries(&self, from: Arrival, to: Arrival) -> f64 {
        self.ahead(from, to).fold(0.0, f64::max)
    }

    /// The same of what came before or after its time.
    fn strays(&self, from: Arrival, to: Arrival) -> f64 {
        self.ahead(from, to)
            .fold(0.0, |most, ahead| ahead.abs().max(most))
    }

    /// Of each arrival in a stretch, by which part of it it came before its time.
    fn ahead(&self, from: Arrival, to: Arrival) -> impl Iterator<Item = f64> {
        let (took, slowness) = ((to.0 - from.0).as_secs_f64(), per_byte(from, to));
        let within = self
            .arrivals
            .iter()
            .filter(move |(_, bytes)| (from.1..=to.1).contains(bytes));
        within.map(move |(at, bytes)| {
            ((bytes - from.1) as f64 * slowness - at.saturating_duration_since(from.0).as_secs_f64()) / took
        })
    }
}

/// When, and how many bytes had arrived by then.
type Arrival = (Instant, u64);

/// Seconds that a byte took between two of them.
fn per_byte(from: Arrival, to: Arrival) -> f64 {
    (to.0 - from.0).as_secs_f64() / (to.1 - from.1).max(1) as f64
}

impl TransferTiming {
    /// What the link carries, or carries at least; `None` if too little came to say so.
    pub fn speed(&self) -> Option<Bandwidth> {
        (self.counted >= Self::COUNTED_MIN && !self.took.is_zero())
            .then(|| Bandwidth::per(self.counted, self.took))
    }

    /// Of less than this the latency says more than the link.
    pub const COUNTED_MIN: ByteSize = Probes::SIZE_MIN;
}

/// All pieces of a short transfer, and of longer ones every second, fourth and so on: enough to find where the window had
/// grown, and no pieces, however small and many, take more memory than this.
const ARRIVALS_MAX: usize = 1024;

/// Stretches begin and end at so many places, about as many bytes apart.
const ENDS: u64 = 16;

/// The part of a stretch that may have come before its time: what came at once makes a link look faster by a ninth at most.
const AT_ONCE_MAX: f64 = 0.1;

/// A stretch that is shorter than another has to be so much faster to count in its place: otherwise chance would choose.
const FASTER: f64 = 0.99;

/// A half in which nothing came earlier or later than this part of it has no pause and no start in it.
const ASTRAY_MAX: f64 = 0.15;

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "any instant will do")]
mod tests {
    use super::*;

    const CHUNK: ByteSize = ByteSize::kib(64);
    const MS: Duration = Duration::from_millis(1);

    fn timing(gaps: impl IntoIterator<Item = u32>) -> Option<TransferTiming> {
        let (mut clock, mut at) = (TransferClock::default(), Instant::now());
        for gap in gaps {
            at += MS * gap;
            clock.record(CHUNK, at);
        }
        clock.timing()
    }

    #[test]
    fn a_transfer_that_fills_its_link_all_the_time_measures_it() {
        let timing = timing([10; 9]).unwrap();
        assert_eq!((timing.counted, timing.took), (ByteSize::kib(512), 80 * MS));
        assert!(timing.is_steady);
        assert_eq!(timing.speed(), Some(Bandwidth::per(CHUNK, 10 * MS)));
    }

    #[test]
    fn while_the_window_grows_the_fastest_stretch_says_what_the_link_does_at_least() {
        let timing = timing([0, 40, 40, 20, 20, 10, 10, 10, 10]).unwrap();
        assert!(!timing.is_steady);
        assert_eq!(timing.speed(), Some(Bandwidth::per(CHUNK, 10 * MS)));
    }

    #[test]
    fn once_the_window_has_grown_the_rest_of_it_says_what_the_link_does() {
        let growing = [0, 80, 80, 80, 40, 40];
        let timing = timing(growing.into_iter().chain([10; 20])).unwrap();
        assert!(!timing.is_steady);
        assert!(
            timing.speed().unwrap() > Bandwidth::per(CHUNK, 11 * MS),
            "{timing:?}"
        );
        assert!(
            timing.speed().unwrap() <= Bandwidth::per(CHUNK, 10 * MS),
            "{timing:?}"
        );
    }

    #[test]
    fn a_pause_in_the_later_half_does_not_make_the_link_slow() {
        let before = [10; 30];
        let after = [300, 40, 40, 20, 20].into_iter().chain([10; 25]);
        let timing = timing(before.into_iter().chain(after)).unwrap();
        assert!(!timing.is_steady);
        assert!(
            timing.speed().unwrap() > Bandwidth::per(CHUNK, 12 * MS),
            "{timing:?}"
        );
        assert!(
            timing.speed().unwrap() <= Bandwidth::per(CHUNK, 10 * MS),
            "{timing:?}"
        );
    }

    #[test]
    fn what_has_piled_up_behind_a_lost_packet_makes_the_link_look_faster_by_a_ninth_at_most() {
        // 200 ms of the link's bytes at once, and then as before.
        let piled = [10; 20].into_iter().chain([210]).chain([0; 20]).chain([10; 30]);
        let speed = timing(piled).unwrap().speed().unwrap();
        assert!(speed <= Bandwidth::per(CHUNK, 9 * MS), "{speed}");
        let at_the_end = [10; 40].into_iter().chain([210]).chain([0; 20]);
        let speed = timing(at_the_end).unwrap().speed().unwrap();
        assert!(speed <= Bandwidth::per(CHUNK, 10 * MS), "{speed}");
    }

    #[test]
    fn who_reads_late_and_finds_the_rest_at_once_does_not_take_the_link_for_faster() {
        let timing = timing([0, 10, 10, 60, 0, 0, 0, 0, 0]).unwrap();
        assert!(!timing.is_steady);
        assert_eq!(timing.speed(), Some(Bandwidth::per(CHUNK, 10 * MS)));
    }

    #[test]
    fn what_a_limit_lets_through_at_once_does_not_count() {
        let timing = timing([0, 0, 0, 0, 0, 100, 100, 100, 100]).unwrap();
        assert!(timing.is_steady);
        assert_eq!(timing.speed(), Some(Bandwidth::per(CHUNK, 100 * MS)));
    }

    #[test]
    fn a_link_that_has_become_slow_or_that_a_limit_holds_is_what_it_is_in_the_later_half() {
        // 100 ms of what a limit lets through first, and then what it is held to.
        let timing = timing([5; 20].into_iter().chain([50; 30])).unwrap();
        assert!(timing.is_steady);
        assert_eq!(timing.speed(), Some(Bandwidth::per(CHUNK, 50 * MS)));
    }

    #[test]
    fn too_little_says_nothing() {
        assert_eq!(timing([]), None);
        assert_eq!(timing([0]), None);
        assert_eq!(timing([0, 10]), None);
        let (mut clock, now) = (TransferClock::default(), Instant::now());
        (0..8).for_each(|k| clock.record(ByteSize::kib(8), now + MS * k));
        assert_eq!(clock.timing().unwrap().speed(), None);
    }

    #[test]
    fn a_long_transfer_is_kept_short() {
        let (mut clock, now) = (TransferClock::default(), Instant::now());
        for k in 0..100_000 {
            clock.record(CHUNK, now + MS * k);
        }
        assert!(clock.arrivals.len() <= ARRIVALS_MAX);
        let timing = clock.timing().unwrap();
        assert_eq!(timing.speed(), Some(Bandwidth::per(CHUNK, MS)));
    }
}
