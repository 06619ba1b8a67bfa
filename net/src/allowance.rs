//! How often somebody may do something: a burst at once, then so often. Waits for nobody.

use std::time::{Duration, Instant};

/// An allowance, kept as the instant at which everything spent so far is paid back (the generic cell rate algorithm,
/// ITU-T I.371).
#[derive(Clone, Copy, Debug)]
pub struct Allowance {
    interval: Duration,
    burst: Duration,
    /// Never far in the past: what was not used is not saved up beyond the burst.
    paid_at: Option<Instant>,
}

impl Allowance {
    /// `burst` times at once, and once more for each `interval` that passes.
    pub const fn new(burst: u32, interval: Duration) -> Self {
        Self {
            interval,
            burst: interval.saturating_mul(burst),
            paid_at: None,
        }
    }

    /// Whether it may be done once more at `now`; when it may, that is spent.
    #[must_use]
    pub fn take(&mut self, now: Instant) -> bool {
        let paid_at = self.paid_at.map_or(now, |at| at.max(now)) + self.interval;
        let is_allowed = paid_at.saturating_duration_since(now) <= self.burst;
        if is_allowed {
            self.paid_at = Some(paid_at);
        }
        is_allowed
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "any instant will do")]
mod tests {
    use super::*;

    #[test]
    fn after_the_burst_it_is_so_often_and_no_more() {
        let begun = Instant::now();
        let mut allowance = Allowance::new(3, Duration::from_secs(1));
        let taken = |allowance: &mut Allowance, now| (0..9).filter(|_| allowance.take(now)).count();
        assert_eq!(taken(&mut allowance, begun), 3);
        assert_eq!(taken(&mut allowance, begun + Duration::from_secs(2)), 2);
        let later = begun + Duration::from_secs(3600);
        assert_eq!(
            taken(&mut allowance, later),
            3,
            "idle time is not saved up beyond the burst"
        );
    }
}
