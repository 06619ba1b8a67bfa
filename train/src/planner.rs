//! Plans a round: who exchanges with whom, how much, and for how long.
//!
//! Pure, and a function of the committed state alone, so that any node can check a plan and a new leader plans
//! what the old one would have planned. It decides neither when a round is planned nor how it ends; that is
//! `coordinator`. How partners are chosen, the job says: each way is a file of its own below.

mod adaptive;
mod dense;
#[cfg(test)]
mod fixture;
mod groups;
mod links;
mod mixing;
mod seats;
mod thresholds;

use self::groups::Served;
use self::seats::Seats;
use crate::draws::Draws;
use crate::mask::round_seed;
use crate::matching::Matching;
use lapwing_base::{
    Bandwidths, ByteSize, JobView, Meeting, NodeId, Pair, Planner, Round, RoundKind, RoundPlan,
};
use std::time::Duration;

pub use self::thresholds::{IMPERCEPTIBLE, Knobs, Threshold};

/// What a plan is made of: committed state, and the leader's settings.
#[derive(Clone, Copy, Debug)]
pub struct PlanInput<'a> {
    /// The job, its last round closed.
    pub job: &'a JobView,
    /// The active members, sorted.
    pub members: &'a [NodeId],
    /// What is known of the links between them.
    pub bandwidths: &'a Bandwidths,
    /// How long the round may take.
    pub deadline: Duration,
    /// What [`Planner::Thresholds`] goes by.
    pub knobs: Knobs,
}

/// Whether the round after the last planned one is one of the dense ones that end a job.
pub fn is_dense_next(job: &JobView) -> bool {
    let sparse = u64::from(job.spec.rounds.saturating_sub(job.spec.final_dense_rounds));
    has_reached_stop(job) || job.round().next().0 > sparse
}

fn has_reached_stop(job: &JobView) -> bool {
    job.spec.stop.is_some_and(|stop| {
        job.evaluations
            .iter()
            .any(|evaluation| evaluation.averaged_accuracy >= stop)
    })
}

/// Plans the round after the job's last one.
///
/// The pairs of a sparse round are chosen as the job's planner says. Dense rounds, the job's last ones, mix as fast as
/// pairs can: with a power of two of members, everybody holds the mean of all after its logarithm of rounds.
pub fn plan_round(input: &PlanInput<'_>) -> RoundPlan {
    let PlanInput { job, members, .. } = *input;
    let spec = &job.spec;
    let round = job.round().next();
    let is_dense = is_dense_next(job);
    let (kind, mut pairs, alone) = if is_dense {
        (RoundKind::Dense, dense_pairs(input), None)
    } else {
        match spec.algorithm.meeting() {
            Meeting::Pairs => (RoundKind::Sparse, sparse_pairs(input, round), None),
            Meeting::Ring => (RoundKind::Sparse, groups::ring(input), None),
            Meeting::All => (RoundKind::Reduced, groups::ring(input), None),
            Meeting::Nobody => (RoundKind::Sparse, Vec::new(), None),
            Meeting::Server => match groups::served(input, round) {
                Some(Served {
                    server,
                    pairs,
                    trains,
                }) => {
                    let alone = trains.then_some(server).into_iter().collect();
                    (RoundKind::Served { server }, pairs, Some(alone))
                }
                None => (RoundKind::Sparse, Vec::new(), None),
            },
        }
    };
    pairs.sort_unstable();
    let alone = alone.unwrap_or_else(|| unpaired(members, &pairs));
    RoundPlan {
        job: job.id,
        round,
        kind,
        seed: round_seed(spec.seed, round),
        pairs,
        alone,
        compression: if is_dense { 1 } else { spec.compression },
        local_steps: if is_dense { 0 } else { spec.local_steps },
        lr_micro: learning_rate(job, round),
        deadline_ms: u32::try_from(input.deadline.as_millis()).unwrap_or(u32::MAX),
    }
}

/// The members that no pair has, sorted.
fn unpaired(members: &[NodeId], pairs: &[Pair]) -> Vec<NodeId> {
    let mut paired: Vec<NodeId> = pairs.iter().flat_map(|pair| pair.nodes()).collect();
    paired.sort_unstable();
    let mut alone = members.to_vec();
    alone.retain(|node| paired.binary_search(node).is_err());
    alone.sort_unstable();
    alone
}

/// The learning rate of a round, in millionths: on a straight line from the job's to what is left of it in its last
/// round that trains.
fn learning_rate(job: &JobView, round: Round) -> u32 {
    let spec = &job.spec;
    let trained = u64::from(spec.rounds.saturating_sub(spec.final_dense_rounds));
    let (passed, all) = (round.0.saturating_sub(1), trained.saturating_sub(1));
    if all == 0 || passed > all {
        return spec.lr_micro;
    }
    let lost = u64::from(1_000_000_u32.saturating_sub(spec.tuning.lr_final.0));
    // At most 10^6 rounds, a share of 10^6 and a rate of 10^7: within 2^64.
    let fallen = u64::from(spec.lr_micro) * lost / 1_000_000 * passed / all;
    u32::try_from(u64::from(spec.lr_micro) - fallen).unwrap_or(spec.lr_micro)
}

/// Disjoint pairs of members, in any order.
fn sparse_pairs(input: &PlanInput<'_>, round: Round) -> Vec<Pair> {
    let seed = input.job.spec.seed;
    match input.job.spec.planner {
        Planner::Adaptive => adaptive::pairs(input, round),
        Planner::Thresholds => {
            let seats = seats_in_turn(input, &[seed, round.0]);
            seats.pairs(thresholds::matching(input, round, &seats).pairs())
        }
        Planner::Random => {
            let seats = seats_in_turn(input, &[seed, round.0]);
            seats.pairs((0..seats.len() / 2).map(|pair| (2 * pair, 2 * pair + 1)))
        }
        Planner::Exponential => {
            // The same seats in all rounds: the pattern spans several. It goes on when every coordinate was exchanged
            // once, so that each coordinate goes through all of it.
            let step = round.0.saturating_sub(1) / u64::from(input.job.spec.compression.max(1));
            let seats = seats_in_turn(input, &[seed]);
            seats.pairs(exponential(seats.len(), step).pairs())
        }
    }
}

fn dense_pairs(input: &PlanInput<'_>) -> Vec<Pair> {
    let mut order = input.members.to_vec();
    // The same order in all dense rounds: their pattern spans several. Nobody trains, so that who sits out need not
    // take turns.
    Draws::new("lapwing 2026-11 dense rounds", &[input.job.spec.seed]).shuffle(&mut order);
    let seats = Seats::new(order);
    seats.pairs(dense::matching(input, &seats).pairs())
}

/// Seats drawn by these numbers. With an odd number of members one has none: the one that was alone longest ago, or
/// never, and among several the first in the drawn order.
fn seats_in_turn(input: &PlanInput<'_>, numbers: &[u64]) -> Seats {
    let mut order = input.members.to_vec();
    Draws::new("lapwing 2026-11 matching", numbers).shuffle(&mut order);
    if !order.len().is_multiple_of(2) {
        let alone_at = |node: &NodeId| input.job.last_alone.get(node).copied().unwrap_or_default();
        let longest_ago = (0..order.len()).min_by_key(|&place| alone_at(&order[place]));
        longest_ago.map(|place| order.remove(place));
    }
    Seats::new(order)
}

/// The one-peer exponential graph of Ying et al., "Exponential Graph is Provably Efficient for Decentralized Deep
/// Training" (NeurIPS 2021, arXiv 2110.13363), for exchanges that go both ways: the distance to the partner doubles
/// with every step. Whoever has no partner at that distance gets the next one who has none.
fn exponential(n: usize, step: u64) -> Matching {
    let distances = u64::from(n.next_power_of_two().trailing_zeros().max(1));
    let distance = 1_usize << (step % distances);
    let mut matching = Matching::new(n);
    matching.extend_greedily((0..n).map(|a| (a, a ^ distance)).filter(|&(_, b)| b < n));
    let left_over: Vec<usize> = matching.left_over().collect();
    matching.extend_greedily(left_over.chunks_exact(2).map(|two| (two[0], two[1])));
    matching
}

/// The largest payload that a member sent in the newest sparse round that is kept; zero before the first.
fn payload(job: &JobView) -> ByteSize {
    let sparse = job
        .rounds
        .iter()
        .rev()
        .filter(|record| record.plan.kind == RoundKind::Sparse);
    let mut payloads = sparse.filter_map(|record| {
        let nodes = &record.outcome.as_ref()?.nodes;
        nodes.iter().map(|done| done.sent).max().filter(|sent| sent.0 > 0)
    });
    payloads.next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::fixture::{advance, advance_merged, advance_sent, job, plan_with, set};
    use super::*;
    use lapwing_base::{Evaluation, Ppm};
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    #[test]
    fn with_an_odd_number_everybody_sits_out_in_turn() {
        for planner in [
            Planner::Adaptive,
            Planner::Thresholds,
            Planner::Random,
            Planner::Exponential,
        ] {
            let mut job = job(7, 1000);
            // Partners of the adaptive planner stay for as many rounds as the compression says.
            (job.spec.planner, job.spec.compression) = (planner, 1);
            let mut sat_out = [0_u32; 8];
            for _ in 0..70 {
                let plan = plan_with(&job, 7, &Bandwidths::default(), Knobs::default());
                assert_eq!((plan.pairs.len(), plan.alone.len()), (3, 1));
                sat_out[plan.alone[0].0 as usize] += 1;
                advance(&mut job, plan);
            }
            let turns = if planner == Planner::Adaptive {
                7..=13
            } else {
                10..=10
            };
            assert!(
                sat_out[1..].iter().all(|times| turns.contains(times)),
                "{planner}: {sat_out:?}"
            );
        }
    }

    #[test]
    fn partners_in_the_exponential_graph_bring_a_power_of_two_to_the_mean() {
        let mut job = job(3, 1000);
        (job.spec.planner, job.spec.compression) = (Planner::Exponential, 1);
        for _ in 0..2 {
            let mut models: Vec<f64> = (0..8).map(f64::from).collect();
            for _ in 0..3 {
                let plan = plan_with(&job, 8, &Bandwidths::default(), Knobs::default());
                for [a, b] in plan
                    .pairs
                    .iter()
                    .map(|pair| pair.nodes().map(|node| node.0 as usize - 1))
                {
                    let mean = (models[a] + models[b]) / 2.0;
                    (models[a], models[b]) = (mean, mean);
                }
                advance(&mut job, plan);
            }
            assert_eq!(models, [3.5; 8]);
        }
    }

    #[test]
    fn random_partners_are_others_in_every_round_and_do_not_follow_the_links() {
        let mut job = job(3, 1000);
        job.spec.planner = Planner::Random;
        let mut bandwidths = Bandwidths::default();
        set(&mut bandwidths, 1, 2, 1_000_000);
        let mut met = BTreeMap::<Pair, u32>::new();
        for _ in 0..300 {
            let plan = plan_with(&job, 4, &bandwidths, Knobs::default());
            plan.pairs
                .iter()
                .for_each(|pair| *met.entry(*pair).or_default() += 1);
            advance(&mut job, plan);
        }
        assert!(
            met.len() == 6 && met.values().all(|times| (60..140).contains(times)),
            "{met:?}"
        );
    }

    #[test]
    fn one_member_trains_alone_and_none_makes_an_empty_plan() {
        let job = job(1, 10);
        let plan = plan_with(&job, 1, &Bandwidths::default(), Knobs::default());
        assert_eq!((plan.pairs.len(), plan.alone), (0, vec![NodeId(1)]));
        let plan = plan_with(&job, 0, &Bandwidths::default(), Knobs::default());
        assert_eq!(plan.participants().count(), 0);
    }

    proptest! {
        #[test]
        fn a_plan_pairs_members_only_and_each_at_most_once(
            seed: u64, members in prop::collection::btree_set(1_u64..200, 0..40),
            links in prop::collection::vec((1_u64..200, 1_u64..200, 0_u32..1_000_000), 0..200),
            met in prop::collection::vec((1_u64..200, 1_u64..200), 0..60), dense: bool,
            planner in prop::sample::select(vec![
                Planner::Adaptive, Planner::Thresholds, Planner::Random, Planner::Exponential,
            ]),
        ) {
            let mut job = job(seed, 100);
            job.spec.planner = planner;
            job.spec.final_dense_rounds = if dense { 100 } else { 0 };
            for (a, b) in met {
                if let Some(pair) = Pair::new(NodeId(a), NodeId(b)) {
                    job.last_matched.insert(pair, Round(0));
                }
            }
            let mut bandwidths = Bandwidths::default();
            for (from, to, kbit) in links {
                set(&mut bandwidths, from, to, kbit);
            }
            let members: Vec<NodeId> = members.into_iter().map(NodeId).collect();
            let input = PlanInput {
                job: &job, members: &members, bandwidths: &bandwidths,
                deadline: Duration::from_secs(30), knobs: Knobs::default(),
            };
            let plan = plan_round(&input);
            let mut taking_part: Vec<NodeId> = plan.participants().collect();
            taking_part.sort_unstable();
            prop_assert_eq!(&taking_part, &members);
            if dense || planner != Planner::Adaptive {
                prop_assert_eq!(plan.alone.len(), members.len() % 2);
            }
            prop_assert!(plan.pairs.is_sorted() && plan.alone.is_sorted());
            prop_assert_eq!(plan_round(&input), plan);
        }
    }

    #[test]
    fn dense_rounds_bring_a_power_of_two_to_the_exact_mean_in_its_logarithm() {
        for (n, rounds) in [(2, 1), (4, 2), (8, 3), (16, 4), (64, 6)] {
            assert!(spread_after_dense_rounds(n, rounds, None) < 1e-12, "{n} members");
        }
    }

    #[test]
    fn five_dense_rounds_bring_any_number_close_to_the_mean() {
        for n in [3_usize, 5, 6, 7, 10, 12, 14, 31] {
            let spread = spread_after_dense_rounds(n, 5, None);
            // Independent random pairs halve the variance five times: 0.031.
            assert!(spread < 0.01, "{n} members: {spread}");
        }
    }

    #[test]
    fn dense_rounds_go_around_links_that_are_far_slower_than_is_needed() {
        let mut job = job(5, 10);
        let mut bandwidths = Bandwidths::default();
        for (a, b) in seats::edges(8) {
            // Everybody has one fast link, to the next, and slower ones, half as fast or a tenth.
            let kbit = if b == a + 1 {
                1000
            } else if (a + b) % 3 > 0 {
                500
            } else {
                100
            };
            set(&mut bandwidths, a as u64 + 1, b as u64 + 1, kbit);
        }
        for _ in 0..10 {
            let plan = plan_with(&job, 8, &bandwidths, Knobs::default());
            if plan.kind == RoundKind::Dense {
                let speeds = plan.pairs.iter().map(|pair| pair.nodes());
                let slowest = speeds.filter_map(|[a, b]| bandwidths.between(a, b)).min();
                assert!(
                    slowest >= Some(lapwing_base::Bandwidth::kbit(500)),
                    "{:?}",
                    plan.pairs
                );
                assert_eq!(plan.pairs.len(), 4);
            }
            job.spec.final_dense_rounds = 5;
            advance_sent(&mut job, plan, ByteSize(100_000));
        }
    }

    #[test]
    fn a_dense_exchange_that_failed_is_made_up_for() {
        let spread = spread_after_dense_rounds(8, 5, Some(2));
        assert!(spread < 0.01, "{spread}");
    }

    #[test]
    fn large_clusters_hardly_meet_twice_in_the_dense_rounds() {
        let mut job = job(1, 4);
        job.spec.final_dense_rounds = 4;
        let mut met = BTreeSet::new();
        for _ in 0..4 {
            let plan = plan_with(&job, 300, &Bandwidths::default(), Knobs::default());
            for pair in &plan.pairs {
                met.insert(*pair);
            }
            advance(&mut job, plan);
        }
        // Whom the others leave over in a round has no choice.
        assert!(met.len() > 590, "{}", met.len());
    }

    #[test]
    fn the_last_rounds_are_dense_and_do_not_train() {
        let mut job = job(1, 10);
        job.spec.final_dense_rounds = 3;
        let mut kinds = Vec::new();
        while job.round() < job.last_round() {
            let plan = plan_with(&job, 4, &Bandwidths::default(), Knobs::default());
            assert_eq!(plan.seed, round_seed(1, plan.round));
            let expected = if plan.kind == RoundKind::Dense {
                (1, 0)
            } else {
                (25, 5)
            };
            assert_eq!((plan.compression, plan.local_steps), expected);
            kinds.push(plan.kind);
            advance(&mut job, plan);
        }
        assert_eq!(kinds[..7], [RoundKind::Sparse; 7]);
        assert_eq!(kinds[7..], [RoundKind::Dense; 3]);
    }

    #[test]
    fn an_accuracy_that_was_asked_for_ends_the_sparse_rounds_early() {
        let mut job = job(1, 100);
        job.spec.final_dense_rounds = 3;
        job.spec.stop = Some(Ppm(900_000));
        for _ in 0..10 {
            let plan = plan_with(&job, 4, &Bandwidths::default(), Knobs::default());
            advance(&mut job, plan);
        }
        assert_eq!(job.last_round(), Round(100));
        job.evaluations.push_back(Evaluation {
            round: Round(10),
            averaged_accuracy: Ppm(910_000),
            local_accuracies: Vec::new(),
            transferred: ByteSize(0),
        });
        for _ in 0..3 {
            let plan = plan_with(&job, 4, &Bandwidths::default(), Knobs::default());
            assert_eq!(plan.kind, RoundKind::Dense);
            advance(&mut job, plan);
        }
        assert_eq!((job.round(), job.last_round()), (Round(13), Round(13)));
    }

    /// The variance between members that is left after dense rounds, of 1 at their start; in round `fails_in` the
    /// first pair does not merge.
    fn spread_after_dense_rounds(n: usize, rounds: u32, fails_in: Option<u64>) -> f64 {
        let mut job = job(5, rounds);
        job.spec.final_dense_rounds = rounds;
        let mut models: Vec<Vec<f64>> = (0..n)
            .map(|own| (0..n).map(|other| f64::from(u8::from(own == other))).collect())
            .collect();
        for _ in 0..rounds {
            let plan = plan_with(&job, n, &Bandwidths::default(), Knobs::default());
            let skipped = usize::from(fails_in == Some(plan.round.0));
            for [a, b] in plan.pairs.iter().skip(skipped).map(|pair| pair.nodes()) {
                let (a, b) = (a.0 as usize - 1, b.0 as usize - 1);
                let mean: Vec<f64> = models[a]
                    .iter()
                    .zip(&models[b])
                    .map(|(x, y)| (x + y) / 2.0)
                    .collect();
                models[a].clone_from(&mean);
                models[b] = mean;
            }
            let merged = plan.pairs[skipped..].to_vec();
            advance_merged(&mut job, plan, merged);
        }
        let mean = 1.0 / n as f64;
        let spread: f64 = models.iter().flatten().map(|share| (share - mean).powi(2)).sum();
        spread / (n as f64 - 1.0)
    }
}
