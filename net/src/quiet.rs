//! When a link that is not needed any more may be closed without losing what is on its way over it. Closes nothing
//! itself.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

/// The links that are to be let go, and since when each has been quiet.
///
/// That nobody here holds a channel says that nobody here has more to send; what was sent last may still be on its
/// way, and would be lost with the link. So a link has to be quiet for a while first: for as long as a packet takes
/// that is lost once, and its answer.
#[derive(Debug)]
pub struct Quiet<Id> {
    since: HashMap<Id, (u64, Instant)>,
}

/// What happens over one link.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Traffic {
    /// Something is open or under way.
    pub busy: bool,
    /// Changes whenever something was sent, received or opened.
    pub moved: u64,
    /// How long a round trip takes, where that is known.
    pub rtt: Option<Duration>,
}

/// No link is let go that was quiet for less.
const QUIET_MIN: Duration = Duration::from_secs(1);

/// As long as any path may take that can be used (over a satellite 600 ms).
const RTT_UNKNOWN: Duration = Duration::from_secs(1);

impl<Id: Copy + Eq + Hash> Default for Quiet<Id> {
    fn default() -> Self {
        Self {
            since: HashMap::new(),
        }
    }
}

impl<Id: Copy + Eq + Hash> Quiet<Id> {
    /// Looks at all links that are to be let go, and says which may be closed now. Of others nothing is remembered.
    pub fn look(&mut self, leaving: impl IntoIterator<Item = (Id, Traffic)>, now: Instant) -> Vec<Id> {
        let mut quiet = Vec::new();
        let mut since = HashMap::new();
        for (id, traffic) in leaving.into_iter().filter(|(_, traffic)| !traffic.busy) {
            let before = self.since.get(&id).filter(|(moved, _)| *moved == traffic.moved);
            let begun = before.map_or(now, |(_, begun)| *begun);
            let patience = QUIET_MIN.max(4 * traffic.rtt.unwrap_or(RTT_UNKNOWN));
            if now.saturating_duration_since(begun) >= patience {
                quiet.push(id);
            }
            since.insert(id, (traffic.moved, begun));
        }
        self.since = since;
        quiet
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "any instant will do")]
mod tests {
    use super::*;

    const FAST: Traffic = Traffic {
        busy: false,
        moved: 7,
        rtt: Some(Duration::from_millis(20)),
    };

    #[test]
    fn a_link_goes_when_it_was_quiet_for_a_second_or_four_round_trips() {
        let (mut quiet, now) = (Quiet::default(), Instant::now());
        let slow = Traffic {
            rtt: Some(Duration::from_millis(600)),
            ..FAST
        };
        let both = [(1, FAST), (2, slow)];
        assert!(quiet.look(both, now).is_empty());
        assert!(quiet.look(both, now + Duration::from_millis(999)).is_empty());
        assert_eq!(quiet.look(both, now + Duration::from_secs(1)), [1]);
        assert_eq!(quiet.look(both, now + Duration::from_millis(2400)), [1, 2]);
    }

    #[test]
    fn an_answer_that_was_sent_between_two_looks_puts_it_off() {
        let (mut quiet, now) = (Quiet::default(), Instant::now());
        let answered = Traffic { moved: 8, ..FAST };
        assert!(quiet.look([(1, FAST)], now).is_empty());
        let later = now + Duration::from_secs(1);
        assert!(quiet.look([(1, answered)], later).is_empty());
        assert_eq!(quiet.look([(1, answered)], later + Duration::from_secs(1)), [1]);
    }

    #[test]
    fn what_is_in_use_stays_and_its_quiet_begins_anew() {
        let (mut quiet, now) = (Quiet::default(), Instant::now());
        let busy = Traffic { busy: true, ..FAST };
        assert!(quiet.look([(1, FAST)], now).is_empty());
        assert!(quiet.look([(1, busy)], now + Duration::from_secs(9)).is_empty());
        assert!(quiet.look([(1, FAST)], now + Duration::from_secs(9)).is_empty());
        assert_eq!(quiet.look([(1, FAST)], now + Duration::from_secs(10)), [1]);
    }

    #[test]
    fn a_link_that_is_needed_again_is_forgotten() {
        let (mut quiet, now) = (Quiet::default(), Instant::now());
        assert!(quiet.look([(1, FAST)], now).is_empty());
        assert!(quiet.look([], now).is_empty());
        assert!(quiet.look([(1, FAST)], now + Duration::from_secs(1)).is_empty());
    }
}
