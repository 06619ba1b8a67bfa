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

/// What that has shown. The congestion window of a link that was idle is small and grows, so that only the later half
/// shows what the link carries: the whole of a short transfer over a fast link is mostly waiting. Where the later half was
/// much faster, or its own end was, the window may still have been growing, or who reads came late and found much at once:
/// then the fastest end that came evenly counts, or else all of it, and says what the link carries at least.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct TransferTiming {
    /// Bytes of the later half, of a shorter or longer end, or of all.
    pub counted: ByteSize,
    /// In which they arrived.
    pub took: Duration,
    /// Whether the earlier half came about as fast, or faster, as what a limit lets through at once does. If not, the link
    /// is at least this fast.
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
        let end = self.fastest_end();
        let shows_more = |end: &Arrival| per_byte(*end, last) * Probes::STEADY < later;
        let is_steady = earlier <= later * Probes::STEADY && !end.as_ref().is_some_and(shows_more);
        let from = if is_steady { half } else { end.unwrap_or(first) };
        Some(TransferTiming {
            counted: ByteSize(last.1 - from.1),
            took: last.0 - from.0,
            is_steady,
        })
    }

    /// Where the fastest end begins, of some that are long enough to count and do not begin with much at once.
    ///
    /// Whoever has come late finds at once what has arrived meanwhile; so also where a packet that was lost has held up
    /// those behind it, and where a limit lets something through first. That has not arrived since, and what follows it has.
    fn fastest_end(&self) -> Option<Arrival> {
        let (&first, last) = (self.arrivals.first()?, self.last?);
        let all = last.1 - first.1;
        let least = (all / 4).max(TransferTiming::COUNTED_MIN.0);
        let mut next = first.1;
        let mut fastest: Option<Arrival> = None;
        for (place, &from) in self.arrivals.iter().enumerate() {
            if last.1 - from.1 < least || last.0 - from.0 < Probes::TOOK_MIN {
                break;
            }
            if from.1 < next {
                continue;
            }
            next = from.1 + all / ENDS;
            let slowness = per_byte(from, last);
            let ahead =
                |&(at, bytes): &Arrival| (bytes - from.1) as f64 * slowness - (at - from.0).as_secs_f64();
            let at_once = self.arrivals[place..].iter().map(ahead).fold(0.0, f64::max);
            let is_even = at_once <= AT_ONCE_MAX * (last.0 - from.0).as_secs_f64();
            if is_even && fastest.is_none_or(|fastest| slowness < per_byte(fastest, last)) {
                fastest = Some(from);
            }
        }
        fastest
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

/// So many ends are looked at, of which each is shorter than the one before by as much.
const ENDS: u64 = 16;

/// The part of an end that may have come before its time: a link looks faster by a quarter at most.
const AT_ONCE_MAX: f64 = 0.2;

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
        assert_eq!((timing.counted, timing.took), (ByteSize::kib(256), 40 * MS));
        assert!(timing.is_steady);
        assert_eq!(timing.speed(), Some(Bandwidth::per(CHUNK, 10 * MS)));
    }

    #[test]
    fn while_the_window_grows_the_fastest_end_says_what_the_link_does_at_least() {
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
    fn what_has_piled_up_behind_a_lost_packet_makes_the_link_look_faster_by_a_quarter_at_most() {
        // 200 ms of the link's bytes at once, and then as before.
        let piled = [10; 20].into_iter().chain([210]).chain([0; 20]).chain([10; 30]);
        let speed = timing(piled).unwrap().speed().unwrap();
        assert!(speed <= Bandwidth::per(CHUNK, 8 * MS), "{speed}");
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
    fn too_little_says_nothing() {
        assert_eq!(timing([]), None);
        assert_eq!(timing([0]), None);
        assert_eq!(timing([0, 10]), None);
        let (mut clock, now) = (TransferClock::default(), Instant::now());
        (0..8).for_each(|k| clock.record(ByteSize::kib(8), now + MS * k));
        assert_eq!(clock.timing().unwrap().speed(), None);
    }

    #[test]
    fn a_long_transfer_is_measured_by_about_its_later_half_and_kept_short() {
        let (mut clock, now) = (TransferClock::default(), Instant::now());
        for k in 0..100_000 {
            clock.record(CHUNK, now + MS * k);
        }
        assert!(clock.arrivals.len() <= ARRIVALS_MAX);
        let timing = clock.timing().unwrap();
        assert_eq!(timing.speed(), Some(Bandwidth::per(CHUNK, MS)));
        assert!(
            (49_000..51_000).contains(&(timing.counted.0 / CHUNK.0)),
            "{timing:?}"
        );
    }
}
