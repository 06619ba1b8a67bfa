//! How much of a service's talk is in the log. It is told the time.

use std::time::{Duration, Instant};

use tracing::info;

/// Most lines in the log in [`INTERVAL`]: a stack trace, or a progress bar for a while.
const LINES_MAX: u32 = 100;
const INTERVAL: Duration = Duration::from_secs(10);

/// Counts lines.
#[derive(Debug)]
pub(super) struct Told {
    since: Instant,
    lines: u32,
}

impl Told {
    pub(super) fn new(now: Instant) -> Self {
        Self { since: now, lines: 0 }
    }

    /// Whether one more line may be told. Those that were not are mentioned once.
    pub(super) fn may_tell(&mut self, now: Instant) -> bool {
        let (may_tell, left_out) = self.line(now);
        if left_out > 0 {
            info!(left_out, "lines of the service are not in the log");
        }
        may_tell
    }

    /// Counts a line: whether it may be told, and how many were not since that was last said.
    fn line(&mut self, now: Instant) -> (bool, u32) {
        let mut left_out = 0;
        if now.saturating_duration_since(self.since) >= INTERVAL {
            left_out = self.lines.saturating_sub(LINES_MAX);
            *self = Self::new(now);
        }
        self.lines = self.lines.saturating_add(1);
        (self.lines <= LINES_MAX, left_out)
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "any instant will do")]
mod tests {
    use super::*;

    #[test]
    fn a_chatty_service_fills_no_log() {
        let start = Instant::now();
        let mut told = Told::new(start);
        let first: Vec<_> = (0..LINES_MAX + 50).map(|_| told.line(start)).collect();
        assert!(first[..100].iter().all(|line| *line == (true, 0)));
        assert!(first[100..].iter().all(|line| *line == (false, 0)));
        assert_eq!(told.line(start + INTERVAL), (true, 50));
        assert_eq!(told.line(start + INTERVAL), (true, 0));
    }
}
