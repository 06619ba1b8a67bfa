//! What the packets of one round trip have shown. Reads no clock.

use std::time::{Duration, Instant};

/// The packets sent in one round trip.
#[derive(Clone, Copy, Debug)]
pub(super) struct RoundTrip {
    /// Only what was sent from here on belongs to it.
    pub(super) opened_at: Instant,
    pub(super) window_at_open: u64,
    /// When the first of it was acknowledged; what is sent from then on belongs to the next.
    pub(super) closing: Option<Closing>,
    pub(super) rtt_min: Duration,
    pub(super) rtt_sum: Duration,
    pub(super) samples: u32,
    pub(super) acked: u64,
    pub(super) acked_limited: u64,
    pub(super) lost: u64,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Closing {
    pub(super) at: Instant,
    pub(super) window: u64,
}

impl RoundTrip {
    /// A round trip that begins.
    pub(super) const fn opened(at: Instant, window: u64) -> Self {
        Self {
            opened_at: at,
            window_at_open: window,
            closing: None,
            rtt_min: Duration::MAX,
            rtt_sum: Duration::ZERO,
            samples: 0,
            acked: 0,
            acked_limited: 0,
            lost: 0,
        }
    }

    /// The first of it was acknowledged, and with it `bytes`.
    pub(super) const fn start(&mut self, now: Instant, window: u64, bytes: u64, limited: bool) {
        self.closing = Some(Closing { at: now, window });
        // What arrived before belongs to the round trip before.
        self.acked = bytes;
        self.acked_limited = if limited { bytes } else { 0 };
    }
}
