//! Who measures at present: one at a time, or each would measure the other too. Reads no clock.

use std::time::{Duration, Instant};

use lapwing_base::PeerId;

/// The right to measure, which ends with its holder's silence.
#[derive(Debug, Default)]
pub(super) struct Lease {
    holder: Option<Holder>,
}

#[derive(Debug)]
struct Holder {
    peer: PeerId,
    streams: u32,
    seen_at: Instant,
}

/// A holder without a stream for so long has gone: between two measurements there is a handshake at the most.
const SILENCE_MAX: Duration = Duration::from_secs(10);

impl Lease {
    /// Whether this peer may measure from now on.
    pub(super) fn take(&mut self, peer: PeerId, now: Instant) -> bool {
        if self.holder.as_ref().is_some_and(|holder| holder.holds(now)) {
            return self.is_with(&peer);
        }
        self.holder = Some(Holder {
            peer,
            streams: 0,
            seen_at: now,
        });
        true
    }

    /// A stream begins; says whether it is the holder's, who ends it with [`Lease::ended`].
    pub(super) fn begun(&mut self, peer: &PeerId, now: Instant) -> bool {
        match &mut self.holder {
            Some(holder) if holder.peer == *peer => {
                holder.streams += 1;
                holder.seen_at = now;
                true
            }
            _ => false,
        }
    }

    /// A stream has ended that had begun.
    pub(super) fn ended(&mut self, peer: &PeerId, now: Instant) {
        if let Some(holder) = &mut self.holder
            && holder.peer == *peer
        {
            holder.streams = holder.streams.saturating_sub(1);
            holder.seen_at = now;
        }
    }

    /// The holder is done.
    pub(super) fn give_back(&mut self, peer: &PeerId) {
        if self.is_with(peer) {
            self.holder = None;
        }
    }

    fn is_with(&self, peer: &PeerId) -> bool {
        self.holder.as_ref().is_some_and(|holder| holder.peer == *peer)
    }
}

impl Holder {
    fn holds(&self, now: Instant) -> bool {
        self.streams > 0 || now < self.seen_at + SILENCE_MAX
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "any instant will do")]
mod tests {
    use super::*;

    #[test]
    fn one_measures_at_a_time_until_it_is_done_or_silent() {
        let (mut lease, now) = (Lease::default(), Instant::now());
        let [one, other] = [PeerId::random(), PeerId::random()];
        assert!(!lease.begun(&one, now), "nobody has asked");
        assert!(lease.take(one, now));
        assert!(lease.take(one, now), "it may ask twice");
        assert!(!lease.take(other, now));
        assert!(lease.begun(&one, now));
        assert!(!lease.begun(&other, now));
        let later = now + Duration::from_secs(3600);
        assert!(!lease.take(other, later), "a stream is open");
        lease.ended(&one, later);
        assert!(!lease.take(other, later));
        assert!(lease.take(other, later + SILENCE_MAX));
        // What it says late changes nothing.
        lease.ended(&one, later);
        lease.give_back(&one);
        assert!(!lease.take(one, later + SILENCE_MAX));
        lease.give_back(&other);
        assert!(lease.take(one, later + SILENCE_MAX));
    }
}
