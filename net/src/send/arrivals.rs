//! How long what a peer sends waits in queues on its way here, by what it says of when it was sent. Reads no clock and
//! sends nothing.
//!
//! The clocks of two machines have nothing in common, but how much later than the quickest a message arrives is the queue
//! that it met (as in LEDBAT, RFC 6817).

use std::time::{Duration, Instant};

/// The way from a peer to this node, as far as queues are concerned.
#[derive(Clone, Debug)]
pub struct Arrivals {
    began_at: Instant,
    /// By how much the clocks differ at least, travelling time included, in microseconds: in each of the last epochs.
    epochs: [i64; EPOCHS],
    turned_at: Instant,
    /// The same of the last messages.
    latest: [i64; LATEST],
    heard_at: Option<Instant>,
}

impl Arrivals {
    /// Without a word for so long, nothing is known of a queue.
    pub const FRESH: Duration = Duration::from_millis(100);

    /// Nothing was heard yet.
    pub const fn new(now: Instant) -> Self {
        Self {
            began_at: now,
            epochs: [i64::MAX; EPOCHS],
            turned_at: now,
            latest: [i64::MAX; LATEST],
            heard_at: None,
        }
    }

    /// A message has arrived at `now` that was sent at `sent` by the peer's clock, whenever that began.
    pub fn heard(&mut self, sent: Duration, now: Instant) {
        if self.heard_at.is_some_and(|at| now >= at + EPOCH) {
            // The clocks may have drifted far apart.
            *self = Self::new(now);
        }
        let offset = micros(now.saturating_duration_since(self.began_at)) - micros(sent);
        if now >= self.turned_at + EPOCH {
            self.turned_at = now;
            self.epochs.rotate_right(1);
            self.epochs[0] = i64::MAX;
        }
        if self.queue(now).is_none() {
            self.latest = [i64::MAX; LATEST];
        }
        self.epochs[0] = self.epochs[0].min(offset);
        self.latest.rotate_right(1);
        self.latest[0] = offset;
        self.heard_at = Some(now);
    }

    /// How long what arrives now has waited; `None` where nothing was heard lately.
    pub fn queue(&self, now: Instant) -> Option<Duration> {
        self.heard_at.filter(|at| now < *at + Self::FRESH)?;
        // The quickest of a few, since a message may also have waited for a processor.
        let waited = self
            .latest
            .iter()
            .min()?
            .saturating_sub(*self.epochs.iter().min()?);
        Some(Duration::from_micros(u64::try_from(waited).unwrap_or(0)))
    }
}

/// Far enough from the ends for differences.
fn micros(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).map_or(i64::MAX / 4, |micros| micros.min(i64::MAX / 4))
}

/// Over all epochs together the clocks of two machines drift apart by 3 ms at most (100 in a million); in each, a bulk
/// lane lets its queue run empty once.
const EPOCHS: usize = 3;
const EPOCH: Duration = Duration::from_secs(10);

/// Messages of which the quickest counts.
const LATEST: usize = 3;

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "any instant will do")]
mod tests {
    use super::*;

    const TICK: Duration = Duration::from_millis(20);
    const EMPTY: Option<Duration> = Some(Duration::ZERO);

    /// What is said every 20 ms and arrives after the path's 25 ms and a queue, by a clock that began long before.
    fn say(
        arrivals: &mut Arrivals,
        origin: Instant,
        ticks: std::ops::Range<u32>,
        queue: Duration,
    ) -> Option<Duration> {
        let mut now = origin;
        for tick in ticks {
            let sent = TICK * tick;
            now = origin + sent + Duration::from_millis(25) + queue;
            arrivals.heard(Duration::from_secs(77_777) + sent, now);
        }
        arrivals.queue(now)
    }

    #[test]
    fn a_queue_shows_and_the_distance_does_not() {
        let origin = Instant::now();
        let mut arrivals = Arrivals::new(origin);
        assert_eq!(arrivals.queue(origin), None);
        assert_eq!(say(&mut arrivals, origin, 0..10, Duration::ZERO), EMPTY);
        let queue = Duration::from_millis(15);
        assert_eq!(say(&mut arrivals, origin, 10..20, queue), Some(queue));
        assert_eq!(say(&mut arrivals, origin, 20..30, Duration::ZERO), EMPTY);
    }

    #[test]
    fn one_message_that_is_late_is_no_queue() {
        let origin = Instant::now();
        let mut arrivals = Arrivals::new(origin);
        say(&mut arrivals, origin, 0..10, Duration::ZERO);
        assert_eq!(
            say(&mut arrivals, origin, 10..11, Duration::from_millis(40)),
            EMPTY
        );
    }

    #[test]
    fn what_stays_for_long_is_the_path() {
        let origin = Instant::now();
        let mut arrivals = Arrivals::new(origin);
        say(&mut arrivals, origin, 0..50, Duration::ZERO);
        let longer = Duration::from_millis(40);
        assert_eq!(say(&mut arrivals, origin, 50..100, longer), Some(longer));
        assert_eq!(say(&mut arrivals, origin, 100..2_200, longer), EMPTY);
    }

    #[test]
    fn after_silence_nothing_is_known() {
        let origin = Instant::now();
        let mut arrivals = Arrivals::new(origin);
        say(&mut arrivals, origin, 0..10, Duration::ZERO);
        say(&mut arrivals, origin, 10..20, Duration::from_millis(15));
        assert_eq!(arrivals.queue(origin + Duration::from_secs(1)), None);
        // And it begins anew, where clocks may have drifted.
        let queue = say(&mut arrivals, origin, 2_000..2_010, Duration::from_millis(15));
        assert_eq!(queue, EMPTY);
    }

    #[test]
    fn a_clock_that_makes_no_sense_does_no_harm() {
        let origin = Instant::now();
        let mut arrivals = Arrivals::new(origin);
        for sent in [u64::MAX, 0, u64::MAX, u64::MAX / 2] {
            arrivals.heard(Duration::from_micros(sent), origin);
            assert!(arrivals.queue(origin).is_some());
        }
    }
}
