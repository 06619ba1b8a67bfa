//! What has happened lately, by the second: what breakers and budgets are measured by. Reads no clock.

use std::time::{Duration, Instant};

/// Counts what happened within the last ten seconds, the running one included, by the second.
#[derive(Debug, Default)]
pub(crate) struct Window {
    /// Newest first.
    seconds: [Tally; Self::SECONDS],
    /// When the newest began; `None` before anything happened.
    newest_at: Option<Instant>,
}

impl Window {
    /// How far back it reaches.
    pub(crate) const SECONDS: usize = 10;

    /// Something has happened.
    pub(crate) fn add(&mut self, now: Instant, tally: Tally) {
        self.roll(now);
        self.seconds[0].add(tally);
    }

    /// All that has happened lately.
    pub(crate) fn total(&mut self, now: Instant) -> Tally {
        self.roll(now);
        let mut total = Tally::default();
        self.seconds.iter().for_each(|second| total.add(*second));
        total
    }

    /// Makes the second that is running the newest.
    fn roll(&mut self, now: Instant) {
        let newest_at = self.newest_at.get_or_insert(now);
        let passed = now.saturating_duration_since(*newest_at).as_secs();
        *newest_at += Duration::from_secs(passed);
        let passed = usize::try_from(passed)
            .unwrap_or(Self::SECONDS)
            .min(Self::SECONDS);
        self.seconds.rotate_right(passed);
        self.seconds[..passed].fill(Tally::default());
    }
}

/// How many there were, and how many of a certain kind.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Tally {
    pub(crate) all: u64,
    pub(crate) marked: u64,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.all += other.all;
        self.marked += other.marked;
    }
}
