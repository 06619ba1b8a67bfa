//! How fast one link is, from what was measured on it. Measures nothing itself.

use lapwing_base::Bandwidth;
use std::time::{Duration, Instant};

/// A smoothed measurement with its age.
#[derive(Clone, Copy, Debug, Default)]
pub struct Estimate {
    known: Option<Known>,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    kbit_s: f64,
    measured_at: Instant,
}

impl Estimate {
    /// How long a measurement stands for the link: four probe intervals, so that three probes may be lost.
    pub const FRESH_INTERVALS: u32 = 4;

    /// Takes in one measurement.
    ///
    /// A faster one counts whole, up to four times what was known: what else goes over the link, a processor that is late or a window
    /// that grows make it look slow often, and little makes it look fast. A slower one counts half, so that a link that has become slow is
    /// known to be slow after two or three. One that follows a silence of `fresh` stands alone.
    pub fn record(&mut self, speed: Bandwidth, now: Instant, fresh: Duration) {
        let sample = f64::from(speed.kbit_s);
        let kbit_s = match self.known {
            Some(known)
                if now.saturating_duration_since(known.measured_at) < fresh && sample < known.kbit_s =>
            {
                known.kbit_s + WEIGHT * (sample - known.kbit_s)
            }
            Some(known) if now.saturating_duration_since(known.measured_at) < fresh => {
                sample.min(known.kbit_s * STEP_MAX)
            }
            _ => sample,
        };
        self.known = Some(Known {
            kbit_s,
            measured_at: now,
        });
    }

    /// Takes in that the link is at least this fast, which a transfer shows that was slower at other times. It raises what is
    /// known, up to four times, and never lowers it, and is no reason to measure any later.
    pub fn record_at_least(&mut self, speed: Bandwidth, now: Instant, fresh: Duration) {
        let known = self.speed(now, fresh);
        if known.is_none_or(|known| known < speed) {
            let measured_at = self
                .known
                .map(|known| known.measured_at)
                .filter(|_| known.is_some());
            let most = known.map_or(f64::INFINITY, |known| f64::from(known.kbit_s) * STEP_MAX);
            self.known = Some(Known {
                kbit_s: f64::from(speed.kbit_s).min(most),
                measured_at: measured_at.unwrap_or(now),
            });
        }
    }

    /// The speed, when it was measured within `fresh`.
    pub fn speed(&self, now: Instant, fresh: Duration) -> Option<Bandwidth> {
        let known = self.known?;
        // Between two numbers that fit, so it fits.
        (now.saturating_duration_since(known.measured_at) < fresh)
            .then(|| Bandwidth::kbit(known.kbit_s.round() as u32))
    }

    /// When the link was measured last.
    pub fn measured_at(&self) -> Option<Instant> {
        self.known.map(|known| known.measured_at)
    }
}

const WEIGHT: f64 = 0.5;

/// What a reader finds at once that was late may look ten times as fast.
const STEP_MAX: f64 = 4.0;

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "any instant will do")]
mod tests {
    use super::*;

    const FRESH: Duration = Duration::from_secs(60);

    #[test]
    fn nothing_is_known_before_a_measurement() {
        assert_eq!(Estimate::default().speed(Instant::now(), FRESH), None);
    }

    #[test]
    fn a_throttled_link_is_known_within_three_measurements() {
        let now = Instant::now();
        let mut estimate = Estimate::default();
        estimate.record(Bandwidth::mbit(100), now, FRESH);
        for _ in 0..3 {
            estimate.record(Bandwidth::mbit(2), now, FRESH);
        }
        assert!(estimate.speed(now, FRESH).unwrap() < Bandwidth::mbit(20));
    }

    #[test]
    fn one_slow_measurement_among_others_is_made_good_by_the_next() {
        let now = Instant::now();
        let mut estimate = Estimate::default();
        for speed in [10, 2, 10] {
            estimate.record(Bandwidth::mbit(speed), now, FRESH);
        }
        assert_eq!(estimate.speed(now, FRESH), Some(Bandwidth::mbit(10)));
        // One that is far too fast does not undo the others.
        estimate.record(Bandwidth::mbit(1000), now, FRESH);
        assert_eq!(estimate.speed(now, FRESH), Some(Bandwidth::mbit(40)));
    }

    #[test]
    fn what_a_link_does_at_least_raises_what_is_known_and_never_lowers_it() {
        let now = Instant::now();
        let mut estimate = Estimate::default();
        estimate.record_at_least(Bandwidth::mbit(10), now, FRESH);
        assert_eq!(estimate.speed(now, FRESH), Some(Bandwidth::mbit(10)));
        let later = now + FRESH / 2;
        estimate.record_at_least(Bandwidth::mbit(2), later, FRESH);
        assert_eq!(estimate.speed(later, FRESH), Some(Bandwidth::mbit(10)));
        estimate.record_at_least(Bandwidth::mbit(20), later, FRESH);
        assert_eq!(estimate.speed(later, FRESH), Some(Bandwidth::mbit(20)));
        assert_eq!(estimate.measured_at(), Some(now));
        // One that is far too fast does not undo the others.
        estimate.record_at_least(Bandwidth::mbit(1000), later, FRESH);
        assert_eq!(estimate.speed(later, FRESH), Some(Bandwidth::mbit(80)));
        assert_eq!(estimate.speed(now + FRESH, FRESH), None);
        estimate.record_at_least(Bandwidth::mbit(2), now + FRESH, FRESH);
        assert_eq!(estimate.speed(now + FRESH, FRESH), Some(Bandwidth::mbit(2)));
    }

    #[test]
    fn an_old_measurement_is_forgotten_and_does_not_weigh_on_the_next() {
        let now = Instant::now();
        let mut estimate = Estimate::default();
        estimate.record(Bandwidth::mbit(100), now, FRESH);
        let later = now + FRESH;
        assert_eq!(estimate.speed(later, FRESH), None);
        estimate.record(Bandwidth::mbit(2), later, FRESH);
        assert_eq!(estimate.speed(later, FRESH), Some(Bandwidth::mbit(2)));
    }
}
