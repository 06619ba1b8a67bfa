//! Whether the other end of a link is still there. Sends and reads nothing itself.

use std::time::{Duration, Instant};

/// Asks at an interval, and gives a link up that has been silent for too long.
///
/// A probe that is lost says nothing; several in a row do. A node that was itself held up (it slept, it was
/// stopped, its processors were busy) does not blame its peers for it: what it could not ask was not refused.
#[derive(Debug)]
pub struct Liveness {
    pace: Pace,
    number: u64,
    due_at: Instant,
    /// When the oldest probe was sent since the last answer, moved on by our own delays.
    silent_since: Option<Instant>,
    unanswered: u32,
}

/// How closely a link is watched.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Pace {
    /// Between two probes.
    pub interval: Duration,
    /// The least silence that ends the link; four round trips when they take longer.
    pub silence: Duration,
}

impl Pace {
    /// Links to mains and between voters.
    pub const CLOSE: Self = Self {
        interval: Duration::from_millis(250),
        silence: Duration::from_secs(1),
    };
    /// All others: a partner that is gone holds nobody up for longer than an exchange is given.
    pub const LOOSE: Self = Self {
        interval: Duration::from_millis(1500),
        silence: Duration::from_secs(6),
    };
}

/// What to do about a link.
#[must_use]
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Beat {
    /// Nothing before this instant.
    Wait(Instant),
    /// Send the probe of this number, and look again.
    Probe(u64),
    /// Nobody has answered for so long: the other end is gone.
    Dead(Duration),
}

/// Fewer probes without an answer may have been lost by chance: at a loss of 5 %, one link in 160,000 at any time.
const UNANSWERED_MIN: u32 = 4;

impl Liveness {
    /// A link that is alive at `now`.
    pub fn new(pace: Pace, now: Instant) -> Self {
        Self {
            pace,
            number: 0,
            due_at: now + pace.interval,
            silent_since: None,
            unanswered: 0,
        }
    }

    /// Watches more or less closely from now on.
    pub fn set_pace(&mut self, pace: Pace, now: Instant) {
        if pace != self.pace {
            self.pace = pace;
            self.due_at = self.due_at.min(now + pace.interval);
        }
    }

    /// Looks at the link, whose round trip takes `rtt`.
    pub fn poll(&mut self, rtt: Duration, now: Instant) -> Beat {
        if now < self.due_at {
            return Beat::Wait(self.due_at);
        }
        let late = now - self.due_at;
        if late > self.pace.interval
            && let Some(since) = &mut self.silent_since
        {
            *since += late;
            // Answers may wait to be read: the peer gets as many probes again.
            self.unanswered = 0;
        }
        if let Some(since) = self.silent_since {
            let silent = now.saturating_duration_since(since);
            if self.unanswered >= UNANSWERED_MIN && silent >= self.pace.silence.max(rtt * 4) {
                return Beat::Dead(silent);
            }
        }
        self.due_at = now + self.pace.interval;
        self.silent_since.get_or_insert(now);
        self.unanswered = self.unanswered.saturating_add(1);
        self.number += 1;
        Beat::Probe(self.number)
    }

    /// A probe of ours was answered. Late answers count too: whoever answers is there.
    pub const fn answered(&mut self) {
        self.silent_since = None;
        self.unanswered = 0;
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "any instant will do")]
mod tests {
    use super::*;

    const RTT: Duration = Duration::from_millis(20);

    #[test]
    fn a_link_that_answers_lives_on() {
        let mut now = Instant::now();
        let mut liveness = Liveness::new(Pace::CLOSE, now);
        for number in 1..100 {
            now += Pace::CLOSE.interval;
            assert_eq!(liveness.poll(RTT, now), Beat::Probe(number));
            liveness.answered();
        }
    }

    #[test]
    fn silence_is_noticed_within_a_second_and_an_interval() {
        let begun = Instant::now();
        let mut liveness = Liveness::new(Pace::CLOSE, begun);
        let noticed = silence(&mut liveness, RTT, begun);
        assert!(
            noticed >= Duration::from_secs(1) && noticed <= Duration::from_millis(1500),
            "{noticed:?}"
        );
    }

    #[test]
    fn a_long_round_trip_is_given_four_times_its_length() {
        let begun = Instant::now();
        let mut liveness = Liveness::new(Pace::CLOSE, begun);
        let noticed = silence(&mut liveness, Duration::from_millis(600), begun);
        assert!(noticed >= Duration::from_millis(2400), "{noticed:?}");
    }

    #[test]
    fn a_node_that_was_held_up_does_not_blame_its_peers() {
        let mut now = Instant::now();
        let mut liveness = Liveness::new(Pace::CLOSE, now);
        for _ in 0..4 {
            now += Pace::CLOSE.interval;
            assert!(matches!(liveness.poll(RTT, now), Beat::Probe(_)));
        }
        now += Duration::from_secs(60);
        assert!(
            matches!(liveness.poll(RTT, now), Beat::Probe(_)),
            "our own sleep is nobody's silence"
        );
    }

    /// Polls as the driver does, until the link is dead; says how long after the start that was.
    fn silence(liveness: &mut Liveness, rtt: Duration, begun: Instant) -> Duration {
        let mut now = begun;
        loop {
            match liveness.poll(rtt, now) {
                Beat::Wait(at) => now = at,
                Beat::Probe(_) => (),
                Beat::Dead(_) => return now - begun,
            }
            assert!(now - begun < Duration::from_secs(60));
        }
    }
}
