//! Measures the kernels of a round and the planner, beside what bounds them.
//!
//! Only `lapwing bench train` calls it. It asserts nothing: numbers are for people and for
//! comparisons between two runs on one machine.

use crate::mask::Mask;
use crate::merge::merge;
use crate::planner::{Knobs, PlanInput, plan_round};
use crate::quantise::{decode, encode};
use lapwing_base::{
    Algorithm, Bandwidth, Bandwidths, ByteSize, JobId, JobSpec, JobView, LinkSpeed, NodeId, NodeOutcome,
    Pair, Planner, Round, RoundKind, RoundOutcome, RoundPlan, RoundRecord, Row, Values,
};
use std::hint::black_box;
use std::time::{Duration, Instant};

fn row(case: String, value: f64, unit: &'static str, baseline: f64) -> Row {
    Row::new("train", case, value, unit, baseline)
}

/// Parameters of the MNIST-CNN in the papers (conv5x5x32, conv5x5x64, fc512, fc10).
const PARAMETERS: usize = 1_663_370;

/// Each case runs this often, and its fastest run counts: what else the machine does only ever adds time.
const RUNS: u32 = 15;

/// A plan may take this long before a round that lasts half a second notices.
const PLAN_TARGET: Duration = Duration::from_millis(100);

/// Measures everything; takes about two seconds.
///
/// Kernels are in GB/s of *model*: the four bytes of every parameter count, exchanged or not, and memory copy is the
/// baseline, so a ratio above 1 says that a round's kernels cost less than one copy of the model. Plans are in
/// milliseconds beside their target.
pub fn kernel_rows() -> Vec<Row> {
    let model: Vec<f32> = (0..PARAMETERS).map(|index| (index as f32).sin() * 0.1).collect();
    let mut copy = vec![0.0_f32; PARAMETERS];
    let copied = rate(fastest(|| {
        black_box(&mut copy[..]).copy_from_slice(black_box(&model))
    }));
    let mut rows = vec![row(
        format!("memory copy, {PARAMETERS} parameters"),
        copied,
        "GB/s",
        copied,
    )];
    let mut kernel = |case: String, took: Duration| rows.push(row(case, rate(took), "GB/s", copied));
    for (algorithm, compression) in [
        (Algorithm::Saps, 100),
        (Algorithm::Saps, 10),
        (Algorithm::Default, 100),
        (Algorithm::Default, 25),
    ] {
        let plan = round_of(compression);
        let name = format!("{algorithm} c={compression}");
        let mut values = Vec::new();
        let mut merged = model.clone();
        let mask = Mask::of(1, algorithm, &plan, PARAMETERS);
        kernel(
            format!("mask, {name}"),
            fastest(|| drop(black_box(Mask::of(1, algorithm, &plan, PARAMETERS)))),
        );
        kernel(
            format!("gather, {name}"),
            fastest(|| mask.gather(black_box(&model), &mut values)),
        );
        let received = values.clone();
        kernel(
            format!("merge, {name}"),
            fastest(|| merge_all(&mut merged, &mask, &values, &received)),
        );
        kernel(
            format!("mask + gather + merge, {name}"),
            fastest(|| {
                let mask = Mask::of(1, algorithm, &plan, PARAMETERS);
                mask.gather(black_box(&merged), &mut values);
                merge_all(&mut merged, &mask, &values, &received);
            }),
        );
    }
    let (mut bytes, mut decoded) = (Vec::new(), Vec::new());
    for kind in [Values::F32, Values::F16, Values::Int8] {
        kernel(
            format!("encode {kind}, dense"),
            fastest(|| encode(black_box(&model), kind, &mut bytes)),
        );
        kernel(
            format!("decode {kind}, dense"),
            fastest(|| {
                // What this run has just encoded is decodable.
                let _ = decode(black_box(&bytes), kind, PARAMETERS, &mut decoded);
            }),
        );
    }
    let mut merged = model.clone();
    let all = Mask::All(PARAMETERS);
    kernel(
        "merge, dense".to_owned(),
        fastest(|| merge_all(&mut merged, &all, &model, &decoded)),
    );
    rows.extend([14, 100, 1000].map(|nodes| plan_row("plan", nodes, &cluster(nodes))));
    let mut by_thresholds = cluster(1000);
    by_thresholds.0.spec.planner = Planner::Thresholds;
    rows.push(plan_row("plan by thresholds", 1000, &by_thresholds));
    // Nobody has met yet and nothing is known: every link is ranked.
    rows.push(plan_row("first plan", 1000, &(job(), Bandwidths::default())));
    // The largest cluster in which the shares of all models are followed.
    let mut dense = cluster(256);
    dense.0.spec.final_dense_rounds = dense.0.spec.rounds;
    rows.push(plan_row("dense plan", 256, &dense));
    rows
}

fn merge_all(model: &mut [f32], mask: &Mask, sent: &[f32], received: &[f32]) {
    // The lengths are the mask's and the values finite, so it is never refused.
    let _ = merge(black_box(model), mask, sent, received);
}

fn plan_row(name: &str, nodes: u64, (job, bandwidths): &(JobView, Bandwidths)) -> Row {
    let members: Vec<NodeId> = (1..=nodes).map(NodeId).collect();
    let input = PlanInput {
        job,
        members: &members,
        bandwidths,
        deadline: Duration::from_secs(30),
        knobs: Knobs::default(),
    };
    let took = fastest(|| drop(black_box(plan_round(black_box(&input)))));
    row(
        format!("{name}, {nodes} nodes"),
        millis(took),
        "ms",
        millis(PLAN_TARGET),
    )
}

/// A cluster where every link was measured and the last rounds are known: the most there is to read.
fn cluster(nodes: u64) -> (JobView, Bandwidths) {
    let mut bandwidths = Bandwidths::default();
    let mut state = 1_u32;
    for (from, to) in (1..=nodes).flat_map(|from| (1..=nodes).map(move |to| (NodeId(from), NodeId(to)))) {
        // Any spread-out numbers do.
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let speed = Bandwidth::kbit(state >> 12);
        bandwidths.set(LinkSpeed { from, to, speed });
    }
    let mut job = job();
    // Everybody has met every third member.
    for (a, b) in (0..nodes).flat_map(|a| (a + 1..nodes).step_by(3).map(move |b| (a, b))) {
        if let Some(pair) = Pair::new(NodeId(a + 1), NodeId(b + 1)) {
            job.last_matched.insert(pair, Round(b % 100));
        }
    }
    // The round that those meetings led up to, and what it carried.
    let mut plan = round_of(job.spec.compression);
    plan.round = Round(100);
    let sent = ByteSize(PARAMETERS as u64 / u64::from(plan.compression));
    let outcome = RoundOutcome {
        job: job.id,
        round: plan.round,
        merged: Vec::new(),
        nodes: vec![NodeOutcome {
            node: NodeId(1),
            loss_micro: 0,
            samples: 1,
            sent,
            received: sent,
        }],
        took_ms: 1000,
    };
    job.rounds.push_back(RoundRecord {
        plan,
        outcome: Some(outcome),
    });
    (job, bandwidths)
}

#[expect(clippy::disallowed_methods, reason = "a measurement reads the clock")]
fn fastest(mut run: impl FnMut()) -> Duration {
    // Once more than counted: the first run touches memory that is new to it.
    let runs = (0..=RUNS).map(|_| {
        let started = Instant::now();
        run();
        started.elapsed()
    });
    runs.skip(1)
        .min()
        .unwrap_or_default()
        .max(Duration::from_nanos(1))
}

/// GB/s of model that a kernel over the whole model passes over.
fn rate(took: Duration) -> f64 {
    (PARAMETERS * size_of::<f32>()) as f64 / took.as_secs_f64() / 1e9
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn round_of(compression: u32) -> RoundPlan {
    RoundPlan {
        job: JobId(1),
        round: Round(1),
        kind: RoundKind::Sparse,
        seed: [0; 32],
        pairs: Vec::new(),
        alone: Vec::new(),
        compression,
        local_steps: 1,
        lr_micro: 1,
        deadline_ms: 1,
    }
}

fn job() -> JobView {
    JobView::new(
        JobId(1),
        JobSpec {
            rounds: 1000,
            ..crate::jobfile::defaults(Algorithm::Default)
        },
    )
}
