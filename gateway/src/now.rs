//! One reading of both clocks, taken by a driver and handed to the cores as a value.

use std::time::Instant;

use serde::{Deserialize, Serialize};

/// The same moment on the clock that never jumps and on the one that people read.
///
/// Timeouts are decided by `instant`; `unix` is only shown.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Now {
    /// The monotonic clock.
    pub instant: Instant,
    /// The wall clock.
    pub unix: UnixTime,
}

/// A point of wall time: seconds since 1970-01-01 UTC, with a fraction.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UnixTime(pub f64);
