//! The round trip without a queue, as far as it is known. Reads no clock.

use std::time::{Duration, Instant};

/// The round trip without a queue: the shortest of the last few epochs, each of which ends with a drain.
#[derive(Clone, Debug)]
pub(super) struct Base {
    epochs: [Option<Duration>; EPOCHS],
    pub(super) drained_at: Instant,
}

impl Base {
    /// Of a path of which nothing is known.
    pub(super) const fn new(now: Instant) -> Self {
        Self {
            epochs: [None; EPOCHS],
            drained_at: now,
        }
    }

    /// The shortest of all.
    pub(super) fn rtt(&self) -> Option<Duration> {
        self.epochs.iter().flatten().min().copied()
    }

    /// Takes a sample; true where it is much shorter than all before.
    pub(super) fn observe(&mut self, rtt: Duration) -> bool {
        let fell = self.rtt().is_some_and(|base| rtt + BASE_STEP < base);
        let epoch = &mut self.epochs[0];
        *epoch = Some(epoch.map_or(rtt, |min| min.min(rtt)));
        fell
    }

    /// The queue was drained down to a round trip of `rtt`.
    pub(super) fn turn(&mut self, rtt: Duration, now: Instant) {
        self.epochs.rotate_right(1);
        self.epochs[0] = Some(rtt);
        self.drained_at = now;
    }

    /// The path is another one.
    pub(super) fn restart(&mut self, rtt: Duration, now: Instant) {
        self.epochs = [None; EPOCHS];
        self.turn(rtt, now);
    }
}

/// Epochs whose shortest round trip counts; one lasts from drain to drain.
const EPOCHS: usize = 3;

/// A fall of the shortest round trip that is more than noise.
const BASE_STEP: Duration = Duration::from_millis(1);
