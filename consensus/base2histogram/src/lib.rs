//! A histogram with one bucket for each power of two: what openraft records its batch sizes in.
//!
//! It stands in for the published crate of this name (`[patch.crates-io]` in the root manifest), whose first
//! histogram fills tables of 27 MB for every width that it could be asked for: half of an idle node's memory, for
//! numbers that we do not read. To be deleted when a version of it fills only the table that is used. It has no
//! more than openraft needs without its `runtime-stats` feature.

use std::fmt;
use std::marker::PhantomData;

/// Counts values by the number of their bits.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Histogram<T = ()> {
    /// `counts[n]` values had `n` significant bits.
    counts: [u64; BUCKETS],
    slots: PhantomData<T>,
}

/// One for each number of significant bits, from 0 to 64.
const BUCKETS: usize = u64::BITS as usize + 1;

impl<T> Histogram<T> {
    /// An empty histogram.
    #[must_use]
    pub fn new() -> Self {
        Self {
            counts: [0; BUCKETS],
            slots: PhantomData,
        }
    }

    /// Counts one value.
    pub fn record(&mut self, value: u64) {
        self.record_n(value, 1);
    }

    /// Counts a value `count` times.
    pub fn record_n(&mut self, value: u64, count: u64) {
        let bits = (u64::BITS - value.leading_zeros()) as usize;
        self.counts[bits] = self.counts[bits].saturating_add(count);
    }

    /// What the counted values were at some percentiles; each is the smallest value of its bucket.
    #[must_use]
    pub fn percentile_stats(&self) -> PercentileStats {
        let samples = self
            .counts
            .iter()
            .fold(0, |sum: u64, count| sum.saturating_add(*count));
        let at = |permille: u64| {
            let rank = u128::from(samples) * u128::from(permille) / 1000;
            let mut seen = 0;
            let bits = self.counts.iter().position(|count| {
                seen += u128::from(*count);
                seen > rank
            });
            // A value of n bits is at least 2^(n - 1).
            bits.map_or(0, |bits| bits.checked_sub(1).map_or(0, |shift| 1 << shift))
        };
        PercentileStats {
            samples,
            p0_1: at(1),
            p1: at(10),
            p5: at(50),
            p10: at(100),
            p50: at(500),
            p90: at(900),
            p99: at(990),
            p99_9: at(999),
        }
    }
}

impl<T> Default for Histogram<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// Percentiles of a [`Histogram`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PercentileStats {
    /// How many values were counted.
    pub samples: u64,
    /// A thousandth of the values is below this.
    pub p0_1: u64,
    /// One in a hundred is below this.
    pub p1: u64,
    /// One in twenty is below this.
    pub p5: u64,
    /// One in ten is below this.
    pub p10: u64,
    /// Half are below this.
    pub p50: u64,
    /// Nine in ten are below this.
    pub p90: u64,
    /// Ninety-nine in a hundred are below this.
    pub p99: u64,
    /// All but a thousandth are below this.
    pub p99_9: u64,
}

impl fmt::Display for PercentileStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            samples,
            p50,
            p90,
            p99,
            ..
        } = self;
        write!(f, "[samples: {samples}, P50: {p50}, P90: {p90}, P99: {p99}]")
    }
}

/// Histograms by name, a line each.
#[derive(Clone, Debug, Default)]
pub struct AsciiChart {
    lines: Vec<(String, PercentileStats)>,
}

impl AsciiChart {
    /// No histograms yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// One more.
    #[must_use]
    #[expect(
        clippy::needless_pass_by_value,
        reason = "as the crate it stands in for has it"
    )]
    pub fn add<T>(mut self, name: &str, histogram: Histogram<T>) -> Self {
        self.lines.push((name.to_owned(), histogram.percentile_stats()));
        self
    }
}

impl fmt::Display for AsciiChart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lines
            .iter()
            .try_for_each(|(name, stats)| writeln!(f, "{name}: {stats}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_counted_values_to_a_power_of_two() {
        let mut histogram = Histogram::<()>::new();
        assert_eq!(histogram.percentile_stats().p50, 0);
        histogram.record(0);
        histogram.record_n(5, 98);
        histogram.record(u64::MAX);
        let stats = histogram.percentile_stats();
        assert_eq!(
            (stats.samples, stats.p0_1, stats.p50, stats.p99_9),
            (100, 0, 4, 1 << 63)
        );
    }
}
