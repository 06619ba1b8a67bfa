//! Averages random vectors over a network in virtual time, planned round by round as a leader would plan.
//!
//! No model, no training and no socket: what is left is what a planner is for. Shared by the table that the example
//! prints and by the tests that hold it.

use lapwing_base::{
    Algorithm, Bandwidth, Bandwidths, ByteSize, JobId, JobSpec, JobView, LinkSpeed, NodeId, NodeOutcome,
    Planner, ROUNDS_KEPT, RoundOutcome, RoundPlan, RoundRecord,
};
use lapwing_train::{Knobs, Mask, PlanInput, Threshold, city_bandwidths, jobfile, plan_round};
use std::time::Duration;

/// Members 1 to `nodes`, every link measured.
pub(crate) struct Network {
    /// What it is, for people.
    pub(crate) name: &'static str,
    /// How many members.
    pub(crate) nodes: u64,
    /// Their links.
    pub(crate) bandwidths: Bandwidths,
}

/// How partners are chosen.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Choice {
    /// The job's planner.
    pub(crate) planner: Planner,
    /// What `Planner::Thresholds` goes by.
    pub(crate) knobs: Knobs,
    /// The job's seed.
    pub(crate) seed: u64,
    /// The job's compression.
    pub(crate) compression: u32,
    /// Whether nothing is known of the links at first: each is measured when its pair meets.
    pub(crate) learns: bool,
}

/// What came out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Averaged {
    /// Virtual seconds until the disagreement was a hundredth of what it was; infinite when it never was.
    pub(crate) seconds: f64,
    /// Rounds until then.
    pub(crate) rounds: u64,
}

/// Parameters of the MNIST-CNN of the papers; as many bytes travel, as int8, in a round without a mask.
pub(crate) const MODEL: u64 = 1_663_370;

/// What a round takes beside its exchange: a commit and a few round trips, and no training.
pub(crate) const LATENCY: Duration = Duration::from_millis(50);

/// Coordinates that are averaged: 20 in a round of the sparsest mask that is measured here, more in the others.
const COORDINATES: usize = 2_000;

/// A run that is not done by then goes nowhere.
const ROUNDS_MAX: u64 = 5_000;

/// The fourteen cities of the papers.
pub(crate) fn cities() -> Network {
    Network {
        name: "14 cities",
        nodes: 14,
        bandwidths: city_bandwidths(),
    }
}

/// 32 members whose links are uniform in (0, 5) Mbit/s, as in the papers; each seed is another network.
pub(crate) fn uniform(seed: u64) -> Network {
    let mut draw = draws(seed);
    Network {
        name: "32, uniform in (0, 5) Mbit/s",
        nodes: 32,
        bandwidths: links(32, |_, _| 1 + draw() % 4_999),
    }
}

/// 16 members, three of them 40 times slower than the others.
pub(crate) fn few_slow() -> Network {
    let mut draw = draws(1);
    Network {
        name: "16, three of them slow",
        nodes: 16,
        bandwidths: links(16, |a, _| {
            if a <= 3 {
                500 + draw() % 500
            } else {
                20_000 + draw() % 30_000
            }
        }),
    }
}

/// 16 members, every link at 10 Mbit/s.
pub(crate) fn equal() -> Network {
    Network {
        name: "16, all links equal",
        nodes: 16,
        bandwidths: links(16, |_, _| 10_000),
    }
}

/// Every link of `nodes` members, alike in both directions, in kbit/s; `speed` is told the smaller number first.
pub(crate) fn links(nodes: u64, mut speed: impl FnMut(u64, u64) -> u64) -> Bandwidths {
    let mut bandwidths = Bandwidths::default();
    for (a, b) in (1..=nodes).flat_map(|a| (a + 1..=nodes).map(move |b| (a, b))) {
        let speed = Bandwidth::kbit(u32::try_from(speed(a, b)).expect("a speed of a few Mbit/s"));
        for (from, to) in [(NodeId(a), NodeId(b)), (NodeId(b), NodeId(a))] {
            bandwidths.set(LinkSpeed { from, to, speed });
        }
    }
    bandwidths
}

/// A stream of draws (splitmix64).
fn draws(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = state;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }
}

/// Averages until the disagreement is a hundredth of what it was.
pub(crate) fn average(network: &Network, choice: &Choice) -> Averaged {
    let members: Vec<NodeId> = (1..=network.nodes).map(NodeId).collect();
    let mut draw = draws(choice.seed ^ 0x5eed);
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

/// Mean over [`BOTTLENECK_ROUNDS`] rounds of the slowest exchange of each, in Mbit/s: the papers' figure for a planner.
///
/// The rounds before, as many as the window of `Planner::Thresholds`, only make the members meet.
pub(crate) fn mean_bottleneck(network: &Network, choice: &Choice) -> f64 {
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

/// Mean and standard deviation.
pub(crate) fn spread(runs: &[f64]) -> (f64, f64) {
    let mean = runs.iter().sum::<f64>() / runs.len() as f64;
    let variance = runs.iter().map(|run| (run - mean).powi(2)).sum::<f64>() / (runs.len() - 1) as f64;
    (mean, variance.sqrt())
}

/// SAPS as published: links of at least so many kbit/s, and the rounds within which meetings must connect everybody.
pub(crate) fn by_thresholds(kbit_s: u32, window: u32, seed: u64, compression: u32) -> Choice {
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

/// The run with the median time over seeds 1 to `seeds`.
pub(crate) fn median(network: &Network, seeds: u64, choice: impl Fn(u64) -> Choice) -> Averaged {
    let mut runs: Vec<_> = (1..=seeds).map(|seed| average(network, &choice(seed))).collect();
    runs.sort_by(|one, other| one.seconds.total_cmp(&other.seconds));
    runs[runs.len() / 2]
}

fn bottleneck(plan: &RoundPlan, bandwidths: &Bandwidths) -> Option<Bandwidth> {
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
pub(crate) fn advance(job: &mut JobView, plan: RoundPlan, sent: ByteSize, took: Duration) {
    for pair in &plan.pairs {
        job.last_matched.insert(*pair, plan.round);
    }
    for node in &plan.alone {
        job.last_alone.insert(*node, plan.round);
    }
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
    job.rounds.push_back(RoundRecord {
        plan,
        outcome: Some(outcome),
    });
    if job.rounds.len() > ROUNDS_KEPT {
        job.rounds.pop_front();
    }
}

/// A job before its first round.
pub(crate) fn job(choice: &Choice) -> JobView {
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
