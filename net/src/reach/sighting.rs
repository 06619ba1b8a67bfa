//! When a peer is to be told where it is seen. Tells nobody itself.

use super::observations::FRESH;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// What one peer was last told of where it is seen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sighting {
    told: Option<(SocketAddr, Instant)>,
}

impl Sighting {
    /// Whether the peer is to be told now that it is seen at this address: at first, when it has moved, and again
    /// before it would forget. What is due counts as told.
    pub fn is_due(&mut self, seen: SocketAddr, now: Instant) -> bool {
        let fresh = |(told, at): (SocketAddr, Instant)| told == seen && now < at + AGAIN;
        if self.told.is_some_and(fresh) {
            return false;
        }
        self.told = Some((seen, now));
        true
    }
}

/// Two tellings in a row may come late and what was told before still counts.
const AGAIN: Duration = Duration::from_secs(FRESH.as_secs() / 3);

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "any instant will do")]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_told_at_first_when_it_moves_and_before_it_forgets() {
        let (mut sighting, now) = (Sighting::default(), Instant::now());
        let [here, there] = ["203.0.113.9:4001", "203.0.113.9:4002"].map(|text| text.parse().unwrap());
        assert!(sighting.is_due(here, now));
        assert!(!sighting.is_due(here, now));
        assert!(sighting.is_due(there, now));
        assert!(!sighting.is_due(there, now + AGAIN - Duration::from_secs(1)));
        assert!(sighting.is_due(there, now + AGAIN));
        assert!(AGAIN * 3 <= FRESH);
    }
}
