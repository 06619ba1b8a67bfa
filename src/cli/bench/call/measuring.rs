//! How long calls take, one after the other or many at a time.

use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use super::caller::Caller;
use crate::cli::failure::Failure;

/// What one measurement has shown.
#[derive(Clone, Debug)]
pub(super) struct Figures {
    /// In milliseconds, sorted.
    times: Vec<f64>,
    /// How long all of it took.
    took: Duration,
}

#[expect(clippy::disallowed_methods, reason = "it measures")]
pub(super) fn now() -> Instant {
    Instant::now()
}

impl Figures {
    /// As many in order as `times`, which took so long in all.
    pub(super) fn new(mut times: Vec<f64>, took: Duration) -> Self {
        times.sort_by(f64::total_cmp);
        Self { times, took }
    }

    /// In milliseconds, what this share of the calls took at most; not a number where there was none.
    pub(super) fn at(&self, share: f64) -> f64 {
        let place = (self.times.len() as f64 * share) as usize;
        let last = self.times.len().saturating_sub(1);
        self.times.get(place.min(last)).copied().unwrap_or(f64::NAN)
    }

    /// Calls in a second.
    pub(super) fn rate(&self) -> f64 {
        self.times.len() as f64 / self.took.as_secs_f64()
    }
}

/// The median over rounds of one figure; not a number where there are none.
pub(super) fn median(rounds: &[Figures], figure: impl Fn(&Figures) -> f64) -> f64 {
    let mut figures: Vec<f64> = rounds.iter().map(figure).collect();
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Calls for so long, with so many under way at any time.
///
/// # Errors
/// The first call that was not answered as it should be.
pub(super) async fn measure(caller: &Caller, in_flight: usize, time: Duration) -> Result<Figures, Failure> {
    let begun = now();
    let end = begun + time;
    let mut tasks = JoinSet::new();
    for _ in 0..in_flight {
        let caller = caller.clone();
        tasks.spawn(async move {
            let mut times = Vec::new();
            let mut from = now();
            while from < end {
                caller.call().await?;
                let to = now();
                times.push((to - from).as_secs_f64() * 1e3);
                from = to;
            }
            Ok::<_, String>(times)
        });
    }
    let mut times = Vec::new();
    while let Some(ended) = tasks.join_next().await {
        let ended = ended.map_err(|error| Failure::new("measure calls", error))?;
        times.extend(ended.map_err(|error| Failure::new("measure calls", error))?);
    }
    Ok(Figures::new(times, now() - begun))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_of_one_round_and_the_median_of_the_rounds_counts() {
        let round = |worst: f64| {
            let times = (1..100).map(f64::from).chain([worst]).collect();
            Figures::new(times, Duration::from_secs(2))
        };
        assert_eq!((round(500.0).at(0.5), round(500.0).at(0.99)), (51.0, 500.0));
        assert_eq!(round(500.0).rate(), 50.0);
        let rounds = [round(900.0), round(100.0), round(500.0)];
        assert_eq!(median(&rounds, |figures| figures.at(0.99)), 500.0);
        assert!(median(&[], Figures::rate).is_nan());
        assert!(Figures::new(Vec::new(), Duration::from_secs(1)).at(0.5).is_nan());
    }
}
