//! What share of the packets is lost, and how much of that is no fault of ours. Reads no clock.

use std::time::Instant;

use super::HEAVY_LOSS;

/// What share of the packets is lost, and how much of that is no fault of ours.
#[derive(Clone, Debug)]
pub(super) struct Losses {
    pub(super) acked: u64,
    pub(super) lost: u64,
    /// Losses of what was sent before count for an earlier window.
    pub(super) since: Instant,
    /// Share that is lost whatever the window is.
    pub(super) ambient: f64,
    pub(super) trial: Option<Trial>,
}

/// A cut that shows whether losses depend on the window.
#[derive(Clone, Copy, Debug)]
pub(super) struct Trial {
    pub(super) before: u64,
    pub(super) share: f64,
}

impl Losses {
    /// Of a path of which nothing is known.
    pub(super) const fn new(now: Instant) -> Self {
        Self {
            acked: 0,
            lost: 0,
            since: now,
            ambient: 0.0,
            trial: None,
        }
    }

    /// Counts anew from now on.
    pub(super) const fn begin(&mut self, now: Instant) {
        self.acked = 0;
        self.lost = 0;
        self.since = now;
    }

    /// The share that was lost, once there is enough to say so.
    pub(super) fn share(&self, mtu: u64) -> Option<f64> {
        let seen = self.acked + self.lost;
        let share = self.lost as f64 / seen.max(1) as f64;
        let enough = seen >= LOSS_SAMPLE * mtu || (seen >= HEAVY_LOSS_SAMPLE * mtu && share >= HEAVY_LOSS);
        enough.then_some(share)
    }
}

/// Packets that say something of the share that is lost: at 5 % it is then known to within 1.5 % as a rule.
const LOSS_SAMPLE: u64 = 200;

/// Fewer say enough where very many are lost.
const HEAVY_LOSS_SAMPLE: u64 = 32;
