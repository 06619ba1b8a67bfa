//! Whether the other end of a link is still there. Sends and reads nothing itself.

use std::time::{Duration, Instant};

/// Asks at an interval, twice as often while an answer is missing, and gives a link up that has been silent for too
/// long.
///
/// A probe that is lost says nothing; several in a row do. A node that was itself held up (it slept, it was
/// stopped, its processors were busy) does not blame its peers for it: what it could not ask was not refused.
#[derive(Debug)]
pub struct Liveness {
    pace: Pace,
    /// There is a reason to doubt that the peer is there: watched closely until it answers.
    suspected: bool,
    number: u64,
    due_at: Instant,
    /// When the peer was last known to be there.
    heard_at: Instant,
    /// Since when there has been no answer, moved on by our own delays; begins with a probe.
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
    /// Links over which something is under way: whoever waits for it is not held up for longer.
    pub const USED: Self = Self {
        interval: Duration::from_millis(750),
        silence: Duration::from_secs(3),
    };
    /// All others: nobody waits, and who opens a channel makes it a used one.
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

/// Fewer probes without an answer may have been lost by chance: at a loss of 5 % each way six in a row are once in
/// a million, every few days of one link.
const UNANSWERED_MIN: u32 = 6;

impl Liveness {
    /// A link that is alive at `now`.
    pub fn new(pace: Pace, now: Instant) -> Self {
        Self {
            pace,
            suspected: false,
            number: 0,
            due_at: now + pace.interval,
            heard_at: now,
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

    /// Something makes it doubtful that the peer is still there: it is asked at once, and has to answer as soon as on
    /// the links that are watched most closely.
    pub fn suspect(&mut self, now: Instant) {
        if !self.suspected {
            self.suspected = true;
            self.due_at = now;
        }
    }

    /// Looks at the link, whose round trip takes `rtt`.
    pub fn poll(&mut self, rtt: Duration, now: Instant) -> Beat {
        let pace = if self.suspected { Pace::CLOSE } else { self.pace };
        let patience = pace.silence.max(rtt * 4);
        let late = now.saturating_duration_since(self.due_at);
        if late > pace.interval
            && let Some(since) = &mut self.silent_since
        {
            *since += late;
            // Answers may wait to be read: the peer gets as many probes again.
            self.unanswered = 0;
        }
        let dead_at = self
            .silent_since
            .filter(|_| self.unanswered >= UNANSWERED_MIN)
            .map(|since| since + patience);
        if dead_at.is_some_and(|at| at <= now) {
            let silent = self
                .silent_since
                .map_or(patience, |since| now.saturating_duration_since(since));
            return Beat::Dead(silent);
        }
        if now < self.due_at {
            return Beat::Wait(dead_at.map_or(self.due_at, |at| at.min(self.due_at)));
        }
        let interval = if self.unanswered > 0 {
            pace.interval / 2
        } else {
            pace.interval
        };
        self.due_at = now + interval;
        // Silence counts from the last answer, as far as it was asked for another in time.
        let asked_in_time = now.checked_sub(pace.interval).unwrap_or(now);
        let since = self.heard_at.max(asked_in_time);
        self.silent_since = self.silent_since.or(Some(since));
        self.unanswered = self.unanswered.saturating_add(1);
        self.number += 1;
        Beat::Probe(self.number)
    }

    /// A probe of ours was answered. Late answers count too: whoever answers is there.
    pub const fn answered(&mut self, now: Instant) {
        self.heard_at = now;
        self.suspected = false;
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
            liveness.answered(now);
        }
    }

    #[test]
    fn silence_is_noticed_a_second_after_the_last_answer() {
        let begun = Instant::now();
        let mut liveness = Liveness::new(Pace::CLOSE, begun);
        assert_eq!(silence(&mut liveness, RTT, begun), Duration::from_secs(1));
    }

    #[test]
    fn a_suspected_link_is_asked_at_once_and_watched_closely_until_it_answers() {
        let mut now = Instant::now();
        let mut liveness = Liveness::new(Pace::LOOSE, now);
        now += Duration::from_millis(100);
        liveness.suspect(now);
        assert_eq!(liveness.poll(RTT, now), Beat::Probe(1));
        liveness.answered(now);
        assert_eq!(liveness.poll(RTT, now), Beat::Wait(now + Pace::CLOSE.interval));
        now += Pace::CLOSE.interval;
        let _ = liveness.poll(RTT, now);
        liveness.answered(now);
        assert_eq!(liveness.poll(RTT, now), Beat::Wait(now + Pace::LOOSE.interval));
        liveness.suspect(now);
        let noticed = silence(&mut liveness, RTT, now);
        assert!(noticed <= Pace::CLOSE.silence, "{noticed:?}");
    }

    #[test]
    fn every_pace_has_asked_often_enough_by_the_time_it_gives_up() {
        for pace in [Pace::CLOSE, Pace::USED, Pace::LOOSE] {
            let begun = Instant::now();
            let mut liveness = Liveness::new(pace, begun);
            assert_eq!(silence(&mut liveness, RTT, begun), pace.silence, "{pace:?}");
        }
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
