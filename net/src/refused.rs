//! What was turned away at the door, counted. Turns nobody away itself.

use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicU64, Ordering};

/// Counts since this node started; each moves where the thing is refused.
#[derive(Debug, Default)]
pub struct RefusedCounters {
    handshakes_failed: AtomicU64,
    handshakes_refused: AtomicU64,
    handshakes_retried: AtomicU64,
}

/// The counts at one moment.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
pub struct Refused {
    /// Incoming handshakes that were begun and came to nothing.
    pub handshakes_failed: u64,
    /// Incoming handshakes that were refused, because too many were under way.
    pub handshakes_refused: u64,
    /// Incoming handshakes that were asked to prove their address first, because many were under way.
    pub handshakes_retried: u64,
}

impl RefusedCounters {
    /// An incoming handshake came to nothing.
    pub fn handshake_failed(&self) {
        self.handshakes_failed.fetch_add(1, Ordering::Relaxed);
    }

    /// An incoming handshake was not begun.
    pub fn handshake_refused(&self) {
        self.handshakes_refused.fetch_add(1, Ordering::Relaxed);
    }

    /// An incoming handshake was asked to prove its address.
    pub fn handshake_retried(&self) {
        self.handshakes_retried.fetch_add(1, Ordering::Relaxed);
    }

    /// The counts now.
    pub fn get(&self) -> Refused {
        Refused {
            handshakes_failed: self.handshakes_failed.load(Ordering::Relaxed),
            handshakes_refused: self.handshakes_refused.load(Ordering::Relaxed),
            handshakes_retried: self.handshakes_retried.load(Ordering::Relaxed),
        }
    }
}
