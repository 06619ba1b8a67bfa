//! The window of a loss-based sender, for links where others fill the queue. Knows nothing of delay.

use std::time::{Duration, Instant};

/// Cubic (RFC 9438): grows with the time since the last loss, faster the longer there was none.
#[derive(Clone, Debug)]
pub(crate) struct Cubic {
    mtu: f64,
    /// Bytes that may be in flight.
    window: f64,
    /// Below it the window doubles each round trip.
    threshold: f64,
    /// The window before the last reduction.
    window_max: f64,
    /// When the current growth began; `None` until the first acknowledgement after a reduction.
    grows_since: Option<Instant>,
    /// The window as Reno would have it, so that short round trips are not slower than that.
    reno: f64,
    /// What was sent before this belongs to a loss that has been answered.
    reduced_at: Option<Instant>,
}

impl Cubic {
    /// A sender that starts anew.
    #[cfg(test)]
    pub(crate) fn new(mtu: u64) -> Self {
        Self::resumed(10 * mtu, u64::MAX, mtu)
    }

    /// A sender that goes on from a window that the link has carried, and doubles it up to `claim`.
    pub(crate) fn resumed(window: u64, claim: u64, mtu: u64) -> Self {
        Self {
            mtu: mtu as f64,
            window: window as f64,
            threshold: claim as f64,
            window_max: 0.0,
            grows_since: None,
            reno: 0.0,
            reduced_at: None,
        }
    }

    /// Bytes that may be in flight.
    pub(crate) fn window(&self) -> u64 {
        self.window as u64
    }

    /// So much was acknowledged, and the sender had more to send.
    pub(crate) fn on_ack(&mut self, now: Instant, sent_at: Instant, bytes: u64, rtt: Duration) {
        if self.reduced_at.is_some_and(|at| sent_at <= at) {
            return;
        }
        let bytes = bytes as f64;
        if self.window < self.threshold {
            self.window += bytes;
            return;
        }
        let since = *self.grows_since.get_or_insert_with(|| {
            self.window_max = self.window_max.max(self.window);
            self.reno = self.window;
            now
        });
        let reaches_max_after = ((self.window_max - self.threshold).max(0.0) / self.mtu / C).cbrt();
        let t = now.saturating_duration_since(since).as_secs_f64() + rtt.as_secs_f64() - reaches_max_after;
        let cubic = self.window_max + C * t.powi(3) * self.mtu;
        self.reno += 3.0 * (1.0 - BETA) / (1.0 + BETA) * self.mtu * bytes / self.window;
        let goal = cubic.max(self.reno).clamp(self.window, 1.5 * self.window);
        self.window += (goal - self.window) * bytes / self.window;
    }

    /// Something that was sent at `sent_at` was lost.
    pub(crate) fn on_loss(&mut self, now: Instant, sent_at: Instant) {
        if self.reduced_at.is_some_and(|at| sent_at <= at) {
            return;
        }
        self.reduced_at = Some(now);
        self.grows_since = None;
        // Fast convergence (RFC 9438, 4.7): who is losing ground makes room for the others.
        self.window_max = if self.window < self.window_max {
            self.window * (1.0 + BETA) / 2.0
        } else {
            self.window
        };
        self.window = (self.window * BETA).max(2.0 * self.mtu);
        self.threshold = self.window;
    }
}

/// What is left of the window after a loss (RFC 9438, 4.6).
const BETA: f64 = 0.7;

/// Segments per cubic second (RFC 9438, 5).
const C: f64 = 0.4;

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "any instant will do")]
mod tests {
    use super::*;

    const RTT: Duration = Duration::from_millis(50);

    #[test]
    fn a_loss_takes_three_tenths_and_counts_once_a_round_trip() {
        let start = Instant::now();
        let mut cubic = Cubic::resumed(1_000_000, 0, 1000);
        cubic.on_loss(start + RTT, start);
        cubic.on_loss(start + RTT, start);
        assert_eq!(cubic.window(), 700_000);
    }

    #[test]
    fn the_window_comes_back_to_where_the_loss_was_and_lingers() {
        let start = Instant::now();
        let mut cubic = Cubic::resumed(400_000, 0, 1000);
        cubic.on_loss(start, start);
        let mut now = start;
        let mut after = Vec::new();
        // K = cbrt(400 * 0.3 / 0.4) = 6.7 s.
        while now < start + Duration::from_secs(10) {
            now += RTT;
            cubic.on_ack(now, now, cubic.window(), RTT);
            after.push(cubic.window());
        }
        let at = |seconds: usize| after[seconds * 20 - 1];
        assert!(at(3) < 390_000, "{}", at(3));
        assert!((395_000..405_000).contains(&at(7)), "{}", at(7));
        assert!(at(10) > 410_000, "{}", at(10));
    }
}
