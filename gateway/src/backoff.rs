//! How long to wait before asking a gateway again. Does not wait itself.

use std::time::Duration;

use rand::{Rng, RngExt as _};

/// Exponential waits with full jitter: each is drawn evenly from zero to a ceiling that doubles.
///
/// Full jitter spreads a thousand nodes that lost the same gateway at the same moment evenly over the whole
/// wait ("Exponential Backoff And Jitter", AWS Architecture Blog, 2015).
#[derive(Clone, Debug)]
pub struct Backoff {
    ceiling: Duration,
}

impl Backoff {
    /// The first ceiling: one round trip across the world, with room.
    pub const FIRST: Duration = Duration::from_millis(250);
    /// The last ceiling: one heartbeat interval, so that a gateway is whole again within one of its return.
    pub const LAST: Duration = Duration::from_secs(30);

    /// Starts at [`Self::FIRST`].
    pub const fn new() -> Self {
        Self { ceiling: Self::FIRST }
    }

    /// The next wait; the ceiling of the one after it is twice as high, up to [`Self::LAST`].
    pub fn next(&mut self, rng: &mut impl Rng) -> Duration {
        let wait = self.ceiling.mul_f64(rng.random_range(0.0..=1.0));
        self.ceiling = (self.ceiling * 2).min(Self::LAST);
        wait
    }

    /// Starts again at [`Self::FIRST`], after a success.
    pub const fn reset(&mut self) {
        self.ceiling = Self::FIRST;
    }
}

impl Default for Backoff {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use rand::SeedableRng as _;
    use rand::rngs::StdRng;

    #[test]
    fn waits_stay_below_a_ceiling_that_doubles_to_thirty_seconds() {
        let mut rng = StdRng::seed_from_u64(7);
        let mut backoff = Backoff::new();
        let mut ceiling = Backoff::FIRST;
        for _ in 0..20 {
            assert!(backoff.next(&mut rng) <= ceiling);
            ceiling = (ceiling * 2).min(Duration::from_secs(30));
        }
        backoff.reset();
        assert!(backoff.next(&mut rng) <= Backoff::FIRST);
    }

    #[test]
    fn waits_are_spread_over_the_whole_range() {
        let mut rng = StdRng::seed_from_u64(7);
        let first = || Backoff::new().next(&mut rng);
        let waits: Vec<Duration> = std::iter::repeat_with(first).take(200).collect();
        assert!(waits.iter().any(|wait| *wait < Backoff::FIRST / 10));
        assert!(waits.iter().any(|wait| *wait > Backoff::FIRST * 9 / 10));
    }
}
