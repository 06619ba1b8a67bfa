//! When a service that has ended is started again. Pure: it is told the time.

use std::time::{Duration, Instant};

/// A service that ends once is away for less than its breaker would take.
const PAUSE_MIN: Duration = Duration::from_millis(250);

/// One that always ends costs the machine one start in this time; one that has run for as long begins anew.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// How often it has ended soon after it was started, in a row.
#[derive(Debug, Default)]
pub(super) struct Restarts {
    soon: u32,
}

impl Restarts {
    /// It was started and has ended; how long to wait now.
    pub(super) fn ended(&mut self, began_at: Instant, now: Instant) -> Duration {
        if now.saturating_duration_since(began_at) >= PAUSE_MAX {
            self.soon = 0;
        }
        // Eight doublings go beyond the longest pause.
        let pause = PAUSE_MIN * (1 << self.soon.min(8));
        self.soon = self.soon.saturating_add(1);
        pause.min(PAUSE_MAX)
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "any instant will do")]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_minute_and_are_short_again_after_a_minute_of_work() {
        let now = Instant::now();
        let mut restarts = Restarts::default();
        let pauses: Vec<_> = (0..10).map(|_| restarts.ended(now, now).as_millis()).collect();
        assert_eq!(
            pauses,
            [250, 500, 1000, 2000, 4000, 8000, 16000, 32000, 60000, 60000]
        );
        assert_eq!(restarts.ended(now, now + PAUSE_MAX), PAUSE_MIN);
    }
}
