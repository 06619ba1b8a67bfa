//! Pairs that remove the most disagreement a second, by the measured bandwidths.
//!
//! Ours, from first principles; `docs/planning.md` has the reasons and what was measured. Two members that merge remove
//! half of the squared distance of their models. How far apart any two are follows from who met whom, so it is computed
//! ([`Mixing`]) and not measured. A round lasts as long as its slowest pair, so the planner tries every limit to a pair's
//! time, matches the members that are furthest apart within it, and takes the limit with the best
//! `removed^1.5 / time of the round`. A member whose every link is beyond the limit trains alone in that round: its turn
//! comes, with the other slow ones, when what the fast pairs have left to remove is worth less than their time.
//!
//! With a compression of `c` each coordinate is exchanged once in about `c` rounds. To a coordinate it is all the same
//! which of those rounds that was only if all of them have the same pairs, so pairs are planned for a *stage* of `c`
//! rounds: every coordinate then goes through the same sequence of matchings, one that fits together, instead of a
//! random part of a longer one.

use super::dense::hypercube_rank;
use super::links::Links;
use super::mixing::Mixing;
use super::seats::{Seats, edges};
use super::{IMPERCEPTIBLE, PlanInput, payload};
use crate::draws::Draws;
use crate::matching::{Graph, Matching};
use lapwing_base::{Bandwidth, ByteSize, Pair, Round, RoundKind, RoundRecord};
use std::cmp::Reverse;
use std::collections::BTreeSet;

/// The pairs of a sparse round, in any order.
pub(super) fn pairs(input: &PlanInput<'_>, round: Round) -> Vec<Pair> {
    let stage = Stage::of(round, input.job.spec.compression);
    let seats = seats(input, &stage);
    let times = Times::new(input, &seats);
    let wishes = Wishes::new(input, &stage, &seats, &times);
    let fresh = wishes.best();
    let held = last_pairs(input, &stage).map(|pairs| {
        let places = pairs.iter().filter_map(|&pair| seats.places(pair));
        let mut held = Matching::new(seats.len());
        held.extend_greedily(places);
        held
    });
    match held {
        Some(held) if wishes.score(&held) * WORTH_A_CHANGE >= wishes.score(&fresh) => {
            seats.pairs(held.pairs())
        }
        _ => seats.pairs(fresh.pairs()),
    }
}

/// The pairs of a stage stay unless others are better by this factor: less would follow the scatter of measurements, more
/// would bear a link that turned out far slower than was thought.
const WORTH_A_CHANGE: f64 = 2.0;

/// The rounds in which every coordinate is exchanged about once.
struct Stage {
    /// Its first round.
    first: u64,
    rounds: u64,
}

impl Stage {
    fn of(round: Round, compression: u32) -> Self {
        let rounds = u64::from(compression.max(1));
        let first = round.0.saturating_sub(1) / rounds * rounds + 1;
        Self { first, rounds }
    }
}

/// Up to this many members every pair is considered; beyond, each member with this many others, drawn anew for every
/// stage, so that the time of a plan grows with the members and not with their square.
const ALL_PAIRS_MAX: usize = 128;

/// Few members keep their seats for the whole job, which lets stages without disturbance walk a hypercube.
fn seats(input: &PlanInput<'_>, stage: &Stage) -> Seats {
    let mut order = input.members.to_vec();
    let seed = input.job.spec.seed;
    let drawn_for = if order.len() <= ALL_PAIRS_MAX {
        0
    } else {
        stage.first
    };
    Draws::new("lapwing 2026-11 adaptive seats", &[seed, drawn_for]).shuffle(&mut order);
    Seats::new(order)
}

/// The pairs of the last round, when it was in this stage, among the same members, and every pair merged.
fn last_pairs<'a>(input: &PlanInput<'a>, stage: &Stage) -> Option<&'a [Pair]> {
    let last = input.job.rounds.back()?;
    let plan = &last.plan;
    let is_of_stage = plan.kind == RoundKind::Sparse && plan.round.0 >= stage.first;
    let mut took_part: Vec<_> = plan.participants().collect();
    took_part.sort_unstable();
    let is_whole = last.outcome.as_ref()?.merged == plan.pairs && took_part == input.members;
    (is_of_stage && is_whole).then_some(&plan.pairs)
}

/// How long the exchanges of the next round would take, in microseconds.
struct Times {
    links: Links,
    payload: ByteSize,
    /// For each member the speed of its best link, and how many are known.
    best: Vec<(u32, usize)>,
    /// The best of all; 0 if none is known.
    fastest: u32,
    /// What a round takes beside its exchanges.
    other: u64,
}

/// The bytes of a model before the first round has shown them: of a million parameters, as int8. Taken for nothing,
/// the first round would be drawn without regard to links, and one that is a hundred times slower than the others costs
/// more than all later rounds.
const MODEL_ASSUMED: u64 = 1_000_000;

/// A member that has tried this many links knows about what its best one is.
const TRIED: usize = 4;

/// Longest time of an exchange that is told from longer ones: no deadline is near it.
const HOUR: u64 = 3_600_000_000;

/// What is not felt is not told apart: where links are fast, plans do not depend on the scatter of measurements.
const UNFELT: u64 = IMPERCEPTIBLE.as_micros() as u64;

impl Times {
    fn new(input: &PlanInput<'_>, seats: &Seats) -> Self {
        let links = Links::new(seats, input.bandwidths);
        let best = links.bests();
        let fastest = best.iter().map(|(speed, _)| *speed).max().unwrap_or_default();
        let payload = match payload(input.job) {
            ByteSize(0) => ByteSize(MODEL_ASSUMED / u64::from(input.job.spec.compression.max(1))),
            payload => payload,
        };
        let mut times = Self {
            links,
            payload,
            best,
            fastest,
            other: 0,
        };
        times.other = times.beside_exchanges(input, seats);
        times
    }

    /// What the last rounds took beyond their slowest exchange: training, commits, round trips. The median, since a
    /// round with a pair that failed lasts until its deadline.
    fn beside_exchanges(&self, input: &PlanInput<'_>, seats: &Seats) -> u64 {
        let of_round = |record: &RoundRecord| {
            let took = u64::from(record.outcome.as_ref()?.took_ms) * 1000;
            let places = record.plan.pairs.iter().filter_map(|&pair| seats.places(pair));
            let slowest = places.map(|(a, b)| self.of(a, b)).max().unwrap_or_default();
            Some(took.saturating_sub(slowest))
        };
        let sparse = input
            .job
            .rounds
            .iter()
            .rev()
            .filter(|record| record.plan.kind == RoundKind::Sparse);
        let mut rounds: Vec<u64> = sparse.filter_map(of_round).take(ROUNDS_TIMED).collect();
        rounds.sort_unstable();
        rounds
            .get(rounds.len() / 2)
            .copied()
            .unwrap_or_default()
            .max(UNFELT)
    }

    /// How long two members would exchange. A link that nobody has measured is taken for as fast as any: if it is not,
    /// trying it once tells. For faster, and its pair would be planned without the others, who cannot keep up.
    fn of(&self, a: usize, b: usize) -> u64 {
        let (best_a, known_a) = self.best[a];
        let (best_b, known_b) = self.best[b];
        let speed = match self.links.between(a, b) {
            Some(speed) => speed,
            None if known_a.min(known_b) >= TRIED => best_a.min(best_b),
            None if self.fastest > 0 => self.fastest,
            None => return UNFELT,
        };
        let exact = match Bandwidth::kbit(speed).time_for(self.payload) {
            Some(time) => u64::try_from(time.as_micros()).unwrap_or(HOUR).min(HOUR),
            None => HOUR,
        };
        if exact <= UNFELT {
            return UNFELT;
        }
        // Four steps an octave: finer differences are scatter, and each step is a limit to be tried.
        exact.next_multiple_of(1 << (exact.ilog2() - 2))
    }
}

/// Rounds whose times count: enough for a median that one failure does not move, few enough to follow a change.
const ROUNDS_TIMED: usize = 8;

/// The pairs that may be planned, and what each is worth.
struct Wishes<'a> {
    n: usize,
    times: &'a Times,
    mixing: Mixing,
    /// Planned in this stage and not merged.
    failed: BTreeSet<(usize, usize)>,
    /// The furthest apart first.
    ranked: Vec<Wish>,
}

#[derive(Clone, Copy)]
struct Wish {
    time: u64,
    a: usize,
    b: usize,
}

impl<'a> Wishes<'a> {
    fn new(input: &PlanInput<'_>, stage: &Stage, seats: &Seats, times: &'a Times) -> Self {
        let n = seats.len();
        let mut wishes = Self {
            n,
            times,
            mixing: replay(input, stage, seats),
            failed: failed(input, stage, seats),
            ranked: Vec::new(),
        };
        // Among the equally distant those who met longest ago come first, so that every link is tried; where seats are
        // drawn anew, chance does that.
        let met_at = |a, b| {
            let pair = seats.pair(a, b).filter(|_| n <= ALL_PAIRS_MAX);
            pair.and_then(|pair| input.job.last_matched.get(&pair))
                .copied()
                .unwrap_or_default()
        };
        let mut ranked: Vec<_> = candidates(n)
            .map(|(a, b)| {
                (
                    Reverse(wishes.distance(a, b)),
                    met_at(a, b),
                    hypercube_rank(a, b),
                    a,
                    b,
                )
            })
            .collect();
        ranked.sort_unstable();
        wishes.ranked = ranked
            .into_iter()
            .map(|(.., a, b)| Wish {
                time: times.of(a, b),
                a,
                b,
            })
            .collect();
        wishes
    }

    /// The squared distance of two models. Those that have just failed to merge meet when nothing else is left.
    fn distance(&self, a: usize, b: usize) -> u64 {
        if self.failed.contains(&(a.min(b), a.max(b))) {
            return 1;
        }
        self.mixing.distance(a, b)
    }

    /// Disagreement removed, to the power of 1.5, per second.
    ///
    /// Plain disagreement per second looks no further than this stage, and so takes too many rounds among the fast,
    /// which remove little each. Of the powers 1, 1.3 and 1.5 the last was within 1 % of the best in every case of
    /// `docs/planning.md`, and up to 8 % better than the first.
    fn score(&self, matching: &Matching) -> f64 {
        let mut removed = 0;
        let mut slowest = 0;
        for (a, b) in matching.pairs() {
            removed += self.distance(a, b);
            slowest = slowest.max(self.times.of(a, b));
        }
        let removed = removed as f64;
        removed * removed.sqrt() / (self.times.other + slowest) as f64
    }

    fn best(&self) -> Matching {
        let mut best = (Matching::new(self.n), 0.0, 0);
        for limit in self.limits() {
            let matching = self.within(limit);
            let score = self.score(&matching);
            if score > best.1 {
                best = (matching, score, limit);
            }
        }
        let (matching, score, limit) = best;
        // Matching the furthest apart first leaves some without a partner, or with one whom they have just failed to
        // reach, whom others could give one.
        let has_failed = |a: usize, b: usize| self.failed.contains(&(a.min(b), a.max(b)));
        let mut fuller = Matching::new(self.n);
        fuller.extend_greedily(matching.pairs().filter(|&(a, b)| !has_failed(a, b)));
        let mut graph = Graph::new(self.n);
        let allowed = || self.ranked.iter().filter(|wish| wish.time <= limit);
        for wish in allowed().filter(|wish| !has_failed(wish.a, wish.b)) {
            graph.connect(wish.a, wish.b);
        }
        fuller.augment(&graph);
        fuller.extend_greedily(allowed().map(|wish| (wish.a, wish.b)));
        if self.score(&fuller) > score {
            fuller
        } else {
            matching
        }
    }

    fn within(&self, limit: u64) -> Matching {
        let mut matching = Matching::new(self.n);
        let wishes = self.ranked.iter().filter(|wish| wish.time <= limit);
        matching.extend_greedily(wishes.map(|wish| (wish.a, wish.b)));
        matching
    }

    /// The limits to try, shortest first; the longest is always among them.
    fn limits(&self) -> impl Iterator<Item = u64> {
        let times: BTreeSet<u64> = self.ranked.iter().map(|wish| wish.time).collect();
        let step = times.len().div_ceil(LIMITS_MAX).max(1);
        let skipped = times.len().saturating_sub(1) % step;
        times.into_iter().skip(skipped).step_by(step)
    }
}

/// Limits that are tried: with four an octave, all of them up to 256 times the shortest.
const LIMITS_MAX: usize = 32;

/// The pairs that are considered.
fn candidates(n: usize) -> Box<dyn Iterator<Item = (usize, usize)>> {
    if n <= ALL_PAIRS_MAX {
        return Box::new(edges(n));
    }
    // Seats are drawn, so neighbours by seat are random members.
    let neighbours = move |a| (1..=ALL_PAIRS_MAX / 2).map(move |step| (a, (a + step) % n));
    Box::new((0..n).flat_map(neighbours))
}

/// Who has mixed with whom before this stage.
///
/// The log keeps when each pair met last. What a meeting that was followed by another one of the same pair did is lost,
/// and hardly matters: the later one made the two equal.
fn replay(input: &PlanInput<'_>, stage: &Stage, seats: &Seats) -> Mixing {
    let n = seats.len();
    let mut mixing = Mixing::new(n);
    let window = stage.rounds.saturating_mul(stages_replayed(n));
    let rounds = stage.first.saturating_sub(window)..stage.first;
    let mut meetings: Vec<(u64, Pair)> = input
        .job
        .last_matched
        .iter()
        .filter(|(_, last)| rounds.contains(&last.0))
        .map(|(&pair, last)| (last.0, pair))
        .collect();
    meetings.sort_unstable();
    let mut met_at = vec![0; n];
    let mut at = Stage {
        first: rounds.start,
        rounds: stage.rounds,
    };
    for (round, pair) in meetings {
        let Some((a, b)) = seats.places(pair) else {
            continue;
        };
        let of = Stage::of(Round(round), input.job.spec.compression);
        if of.first > at.first {
            mixing.drift();
            at = of;
        }
        // They were partners since either last had another one, or since the stage began.
        let before = met_at[a].max(met_at[b]).max(at.first.saturating_sub(1));
        mixing.merge(a, b, round.saturating_sub(before), stage.rounds);
        (met_at[a], met_at[b]) = (round, round);
    }
    mixing.drift();
    mixing
}

/// How far back meetings matter. Random pairs mix all in about twice the logarithm; twice that, and some, is left to the
/// stages in which only the fast ones meet.
fn stages_replayed(n: usize) -> u64 {
    8 + 4 * u64::from(n.next_power_of_two().trailing_zeros())
}

/// The places of pairs that were planned in this stage and did not merge, the smaller place first.
fn failed(input: &PlanInput<'_>, stage: &Stage, seats: &Seats) -> BTreeSet<(usize, usize)> {
    let of_stage = |record: &&RoundRecord| record.plan.round.0 >= stage.first;
    let mut failed = BTreeSet::new();
    for record in input.job.rounds.iter().rev().take_while(of_stage) {
        let Some(outcome) = &record.outcome else { continue };
        let unmerged = record
            .plan
            .pairs
            .iter()
            .filter(|pair| outcome.merged.binary_search(pair).is_err());
        failed.extend(
            unmerged
                .filter_map(|&pair| seats.places(pair))
                .map(|(a, b)| (a.min(b), a.max(b))),
        );
    }
    failed
}

#[cfg(test)]
mod tests {
    use super::super::Knobs;
    use super::super::fixture::{advance, advance_merged, advance_sent, job, pair, plan_with, set};
    use super::*;
    use lapwing_base::{Bandwidths, JobView, NodeId, RoundPlan};

    /// 8 members; each link of a slow one does 500 kbit/s, each other one 100 Mbit/s.
    fn links(slow: &[u64]) -> Bandwidths {
        let mut bandwidths = Bandwidths::default();
        for (a, b) in edges(8).map(|(a, b)| (a as u64 + 1, b as u64 + 1)) {
            let kbit = if slow.contains(&a) || slow.contains(&b) {
                500
            } else {
                100_000
            };
            set(&mut bandwidths, a, b, kbit);
        }
        bandwidths
    }

    fn plan(job: &JobView, members: usize, bandwidths: &Bandwidths) -> RoundPlan {
        plan_with(job, members, bandwidths, Knobs::default())
    }

    /// A tenth of a second on the fast links above, and 20 s on the slow ones.
    const PAYLOAD: ByteSize = ByteSize(1_250_000);

    #[test]
    fn the_pairs_of_a_stage_stay_and_the_next_stage_has_others() {
        let mut job = job(1, 1000);
        let mut plans = Vec::new();
        for _ in 0..50 {
            let plan = plan(&job, 8, &links(&[]));
            plans.push(plan.pairs.clone());
            advance_sent(&mut job, plan, PAYLOAD);
        }
        assert!(plans[..25].iter().all(|pairs| *pairs == plans[0]));
        assert!(plans[25..].iter().all(|pairs| *pairs == plans[25]));
        assert!(plans[0].iter().all(|pair| !plans[25].contains(pair)));
    }

    #[test]
    fn alike_links_walk_a_hypercube() {
        let mut job = job(1, 1000);
        job.spec.compression = 1;
        let mut models: Vec<f64> = (0..8).map(f64::from).collect();
        for _ in 0..3 {
            let plan = plan(&job, 8, &links(&[]));
            for [a, b] in plan
                .pairs
                .iter()
                .map(|pair| pair.nodes().map(|node| node.0 as usize - 1))
            {
                let mean = (models[a] + models[b]) / 2.0;
                (models[a], models[b]) = (mean, mean);
            }
            advance_sent(&mut job, plan, PAYLOAD);
        }
        assert_eq!(models, [3.5; 8]);
    }

    #[test]
    fn everybody_meets_everybody_over_links_that_are_alike_or_were_never_measured() {
        for bandwidths in [Bandwidths::default(), links(&[])] {
            let mut job = job(1, 1000);
            job.spec.compression = 1;
            let mut met = BTreeSet::new();
            for _ in 0..60 {
                let plan = plan(&job, 8, &bandwidths);
                assert_eq!(plan.pairs.len(), 4);
                met.extend(plan.pairs.iter().copied());
                advance_sent(&mut job, plan, PAYLOAD);
            }
            assert_eq!(met.len(), 28);
        }
    }

    #[test]
    fn slow_members_take_their_turn_together_while_the_fast_ones_meet_in_every_round() {
        let mut job = job(1, 1000);
        job.spec.compression = 1;
        let (mut slow_rounds, mut turns) = (0, [0_u32; 9]);
        for _ in 0..200 {
            let plan = plan(&job, 8, &links(&[1, 2]));
            assert!(plan.alone.iter().all(|node| node.0 <= 2));
            let taking_turn = [1, 2]
                .into_iter()
                .filter(|node| plan.partner_of(NodeId(*node)).is_some());
            let taking_turn: Vec<u64> = taking_turn.collect();
            slow_rounds += u32::from(!taking_turn.is_empty());
            taking_turn.iter().for_each(|&node| turns[node as usize] += 1);
            advance_sent(&mut job, plan, PAYLOAD);
        }
        assert!((10..100).contains(&slow_rounds), "{slow_rounds}");
        assert_eq!(turns[1] + turns[2], 2 * slow_rounds, "{turns:?}");
    }

    #[test]
    fn a_pair_that_failed_gets_other_partners_at_once() {
        let mut job = job(1, 1000);
        let first = plan(&job, 8, &links(&[]));
        let failed = first.pairs[0];
        let merged = first.pairs[1..].to_vec();
        advance_merged(&mut job, first, merged);
        let second = plan(&job, 8, &links(&[]));
        assert!(!second.pairs.contains(&failed));
        assert_eq!(second.pairs.len(), 4);
    }

    #[test]
    fn two_members_whose_exchange_failed_try_again() {
        let mut job = job(1, 1000);
        for _ in 0..3 {
            let plan = plan(&job, 2, &Bandwidths::default());
            assert_eq!(plan.pairs, [pair(1, 2)]);
            advance_merged(&mut job, plan, Vec::new());
        }
    }

    #[test]
    fn a_member_that_comes_and_one_that_vanishes_are_in_the_next_plan() {
        let mut job = job(1, 1000);
        let first = plan(&job, 7, &links(&[]));
        advance(&mut job, first);
        let second = plan(&job, 8, &links(&[]));
        assert!(second.partner_of(NodeId(8)).is_some());
        advance(&mut job, second);
        let third = plan(&job, 6, &links(&[]));
        assert_eq!((third.pairs.len(), third.alone.len()), (3, 0));
    }

    #[test]
    fn a_link_that_turns_slow_ends_the_pairs_of_its_stage() {
        let mut job = job(1, 1000);
        for _ in 0..3 {
            let plan = plan(&job, 8, &links(&[]));
            advance_sent(&mut job, plan, PAYLOAD);
        }
        let throttled = plan(&job, 8, &links(&[1]));
        assert_eq!(throttled.partner_of(NodeId(1)), None);
        assert_eq!(throttled.pairs.len(), 3);
    }

    #[test]
    fn a_pair_whose_link_was_never_measured_is_not_planned_without_the_others() {
        let mut bandwidths = Bandwidths::default();
        for (a, b) in edges(4).filter(|&pair| pair != (1, 3)) {
            set(&mut bandwidths, a as u64 + 1, b as u64 + 1, 20_000);
        }
        let mut job = job(1, 1000);
        job.spec.compression = 1;
        for _ in 0..20 {
            let plan = plan(&job, 4, &bandwidths);
            assert_eq!(plan.pairs.len(), 2);
            advance_sent(&mut job, plan, ByteSize(41_000_000));
        }
    }

    #[test]
    fn what_is_not_felt_does_not_decide() {
        let mut scattered = Bandwidths::default();
        for (a, b) in edges(8) {
            set(
                &mut scattered,
                a as u64 + 1,
                b as u64 + 1,
                100_000 * (1 + 7 * (a + b) as u32),
            );
        }
        let (mut here, mut there) = (job(1, 1000), job(1, 1000));
        for _ in 0..60 {
            let (one, other) = (
                plan(&here, 8, &scattered),
                plan(&there, 8, &Bandwidths::default()),
            );
            assert_eq!(one.pairs, other.pairs);
            advance_sent(&mut here, one, ByteSize(1000));
            advance_sent(&mut there, other, ByteSize(1000));
        }
    }

    #[test]
    fn a_thousand_members_all_have_a_partner() {
        let mut job = job(1, 1000);
        job.spec.compression = 1;
        for _ in 0..3 {
            let plan = plan(&job, 1000, &Bandwidths::default());
            assert_eq!(plan.pairs.len(), 500);
            advance(&mut job, plan);
        }
    }
}
