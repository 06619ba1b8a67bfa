//! What a row of cuts has done to the delay: nothing, because the path has become longer or others fill the queue, or
//! what it should, because the queue is our own. Reads no clock.

use std::time::Duration;

/// Cuts in a row that did not bring the delay down.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stuck {
    pub(super) cuts: u32,
    /// Rounds in a row whose shortest round trip was about `rtt`.
    pub(super) flat: u32,
    /// The window before the first of them.
    pub(super) before: u64,
    /// The window before the last of them.
    pub(super) window: u64,
    /// The shortest round trip that this window had.
    pub(super) rtt: Duration,
    /// The loss-based mode was left to see whether the queue is still another's.
    pub(super) by_trial: bool,
}

impl Stuck {
    /// Before the first cut: a window, and the round trip that it has.
    pub(super) const fn new(window: u64, rtt: Duration) -> Self {
        Self {
            cuts: 1,
            flat: 0,
            before: window,
            window,
            rtt,
            by_trial: false,
        }
    }

    /// After another one, which has left this window and this round trip; the shortest of a round is known to within
    /// `scatter`.
    pub(super) fn after_cut(self, window: u64, rtt: Duration, scatter: Duration) -> Self {
        if self.rtt.abs_diff(rtt) <= FLAT.max(scatter) {
            return Self {
                cuts: self.cuts + 1,
                flat: self.flat + 1,
                window,
                ..self
            };
        }
        if self.has_helped(window, rtt) {
            return Self {
                by_trial: self.by_trial,
                ..Self::new(window, rtt)
            };
        }
        Self {
            cuts: self.cuts + 1,
            flat: 0,
            window,
            rtt,
            ..self
        }
    }

    /// Whether the delay has fallen as it does where nobody else is in the queue: in proportion to the window, which
    /// was cut to this.
    fn has_helped(&self, window: u64, rtt: Duration) -> bool {
        let share = (window as f64 / self.window.max(1) as f64).min(1.0);
        self.rtt.saturating_sub(rtt) >= self.rtt.mul_f64(OWN_QUEUE * (1.0 - share))
    }
}

/// What part of a delay has to go with a cut for the queue to be our own: whoever joins us in it has a third of it by
/// the time it is noticed.
const OWN_QUEUE: f64 = 0.8;

/// A delay that does not move by more than this, in so many rounds of cuts, is no queue but the path. Others of our
/// kind fill the queue by 3 ms or more in that time.
const FLAT: Duration = Duration::from_micros(1500);
