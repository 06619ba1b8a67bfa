//! Whether the other end of a link is still there. Sends and reads nothing itself.

use std::time::{Duration, Instant};

/// Asks at an interval, three times as often while an answer is missing, and gives a link up that has been silent for
/// too long.
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
    /// When the last probe was sent, and how long after it the next one is due once it is answered.
    probed_at: Instant,
    rests_for: Duration,
    /// When the peer was last known to be there.
    heard_at: Instant,
    /// Since when there has been no answer, moved on by our own delays; begins with a probe.
    silent_since: Option<Instant>,
    unanswered: u32,
    /// When there were enough of them.
    enough_at: Option<Instant>,
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
        // A tenth of a second is left for the last answer, which was on its way, and for what follows: a second after
        // a peer is gone its links are.
        silence: Duration::from_millis(900),
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

/// Fewer probes without an answer may have been lost by chance: at a loss of 5 % each way seven in a row are once in
/// twelve millions, every month of one link.
const UNANSWERED_MIN: u32 = 7;

/// How much more often is asked while an answer is missing: of the closest pace all of the above within its silence,
/// at round trips up to 150 ms; of longer ones, each is given its time.
const HASTE: u32 = 3;

impl Liveness {
    /// A link that is alive at `now`.
    pub fn new(pace: Pace, now: Instant) -> Self {
        Self {
            pace,
            suspected: false,
            number: 0,
            due_at: now + pace.interval,
            probed_at: now,
            rests_for: pace.interval,
            heard_at: now,
            silent_since: None,
            unanswered: 0,
            enough_at: None,
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
            self.enough_at = None;
        }
        let dead_at = match (self.silent_since, self.enough_at) {
            (Some(since), Some(enough_at)) => Some((since + patience).max(enough_at + rtt)),
            _ => None,
        };
        if dead_at.is_some_and(|at| at <= now) {
            let silent = self
                .silent_since
                .map_or(patience, |since| now.saturating_duration_since(since));
            return Beat::Dead(silent);
        }
        if now < self.due_at {
            return Beat::Wait(dead_at.map_or(self.due_at, |at| at.min(self.due_at)));
        }
        self.probed_at = now;
        self.rests_for = pace.interval;
        self.due_at = now + pace.interval / HASTE;
        // Silence counts from the last answer, as far as it was asked for another in time.
        let asked_in_time = now.checked_sub(pace.interval).unwrap_or(now);
        let since = self.heard_at.max(asked_in_time);
        self.silent_since = self.silent_since.or(Some(since));
        self.unanswered = self.unanswered.saturating_add(1);
        if self.unanswered == UNANSWERED_MIN {
            self.enough_at = Some(now);
        }
        self.number += 1;
        Beat::Probe(self.number)
    }

    /// A probe of ours was answered. Late answers count too: whoever answers is there.
    pub fn answered(&mut self, now: Instant) {
        self.heard_at = now;
        if self.unanswered > 0 {
            self.due_at = self.probed_at + self.rests_for.min(self.pace.interval);
        }
        self.enough_at = None;
        self.suspected = false;
        self.silent_since = None;
        self.unanswered = 0;
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "any instant will do")]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng, rngs::StdRng};
    use std::collections::VecDeque;

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
    fn silence_is_noticed_within_a_second_of_the_last_answer() {
        let begun = Instant::now();
        let mut liveness = Liveness::new(Pace::CLOSE, begun);
        assert_eq!(silence(&mut liveness, RTT, begun), Duration::from_millis(900));
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
    fn silence_is_noticed_within_a_second_or_four_round_trips() {
        for rtt in (10..1000).step_by(10).map(Duration::from_millis) {
            let begun = Instant::now();
            let mut liveness = Liveness::new(Pace::CLOSE, begun);
            let noticed = silence(&mut liveness, rtt, begun);
            assert!(
                noticed <= Duration::from_secs(1).max(rtt * 4),
                "{rtt:?}: {noticed:?}"
            );
        }
    }

    #[test]
    fn a_loss_of_five_percent_ends_no_link_in_hours() {
        for rtt in [20, 100, 200, 600].map(Duration::from_millis) {
            let mut rng = StdRng::seed_from_u64(7);
            let begun = Instant::now();
            let (mut now, mut probes) = (begun, 0);
            let mut liveness = Liveness::new(Pace::CLOSE, begun);
            let mut answers = VecDeque::new();
            while now < begun + Duration::from_secs(6 * 3600) {
                let next = match liveness.poll(rtt, now) {
                    Beat::Probe(_) => {
                        probes += 1;
                        if !rng.random_bool(0.05) && !rng.random_bool(0.05) {
                            answers.push_back(now + rtt.mul_f64(rng.random_range(1.0..1.1)));
                        }
                        continue;
                    }
                    Beat::Wait(at) => at,
                    Beat::Dead(silent) => panic!("after {:?}, {silent:?} of silence at {rtt:?}", now - begun),
                };
                match answers.pop_front_if(|at| *at <= next) {
                    Some(at) => {
                        now = at.max(now);
                        liveness.answered(now);
                    }
                    None => now = next,
                }
            }
            let often = f64::from(probes) / (6.0 * 3600.0);
            assert!((3.0..13.0).contains(&often), "{often} probes a second at {rtt:?}");
        }
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
