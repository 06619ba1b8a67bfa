//! When a trainer that failed may be started again. Pure: it is told the time.

use std::time::{Duration, Instant};

/// What a trainer that fails once may cost: less than a round of most jobs.
const PAUSE_MIN: Duration = Duration::from_secs(1);

/// A trainer that always fails costs the machine one start in this time.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// The failures in a row, and what follows from them.
#[derive(Debug, Default)]
pub(super) struct Restarts {
    failures: u32,
    retry_at: Option<Instant>,
}

impl Restarts {
    /// How long to wait still; nothing when it may be started now.
    pub(super) fn pause(&self, now: Instant) -> Option<Duration> {
        let left = self.retry_at?.saturating_duration_since(now);
        (!left.is_zero()).then_some(left)
    }

    /// How often it has failed in a row.
    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    /// It had to be ended, or has ended by itself.
    pub(super) fn failed(&mut self, now: Instant) {
        // Six doublings go beyond the longest pause.
        let pause = (PAUSE_MIN * (1 << self.failures.min(6))).min(PAUSE_MAX);
        self.failures = self.failures.saturating_add(1);
        self.retry_at = Some(now + pause);
    }

    /// It has done what it is for.
    pub(super) fn worked(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "any instant will do")]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_minute_and_are_forgotten_after_a_success() {
        let mut now = Instant::now();
        let mut restarts = Restarts::default();
        assert_eq!(restarts.pause(now), None);
        let mut pauses = Vec::new();
        for _ in 0..9 {
            restarts.failed(now);
            let pause = restarts.pause(now).unwrap();
            pauses.push(pause.as_secs());
            assert!(restarts.pause(now + pause / 2).is_some());
            now += pause;
            assert_eq!(restarts.pause(now), None);
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        restarts.worked();
        restarts.failed(now);
        assert_eq!(restarts.pause(now), Some(PAUSE_MIN));
    }
}
