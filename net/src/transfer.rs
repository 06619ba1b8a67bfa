//! How fast a transfer came in, from when its frames did. Reads no clock.

use crate::Probes;
use lapwing_base::{Bandwidth, ByteSize};
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// When the frames of a transfer arrived.
#[derive(Debug, Default)]
pub struct TransferClock {
    /// With what had arrived by then: of the first frame and every so many after it, at most [`ARRIVALS_MAX`].
    arrivals: Vec<(Instant, u64)>,
    /// The last one of all.
    last: Option<(Instant, u64)>,
    frames: u64,
    /// Two to the power of this many frames.
    apart: u32,
}

/// What that has shown. The congestion window of a link that was idle is small and grows, so that only the later half
/// shows what the link carries: the whole of a short transfer over a fast link is mostly waiting. Where the later half was
/// much faster, the window may still have been growing, or who reads came late and found much at once: then all of it
/// counts, and says what the link carries at least.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct TransferTiming {
    /// Bytes of the later half, or of all.
    pub counted: ByteSize,
    /// In which they arrived.
    pub took: Duration,
    /// Whether the earlier half came about as fast, or faster, as what a limit lets through at once does. If not, the link
    /// is at least this fast.
    pub is_steady: bool,
}

impl TransferClock {
    /// One more frame, whole.
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
        if self.frames.is_multiple_of(1 << self.apart) {
            self.arrivals.push((now, bytes));
        }
        self.frames += 1;
    }

    /// What has been shown; `None` of fewer than three frames. The first frame does not count: when it began to arrive
    /// is not known.
    pub fn timing(&self) -> Option<TransferTiming> {
        let (&(first_at, first), (last_at, last)) = (self.arrivals.first()?, self.last?);
        let middle = first + (last - first) / 2;
        // Neither half is empty.
        let inner = self.arrivals.iter().skip(1).filter(|(_, bytes)| *bytes < last);
        let &(half_at, half) = inner.min_by_key(|(_, bytes)| bytes.abs_diff(middle))?;
        let per_byte = |took: Duration, bytes: u64| took.as_secs_f64() / bytes.max(1) as f64;
        let earlier = per_byte(half_at - first_at, half - first);
        let later = per_byte(last_at - half_at, last - half);
        let is_steady = earlier <= later * Probes::STEADY;
        let (from, from_at) = if is_steady {
            (half, half_at)
        } else {
            (first, first_at)
        };
        Some(TransferTiming {
            counted: ByteSize(last - from),
            took: last_at - from_at,
            is_steady,
        })
    }
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

/// Of a model's chunks all of 64 MiB, of twice as much every other one, and so on: enough to find the middle, and no frames,
/// however small and many, take more memory than this.
const ARRIVALS_MAX: usize = 1024;

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
    fn while_the_window_grows_all_of_it_says_what_the_link_does_at_least() {
        let timing = timing([0, 40, 40, 20, 20, 10, 10, 10, 10]).unwrap();
        assert!(!timing.is_steady);
        assert_eq!(timing.speed(), Some(Bandwidth::per(CHUNK, 20 * MS)));
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
