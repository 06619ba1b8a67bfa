//! When a question to all is answered. Pure: says nothing itself.

use std::time::{Duration, Instant};

/// An answer that is the same for everybody: however often it is asked for, it is given once in a while.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    due_at: Option<Instant>,
    given_at: Option<Instant>,
}

impl Answer {
    /// Somebody has asked. The answer waits for `delay`, and for its time.
    pub(crate) fn asked(&mut self, delay: Duration, now: Instant) {
        let soon = now + delay;
        let not_before = self.given_at.map_or(soon, |at| soon.max(at + INTERVAL));
        self.due_at.get_or_insert(not_before);
    }

    /// When to answer, if somebody has asked.
    pub(crate) const fn due_at(&self) -> Option<Instant> {
        self.due_at
    }

    /// Whether to answer now; what is due counts as given.
    pub(crate) fn give(&mut self, now: Instant) -> bool {
        let due = self.due_at.take_if(|at| *at <= now).is_some();
        if due {
            self.given_at = Some(now);
        }
        due
    }
}

/// The same is not said again within a second (RFC 6762, 6), which also bounds what a flood of questions causes.
const INTERVAL: Duration = Duration::from_secs(1);

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "any instant will do")]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_questions_is_answered_once_a_second() {
        let (mut answer, begun) = (Answer::default(), Instant::now());
        let (mut now, mut given) = (begun, 0);
        while now < begun + Duration::from_secs(10) {
            answer.asked(Duration::from_millis(20), now);
            given += u32::from(answer.give(now));
            now += Duration::from_millis(1);
        }
        assert_eq!(given, 10);
    }

    #[test]
    fn nothing_is_said_that_nobody_has_asked_for() {
        let (mut answer, now) = (Answer::default(), Instant::now());
        assert!(!answer.give(now));
        answer.asked(Duration::ZERO, now);
        assert!(answer.give(now));
        assert_eq!((answer.due_at(), answer.give(now + INTERVAL)), (None, false));
    }
}
