//! What a path was good for, so that the next connection over it need not begin with ten packets (Careful Resume,
//! draft-ietf-tsvwg-careful-resume). Reads no clock.

use std::time::{Duration, Instant};

/// A window that has stood for a while, or that a whole round trip has carried.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Remembered {
    pub(super) window: u64,
    /// The round trip without a queue.
    pub(super) rtt: Duration,
    pub(super) at: Instant,
}

impl Remembered {
    /// What to go on with where a round trip takes `rtt` now; `None` if that is another path, or it was long ago.
    ///
    /// Half of it, and one more round trip shows whether the path still carries the whole.
    pub(super) fn jump(&self, rtt: Duration, now: Instant) -> Option<u64> {
        let is_same = rtt >= self.rtt / 2 && rtt <= self.rtt * 2 + RTT_SLACK;
        let is_fresh = now.saturating_duration_since(self.at) < FRESH;
        (is_same && is_fresh).then_some(self.window / 2)
    }
}

/// A handshake may have waited for a processor, or in a queue that somebody else has filled.
const RTT_SLACK: Duration = Duration::from_millis(10);

/// Links at home change from one hour to the next, seldom from one minute to the next.
const FRESH: Duration = Duration::from_secs(10 * 60);
