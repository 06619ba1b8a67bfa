//! Averages random vectors over a network in virtual time, planned round by round as a leader would plan.
//!
//! No model, no training and no socket: what is left is what a planner is for. Shared by the tables that the command
//! line and the example `planners` print, and by the tests that hold them.

use super::network::Network;
use crate::jobfile;
use crate::mask::Mask;
use crate::planner::{Knobs, PlanInput, Threshold, plan_round};
use lapwing_base::{
    Algorithm, Bandwidth, Bandwidths, ByteSize, JobId, JobSpec, JobView, LinkSpeed, NodeId, NodeOutcome,
    Planner, RoundOutcome, RoundPlan,
};
use std::time::Duration;

/// How partners are chosen.
#[derive(Clone, Copy, Debug)]
pub struct Choice {
    /// The job's planner.
    pub planner: Planner,
    /// What `Planner::Thresholds` goes by.
    pub knobs: Knobs,
    /// The job's seed.
    pub seed: u64,
    /// The job's compression.
    pub compression: u32,
    /// Whether nothing is known of the links at first: each is measured when its pair meets.
    pub learns: bool,
}

/// What came out.
#[derive(Clone, Copy, Debug)]
pub struct Averaged {
    /// Virtual seconds until the disagreement was a hundredth of what it was; infinite when it never was.
    pub seconds: f64,
    /// Rounds until then.
    pub rounds: u64,
}

/// Parameters of the MNIST-CNN of the papers; as many bytes travel, as int8, in a round without a mask.
pub const MODEL: u64 = 1_663_370;

/// What a round takes beside its exchange: a commit and a few round trips, and no training.
pub const LATENCY: Duration = Duration::from_millis(50);

/// Coordinates that are averaged: 20 in a round of the sparsest mask that is measured here, more in the others.
const COORDINATES: usize = 2_000;

/// A run that is not done by then goes nowhere.
const ROUNDS_MAX: u64 = 5_000;

/// Averages until the disagreement is a hundredth of what it was.
pub fn average(network: &Network, choice: &Choice) -> Averaged {
    let members: Vec<NodeId> = (1..=network.nodes).map(NodeId).collect();
    let mut draw = super::network::draws(choice.seed ^ 0x5eed);
    // In [-1, 1): which distribution does not matter, only that members start independent.
    let mut number = || (draw() >> 11) as f64 / (1_u64 << 52) as f64 - 1.0;
    let mut vectors: Vec<Vec<f64>> = members
        .iter()
        .map(|_| (0..COORDINATES).map(|_| number()).collect())
        .collect();
    let means =
        (0..COORDINATES).map(|k| vectors.iter().map(|vector| vector[k]).sum::<f64>() / members.len() as f64);
    let means: Vec<f64> = means.collect();
    let squares = |vector: &Vec<f64>| {
        vector
            .iter()
            .zip(&means)
            .map(|(x, mean)| (x - mean).powi(2))
            .sum::<f64>()
    };
    let start: f64 = vectors.iter().map(squares).sum();
    let mut job = job(choice);
    let (mut left, mut seconds) = (start, 0.0);
    let mut known = if choice.learns {
        Bandwidths::default()
    } else {
        network.bandwidths.clone()
    };
    while left > start / 100.0 {
        if job.round().0 >= ROUNDS_MAX {
            return Averaged {
                seconds: f64::INFINITY,
                rounds: ROUNDS_MAX,
            };
        }
        let plan = plan(&job, &members, &known, choice.knobs);
        let mask: Vec<usize> = Mask::of(choice.seed, job.spec.algorithm, &plan, COORDINATES)
            .coordinates()
            .map(|index| index as usize)
            .collect();
        for [a, b] in plan
            .pairs
            .iter()
            .map(|pair| pair.nodes().map(|node| node.0 as usize - 1))
        {
            for (from, to) in [(a, b), (b, a)].map(|(from, to)| (members[from], members[to])) {
                let measured = network.bandwidths.get(from, to);
                measured
                    .into_iter()
                    .for_each(|speed| known.set(LinkSpeed { from, to, speed }));
            }
            for &k in &mask {
                let (x, y) = (vectors[a][k], vectors[b][k]);
                // Two that merge remove half of their squared distance.
                left -= (x - y).powi(2) / 2.0;
                (vectors[a][k], vectors[b][k]) = ((x + y) / 2.0, (x + y) / 2.0);
            }
        }
        let payload = ByteSize(MODEL / u64::from(choice.compression));
        let exchange = bottleneck(&plan, &network.bandwidths).and_then(|speed| speed.time_for(payload));
        let took = LATENCY + exchange.unwrap_or_default();
        seconds += took.as_secs_f64();
        advance(&mut job, plan, payload, took);
    }
    Averaged {
        seconds,
        rounds: job.round().0,
    }
}

/// Mean over a hundred rounds of the slowest exchange of each, in Mbit/s: the papers' figure for a planner.
///
/// The rounds before, as many as the window of `Planner::Thresholds`, only make the members meet.
pub fn mean_bottleneck(network: &Network, choice: &Choice) -> f64 {
    let members: Vec<NodeId> = (1..=network.nodes).map(NodeId).collect();
    let first = u64::from(choice.knobs.recent_rounds.unwrap_or_default()) + 1;
    let mut job = job(choice);
    let mut sum = 0.0;
    while job.round().0 + 1 < first + BOTTLENECK_ROUNDS {
        let plan = plan(&job, &members, &network.bandwidths, choice.knobs);
        if plan.round.0 >= first {
            sum += bottleneck(&plan, &network.bandwidths).map_or(0.0, |speed| speed.as_mbit_s());
        }
        advance(&mut job, plan, ByteSize(0), LATENCY);
    }
    sum / BOTTLENECK_ROUNDS as f64
}

/// Rounds of one run. How many the papers took they do not say; over more, runs scatter less than the figures differ.
const BOTTLENECK_ROUNDS: u64 = 100;

/// Mean and standard deviation of at least two runs.
pub fn spread(runs: &[f64]) -> (f64, f64) {
    let mean = runs.iter().sum::<f64>() / runs.len() as f64;
    let variance = runs.iter().map(|run| (run - mean).powi(2)).sum::<f64>() / (runs.len() - 1) as f64;
    (mean, variance.sqrt())
}

/// SAPS as published: links of at least so many kbit/s, and the rounds within which meetings must connect everybody.
pub fn by_thresholds(kbit_s: u32, window: u32, seed: u64, compression: u32) -> Choice {
    let knobs = Knobs {
        threshold: Threshold::AtLeast(Bandwidth::kbit(kbit_s)),
        recent_rounds: Some(window),
    };
    Choice {
        planner: Planner::Thresholds,
        knobs,
        seed,
        compression,
        learns: false,
    }
}

/// The run with the median time over seeds 1 to `seeds`; at least one.
pub fn median(network: &Network, seeds: u64, choice: impl Fn(u64) -> Choice) -> Averaged {
    let mut runs: Vec<_> = (1..=seeds).map(|seed| average(network, &choice(seed))).collect();
    runs.sort_by(|one, other| one.seconds.total_cmp(&other.seconds));
    runs[runs.len() / 2]
}

/// The slowest exchange of a plan; `None` where nobody meets over a known link.
pub fn bottleneck(plan: &RoundPlan, bandwidths: &Bandwidths) -> Option<Bandwidth> {
    let speeds = plan.pairs.iter().map(|pair| pair.nodes());
    speeds.filter_map(|[a, b]| bandwidths.between(a, b)).min()
}

fn plan(job: &JobView, members: &[NodeId], bandwidths: &Bandwidths, knobs: Knobs) -> RoundPlan {
    let deadline = Duration::from_secs(3600);
    plan_round(&PlanInput {
        job,
        members,
        bandwidths,
        deadline,
        knobs,
    })
}

/// What the log does with a plan whose pairs all merge.
pub fn advance(job: &mut JobView, plan: RoundPlan, sent: ByteSize, took: Duration) {
    let done = |node| NodeOutcome {
        node,
        loss_micro: 0,
        samples: 0,
        sent,
        received: sent,
    };
    let outcome = RoundOutcome {
        job: job.id,
        round: plan.round,
        merged: plan.pairs.clone(),
        nodes: plan
            .pairs
            .iter()
            .flat_map(|pair| pair.nodes())
            .map(done)
            .collect(),
        took_ms: u32::try_from(took.as_millis()).unwrap_or(u32::MAX),
    };
    job.open(plan);
    job.close(outcome);
}

/// A job before its first round.
pub fn job(choice: &Choice) -> JobView {
    JobView::new(
        JobId(1),
        JobSpec {
            planner: choice.planner,
            seed: choice.seed,
            compression: choice.compression,
            rounds: u32::MAX,
            final_dense_rounds: 0,
            ..jobfile::defaults(Algorithm::Default)
        },
    )
}

/// A row of the table by which planners are compared: a planner's mean bottleneck beside the published one.
#[derive(Clone, Copy, Debug)]
pub struct Published {
    /// What was planned, for people.
    pub case: &'static str,
    /// The papers' figure, in Mbit/s.
    pub published_mbit_s: f64,
    /// One run of ours.
    pub run: fn(u64) -> f64,
}

/// The published figures for planning by thresholds (arXiv 2002.09692, section 6; `T_thres` is 10), to be reproduced.
pub const PUBLISHED: [Published; 4] = [
    Published {
        case: "14 cities, B_thres 1.45",
        published_mbit_s: 1.513,
        run: |seed| mean_bottleneck(&Network::fourteen_cities(), &by_thresholds(1450, 10, seed, 1)),
    },
    Published {
        case: "14 cities, B_thres 1",
        published_mbit_s: 1.271,
        run: |seed| mean_bottleneck(&Network::fourteen_cities(), &by_thresholds(1000, 10, seed, 1)),
    },
    Published {
        case: "14 cities, B_thres 5",
        published_mbit_s: 0.989,
        run: |seed| mean_bottleneck(&Network::fourteen_cities(), &by_thresholds(5000, 10, seed, 1)),
    },
    Published {
        case: "32 nodes uniform in (0, 5), B_thres 4, each seed a network",
        published_mbit_s: 4.049,
        run: |seed| {
            mean_bottleneck(
                &Network::uniform(32, 0, 5000, seed),
                &by_thresholds(4000, 10, seed, 1),
            )
        },
    },
];
