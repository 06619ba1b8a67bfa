//! Chooses which instance of one service is called, and keeps what is known of each. Calls none, and does not know which
//! there are: the candidates come with each question.

use crate::{Breaker, BreakerConfig, CallError, ErrorCode, Outcome, ServiceName, Ticket};
use rand::seq::IndexedRandom;
use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::{Duration, Instant};

/// Spreads the calls of one service over its instances, each of which has a [`Breaker`].
///
/// Local instances come first while one of them admits a call. Among those that remain one that is due for a probe comes
/// first, as its quicker siblings would keep it out for ever; else the [`Algorithm`] decides.
///
/// An instance is ejected while its breaker is open, or while it is by far slower than the quickest. At most half of the
/// instances are ejected while any is well, as the rest would break under the load of all: beyond that those whose probe
/// is next get calls again ("panic routing"), and slow ones stay. Where the breakers of all are open, the service is down
/// and not an instance of it: then calls are refused, but for the probes. So a service's only instance is never called
/// past its breaker.
#[derive(Debug)]
pub struct Balancer<K> {
    algorithm: Algorithm,
    config: BreakerConfig,
    records: BTreeMap<K, Record>,
    /// Grows with each instance that is met and each call, and so dates both.
    serial: u64,
}

impl<K: Ord + Clone> Balancer<K> {
    /// Knows nothing of any instance yet.
    pub fn new(algorithm: Algorithm, config: BreakerConfig) -> Self {
        Self {
            algorithm,
            config,
            records: BTreeMap::new(),
            serial: 0,
        }
    }

    /// From now on decides otherwise; what is known of the instances stays.
    pub fn set_algorithm(&mut self, algorithm: Algorithm) {
        self.algorithm = algorithm;
    }

    /// The instance to call now, among all that the service has: each once, by the nearest way.
    ///
    /// What is chosen counts as a call in flight until it comes back by [`Balancer::on_end`], also if it was withdrawn.
    pub fn choose(
        &mut self,
        now: Instant,
        rng: &mut impl Rng,
        candidates: &[Candidate<K>],
    ) -> Result<Chosen<K>, Refused> {
        let algorithm = self.algorithm;
        self.choose_by(now, rng, candidates, |rng, tier| {
            let due = tier.iter().filter(|(_, record)| record.is_due(now));
            match due.min_by_key(|(_, record)| record.breaker.retry_at()) {
                Some(due) => Some(*due),
                None => algorithm.pick(now, rng, tier),
            }
        })
    }

    /// The same for a call that may come again and is to find the instance that has it: of those that may be called the one
    /// that ranks highest, whatever the algorithm.
    ///
    /// # Errors
    /// As [`Balancer::choose`].
    pub fn choose_ranked(
        &mut self,
        now: Instant,
        rng: &mut impl Rng,
        candidates: &[Candidate<K>],
        rank: impl Fn(&K) -> u64,
    ) -> Result<Chosen<K>, Refused> {
        self.choose_by(now, rng, candidates, |_, tier| {
            tier.iter()
                .max_by_key(|(candidate, _)| rank(&candidate.key))
                .copied()
        })
    }

    fn choose_by<R: Rng>(
        &mut self,
        now: Instant,
        rng: &mut R,
        candidates: &[Candidate<K>],
        pick: impl for<'a> FnOnce(&mut R, &[View<'a, K>]) -> Option<View<'a, K>>,
    ) -> Result<Chosen<K>, Refused> {
        self.meet(rng, candidates);
        let views: Vec<_> = candidates
            .iter()
            .filter_map(|candidate| Some((candidate, self.records.get(&candidate.key)?)))
            .collect();
        let standings = Standings::at(now, &views);
        let refused = standings.refused();
        let tier = standings.tier();
        let key = pick(rng, &tier)
            .map(|(candidate, _)| candidate.key.clone())
            .ok_or(refused)?;
        let record = self.records.get_mut(&key).ok_or(refused)?;
        self.serial += 1;
        record.turn = self.serial;
        record.in_flight = record.in_flight.saturating_add(1);
        Ok(Chosen {
            key,
            born: record.born,
            ticket: record.breaker.admit_anyway(now),
        })
    }

    /// The call of a chosen instance has ended, and took this long; what that did to its breaker.
    pub fn on_end(
        &mut self,
        chosen: Chosen<K>,
        now: Instant,
        took: Duration,
        outcome: Outcome,
    ) -> Option<Turned> {
        let Chosen { key, born, ticket } = chosen;
        // One that went and came back is another: it has none of the calls of the first in flight.
        let record = self.records.get_mut(&key).filter(|record| record.born == born)?;
        record.in_flight = record.in_flight.saturating_sub(1);
        record.observe(now, took, outcome);
        let was_open = record.breaker.is_open();
        record.breaker.on_end(ticket, now, outcome);
        match (was_open, record.breaker.retry_after(now)) {
            (false, Some(wait)) => Some(Turned::Opened { wait }),
            (true, None) => Some(Turned::Closed),
            (true, Some(_)) | (false, None) => None,
        }
    }

    /// Forgets the instances that are gone. Until then each that ever was a candidate is known.
    pub fn retain(&mut self, mut is_there: impl FnMut(&K) -> bool) {
        self.records.retain(|key, _| is_there(key));
    }

    /// What is known of each instance.
    pub fn metrics(&self) -> impl Iterator<Item = (&K, InstanceMetrics)> {
        self.records.iter().map(|(key, record)| (key, record.metrics()))
    }

    /// What is known of one of them; `None` before it was a candidate.
    pub fn of(&self, key: &K) -> Option<InstanceMetrics> {
        self.records.get(key).map(Record::metrics)
    }

    fn meet(&mut self, rng: &mut impl Rng, candidates: &[Candidate<K>]) {
        for candidate in candidates {
            if !self.records.contains_key(&candidate.key) {
                self.serial += 1;
                let breaker = Breaker::new(self.config, rng.random());
                let record = Record::new(self.serial, breaker);
                self.records.insert(candidate.key.clone(), record);
            }
        }
    }
}

/// How one is chosen among instances that are well.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Algorithm {
    /// Whichever has waited longest for a call, so that all get as many.
    #[default]
    RoundRobin,
    /// Whichever has the fewest calls in flight.
    LeastConnections,
    /// Any.
    Random,
    /// Of any two the one that is likely to answer sooner: by its latency, of which peaks count at once and fade within
    /// some ten seconds, times its calls in flight.
    P2cEwma,
}

/// A text that names no algorithm.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("`{text}` is no algorithm; use round-robin, least-connections, random or p2c-ewma")]
pub struct ParseAlgorithmError {
    /// What was given.
    pub text: String,
}

impl FromStr for Algorithm {
    type Err = ParseAlgorithmError;

    fn from_str(text: &str) -> Result<Self, ParseAlgorithmError> {
        match text {
            "round-robin" => Ok(Self::RoundRobin),
            "least-connections" => Ok(Self::LeastConnections),
            "random" => Ok(Self::Random),
            "p2c-ewma" => Ok(Self::P2cEwma),
            other => Err(ParseAlgorithmError {
                text: other.to_owned(),
            }),
        }
    }
}

impl Algorithm {
    fn pick<'a, K>(self, now: Instant, rng: &mut impl Rng, views: &[View<'a, K>]) -> Option<View<'a, K>> {
        match self {
            Self::RoundRobin => pick_least(rng, views, |record| record.turn),
            Self::LeastConnections => pick_least(rng, views, |record| (record.in_flight, record.turn)),
            Self::Random => views.choose(rng).copied(),
            Self::P2cEwma => {
                let Some([one, other]) = views.sample_array(rng) else {
                    return views.first().copied();
                };
                let is_less = other.1.load(now) < one.1.load(now);
                Some(if is_less { other } else { one })
            }
        }
    }
}

/// An instance that may be called.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Candidate<K> {
    /// Which.
    pub key: K,
    /// Whether this node or a home of its offers it.
    pub is_local: bool,
    /// How many links away it is: of two that are equal otherwise the nearer is called.
    pub hops: u8,
}

/// An instance that was chosen, to be handed back at the end of its call.
#[must_use]
#[derive(Debug, Eq, PartialEq)]
pub struct Chosen<K> {
    key: K,
    /// Which of those that had this key, one after the other.
    born: u64,
    ticket: Ticket,
}

impl<K> Chosen<K> {
    /// Which one it is.
    pub fn key(&self) -> &K {
        &self.key
    }

    /// Whether this call tests if the instance has recovered.
    pub fn is_probe(&self) -> bool {
        self.ticket.is_probe()
    }
}

/// What the end of a call did to a breaker.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Turned {
    /// It was closed, and is open.
    Opened {
        /// Until the first probe.
        wait: Duration,
    },
    /// It was open, and is closed.
    Closed,
}

/// Why none was chosen.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Refused {
    /// There is none.
    #[error("there is no instance")]
    NoInstance,
    /// There is one, and its breaker is open.
    #[error("the breaker of the only instance is open")]
    CircuitOpen {
        /// When it is probed next.
        retry_at: Instant,
    },
    /// There are several, and the breakers of all are open.
    #[error("every instance is ejected")]
    NoHealthyInstance {
        /// When the first of them is probed.
        retry_at: Instant,
    },
}

impl Refused {
    /// What the caller is told.
    pub fn error(self, service: &ServiceName, now: Instant) -> CallError {
        let (code, retry_at) = match self {
            Self::NoInstance => (ErrorCode::ServiceNotFound, None),
            Self::CircuitOpen { retry_at } => (ErrorCode::CircuitOpen, Some(retry_at)),
            Self::NoHealthyInstance { retry_at } => (ErrorCode::NoHealthyInstance, Some(retry_at)),
        };
        let mut error = CallError::new(code, format!("no instance of `{service}` is called: {self}"));
        error.retry_after = retry_at.map(|at| at.saturating_duration_since(now));
        error
    }
}

/// What is known of an instance since it was met.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct InstanceMetrics {
    /// Counts the calls that have ended and say something about it; those that were withdrawn do not.
    pub calls: u64,
    /// Counts those that failed by its fault; `failures <= calls`.
    pub failures: u64,
    /// Calls that have not ended yet.
    pub in_flight: u32,
    /// How long its successes take: the average of the last ten seconds or so, or the last; `None` before the first.
    pub latency: Option<Duration>,
    /// When it is probed next; `None` while its breaker is closed.
    pub retry_at: Option<Instant>,
}

impl InstanceMetrics {
    /// The share of calls that did not fail by its fault, in 0..=1; `None` before the first.
    pub fn success_rate(&self) -> Option<f64> {
        (self.calls > 0).then(|| 1.0 - self.failures as f64 / self.calls as f64)
    }
}

/// What is known of one instance.
#[derive(Debug)]
struct Record {
    /// When it was met.
    born: u64,
    /// When it was called last; 0 if never.
    turn: u64,
    breaker: Breaker,
    in_flight: u32,
    calls: u64,
    failures: u64,
    /// Of successes.
    latency: Option<Average>,
    /// Of successes and failures, peaks at once.
    peak: Option<Average>,
}

impl Record {
    fn new(born: u64, breaker: Breaker) -> Self {
        Self {
            born,
            turn: 0,
            breaker,
            in_flight: 0,
            calls: 0,
            failures: 0,
            latency: None,
            peak: None,
        }
    }

    /// Whether its open breaker would let a probe through.
    fn is_due(&self, now: Instant) -> bool {
        self.breaker.retry_at().is_some_and(|at| at <= now)
    }

    fn observe(&mut self, now: Instant, took: Duration, outcome: Outcome) {
        if outcome != Outcome::Unknown {
            self.calls += 1;
        }
        // A call that was refused as wrong is quick, and says nothing of how long the right ones take.
        let cost = match outcome {
            Outcome::Success => took,
            Outcome::ServersFault => took.max(FAILURE_COST),
            Outcome::CallersFault | Outcome::Unknown => return,
        };
        let cost = cost.as_secs_f64();
        match &mut self.peak {
            Some(peak) => peak.observe_peak(now, cost),
            peak => *peak = Some(Average::new(now, cost)),
        }
        if outcome == Outcome::ServersFault {
            self.failures += 1;
            return;
        }
        match &mut self.latency {
            Some(latency) => latency.observe(now, cost),
            latency => *latency = Some(Average::new(now, cost)),
        }
    }

    /// How long one more call is likely to take, in seconds.
    fn load(&self, now: Instant) -> f64 {
        match &self.peak {
            Some(peak) => peak.faded(now) * f64::from(self.in_flight.saturating_add(1)),
            // One call finds out; until it has, nobody knows better than to stay away.
            None => FAILURE_COST.as_secs_f64() * f64::from(self.in_flight),
        }
    }

    /// Its latency in seconds, once there were enough calls to speak of one.
    fn known_latency(&self) -> Option<&Average> {
        self.latency
            .as_ref()
            .filter(|latency| latency.samples >= SAMPLES_MIN)
    }

    fn metrics(&self) -> InstanceMetrics {
        InstanceMetrics {
            calls: self.calls,
            failures: self.failures,
            in_flight: self.in_flight,
            latency: self.latency.as_ref().map(Average::duration),
            retry_at: self.breaker.retry_at(),
        }
    }
}

/// The first calls of a process pay for what it sets up.
const SAMPLES_MIN: u32 = 5;

/// A failure costs the caller a retry or the whole call; even of those that fail quickly there must not be more.
const FAILURE_COST: Duration = Duration::from_secs(5);

/// An average in which a sample weighs less the longer ago it was.
#[derive(Clone, Copy, Debug)]
struct Average {
    seconds: f64,
    at: Instant,
    samples: u32,
}

impl Average {
    fn new(now: Instant, seconds: f64) -> Self {
        Self {
            seconds,
            at: now,
            samples: 1,
        }
    }

    fn observe(&mut self, now: Instant, seconds: f64) {
        let newness = 1.0 - self.kept(now);
        // At first all count alike, else the first of many at once would be the average.
        let share = match self.samples < SAMPLES_MIN {
            true => 1.0 / f64::from(self.samples + 1),
            false => 0.0,
        };
        self.blend(now, seconds, newness.max(share));
    }

    /// What is more than the average becomes the average.
    fn observe_peak(&mut self, now: Instant, seconds: f64) {
        let weight = match seconds >= self.seconds {
            true => 1.0,
            false => 1.0 - self.kept(now),
        };
        self.blend(now, seconds, weight);
    }

    fn duration(&self) -> Duration {
        Duration::try_from_secs_f64(self.seconds.max(0.0)).unwrap_or(Duration::MAX)
    }

    fn blend(&mut self, now: Instant, seconds: f64, weight: f64) {
        self.seconds += (seconds - self.seconds) * weight;
        self.at = self.at.max(now);
        self.samples = self.samples.saturating_add(1);
    }

    /// What is left of it, so that one who is not called because of it is called again some time.
    fn faded(&self, now: Instant) -> f64 {
        self.seconds * self.kept(now)
    }

    /// In 0..=1.
    fn kept(&self, now: Instant) -> f64 {
        let idle = now.saturating_duration_since(self.at);
        (-idle.as_secs_f64() / FADES_WITHIN.as_secs_f64()).exp()
    }
}

/// Long enough to average over many calls, short enough that a pause of the collector is soon forgotten.
const FADES_WITHIN: Duration = Duration::from_secs(10);

/// A candidate and what is known of it.
type View<'a, K> = (&'a Candidate<K>, &'a Record);

/// The instances by how they are.
struct Standings<'a, K> {
    /// Whose breakers are closed, and who are not slow.
    well: Vec<View<'a, K>>,
    /// Whose breakers would let a probe through.
    due: Vec<View<'a, K>>,
    /// Whose breakers refuse, those that are probed first in front.
    refusing: Vec<View<'a, K>>,
    /// How many may be ejected.
    ejected_max: usize,
    count: usize,
}

impl<'a, K> Standings<'a, K> {
    fn at(now: Instant, views: &[View<'a, K>]) -> Self {
        let ejected_max = views.len() / 2;
        let (open, mut well): (Vec<_>, Vec<_>) = views
            .iter()
            .copied()
            .partition(|(_, record)| record.breaker.is_open());
        eject_slow(now, &mut well, ejected_max.saturating_sub(open.len()));
        let (due, mut refusing): (Vec<_>, Vec<_>) =
            open.into_iter().partition(|(_, record)| record.is_due(now));
        refusing.sort_by_key(|(_, record)| record.breaker.retry_at());
        Self {
            well,
            due,
            refusing,
            ejected_max,
            count: views.len(),
        }
    }

    /// Those among which one is chosen now.
    fn tier(&self) -> Vec<View<'a, K>> {
        let admitting = || self.well.iter().chain(&self.due).copied();
        let local: Vec<_> = admitting().filter(|(candidate, _)| candidate.is_local).collect();
        if !local.is_empty() {
            return local;
        }
        let panic = match self.well.is_empty() {
            true => 0,
            false => self.refusing.len().saturating_sub(self.ejected_max),
        };
        admitting()
            .chain(self.refusing.iter().take(panic).copied())
            .collect()
    }

    /// Why there is none, if there is none.
    fn refused(&self) -> Refused {
        let first = self.refusing.first();
        match first.and_then(|(_, record)| record.breaker.retry_at()) {
            None => Refused::NoInstance,
            Some(retry_at) if self.count == 1 => Refused::CircuitOpen { retry_at },
            Some(retry_at) => Refused::NoHealthyInstance { retry_at },
        }
    }
}

/// Takes out those that are by far slower than the quickest, at most so many, the slowest first.
///
/// One that gets no calls becomes quicker by and by, and so has another chance.
fn eject_slow<K>(now: Instant, well: &mut Vec<View<'_, K>>, ejected_max: usize) {
    let known = |(_, record): &View<'_, K>| record.known_latency().map(|latency| latency.seconds);
    let Some(quickest) = well.iter().filter_map(known).min_by(f64::total_cmp) else {
        return;
    };
    let limit = (quickest * SLOW_FACTOR).max(SLOW_MIN);
    for _ in 0..ejected_max {
        let slowness = |(_, record): &View<'_, K>| record.known_latency().map(|latency| latency.faded(now));
        let slow = well
            .iter()
            .enumerate()
            .filter_map(|(at, view)| Some((at, slowness(view)?)))
            .filter(|(_, seconds)| *seconds > limit);
        let Some((at, _)) = slow.max_by(|(_, one), (_, other)| one.total_cmp(other)) else {
            return;
        };
        well.remove(at);
    }
}

/// Something is wrong with an instance that takes so many times as long as the quickest.
const SLOW_FACTOR: f64 = 5.0;

/// In seconds. Who takes less is slow because of links around the world or of other work, and that is no illness.
const SLOW_MIN: f64 = 1.0;

/// One of those that rank least, of them one of the nearest, and of them any: if all nodes began with the same one, it
/// would have all the first calls.
fn pick_least<'a, K, R: Ord>(
    rng: &mut impl Rng,
    views: &[View<'a, K>],
    rank: impl Fn(&Record) -> R,
) -> Option<View<'a, K>> {
    let rank = |(candidate, record): &View<'a, K>| (rank(record), candidate.hops);
    let least = views.iter().map(rank).min()?;
    let ties: Vec<_> = views.iter().filter(|view| rank(view) == least).collect();
    ties.choose(rng).map(|view| **view)
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "any instant will do")]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::{SeedableRng, rngs::StdRng};

    #[test]
    fn ten_calls_over_two_instances_are_five_each_and_all_go_to_the_other_when_one_goes() {
        let mut story = Story::new(Algorithm::RoundRobin);
        let both = [far("alice1", 2), far("alice2", 3)];
        assert_eq!(story.calls(10, &both), [("alice1", 5), ("alice2", 5)]);
        story.balancer.retain(|key| *key == "alice2");
        assert_eq!(story.calls(10, &both[1..]), [("alice2", 10)]);
        assert_eq!(
            story.calls(10, &both),
            [("alice1", 5), ("alice2", 5)],
            "it is back"
        );
    }

    #[test]
    fn what_comes_again_goes_to_the_same_instance_while_that_may_be_called() {
        let mut story = Story::new(Algorithm::RoundRobin);
        let all = [far("a", 1), far("b", 1), far("c", 1)];
        let rank = |key: &&str| u64::from(key.as_bytes()[0].wrapping_mul(5) % 7);
        let chosen = |story: &mut Story, candidates: &[Candidate<&'static str>]| {
            let chosen = story
                .balancer
                .choose_ranked(story.now, &mut story.rng, candidates, rank);
            let chosen = chosen.unwrap();
            let key = *chosen.key();
            story.end(chosen, 20, Outcome::Success);
            key
        };
        let first = chosen(&mut story, &all);
        assert!((0..10).all(|_| chosen(&mut story, &all) == first));
        let others: Vec<_> = all.iter().filter(|one| one.key != first).cloned().collect();
        assert_ne!(chosen(&mut story, &others), first);
    }

    #[test]
    fn a_newcomer_gets_its_share_and_no_more() {
        let mut story = Story::new(Algorithm::RoundRobin);
        let all = [far("a", 1), far("b", 1), far("c", 1)];
        story.calls(100, &all[..2]);
        assert_eq!(story.calls(9, &all), [("a", 3), ("b", 3), ("c", 3)]);
    }

    #[test]
    fn the_fewest_calls_in_flight_win() {
        let mut story = Story::new(Algorithm::LeastConnections);
        let all = [far("a", 1), far("b", 1)];
        let held = story.choose(&all).unwrap();
        let others = story.calls(10, &all);
        assert_eq!(others.len(), 1);
        assert_ne!(others[0].0, *held.key());
        story.end(held, 10, Outcome::Success);
        assert_eq!(story.calls(10, &all), [("a", 5), ("b", 5)]);
    }

    #[test]
    fn chance_calls_each_now_and_then() {
        let mut story = Story::new(Algorithm::Random);
        let counts = story.calls(1000, &[far("a", 1), far("b", 1)]);
        assert!(counts.iter().all(|(_, count)| *count > 400), "{counts:?}");
    }

    #[test]
    fn of_two_the_quicker_is_preferred_and_a_failure_makes_slow() {
        let mut story = Story::new(Algorithm::P2cEwma);
        let all = [far("quick", 1), far("slow", 1)];
        let took = |key| if key == "slow" { 200 } else { 20 };
        let counts = story.calls_with(100, &all, |key| (took(key), Outcome::Success));
        assert!(counts[0].1 >= 95, "{counts:?}");
        let chosen = story.choose(&all).unwrap();
        assert_eq!(*chosen.key(), "quick");
        story.end(chosen, 1, Outcome::ServersFault);
        assert_eq!(story.calls(10, &all), [("slow", 10)]);
    }

    #[test]
    fn a_peak_fades_so_that_the_instance_is_called_again() {
        let mut story = Story::new(Algorithm::P2cEwma);
        let all = [far("a", 1), far("b", 1)];
        story.calls_with(2, &all, |key| {
            (if key == "a" { 900 } else { 20 }, Outcome::Success)
        });
        assert_eq!(story.calls(50, &all), [("b", 50)]);
        story.now += Duration::from_secs(60);
        story.calls_with(1, &all[1..], |_| (20, Outcome::Success));
        assert!(story.calls(50, &all).iter().any(|(key, _)| *key == "a"));
    }

    #[test]
    fn local_instances_are_preferred_while_one_admits_calls() {
        for algorithm in ALL {
            let mut story = Story::new(algorithm);
            let all = [local("here"), far("there", 1), far("beyond", 2)];
            assert_eq!(story.calls(10, &all), [("here", 10)], "{algorithm:?}");
            story.break_down(&all[0]);
            assert!(story.calls(10, &all).iter().all(|(key, _)| *key != "here"));
            story.now += Duration::from_secs(30);
            assert_eq!(story.calls(10, &all), [("here", 10)], "the first was its probe");
        }
    }

    #[test]
    fn ten_calls_to_a_failing_service_open_its_breaker() {
        let mut story = Story::new(Algorithm::RoundRobin);
        let shop = [far("shop", 1)];
        let failing = |_| (1, Outcome::ServersFault);
        assert_eq!(story.calls_with(10, &shop, failing), [("shop", 5)]);
        let refused = story.choose(&shop).unwrap_err();
        let error = refused.error(&"shop_service".parse().unwrap(), story.now);
        assert_eq!(error.code, ErrorCode::CircuitOpen);
        assert!(error.retry_after.unwrap() >= Duration::from_secs(15));
        let said = "no instance of `shop_service` is called: the breaker of the only instance is open";
        assert_eq!(error.message, said);
    }

    #[test]
    fn nobody_is_called_where_nobody_is_well_except_for_probes() {
        let mut story = Story::new(Algorithm::RoundRobin);
        let all = [far("a", 1), far("b", 1), far("c", 1), far("d", 1)];
        all.iter().for_each(|instance| story.break_down(instance));
        let Err(Refused::NoHealthyInstance { retry_at }) = story.choose(&all) else {
            panic!("all are ejected");
        };
        story.now = retry_at;
        let probe = story.choose(&all).unwrap();
        assert!(probe.is_probe());
        let next = story.choose(&all).unwrap_err();
        assert!(matches!(next, Refused::NoHealthyInstance { retry_at } if retry_at > story.now));
        let key = *probe.key();
        story.end(probe, 1, Outcome::Success);
        assert!(story.calls(10, &all).iter().any(|(called, _)| *called == key));
    }

    #[test]
    fn whoever_ends_a_call_is_told_when_that_opens_a_breaker_and_when_it_closes_it() {
        let mut story = Story::new(Algorithm::RoundRobin);
        let all = [far("a", 1)];
        let turns: Vec<_> = (0..5)
            .map(|_| {
                let chosen = story.choose(&all).unwrap();
                story.end(chosen, 1, Outcome::ServersFault)
            })
            .collect();
        assert_eq!(turns[..4], [None; 4]);
        let Some(Turned::Opened { wait }) = turns[4] else {
            panic!("it is open after five failures: {turns:?}");
        };
        story.now += wait;
        let probe = story.choose(&all).unwrap();
        assert_eq!(story.end(probe, 1, Outcome::ServersFault), None, "it stays open");
        story.now += 2 * BreakerConfig::default().cool_down;
        let probe = story.choose(&all).unwrap();
        assert_eq!(story.end(probe, 1, Outcome::Success), Some(Turned::Closed));
    }

    #[test]
    fn without_instances_there_is_nothing_to_choose() {
        let mut story = Story::new(Algorithm::P2cEwma);
        let refused = story.choose(&[]).unwrap_err();
        assert_eq!(refused, Refused::NoInstance);
        let error = refused.error(&"blog".parse().unwrap(), story.now);
        assert_eq!(error.code, ErrorCode::ServiceNotFound);
    }

    #[test]
    fn at_most_half_are_ejected_while_one_is_well() {
        let mut story = Story::new(Algorithm::RoundRobin);
        let all = [far("a", 1), far("b", 1), far("c", 1), far("d", 1), far("e", 1)];
        story.break_down(&all[0]);
        story.break_down(&all[1]);
        assert_eq!(story.calls(9, &all), [("c", 3), ("d", 3), ("e", 3)]);
        story.break_down(&all[2]);
        story.break_down(&all[3]);
        let failing = |key| match key {
            "e" => (1, Outcome::Success),
            _ => (1, Outcome::ServersFault),
        };
        let counts = story.calls_with(9, &all, failing);
        assert_eq!(counts.len(), 3, "two are ejected, not four: {counts:?}");
        assert!(counts.contains(&("e", 3)));
    }

    #[test]
    fn of_two_one_may_be_ejected_and_probes_come_first_when_they_are_due() {
        for algorithm in ALL {
            let mut story = Story::new(algorithm);
            let all = [far("ill", 1), far("well", 1)];
            story.break_down(&all[0]);
            assert_eq!(story.calls(10, &all), [("well", 10)]);
            story.now += Duration::from_secs(30);
            let failing = |key| match key {
                "ill" => (1, Outcome::ServersFault),
                _ => (1, Outcome::Success),
            };
            assert_eq!(story.calls_with(10, &all, failing), [("ill", 1), ("well", 9)]);
        }
    }

    #[test]
    fn who_is_by_far_the_slowest_rests_until_its_latency_has_faded() {
        let mut story = Story::new(Algorithm::RoundRobin);
        let all = [far("quick", 1), far("slow", 1)];
        let took = |key| if key == "slow" { 3000 } else { 20 };
        let counts = story.calls_with(20, &all, |key| (took(key), Outcome::Success));
        assert_eq!(counts, [("quick", 15), ("slow", 5)]);
        // 3 s fade to 1 s within 11 s.
        story.now += Duration::from_secs(12);
        assert_eq!(story.calls(10, &all), [("quick", 5), ("slow", 5)]);
    }

    #[test]
    fn a_slow_first_call_is_not_held_against_an_instance() {
        let mut story = Story::new(Algorithm::RoundRobin);
        let all = [far("quick", 1), far("starting", 1)];
        let first = [story.choose(&all).unwrap(), story.choose(&all).unwrap()];
        for chosen in first {
            let millis = if *chosen.key() == "starting" { 3000 } else { 20 };
            story.end(chosen, millis, Outcome::Success);
        }
        assert_eq!(story.calls(20, &all), [("quick", 10), ("starting", 10)]);
    }

    #[test]
    fn the_last_instance_is_never_ejected_by_latency() {
        let mut story = Story::new(Algorithm::RoundRobin);
        let all = [far("ill", 1), far("slow", 1)];
        let took = |key| if key == "slow" { 60_000 } else { 20 };
        story.calls_with(10, &all, |key| (took(key), Outcome::Success));
        assert_eq!(story.calls(4, &all), [("ill", 4)]);
        story.break_down(&all[0]);
        assert_eq!(story.calls(4, &all), [("slow", 4)]);
    }

    #[test]
    fn an_instance_that_came_back_owes_nothing_to_the_one_before() {
        let mut story = Story::new(Algorithm::RoundRobin);
        let all = [far("a", 1)];
        let early = story.choose(&all).unwrap();
        story.balancer.retain(|_| false);
        let late = story.choose(&all).unwrap();
        story.end(early, 1, Outcome::ServersFault);
        let metrics = story.metrics("a");
        assert_eq!((metrics.in_flight, metrics.calls), (1, 0));
        story.end(late, 1, Outcome::Success);
        assert_eq!(story.metrics("a").in_flight, 0);
    }

    #[test]
    fn metrics_tell_what_calls_came_to() {
        let mut story = Story::new(Algorithm::RoundRobin);
        let all = [far("a", 1)];
        for outcome in [
            Outcome::Success,
            Outcome::CallersFault,
            Outcome::ServersFault,
            Outcome::Unknown,
        ] {
            story.calls_with(1, &all, |_| (20, outcome));
        }
        let metrics = story.metrics("a");
        assert_eq!((metrics.calls, metrics.failures, metrics.in_flight), (3, 1, 0));
        assert!((metrics.success_rate().unwrap() - 2.0 / 3.0).abs() < 1e-9);
        assert_eq!(metrics.latency, Some(Duration::from_millis(20)));
    }

    #[test]
    fn algorithms_are_written_as_in_settings() {
        let written = ALL.map(|algorithm| serde_json::to_string(&algorithm).unwrap());
        let expected = ["round-robin", "least-connections", "random", "p2c-ewma"];
        assert_eq!(written, expected.map(|name| format!("\"{name}\"")));
    }

    proptest! {
        #[test]
        fn calls_in_flight_are_those_that_were_chosen_and_have_not_ended(
            algorithm in prop::sample::select(ALL.to_vec()),
            events in proptest::collection::vec((0_u8..8, any::<prop::sample::Index>(), 0_u64..20_000), 0..300),
        ) {
            let mut story = Story::new(algorithm);
            let all = [local("a"), local("b"), far("c", 1), far("d", 2), far("e", 3)];
            let mut under_way: Vec<Chosen<&str>> = Vec::new();
            // Chosen before their instance was forgotten.
            let mut forgotten = Vec::new();
            for (event, index, number) in events {
                match event {
                    0..=2 => {
                        let some: Vec<_> = (0..all.len()).filter(|i| number >> i & 1 == 1).collect();
                        let some: Vec<_> = some.into_iter().map(|i| all[i].clone()).collect();
                        if let Ok(chosen) = story.choose(&some) {
                            prop_assert!(some.iter().any(|candidate| candidate.key == *chosen.key()));
                            under_way.push(chosen);
                        } else {
                            let is_well = |candidate: &Candidate<&'static str>| {
                                story.metrics(candidate.key).retry_at.is_none()
                            };
                            prop_assert!(!some.iter().any(is_well), "somebody who is well is called");
                        }
                    }
                    3..=5 => {
                        let outcome = [Outcome::Success, Outcome::ServersFault, Outcome::Unknown][usize::from(event) - 3];
                        if !under_way.is_empty() {
                            let chosen = under_way.swap_remove(index.index(under_way.len()));
                            story.end(chosen, number, outcome);
                        }
                        if let Some(chosen) = forgotten.pop() {
                            story.end(chosen, number, outcome);
                        }
                    }
                    6 => story.now += Duration::from_millis(number),
                    _ => {
                        let gone = all[index.index(all.len())].key;
                        story.balancer.retain(|key| *key != gone);
                        forgotten.extend(under_way.extract_if(.., |chosen| *chosen.key() == gone));
                    }
                }
                for (key, metrics) in story.balancer.metrics() {
                    let expected = under_way.iter().filter(|chosen| chosen.key() == key).count();
                    prop_assert_eq!(metrics.in_flight as usize, expected);
                    prop_assert!(metrics.failures <= metrics.calls);
                }
            }
            for chosen in under_way.into_iter().chain(forgotten) {
                story.end(chosen, 1, Outcome::Success);
            }
            prop_assert!(story.balancer.metrics().all(|(_, metrics)| metrics.in_flight == 0));
        }
    }

    const ALL: [Algorithm; 4] = [
        Algorithm::RoundRobin,
        Algorithm::LeastConnections,
        Algorithm::Random,
        Algorithm::P2cEwma,
    ];

    fn far(key: &'static str, hops: u8) -> Candidate<&'static str> {
        let is_local = false;
        Candidate { key, is_local, hops }
    }

    fn local(key: &'static str) -> Candidate<&'static str> {
        let (is_local, hops) = (true, 0);
        Candidate { key, is_local, hops }
    }

    /// A balancer, and a time that goes on as calls are made.
    struct Story {
        balancer: Balancer<&'static str>,
        now: Instant,
        rng: StdRng,
    }

    impl Story {
        fn new(algorithm: Algorithm) -> Self {
            Self {
                balancer: Balancer::new(algorithm, BreakerConfig::default()),
                now: Instant::now(),
                rng: StdRng::seed_from_u64(1),
            }
        }

        fn choose(
            &mut self,
            candidates: &[Candidate<&'static str>],
        ) -> Result<Chosen<&'static str>, Refused> {
            self.balancer.choose(self.now, &mut self.rng, candidates)
        }

        fn end(&mut self, chosen: Chosen<&'static str>, millis: u64, outcome: Outcome) -> Option<Turned> {
            let took = Duration::from_millis(millis);
            self.balancer.on_end(chosen, self.now, took, outcome)
        }

        /// How many of so many calls, one after the other, went to whom; those that were refused to nobody.
        fn calls_with(
            &mut self,
            times: usize,
            candidates: &[Candidate<&'static str>],
            end: impl Fn(&'static str) -> (u64, Outcome),
        ) -> Vec<(&'static str, usize)> {
            let mut counts = BTreeMap::new();
            for _ in 0..times {
                if let Ok(chosen) = self.choose(candidates) {
                    let key = *chosen.key();
                    *counts.entry(key).or_insert(0) += 1;
                    let (millis, outcome) = end(key);
                    self.now += Duration::from_millis(1);
                    self.end(chosen, millis, outcome);
                }
            }
            counts.into_iter().collect()
        }

        fn calls(
            &mut self,
            times: usize,
            candidates: &[Candidate<&'static str>],
        ) -> Vec<(&'static str, usize)> {
            self.calls_with(times, candidates, |_| (20, Outcome::Success))
        }

        /// Opens its breaker.
        fn break_down(&mut self, instance: &Candidate<&'static str>) {
            let alone = [instance.clone()];
            let counts = self.calls_with(5, &alone, |_| (1, Outcome::ServersFault));
            assert_eq!(counts, [(instance.key, 5)]);
        }

        fn metrics(&self, key: &'static str) -> InstanceMetrics {
            let mut metrics = self.balancer.metrics();
            metrics.find(|(known, _)| **known == key).unwrap().1
        }
    }
}
