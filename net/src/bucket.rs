//! Holds a stream of bytes to a rate. Says when, and waits for nobody.

use lapwing_base::{Bandwidth, ByteSize};
use std::time::{Duration, Instant};

/// A token bucket, kept as the instant at which everything let through so far has drained at the rate
/// (the generic cell rate algorithm, ITU-T I.371).
#[derive(Debug)]
pub struct Bucket {
    rate: Bandwidth,
    burst: Duration,
    /// Never far in the past: what was not used is not saved up beyond the burst.
    drained_at: Option<Instant>,
}

impl Bucket {
    /// What goes out at once at most: small enough that a message of a higher class waits for one slice only.
    pub const SLICE: ByteSize = ByteSize::kib(16);

    /// A bucket with this rate, of at least 1 kbit/s.
    pub fn new(rate: Bandwidth) -> Self {
        let rate = rate.max(Bandwidth::kbit(1));
        let slice = rate.time_for(Self::SLICE).unwrap_or(Duration::ZERO);
        Self {
            rate,
            // Timers are late by a millisecond or two, which would be lost each time.
            burst: slice + LATENESS_MAX,
            drained_at: None,
        }
    }

    /// Takes `size` from the bucket and says when it may go: `now`, or later.
    ///
    /// Callers are served in the order in which they ask.
    pub fn reserve(&mut self, size: ByteSize, now: Instant) -> Instant {
        let starts_at = self.drained_at.map_or(now, |at| at.max(now));
        let cost = self.rate.time_for(size).unwrap_or(Duration::ZERO);
        let ends_at = starts_at + cost;
        self.drained_at = Some(ends_at);
        // It may go once no more than a burst, itself included, is left to drain.
        ends_at
            .checked_sub(self.burst.max(cost))
            .map_or(now, |at| at.max(now))
    }

    /// Takes `size` from the bucket for something that does not wait, so that what does wait makes room.
    pub fn charge(&mut self, size: ByteSize, now: Instant) {
        let starts_at = self.drained_at.map_or(now, |at| at.max(now));
        let cost = self.rate.time_for(size).unwrap_or(Duration::ZERO);
        self.drained_at = Some((starts_at + cost).min(now + DEBT_MAX).max(starts_at));
    }
}

/// A timer that is late by this much costs nothing; the runtime's are exact to a millisecond.
const LATENESS_MAX: Duration = Duration::from_millis(5);

/// What goes first may push the rest back by this much, and never starve it.
const DEBT_MAX: Duration = Duration::from_secs(1);

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "any instant will do")]
mod tests {
    use super::*;

    #[test]
    fn a_long_transfer_is_held_to_the_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::new(Bandwidth::mbit(8));
        let mut now = start;
        // 2 MB at 1 MB/s.
        for _ in 0..122 {
            now = bucket.reserve(Bucket::SLICE, now).max(now);
        }
        let took = (now - start).as_secs_f64();
        assert!((1.9..2.1).contains(&took), "{took} s");
    }

    #[test]
    fn timers_that_are_a_little_late_cost_nothing() {
        let start = Instant::now();
        let mut bucket = Bucket::new(Bandwidth::mbit(8));
        let mut now = start;
        for _ in 0..122 {
            now = bucket.reserve(Bucket::SLICE, now).max(now) + Duration::from_millis(3);
        }
        let took = (now - start).as_secs_f64();
        assert!((1.9..2.1).contains(&took), "{took} s");
    }

    #[test]
    fn the_first_slice_goes_at_once_and_the_second_waits_for_it() {
        let now = Instant::now();
        let mut bucket = Bucket::new(Bandwidth::mbit(8));
        assert_eq!(bucket.reserve(Bucket::SLICE, now), now);
        let second = bucket.reserve(Bucket::SLICE, now);
        let slice = Bandwidth::mbit(8).time_for(Bucket::SLICE).unwrap();
        assert_eq!(second - now, slice - LATENESS_MAX);
        assert_eq!(bucket.reserve(Bucket::SLICE, second) - second, slice);
    }

    #[test]
    fn idle_time_is_not_saved_up() {
        let now = Instant::now();
        let mut bucket = Bucket::new(Bandwidth::mbit(8));
        bucket.reserve(Bucket::SLICE, now);
        let later = now + Duration::from_secs(3600);
        assert_eq!(bucket.reserve(Bucket::SLICE, later), later);
        assert!(bucket.reserve(Bucket::SLICE, later) > later);
    }

    #[test]
    fn what_does_not_wait_pushes_back_what_does_but_only_so_far() {
        let now = Instant::now();
        let mut bucket = Bucket::new(Bandwidth::mbit(8));
        bucket.charge(ByteSize::kib(100), now);
        let pushed = bucket.reserve(Bucket::SLICE, now);
        assert!(pushed > now + Duration::from_millis(90));
        bucket.charge(ByteSize::mib(1000), now);
        assert!(bucket.reserve(Bucket::SLICE, now) <= now + DEBT_MAX + Duration::from_millis(20));
    }
}
