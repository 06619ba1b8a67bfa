//! The only place of this room that reads clocks and draws from the process's randomness.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use rand::RngExt as _;

use crate::{Backoff, Lineage, Now, UnixTime};

/// Both clocks, now.
#[expect(
    clippy::disallowed_methods,
    reason = "the driver reads the clock for its cores"
)]
pub(super) fn now() -> Now {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH);
    Now {
        instant: Instant::now(),
        unix: UnixTime(unix.map_or(0.0, |since| since.as_secs_f64())),
    }
}

/// A name for an empty data directory.
#[expect(
    clippy::disallowed_methods,
    reason = "a lineage must differ from that of every other gateway"
)]
pub(super) fn draw_lineage() -> Lineage {
    Lineage::from_bytes(rand::rng().random())
}

/// A number that tells this start of the process from others.
#[expect(clippy::disallowed_methods, reason = "two starts must not share it")]
pub(super) fn draw_start() -> u64 {
    rand::rng().random()
}

/// The next wait of a backoff.
#[expect(clippy::disallowed_methods, reason = "jitter must differ between processes")]
pub(super) fn next_wait(backoff: &mut Backoff) -> std::time::Duration {
    backoff.next(&mut rand::rng())
}

/// A factor between 0.9 and 1.1, so that nodes that started together do not stay in step.
#[expect(clippy::disallowed_methods, reason = "jitter must differ between processes")]
pub(super) fn draw_jitter() -> f64 {
    rand::rng().random_range(0.9..=1.1)
}
