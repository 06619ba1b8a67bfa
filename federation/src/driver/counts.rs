//! What a node counts of its calls and of the mains it is connected with. Reads no clock and shows nothing.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use lapwing_base::PeerId;

use crate::ErrorCode;

/// All of it, since the node started.
#[derive(Debug)]
pub(super) struct Counts {
    /// Calls that this node has carried out or passed on, wherever they came from.
    pub(super) calls: Outcomes,
    /// How long they took.
    pub(super) durations: Histogram,
    /// Requests of JSON-RPC that came to this node's edge.
    pub(super) requests: Outcomes,
    /// Of which there are at most [`Counts::MAINS_MAX`].
    mains: BTreeMap<PeerId, MainRecord>,
}

/// How often something was done, and how often it failed and why.
#[derive(Debug, Default)]
pub(super) struct Outcomes {
    done: u64,
    /// By place in [`ErrorCode::ALL`].
    failed: [u64; ErrorCode::ALL.len()],
}

/// How many took how long.
#[derive(Debug, Default)]
pub(super) struct Histogram {
    /// By place in [`Histogram::BOUNDS`]; what took longer than the last is in the sum and the count only.
    buckets: [u64; Self::BOUNDS.len()],
    count: u64,
    sum: Duration,
}

/// The sessions with one main, one after the other.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct MainRecord {
    /// Sessions that began.
    pub(super) sessions: u64,
    /// Those of them that began after another had ended; `reconnects < sessions`.
    pub(super) reconnects: u64,
    /// Since when there is one; `None` while there is none.
    pub(super) up_since: Option<Instant>,
    /// When it has said something last.
    pub(super) heard_at: Option<Instant>,
    /// How long it took to answer the last probe.
    pub(super) probe_took: Option<Duration>,
}

impl Counts {
    /// Mains of which something is kept: more than the fifty of a large federation, since those that have gone count too.
    const MAINS_MAX: usize = 256;

    /// Nothing has happened.
    pub(super) fn new() -> Self {
        Self {
            calls: Outcomes::default(),
            durations: Histogram::default(),
            requests: Outcomes::default(),
            mains: BTreeMap::new(),
        }
    }

    /// A call has ended, or was given up, after this long.
    pub(super) fn on_call(&mut self, failed: Option<ErrorCode>, took: Duration) {
        self.calls.count(failed);
        self.durations.observe(took);
    }

    /// A request has come to an end.
    pub(super) fn on_request(&mut self, failed: Option<ErrorCode>) {
        self.requests.count(failed);
    }

    /// A session with a main has begun, perhaps in place of one that stands.
    pub(super) fn on_session(&mut self, main: PeerId, now: Instant) {
        if !self.mains.contains_key(&main) && self.mains.len() >= Self::MAINS_MAX {
            self.mains.retain(|_, record| record.up_since.is_some());
            if self.mains.len() >= Self::MAINS_MAX {
                return;
            }
        }
        let record = self.mains.entry(main).or_default();
        if record.up_since.is_none() && record.sessions > 0 {
            record.reconnects += 1;
        }
        record.sessions += 1;
        record.up_since = Some(now);
        // Its greeting was heard.
        record.heard_at = Some(now);
    }

    /// There is no session with this neighbour any more.
    pub(super) fn on_session_end(&mut self, neighbour: PeerId) {
        if let Some(record) = self.mains.get_mut(&neighbour) {
            record.up_since = None;
        }
    }

    /// A neighbour has said something.
    pub(super) fn on_frame(&mut self, neighbour: PeerId, now: Instant) {
        if let Some(record) = self.mains.get_mut(&neighbour) {
            record.heard_at = Some(now);
        }
    }

    /// What is known of a main.
    /// A main has answered a probe.
    pub(super) fn on_probed(&mut self, main: PeerId, took: Duration) {
        if let Some(record) = self.mains.get_mut(&main) {
            record.probe_took = Some(took);
        }
    }

    pub(super) fn main(&self, main: PeerId) -> MainRecord {
        self.mains.get(&main).copied().unwrap_or_default()
    }
}

impl Outcomes {
    fn count(&mut self, failed: Option<ErrorCode>) {
        let count = match failed {
            None => &mut self.done,
            Some(code) => {
                let place = ErrorCode::ALL.iter().position(|other| *other == code);
                let Some(count) = place.and_then(|place| self.failed.get_mut(place)) else {
                    return;
                };
                count
            }
        };
        *count += 1;
    }

    /// `ok` and the names of the errors that there were, with how many.
    pub(super) fn named(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let failed = ErrorCode::ALL.iter().zip(self.failed);
        let failed = failed.filter(|(_, count)| *count > 0);
        std::iter::once(("ok", self.done)).chain(failed.map(|(code, count)| (code.name(), count)))
    }
}

impl Histogram {
    /// In seconds: a call within a machine takes less than the first, and none waits longer than the last by default.
    pub(super) const BOUNDS: [f64; 17] = [
        0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
        30.0, 60.0,
    ];

    fn observe(&mut self, took: Duration) {
        self.count += 1;
        self.sum += took;
        let bucket = Self::BOUNDS.iter().position(|bound| took.as_secs_f64() <= *bound);
        if let Some(bucket) = bucket.and_then(|bucket| self.buckets.get_mut(bucket)) {
            *bucket += 1;
        }
    }

    /// Each bound, and how many took no longer.
    pub(super) fn cumulative(&self) -> impl Iterator<Item = (f64, u64)> {
        let counts = self.buckets.iter().scan(0, |total, count| {
            *total += count;
            Some(*total)
        });
        Self::BOUNDS.into_iter().zip(counts)
    }

    /// How many there were, and how long all of them took.
    pub(super) const fn total(&self) -> (u64, Duration) {
        (self.count, self.sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::now;

    #[test]
    fn calls_are_counted_by_what_came_of_them() {
        let mut counts = Counts::new();
        for failed in [None, Some(ErrorCode::Timeout), None, Some(ErrorCode::Cancelled)] {
            counts.on_call(failed, Duration::from_millis(1));
        }
        let named: Vec<_> = counts.calls.named().collect();
        assert_eq!(named, [("ok", 2), ("timeout", 1), ("cancelled", 1)]);
        assert_eq!(counts.durations.total(), (4, Duration::from_millis(4)));
    }

    #[test]
    fn a_bucket_has_all_that_took_no_longer() {
        let mut histogram = Histogram::default();
        for millis in [1, 7, 120_000] {
            histogram.observe(Duration::from_millis(millis));
        }
        let counts: Vec<_> = histogram
            .cumulative()
            .filter(|(bound, _)| [0.000_5, 0.001, 0.01, 60.0].contains(bound))
            .map(|(_, count)| count)
            .collect();
        assert_eq!(counts, [0, 1, 2, 2], "the longest is in the total only");
        assert_eq!(histogram.total().0, 3);
    }

    #[test]
    fn a_session_counts_as_another_attempt_only_after_one_has_ended() {
        let (mut counts, main) = (Counts::new(), PeerId::random());
        let begun = now();
        counts.on_session(main, begun);
        counts.on_session(main, begun);
        assert_eq!(counts.main(main).reconnects, 0, "both ends have begun one");
        counts.on_session_end(main);
        assert_eq!(counts.main(main).up_since, None);
        let later = begun + Duration::from_secs(1);
        counts.on_session(main, later);
        counts.on_frame(main, later + Duration::from_secs(1));
        counts.on_probed(main, Duration::from_millis(3));
        let expected = MainRecord {
            sessions: 3,
            reconnects: 1,
            up_since: Some(later),
            heard_at: Some(later + Duration::from_secs(1)),
            probe_took: Some(Duration::from_millis(3)),
        };
        assert_eq!(counts.main(main), expected);
    }

    #[test]
    fn of_mains_that_come_and_go_only_so_many_are_kept() {
        let mut counts = Counts::new();
        let stays = PeerId::random();
        counts.on_session(stays, now());
        for _ in 0..2 * Counts::MAINS_MAX {
            let main = PeerId::random();
            counts.on_session(main, now());
            counts.on_session_end(main);
        }
        assert!(counts.mains.len() <= Counts::MAINS_MAX);
        assert_eq!(counts.main(stays).sessions, 1);
    }
}
